//! Parameter names of OpenCLIP and Hugging Face in this program's.

use std::path::Path;

use crate::error::WeightsError;
use crate::state::{HostTensor, StateDict};

/// OpenCLIP's names to ours. Its text tower lies under `text.` in models that were built with
/// `custom_text`, and some files hold the causal mask.
pub(super) fn from_open_clip(state: StateDict) -> StateDict {
    state
        .into_iter()
        .filter(|(name, _)| name != "attn_mask" && name != "text.attn_mask")
        .map(|(name, array)| {
            let name = name.strip_prefix("text.").unwrap_or(&name);
            (name.replace(".attn.in_proj_", ".attn.in_proj."), array)
        })
        .collect()
}

/// Hugging Face's names to ours: queries, keys and values become one matrix, and the projections,
/// linear layers there, are turned.
pub(super) fn from_hugging_face(
    mut state: StateDict,
    path: &Path,
) -> Result<StateDict, WeightsError> {
    let mut ours = StateDict::new();
    let queries: Vec<String> = state
        .keys()
        .filter(|name| name.contains(".self_attn.q_proj."))
        .cloned()
        .collect();
    for query in queries {
        let mut joined = HostTensor::default();
        for letter in ["q", "k", "v"] {
            let name = query.replace(".q_proj.", &format!(".{letter}_proj."));
            let part = state.remove(&name).ok_or_else(|| WeightsError::Keys {
                path: path.to_owned(),
                report: format!("`{name}` is missing"),
            })?;
            if letter == "q" {
                joined.shape.clone_from(&part.shape);
                if let Some(rows) = joined.shape.first_mut() {
                    *rows = 0;
                }
            }
            if part.shape.is_empty() || part.shape[1..] != joined.shape[1..] {
                return Err(WeightsError::Keys {
                    path: path.to_owned(),
                    report: format!(
                        "`{name}`: shape {:?} does not go with its neighbors'",
                        part.shape
                    ),
                });
            }
            joined.shape[0] += part.shape[0];
            joined.data.extend(part.data);
        }
        let name = query.replace(".self_attn.q_proj.", ".attn.in_proj.");
        ours.insert(rename(&name), joined);
    }
    for (name, array) in state {
        // A buffer of older files.
        if name.ends_with(".position_ids") {
            continue;
        }
        let array = match name.as_str() {
            "visual_projection.weight" | "text_projection.weight" => transpose(array),
            _ => array,
        };
        ours.insert(rename(&name), array);
    }
    Ok(ours)
}

/// A name of Hugging Face's in ours.
fn rename(name: &str) -> String {
    const WHOLE: [(&str, &str); 7] = [
        ("visual_projection.weight", "visual.proj"),
        ("text_projection.weight", "text_projection"),
        (
            "vision_model.embeddings.class_embedding",
            "visual.class_embedding",
        ),
        (
            "vision_model.embeddings.patch_embedding.weight",
            "visual.conv1.weight",
        ),
        (
            "vision_model.embeddings.position_embedding.weight",
            "visual.positional_embedding",
        ),
        (
            "text_model.embeddings.token_embedding.weight",
            "token_embedding.weight",
        ),
        (
            "text_model.embeddings.position_embedding.weight",
            "positional_embedding",
        ),
    ];
    const PARTS: [(&str, &str); 10] = [
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("text_model.final_layer_norm.", "ln_final."),
        (
            "vision_model.encoder.layers.",
            "visual.transformer.resblocks.",
        ),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        (".self_attn.out_proj.", ".attn.out_proj."),
    ];
    if let Some((_, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return (*ours).to_owned();
    }
    PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| {
        name.replace(theirs, ours)
    })
}

/// A matrix turned; anything else as it is (its shape will be reported).
fn transpose(array: HostTensor) -> HostTensor {
    let [rows, columns] = match array.shape.as_slice() {
        [rows, columns] => [*rows, *columns],
        _ => return array,
    };
    let data = (0..rows * columns)
        .map(|place| array.data[place % rows * columns + place / rows])
        .collect();
    HostTensor {
        shape: vec![columns, rows],
        data,
    }
}
