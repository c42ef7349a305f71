//! Kernels over several parameters, in CubeCL: those of the optimizer, one launch for [`GROUP`]
//! parameters, as most are small and a step has hundreds; and casts of their values.
//!
//! The second axis of the cubes counts the parameters of a launch, the first its parts. Values are f32, but
//! for [`casts`].

use cubecl::prelude::*;

/// Parameters of a launch: of seven tensors each a step of Adam needs 42 buffers, and a Vulkan device may
/// have 48 only.
pub const GROUP: usize = 6;
/// Units of a cube.
pub const UNITS: usize = 256;
/// Sums that [`square_sums`] leaves of each gradient.
pub const PARTS: usize = 64;

/// Σ g² of each gradient, in parts.
///
/// # Shapes
/// - gradients: [`GROUP`] tensors of `sizes` values
/// - sums: [GROUP, PARTS], with as many cubes
#[cube(launch)]
pub fn square_sums(
    gradients: &Sequence<Box<[f32]>>,
    sizes: &Sequence<u32>,
    sums: &mut Tensor<f32>,
) {
    let unit = UNIT_POS_X as usize;
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    #[unroll]
    for slot in 0..GROUP {
        if CUBE_POS_Y as usize == slot {
            let gradient = &gradients[slot];
            let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
            while at < sizes[slot] as usize {
                sum += gradient[at] * gradient[at];
                at += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
    shared[unit] = sum;
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2()) {
        let width = comptime!(UNITS >> (step + 1));
        sync_cube();
        if unit < width {
            shared[unit] += shared[unit + width];
        }
    }
    if unit == 0 {
        sums[CUBE_POS_Y as usize * PARTS + CUBE_POS_X as usize] = shared[0];
    }
}

/// The numbers of a parameter's step: see `Formula` of `optim`, whose fields these are.
#[derive(CubeLaunch, CubeType, Debug, Clone, Copy)]
pub struct AdamScalars {
    /// Factor on the gradient.
    pub factor: f32,
    /// Factor on the parameter that is added to the gradient.
    pub added: f32,
    /// Factor on the parameter.
    pub keep: f32,
    /// lr / (1 − β₁ᵗ).
    pub rate: f32,
    /// β₁.
    pub beta1: f32,
    /// 1 − β₁.
    pub one_minus_beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// 1 − β₂.
    pub one_minus_beta2: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub inverse_root: f32,
    /// ε.
    pub epsilon: f32,
}

impl AdamScalars {
    /// As an argument of [`adam_step`].
    pub fn launch(self) -> AdamScalarsLaunch {
        // In the order of the fields.
        AdamScalarsLaunch::new(
            self.factor,
            self.added,
            self.keep,
            self.rate,
            self.beta1,
            self.one_minus_beta1,
            self.beta2,
            self.one_minus_beta2,
            self.inverse_root,
            self.epsilon,
        )
    }
}

/// A step of Adam or AdamW.
///
/// # Shapes
/// [`GROUP`] tensors of `sizes` values each; the last three are written.
#[cube(launch)]
pub fn adam_step(
    values: &Sequence<Box<[f32]>>,
    gradients: &Sequence<Box<[f32]>>,
    firsts: &Sequence<Box<[f32]>>,
    seconds: &Sequence<Box<[f32]>>,
    new_values: &mut Sequence<Box<[f32]>>,
    new_firsts: &mut Sequence<Box<[f32]>>,
    new_seconds: &mut Sequence<Box<[f32]>>,
    sizes: &Sequence<u32>,
    scalars: &Sequence<AdamScalars>,
) {
    #[unroll]
    for slot in 0..GROUP {
        if CUBE_POS_Y as usize == slot {
            let numbers = &scalars[slot];
            let new_value = new_values.index_mut(slot);
            let new_first = new_firsts.index_mut(slot);
            let new_second = new_seconds.index_mut(slot);
            let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
            while at < sizes[slot] as usize {
                let value = values[slot][at];
                let gradient = gradients[slot][at] * numbers.factor + numbers.added * value;
                let moment = numbers.beta1 * firsts[slot][at] + numbers.one_minus_beta1 * gradient;
                let square = numbers.beta2 * seconds[slot][at]
                    + numbers.one_minus_beta2 * gradient * gradient;
                let root = square.sqrt() * numbers.inverse_root + numbers.epsilon;
                new_value[at] = value * numbers.keep - numbers.rate * moment / root;
                new_first[at] = moment;
                new_second[at] = square;
                at += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
}

/// a·first + b·second of each pair of tensors.
///
/// # Shapes
/// [`GROUP`] tensors of `sizes` values each; the last is written.
#[cube(launch)]
pub fn weighted_sums(
    firsts: &Sequence<Box<[f32]>>,
    seconds: &Sequence<Box<[f32]>>,
    sums: &mut Sequence<Box<[f32]>>,
    sizes: &Sequence<u32>,
    a: f32,
    b: f32,
) {
    #[unroll]
    for slot in 0..GROUP {
        if CUBE_POS_Y as usize == slot {
            let sum = sums.index_mut(slot);
            let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
            while at < sizes[slot] as usize {
                sum[at] = a * firsts[slot][at] + b * seconds[slot][at];
                at += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
}

/// The values of each tensor in another number format.
///
/// # Shapes
/// [`GROUP`] tensors of `sizes` values each.
#[cube(launch)]
pub fn casts<F: Float, G: Float>(
    inputs: &Sequence<Box<[F]>>,
    outputs: &mut Sequence<Box<[G]>>,
    sizes: &Sequence<u32>,
    #[define(F, G)] _types: [ElemType; 2],
) {
    #[unroll]
    for slot in 0..GROUP {
        if CUBE_POS_Y as usize == slot {
            let output = outputs.index_mut(slot);
            let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS_X as usize;
            while at < sizes[slot] as usize {
                output[at] = G::cast_from(inputs[slot][at]);
                at += CUBE_COUNT_X as usize * UNITS;
            }
        }
    }
}
