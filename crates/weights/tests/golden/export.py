"""Writes export.safetensors: what timm computes with the files that clasp exported, export/*.safetensors.

Made with torch 2.15.0, timm 1.0.31, safetensors 0.8.0, numpy 2.4.6:
    runs/goldens.sh weights/export

Each file is loaded by the lines of Python that stand in its own metadata, with strict=True.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from golden_noise import noise  # runs/, which runs/goldens.sh adds to the path

here = Path(__file__).parent
GOLDEN = {}


for path in sorted((here / "export").glob("*.safetensors")):
    python = safe_open(path, "pt").metadata()["python"]
    scope = {"FILE": str(path)}
    exec(python, scope)
    model = scope["model"].eval()
    height, width = (128, 64) if path.stem in ("swin_detection", "swin_timm") else (100, 60)
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
