//! Functions of single numbers and of rows, written so that the compiler makes vector code of loops
//! over them.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use super::activation::Activation;

/// Strands of a sum: as many as two of the widest vectors hold.
const LANES: usize = 32;

/// Defines functions that are compiled for each kind of vectors, of which the processor's widest is
/// taken. All that they call must be `#[inline(always)]`. (A closure handed to `pulp` is not always
/// inlined, and then compiled without vectors.)
macro_rules! vectorized {
    ($($(#[$doc:meta])* $visible:vis fn $name:ident<'a>($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        $visible fn $name<'a>($($argument: $type),*) {
            struct Work<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl pulp::WithSimd for Work<'_> {
                type Output = ();

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) {
                    let Self { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Work { $($argument,)* lifetime: std::marker::PhantomData });
        }
    )*};
}
pub(crate) use vectorized;

/// eˣ with a relative error below 2·10⁻⁷, 0 < result < ∞. Cody and Waite's reduction to |r| ≤ ln 2
/// / 2, then 1 + r + r² p(r) with p fitted to the least largest relative error.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const P: [f32; 5] = [
        0.499_999_94,
        0.166_665_21,
        4.166_839e-2,
        8.368_717e-3,
        1.381_46e-3,
    ];
    // Comparisons that a NaN fails, so that it stays one.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = P[4].mul_add(r, P[3]).mul_add(r, P[2]);
    let p = p.mul_add(r, P[1]).mul_add(r, P[0]);
    let e = (p * r).mul_add(r, r) + 1.0;
    e * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// x · Φ(x) and its slope Φ(x) + x·φ(x). Φ by Abramowitz and Stegun's 7.1.26, absolute error below
/// 10⁻⁷; its exponential is the one of φ.
#[inline(always)]
pub fn gelu(x: f32) -> (f32, f32) {
    const A: [f32; 5] = [
        0.254_829_6,
        -0.284_496_72,
        1.421_413_8,
        -1.453_152,
        1.061_405_4,
    ];
    const INVERSE_ROOT_TAU: f32 = 0.398_942_3;
    let t = 1.0 / (x.abs() * FRAC_1_SQRT_2).mul_add(0.327_591_1, 1.0);
    let poly = A[4].mul_add(t, A[3]).mul_add(t, A[2]);
    let poly = poly.mul_add(t, A[1]).mul_add(t, A[0]) * t;
    let e = exp(-0.5 * x * x);
    let tail = 0.5 * poly * e;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (x * cdf, (x * INVERSE_ROOT_TAU).mul_add(e, cdf))
}

/// x · sigmoid(1.702 x) and its slope.
#[inline(always)]
pub fn quick_gelu(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + exp(-1.702 * x));
    let value = x * s;
    (value, (1.702 * value).mul_add(1.0 - s, s))
}

/// Combines f(a_i, b_i) over two rows of one length, in strands.
#[inline(always)]
fn reduce(
    a: &[f32],
    b: &[f32],
    start: f32,
    f: impl Fn(f32, f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut strands = [start; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for lane in 0..LANES {
            strands[lane] = f(strands[lane], a[lane], b[lane]);
        }
    }
    for ((strand, a), b) in strands.iter_mut().zip(a.remainder()).zip(b.remainder()) {
        *strand = f(*strand, *a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            strands[lane] = join(strands[lane], strands[lane + width]);
        }
        width /= 2;
    }
    strands[0]
}

/// Σ a_i.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    reduce(a, a, 0.0, |sum, a, _| sum + a, |a, b| a + b)
}

/// Σ a_i·b_i.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, 0.0, |sum, a, b| a.mul_add(b, sum), |a, b| a + b)
}

/// Σ (a_i − center)².
#[inline(always)]
pub fn square_deviation(a: &[f32], center: f32) -> f32 {
    reduce(
        a,
        a,
        0.0,
        |sum, a, _| (a - center).mul_add(a - center, sum),
        |a, b| a + b,
    )
}

/// The largest value.
#[inline(always)]
pub fn largest(a: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    reduce(
        a,
        a,
        f32::NEG_INFINITY,
        |most, a, _| larger(a, most),
        larger,
    )
}

/// Turns a row of scores into their softmax.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let most = largest(row);
    for value in row.iter_mut() {
        *value = exp(*value - most);
    }
    let scale = 1.0 / sum(row);
    for value in row.iter_mut() {
        *value *= scale;
    }
}

vectorized! {
    /// Turns each row of `columns` scores into its softmax.
    pub fn softmax_rows<'a>(scores: &'a mut [f32], columns: usize) {
        for row in scores.chunks_exact_mut(columns) {
            softmax(row);
        }
    }

    /// out = activation of x.
    pub fn activate<'a>(x: &'a [f32], out: &'a mut [f32], activation: Activation) {
        match activation {
            Activation::Gelu => {
                for (x, out) in x.iter().zip(out) {
                    *out = gelu(*x).0;
                }
            }
            Activation::QuickGelu => {
                for (x, out) in x.iter().zip(out) {
                    *out = quick_gelu(*x).0;
                }
            }
        }
    }

    /// out = activation of x, and x becomes the slope there.
    pub fn activate_with_slopes<'a>(x: &'a mut [f32], out: &'a mut [f32], activation: Activation) {
        match activation {
            Activation::Gelu => {
                for (x, out) in x.iter_mut().zip(out) {
                    (*out, *x) = gelu(*x);
                }
            }
            Activation::QuickGelu => {
                for (x, out) in x.iter_mut().zip(out) {
                    (*out, *x) = quick_gelu(*x);
                }
            }
        }
    }

    /// out += x.
    pub fn add<'a>(out: &'a mut [f32], x: &'a [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }

    /// out += rows of x, given by number, one for each row of `out`.
    pub fn add_rows_at<'a>(out: &'a mut [f32], x: &'a [f32], rows: &'a [usize]) {
        let width = out.len() / rows.len().max(1);
        for (out, row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
            for (out, x) in out.iter_mut().zip(&x[row * width..][..width]) {
                *out += x;
            }
        }
    }

    /// out ∘= x.
    pub fn multiply<'a>(out: &'a mut [f32], x: &'a [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out *= x;
        }
    }

    /// out *= factor.
    pub fn scale<'a>(out: &'a mut [f32], factor: f32) {
        for out in out {
            *out *= factor;
        }
    }

    /// sums_i += Σ over rows of rows_i.
    pub fn add_rows<'a>(sums: &'a mut [f32], rows: &'a [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

/// out = rows of x, given by number, one for each row of `out`.
pub fn copy_rows_at(out: &mut [f32], x: &[f32], rows: &[usize]) {
    let width = out.len() / rows.len().max(1);
    for (place, row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
        place.copy_from_slice(&x[row * width..][..width]);
    }
}

/// Sets each row of `rows` to `row`.
pub fn fill_rows(rows: &mut [f32], row: &[f32]) {
    for place in rows.chunks_exact_mut(row.len()) {
        place.copy_from_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without pulp's feature `x86-v3` processors without AVX-512 computed with SSE2 and without FMA.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn processors_with_avx2_use_it() {
        use pulp::{Arch, x86::V3};
        let is_vectorized = matches!(Arch::new(), Arch::V3(_) | Arch::V4(_));
        assert_eq!(is_vectorized, V3::try_new().is_some());
    }

    #[test]
    fn exp_is_near_the_true_one() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2e-7, "exp({x}) = {found}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn gelu_and_its_slope_at_known_points() {
        // x, x·Φ(x), Φ(x) + x·φ(x), from tables of the normal distribution.
        let known = [
            (0.0, 0.0, 0.5),
            (1.0, 0.841_344_8, 1.083_315_5),
            (-1.0, -0.158_655_25, -0.083_315_47),
            (3.0, 2.995_950_3, 1.011_945_7),
            (-3.0, -0.004_049_694, -0.011_945_65),
            (10.0, 10.0, 1.0),
            (-10.0, 0.0, 0.0),
        ];
        for (x, value, slope) in known {
            let (found, found_slope) = gelu(x);
            assert!((found - value).abs() < 1e-6, "gelu({x}) = {found}");
            assert!(
                (found_slope - slope).abs() < 1e-6,
                "gelu'({x}) = {found_slope}"
            );
        }
        let (value, slope) = quick_gelu(0.0);
        assert_eq!((value, slope), (0.0, 0.5));
        let difference = (quick_gelu(0.701).0 - quick_gelu(0.699).0) / 0.002;
        assert!((quick_gelu(0.7).1 - difference).abs() < 1e-3);
    }

    #[test]
    fn rows_of_every_length() {
        for length in 1..100 {
            let row: Vec<f32> = (0..length).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
            let total: f32 = row.iter().sum();
            assert_eq!(sum(&row), total);
            assert_eq!(dot(&row, &row), row.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(square_deviation(&row, 0.0), dot(&row, &row));
            assert_eq!(largest(&row), row.iter().copied().fold(f32::MIN, f32::max));
        }
    }

    #[test]
    fn softmax_keeps_what_is_no_number() {
        let mut row = vec![0.0, f32::NAN, 1.0];
        softmax(&mut row);
        assert!(row.iter().any(|value| value.is_nan()));
        let mut row = vec![1.0, 1.0, -1e30];
        softmax(&mut row);
        assert_eq!(row[..2], [0.5, 0.5]);
        assert!(row[2] < 1e-30);
    }
}
