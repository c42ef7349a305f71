"""Writes families.json: names and shapes of small checkpoints of more families; families.safetensors: what their own
programs compute at the sizes of people and at others.

Made with torch 2.15.0, timm 1.0.31, transformers 5.24.0, safetensors 0.8.0, numpy 2.4.6:
    runs/goldens.sh weights/families

As in import.py values are not stored but follow from a hash of each name. Windows of a Swin depend on the size of the
images by rules that differ between programs; every rule is run at 224x224, 256x128, 384x128 and a size of odd maps.
"""

import json
import tempfile
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import deit, eva, swin_transformer, vision_transformer

from golden_noise import noise  # runs/, which runs/goldens.sh adds to the path
from golden_weights import images, parameter, shapes_of

here = Path(__file__).parent
NAMES, GOLDEN = {}, {}
SQUARE, PEOPLE, TALL, ODD = (224, 224), (256, 128), (384, 128), (236, 108)


def published(source, shapes):
    """Keeps names and shapes; gives the values under the names."""
    NAMES[source] = {name: list(shape) for name, shape in shapes.items()}
    return {name: parameter(name, tuple(shape)) for name, shape in shapes.items()}


def keep(key, pooled, features):
    """Of the map some channels, which keeps the file small."""
    GOLDEN[f"{key} pooled"], GOLDEN[f"{key} map"] = pooled, features[:, :8]


def label(key, size):
    return f"{key} {size[0]}x{size[1]}"


# --- Swin ---------------------------------------------------------------------------------------------------

SWIN = {"embed_dim": 4, "depths": (2, 2, 1, 2), "num_heads": (1, 1, 2, 2), "window_size": 7, "num_classes": 0}


def timm_swin(size, **change):
    return swin_transformer.SwinTransformer(**(SWIN | change), img_size=size).eval()


def keep_timm_swin(key, model, size):
    with torch.no_grad():
        x = model.forward_features(images(*size))
    keep(label(key, size), x.mean((1, 2)), x.permute(0, 3, 1, 2))


# A checkpoint of 224x224 in models for other sizes, as timm.create_model(…, pretrained=True, img_size=…) loads it.
state = published("swin timm", shapes_of(timm_swin(SQUARE).state_dict()))
for size in (SQUARE, PEOPLE, TALL, ODD, (96, 64)):
    model = timm_swin(size)
    model.load_state_dict(swin_transformer.checkpoint_filter_fn(dict(state), model), strict=True)
    keep_timm_swin("swin timm", model, size)

# One that was made for people: windows of 7x4 in the last stage.
model = timm_swin(PEOPLE)
state = published("swin timm people", shapes_of(model.state_dict()))
for size in (PEOPLE, TALL):
    model = timm_swin(size)
    model.load_state_dict(state, strict=True)
    keep_timm_swin("swin timm people", model, size)
# The same windows at a size where timm would otherwise have larger ones.
model = timm_swin(SQUARE, window_size=((7, 7), (7, 7), (7, 7), (7, 4)))
model.load_state_dict(state, strict=True)
keep_timm_swin("swin timm people", model, SQUARE)

# A window for each stage, as in timm's swin_s3_*.
model = timm_swin(SQUARE, window_size=(7, 7, 14, 7))
model.load_state_dict(published("swin timm s3", shapes_of(model.state_dict())), strict=True)
keep_timm_swin("swin timm s3", model, SQUARE)

# transformers: names are those of its files.
config = transformers.SwinConfig(embed_dim=4, depths=[2, 2, 1, 2], num_heads=[1, 1, 2, 2], window_size=7)


def hugging_face(source, model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        save_file(published(source, shapes_of(load_file(file))), file, {"format": "pt"})
        return type(model).from_pretrained(folder).eval()


hugging_face("swin transformers", transformers.SwinModel(config))
hugging_face("swin transformers classifier", transformers.SwinForImageClassification(config))
state = {name: parameter(name, tuple(shape)) for name, shape in NAMES["swin transformers"].items()}
for size, always in ((SQUARE, False), ((384, 256), False), ((246, 230), False), (PEOPLE, True), (TALL, True), (ODD, True)):
    # A new model for each size: transformers' blocks keep the window of the first images that they see.
    model = hugging_face("swin transformers", transformers.SwinModel(config))
    if always:
        # Without `always_partition` it stops: a map that is smaller than the window.
        try:
            model(images(*size))
            raise SystemExit(f"transformers takes {size}")
        except RuntimeError:
            model = hugging_face("swin transformers", transformers.SwinModel(config))
    with torch.no_grad():
        x = model(images(*size), always_partition=always)
    grid = [-(-side // 32) for side in size]
    features = x.last_hidden_state.transpose(1, 2).unflatten(2, grid)
    keep(label("swin transformers", size), x.pooler_output, features)

# --- ViT ----------------------------------------------------------------------------------------------------

VIT = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}
FREE = {"dynamic_img_size": True, "dynamic_img_pad": True}


def keep_vit(key, model, size):
    with torch.no_grad():
        x = model.forward_features(images(*size))
        grid = [-(-side // model.patch_embed.patch_size[0]) for side in size]
        keep(
            label(key, size),
            model.forward_head(x, pre_logits=True),
            x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid),
        )


def vit(kind=vision_transformer.VisionTransformer, **change):
    return kind(**(VIT | FREE | {"img_size": (112, 112)} | change)).eval()


def keep_vits(key, model, state, *sizes):
    model.load_state_dict(state, strict=True)
    for size in sizes:
        keep_vit(key, model, size)


model = vit(global_pool="avg")
keep_vits("vit fc_norm", model, published("vit fc_norm", shapes_of(model.state_dict())), (112, 112), (128, 64))

# DeiT-III: positions of patches alone, and LayerScale, which its own files call gamma.
model = vit(no_embed_class=True, init_values=1.0)
keep_vits("deit3", model, published("deit3", shapes_of(model.state_dict())), (112, 112), (128, 64))
own = {name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): shape for name, shape in NAMES["deit3"].items()}
state = published("deit3 original", own)
state = vision_transformer.checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
keep_vits("deit3 original", model, state, (112, 112))

model = vit(deit.VisionTransformerDistilled)
keep_vits("deit distilled", model, published("deit distilled", shapes_of(model.state_dict())), (112, 112), (128, 64))

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def keep_transformers(key, model, size, prefix_tokens, pooled, **options):
    with torch.no_grad():
        x = model(images(*size), **options).last_hidden_state
    # What is left of the last whole patch is cut off.
    grid = [side // model.config.patch_size for side in size]
    keep(label(key, size), pooled(x), x[:, prefix_tokens:].transpose(1, 2).unflatten(2, grid))


def first(x):
    return x[:, 0]


DINOV2 = SIZES | {"image_size": 70, "patch_size": 14}
model = hugging_face("dinov2 transformers", transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2)))
for size in ((70, 70), (112, 56), (128, 64)):
    keep_transformers("dinov2 transformers", model, size, 1, first)
config = transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4)
model = hugging_face("dinov2 registers transformers", transformers.Dinov2WithRegistersModel(config))
for size in ((112, 56), (128, 64)):
    keep_transformers("dinov2 registers transformers", model, size, 5, first)
SIZES |= {"intermediate_size": 256, "image_size": 112, "patch_size": 16}
model = hugging_face("vit transformers", transformers.ViTModel(transformers.ViTConfig(**SIZES)))
keep_transformers("vit transformers", model, (136, 72), 1, first, interpolate_pos_encoding=True)
model = hugging_face("deit transformers", transformers.DeiTModel(transformers.DeiTConfig(**SIZES)))
keep_transformers("deit transformers", model, (112, 112), 2, lambda x: x[:, :2].mean(1))

# --- DINOv3 -------------------------------------------------------------------------------------------------

ROTARY = [(128, 128), (256, 128), (384, 128), (100, 60)]
PICO = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0, "dynamic_img_pad": True}
GATED = {"mlp_ratio": 2.0}
for name, timm_name, change in [
    ("dinov3 timm", "vit_small_patch16_dinov3", {"mlp_ratio": 2.0}),
    ("dinov3 timm biases", "vit_small_patch16_dinov3_qkvb", {"mlp_ratio": 2.0}),
    ("dinov3 timm gated", "vit_small_plus_patch16_dinov3_qkvb", GATED),
]:
    model = timm.create_model(timm_name, **(PICO | change), global_pool="token").eval()
    keep_vits(name, model, published(name, shapes_of(model.state_dict())), *ROTARY)

# Meta's own names, which timm converts: one bias with a mask, the periods, parts of the pre-training.
shapes = {}
for theirs, shape in NAMES["dinov3 timm gated"].items():
    for timm_part, own in [
        ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens"),
        ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"),
    ]:
        theirs = theirs.replace(timm_part, own)
    if theirs.endswith("attn.q_bias"):
        shapes[theirs.replace("q_bias", "qkv.bias")] = [3 * 64]
    elif not theirs.endswith("attn.v_bias"):
        shapes[theirs] = shape
shapes["mask_token"] = [1, 64]
state = published("dinov3 original", shapes)
model = timm.create_model("vit_small_plus_patch16_dinov3_qkvb", **(PICO | GATED), global_pool="token").eval()
keep_vits("dinov3 original", model, eva.checkpoint_filter_fn(dict(state), model), (128, 128), (256, 128))

SIZES |= {"intermediate_size": 128, "image_size": 128}
for name, change in [
    ("dinov3 transformers", {}),
    ("dinov3 transformers gated", {"use_gated_mlp": True, "hidden_act": "silu"}),
    ("dinov3 transformers key bias", {"key_bias": True, "num_register_tokens": 0}),
]:
    config = transformers.DINOv3ViTConfig(**(SIZES | {"num_register_tokens": 4} | change))
    model = hugging_face(name, transformers.DINOv3ViTModel(config))
    for size in ROTARY:
        keep_transformers(name, model, size, 1 + config.num_register_tokens, first)

(here / "families.json").write_text(json.dumps(NAMES, separators=(",", ":")).replace('},"', '},\n"') + "\n")
save_file({name: value.contiguous() for name, value in GOLDEN.items()}, here / "families.safetensors")
print({name: tuple(value.shape) for name, value in GOLDEN.items()})
