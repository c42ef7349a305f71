//! A Swin or DINOv3 in the names and with the configuration of Hugging Face's transformers.

use clasp_data::image::Filter;
use clasp_model::swin::SwinSizes;
use clasp_model::vit::{Pool, VitSizes};
use serde_json::{Value, json};

use crate::backbone::BackboneMeta;
use crate::state::{HostTensor, StateDict};

/// `config.json` of a `SwinModel`.
pub(super) fn config(sizes: &SwinSizes, meta: &BackboneMeta) -> Value {
    json!({
        "model_type": "swin",
        "architectures": ["SwinModel"],
        "image_size": [meta.height, meta.width],
        "patch_size": sizes.patch_size,
        "num_channels": 3,
        "embed_dim": sizes.embed_dim,
        "depths": sizes.depths,
        "num_heads": sizes.num_heads,
        "window_size": sizes.window_size,
        "mlp_ratio": sizes.mlp_ratio,
        "qkv_bias": true,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_absolute_embeddings": false,
    })
}

/// `preprocessor_config.json`: images resized to the size, as this program does.
pub(super) fn preprocessor(meta: &BackboneMeta) -> Value {
    // PIL's numbers of filters.
    let resample = match meta.filter {
        Filter::Nearest => 0,
        Filter::Bilinear => 2,
        Filter::Bicubic => 3,
    };
    json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": true,
        "size": { "height": meta.height, "width": meta.width },
        "resample": resample,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": meta.mean,
        "image_std": meta.std,
    })
}

/// A plain Swin's parameters in transformers' published names, which halve the map at the end of a
/// stage.
pub(super) fn state(state: StateDict) -> StateDict {
    let mut renamed = StateDict::new();
    for (name, array) in state {
        if let Some(rest) = name.strip_prefix("layers.") {
            let (stage, inner) = rest.split_once('.').unwrap_or((rest, ""));
            if inner.starts_with("downsample.") {
                let before = stage.parse::<usize>().unwrap_or(1).saturating_sub(1);
                renamed.insert(format!("encoder.layers.{before}.{inner}"), array);
                continue;
            }
            let block = format!("encoder.layers.{stage}.");
            match inner.split_once(".attn.qkv.") {
                Some((place, kind)) => {
                    for (part, third) in ["query", "key", "value"].iter().zip(thirds(&array)) {
                        let name = format!("{block}{place}.attention.self.{part}.{kind}");
                        renamed.insert(name, third);
                    }
                }
                None => {
                    renamed.insert(format!("{block}{}", in_block(inner)), array);
                }
            }
        } else {
            let name = name
                .replacen(
                    "patch_embed.proj.",
                    "embeddings.patch_embeddings.projection.",
                    1,
                )
                .replacen("patch_embed.norm.", "embeddings.norm.", 1);
            let name = match name.strip_prefix("norm.") {
                Some(rest) => format!("layernorm.{rest}"),
                None => name,
            };
            renamed.insert(name, array);
        }
    }
    renamed
}

fn in_block(name: &str) -> String {
    name.replacen(
        ".attn.relative_position_bias_table",
        ".attention.self.relative_position_bias_table",
        1,
    )
    .replacen(".attn.proj.", ".attention.output.dense.", 1)
    .replacen(".norm1.", ".layernorm_before.", 1)
    .replacen(".norm2.", ".layernorm_after.", 1)
    .replacen(".mlp.fc1.", ".intermediate.dense.", 1)
    .replacen(".mlp.fc2.", ".output.dense.", 1)
}

/// What transformers' DINOv3 does not support in a ViT with rotary positions, if anything.
pub(super) fn unsupported_in_vit(sizes: &VitSizes) -> Option<&'static str> {
    match sizes {
        _ if sizes.pool != Pool::Class => Some("other feature than the class token"),
        _ if sizes.pre_norm => Some("norm before the blocks"),
        _ if sizes.quick_gelu => Some("QuickGELU"),
        _ => None,
    }
}

/// `config.json` of a `DINOv3ViTModel`.
pub(super) fn vit_config(sizes: &VitSizes, meta: &BackboneMeta) -> Value {
    let image = match meta.height == meta.width {
        true => json!(meta.height),
        false => json!([meta.height, meta.width]),
    };
    json!({
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "image_size": image,
        "patch_size": sizes.patch_size,
        "num_channels": 3,
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.hidden_dim,
        "hidden_act": if sizes.gated { "silu" } else { "gelu" },
        "use_gated_mlp": sizes.gated,
        "num_register_tokens": sizes.registers,
        "query_bias": sizes.qkv_bias,
        "key_bias": sizes.qkv_bias && sizes.key_bias,
        "value_bias": sizes.qkv_bias,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
    })
}

/// A ViT with rotary positions in the names of a `DINOv3ViTModel`, which always has registers, even
/// if none, a mask token and LayerScale.
pub(super) fn vit_state(state: StateDict, sizes: &VitSizes) -> StateDict {
    let width = sizes.embed_dim;
    let constant = |shape: Vec<usize>, value: f32| HostTensor {
        data: vec![value; shape.iter().product()],
        shape,
    };
    let mut renamed = StateDict::from([
        (
            "embeddings.mask_token".to_owned(),
            constant(vec![1, 1, width], 0.0),
        ),
        (
            "embeddings.register_tokens".to_owned(),
            constant(vec![1, 0, width], 0.0),
        ),
    ]);
    if !sizes.layer_scale {
        for block in 0..sizes.depth {
            for branch in [1, 2] {
                let name = format!("layer.{block}.layer_scale{branch}.lambda1");
                renamed.insert(name, constant(vec![width], 1.0));
            }
        }
    }
    for (name, array) in state {
        let block = name.strip_prefix("blocks.");
        if let Some((place, kind)) = block.and_then(|block| block.split_once(".attn.qkv.")) {
            for (part, third) in ["q", "k", "v"].iter().zip(thirds(&array)) {
                if *part != "k" || kind != "bias" || sizes.key_bias {
                    renamed.insert(format!("layer.{place}.attention.{part}_proj.{kind}"), third);
                }
            }
            continue;
        }
        let name = match (block, name.as_str()) {
            (Some(block), _) => format!("layer.{}", in_vit_block(block)),
            (None, "cls_token") => "embeddings.cls_token".to_owned(),
            (None, "reg_token") => "embeddings.register_tokens".to_owned(),
            (None, name) => name.replacen("patch_embed.proj.", "embeddings.patch_embeddings.", 1),
        };
        renamed.insert(name, array);
    }
    renamed
}

fn in_vit_block(name: &str) -> String {
    name.replacen(".attn.proj.", ".attention.o_proj.", 1)
        .replacen(".ls1.gamma", ".layer_scale1.lambda1", 1)
        .replacen(".ls2.gamma", ".layer_scale2.lambda1", 1)
        .replacen(".mlp.fc1_g.", ".mlp.gate_proj.", 1)
        .replacen(".mlp.fc1.", ".mlp.up_proj.", 1)
        .replacen(".mlp.fc2.", ".mlp.down_proj.", 1)
}

/// Queries, keys and values: the rows of each.
pub(super) fn thirds(array: &HostTensor) -> [HostTensor; 3] {
    let mut shape = array.shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows /= 3;
    }
    let count = array.data.len() / 3;
    [0, 1, 2].map(|part| HostTensor {
        shape: shape.clone(),
        data: array.data[part * count..(part + 1) * count].to_vec(),
    })
}
