"""Golden values of resizing and of CLIP's preprocessing.

Pillow 12.0.0, torchvision 0.29.2, numpy 2.4.6, safetensors 0.8.0. Not Pillow 13, which resizes columns
first where that is cheaper: see src/resize.rs. Run: runs/goldens.sh data/resize, which takes the former.
"""
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from torchvision import transforms

FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
WIDTH, HEIGHT = 37, 53

rng = np.random.default_rng(0)
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
# Smooth, so that rounding of small slopes is tried, with noise on one side, so that clipping is.
smooth = np.stack([127 + 120 * np.sin(x / 6 + c) * np.cos(y / (7 + c)) for c in range(3)], -1)
noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3))
source = np.where((x > WIDTH // 2)[..., None], noise, smooth).astype(np.uint8)
image = Image.fromarray(source)

out = {"source": source}
sizes = [(16, 8), (53, 20), (20, 37), (31, 29), (60, 44), (1, 1), (80, 5)]  # height, width
for name, method in FILTERS.items():
    for h, w in sizes:
        for box in [(0, 0, WIDTH, HEIGHT), (3.25, 7.5, 20.5, 40.125), (30, 40, 7, 13), (0.5, 0, 36, 1.5)]:
            left, top, bw, bh = box
            resized = image.resize((w, h), method, box=(left, top, left + bw, top + bh))
            # The size in the name only keeps names apart.
            out[f"box|{name}|{left},{top},{bw},{bh}|{h}x{w}"] = np.asarray(resized)
        left, top, cw, ch = 5, 9, 22, 41
        cropped = image.crop((left, top, left + cw, top + ch)).resize((w, h), method)
        out[f"crop|{name}|{left},{top},{cw},{ch}|{h}x{w}"] = np.asarray(cropped)
# The largest ones of the rarer boxes say nothing new.
out = {k: v for k, v in out.items() if k == "source" or v.size < 3000 or "0,0,37" in k or k.startswith("crop")}
save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, "resize.safetensors")

y, x = np.mgrid[0:437, 0:290]
drawn = np.stack([(x * 7 + y * 3) % 256, ((x * y) >> 3) % 256, ((x ^ y) * 5) % 256], -1)
drawn = Image.fromarray(drawn.astype(np.uint8))
resize = transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC)
pixels = transforms.CenterCrop(224)(resize(drawn))
mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
normalized = transforms.Normalize(mean, std)(transforms.ToTensor()(pixels)).numpy()
save_file(
    {
        "rows": np.ascontiguousarray(np.asarray(pixels)[::4]),
        "normalized": np.ascontiguousarray(normalized[:, ::32]),
    },
    "clip_preprocess.safetensors",
)
