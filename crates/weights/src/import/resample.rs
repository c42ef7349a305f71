//! Tables and position embeddings of another size.
//!
//! A relative-position table of another window is resampled as Microsoft's and SOLIDER's code do it
//! (`interpolate(mode="bicubic")`: cubic with a = −3/4, edges repeated); position embeddings of a
//! ViT as the network itself does while running ([`Resampling`](clasp_model::layers::Resampling)).

use clasp_model::backbone::Sizes;
use clasp_model::layers::bicubic_matrix;

use super::report::Change;
use crate::state::{HostTensor, StateDict};

/// Brings every table and position embedding from one network's sizes to another's, and says which.
pub fn fit(state: &mut StateDict, from: &Sizes, to: &Sizes) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, array) in state.iter_mut() {
        let fitted = match (from, to) {
            (Sizes::Swin(from), Sizes::Swin(to))
                if name.ends_with("relative_position_bias_table") =>
            {
                let windows = stage(name).map(|stage| [from, to].map(|s| s.stage_window(stage)));
                windows.filter(|[from, to]| from != to).and_then(|windows| {
                    let [from, to] = windows.map(|window| window.map(|side| 2 * side - 1));
                    let [rows, columns] = [0, 1].map(|axis| bicubic_matrix(from[axis], to[axis]));
                    grid(array, 0, from, to, [&rows, &columns])
                })
            }
            (Sizes::Vit(from), Sizes::Vit(to))
                if name == "pos_embed" && from.grid() != to.grid() =>
            {
                let (from_grid, to_grid) = (from.grid(), to.grid());
                let matrix = |axis: usize| from.resampling.matrix(from_grid[axis], to_grid[axis]);
                let [rows, columns] = [0, 1].map(matrix);
                let prefix = usize::from(from.class_token);
                grid(array, prefix, from_grid, to_grid, [&rows, &columns])
            }
            _ => None,
        };
        if let Some(fitted) = fitted {
            changes.push(Change {
                name: name.clone(),
                from: array.shape.clone(),
                to: fitted.shape.clone(),
            });
            *array = fitted;
        }
    }
    changes
}

/// The stage in a name `layers.STAGE.…`.
fn stage(name: &str) -> Option<usize> {
    name.strip_prefix("layers.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Resamples [.., prefix + rows·columns, channels] by a matrix [to, from] for each direction; none
/// where the shape is another.
pub(crate) fn grid(
    array: &HostTensor,
    prefix: usize,
    from: [usize; 2],
    to: [usize; 2],
    [by_row, by_column]: [&[f32]; 2],
) -> Option<HostTensor> {
    let [leading @ .., positions, channels] = array.shape.as_slice() else {
        return None;
    };
    if leading.iter().any(|axis| *axis != 1) || *positions != prefix + from[0] * from[1] {
        return None;
    }
    let channels = *channels;
    let (kept, map) = array.data.split_at_checked(prefix * channels)?;
    let mut data = kept.to_vec();
    data.reserve(to[0] * to[1] * channels);
    // Rows first: [to rows, from columns, channels].
    let line = from[1] * channels;
    let mut rows = vec![0f64; to[0] * line];
    for (row, out) in rows.chunks_exact_mut(line).enumerate() {
        let weights = &by_row[row * from[0]..(row + 1) * from[0]];
        for (weight, values) in weights.iter().zip(map.chunks_exact(line)) {
            for (out, value) in out.iter_mut().zip(values) {
                *out += f64::from(*weight) * f64::from(*value);
            }
        }
    }
    for row in rows.chunks_exact(line) {
        for weights in by_column.chunks_exact(from[1]) {
            for channel in 0..channels {
                let terms = weights.iter().zip(row[channel..].iter().step_by(channels));
                let sum: f64 = terms
                    .map(|(weight, value)| f64::from(*weight) * value)
                    .sum();
                data.push(sum as f32);
            }
        }
    }
    let mut shape = leading.to_vec();
    shape.extend([prefix + to[0] * to[1], channels]);
    Some(HostTensor { shape, data })
}
