"""Writes hugging_face/ and open_clip/: tiny random CLIPs as the two libraries save them, and clip.safetensors: what
the libraries compute with them.

Made with transformers 5.23.0, open_clip_torch 3.3.0, safetensors 0.8.0, torch 2.15.0:
    python clip.py

The dense features are written out here from the papers' formulas, with the reference models' own weights:
ClearCLIP (arXiv 2407.12442), MaskCLIP (arXiv 2112.01071), SCLIP (arXiv 2312.01597).
"""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, resize_pos_embed
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

here = Path(__file__).parent
torch.manual_seed(11)
SHAPES = {"square": (2, 3, 32, 32), "tall": (2, 3, 48, 24), "small": (1, 3, 16, 24)}
images = {name: torch.randn(shape) for name, shape in SHAPES.items()}
tokens = torch.tensor([[61, 5, 9, 3, 62, 0, 0, 0], [61, 62, 0, 0, 0, 0, 0, 0], [61, 1, 2, 3, 4, 5, 6, 62]])
out = {f"images.{name}": value for name, value in images.items()} | {"tokens": tokens}


def shake(model):
    """Weights at which no bias is zero, no gain is one, and attention is far from uniform."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim < 2:
                value.add_(0.2 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (0.5 if "embedding" in name else 1.3 / value.shape[-1] ** 0.5))


def attention(q, k, v, heads):
    """softmax(q k^T / sqrt d) v for [batch, tokens, width]."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = split(q), split(k), split(v)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def dense(x, block, heads, ln_post, proj, kind):
    """x: the last block's input [batch, 1 + patches, width]."""
    q, k, v = block["qkv"](block["ln_1"](x))
    if kind == "clear":
        x = block["out"](attention(q, q, v, heads))
    elif kind == "mask":
        x = block["out"](v)
    else:
        x = x + block["out"](attention(q, q, v, heads) + attention(k, k, v, heads))
        x = x + block["mlp"](block["ln_2"](x))
    return torch.nn.functional.normalize(proj(ln_post(x[:, 1:])), dim=-1)


def record(prefix, name, last_input, block, heads, ln_post, proj, pooled):
    out[f"{prefix}.pooled.{name}"] = torch.nn.functional.normalize(pooled, dim=-1)
    for kind in ["clear", "mask", "self"]:
        out[f"{prefix}.{kind}.{name}"] = dense(last_input, block, heads, ln_post, proj, kind)


# Hugging Face, QuickGELU.
config = CLIPConfig(
    projection_dim=16,
    text_config=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, vocab_size=63, max_position_embeddings=12, eos_token_id=62, bos_token_id=61, hidden_act="quick_gelu", projection_dim=16),
    vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, hidden_act="quick_gelu", projection_dim=16),
)
model = CLIPModel(config).eval()
shake(model)
folder = here / "hugging_face"
model.save_pretrained(folder)
CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], size={"height": 32, "width": 32}).save_pretrained(folder)
layer = model.vision_model.encoder.layers[-1]
block = {
    "ln_1": layer.layer_norm1,
    "qkv": lambda x: (layer.self_attn.q_proj(x), layer.self_attn.k_proj(x), layer.self_attn.v_proj(x)),
    "out": layer.self_attn.out_proj,
    "ln_2": layer.layer_norm2,
    "mlp": layer.mlp,
}
seen = {}
layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
with torch.no_grad():
    pooled = model.visual_projection(model.vision_model(pixel_values=images["square"]).pooler_output)
    record("hugging_face", "square", seen["x"], block, 4, model.vision_model.post_layernorm, model.visual_projection, pooled)
    texts = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    out["hugging_face.texts"] = torch.nn.functional.normalize(texts, dim=-1)
    out["hugging_face.scale"] = model.logit_scale.exp().reshape(1)

# OpenCLIP, GELU, at three sizes: position embeddings go through OpenCLIP's own resampling.
config = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 12, "vocab_size": 63, "width": 24, "heads": 2, "layers": 2},
}
model = CLIP(**config).eval()
shake(model)
folder = here / "open_clip"
folder.mkdir(exist_ok=True)
preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "interpolation": "bicubic", "resize_mode": "squash"}
(folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n")
save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
for name, shape in SHAPES.items():
    sized = CLIP(config["embed_dim"], config["vision_cfg"] | {"image_size": list(shape[2:])}, config["text_cfg"]).eval()
    state = dict(model.state_dict())
    # OpenCLIP resamples only when the number of tokens differs.
    resize_pos_embed(state, sized)
    sized.load_state_dict(state)
    layer = sized.visual.transformer.resblocks[-1]
    attn = layer.attn
    block = {
        "ln_1": layer.ln_1,
        "qkv": lambda x: torch.nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1),
        "out": attn.out_proj,
        "ln_2": layer.ln_2,
        "mlp": layer.mlp,
    }
    layer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(x=args[0] if args else kwargs["q_x"]), with_kwargs=True)
    with torch.no_grad():
        pooled = sized.encode_image(images[name])
        record("open_clip", name, seen["x"], block, 2, sized.visual.ln_post, lambda x: x @ sized.visual.proj, pooled)
with torch.no_grad():
    padded = torch.nn.functional.pad(tokens, (0, 12 - tokens.shape[1]))
    out["open_clip.texts"] = torch.nn.functional.normalize(model.encode_text(padded), dim=-1)
    out["open_clip.scale"] = model.logit_scale.exp().reshape(1)

save_file({name: value.to(torch.int32) if name == "tokens" else value.contiguous() for name, value in out.items()}, here / "clip.safetensors")
