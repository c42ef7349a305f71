//! Joints as heatmaps, and back: Simple Baselines (MSRA's code), DARK (Zhang et al., CVPR 2020) and
//! UDP (Huang et al., CVPR 2020), as in MMPose.
//!
//! A position (column, row) of a heatmap is counted from 0. In MSRA and DARK a position is the
//! range of input pixels that starts at stride times it; UDP aligns the corners of the heatmap with
//! the centers of the input's corner pixels.

use clasp_data::augment::Affine;
use serde::{Deserialize, Serialize};

/// How joints are encoded as heatmaps and decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeatmapCodec {
    /// Targets about the nearest position; decoded as the largest value, shifted by a quarter
    /// towards its larger neighbor.
    Msra,
    /// Targets about the exact point; decoded by a Newton step on the logarithm of the blurred
    /// heatmap.
    Dark,
    /// As DARK, without the bias of resizing and flipping.
    Udp,
}

/// The size of a heatmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeatmapGrid {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

impl HeatmapCodec {
    /// Its name in protocols.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msra => "MSRA",
            Self::Dark => "DARK",
            Self::Udp => "UDP",
        }
    }

    /// The transform from the image to the network's input of `height` x `width`: the region x, y,
    /// width, height becomes the whole input, rotated by `degrees` about its center.
    pub fn input_from_image(
        self,
        [x, y, w, h]: [f64; 4],
        height: usize,
        width: usize,
        degrees: f64,
    ) -> Affine {
        let center = [x + w / 2.0, y + h / 2.0];
        let size = match self {
            Self::Udp => [(width - 1) as f64, (height - 1) as f64],
            _ => [width as f64, height as f64],
        };
        // Without UDP both axes have one scale: regions have the input's aspect.
        let scale = match self {
            Self::Udp => [size[0] / w, size[1] / h],
            _ => [size[0] / w, size[0] / w],
        };
        Affine::about(center, size.map(|side| side / 2.0), scale, degrees)
    }

    /// A point of the input in positions of the heatmap.
    pub fn on_grid(
        self,
        [x, y]: [f64; 2],
        grid: HeatmapGrid,
        height: usize,
        width: usize,
    ) -> [f64; 2] {
        match self {
            Self::Udp => [
                x * (grid.columns - 1) as f64 / (width - 1) as f64,
                y * (grid.rows - 1) as f64 / (height - 1) as f64,
            ],
            _ => [
                x * grid.columns as f64 / width as f64,
                y * grid.rows as f64 / height as f64,
            ],
        }
    }

    /// A point of the heatmap in pixels of the image whose region x, y, width, height is the input.
    pub fn in_image(
        self,
        [px, py]: [f64; 2],
        [x, y, w, h]: [f64; 4],
        grid: HeatmapGrid,
    ) -> [f64; 2] {
        match self {
            Self::Udp => [
                x + px * w / (grid.columns - 1) as f64,
                y + py * h / (grid.rows - 1) as f64,
            ],
            _ => [
                x + px * w / grid.columns as f64,
                y + py * h / grid.rows as f64,
            ],
        }
    }

    /// The target of a joint at a point of the heatmap, a Gaussian of height 1 truncated at three
    /// standard deviations: `[rows, columns]`; none if it does not overlap the heatmap.
    pub fn encode(self, [x, y]: [f64; 2], grid: HeatmapGrid, sigma: f64) -> Option<Vec<f32>> {
        let (columns, rows) = (grid.columns as f64, grid.rows as f64);
        let reach = 3.0 * sigma;
        let nearest = [(x + 0.5).floor(), (y + 0.5).floor()];
        let (low, high) = (nearest.map(|n| n - reach), nearest.map(|n| n + reach + 1.0));
        let outside = low[0] >= columns || low[1] >= rows || high[0] < 0.0 || high[1] < 0.0;
        if outside || !x.is_finite() || !y.is_finite() {
            return None;
        }
        // MSRA centers the Gaussian on the nearest position; DARK does not truncate it.
        let center = if self == Self::Msra { nearest } else { [x, y] };
        let truncated = self != Self::Dark;
        let value = |index: usize| {
            let place = [(index % grid.columns) as f64, (index / grid.columns) as f64];
            if truncated && (0..2).any(|axis| (place[axis] - nearest[axis]).abs() > reach) {
                return 0.0;
            }
            let square: f64 = (0..2)
                .map(|axis| (place[axis] - center[axis]).powi(2))
                .sum();
            (-square / (2.0 * sigma * sigma)).exp() as f32
        };
        Some((0..grid.rows * grid.columns).map(value).collect())
    }

    /// The point of a heatmap `[rows, columns]`, and its largest value; (−1, −1) where no value is
    /// above 0.
    ///
    /// `kernel` is the kernel size of the blur of DARK and UDP, 11 for targets of σ = 2 on 96x72.
    pub fn decode(self, map: &[f32], grid: HeatmapGrid, kernel: usize) -> ([f64; 2], f32) {
        assert_eq!(map.len(), grid.rows * grid.columns, "values of a heatmap");
        let mut best = 0;
        for (index, value) in map.iter().enumerate() {
            if *value > map[best] {
                best = index;
            }
        }
        let largest = map[best];
        if largest <= 0.0 || !largest.is_finite() {
            return ([-1.0; 2], largest);
        }
        let peak = [best % grid.columns, best / grid.columns];
        let point = match self {
            Self::Msra => quarter(map, grid, peak),
            Self::Dark => dark(map, grid, peak, kernel),
            Self::Udp => udp(map, grid, peak, kernel),
        };
        (point, largest)
    }
}

/// A shift by a quarter of a position towards the larger neighbor along each axis, except at the
/// border.
fn quarter(map: &[f32], grid: HeatmapGrid, [px, py]: [usize; 2]) -> [f64; 2] {
    let at = |x: usize, y: usize| map[y * grid.columns + x];
    let (mut x, mut y) = (px as f64, py as f64);
    if px > 1 && px < grid.columns - 1 && py > 1 && py < grid.rows - 1 {
        let sign =
            |a: f32, b: f32| f64::from((a - b).total_cmp(&0.0) as i8) * f64::from(u8::from(a != b));
        x += 0.25 * sign(at(px + 1, py), at(px - 1, py));
        y += 0.25 * sign(at(px, py + 1), at(px, py - 1));
    }
    [x, y]
}

/// A Newton step given the derivatives at the peak; none where the Hessian is singular.
fn newton(dx: f64, dy: f64, dxx: f64, dxy: f64, dyy: f64) -> Option<[f64; 2]> {
    let det = dxx * dyy - dxy * dxy;
    (det != 0.0).then(|| [-(dyy * dx - dxy * dy) / det, -(dxx * dy - dxy * dx) / det])
}

fn dark(map: &[f32], grid: HeatmapGrid, [px, py]: [usize; 2], kernel: usize) -> [f64; 2] {
    let point = [px as f64, py as f64];
    let inside = px > 1 && px + 2 < grid.columns && py > 1 && py + 2 < grid.rows;
    if !inside {
        return point;
    }
    // Blurred with zero padding, scaled back to the old maximum.
    let blurred = blur(map, grid, kernel, |_, _| None);
    let (before, after) = (largest(map), largest(&blurred));
    let log = |x: usize, y: usize| {
        let value = blurred[y * grid.columns + x] * before / after;
        f64::from(value.max(1e-10)).ln()
    };
    let dx = 0.5 * (log(px + 1, py) - log(px - 1, py));
    let dy = 0.5 * (log(px, py + 1) - log(px, py - 1));
    let here = log(px, py);
    let dxx = 0.25 * (log(px + 2, py) - 2.0 * here + log(px - 2, py));
    let dyy = 0.25 * (log(px, py + 2) - 2.0 * here + log(px, py - 2));
    let dxy = 0.25
        * (log(px + 1, py + 1) - log(px - 1, py + 1) - log(px + 1, py - 1) + log(px - 1, py - 1));
    match newton(dx, dy, dxx, dxy, dyy) {
        Some(step) => [point[0] + step[0], point[1] + step[1]],
        None => point,
    }
}

fn udp(map: &[f32], grid: HeatmapGrid, [px, py]: [usize; 2], kernel: usize) -> [f64; 2] {
    // Blurred with reflection padding; the logarithm is padded with its border.
    let blurred = blur(map, grid, kernel, |index, size| Some(reflect(index, size)));
    let log = |x: i64, y: i64| {
        let x = x.clamp(0, grid.columns as i64 - 1) as usize;
        let y = y.clamp(0, grid.rows as i64 - 1) as usize;
        f64::from(blurred[y * grid.columns + x].clamp(0.001, 50.0)).ln()
    };
    let (x, y) = (px as i64, py as i64);
    let here = log(x, y);
    let (right, left, below, above) = (log(x + 1, y), log(x - 1, y), log(x, y + 1), log(x, y - 1));
    let dx = 0.5 * (right - left);
    let dy = 0.5 * (below - above);
    let dxx = right - 2.0 * here + left;
    let dyy = below - 2.0 * here + above;
    let dxy =
        0.5 * (log(x + 1, y + 1) - right - below + 2.0 * here - left - above + log(x - 1, y - 1));
    let epsilon = f64::from(f32::EPSILON);
    match newton(dx, dy, dxx + epsilon, dxy, dyy + epsilon) {
        Some(step) => [px as f64 + step[0], py as f64 + step[1]],
        None => [px as f64, py as f64],
    }
}

fn largest(map: &[f32]) -> f32 {
    map.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Reflects an index beyond the border without repeating the border: −1 becomes 1.
fn reflect(index: i64, size: usize) -> usize {
    let last = size as i64 - 1;
    if last == 0 {
        return 0;
    }
    let folded = index.rem_euclid(2 * last);
    (if folded > last {
        2 * last - folded
    } else {
        folded
    }) as usize
}

/// A Gaussian blur of `kernel` positions with OpenCV's σ = 0.3·((kernel − 1)/2 − 1) + 0.8; `beyond`
/// gives the index that replaces one outside the map, none for zero padding.
fn blur(
    map: &[f32],
    grid: HeatmapGrid,
    kernel: usize,
    beyond: impl Fn(i64, usize) -> Option<usize>,
) -> Vec<f32> {
    let radius = kernel as i64 / 2;
    let sigma = 0.3 * ((kernel as f64 - 1.0) * 0.5 - 1.0) + 0.8;
    let weights: Vec<f64> = (-radius..=radius)
        .map(|i| (-((i * i) as f64) / (2.0 * sigma * sigma)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let place = |index: i64, size: usize| {
        if (0..size as i64).contains(&index) {
            Some(index as usize)
        } else {
            beyond(index, size)
        }
    };
    let pass = |values: &dyn Fn(usize, usize) -> f64, along_rows: bool| -> Vec<f64> {
        let mut out = Vec::with_capacity(map.len());
        for y in 0..grid.rows {
            for x in 0..grid.columns {
                let mut sum = 0.0;
                for (offset, weight) in (-radius..=radius).zip(&weights) {
                    let value = if along_rows {
                        place(x as i64 + offset, grid.columns).map(|x| values(x, y))
                    } else {
                        place(y as i64 + offset, grid.rows).map(|y| values(x, y))
                    };
                    sum += weight / total * value.unwrap_or(0.0);
                }
                out.push(sum);
            }
        }
        out
    };
    let first = pass(&|x, y| f64::from(map[y * grid.columns + x]), true);
    let second = pass(&|x, y| first[y * grid.columns + x], false);
    second.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_equal_the_published_code() {
        #[derive(serde::Deserialize)]
        struct PoseCase {
            region: [f64; 4],
            input: [usize; 2],
            degrees: f64,
            msra: [[f64; 3]; 2],
            udp: [[f64; 3]; 2],
        }
        #[derive(serde::Deserialize)]
        struct PoseGolden {
            pose: Vec<PoseCase>,
        }
        let golden: PoseGolden =
            serde_json::from_str(include_str!("../../tests/golden/affine.json")).unwrap();
        for case in golden.pose {
            for (codec, expected) in [
                (HeatmapCodec::Msra, case.msra),
                (HeatmapCodec::Udp, case.udp),
            ] {
                let [height, width] = case.input;
                let found = codec
                    .input_from_image(case.region, height, width, case.degrees)
                    .0;
                for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                    // OpenCV takes its points as f32.
                    assert!(
                        (found - expected).abs() < 2e-3,
                        "{codec:?}: {found} {expected}"
                    );
                }
            }
        }
    }
    use serde_json::Value;

    const GRID: HeatmapGrid = HeatmapGrid {
        rows: 24,
        columns: 18,
    };

    #[test]
    fn decoding_inverts_encoding() {
        for (codec, tolerance) in [
            (HeatmapCodec::Msra, 0.55),
            (HeatmapCodec::Dark, 0.03),
            (HeatmapCodec::Udp, 0.03),
        ] {
            for point in [[8.3, 11.7], [5.0, 6.5], [10.45, 15.2]] {
                let map = codec.encode(point, GRID, 2.0).unwrap();
                let (found, value) = codec.decode(&map, GRID, 11);
                let off = (0..2)
                    .map(|i| (found[i] - point[i]).abs())
                    .fold(0.0, f64::max);
                assert!(off < tolerance, "{codec:?} {point:?} {found:?}");
                assert!(value > 0.8);
            }
            assert_eq!(codec.encode([-20.0, 3.0], GRID, 2.0), None);
            assert_eq!(codec.decode(&[0.0; 24 * 18], GRID, 11).0, [-1.0; 2]);
        }
    }

    #[test]
    fn transforms_to_the_input_and_back_are_inverse() {
        let region = [10.0, -5.0, 90.0, 120.0];
        for codec in [HeatmapCodec::Msra, HeatmapCodec::Dark, HeatmapCodec::Udp] {
            let point = [33.0, 41.5];
            let forward = codec.input_from_image(region, 96, 72, 0.0);
            let on_grid = codec.on_grid(forward.apply(point), GRID, 96, 72);
            let back = codec.in_image(on_grid, region, GRID);
            assert!(
                (0..2).all(|i| (back[i] - point[i]).abs() < 1e-9),
                "{codec:?} {back:?}"
            );
        }
    }

    /// Against a NumPy port without OpenCV of MMPose's functions; `tests/golden/heatmaps.py`.
    #[test]
    fn decoding_equals_the_reference() {
        let text = include_str!("../../tests/golden/heatmaps.json");
        let golden: Value = serde_json::from_str(text).unwrap();
        let grid = HeatmapGrid {
            rows: golden["rows"].as_u64().unwrap() as usize,
            columns: golden["columns"].as_u64().unwrap() as usize,
        };
        for case in golden["cases"].as_array().unwrap() {
            let numbers = |value: &Value| -> Vec<f64> {
                let list = value.as_array().unwrap().iter();
                list.map(|v| v.as_f64().unwrap()).collect()
            };
            let map: Vec<f32> = numbers(&case["map"]).iter().map(|v| *v as f32).collect();
            for (name, codec) in [
                ("msra", HeatmapCodec::Msra),
                ("dark", HeatmapCodec::Dark),
                ("udp", HeatmapCodec::Udp),
            ] {
                let (found, _) = codec.decode(&map, grid, 11);
                let expected = numbers(&case[name]);
                assert!(
                    (0..2).all(|i| (found[i] - expected[i]).abs() < 2e-3),
                    "{name}: {found:?} {expected:?}"
                );
            }
        }
        for case in golden["targets"].as_array().unwrap() {
            let point = [case["x"].as_f64().unwrap(), case["y"].as_f64().unwrap()];
            for (name, codec) in [
                ("msra", HeatmapCodec::Msra),
                ("dark", HeatmapCodec::Dark),
                ("udp", HeatmapCodec::Udp),
            ] {
                let found = codec.encode(point, grid, 2.0);
                let expected = case[name].as_array();
                assert_eq!(found.is_some(), expected.is_some(), "{name} {point:?}");
                for (a, b) in found.iter().flatten().zip(expected.into_iter().flatten()) {
                    assert!(
                        (f64::from(*a) - b.as_f64().unwrap()).abs() < 1e-6,
                        "{name} {point:?}"
                    );
                }
            }
        }
    }
}
