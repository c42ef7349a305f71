//! Random crops, of an image and of its labels.

use rand::RngExt;

use super::draw::uniform;
use crate::Rng;

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

/// For each position of an output grid on a crop, the position of a grid on the whole image that
/// holds its center: labels of any kind that belong to positions are cropped with it.
pub(crate) struct GridCrop {
    /// Columns of the grid on the whole image.
    width: usize,
    rows: Vec<usize>,
    columns: Vec<usize>,
}

impl GridCrop {
    /// `image_size` is [height, width]; `grid` and `output_grid` are rows and columns.
    pub(super) fn new(
        crop: &CropBox,
        flip: bool,
        image_size: [usize; 2],
        grid: [usize; 2],
        output_grid: [usize; 2],
    ) -> Self {
        let ([height, width], [rows, columns]) = (image_size, grid);
        let rows = positions(crop.top, crop.height, height, rows, output_grid[0]);
        let mut across = positions(crop.left, crop.width, width, columns, output_grid[1]);
        if flip {
            across.reverse();
        }
        Self {
            width: columns,
            rows,
            columns: across,
        }
    }

    /// Labels of the whole image, [rows, columns], on the output grid.
    ///
    /// # Panics
    ///
    /// Where the grid has more positions than there are labels.
    pub fn apply<T: Copy>(&self, labels: &[T]) -> Vec<T> {
        let mut out = Vec::with_capacity(self.rows.len() * self.columns.len());
        for row in &self.rows {
            let labels = &labels[row * self.width..(row + 1) * self.width];
            out.extend(self.columns.iter().map(|&column| labels[column]));
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
        for [height, width] in [[256, 128], [97, 41], [5, 3], [1, 1]] {
            let whole = CropBox {
                left: 0,
                top: 0,
                width,
                height,
            };
            let on_grid =
                |flip| GridCrop::new(&whole, flip, [height, width], [16, 8], [16, 8]).apply(&parts);
            assert_eq!(on_grid(false), parts);
            let flipped = on_grid(true);
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
        let crop = CropBox {
            left: 50,
            top: 0,
            width: 50,
            height: 50,
        };
        let on_grid = |flip| GridCrop::new(&crop, flip, [100, 100], [4, 4], [2, 2]).apply(&parts);
        assert_eq!(on_grid(false), [2, 3, 6, 7]);
        assert_eq!(on_grid(true), [3, 2, 7, 6]);
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
