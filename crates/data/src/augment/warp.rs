//! Affine maps between an image and a view of it: crops with rotation, for images, label maps and
//! points.
//!
//! A pixel's coordinates are those of its middle counted from 0, as in OpenCV's `warpAffine`.

use crate::image::Rgb;

/// An affine map of points (x, y): [a, b, tx; c, d, ty].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(pub [[f64; 3]; 2]);

impl Affine {
    /// Turns by `degrees` and scales about `center`, which goes to `to`:
    /// p ↦ to + diag(scale) · R(−degrees) · (p − center). Points are (x, y); y points down.
    pub fn about(center: [f64; 2], to: [f64; 2], scale: [f64; 2], degrees: f64) -> Self {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let linear = [
            [scale[0] * cos, scale[0] * sin],
            [-scale[1] * sin, scale[1] * cos],
        ];
        Self([0, 1].map(|axis| {
            let [a, b] = linear[axis];
            [a, b, to[axis] - a * center[0] - b * center[1]]
        }))
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        self.0.map(|[a, b, t]| a * x + b * y + t)
    }

    /// The map the other way round.
    ///
    /// # Panics
    /// If the map flattens the plane.
    pub fn inverse(&self) -> Self {
        let [[a, b, tx], [c, d, ty]] = self.0;
        let det = a * d - b * c;
        assert!(det != 0.0, "no inverse of {self:?}");
        let (ia, ib, ic, id) = (d / det, -b / det, -c / det, a / det);
        Self([
            [ia, ib, -(ia * tx + ib * ty)],
            [ic, id, -(ic * tx + id * ty)],
        ])
    }
}

/// The view of an image, `height` x `width`, in which pixel p shows the image at `image_from_view`
/// of p, bilinearly. Beyond the image is `border`.
pub fn warp(
    image: &Rgb,
    image_from_view: &Affine,
    height: usize,
    width: usize,
    border: [u8; 3],
) -> Rgb {
    let mut pixels = Vec::with_capacity(3 * height * width);
    let (rows, columns) = (image.height as i64, image.width as i64);
    let at = |x: i64, y: i64| -> [f64; 3] {
        if (0..columns).contains(&x) && (0..rows).contains(&y) {
            let start = 3 * (y * columns + x) as usize;
            [0, 1, 2].map(|c| f64::from(image.pixels[start + c]))
        } else {
            border.map(f64::from)
        }
    };
    for row in 0..height {
        for column in 0..width {
            let [x, y] = image_from_view.apply([column as f64, row as f64]);
            // Far outside nothing but the border is near; this also keeps what follows in range.
            if !(-2.0..columns as f64 + 1.0).contains(&x) || !(-2.0..rows as f64 + 1.0).contains(&y)
            {
                pixels.extend(border);
                continue;
            }
            let (left, top) = (x.floor(), y.floor());
            let (dx, dy) = (x - left, y - top);
            let (left, top) = (left as i64, top as i64);
            let corners = [
                at(left, top),
                at(left + 1, top),
                at(left, top + 1),
                at(left + 1, top + 1),
            ];
            pixels.extend([0, 1, 2].map(|c| {
                let upper = corners[0][c] * (1.0 - dx) + corners[1][c] * dx;
                let lower = corners[2][c] * (1.0 - dx) + corners[3][c] * dx;
                (upper * (1.0 - dy) + lower * dy + 0.5) as u8
            }));
        }
    }
    Rgb::new(width, height, pixels)
}

/// As [`warp`] for a map of labels, [rows, columns], by the nearest label.
pub fn warp_labels(
    labels: &[u8],
    [rows, columns]: [usize; 2],
    map_from_view: &Affine,
    height: usize,
    width: usize,
    border: u8,
) -> Vec<u8> {
    assert_eq!(labels.len(), rows * columns, "labels of a map");
    let mut view = Vec::with_capacity(height * width);
    for row in 0..height {
        for column in 0..width {
            let [x, y] = map_from_view.apply([column as f64, row as f64]);
            let (x, y) = ((x + 0.5).floor(), (y + 0.5).floor());
            let inside = x >= 0.0 && y >= 0.0 && x < columns as f64 && y < rows as f64;
            view.push(if inside {
                labels[y as usize * columns + x as usize]
            } else {
                border
            });
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Rgb {
        let pixels = (0..5 * 4).flat_map(|i| [i as u8 * 10, 0, 255]).collect();
        Rgb::new(5, 4, pixels)
    }

    #[test]
    fn there_and_back() {
        let map = Affine::about([3.0, -2.0], [10.0, 20.0], [2.0, 0.5], 33.0);
        let [x, y] = map.inverse().apply(map.apply([0.7, 5.0]));
        assert!((x - 0.7).abs() < 1e-12 && (y - 5.0).abs() < 1e-12);
        let [x, y] = map.apply([3.0, -2.0]);
        assert!((x - 10.0).abs() < 1e-12 && (y - 20.0).abs() < 1e-12);
    }

    #[test]
    fn the_same_place_gives_the_same_pixels() {
        let same = Affine::about([0.0; 2], [0.0; 2], [1.0; 2], 0.0);
        assert_eq!(warp(&image(), &same, 4, 5, [0; 3]), image());
        let labels: Vec<u8> = (0..20).collect();
        assert_eq!(warp_labels(&labels, [4, 5], &same, 4, 5, 255), labels);
        // Half a pixel to the right: means of neighbors, and the border beyond the last.
        let half = Affine::about([0.0; 2], [0.5, 0.0], [1.0; 2], 0.0);
        let view = warp(&image(), &half, 1, 7, [200, 0, 0]);
        let red: Vec<u8> = view.pixels.iter().step_by(3).copied().collect();
        assert_eq!(red, [5, 15, 25, 35, 120, 200, 200]);
    }

    #[test]
    fn a_quarter_turn_moves_corners() {
        // What lies to the right of the middle comes to lie above it.
        let turn = Affine::about([1.0, 1.0], [1.0, 1.0], [1.0; 2], 90.0);
        let [x, y] = turn.apply([2.0, 1.0]);
        assert!(
            (x - 1.0).abs() < 1e-12 && (y - 0.0).abs() < 1e-12,
            "{x} {y}"
        );
        let labels = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let view = warp_labels(&labels, [3, 3], &turn.inverse(), 3, 3, 0);
        assert_eq!(view, [3, 6, 9, 2, 5, 8, 1, 4, 7]);
    }
}
