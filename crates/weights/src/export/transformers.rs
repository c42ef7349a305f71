//! A Swin in the names and with the configuration of Hugging Face's transformers.

use clasp_data::image::Filter;
use clasp_model::swin::SwinSizes;
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

/// Queries, keys and values: the rows of each.
fn thirds(array: &HostTensor) -> [HostTensor; 3] {
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
