//! Our Swin in SOLIDER's names and layout.

use clasp_model::swin::SwinSizes;

use crate::state::{HostTensor, StateDict};

/// Our Swin in SOLIDER's names and layout; see [`crate::import::names`].
pub(super) fn solider(state: StateDict, sizes: &SwinSizes) -> StateDict {
    let stages = sizes.depths.len();
    let mut renamed = StateDict::new();
    for (name, mut array) in state {
        let name = if let Some(rest) = name.strip_prefix("layers.") {
            let rest = match rest.split_once(".downsample.") {
                Some((stage, inner)) => {
                    to_unfold(&mut array);
                    let stage = stage.parse::<usize>().unwrap_or(1).saturating_sub(1);
                    format!("{stage}.downsample.{inner}")
                }
                None => rest
                    .replacen("attn.", "attn.w_msa.", 1)
                    .replacen("mlp.fc1.", "ffn.layers.0.0.", 1)
                    .replacen("mlp.fc2.", "ffn.layers.1.", 1),
            };
            format!("stages.{rest}")
        } else if let Some(rest) = name.strip_prefix("norm.") {
            format!("norm{}.{rest}", stages - 1)
        } else {
            name.replacen("patch_embed.proj.", "patch_embed.projection.", 1)
        };
        // SOLIDER has a fourth controller, whose output is not used: as the third.
        if let Some((kind, rest)) = name.split_once(&format!(".{}.", stages.saturating_sub(2)))
            && kind.starts_with("semantic_embed")
        {
            renamed.insert(
                format!("backbone.{kind}.{}.{rest}", stages - 1),
                array.clone(),
            );
        }
        renamed.insert(format!("backbone.{name}"), array);
    }
    // Norms of earlier stages' maps, which this program does not have: SOLIDER's first values.
    for stage in 0..stages - 1 {
        let channels = sizes.embed_dim << stage;
        for (kind, value) in [("weight", 1.0), ("bias", 0.0)] {
            let array = HostTensor {
                shape: vec![channels],
                data: vec![value; channels],
            };
            renamed.insert(format!("backbone.norm{stage}.{kind}"), array);
        }
    }
    renamed
}

/// The last axis from (column, row, channel) to (channel, row, column).
fn to_unfold(array: &mut HostTensor) {
    let inputs = array.shape.last().copied().unwrap_or(0).max(1);
    let channels = inputs / 4;
    array.data = array
        .data
        .chunks_exact(inputs)
        .flat_map(|line| {
            (0..inputs).map(move |place| {
                let (channel, row, column) = (place / 4, place / 2 % 2, place % 2);
                line[(2 * column + row) * channels + channel]
            })
        })
        .collect();
}
