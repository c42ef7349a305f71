"""Golden values of crates/model, from timm and PyTorch.

Run: runs/goldens.sh model/model      (writes model.safetensors beside this script)
Made with torch 2.15.0, timm 1.0.31, numpy 2.4.6, safetensors 0.8.

No weights are stored: both sides fill every tensor from a hash of its name (FNV-1a, then SplitMix64), so
published sizes can be compared and the file holds results only.
"""

import types
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from golden_noise import noise  # runs/, which runs/goldens.sh adds to the path

GOLDEN = {}


def parameter(name, shape):
    """A parameter of that name: norms near 1, biases small, weights of variance 1 / inputs."""
    u = noise(name, shape)
    if "norm" in name and name.endswith("weight"):
        return 1.0 + 0.1 * u
    if name.endswith("bias"):
        return 0.1 * u
    if name.endswith(("relative_position_bias_table", "pos_embed", "_token")):
        return 0.5 * u
    inputs = int(np.prod(shape[1:]))
    return u * (3.0 / inputs) ** 0.5


def fill(module):
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(parameter(name, tuple(value.shape)))


# --- Swin ------------------------------------------------------------------------------------------------


def detection_attn(self, x):
    """Window attention as in Microsoft's detector: pad, then shift, in every stage."""
    batch, height, width, channels = x.shape
    side = self.window_size[0]
    shift = self.detection_shift
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    _, padded_height, padded_width, _ = x.shape
    mask = None
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
        region = torch.zeros(1, padded_height, padded_width, 1)
        slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
        for i, rows in enumerate(slices):
            for j, columns in enumerate(slices):
                region[:, rows, columns] = 3 * i + j
        region = timm.models.swin_transformer.window_partition(region, (side, side)).view(-1, side * side)
        mask = (region[:, None] - region[:, :, None] != 0).float() * -100.0
    windows = timm.models.swin_transformer.window_partition(x, (side, side)).view(-1, side * side, channels)
    windows = self.attn(windows, mask=mask).view(-1, side, side, channels)
    x = timm.models.swin_transformer.window_reverse(windows, (side, side), padded_height, padded_width)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x[:, :height, :width]


def merging_of_stride_1(self, x):
    """MMDetection's patch merging at stride 1: "corner" padding, overlapping neighbours by unfolding; its order of channels turned
    into Microsoft's, which the weights are in."""
    batch, height, width, channels = x.shape
    x = F.unfold(F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1)), kernel_size=2, stride=1)
    x = x.view(batch, channels, 2, 2, height, width).permute(0, 4, 5, 3, 2, 1)
    return self.reduction(self.norm(x.reshape(batch, height, width, 4 * channels)))


def tiny():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, dynamic_img_size=True, drop_path_rate=0.0
    ).eval()
    fill(model)
    return model


def images(height, width):
    return noise(f"images {height}x{width}", (1, 3, height, width)) * 2.0


def features(model, height, width, semantic=None):
    """[1, height/32, width/32, 768]; `semantic` is SOLIDER's (λ, 1−λ)."""
    with torch.no_grad():
        x = model.patch_embed(images(height, width))
        for index, layer in enumerate(model.layers):
            x = layer.downsample(x)
            if semantic is not None and index > 0:
                channels = x.shape[-1]
                scale, offset = (
                    semantic @ parameter(f"{kind}.{index - 1}.weight", (channels, 2)).T
                    + parameter(f"{kind}.{index - 1}.bias", (channels,))
                    for kind in ("semantic_embed_w", "semantic_embed_b")
                )
                x = x * F.softplus(scale) + offset
            x = layer.blocks(x)
        return model.norm(x)


def keep(name, x):
    GOLDEN[f"{name} pooled"] = x.mean((1, 2))
    GOLDEN[f"{name} map"] = x[..., ::32].permute(0, 3, 1, 2)


SIZES = [(224, 224), (256, 128), (384, 128), (100, 60)]
model = tiny()
for size in SIZES:
    keep(f"classification {size[0]}x{size[1]}", features(model, *size))
    with torch.no_grad():
        assert torch.equal(model.forward_features(images(*size)), features(model, *size))
model = tiny()
for layer in model.layers:
    for index, block in enumerate(layer.blocks):
        block.detection_shift = 3 if index % 2 else 0
        block._attn = types.MethodType(detection_attn, block)
for size in SIZES:
    keep(f"detection {size[0]}x{size[1]}", features(model, *size))
plain = [layer.downsample.forward for layer in model.layers]
for strides in [(4, 2, 2, 1), (4, 2, 1, 1)]:
    for layer, stride, forward in zip(model.layers, strides, plain):
        layer.downsample.forward = types.MethodType(merging_of_stride_1, layer.downsample) if stride == 1 else forward
    for size in [(256, 128), (100, 60)]:
        keep(f"strides {strides[2]} {strides[3]} {size[0]}x{size[1]}", features(model, *size)[:, ::2, ::2])
for layer, forward in zip(model.layers, plain):
    layer.downsample.forward = forward
keep("solider 256x128", features(model, 256, 128, torch.tensor([[0.3, 0.7]])))

for name in ("tiny", "small", "base"):
    model = timm.create_model(f"swin_{name}_patch4_window7_224", num_classes=0)
    GOLDEN[f"parameters {name}"] = torch.tensor([sum(p.numel() for p in model.parameters())], dtype=torch.float64)

# --- ViT -------------------------------------------------------------------------------------------------


def keep_vit(name, model, positions_of_class):
    """Ours stores a position embedding for the class token but none for registers; timm either none for both, or
    for all. `positions_of_class`: ours, which timm's `cls_token` takes in."""
    fill(model.eval())
    with torch.no_grad():
        if positions_of_class:
            count, channels = model.pos_embed.shape[1:]
            positions = parameter("pos_embed", (1, 1 + count, channels))
            model.cls_token.add_(positions[:, :1])
            model.pos_embed.copy_(positions[:, 1:])
    for height, width in [(256, 128), (100, 60)]:
        grid = [-(-size // model.patch_embed.patch_size[0]) for size in (height, width)]
        with torch.no_grad():
            x = model.forward_features(images(height, width))
            half = model.get_intermediate_layers(images(height, width), n=[len(model.blocks) // 2 - 1])[0]
            pooled = model.forward_head(x, pre_logits=True)
        patches = x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        key = f"{name} {height}x{width}"
        GOLDEN[f"{key} pooled"] = pooled
        GOLDEN[f"{key} map"] = patches[:, ::24]
        GOLDEN[f"{key} half"] = half.transpose(1, 2).unflatten(2, grid)[:, :1]


FREE = {"num_classes": 0, "dynamic_img_size": True, "dynamic_img_pad": True}
SMALL = {"img_size": (112, 70), "patch_size": 14, "embed_dim": 48, "depth": 4, "num_heads": 3, "mlp_ratio": 2}
VIT = timm.models.vision_transformer.VisionTransformer
keep_vit("vit-small", timm.create_model("vit_small_patch16_224", **FREE), False)
keep_vit("vit registers", VIT(**SMALL, **FREE, reg_tokens=4, no_embed_class=True, init_values=1.0), True)
keep_vit("vit mean", VIT(**SMALL, **FREE, class_token=False, qkv_bias=False, global_pool="avg", fc_norm=False), False)
for name in ("tiny", "small", "base"):
    model = timm.create_model(f"vit_{name}_patch16_224", num_classes=0)
    GOLDEN[f"parameters vit-{name}"] = torch.tensor([sum(p.numel() for p in model.parameters())], dtype=torch.float64)

for size in ("small", "small_plus", "base", "large"):
    with torch.device("meta"):
        model = timm.create_model(f"vit_{size}_patch16_dinov3_qkvb", num_classes=0)
    count = sum(p.numel() for p in model.parameters())
    GOLDEN[f"parameters {size} dinov3"] = torch.tensor([count], dtype=torch.float64)

# --- Mixture of experts under prompts -------------------------------------------------------------------------

# A ViT of one block, by its definition: timm's block with the norms and the MLP that the prompt weights give.
MIX = torch.tensor([0.2, 0.3, 0.5])
EXPERTS = 6
block_sizes = {"img_size": (32, 16), "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.5}


def conditioned(change):
    model = VIT(**block_sizes, num_classes=0).eval()
    fill(model)
    with torch.no_grad():
        change(model.blocks[0])
        tokens = model.forward_features(noise("moe images", (2, 3, 32, 16)))[:, 1:]
    return tokens.transpose(1, 2).reshape(2, 16, 4, 2)


def mixed(name, width):
    return MIX @ noise(f"blocks.0.moe.prompts.{name}", (3, width))


def gated(block):
    # N(x) = (1 + s) * LN(x) + b, and hidden units scaled by 1 + c after the activation.
    for norm, name in [(block.norm1, "norm1"), (block.norm2, "norm2")]:
        scale, shift = mixed(f"{name}_scale", 16), mixed(f"{name}_shift", 16)
        plain = norm.forward
        norm.forward = lambda x, plain=plain, scale=scale, shift=shift: (1 + scale) * plain(x) + shift
    factor = 1 + mixed("hidden_scale", 24)
    block.mlp.act.register_forward_hook(lambda module, inputs, output: factor * output)


def merged(block):
    # W = W + sum of w_e D_e, the weights averaged over prompts after their softmax.
    weights = MIX @ noise("blocks.0.moe.prompts.gate", (3, EXPERTS)).softmax(1)
    for layer, name in [(block.mlp.fc1, "fc1"), (block.mlp.fc2, "fc2")]:
        outputs, inputs = layer.weight.shape
        difference = parameter(f"blocks.0.moe.{name}.weight", (EXPERTS, inputs, outputs))
        layer.weight += torch.einsum("e,eio->oi", weights, difference)
        layer.bias += weights @ parameter(f"blocks.0.moe.{name}.bias", (EXPERTS, outputs))


GOLDEN["moe gated map"] = conditioned(gated)
GOLDEN["moe merged map"] = conditioned(merged)

# --- DINO's loss, as published ------------------------------------------------------------------------------


class DINOLoss(torch.nn.Module):
    """facebookresearch/dino main_dino.py, one process."""

    def __init__(self, out_dim, ncrops, teacher_temp, student_temp=0.1, center_momentum=0.9):
        super().__init__()
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.center_momentum, self.ncrops = center_momentum, ncrops
        self.center = noise("dino centre", (1, out_dim))

    def forward(self, student_output, teacher_output):
        student_out = (student_output / self.student_temp).chunk(self.ncrops)
        teacher_out = F.softmax((teacher_output - self.center) / self.teacher_temp, dim=-1).detach().chunk(2)
        total_loss, n_loss_terms = 0, 0
        for iq, q in enumerate(teacher_out):
            for v in range(len(student_out)):
                if v == iq:
                    continue
                loss = torch.sum(-q * F.log_softmax(student_out[v], dim=-1), dim=-1)
                total_loss += loss.mean()
                n_loss_terms += 1
        batch_center = torch.sum(teacher_output, dim=0, keepdim=True) / len(teacher_output)
        self.center = self.center * self.center_momentum + batch_center * (1 - self.center_momentum)
        return total_loss / n_loss_terms


student = (noise("dino student", (6 * 3, 11)) * 0.5).requires_grad_()
teacher = noise("dino teacher", (2 * 3, 11)) * 0.5
criterion = DINOLoss(11, 6, 0.04)
loss = criterion(student, teacher)
loss.backward()
GOLDEN["dino loss"] = loss.detach().reshape(1)
GOLDEN["dino gradient"] = student.grad
GOLDEN["dino centre"] = criterion.center

# --- DINO's head ----------------------------------------------------------------------------------------------

x = noise("head input", (4, 12))
for index, (inputs, outputs) in enumerate([(12, 20), (20, 20), (20, 8)]):
    x = x @ parameter(f"mlp.{index}.weight", (outputs, inputs)).T + parameter(f"mlp.{index}.bias", (outputs,))
    x = F.gelu(x) if index < 2 else x
v = parameter("last_layer.weight_v", (30, 8))
GOLDEN["head output"] = F.normalize(x, dim=-1, p=2) @ (v / v.norm(dim=1, keepdim=True)).T

# --- AdamW ----------------------------------------------------------------------------------------------------

weight = noise("adamw weight", (7, 5)).requires_grad_()
bias = noise("adamw bias", (7,)).requires_grad_()
optimiser = torch.optim.AdamW([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}])
for step in range(5):
    for group, decay in zip(optimiser.param_groups, (0.04 + 0.05 * step, 0.0)):
        group["lr"], group["weight_decay"] = 1e-2 / (step + 1), decay
    # The first gradients are long, so the limit of 3 per tensor acts on them.
    for name, value in (("weight", weight), ("bias", bias)):
        value.grad = noise(f"adamw {name} gradient {step}", tuple(value.shape)) * (4.0 if step < 2 else 0.1)
        factor = 3.0 / (value.grad.norm(2) + 1e-6)
        if factor < 1:
            value.grad.mul_(factor)
    optimiser.step()
GOLDEN["adamw weight"] = weight.detach()
GOLDEN["adamw bias"] = bias.detach()

# --- DINO's schedule ------------------------------------------------------------------------------------------


def cosine_scheduler(base_value, final_value, epochs, niter_per_ep, warmup_epochs=0, start_warmup_value=0):
    """facebookresearch/dino utils.py."""
    warmup_schedule = np.array([])
    warmup_iters = warmup_epochs * niter_per_ep
    if warmup_epochs > 0:
        warmup_schedule = np.linspace(start_warmup_value, base_value, warmup_iters)
    iters = np.arange(epochs * niter_per_ep - warmup_iters)
    schedule = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(np.pi * iters / len(iters)))
    return np.concatenate((warmup_schedule, schedule))


GOLDEN["schedule"] = torch.from_numpy(cosine_scheduler(5e-4, 1e-6, 6, 7, warmup_epochs=2))

save_file({k: v.contiguous() for k, v in GOLDEN.items()}, str(Path(__file__).with_suffix(".safetensors")))
print({k: tuple(v.shape) for k, v in GOLDEN.items()})
