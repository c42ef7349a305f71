//! Kernels for bias with GELU, and bias with residual sum, after a matrix product, in CubeCL.
//!
//! Forward each unit computes values apart; backward it walks down channels, so that it has their sums.
//! Sums are f32 whatever the format of the tensors.

use cubecl::prelude::*;

/// Units of a cube forward.
pub const UNITS: usize = 256;

/// x + f · (branch + bias), f a factor of the image or 1.
///
/// # Shapes
/// - x, branch, output: [images, tokens, channels], `image` values each image; bias: [channels]
/// - factors: [rows, images], of which that from `start` on is taken, if it is `scaled`
#[cube(launch)]
pub fn add_branch<F: Float>(
    x: &Tensor<f32>,
    branch: &Tensor<F>,
    bias: &Tensor<f32>,
    factors: &Tensor<f32>,
    output: &mut Tensor<f32>,
    start: u32,
    image: u32,
    #[comptime] channels: usize,
    #[comptime] scaled: bool,
    #[define(F)] _type: ElemType,
) {
    let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
    while at < output.len() {
        let mut value = f32::cast_from(branch[at]) + bias[at % channels];
        if comptime!(scaled) {
            value *= factors[start as usize + at / image as usize];
        }
        output[at] = x[at] + value;
        at += CUBE_COUNT_X as usize * UNITS;
    }
}

/// The gradients of [`add_branch`] but that of `x`, which is that of the output.
///
/// # Shapes
/// As there, and
/// - gradient: of the output; branch_gradient: as branch
/// - partial: [cubes, channels]; sums over the tokens of a cube of the gradient of the bias
#[cube(launch)]
pub fn add_branch_backward<F: Float>(
    gradient: &Tensor<f32>,
    factors: &Tensor<f32>,
    branch_gradient: &mut Tensor<F>,
    partial: &mut Tensor<f32>,
    start: u32,
    image: u32,
    #[comptime] channels: usize,
    #[comptime] scaled: bool,
    #[define(F)] _type: ElemType,
) {
    let tokens = gradient.len() / channels;
    let mut channel = UNIT_POS_X as usize;
    while channel < channels {
        let mut sum = 0.0f32;
        let mut token = CUBE_POS_X as usize;
        while token < tokens {
            let at = token * channels + channel;
            let mut value = gradient[at];
            if comptime!(scaled) {
                value *= factors[start as usize + at / image as usize];
            }
            branch_gradient[at] = F::cast_from(value);
            sum += value;
            token += CUBE_COUNT_X as usize;
        }
        partial[CUBE_POS_X as usize * channels + channel] = sum;
        channel += CUBE_DIM_X as usize;
    }
}

/// y · Φ(y) with y = product + bias, Φ the normal distribution.
///
/// # Shapes
/// - product, output: [..., channels]; bias: [channels]
#[cube(launch)]
pub fn gelu<F: Float>(
    product: &Tensor<F>,
    bias: &Tensor<f32>,
    output: &mut Tensor<F>,
    #[comptime] channels: usize,
    #[define(F)] _type: ElemType,
) {
    let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
    while at < output.len() {
        let y = f32::cast_from(product[at]) + bias[at % channels];
        output[at] = F::cast_from(y * normal(y));
        at += CUBE_COUNT_X as usize * UNITS;
    }
}

/// The gradients of [`gelu`].
///
/// # Shapes
/// As there, and
/// - gradient: of the output; product_gradient: as product
/// - partial: [cubes, channels]; sums over the tokens of a cube of the gradient of the bias
#[cube(launch)]
pub fn gelu_backward<F: Float>(
    gradient: &Tensor<F>,
    product: &Tensor<F>,
    bias: &Tensor<f32>,
    product_gradient: &mut Tensor<F>,
    partial: &mut Tensor<f32>,
    #[comptime] channels: usize,
    #[define(F)] _type: ElemType,
) {
    let tokens = gradient.len() / channels;
    let mut channel = UNIT_POS_X as usize;
    while channel < channels {
        let own = bias[channel];
        let mut sum = 0.0f32;
        let mut token = CUBE_POS_X as usize;
        while token < tokens {
            let at = token * channels + channel;
            let y = f32::cast_from(product[at]) + own;
            let slope = normal(y) + y * density(y);
            let value = f32::cast_from(gradient[at]) * slope;
            product_gradient[at] = F::cast_from(value);
            sum += value;
            token += CUBE_COUNT_X as usize;
        }
        partial[CUBE_POS_X as usize * channels + channel] = sum;
        channel += CUBE_DIM_X as usize;
    }
}

/// Φ(y): ½ (1 + erf(y / √2)).
#[cube]
fn normal(y: f32) -> f32 {
    0.5f32 * (1.0f32 + Erf::erf(y * 0.707_106_77f32))
}

/// Φ'(y): exp(−y² / 2) / √(2π).
#[cube]
fn density(y: f32) -> f32 {
    0.398_942_3f32 * (y * y * -0.5f32).exp()
}
