//! Matrix products with factors rounded to bf16 and sums in f32.
//!
//! On x86-64 with AMX, Intel's matrix unit, they are about four times as fast as in f32, with the
//! AVX512-BF16 instructions of AMD's processors about twice (docs/LOG.md). Elsewhere the factors are
//! rounded in the same way and multiplied in f32, also on Intel's processors with AVX512-BF16 but
//! without AMX, where those instructions were slower than f32. Results differ by the order of sums,
//! and by values too small for a normal number, which the instructions take for 0.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod rounding;

use std::cell::Cell;

use super::matrix::{MatrixView, add_product};
use super::scalar::vectorized;
use rounding::bits;

/// The right factor of many matrix products, rounded once.
pub struct Rounded {
    rows: usize,
    columns: usize,
    kept: RoundedStorage,
}

enum RoundedStorage {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(Vec<amx::Tile>),
    #[cfg(target_arch = "x86_64")]
    Panels(Vec<avx512::Step>),
    /// Row-major.
    Floats(Vec<f32>),
}

impl Rounded {
    /// Of a row-major [rows, columns]; packed by all threads.
    pub fn new(data: &[f32], columns: usize) -> Self {
        Self::packed(data, columns, true)
    }

    /// The transpose of a row-major [rows, columns]; packed by all threads.
    pub fn transposed(data: &[f32], columns: usize) -> Self {
        let rows = data.len() / columns;
        let mut transposed = vec![0.0; data.len()];
        transpose(data, columns, &mut transposed);
        Self::packed(&transposed, rows, true)
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    fn packed(data: &[f32], columns: usize, in_parallel: bool) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_there() {
            return Self {
                rows: data.len() / columns,
                columns,
                kept: RoundedStorage::Tiles(amx::right(data, columns, in_parallel)),
            };
        }
        #[cfg(target_arch = "x86_64")]
        if avx512::is_fast() {
            return Self::panels(data, columns, in_parallel);
        }
        let _ = in_parallel;
        Self::portable(data, columns)
    }

    #[cfg(target_arch = "x86_64")]
    fn panels(data: &[f32], columns: usize, in_parallel: bool) -> Self {
        Self {
            rows: data.len() / columns,
            columns,
            kept: RoundedStorage::Panels(avx512::right(data, columns, in_parallel)),
        }
    }

    fn portable(data: &[f32], columns: usize) -> Self {
        Self {
            rows: data.len() / columns,
            columns,
            kept: RoundedStorage::Floats(rounded(data)),
        }
    }

    /// out += a · this. a: row-major [n, rows], out: [n, columns].
    pub fn add_product(&self, out: &mut [f32], a: &[f32]) {
        let (n, columns) = (a.len() / self.rows, self.columns);
        assert_eq!(a.len(), n * self.rows, "rows of {} values", self.rows);
        assert_eq!(out.len(), n * columns, "{n} rows of {columns} values");
        match &self.kept {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            RoundedStorage::Tiles(tiles) => amx::add_product(out, columns, a, self.rows, tiles),
            #[cfg(target_arch = "x86_64")]
            RoundedStorage::Panels(panels) => {
                avx512::add_product(out, columns, a, self.rows, panels);
            }
            RoundedStorage::Floats(values) => {
                let (a, b) = (rounded(a), MatrixView::new(values, columns));
                add_product(out, columns, MatrixView::new(&a, self.rows), b, 1.0);
            }
        }
    }
}

thread_local! {
    /// Memory for transposed factors, which would be cleared for each product.
    static TRANSPOSED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// sums += aᵀ · b on the calling thread. a: row-major [n, rows], b: [n, columns], sums: [rows,
/// columns].
pub fn add_transposed_product(sums: &mut [f32], [a, b]: [&[f32]; 2], [rows, columns]: [usize; 2]) {
    let mut memory = TRANSPOSED.take();
    memory.resize(memory.len().max(a.len()), 0.0);
    let transposed = &mut memory[..a.len()];
    transpose(a, rows, transposed);
    Rounded::packed(b, columns, false).add_product(sums, transposed);
    TRANSPOSED.set(memory);
}

/// Rows and columns of a block that is transposed at a time: a few lines of the cache of each side.
const BLOCK: usize = 16;

/// out = dataᵀ. data: row-major [rows, columns].
fn transpose(data: &[f32], columns: usize, out: &mut [f32]) {
    let rows = data.len() / columns;
    for (band, first_row) in data.chunks(BLOCK * columns).zip((0..rows).step_by(BLOCK)) {
        for first in (0..columns).step_by(BLOCK) {
            let width = BLOCK.min(columns - first);
            let lines = out[first * rows..].chunks_mut(rows).take(width);
            for (column, line) in (first..).zip(lines) {
                let values = band.iter().skip(column).step_by(columns);
                for (out, value) in line[first_row..].iter_mut().zip(values) {
                    *out = *value;
                }
            }
        }
    }
}

/// Whether the processor has instructions for products of bf16 that are faster than those of f32.
pub fn is_in_hardware() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::is_there() {
        return true;
    }
    #[cfg(target_arch = "x86_64")]
    return avx512::is_fast();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    round_all(values, &mut out);
    out
}

vectorized! {
    fn round_all<'a>(values: &'a [f32], out: &'a mut [f32]) {
        for (x, out) in values.iter().zip(out) {
            *out = f32::from_bits(bits(*x) << 16);
        }
    }
}

/// Intel's Advanced Matrix Extensions (Intel 64 and IA-32 Architectures Software Developer's
/// Manual, volume 1, chapter 18).
///
/// A tile register has 16 rows of 64 bytes. `tdpbf16ps` adds to a tile of 16x16 sums the product of
/// one of [16, 32] numbers and one of [32, 16], whose rows are stored two by two, their numbers in
/// turn.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::cell::Cell;
    use std::sync::OnceLock;

    use rayon::prelude::*;

    use super::{bits, vectorized};

    /// Rows and columns of a block: two tiles by two, for four sums at a time.
    const BLOCK: usize = 32;
    /// Numbers along the sum that one instruction takes.
    const DEPTH: usize = 32;
    /// Steps of a stretch of the sum: what both factors need for it stays in the cache.
    const STRETCH: usize = 32;

    /// What a tile register holds, two numbers in a word, the first in its low half.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    pub struct Tile([u32; 256]);

    const EMPTY: Tile = Tile([0; 256]);

    /// Whether the processor has the instructions and the system lets this process have the
    /// registers.
    pub fn is_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        *THERE.get_or_init(|| {
            /// Bits of EDX in leaf 7: AMX-BF16 and AMX-TILE.
            const NEEDED: u32 = 1 << 22 | 1 << 24;
            let highest = __cpuid_count(0, 0).eax;
            highest >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED && permitted()
        })
    }

    /// Asks Linux for the registers, which are too large to be saved for processes that do not use
    /// them (`arch_prctl`, ARCH_REQ_XCOMP_PERM for XTILEDATA).
    #[allow(unsafe_code)]
    fn permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        let mut result = ARCH_PRCTL;
        // SAFETY: the call reads no memory and changes nothing but the permission of this process;
        // an old kernel answers with an error.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result,
                in("rdi") 0x1023,
                in("rsi") 18,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    /// Steps of a sum of `depth` numbers.
    fn steps(depth: usize) -> usize {
        depth.div_ceil(DEPTH)
    }

    /// The tiles of a row-major right factor: for 32 columns at a time and each step two tiles side
    /// by side.
    pub fn right(data: &[f32], columns: usize, in_parallel: bool) -> Vec<Tile> {
        let steps = steps(data.len() / columns);
        let mut tiles = vec![EMPTY; columns.div_ceil(BLOCK) * steps * 2];
        let least = if in_parallel { 1 } else { usize::MAX };
        let panels = tiles.par_chunks_mut(steps * 2).enumerate();
        panels.with_min_len(least).for_each(|(panel, tiles)| {
            right_panel(data, columns, panel * BLOCK, tiles);
        });
        tiles
    }

    /// Two rows of 32 numbers, as a row of two tiles.
    #[inline(always)]
    fn right_pair(even: &[f32], odd: &[f32], row: usize, tiles: &mut [Tile]) {
        for (half, tile) in tiles.iter_mut().enumerate() {
            let (even, odd) = (&even[16 * half..][..16], &odd[16 * half..][..16]);
            for ((word, even), odd) in tile.0[16 * row..][..16].iter_mut().zip(even).zip(odd) {
                *word = bits(*even) | bits(*odd) << 16;
            }
        }
    }

    vectorized! {
        fn right_panel<'a>(data: &'a [f32], columns: usize, first: usize, tiles: &'a mut [Tile]) {
            let width = BLOCK.min(columns - first);
            for (pair, rows) in data.chunks(2 * columns).enumerate() {
                let (even, odd) = rows.split_at(columns);
                let part = |row: &[f32], edge: &mut [f32; BLOCK]| {
                    for (value, x) in edge.iter_mut().zip(row.iter().skip(first).take(width)) {
                        *value = *x;
                    }
                };
                let tiles = &mut tiles[pair / 16 * 2..][..2];
                if width == BLOCK && odd.len() == columns {
                    right_pair(&even[first..], &odd[first..], pair % 16, tiles);
                } else {
                    // Beyond the last row and column there are zeros.
                    let mut edges = [[0.0; BLOCK]; 2];
                    part(even, &mut edges[0]);
                    part(odd, &mut edges[1]);
                    right_pair(&edges[0], &edges[1], pair % 16, tiles);
                }
            }
        }

        /// The tiles of a stretch of a row-major left factor: for 32 rows at a time and each step
        /// two tiles, one above the other.
        fn left<'a>(data: &'a [f32], depth: usize, first: usize, count: usize, tiles: &'a mut [Tile]) {
            let steps = count.div_ceil(DEPTH);
            for (block, tiles) in data.chunks(BLOCK * depth).zip(tiles.chunks_exact_mut(2 * steps)) {
                for (row, numbers) in block.chunks_exact(depth).enumerate() {
                    let parts = numbers[first..first + count].chunks(DEPTH);
                    for (tiles, part) in tiles.chunks_exact_mut(2).zip(parts) {
                        let words = &mut tiles[row / 16].0[row % 16 * 16..][..16];
                        if let Ok(part) = <&[f32; DEPTH]>::try_from(part) {
                            for (word, pair) in words.iter_mut().zip(part.chunks_exact(2)) {
                                *word = bits(pair[0]) | bits(pair[1]) << 16;
                            }
                        } else {
                            words.fill(0);
                            for (index, x) in part.iter().enumerate() {
                                words[index / 2] |= bits(*x) << (16 * (index as u32 % 2));
                            }
                        }
                    }
                }
            }
        }
    }

    thread_local! {
        /// Memory for left factors, which would be cleared for each product.
        static LEFT: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
    }

    /// out += a · b. a: row-major [n, depth], out: [n, columns], b: [`right`]'s tiles.
    pub fn add_product(out: &mut [f32], columns: usize, a: &[f32], depth: usize, b: &[Tile]) {
        let rows = a.len() / depth;
        let all = steps(depth);
        let longest = STRETCH.min(all);
        let mut tiles = LEFT.take();
        // What is there from before lies in rows beyond the last, and reaches no sum that is kept.
        tiles.resize(tiles.len().max(rows.div_ceil(BLOCK) * longest * 2), EMPTY);
        let unit = Unit::new();
        for start in (0..all).step_by(longest) {
            let count = longest.min(all - start);
            let first = start * DEPTH;
            let used = &mut tiles[..rows.div_ceil(BLOCK) * count * 2];
            left(a, depth, first, (count * DEPTH).min(depth - first), used);
            for (panel, b) in b.chunks_exact(all * 2).enumerate() {
                let b = &b[start * 2..][..count * 2];
                let column = panel * BLOCK;
                let width = BLOCK.min(columns - column);
                for (block, a) in used.chunks_exact(count * 2).enumerate() {
                    let height = BLOCK.min(rows - block * BLOCK);
                    let out = &mut out[block * BLOCK * columns + column..];
                    if (width, height) == (BLOCK, BLOCK) {
                        unit.add(out, columns, a, b);
                        continue;
                    }
                    let mut sums = [0.0; BLOCK * BLOCK];
                    unit.add(&mut sums, BLOCK, a, b);
                    let rows = out.chunks_mut(columns).take(height);
                    for (out, sums) in rows.zip(sums.chunks_exact(BLOCK)) {
                        for (out, sum) in out[..width].iter_mut().zip(sums) {
                            *out += sum;
                        }
                    }
                }
            }
        }
        LEFT.set(tiles);
    }

    /// The matrix unit of this thread, set to full tiles as long as this lives.
    struct Unit(std::marker::PhantomData<*const ()>);

    #[repr(C, align(64))]
    struct TileConfig([u8; 64]);

    impl Unit {
        #[allow(unsafe_code)]
        fn new() -> Self {
            let mut setting = TileConfig([0; 64]);
            setting.0[0] = 1;
            for tile in 0..8 {
                setting.0[16 + 2 * tile] = 64;
                setting.0[48 + tile] = 16;
            }
            // SAFETY: `is_there` was true, or there would be no tiles to multiply; the instruction
            // reads these 64 bytes.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) setting.0.as_ptr(), options(nostack, readonly));
            }
            Self(std::marker::PhantomData)
        }

        /// 32x32 sums of `out`, whose rows are `stride` apart, get the product of two tiles a step
        /// of each side.
        #[allow(unsafe_code)]
        fn add(&self, out: &mut [f32], stride: usize, a: &[Tile], b: &[Tile]) {
            let count = a.len() / 2;
            assert!(
                count > 0 && a.len() == b.len() && a.len() == 2 * count,
                "steps"
            );
            assert!(
                stride >= BLOCK && out.len() >= (BLOCK - 1) * stride + BLOCK,
                "sums"
            );
            // SAFETY: the unit is set (there is a `Unit` of this thread), which makes each load and
            // store 16 rows of 64 bytes: of `a` and `b` 2 KiB a step, `count` steps of which they
            // hold; of `out` the four tiles of the rows and columns checked above.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{o} + {t}]",
                    "tileloadd tmm1, [{o} + {t} + 64]",
                    "tileloadd tmm2, [{p} + {t}]",
                    "tileloadd tmm3, [{p} + {t} + 64]",
                    "2:",
                    "tileloadd tmm4, [{a} + {s}]",
                    "tileloadd tmm6, [{b} + {s}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {s} + 1024]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a} + {s} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{o} + {t}], tmm0",
                    "tilestored [{o} + {t} + 64], tmm1",
                    "tilestored [{p} + {t}], tmm2",
                    "tilestored [{p} + {t} + 64], tmm3",
                    a = inout(reg) a.as_ptr() => _,
                    b = inout(reg) b.as_ptr() => _,
                    n = inout(reg) count => _,
                    s = in(reg) 64usize,
                    t = in(reg) 4 * stride,
                    o = in(reg) out.as_mut_ptr(),
                    p = in(reg) out.as_mut_ptr().add(16 * stride),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    impl Drop for Unit {
        #[allow(unsafe_code)]
        fn drop(&mut self) {
            // SAFETY: gives the registers back; nothing else in this thread uses them.
            unsafe {
                asm!("tilerelease", options(nostack, nomem));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn of_rounded(
        out: &[f32],
        a: &[f32],
        b: &[f32],
        [rows, depth, columns]: [usize; 3],
    ) -> Vec<f64> {
        let (a, b) = (rounded(a), rounded(b));
        let mut sums: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
        for row in 0..rows {
            for k in 0..depth {
                for column in 0..columns {
                    sums[row * columns + column] +=
                        f64::from(a[row * depth + k]) * f64::from(b[k * columns + column]);
                }
            }
        }
        sums
    }

    #[test]
    fn products_of_any_size_are_those_of_the_rounded_factors() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        for sizes in [
            [1, 1, 1],
            [31, 33, 35],
            [32, 32, 32],
            [70, 96, 64],
            [5, 2100, 40],
            [100, 65, 129],
            [25, 1030, 33],
        ] {
            let [rows, depth, columns] = sizes;
            let (a, b, before) = (
                draw(rows * depth),
                draw(depth * columns),
                draw(rows * columns),
            );
            let expected = of_rounded(&before, &a, &b, sizes);
            // All ways that this processor has, and the portable one.
            let mut factors = vec![Rounded::new(&b, columns), Rounded::portable(&b, columns)];
            #[cfg(target_arch = "x86_64")]
            if avx512::is_there() {
                factors.push(Rounded::panels(&b, columns, false));
            }
            let turned = |data: &[f32], columns: usize| {
                let mut out = vec![0.0; data.len()];
                transpose(data, columns, &mut out);
                out
            };
            factors.push(Rounded::transposed(&turned(&b, columns), depth));
            for factor in factors {
                let mut out = before.clone();
                factor.add_product(&mut out, &a);
                for (value, expected) in out.iter().zip(&expected) {
                    let difference = (f64::from(*value) - expected).abs();
                    assert!(
                        difference < 1e-6 * depth as f64 + 1e-6,
                        "{sizes:?}: {value} and {expected}"
                    );
                }
            }
            let mut out = before.clone();
            add_transposed_product(&mut out, [&turned(&a, depth), &b], [rows, columns]);
            let mut expected = before.clone();
            Rounded::new(&b, columns).add_product(&mut expected, &a);
            assert_eq!(out, expected, "{sizes:?}");
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_to_even() {
        let next = f32::from_bits(0x3f81_0000);
        let middle = f32::from_bits(0x3f80_8000);
        let beyond = f32::from_bits(0x3f80_8001);
        let odd = f32::from_bits(0x3f81_8000);
        let even = f32::from_bits(0x3f82_0000);
        let values = rounded(&[1.0, middle, beyond, odd, f32::INFINITY, -0.0, f32::MAX]);
        assert_eq!(
            values,
            [1.0, 1.0, next, even, f32::INFINITY, -0.0, f32::INFINITY]
        );
        assert!(rounded(&[f32::from_bits(0x7f80_0001)])[0].is_nan());
        let mut out = [0.0];
        Rounded::new(&[f32::NAN], 1).add_product(&mut out, &[1.0]);
        assert!(out[0].is_nan());
    }
}
