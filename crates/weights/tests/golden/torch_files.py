"""Writes torch/*.pth: small files in both formats of torch.save, and torch_files.safetensors: what torch reads in them.

Made with torch 2.15.0, safetensors 0.8.0:
    python torch_files.py
"""

import argparse
import collections
from pathlib import Path

import torch
from safetensors.torch import save_file

here = Path(__file__).parent
out = here / "torch"
torch.manual_seed(3)

base = torch.randn(6, 8)
flat = torch.randn(20)
contents = {
    "f64": torch.randn(3, dtype=torch.float64),
    "f32": torch.randn(2, 3),
    "f16": torch.randn(5).half(),
    "bf16": torch.randn(2, 2).bfloat16(),
    "i64": torch.tensor([[1, -2], [3, 1 << 20]]),
    "i32": torch.tensor([-7], dtype=torch.int32),
    "i16": torch.tensor([300, -300], dtype=torch.int16),
    "i8": torch.tensor([-128, 127], dtype=torch.int8),
    "u8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    # One storage behind several views.
    "whole": base,
    "transposed": base.t(),
    "strided": base[1::2, 2:7:3],
    "tail": flat[13:],
    "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
    "parameter": torch.nn.Parameter(torch.randn(4)),
}
nested = {
    "state_dict": collections.OrderedDict(contents),
    "student": {"module.backbone.w": torch.ones(2)},
    "teacher": {"backbone.w": base},
    "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict(),
    # What checkpoints hold beside tensors: none of it may be built.
    "args": argparse.Namespace(arch="swin_tiny", lr=5e-4, sizes=[1, 2], path=Path("out")),
    "epoch": 12,
    "best": 0.75,
    "words": ("a", None, True, 1 << 70, {3, 4}, b"bytes", "ü"),
}
torch.save(nested, out / "zip.pth")
torch.save(nested, out / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(nested, out / "protocol4.pth", pickle_protocol=4)
torch.save(contents["f32"], out / "tensor.pth")
# An expanded view claims more than its storage holds: it is listed, and an error to read.
torch.save({"w": torch.ones(2), "expanded": torch.ones(1).expand(1000)}, out / "expanded.pth")
torch.save({"model": torch.nn.Linear(2, 2)}, out / "object.pth")

expected = {f"state_dict.{name}": value for name, value in contents.items()}
expected |= {"student.module.backbone.w": torch.ones(2), "teacher.backbone.w": base}
save_file(
    {name: value.detach().float().contiguous().clone() for name, value in expected.items()},
    here / "torch_files.safetensors",
)
