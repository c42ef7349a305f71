"""Makes augment.safetensors: single colour operations, blurs, a whole view, and crop statistics.

Versions: Python 3.11.7, torch 2.15.0, torchvision 0.29.2, Pillow 13.0.0, numpy, safetensors.
Run: runs/goldens.sh data/augment
"""

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.numpy import save_file
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

torch.manual_seed(0)
rng = np.random.default_rng(0)


def picture(height, width):
    """Smooth colours with saturated, black, white and grey patches: [height, width, 3], 8 bit."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [np.sin(x / 5 + p) * np.cos(y / 4 - p) for p in (0.0, 2.0, 4.0)]
    image = 127.5 + 110 * np.stack(waves, -1) + rng.normal(0, 15, (height, width, 3))
    image = image.clip(0, 255).round().astype(np.uint8)
    patches = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 0, 0), (255, 255, 255), (128, 128, 128)]
    for i, colour in enumerate(patches):
        image[0:2, 2 * i : 2 * i + 2] = colour
    return image


out = {}
image = picture(26, 21)
out["image"] = image
tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
operations = [
    ("brightness", F.adjust_brightness, [0.0, 0.6, 1.4]),
    ("contrast", F.adjust_contrast, [0.0, 0.6, 1.4]),
    ("saturation", F.adjust_saturation, [0.0, 0.8, 1.2]),
    ("hue", F.adjust_hue, [-0.5, -0.1, 0.07, 0.1, 0.5]),
]
for name, operation, factors in operations:
    out[f"{name}.factors"] = np.array(factors, np.float32)
    out[name] = torch.stack([operation(tensor, f) for f in factors]).numpy()
out["grey"] = F.rgb_to_grayscale(tensor, 3).numpy()
out["solarize"] = F.solarize(tensor, 128 / 255).numpy()

sigmas = [0.1, 0.5, 1.0, 2.0]
out["blur.sigmas"] = np.array(sigmas, np.float32)
out["blur"] = torch.stack([F.gaussian_blur(tensor, 2 * int(np.ceil(3 * s)) + 1, s) for s in sigmas]).numpy()
# Pillow's approximation by three box filters, which repeats the border instead of mirroring it.
out["blur.pillow"] = np.stack([np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(s))) for s in sigmas])

# A whole view: crop, resize, flip, jitter in a given order, grey is left out, blur, solarize, normalise.
source = picture(70, 45)
left, top, width, height = 6, 11, 31, 52
view = Image.fromarray(source).crop((left, top, left + width, top + height)).resize((24, 48), Image.Resampling.BICUBIC)
view = F.hflip(torch.from_numpy(np.array(view)).permute(2, 0, 1).float() / 255)
view = F.adjust_saturation(F.adjust_contrast(F.adjust_hue(F.adjust_brightness(view, 1.3), -0.08), 1.35), 0.85)
view = F.solarize(F.gaussian_blur(view, 9, 1.2), 128 / 255)
view = F.normalize(view, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
out["source"] = source
out["view"] = view.numpy()

# Crop statistics: mean and quantiles of width, height, left and top as shares of the image.
sizes = [(128, 256), (90, 250), (200, 200), (333, 250)]  # width, height
scales = [(0.8, 1.0), (0.05, 0.8)]
quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
draws = 40000
statistics = np.zeros((len(sizes), len(scales), 4, 1 + len(quantiles)), np.float32)
for i, (w, h) in enumerate(sizes):
    blank = torch.zeros(3, h, w)
    for j, scale in enumerate(scales):
        rows = np.array([RandomResizedCrop.get_params(blank, scale, (0.4, 0.6)) for _ in range(draws)])
        top, left, height, width = rows.T
        shares = [width / w, height / h, left / w, top / h]
        for k, share in enumerate(shares):
            statistics[i, j, k] = [share.mean(), *np.quantile(share, quantiles)]
out["crop.sizes"] = np.array(sizes, np.float32)
out["crop.scales"] = np.array(scales, np.float32)
out["crop.statistics"] = statistics

save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, "augment.safetensors")
