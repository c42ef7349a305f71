//! Label maps of images: flipped and at several scales, mapped back to the image.

use burn::tensor::{Tensor, TensorData};
use clasp_data::augment::{warp, warp_labels};
use clasp_data::font;
use clasp_data::image::Rgb;
use clasp_data::layouts::parsing::LabelMap;
use clasp_model::heads::blocks::resize_bilinear;
use serde_json::{Value, json};

use super::ParsingTask;
use super::data::input_from_image;
use crate::TaskError;
use crate::drawing;
use crate::task::check::setting;
use crate::task::model::{check_finite, values};
use crate::task::{FinetunedModel, Predictor};

impl ParsingTask {
    /// Logits of an image at the size of the input: `[classes, height, width]`, row-major, the mean
    /// over scales and, if configured, the flipped image.
    fn logits(&self, model: &FinetunedModel<Self>, input: &Rgb) -> Result<Vec<f32>, TaskError> {
        let (height, width) = (input.height, input.width);
        let pixels = TensorData::new(model.preprocess.normalize(input), [1, 3, height, width]);
        let image = Tensor::<4>::from_data(pixels, &model.device);
        let one = |image: Tensor<4>| {
            let features = model.features_of(image);
            model.head.forward(&features.pyramid, None).logits
        };
        let mut sum: Option<Tensor<4>> = None;
        for scale in &self.config.test_scales {
            let side = |length: usize| ((length as f64 * scale).round() as usize).max(1);
            let scaled = resize_bilinear(image.clone(), [side(height), side(width)], true);
            let mut logits = one(scaled.clone());
            if self.config.flip_test {
                let order: Vec<i32> = self.flipped.iter().map(|c| i32::from(*c)).collect();
                let order = Tensor::from_data(TensorData::from(order.as_slice()), &model.device);
                let other = one(scaled.flip([3])).flip([3]).select(1, order);
                logits = (logits + other) / 2.0;
            }
            let logits = resize_bilinear(logits, [height, width], true);
            sum = Some(match sum {
                Some(sum) => sum + logits,
                None => logits,
            });
        }
        let sum = sum.ok_or_else(|| setting("task.test_scales", "at least one scale", "none"))?;
        values(sum)
    }

    /// The label map of an image, at its size. `index` is its position, for errors.
    pub(super) fn parse(
        &self,
        model: &FinetunedModel<Self>,
        image: &Rgb,
        index: usize,
    ) -> Result<LabelMap, TaskError> {
        let (height, width) = (model.preprocess.height, model.preprocess.width);
        let size = [image.height, image.width];
        let forward = input_from_image(size, [height, width], 1.0, 0.0);
        let input = warp(image, &forward.inverse(), height, width, [0; 3]);
        let logits = self.logits(model, &input)?;
        check_finite(&logits, logits.len(), index)?;
        let area = height * width;
        let best = |value: &dyn Fn(usize) -> f32| {
            let classes = 1..self.classes.len();
            classes.fold(0, |best, class| {
                if value(class) > value(best) {
                    class
                } else {
                    best
                }
            }) as u8
        };
        let labels = if self.config.warp_logits {
            let mut labels = Vec::with_capacity(image.height * image.width);
            for row in 0..image.height {
                for column in 0..image.width {
                    let [x, y] = forward.apply([column as f64, row as f64]);
                    let x = x.clamp(0.0, (width - 1) as f64);
                    let y = y.clamp(0.0, (height - 1) as f64);
                    let (left, top) = (x as usize, y as usize);
                    let (right, low) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
                    let (dx, dy) = ((x - left as f64) as f32, (y - top as f64) as f32);
                    labels.push(best(&|class| {
                        let at = |x: usize, y: usize| logits[class * area + y * width + x];
                        let upper = at(left, top) * (1.0 - dx) + at(right, top) * dx;
                        let lower = at(left, low) * (1.0 - dx) + at(right, low) * dx;
                        upper * (1.0 - dy) + lower * dy
                    }));
                }
            }
            labels
        } else {
            let labels: Vec<u8> = (0..area)
                .map(|at| best(&|class| logits[class * area + at]))
                .collect();
            warp_labels(
                &labels,
                [height, width],
                &forward,
                image.height,
                image.width,
                0,
            )
        };
        Ok(LabelMap {
            height: image.height,
            width: image.width,
            labels,
        })
    }
}

impl Predictor for ParsingTask {
    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let map = self.parse(model, image, 0)?;
        // Runs of [label, length] along the rows.
        let mut runs: Vec<[usize; 2]> = Vec::new();
        for label in &map.labels {
            match runs.last_mut() {
                Some([last, length]) if *last == usize::from(*label) => *length += 1,
                _ => runs.push([usize::from(*label), 1]),
            }
        }
        Ok(json!({
            "classes": self.classes,
            "height": map.height,
            "width": map.width,
            "runs": runs,
        }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        let labels = labels_of(prediction);
        let mut shares = vec![0_usize; self.classes.len()];
        for label in &labels {
            if let Some(share) = shares.get_mut(usize::from(*label)) {
                *share += 1;
            }
        }
        let tinted = drawing::tinted(image, &labels);
        let mut sheet = drawing::beside(&tinted, &[]);
        let names: Vec<(usize, &String)> = { self.classes.iter().enumerate() }
            .filter(|(class, _)| *class > 0 && shares[*class] > 0)
            .collect();
        let lines: Vec<String> = names.iter().map(|(_, name)| (*name).clone()).collect();
        if !lines.is_empty() {
            sheet = drawing::beside(&tinted, &lines);
            for (row, (class, _)) in names.iter().enumerate() {
                let top = drawing::GAP + row * font::NORMAL;
                let color = drawing::color(class - 1);
                font::fill(&mut sheet, tinted.width, top, 4, font::NORMAL - 2, color);
            }
        }
        sheet
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        let part = clasp_data::image::crop(photo, crop);
        let tinted = drawing::tinted(&part, &labels_of(prediction));
        drawing::paste(photo, &tinted, crop[0], crop[1]);
    }
}

/// The label map of a prediction, `[height, width]`.
pub fn labels_of(prediction: &Value) -> Vec<u8> {
    let runs = prediction["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let run = |run: &Value| {
        let number = |at: usize| run[at].as_u64().unwrap_or(0) as usize;
        std::iter::repeat_n(number(0) as u8, number(1))
    };
    runs.iter().flat_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_labels() {
        let value = json!({"runs": [[0, 2], [7, 1], [0, 1]]});
        assert_eq!(labels_of(&value), [0, 0, 7, 0]);
    }
}
