//! Poses of people in boxes of images, and pictures of them.

use clasp_data::augment::warp;
use clasp_data::image::Rgb;
use clasp_data::layouts::sides::twins;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::heatmaps::HeatmapCodec;
use super::{PoseTask, region};
use crate::TaskError;
use crate::drawing;
use crate::task::model::{check_finite, values};
use crate::task::{FinetunedModel, Predictor};

/// Joints below this heatmap value do not count in the score of a pose.
pub(super) const CONFIDENT: f64 = 0.2;

/// The pose of a person in an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoseEstimate {
    /// x, y of each joint in pixels.
    pub points: Vec<[f64; 2]>,
    /// Heatmap value of each joint.
    pub confidences: Vec<f64>,
    /// Mean of the confident joints.
    pub score: f64,
    /// Area of the region in pixels.
    pub area: f64,
}

/// What a picture says in which no joint is drawn.
fn nothing() -> String {
    format!("no joint above {CONFIDENT}")
}

impl PoseTask {
    /// Draws the confident joints of a pose and the lines between them; returns their number.
    fn draw_skeleton(&self, picture: &mut Rgb, prediction: &Value) -> usize {
        let joint = |index: usize| {
            let joint = &prediction["joints"][index];
            let number = |name: &str| joint[name].as_f64().unwrap_or(0.0);
            ([number("x"), number("y")], number("confidence"))
        };
        let thick = drawing::stroke(picture);
        for (index, [a, b]) in self.skeleton.iter().enumerate() {
            let ((from, first), (to, second)) = (joint(*a), joint(*b));
            if first.min(second) > CONFIDENT {
                drawing::line(picture, from, to, thick, drawing::color(index));
            }
        }
        let confident = { 0..self.joints.len() }
            .map(joint)
            .filter(|(_, confidence)| *confidence > CONFIDENT);
        let mut drawn = 0;
        for (point, _) in confident {
            drawing::dot(picture, point, 2 * thick + 1, [255; 3]);
            drawn += 1;
        }
        drawn
    }

    /// The poses of people in regions (x, y, width, height) of images. `first` is the position of
    /// the first region, for errors.
    pub(super) fn estimate(
        &self,
        model: &FinetunedModel<Self>,
        views: &[(&Rgb, [f64; 4])],
        first: usize,
    ) -> Result<Vec<PoseEstimate>, TaskError> {
        let (preprocess, config) = (&model.preprocess, &self.config);
        let (height, width) = (preprocess.height, preprocess.width);
        let inputs: Vec<Rgb> = { views.iter() }
            .map(|(image, region)| {
                let forward = config.codec.input_from_image(*region, height, width, 0.0);
                warp(
                    image,
                    &forward.inverse(),
                    height,
                    width,
                    preprocess.mean_color(),
                )
            })
            .collect();
        let heatmaps = |images: &mut dyn Iterator<Item = Rgb>| -> Result<Vec<f32>, TaskError> {
            let pixels = images
                .flat_map(|image| preprocess.normalize(&image))
                .collect();
            let features = model.features(pixels, [views.len(), height, width]);
            let maps = model.head.forward(features.map, None);
            values(maps)
        };
        let mut maps = heatmaps(&mut inputs.iter().cloned())?;
        let (grid, joints) = (Self::grid(preprocess), self.joints.len());
        let area = grid.rows * grid.columns;
        if config.flip_test {
            let other = heatmaps(&mut inputs.iter().map(clasp_data::image::flip))?;
            let shift = usize::from(config.shift_heatmap && config.codec != HeatmapCodec::Udp);
            let twin = twins(&self.flip_pairs, joints);
            for (index, value) in maps.iter_mut().enumerate() {
                let (map, at) = (index / area, index % area);
                let (row, column) = (at / grid.columns, at % grid.columns);
                // out[1:] = out[:-1]: the first column stays.
                let source = if column == 0 { 0 } else { column - shift };
                let flipped = grid.columns - 1 - source;
                let from = map / joints * joints + twin[map % joints];
                *value = (*value + other[from * area + row * grid.columns + flipped]) / 2.0;
            }
        }
        check_finite(&maps, joints * area, first)?;
        let people = maps.chunks_exact(joints * area).zip(views);
        let person = |(maps, (_, region)): (&[f32], &(&Rgb, [f64; 4]))| {
            let (mut points, mut confidences) = (Vec::new(), Vec::new());
            for map in maps.chunks_exact(area) {
                let (point, value) = config.codec.decode(map, grid, config.blur_kernel);
                points.push(config.codec.in_image(point, *region, grid));
                confidences.push(f64::from(value));
            }
            let confident: Vec<f64> = { confidences.iter() }
                .copied()
                .filter(|value| *value > CONFIDENT)
                .collect();
            let score = confident.iter().sum::<f64>() / confident.len().max(1) as f64;
            PoseEstimate {
                points,
                confidences,
                score,
                area: region[2] * region[3],
            }
        };
        Ok(people.map(person).collect())
    }
}

impl Predictor for PoseTask {
    const CROP_MARGIN: f64 = 1.25;

    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let whole = [0.0, 0.0, image.width as f64, image.height as f64];
        let region = region(whole, Self::aspect(&model.preprocess), 1.0);
        let found = self.estimate(model, &[(image, region)], 0)?;
        let joints: Vec<Value> = { found.iter() }
            .flat_map(|pose| {
                let joints = self.joints.iter().zip(&pose.points).zip(&pose.confidences);
                joints.map(
                    |((name, p), c)| json!({"joint": name, "x": p[0], "y": p[1], "confidence": c}),
                )
            })
            .collect();
        Ok(json!({"joints": joints, "score": found.first().map_or(0.0, |pose| pose.score)}))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        let mut drawn = image.clone();
        match self.draw_skeleton(&mut drawn, prediction) {
            0 => drawing::beside(&drawn, &[nothing()]),
            _ => drawn,
        }
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        if self.draw_skeleton(photo, prediction) == 0 {
            let bbox = crop.map(|side| side as f64);
            drawing::draw_box(photo, bbox, &nothing(), drawing::color(0));
        }
    }

    fn in_photo(&self, mut prediction: Value, at: [f64; 2]) -> Value {
        for joint in prediction["joints"].as_array_mut().into_iter().flatten() {
            for (axis, start) in ["x", "y"].into_iter().zip(at) {
                joint[axis] = json!(joint[axis].as_f64().unwrap_or(0.0) + start);
            }
        }
        prediction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pose_without_a_confident_joint_is_named_in_the_picture() {
        let task = PoseTask {
            config: super::super::PoseConfig::default(),
            joints: vec!["head".to_owned(), "foot".to_owned()],
            skeleton: vec![[0, 1]],
            flip_pairs: Vec::new(),
            sigmas: None,
        };
        let pose = |confidence: f64| {
            let joint = |y: f64| json!({"x": 8.0, "y": y, "confidence": confidence});
            json!({"joints": [joint(4.0), joint(28.0)]})
        };
        let image = Rgb::filled(64, 96, [90; 3]);
        // Clear joints are drawn over the image, and nothing is written.
        let clear = task.draw(&image, &pose(0.9));
        assert_eq!(clear.width, image.width);
        assert_eq!(clear.pixel(8, 4), [255; 3]);
        // Else a line of text stands beside it, and in a photo a box around the person.
        let unsure = task.draw(&image, &pose(0.1));
        assert!(unsure.width > image.width);
        assert_eq!(unsure.pixel(8, 4), [90; 3]);
        let mut photo = image.clone();
        task.draw_person(&mut photo, [10, 30, 40, 50], &pose(0.1));
        assert_ne!(photo.pixel(10, 79), [90; 3]);
        assert_eq!(photo.pixel(5, 5), [90; 3]);
    }
}
