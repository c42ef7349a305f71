//! Rounding to bf16.

/// The 16 bits of the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { nearest }
}
