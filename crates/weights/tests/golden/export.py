"""Writes export.safetensors: what timm computes with the files that clasp exported, export/*.safetensors.

Made with torch 2.15.0, timm 1.0.31, safetensors 0.8.0, numpy 2.4.6:
    python export.py

Each file is loaded by the lines of Python that stand in its own metadata, with strict=True.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

here = Path(__file__).parent
GOLDEN = {}


def noise(name, shape):
    """Numbers in [-1, 1) from the name alone, row-major; as import.py has them."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    values = (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return torch.from_numpy(values.reshape(shape)).float()


for path in sorted((here / "export").glob("*.safetensors")):
    python = safe_open(path, "pt").metadata()["python"]
    scope = {"FILE": str(path)}
    exec(python, scope)
    model = scope["model"].eval()
    height, width = (128, 64) if path.stem == "swin_detection" else (100, 60)
    images = noise(f"images {height}x{width}", (1, 3, height, width)) * 2.0
    with torch.no_grad():
        x = model.forward_features(images)
        GOLDEN[f"{path.stem} pooled"] = model.forward_head(x, pre_logits=True)
    if path.stem.startswith("swin"):
        x = x.permute(0, 3, 1, 2)
    else:
        grid = [-(-size // model.patch_embed.patch_size[0]) for size in (height, width)]
        x = x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
    GOLDEN[f"{path.stem} map"] = x
    print(path.stem, python, tuple(x.shape), sep="\n")

save_file({name: value.contiguous() for name, value in GOLDEN.items()}, here / "export.safetensors")
