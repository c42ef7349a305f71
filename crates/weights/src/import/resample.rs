//! Tables and position embeddings of another size.
//!
//! A relative-position table of another window is resampled as Microsoft's and SOLIDER's code do it
//! (`interpolate(mode="bicubic")`: cubic with a = −3/4, edges repeated); position embeddings of a
//! ViT as timm does (`interpolate(mode="bicubic", antialias=True)`: a = −1/2, widened when
//! shrinking), which is also what the network does while running.

use clasp_model::backbone::Sizes;
use clasp_model::layers::resample_matrix;

use super::report::Change;
use crate::state::{HostTensor, StateDict};

/// Brings every table and position embedding from one network's sizes to another's, and says which.
pub fn fit(state: &mut StateDict, from: &Sizes, to: &Sizes) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, array) in state.iter_mut() {
        let fitted = match (from, to) {
            (Sizes::Swin(from), Sizes::Swin(to))
                if name.ends_with("relative_position_bias_table")
                    && from.window_size != to.window_size =>
            {
                let [from, to] = [from.window_size, to.window_size].map(|window| 2 * window - 1);
                let matrix = cubic_matrix(from, to);
                grid(array, 0, [from, from], [to, to], [&matrix, &matrix])
            }
            (Sizes::Vit(from), Sizes::Vit(to))
                if name == "pos_embed" && from.grid() != to.grid() =>
            {
                let (from_grid, to_grid) = (from.grid(), to.grid());
                let [rows, columns] =
                    [0, 1].map(|axis| resample_matrix(from_grid[axis], to_grid[axis]));
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

/// Resamples [.., prefix + rows·columns, channels] by a matrix [to, from] for each direction; none
/// where the shape is another.
fn grid(
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

/// The matrix [to, from] of PyTorch's bicubic interpolation without antialias: Keys' kernel with a
/// = −3/4 over the four neighbors, those beyond the edge repeated.
pub fn cubic_matrix(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f64 / to as f64;
    let mut matrix = vec![0f32; to * from];
    for (row, line) in matrix.chunks_exact_mut(from).enumerate() {
        let place = scale * (row as f64 + 0.5) - 0.5;
        let first = place.floor();
        let t = place - first;
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for (offset, weight) in [-1.0, 0.0, 1.0, 2.0].into_iter().zip(weights) {
            let column = (first + offset).clamp(0.0, (from - 1) as f64) as usize;
            line[column] += weight as f32;
        }
    }
    matrix
}
