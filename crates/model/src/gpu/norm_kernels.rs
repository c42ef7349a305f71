//! Layer norm as two kernels, in CubeCL.
//!
//! 32 units normalize a row together, each every 32nd channel; a cube takes [`ROWS`] rows at a time.
//! Mean and deviation are computed again in the backward pass, as the row is read there anyway.
//!
//! Sums are f32 whatever the format of the tensors.

use cubecl::prelude::*;

/// Units of a row.
pub const LANES: usize = 32;
/// Rows of a cube at a time.
pub const ROWS: usize = 8;

/// γ (x − mean) / √(variance + ε) + β of each row.
///
/// # Shapes
/// - x, output: [rows, channels]; gamma, beta: [channels]
#[cube(launch)]
pub fn layer_norm<F: Float, G: Float>(
    x: &Tensor<F>,
    gamma: &Tensor<f32>,
    beta: &Tensor<f32>,
    output: &mut Tensor<G>,
    rows: u32,
    epsilon: f32,
    #[comptime] channels: usize,
    #[define(F, G)] _types: [ElemType; 2],
) {
    let lane = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let mut sums = Shared::<[f32]>::new_slice(comptime!(ROWS * LANES));
    let total = rows as usize;
    let mut first = CUBE_POS_X as usize * ROWS;
    while first < total {
        let row = first + slot;
        let start = row * channels;
        let mut values = Array::<f32>::new(comptime!(channels.div_ceil(LANES)));
        load_row::<F>(x, &mut values, row < total, start, channels);
        let mean = mean_of_row(&values, &mut sums, channels);
        let factor = factor_of_row(&values, &mut sums, mean, epsilon, channels);
        if row < total {
            #[unroll]
            for step in 0..comptime!(channels.div_ceil(LANES)) {
                let channel = step * LANES + lane;
                if channel < channels {
                    let normal = (values[step] - mean) * factor;
                    output[start + channel] = G::cast_from(normal * gamma[channel] + beta[channel]);
                }
            }
        }
        first += CUBE_COUNT_X as usize * ROWS;
    }
}

/// The gradients of [`layer_norm`].
///
/// # Shapes
/// As there, and
/// - gradient: [rows, channels], of the output; x_gradient: as x
/// - partial: [cubes, 2, channels]; sums over the rows of a cube of the gradients of gamma and beta
#[cube(launch)]
pub fn layer_norm_backward<F: Float, G: Float>(
    gradient: &Tensor<G>,
    x: &Tensor<F>,
    gamma: &Tensor<f32>,
    x_gradient: &mut Tensor<F>,
    partial: &mut Tensor<f32>,
    rows: u32,
    epsilon: f32,
    #[comptime] channels: usize,
    #[define(F, G)] _types: [ElemType; 2],
) {
    let lane = UNIT_POS_X as usize;
    let slot = UNIT_POS_Y as usize;
    let steps = comptime!(channels.div_ceil(LANES));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(ROWS * LANES));
    let mut gamma_sums = Array::<f32>::new(steps);
    let mut beta_sums = Array::<f32>::new(steps);
    #[unroll]
    for step in 0..steps {
        gamma_sums[step] = 0.0;
        beta_sums[step] = 0.0;
    }
    let total = rows as usize;
    let mut first = CUBE_POS_X as usize * ROWS;
    while first < total {
        let row = first + slot;
        let start = row * channels;
        let mut normal = Array::<f32>::new(steps);
        load_row::<F>(x, &mut normal, row < total, start, channels);
        let mean = mean_of_row(&normal, &mut sums, channels);
        let factor = factor_of_row(&normal, &mut sums, mean, epsilon, channels);
        // The gradient of the normal values, and its means alone and with the values.
        let mut given = Array::<f32>::new(steps);
        load_row::<G>(gradient, &mut given, row < total, start, channels);
        let mut alone = 0.0f32;
        let mut together = 0.0f32;
        #[unroll]
        for step in 0..steps {
            let channel = step * LANES + lane;
            if channel < channels {
                normal[step] = (normal[step] - mean) * factor;
                gamma_sums[step] += given[step] * normal[step];
                beta_sums[step] += given[step];
                given[step] *= gamma[channel];
                alone += given[step];
                together += given[step] * normal[step];
            }
        }
        let alone = sum_of_lanes(alone, &mut sums) / channels as f32;
        let together = sum_of_lanes(together, &mut sums) / channels as f32;
        if row < total {
            #[unroll]
            for step in 0..steps {
                let channel = step * LANES + lane;
                if channel < channels {
                    let value = (given[step] - alone - normal[step] * together) * factor;
                    x_gradient[start + channel] = F::cast_from(value);
                }
            }
        }
        first += CUBE_COUNT_X as usize * ROWS;
    }
    let start = CUBE_POS_X as usize * 2 * channels;
    #[unroll]
    for step in 0..steps {
        let of_gamma = sum_of_slots(gamma_sums[step], &mut sums);
        let of_beta = sum_of_slots(beta_sums[step], &mut sums);
        let channel = step * LANES + lane;
        if slot == 0 && channel < channels {
            partial[start + channel] = of_gamma;
            partial[start + channels + channel] = of_beta;
        }
    }
}

/// The unit's channels of a row; 0 where there is none.
#[cube]
fn load_row<F: Float>(
    x: &Tensor<F>,
    values: &mut Array<f32>,
    exists: bool,
    start: usize,
    #[comptime] channels: usize,
) {
    #[unroll]
    for step in 0..comptime!(channels.div_ceil(LANES)) {
        let channel = step * LANES + UNIT_POS_X as usize;
        values[step] = 0.0;
        if exists && channel < channels {
            values[step] = f32::cast_from(x[start + channel]);
        }
    }
}

/// The mean of a row whose channels its units hold.
#[cube]
fn mean_of_row(values: &Array<f32>, sums: &mut Shared<[f32]>, #[comptime] channels: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for step in 0..comptime!(channels.div_ceil(LANES)) {
        sum += values[step];
    }
    sum_of_lanes(sum, sums) / channels as f32
}

/// 1 / √(variance + ε).
#[cube]
fn factor_of_row(
    values: &Array<f32>,
    sums: &mut Shared<[f32]>,
    mean: f32,
    epsilon: f32,
    #[comptime] channels: usize,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for step in 0..comptime!(channels.div_ceil(LANES)) {
        let channel = step * LANES + UNIT_POS_X as usize;
        if channel < channels {
            let apart = values[step] - mean;
            sum += apart * apart;
        }
    }
    1.0f32 / (sum_of_lanes(sum, sums) / channels as f32 + epsilon).sqrt()
}

/// The sum of a row's units, for each of them.
#[cube]
fn sum_of_lanes(value: f32, sums: &mut Shared<[f32]>) -> f32 {
    let slot = UNIT_POS_Y as usize;
    sync_cube();
    sums[slot * LANES + UNIT_POS_X as usize] = value;
    sync_cube();
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..LANES {
        sum += sums[slot * LANES + lane];
    }
    sum
}

/// The sum of the units of the same lane, for each of them.
#[cube]
fn sum_of_slots(value: f32, sums: &mut Shared<[f32]>) -> f32 {
    let lane = UNIT_POS_X as usize;
    sync_cube();
    sums[UNIT_POS_Y as usize * LANES + lane] = value;
    sync_cube();
    let mut sum = 0.0f32;
    #[unroll]
    for slot in 0..ROWS {
        sum += sums[slot * LANES + lane];
    }
    sum
}
