//! What DINOv3's files have apart from other ViTs: biases of queries and values without one of the
//! keys, and the periods of their rotary positions.

use clasp_model::vit::{Positions, VitSizes};

use crate::state::{HostTensor, StateDict};

/// Name of the periods in Meta's own files.
const PERIODS: &str = "rope_embed.periods";

/// Largest deviation of a period that is stored in bf16: half of a unit of its last place.
const ROUNDING: f64 = 1.0 / 256.0;

/// Brings the tensors of a ViT, which has our names but for these, to our layout: the bias of
/// queries, keys and values is one, with zeros for the keys where they have none.
///
/// # Errors
///
/// A bias of the keys that a mask scales; periods other than DINOv3's.
pub(super) fn convert(state: &mut StateDict) -> Result<(), String> {
    check_periods(state)?;
    let is_empty =
        |array: &HostTensor| array.shape == [1, 0, array.shape.get(2).copied().unwrap_or(0)];
    if state.get("reg_token").is_some_and(is_empty) {
        state.remove("reg_token");
    }
    let names: Vec<String> = state.keys().cloned().collect();
    for name in &names {
        if let Some(attention) = name.strip_suffix("qkv.bias_mask") {
            mask_keys(state, attention)?;
        } else if let Some(attention) = name.strip_suffix("q_bias") {
            join_biases(state, attention)?;
        }
    }
    Ok(())
}

/// The zeros that stand for biases that a file leaves out, where a network has them.
pub(super) fn fill_biases(state: &mut StateDict, from: &VitSizes, to: &VitSizes) {
    let rotary = [from, to].map(|sizes| sizes.positions == Positions::Rotary);
    if rotary != [true; 2] || from.qkv_bias || !to.qkv_bias {
        return;
    }
    for block in 0..from.depth {
        let array = HostTensor {
            shape: vec![3 * from.embed_dim],
            data: vec![0.0; 3 * from.embed_dim],
        };
        state.insert(format!("blocks.{block}.attn.qkv.bias"), array);
    }
}

/// Meta's own names: one bias and a mask, 1 for queries and values and 0 for keys.
fn mask_keys(state: &mut StateDict, attention: &str) -> Result<(), String> {
    let [bias_name, mask_name] = ["qkv.bias", "qkv.bias_mask"].map(|n| format!("{attention}{n}"));
    let mask = state.remove(&mask_name).unwrap_or_default();
    let Some(bias) = state.get_mut(&bias_name) else {
        return Err(format!("`{mask_name}` without `{bias_name}`"));
    };
    let width = mask.data.len() / 3;
    let expected = |index: usize| f32::from(u8::from(index / width.max(1) != 1));
    let values = mask.data.iter().enumerate();
    let as_published = values.into_iter().all(|(at, value)| *value == expected(at));
    if mask.shape != bias.shape || !as_published {
        return Err(format!(
            "`{mask_name}`: expected 1 for queries and values and 0 for keys, each a third of {:?}",
            bias.shape
        ));
    }
    bias.data[width..2 * width].fill(0.0);
    Ok(())
}

/// timm's and transformers' names: a bias of the queries and one of the values.
fn join_biases(state: &mut StateDict, attention: &str) -> Result<(), String> {
    let [query, value] = ["q_bias", "v_bias"].map(|name| format!("{attention}{name}"));
    let parts = [state.remove(&query), state.remove(&value)];
    let [Some(of_queries), Some(of_values)] = parts else {
        return Err(format!("`{query}` without `{value}`"));
    };
    let width = of_queries.data.len();
    if of_values.data.len() != width {
        return Err(format!(
            "`{value}`: expected as many numbers as `{query}`, {width}, found {}",
            of_values.data.len()
        ));
    }
    let mut data = of_queries.data;
    data.resize(2 * width, 0.0);
    data.extend(of_values.data);
    let shape = vec![data.len()];
    state.insert(format!("{attention}qkv.bias"), HostTensor { shape, data });
    Ok(())
}

/// Meta's files have the periods in 16 bits. timm and transformers compute them anew, as this
/// program does.
fn check_periods(state: &mut StateDict) -> Result<(), String> {
    let Some(periods) = state.remove(PERIODS) else {
        return Ok(());
    };
    let count = periods.data.len() as f64;
    let fits = |(index, period): (usize, &f32)| {
        let expected = 100f64.powf(index as f64 / count);
        (f64::from(*period) / expected - 1.0).abs() <= ROUNDING
    };
    match periods.data.iter().enumerate().all(fits) {
        true => Ok(()),
        false => Err(format!(
            "`{PERIODS}`: expected the powers of 100 with exponents from 0 to 1 that DINOv3 has, found {:?}",
            &periods.data[..periods.data.len().min(8)]
        )),
    }
}
