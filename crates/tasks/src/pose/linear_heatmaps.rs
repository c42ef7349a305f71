//! Inputs, targets and decoding of the linear heatmaps of [`super::probe`].

use clasp_data::image::Rgb;
use clasp_data::layouts::coco::KeypointAnnotation;
use serde::{Deserialize, Serialize};

/// Standard deviation of the target around a joint, in positions of the grid.
pub(super) const SIGMA: f64 = 1.0;

/// Factor by which a box is enlarged, as in the published top-down protocol.
pub(super) const PADDING: f64 = 1.25;

/// Most pixels of an enlarged box.
pub(super) const MAX_REGION: f64 = 1e8;

/// How a heatmap is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeatmapDecoder {
    /// The largest logit, moved to the maximum of the parabola through it and its neighbors along
    /// each axis.
    Peak,
    /// The mean of the softmax over positions.
    Mean,
}

/// A person and the region of the image that is the input.
pub(super) struct ProbedPerson<'a> {
    pub person: &'a KeypointAnnotation,
    /// x, y, width, height in whole pixels; may extend beyond the image.
    pub region: [i64; 4],
}

/// The box, clipped to the image as COCO's protocol does, enlarged to the aspect (width / height)
/// and by [`PADDING`].
pub(super) fn region(bbox: [f64; 4], image: [usize; 2], aspect: f64) -> Option<[i64; 4]> {
    let (left, top) = (bbox[0].max(0.0), bbox[1].max(0.0));
    let (right, bottom) = (
        (bbox[0] + bbox[2]).min(image[1] as f64),
        (bbox[1] + bbox[3]).min(image[0] as f64),
    );
    let (width, height) = (right - left, bottom - top);
    if !(width > 0.0 && height > 0.0) {
        return None;
    }
    let (x, y) = (left + width / 2.0, top + height / 2.0);
    let (width, height) = (
        width.max(height * aspect) * PADDING,
        height.max(width / aspect) * PADDING,
    );
    if width * height > MAX_REGION {
        return None;
    }
    let whole = |value: f64| value.round() as i64;
    Some([
        whole(x - width / 2.0),
        whole(y - height / 2.0),
        whole(width).max(1),
        whole(height).max(1),
    ])
}

/// A region of an image, padded with the mean color.
pub(super) fn padded_crop(image: &Rgb, [x, y, width, height]: [i64; 4], mean: [f32; 3]) -> Rgb {
    let color = mean.map(|m| (m * 255.0).round() as u8);
    let mut crop = Rgb::filled(width as usize, height as usize, color);
    let (from, to) = (
        x.clamp(0, image.width as i64),
        (x + width).clamp(0, image.width as i64),
    );
    for row in y.max(0)..(y + height).min(image.height as i64) {
        let source = &image.row(row as usize)[3 * from as usize..3 * to.max(from) as usize];
        let start = 3 * ((row - y) as usize * width as usize + (from - x).max(0) as usize);
        if !source.is_empty() {
            crop.pixels[start..start + source.len()].copy_from_slice(source);
        }
    }
    crop
}

/// A joint in positions of the grid, the center of the first at 0.
pub(super) fn on_grid(
    joint: &[f64; 3],
    [x, y, width, height]: [i64; 4],
    grid: [usize; 2],
) -> [f64; 2] {
    let place = |value: f64, start: i64, length: i64, positions: usize| {
        (value - start as f64) / length as f64 * positions as f64 - 0.5
    };
    [
        place(joint[0], x, width, grid[1]),
        place(joint[1], y, height, grid[0]),
    ]
}

/// Targets `[positions, joints]`: for each labeled joint a Gaussian that sums to 1, zeros for the
/// others.
pub(super) fn heatmaps(subject: &ProbedPerson, grid: [usize; 2]) -> Vec<f32> {
    let joints = subject.person.keypoints.len();
    let mut targets = vec![0.0; grid[0] * grid[1] * joints];
    for (j, joint) in subject
        .person
        .keypoints
        .iter()
        .enumerate()
        .filter(|(_, joint)| joint[2] > 0.0)
    {
        let [x, y] = on_grid(joint, subject.region, grid);
        let inside = |place: f64, positions: usize| {
            place > -0.5 - SIGMA && place < positions as f64 - 0.5 + SIGMA
        };
        if !inside(x, grid[1]) || !inside(y, grid[0]) {
            continue;
        }
        let weight = |i: usize| {
            let (dx, dy) = ((i % grid[1]) as f64 - x, (i / grid[1]) as f64 - y);
            (-(dx * dx + dy * dy) / (2.0 * SIGMA * SIGMA)).exp()
        };
        let sum: f64 = (0..grid[0] * grid[1]).map(weight).sum();
        for i in 0..grid[0] * grid[1] {
            targets[i * joints + j] = (weight(i) / sum) as f32;
        }
    }
    targets
}

/// A pose on the grid, or, once placed, in the image.
pub(super) struct DecodedPose {
    /// x, y of each joint.
    pub points: Vec<[f64; 2]>,
    /// Confidence in the pose.
    pub score: f64,
}

impl DecodedPose {
    /// From the grid to the image.
    pub fn placed(&self, [x, y, width, height]: [i64; 4], grid: [usize; 2]) -> Self {
        let place = |value: f64, start: i64, length: i64, positions: usize| {
            start as f64 + (value + 0.5) / positions as f64 * length as f64
        };
        let point = |p: &[f64; 2]| {
            [
                place(p[0], x, width, grid[1]),
                place(p[1], y, height, grid[0]),
            ]
        };
        Self {
            points: self.points.iter().map(point).collect(),
            score: self.score,
        }
    }
}

/// The points of heatmap logits `[positions, joints]`.
pub(super) fn decode(
    logits: &[f32],
    grid: [usize; 2],
    joints: usize,
    decoder: HeatmapDecoder,
) -> DecodedPose {
    let (mut points, mut score) = (Vec::with_capacity(joints), 0.0);
    for j in 0..joints {
        let logit =
            |row: usize, column: usize| f64::from(logits[(row * grid[1] + column) * joints + j]);
        let places = || (0..grid[0]).flat_map(|row| (0..grid[1]).map(move |column| (row, column)));
        let mut best = (0, 0);
        for place in places() {
            if logit(place.0, place.1) > logit(best.0, best.1) {
                best = place;
            }
        }
        let largest = logit(best.0, best.1);
        let (mut sum, mut mean) = (0.0, [0.0; 2]);
        for (row, column) in places() {
            let weight = (logit(row, column) - largest).exp();
            sum += weight;
            mean[0] += weight * column as f64;
            mean[1] += weight * row as f64;
        }
        score += 1.0 / (sum * joints as f64);
        points.push(match decoder {
            HeatmapDecoder::Mean => mean.map(|m| m / sum),
            HeatmapDecoder::Peak => [
                best.1 as f64 + parabola_offset(best.1, grid[1], |column| logit(best.0, column)),
                best.0 as f64 + parabola_offset(best.0, grid[0], |row| logit(row, best.1)),
            ],
        });
    }
    DecodedPose { points, score }
}

/// The offset from `place` at which the parabola through three neighboring logits is highest: exact
/// for a Gaussian, whose logarithm is a parabola. 0 at the border.
pub(super) fn parabola_offset(place: usize, positions: usize, logit: impl Fn(usize) -> f64) -> f64 {
    if place == 0 || place + 1 == positions {
        return 0.0;
    }
    let (before, at, after) = (logit(place - 1), logit(place), logit(place + 1));
    let bend = 2.0 * at - before - after;
    if bend > 0.0 {
        ((after - before) / (2.0 * bend)).clamp(-0.5, 0.5)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_keep_the_aspect_and_stay_finite() {
        // A box of 10 x 10 in the middle: the height becomes 20 for aspect 1/2, and both grow by a
        // quarter.
        assert_eq!(
            region([45.0, 45.0, 10.0, 10.0], [100, 100], 0.5),
            Some([44, 38, 13, 25])
        );
        assert_eq!(region([200.0, 0.0, 10.0, 10.0], [100, 100], 0.5), None);
        assert_eq!(
            region([0.0, 0.0, 1e300, 1e300], [60_000, 60_000], 0.5),
            None
        );
    }

    #[test]
    fn crops_are_padded_with_the_mean_color() {
        let image = Rgb::new(2, 2, (0..12).collect());
        let crop = padded_crop(&image, [-1, 1, 4, 2], [1.0, 0.0, 1.0]);
        let gray = [255, 0, 255];
        let expected = [gray, [6, 7, 8], [9, 10, 11], gray, gray, gray, gray, gray].concat();
        assert_eq!(crop, Rgb::new(4, 2, expected));
        assert_eq!(
            padded_crop(&image, [5, 5, 1, 1], [1.0, 0.0, 1.0]).pixels,
            gray
        );
    }

    #[test]
    fn a_gaussian_is_decoded_exactly() {
        let person = KeypointAnnotation {
            id: 1,
            image: 0,
            bbox: [0.0; 4],
            area: 1.0,
            crowd: false,
            keypoints: vec![[37.0, 90.0, 2.0], [0.0, 0.0, 0.0]],
        };
        let subject = ProbedPerson {
            person: &person,
            region: [0, 0, 100, 200],
        };
        let targets = heatmaps(&subject, [20, 10]);
        assert!((targets.iter().step_by(2).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(targets.iter().skip(1).step_by(2).all(|t| *t == 0.0));
        let logits: Vec<f32> = targets.iter().map(|t| t.max(1e-30).ln()).collect();
        for decoder in [HeatmapDecoder::Peak, HeatmapDecoder::Mean] {
            let [x, y] = decode(&logits, [20, 10], 2, decoder)
                .placed(subject.region, [20, 10])
                .points[0];
            assert!(
                (x - 37.0).abs() < 0.1 && (y - 90.0).abs() < 0.1,
                "{decoder:?}: {x} {y}"
            );
        }
    }
}
