"""Golden values of iBOT's loss and of KoLeo, with gradients, from PyTorch.

Run: runs/goldens.sh model/masked_patches      (writes masked_patches.safetensors beside this script)
Made with torch 2.15.0, numpy 2.4.6, safetensors 0.8.

Written from the papers: iBOT (Zhou et al., ICLR 2022, equation 2 and the mean over the masked
patches of a view and over views), KoLeo (Sablayrolles et al., ICLR 2019) on normalized features
with PyTorch's distance, as DINOv2 has it. The program has only the masked patches; here all
patches are computed and the others are multiplied by 0.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
golden = {}

views, patches, prototypes = 4, 6, 5
student = torch.randn(views, patches, prototypes, requires_grad=True)
teacher = torch.randn(views, patches, prototypes)
center = 0.3 * torch.randn(1, prototypes)
# The third view has no masked patch.
mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0] * 6, [1] * 6], dtype=torch.float32)
targets = F.softmax((teacher - center) / 0.05, dim=-1)
cross_entropy = -(targets * F.log_softmax(student / 0.1, dim=-1)).sum(-1)
of_view = (cross_entropy * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)
loss = of_view.mean()
loss.backward()
golden |= {
    "ibot.student": student, "ibot.teacher": teacher, "ibot.center": center, "ibot.mask": mask,
    "ibot.loss": loss.reshape(1), "ibot.gradient": student.grad,
}

features = torch.randn(7, 16, requires_grad=True)
x = F.normalize(features, p=2, dim=-1)
with torch.no_grad():
    distances = torch.cdist(x, x)
    distances.fill_diagonal_(float("inf"))
    nearest = distances.argmin(1)
loss = -torch.log(F.pairwise_distance(x, x[nearest], p=2, eps=1e-8) + 1e-8).mean()
loss.backward()
golden |= {
    "koleo.features": features, "koleo.loss": loss.reshape(1), "koleo.gradient": features.grad,
}

path = Path(__file__).with_suffix(".safetensors")
save_file({name: value.detach().contiguous().clone() for name, value in golden.items()}, path)
