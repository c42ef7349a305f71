//! Random crops, of an image and of its part map.

use crate::Rng;
use crate::augment::uniform;
use rand::RngExt;

/// Draws before a crop that fits the image is given up for the center crop, as in torchvision.
const ATTEMPTS: usize = 10;

/// A rectangle of whole pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CropBox {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

impl CropBox {
    pub fn xywh(&self) -> [usize; 4] {
        [self.left, self.top, self.width, self.height]
    }

    /// A crop that covers a share in `scale` of the area, of width over height in `ratio`
    /// (uniform in its logarithm), at a uniform place: torchvision's
    /// `RandomResizedCrop.get_params`.
    ///
    /// # Panics
    ///
    /// Where the image has no pixels.
    pub fn draw(
        width: usize,
        height: usize,
        scale: [f32; 2],
        ratio: [f32; 2],
        rng: &mut Rng,
    ) -> Self {
        assert!(
            width > 0 && height > 0,
            "expected an image with pixels, found {width} x {height} (width x height)"
        );
        let area = width as f64 * height as f64;
        for _ in 0..ATTEMPTS {
            let target = area * f64::from(uniform(scale, rng));
            let aspect = f64::from(uniform(ratio.map(f32::ln), rng)).exp();
            let w = (target * aspect).sqrt().round_ties_even() as usize;
            let h = (target / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.random_range(0..=height - h);
                let left = rng.random_range(0..=width - w);
                return Self {
                    left,
                    top,
                    width: w,
                    height: h,
                };
            }
        }
        Self::middle(width, height, ratio.map(f64::from))
    }

    /// The largest center crop whose ratio lies in `ratio`.
    fn middle(width: usize, height: usize, [narrowest, widest]: [f64; 2]) -> Self {
        let found = width as f64 / height as f64;
        let side = |length: f64, limit: usize| (length.round_ties_even() as usize).clamp(1, limit);
        let (w, h) = if found < narrowest {
            (width, side(width as f64 / narrowest, height))
        } else if found > widest {
            (side(height as f64 * widest, width), height)
        } else {
            (width, height)
        };
        Self {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}

/// The part map of a whole image, as in the label store.
#[derive(Clone, Copy, Debug)]
pub struct LabelGrid<'a> {
    /// Rows of the grid.
    pub rows: usize,
    /// Columns of the grid.
    pub columns: usize,
    /// `[rows, columns]`; 255 is the ignore index.
    pub parts: &'a [u8],
}

impl LabelGrid<'_> {
    /// The part map of a crop on another grid: for the center of each output position, the label of the
    /// position that it lies in. `image_size` and `output_grid` are `[height, width]`.
    ///
    /// # Panics
    ///
    /// Where the grid does not hold rows x columns labels.
    pub(super) fn carry(
        &self,
        crop: &CropBox,
        flip: bool,
        image_size: [usize; 2],
        output_grid: [usize; 2],
    ) -> Vec<u8> {
        assert_eq!(
            self.parts.len(),
            self.rows * self.columns,
            "labels in a grid of {} rows x {} columns",
            self.rows,
            self.columns
        );
        let rows = positions(
            crop.top,
            crop.height,
            image_size[0],
            self.rows,
            output_grid[0],
        );
        let mut columns = positions(
            crop.left,
            crop.width,
            image_size[1],
            self.columns,
            output_grid[1],
        );
        if flip {
            columns.reverse();
        }
        let mut out = Vec::with_capacity(rows.len() * columns.len());
        for row in rows {
            let labels = &self.parts[row * self.columns..(row + 1) * self.columns];
            out.extend(columns.iter().map(|&column| labels[column]));
        }
        out
    }
}

/// Along one axis: for each of `outputs` equal pieces of the crop, the grid position that holds its
/// center. In whole numbers: the middle of piece i lies at start + (2i + 1) length / (2 outputs)
/// of `size` pixels, and the position is that times `count` / `size`, rounded down.
fn positions(start: usize, length: usize, size: usize, count: usize, outputs: usize) -> Vec<usize> {
    (0..outputs)
        .map(|i| (2 * outputs * start + (2 * i + 1) * length) * count / (2 * outputs * size))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_image_on_the_same_grid_keeps_the_labels() {
        let parts: Vec<u8> = (0..128).collect();
        let grid = LabelGrid {
            rows: 16,
            columns: 8,
            parts: &parts,
        };
        for [height, width] in [[256, 128], [97, 41], [5, 3], [1, 1]] {
            let whole = CropBox {
                left: 0,
                top: 0,
                width,
                height,
            };
            assert_eq!(grid.carry(&whole, false, [height, width], [16, 8]), parts);
            let flipped = grid.carry(&whole, true, [height, width], [16, 8]);
            let expected: Vec<u8> = parts
                .chunks(8)
                .flat_map(|row| row.iter().rev().copied())
                .collect();
            assert_eq!(flipped, expected);
        }
    }

    #[test]
    fn a_quarter_of_the_image_takes_a_quarter_of_the_labels() {
        let parts: Vec<u8> = (0..16).collect();
        let grid = LabelGrid {
            rows: 4,
            columns: 4,
            parts: &parts,
        };
        let crop = CropBox {
            left: 50,
            top: 0,
            width: 50,
            height: 50,
        };
        assert_eq!(grid.carry(&crop, false, [100, 100], [2, 2]), [2, 3, 6, 7]);
        assert_eq!(grid.carry(&crop, true, [100, 100], [2, 2]), [3, 2, 7, 6]);
    }

    #[test]
    fn an_image_of_another_shape_falls_back_to_the_middle() {
        let mut rng = crate::rng_for(0, 0, "crop");
        // A crop of 80 % of a strip cannot have width over height of a half.
        let crop = CropBox::draw(1000, 10, [0.8, 1.0], [0.4, 0.6], &mut rng);
        assert_eq!(
            crop,
            CropBox {
                left: 497,
                top: 0,
                width: 6,
                height: 10
            }
        );
        let crop = CropBox::draw(10, 1000, [0.8, 1.0], [0.4, 0.6], &mut rng);
        assert_eq!(
            crop,
            CropBox {
                left: 0,
                top: 487,
                width: 10,
                height: 25
            }
        );
        assert_eq!(
            CropBox::draw(1, 1, [0.05, 0.1], [0.4, 0.6], &mut rng).xywh(),
            [0, 0, 1, 1]
        );
    }
}
