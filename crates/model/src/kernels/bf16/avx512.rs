//! The AVX512-BF16 instructions of AMD's processors since Zen 4 and of some of Intel's (Intel 64 and
//! IA-32 Architectures Software Developer's Manual, volume 2, VDPBF16PS).
//!
//! `vdpbf16ps` adds to each of 16 sums the products of two pairs of numbers. Both factors are stored
//! in words of two numbers that follow each other along the sum, the first in the low half.

use std::arch::x86_64::{__cpuid, __m512, __m512bh, __m512i};
use std::arch::x86_64::{
    _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_storeu_ps,
};
use std::cell::Cell;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::rounding::bits;
use crate::kernels::scalar::vectorized;

/// Columns of a panel: two registers.
const WIDTH: usize = 32;
/// Rows of a block: with two registers of sums each, 24 of the 32 registers.
const HEIGHT: usize = 12;
/// Words of a stretch of the sum: its part of a panel, 32 KiB, stays near the processor.
const STRETCH: usize = 256;

/// The words of a panel's columns for two steps of the sum.
pub type Step = [u32; WIDTH];

/// Whether the processor has the instructions.
pub fn is_there() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor has the instructions and they are faster than products in f32. AMD's are
/// twice as fast; Intel's processors have AMX for this purpose, and on the one without it that was
/// measured (Emerald Rapids in a virtual machine) networks were slower than in f32 (docs/speed.md).
pub fn is_fast() -> bool {
    // `cpuid` takes microseconds in a virtual machine, and every product asks.
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| is_there() && is_amd())
}

fn is_amd() -> bool {
    let leaf = __cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"AuthenticAMD"
}

/// The panels of a row-major right factor, one after the other, each from the first to the last
/// step of the sum; zeros beyond the last row and column.
pub fn right(data: &[f32], columns: usize, in_parallel: bool) -> Vec<Step> {
    let steps = (data.len() / columns).div_ceil(2);
    let mut panels = vec![[0; WIDTH]; columns.div_ceil(WIDTH) * steps];
    let least = if in_parallel { 1 } else { usize::MAX };
    let of_panels = panels.par_chunks_mut(steps.max(1)).enumerate();
    of_panels
        .with_min_len(least)
        .for_each(|(panel, steps)| right_panel(data, columns, panel * WIDTH, steps));
    panels
}

vectorized! {
    fn right_panel<'a>(data: &'a [f32], columns: usize, first: usize, steps: &'a mut [Step]) {
        let width = WIDTH.min(columns - first);
        for (rows, step) in data.chunks(2 * columns).zip(steps) {
            let (even, odd) = rows.split_at(columns);
            for (word, x) in step.iter_mut().zip(&even[first..first + width]) {
                *word = bits(*x);
            }
            if !odd.is_empty() {
                for (word, x) in step.iter_mut().zip(&odd[first..first + width]) {
                    *word |= bits(*x) << 16;
                }
            }
        }
    }

    /// The words of a stretch of the rows of a left factor, `[rows, count / 2 rounded up]`.
    fn left<'a>(data: &'a [f32], depth: usize, first: usize, count: usize, words: &'a mut [u32]) {
        for (row, words) in data.chunks_exact(depth).zip(words.chunks_exact_mut(count.div_ceil(2))) {
            let (pairs, rest) = row[first..first + count].as_chunks::<2>();
            for (word, [even, odd]) in words.iter_mut().zip(pairs) {
                *word = bits(*even) | bits(*odd) << 16;
            }
            if let ([last], Some(word)) = (rest, words.last_mut()) {
                *word = bits(*last);
            }
        }
    }
}

thread_local! {
    /// Memory for left factors, which would be cleared for each product.
    static LEFT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// out += a · b. a: row-major [n, depth], out: [n, columns], b: [`right`]'s panels.
pub fn add_product(out: &mut [f32], columns: usize, a: &[f32], depth: usize, b: &[Step]) {
    let rows = a.len() / depth;
    let all = depth.div_ceil(2);
    let mut words = LEFT.take();
    words.resize(words.len().max(rows * STRETCH.min(all)), 0);
    for start in (0..all).step_by(STRETCH) {
        let count = STRETCH.min(all - start);
        let used = &mut words[..rows * count];
        left(
            a,
            depth,
            2 * start,
            (2 * count).min(depth - 2 * start),
            used,
        );
        for (panel, b) in b.chunks_exact(all).enumerate() {
            let b = &b[start..start + count];
            let column = panel * WIDTH;
            let width = WIDTH.min(columns - column);
            for (block, a) in used.chunks(HEIGHT * count).enumerate() {
                let out = &mut out[block * HEIGHT * columns + column..];
                if width == WIDTH {
                    add_block(out, columns, a, b);
                    continue;
                }
                let mut sums = [0.0; HEIGHT * WIDTH];
                add_block(&mut sums, WIDTH, a, b);
                let rows = out.chunks_mut(columns).zip(sums.chunks_exact(WIDTH));
                for (out, sums) in rows.take(a.len() / count) {
                    for (out, sum) in out[..width].iter_mut().zip(sums) {
                        *out += sum;
                    }
                }
            }
        }
    }
    LEFT.set(words);
}

/// Up to [`HEIGHT`] rows of `out`, `stride` apart, get the product of as many rows of words and the
/// steps of a panel.
#[allow(unsafe_code)]
fn add_block(out: &mut [f32], stride: usize, a: &[u32], b: &[Step]) {
    macro_rules! of_height {
        ($($rows:literal)*) => {
            match a.len() / b.len() {
                $(
                    // SAFETY: `is_there` was true, or there would be no panels to multiply.
                    $rows => unsafe { add_rows::<$rows>(out, stride, a, b) },
                )*
                rows => unreachable!("{rows} rows of at most {HEIGHT}"),
            }
        };
    }
    of_height!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// [`add_block`] of `ROWS` rows.
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_rows<const ROWS: usize>(out: &mut [f32], stride: usize, a: &[u32], b: &[Step]) {
    let count = b.len();
    assert!(a.len() == ROWS * count && stride >= WIDTH, "rows of words");
    assert!(out.len() >= (ROWS - 1) * stride + WIDTH, "rows of sums");
    let as_pairs = |words: __m512i| -> __m512bh {
        // SAFETY: both are 64 bytes for which every value is valid.
        unsafe { std::mem::transmute(words) }
    };
    // SAFETY: the assertions above: `out` holds ROWS rows of 32 sums, `stride` apart; `a` holds
    // `count` words for each of them; a step is two registers.
    unsafe {
        let place = out.as_mut_ptr();
        let mut sums: [[__m512; 2]; ROWS] = std::array::from_fn(|row| {
            [0, 16].map(|half| _mm512_loadu_ps(place.add(row * stride + half)))
        });
        for (index, step) in b.iter().enumerate() {
            let [left, right] =
                [0, 16].map(|half| as_pairs(_mm512_loadu_si512(step.as_ptr().add(half).cast())));
            for (row, sums) in sums.iter_mut().enumerate() {
                let word = *a.get_unchecked(row * count + index);
                let pair = as_pairs(_mm512_set1_epi32(word.cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, left);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, right);
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (half, sums) in [0, 16].into_iter().zip(sums) {
                _mm512_storeu_ps(place.add(row * stride + half), sums);
            }
        }
    }
}
