"""Golden values of the heads and losses of tasks, from PyTorch.

Run: runs/goldens.sh model/heads      (writes heads.safetensors beside this script)
Made with torch 2.15.0, torchvision 0.29.2, timm 1.0.31, numpy 2.4.6, safetensors 0.8.

Weights are filled from a hash of their names on both sides, as in model.py. The modules here are written from the papers
(and PyTorch's layers) with the field names of crates/model/src/heads.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformerStage
from torch import nn
from torchvision.ops import roi_align

from golden_noise import noise  # runs/, which runs/goldens.sh adds to the path


def fill(module, prefix):
    """Norms near 1, biases small, weights of variance 1 / inputs."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            shape = tuple(value.shape)
            # Ours are [inputs, outputs].
            linear = len(shape) == 2 and not name.endswith("table")
            shape = shape[::-1] if linear else shape
            u = noise(f"{prefix}.{name}", shape)
            if name.endswith(("running_var",)) or (name.endswith("weight") and len(shape) == 1):
                u = 1.0 + 0.1 * u
            elif len(shape) == 1:
                u = 0.1 * u
            else:
                u = u * (3.0 / int(np.prod(shape[1:]))) ** 0.5
            value.copy_(u.T if linear else u)
    return module


GOLDEN = {}


class ConvNorm(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)


def stage_norms(channels):
    return nn.ModuleList([nn.LayerNorm(c) for c in channels[:-1]])


def normalise(maps, norms):
    """All stages but the last, over their channels."""
    earlier = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for x, norm in zip(maps, norms)]
    return earlier + list(maps[len(norms):])


class Ce2p(nn.Module):
    def __init__(self, channels, context, decoder, classes):
        super().__init__()
        self.norms = stage_norms(channels)
        first, second, third, last = channels
        low, edge = first // 2, 2 * first
        self.pools = nn.ModuleList([ConvNorm(last, context, 1) for _ in range(4)])
        self.context = ConvNorm(last + 4 * context, context, 3)
        self.decoder_high = ConvNorm(context, decoder, 1)
        self.decoder_low = ConvNorm(first, low, 1)
        self.decoder = nn.ModuleList([ConvNorm(decoder + low, decoder, 1), ConvNorm(decoder, decoder, 1)])
        self.decoder_classifier = nn.Conv2d(decoder, classes, 1)
        self.edges = nn.ModuleList([ConvNorm(c, edge, 1) for c in channels[:3]])
        self.edge_classifier = nn.Conv2d(edge, 2, 3, padding=1)
        self.edge_fusion = nn.Conv2d(6, 2, 1)
        self.fusion = ConvNorm(decoder + 3 * edge, decoder, 1)
        self.classifier = nn.Conv2d(decoder, classes, 1)

    def forward(self, maps):
        x1, x2, x3, x4 = normalise(maps, self.norms)
        up = lambda x, to: F.interpolate(x, to.shape[2:], mode="bilinear", align_corners=True)
        context = [up(pool(F.adaptive_avg_pool2d(x4, cells)), x4) for pool, cells in zip(self.pools, (1, 2, 3, 6))]
        context = self.context(torch.cat(context + [x4], 1))
        decoded = torch.cat([up(self.decoder_high(context), x1), self.decoder_low(x1)], 1)
        for layer in self.decoder:
            decoded = layer(decoded)
        answer = self.decoder_classifier(decoded)
        features = [layer(x) for layer, x in zip(self.edges, (x1, x2, x3))]
        edges = self.edge_fusion(torch.cat([up(self.edge_classifier(f), x1) for f in features], 1))
        fused = self.fusion(torch.cat([decoded] + [up(f, x1) for f in features], 1))
        return self.classifier(fused), answer, edges


class Pose(nn.Module):
    def __init__(self, channels, width, doublings, joints):
        super().__init__()
        inputs = [channels] + [width] * doublings
        self.deconvs = nn.ModuleList(
            [nn.ConvTranspose2d(inputs[i], width, 4, 2, 1, bias=False) for i in range(doublings)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(doublings)])
        self.heatmaps = nn.Conv2d(width, joints, 1)

    def forward(self, x):
        for deconv, norm in zip(self.deconvs, self.norms):
            x = F.relu(norm(deconv(x)))
        return self.heatmaps(x)


class Csp(nn.Module):
    def __init__(self, channels, strides, width, embedding):
        super().__init__()
        self.norms = stage_norms(channels)
        self.ups = nn.ModuleList([
            nn.Conv2d(c, width, 1) if s == 1 else nn.ConvTranspose2d(c, width, 4 if s == 2 else s, s, (4 - 2) // 2 if s == 2 else 0)
            for c, s in zip(channels, strides)])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in channels])
        every = width * len(channels)
        self.mix = nn.Conv2d(every, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(32, width)
        self.centre, self.size, self.offset = (nn.Conv2d(width, n, 1) for n in (1, 2, 2))
        self.embedding = nn.Conv2d(every, embedding, 1)

    def forward(self, maps):
        joined = []
        for up, scale, x in zip(self.ups, self.scales, normalise(maps, self.norms)):
            x = up(x)
            if joined:
                x = x[..., : joined[0].shape[2], : joined[0].shape[3]]
            joined.append(F.normalize(x, dim=1) * scale[None, :, None, None])
        joined = torch.cat(joined, 1)
        x = F.relu(self.norm(self.mix(joined)))
        return self.centre(x), self.size(x), self.offset(x), F.normalize(self.embedding(joined), dim=1)


def maps(name, batch, shapes):
    return [noise(f"{name}.{i}", (batch, *shape)) for i, shape in enumerate(shapes)]


def probe(name, outputs):
    """A scalar that depends on every output, for gradients."""
    return sum((noise(f"{name}.probe.{i}", tuple(o.shape)) * o).sum() for i, o in enumerate(outputs))


def both_modes(name, module, inputs, names):
    """Outputs in evaluation; then in training, with the gradients of the inputs and the running statistics after."""
    module.eval()
    for key, output in zip(names, module(inputs)):
        GOLDEN[f"{name}.eval.{key}"] = output.detach()
    module.train()
    leaves = [x.clone().requires_grad_() for x in inputs] if isinstance(inputs, list) else inputs.clone().requires_grad_()
    outputs = module(leaves)
    for key, output in zip(names, outputs):
        GOLDEN[f"{name}.train.{key}"] = output.detach()
    probe(name, outputs).backward()
    for i, leaf in enumerate(leaves if isinstance(leaves, list) else [leaves]):
        GOLDEN[f"{name}.gradient.{i}"] = leaf.grad
    for key, value in module.state_dict().items():
        if "running" in key:
            GOLDEN[f"{name}.after.{key}"] = value.clone()


shapes = [(8, 11, 7), (16, 6, 4), (32, 3, 2), (64, 2, 1)]
both_modes("ce2p", fill(Ce2p([8, 16, 32, 64], 16, 12, 5), "ce2p"), maps("ce2p.map", 3, shapes), ["logits", "first", "edges"])


class Listed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return [self.inner(x)]


pose = fill(Pose(12, 8, 2, 3), "pose")
both_modes("pose", Listed(pose), noise("pose.map", (2, 12, 4, 3)), ["heatmaps"])
GOLDEN = {k.replace("after.inner.", "after."): v for k, v in GOLDEN.items()}
csp = fill(Csp([6, 8, 10], [2, 4, 8], 32, 9), "csp")
both_modes("csp", csp, maps("csp.map", 2, [(6, 5, 6), (8, 3, 3), (10, 2, 2)]), ["centre", "size", "offset", "embedding"])

# --- losses ----------------------------------------------------------------------------------------------


def loss(name, inputs, value):
    value.backward()
    GOLDEN[f"{name}.loss"] = value.detach().reshape(1)
    for i, leaf in enumerate(inputs):
        GOLDEN[f"{name}.gradient.{i}"] = leaf.grad


def leaf(name, shape, scale=1.0):
    return (scale * noise(name, shape)).requires_grad_()


labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
for margin in (None, 0.3):
    f = leaf("triplet.features", (9, 6))
    d = (f[:, None] - f[None]).square().sum(-1).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels[None]
    ap = torch.where(same, d, -1.0).amax(1)
    an = torch.where(same, 1e9, d).amin(1)
    ones = torch.ones_like(an)
    value = nn.SoftMarginLoss()(an - ap, ones) if margin is None else nn.MarginRankingLoss(margin)(an, ap, ones)
    loss(f"triplet.{margin}", [f], value)

x = leaf("identity.logits", (9, 5), 3.0)
loss("identity", [x], F.cross_entropy(x, labels, label_smoothing=0.1))

x = leaf("bce.logits", (4, 3), 4.0)
t = (noise("bce.targets", (4, 3)) > 0).float()
r = torch.tensor([0.1, 0.5, 0.8])
w = torch.where(t > 0, torch.exp(1 - r), torch.exp(r))
loss("bce", [x], (F.binary_cross_entropy_with_logits(x, t, reduction="none") * w).sum(1).mean())


def pixel_labels(name, shape, classes):
    u = noise(name, shape)
    y = ((u + 1) / 2 * classes).long().clamp(0, classes - 1)
    y[noise(name + ".ignored", shape) > 0.7] = 255
    return y


x = leaf("parsing.logits", (2, 5, 6, 4), 2.0)
y = pixel_labels("parsing.labels", (2, 6, 4), 4)  # class 4 is absent
GOLDEN["parsing.labels"] = y.float()
loss("parsing.ce", [x], F.cross_entropy(x, y, ignore_index=255))

x = leaf("parsing.logits", (2, 5, 6, 4), 2.0)
p = F.softmax(x, 1).permute(0, 2, 3, 1).reshape(-1, 5)
flat = y.reshape(-1)
p, flat = p[flat != 255], flat[flat != 255]
terms = []
for c in flat.unique():
    fg = (flat == c).float()
    errors, order = (fg - p[:, c]).abs().sort(descending=True)
    sorted_fg = fg[order]
    total = sorted_fg.sum()
    jaccard = 1 - (total - sorted_fg.cumsum(0)) / (total + (1 - sorted_fg).cumsum(0))
    jaccard = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    terms.append((errors * jaccard).sum())
loss("parsing.lovasz", [x], torch.stack(terms).mean())


def edges_of(label, width=3):
    """Self-Correction's rule: the lower, the left, the upper left, the upper right of two that differ; then widened."""
    h, w = label.shape[1:]
    edge = torch.zeros(label.shape)
    known = label != 255
    def mark(to, a, b):
        to[(label[a] != label[b]) & known[a] & known[b]] = 1
    s = slice
    every = s(None)
    mark(edge[:, 1:h], (every, s(1, h)), (every, s(0, h - 1)))
    mark(edge[:, :, : w - 1], (every, every, s(0, w - 1)), (every, every, s(1, w)))
    mark(edge[:, : h - 1, : w - 1], (every, s(0, h - 1), s(0, w - 1)), (every, s(1, h), s(1, w)))
    mark(edge[:, : h - 1, 1:w], (every, s(0, h - 1), s(1, w)), (every, s(1, h), s(0, w - 1)))
    kernel = torch.ones(1, 1, width, width)
    return (F.conv2d(edge[:, None], kernel, padding=1)[:, 0] != 0).long()


big = pixel_labels("edges.labels", (2, 9, 7), 3)
big = big.repeat_interleave(3, 1).repeat_interleave(2, 2)
GOLDEN["edges.labels"] = big.float()
GOLDEN["edges.edges"] = edges_of(big).float()
edges = GOLDEN["edges.edges"].long()
x = leaf("edges.logits", (2, 2, *edges.shape[1:]), 2.0)
share = edges.float().mean()
loss("edges", [x], F.cross_entropy(x, edges, weight=torch.stack([share, 1 - share])))

x = leaf("heatmap.predicted", (2, 3, 4, 5))
t, w = noise("heatmap.target", (2, 3, 4, 5)), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
loss("heatmap", [x], sum(F.mse_loss(x[:, j] * w[:, j, None, None], t[:, j] * w[:, j, None, None]) for j in range(3)) / 3)

# CSP on a grid of 4x5 with two middles and an ignored corner.
c, s, o = leaf("detection.centre", (2, 1, 4, 5), 3.0), leaf("detection.size", (2, 2, 4, 5)), leaf("detection.offset", (2, 2, 4, 5))
near = (noise("detection.nearness", (2, 4, 5)).abs() * 0.9)
middle = torch.zeros(2, 4, 5)
middle[0, 1, 2] = middle[1, 3, 4] = near[0, 1, 2] = near[1, 3, 4] = 1
counts = torch.ones(2, 4, 5)
counts[0, 0, :2] = 0
size = 1.5 + noise("detection.sizes", (2, 2, 4, 5))
sized = torch.zeros(2, 4, 5)
sized[0, 0:3, 2] = sized[1, 3, 3:5] = 1
offset = noise("detection.offsets", (2, 2, 4, 5)) / 2
p = torch.sigmoid(c[:, 0])
bce = F.binary_cross_entropy(p, middle, reduction="none")
weight = torch.where(middle > 0, (1 - p) ** 2, p**2 * (1 - near) ** 4) * counts
scale = size.abs().clamp_min(0.1)
relative = F.smooth_l1_loss(s / scale, size / scale, reduction="none")
losses = [
    (weight * bce).sum() / 2,
    (relative * sized[:, None]).sum() / sized.sum(),
    (F.smooth_l1_loss(o, offset, reduction="none") * middle[:, None]).sum() / 2,
]
sum(losses).backward()
GOLDEN["detection.losses"] = torch.stack(losses).detach()
for name, value in dict(nearness=near, middles=middle, counts=counts, sizes=size, sized=sized, offsets=offset).items():
    GOLDEN[f"detection.{name}"] = value
for i, x in enumerate((c, s, o)):
    GOLDEN[f"detection.gradient.{i}"] = x.grad

# OIM (Xiao et al. 2017, section 3.3): three steps of a table of 4 people and a queue of 3.
table, queue, head = torch.zeros(4, 5), torch.zeros(3, 5), 0
for step, persons in enumerate([[0, None, 2], [2, 2, None, None, 1], [None, 0, None, 3]]):
    x = leaf(f"oim.{step}", (len(persons), 5))
    unit = F.normalize(x)
    scores = 10.0 * unit @ torch.cat([table, queue]).T
    known = [i for i, person in enumerate(persons) if person is not None]
    p = torch.stack([scores[i, persons[i]].exp() / scores[i].exp().sum() for i in known])
    loss(f"oim.{step}", [x], -p.log().mean())
    for person, v in zip(persons, unit.detach()):
        if person is None:
            queue[head], head = v, (head + 1) % 3
        else:
            table[person] = F.normalize(0.5 * table[person] + 0.5 * v, dim=0)
GOLDEN["oim.table"], GOLDEN["oim.queue"] = table, queue

# Two-stage search: RoIAlign, the head on two copies of a Swin's last stage (timm's), norm-aware embedding.
REGIONS = torch.tensor([
    [0, 2.0, 3.0, 40.0, 90.0], [1, -9.0, 10.0, 31.5, 130.0], [0, 55.0, 60.0, 55.2, 60.1], [1, 20.0, 0.0, 64.0, 96.0],
    [0, 70.0, 100.0, 90.0, 120.0], [1, 8.0, 8.0, 24.0, 56.0]])
x = leaf("regions.map", (2, 3, 12, 8))
cells = roi_align(x, REGIONS, 14, spatial_scale=1 / 8, sampling_ratio=2)
GOLDEN["regions.cells"] = cells.detach()
(cells * noise("regions.probe", cells.shape)).sum().backward()
GOLDEN["regions.gradient"] = x.grad


class LastStage(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.stage = SwinTransformerStage(channels, 2 * channels, (14, 14), 2, downsample=True, num_heads=heads, window_size=7)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x):
        return self.norm(self.stage(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Proposals(nn.Module):
    def __init__(self, channels, anchors):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness, self.deltas = nn.Conv2d(channels, anchors, 1), nn.Conv2d(channels, 4 * anchors, 1)


class First(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.stage = LastStage(channels, heads)
        self._modules["class"] = nn.Linear(2 * channels, 2)
        self.deltas = nn.Linear(2 * channels, 4)


class Second(nn.Module):
    def __init__(self, channels, heads, embedding):
        super().__init__()
        self.stage = LastStage(channels, heads)
        self.projections = nn.ModuleList([nn.Linear(channels, embedding // 2), nn.Linear(2 * channels, embedding // 2)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(embedding // 2) for _ in range(2)])
        self.rescaler = nn.BatchNorm1d(1)
        self.deltas, self.deltas_norm = nn.Linear(2 * channels, 4), nn.BatchNorm1d(4)


class TwoStage(nn.Module):
    def __init__(self, channels, heads, anchors, embedding):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proposals = Proposals(channels, anchors)
        self.first, self.second = First(channels, heads), Second(channels, heads, embedding)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        shared = F.relu(self.proposals.conv(x))
        cells = roi_align(x, REGIONS, 14, spatial_scale=1 / 8, sampling_ratio=2)
        seen = self.first.stage(cells).mean((2, 3))
        known = self.second.stage(cells).mean((2, 3))
        halves = [norm(layer(level)) for layer, norm, level in zip(self.second.projections, self.second.norms, (cells.mean((2, 3)), known))]
        embedding = torch.cat(halves, 1)
        rows = (
            self.first._modules["class"](seen), self.first.deltas(seen),
            F.normalize(embedding), self.second.rescaler(embedding.norm(dim=1, keepdim=True)),
            self.second.deltas_norm(self.second.deltas(known)),
        )
        return self.proposals.objectness(shared), self.proposals.deltas(shared), *(x[..., None, None] for x in rows)


both_modes("two_stage", fill(TwoStage(16, 4, 3, 6), "two_stage"), noise("two_stage.map", (2, 16, 12, 8)),
           ["objectness", "proposed", "class", "first", "embedding", "score", "second"])

x = leaf("boxes.objectness", (7,), 3)
loss("boxes.objectness", [x], F.binary_cross_entropy_with_logits(x, torch.tensor([1.0, 0, 0, 1, 1, 0, 0])))
for beta in (1 / 9, 1.0):
    x = leaf("boxes.deltas", (5, 4), 2)
    boxes = F.smooth_l1_loss(x, noise("boxes.targets", (5, 4)), beta=beta, reduction="sum") / 12
    loss(f"boxes.{beta:.2f}", [x], boxes)

# Labels refined by another model (Self-Correction, equations of section 3.3): KL to softmax of the mean of logits and one-hot labels.
labels = GOLDEN["parsing.labels"].long()
valid = (labels != 255).flatten()
soft = 3 * noise("refined.soft", (2, 5, 6, 4))
one_hot = F.one_hot(labels.clamp_max(4), 5).permute(0, 3, 1, 2).float()
rows = lambda x: x.permute(0, 2, 3, 1).reshape(-1, 5)[valid]
x = leaf("refined.logits", (2, 5, 6, 4), 2)
p = F.softmax(soft * (2 / 3) + one_hot / 3, dim=1)
loss("refined", [x], F.kl_div(rows(F.log_softmax(x, dim=1)), rows(p), reduction="batchmean"))

path = Path(__file__).with_suffix(".safetensors")
save_file({k: v.detach().contiguous().clone() for k, v in GOLDEN.items()}, path)
print(path, path.stat().st_size)
