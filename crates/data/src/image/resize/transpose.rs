//! Transposing a matrix of bytes.

use crate::vectors::vectorized;

/// Bytes `[rows, columns]`, `stride` from a row to the next, with rows and columns exchanged,
/// `out_stride` bytes from a row to the next. Of `out` up to seven bytes after each row are written
/// over.
pub(super) fn transpose(
    bytes: &[u8],
    stride: usize,
    [rows, columns]: [usize; 2],
    out: &mut [u8],
    out_stride: usize,
) {
    debug_assert!(out_stride >= rows.next_multiple_of(8));
    transpose_tiles(bytes, stride, [rows, columns], out, out_stride);
}

vectorized! {
    fn transpose_tiles<'a>(
        bytes: &'a [u8],
        stride: usize,
        size: [usize; 2],
        out: &'a mut [u8],
        out_stride: usize,
    ) {
        // Eight tiles of 8 x 8 bytes side by side.
        const WIDE: usize = 64;
        let [rows, columns] = size;
        for row in (0..rows).step_by(8) {
            for column in (0..columns).step_by(WIDE) {
                let wide = WIDE.min(columns - column);
                let mut tiles = [[0_u64; WIDE / 8]; 8];
                for (y, words) in tiles.iter_mut().enumerate().take(rows - row) {
                    let mut line = [0_u8; WIDE];
                    let source = &bytes[(row + y) * stride + column..][..wide];
                    if wide == WIDE {
                        line.copy_from_slice(source);
                    } else {
                        line[..wide].copy_from_slice(source);
                    }
                    for (word, bytes) in words.iter_mut().zip(line.as_chunks::<8>().0) {
                        *word = u64::from_le_bytes(*bytes);
                    }
                }
                exchange::<4>(&mut tiles, 32, 0x0000_0000_ffff_ffff);
                exchange::<2>(&mut tiles, 16, 0x0000_ffff_0000_ffff);
                exchange::<1>(&mut tiles, 8, 0x00ff_00ff_00ff_00ff);
                for x in 0..wide {
                    let word = tiles[x % 8][x / 8];
                    let to = (column + x) * out_stride + row;
                    out[to..to + 8].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}

/// One of three steps that transpose tiles of 8 x 8 bytes, row `y` of which is `tiles[y]`: swaps
/// the off-diagonal quarters of the squares of 2 `HALF`. `bits` and `mask`: `HALF` bytes.
#[inline(always)]
fn exchange<const HALF: usize>(tiles: &mut [[u64; 8]; 8], bits: u32, mask: u64) {
    for y in (0..8).filter(|y| y & HALF == 0) {
        let (above, below) = tiles.split_at_mut(y + HALF);
        for (upper, lower) in above[y].iter_mut().zip(&mut below[0]) {
            let swapped = ((*upper >> bits) ^ *lower) & mask;
            *upper ^= swapped << bits;
            *lower ^= swapped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_any_size() {
        for [rows, columns] in [[1_usize, 1], [8, 64], [7, 65], [9, 63], [50, 130]] {
            let bytes: Vec<u8> = (0..rows * (columns + 3))
                .map(|i| (i * i / 7) as u8)
                .collect();
            let stride = rows.next_multiple_of(8);
            let mut out = vec![0; columns * stride];
            transpose(&bytes, columns + 3, [rows, columns], &mut out, stride);
            for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                assert_eq!(
                    out[column * stride + row],
                    bytes[row * (columns + 3) + column]
                );
            }
        }
    }
}
