//! Scenes as inputs of pedestrian detection and person search: scaled, cropped, augmented, padded.

use std::path::Path;

use clasp_data::Rng as DataRng;
use clasp_data::image::{Filter, Rgb, crop, flip, resize};
use clasp_metrics::detection::{SoftNmsDecay, nms, soft_nms};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::drawing::paste;
use crate::features::{Preprocess, read_image, read_sized};
use crate::task::Example;
use crate::task::check::{self, setting};

/// Scenes are padded to multiples of this, so that every stage divides them.
pub const MULTIPLE: usize = 32;

/// A person with a smaller fraction of the box inside a crop is ignored: neither a positive nor a
/// negative.
const LEAST_INSIDE: f64 = 0.5;

/// Most pixels of a scene that is one input.
const MOST_PIXELS: f64 = 32e6;

/// A person of a smaller height in pixels is ignored as well.
const LOWEST: f64 = 10.0;

/// `[task.scenes]`: how scenes are scaled and augmented, and which boxes are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SceneConfig {
    /// Smallest and largest scale of a scene in training; a crop of the input size is cut out of
    /// it.
    pub scale: [f64; 2],
    /// Smallest and largest brightness factor in training.
    pub brightness: [f64; 2],
    /// Probability of a brightness change.
    pub brightness_probability: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Scale of test scenes.
    pub test_scale: f64,
    /// Resize whole scenes in training and testing so that the shorter side has the first length,
    /// the longer one at most the second; 0 and 0 for crops of scaled scenes in training, and
    /// `test_scale`.
    pub resize: [usize; 2],
    /// Boxes below this score are dropped.
    pub score_threshold: f64,
    /// IoU with a box of a higher score above which a box is dropped.
    pub nms_threshold: f64,
    /// σ of soft NMS (0.5 in its paper): scores of overlapping boxes are multiplied by
    /// exp(-IoU²/σ); 0 for hard NMS.
    pub soft_nms_sigma: f64,
    /// Most boxes of a scene.
    pub max_boxes: usize,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            scale: [0.4, 1.5],
            brightness: [0.5, 2.0],
            brightness_probability: 0.5,
            flip: 0.5,
            test_scale: 1.0,
            resize: [0, 0],
            score_threshold: 0.01,
            nms_threshold: 0.5,
            soft_nms_sigma: 0.0,
            max_boxes: 100,
        }
    }
}

impl SceneConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), TaskError> {
        check::range("task.scenes.scale", self.scale, [0.05, 10.0])?;
        check::range("task.scenes.brightness", self.brightness, [0.0, 100.0])?;
        check::within(&[("task.scenes.test_scale", self.test_scale)], [0.05, 10.0])?;
        if self.resize != [0, 0] {
            let [shorter, longer] = self.resize.map(|side| side as f64);
            check::range("task.scenes.resize", [shorter, longer], [32.0, 8192.0])?;
        }
        let shares = [
            ("task.scenes.flip", self.flip),
            (
                "task.scenes.brightness_probability",
                self.brightness_probability,
            ),
            ("task.scenes.score_threshold", self.score_threshold),
            ("task.scenes.nms_threshold", self.nms_threshold),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(
            &[("task.scenes.soft_nms_sigma", self.soft_nms_sigma)],
            [0.0, 100.0],
        )?;
        Ok(check::count(
            "task.scenes.max_boxes",
            self.max_boxes,
            [1, 100_000],
        )?)
    }

    /// The scale factor of a test scene of that height and width.
    fn scale_of(&self, [height, width]: [usize; 2]) -> f64 {
        match self.resize {
            [0, _] => self.test_scale,
            [shorter, longer] => {
                let of = |wanted: usize, side: usize| wanted as f64 / side.max(1) as f64;
                of(shorter, height.min(width)).min(of(longer, height.max(width)))
            }
        }
    }

    /// The size of whole scenes, in words.
    pub fn scaling(&self) -> String {
        match self.resize {
            [0, _] => format!("at scale {}", self.test_scale),
            [shorter, longer] => format!(
                "with a shorter side of {shorter} and a longer one of at most {longer} pixels"
            ),
        }
    }

    /// Indices of the boxes (x, y, width, height) that NMS keeps, best first, each with its score,
    /// which soft NMS lowers.
    pub fn suppress(&self, boxes: &[[f64; 4]], scores: &[f64]) -> Vec<(usize, f64)> {
        if self.soft_nms_sigma > 0.0 {
            let sigma = self.soft_nms_sigma;
            return soft_nms(
                boxes,
                scores,
                SoftNmsDecay::Gaussian { sigma },
                self.score_threshold,
            );
        }
        let kept = nms(boxes, scores, self.nms_threshold);
        kept.into_iter()
            .map(|index| (index, scores[index]))
            .collect()
    }

    /// The kind of NMS, in words.
    pub fn suppression(&self) -> String {
        if self.soft_nms_sigma > 0.0 {
            format!("soft NMS of σ {}", self.soft_nms_sigma)
        } else {
            format!("hard NMS above IoU {}", self.nms_threshold)
        }
    }
}

/// A labeled person in a scene or a crop of one.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenePerson {
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Neither a positive nor a negative: boxes there are not counted.
    pub ignored: bool,
    /// The class of the identity; none for an unknown person.
    pub identity: Option<usize>,
}

/// The ground truth of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneTarget {
    /// The people.
    pub people: Vec<ScenePerson>,
    /// Height and width of the scene in the input, at its top left.
    pub size: [usize; 2],
    /// Height and width of the input.
    pub input: [usize; 2],
}

/// Height and width of a batch, in which smaller inputs are padded.
pub fn batch_size(batch: &[SceneTarget]) -> [usize; 2] {
    let most = |axis: usize| batch.iter().map(|target| target.input[axis]).max();
    [0, 1].map(|axis| most(axis).unwrap_or(0))
}

/// A whole scene as an input, scaled and padded.
pub struct SceneInput {
    /// Normalized, `[3, padded height, padded width]`.
    pub pixels: Vec<f32>,
    /// Height and width with the padding.
    pub padded: [usize; 2],
    /// Height and width of the scene in it.
    pub size: [usize; 2],
    /// Pixels of the input per pixel of the scene, along x and y.
    pub scale: [f64; 2],
}

impl SceneInput {
    /// The input of a test scene.
    ///
    /// # Errors
    /// It would have more than 32 million pixels.
    pub fn new(
        image: &Rgb,
        config: &SceneConfig,
        preprocess: &Preprocess,
    ) -> Result<Self, TaskError> {
        let scale = config.scale_of([image.height, image.width]);
        let size = scaled_size(image, scale);
        let padded = size.map(|side| side.next_multiple_of(MULTIPLE));
        // Of a scene of one row nearly all is padding.
        if padded[0] as f64 * padded[1] as f64 > MOST_PIXELS {
            let expected = format!(
                "a scale at which a scene of {} x {} (height x width) has at most {:.0} million pixels, sides padded to multiples of {MULTIPLE}; or scenes.resize, such as [900,1500]",
                image.height,
                image.width,
                MOST_PIXELS / 1e6
            );
            return Err(setting("scenes.test_scale", &expected, scale));
        }
        let scene = scaled(image, scale);
        let mut input = Rgb::filled(padded[1], padded[0], preprocess.mean_color());
        paste(&mut input, &scene, 0, 0);
        Ok(Self {
            pixels: preprocess.normalize(&input),
            padded,
            size,
            scale: [
                size[1] as f64 / image.width as f64,
                size[0] as f64 / image.height as f64,
            ],
        })
    }
}

/// Height and width of an image at a scale.
fn scaled_size(image: &Rgb, scale: f64) -> [usize; 2] {
    [image.height, image.width].map(|side| ((side as f64 * scale).round() as usize).max(1))
}

/// An image of `scale` times the height and width.
fn scaled(image: &Rgb, scale: f64) -> Rgb {
    let [height, width] = scaled_size(image, scale);
    if [height, width] == [image.height, image.width] {
        image.clone()
    } else {
        resize(image, height, width, Filter::Bilinear)
    }
}

/// Reads the scene of a file, checking height and width where they are known.
///
/// # Errors
/// It cannot be read, or has another size.
pub fn read(path: &Path, size: Option<[usize; 2]>) -> Result<Rgb, TaskError> {
    match size {
        Some(size) => read_sized(path, size),
        None => read_image(path),
    }
}

/// A training input of a scene: a crop, or the whole scene.
pub fn example(
    scene: &Rgb,
    key: &Path,
    people: &[ScenePerson],
    config: &SceneConfig,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> Example<SceneTarget> {
    let (view, people, size) = if config.resize == [0, 0] {
        let (view, people) = random_crop(scene, people, config, preprocess, rng);
        let size = [view.height, view.width];
        (view, people, size)
    } else {
        whole_scene(scene, people, config, preprocess, rng)
    };
    let input = [view.height, view.width];
    Example {
        pixels: preprocess.normalize(&view),
        size: input,
        target: SceneTarget {
            people,
            size,
            input,
        },
        key: key.display().to_string(),
    }
}

/// The scene scaled as in testing, augmented, padded; its people, and its height and width without
/// the padding.
fn whole_scene(
    image: &Rgb,
    people: &[ScenePerson],
    config: &SceneConfig,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> (Rgb, Vec<ScenePerson>, [usize; 2]) {
    let scale = config.scale_of([image.height, image.width]);
    let (scene, boxes) = augmented(image, people, scale, config, rng);
    let size = [scene.height, scene.width];
    let [height, width] = size.map(|side| side.next_multiple_of(MULTIPLE));
    let mut seen = Rgb::filled(width, height, preprocess.mean_color());
    paste(&mut seen, &scene, 0, 0);
    let shown = { people.iter().zip(boxes) }
        .map(|(one, bbox)| ScenePerson {
            bbox,
            ignored: one.ignored || bbox[3] < LOWEST,
            identity: one.identity,
        })
        .collect();
    (seen, shown, size)
}

/// A crop of the input size from the scaled and augmented scene that contains the center of a
/// person, if there is one; padded with the mean color.
fn random_crop(
    image: &Rgb,
    people: &[ScenePerson],
    config: &SceneConfig,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> (Rgb, Vec<ScenePerson>) {
    let scale = rng.random_range(config.scale[0]..=config.scale[1]);
    let (scene, boxes) = augmented(image, people, scale, config, rng);
    let (height, width) = (preprocess.height, preprocess.width);
    let wanted: Vec<usize> = (0..people.len()).filter(|i| !people[*i].ignored).collect();
    let start = |length: usize, size: usize, middle: Option<f64>, rng: &mut DataRng| -> i64 {
        if length <= size {
            // Smaller than the crop: anywhere in it.
            return -(rng.random_range(0..=size - length) as i64);
        }
        let most = (length - size) as i64;
        match middle {
            // The center of the person is anywhere in the crop.
            Some(middle) => (middle as i64 - rng.random_range(0..size) as i64).clamp(0, most),
            None => rng.random_range(0..=most),
        }
    };
    let about = (!wanted.is_empty()).then(|| boxes[wanted[rng.random_range(0..wanted.len())]]);
    let top = start(scene.height, height, about.map(|b| b[1] + b[3] / 2.0), rng);
    let left = start(scene.width, width, about.map(|b| b[0] + b[2] / 2.0), rng);
    let mut seen = Rgb::filled(width, height, preprocess.mean_color());
    let (x, y) = (left.max(0) as usize, top.max(0) as usize);
    let piece = [
        x,
        y,
        width.min(scene.width - x),
        height.min(scene.height - y),
    ];
    paste(
        &mut seen,
        &crop(&scene, piece),
        (-left).max(0) as usize,
        (-top).max(0) as usize,
    );
    let mut shown = Vec::new();
    for (one, [x, y, w, h]) in people.iter().zip(boxes) {
        let (x, y) = (x - left as f64, y - top as f64);
        let inside = |start: f64, length: f64, size: usize| {
            ((start + length).min(size as f64) - start.max(0.0)).max(0.0)
        };
        let share = inside(x, w, width) * inside(y, h, height) / (w * h).max(1e-9);
        if share > 0.0 {
            shown.push(ScenePerson {
                bbox: [x, y, w, h],
                ignored: one.ignored || share < LEAST_INSIDE || h < LOWEST,
                identity: one.identity,
            });
        }
    }
    (seen, shown)
}

/// A scene scaled, but to no more than [`MOST_PIXELS`], and flipped and brightened at random, with
/// the boxes of its people.
fn augmented(
    image: &Rgb,
    people: &[ScenePerson],
    scale: f64,
    config: &SceneConfig,
    rng: &mut DataRng,
) -> (Rgb, Vec<[f64; 4]>) {
    let area = (image.height * image.width).max(1) as f64;
    let scale = scale.min((MOST_PIXELS / area).sqrt());
    let mut scene = scaled(image, scale);
    let flipped = rng.random_bool(config.flip);
    if flipped {
        scene = flip(&scene);
    }
    let brighter = rng.random_bool(config.brightness_probability);
    let [low, high] = config.brightness;
    let brightness = rng.random_range(low..=high);
    if brighter {
        for pixel in scene.pixels.chunks_exact_mut(3) {
            // At most until the brightest channel is 255, which keeps the hue (the V of HSV).
            let most = pixel.iter().copied().max().unwrap_or(0).max(1);
            let factor = brightness.min(255.0 / f64::from(most));
            for value in pixel {
                *value = (f64::from(*value) * factor).round() as u8;
            }
        }
    }
    let placed = |one: &ScenePerson| {
        let [x, y, w, h] = one.bbox.map(|v| v * scale);
        let x = if flipped {
            scene.width as f64 - x - w
        } else {
            x
        };
        [x, y, w, h]
    };
    let boxes = people.iter().map(placed).collect();
    (scene, boxes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clasp_data::rng_for;

    pub fn person(bbox: [f64; 4]) -> ScenePerson {
        ScenePerson {
            bbox,
            ignored: false,
            identity: None,
        }
    }

    #[test]
    fn soft_nms_lowers_scores_that_hard_nms_drops() {
        let boxes = [
            [0.0, 0.0, 10.0, 20.0],
            [1.0, 0.0, 10.0, 20.0],
            [50.0, 0.0, 10.0, 20.0],
        ];
        let scores = [0.9, 0.8, 0.7];
        let hard = SceneConfig::default();
        assert_eq!(hard.suppress(&boxes, &scores), [(0, 0.9), (2, 0.7)]);
        let soft = SceneConfig {
            soft_nms_sigma: 0.5,
            ..hard
        };
        let overlap: f64 = 9.0 / 11.0;
        let lowered = 0.8 * (-overlap * overlap / 0.5).exp();
        assert_eq!(
            soft.suppress(&boxes, &scores),
            [(0, 0.9), (2, 0.7), (1, lowered)]
        );
    }

    #[test]
    fn whole_scenes_are_resized_and_huge_ones_are_errors() {
        let preprocess = Preprocess::imagenet(64, 64);
        let config = SceneConfig {
            resize: [90, 150],
            ..SceneConfig::default()
        };
        // By the shorter side, and by the longer one where that would be too long.
        for (scene, shown, padded) in [
            ([120, 160], [90, 120], [96, 128]),
            ([100, 400], [38, 150], [64, 160]),
        ] {
            let image = Rgb::filled(scene[1], scene[0], [9; 3]);
            let input = SceneInput::new(&image, &config, &preprocess).unwrap();
            assert_eq!((input.size, input.padded), (shown, padded));
            let mut rng = rng_for(0, 0, "whole");
            let people = [person([10.0, 20.0, 30.0, 60.0])];
            let (seen, people, size) = whole_scene(&image, &people, &config, &preprocess, &mut rng);
            assert_eq!(([seen.height, seen.width], size), (padded, shown));
            let scale = shown[0] as f64 / scene[0] as f64;
            assert!((people[0].bbox[3] - 60.0 * scale).abs() < 0.5, "{people:?}");
        }
        let huge = Rgb::filled(8000, 5000, [9; 3]);
        assert!(SceneInput::new(&huge, &config, &preprocess).is_ok());
        let error = SceneInput::new(&huge, &SceneConfig::default(), &preprocess)
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.contains("5000 x 8000") && text.contains("scenes.resize"),
            "{text}"
        );
    }

    #[test]
    fn crops_move_boxes_with_the_pixels() {
        // The red rectangle of the scene is a person; the box in the crop must cover the red
        // pixels.
        let mut image = Rgb::filled(200, 150, [0, 0, 90]);
        for y in 40..100 {
            for x in 120..150 {
                let at = 3 * (y * 200 + x);
                image.pixels[at..at + 3].copy_from_slice(&[200, 0, 0]);
            }
        }
        let people = [person([120.0, 40.0, 30.0, 60.0])];
        let preprocess = Preprocess::imagenet(96, 128);
        for seed in 0..40 {
            let mut rng = rng_for(seed, 0, "view");
            let (seen, shown) = random_crop(
                &image,
                &people,
                &SceneConfig::default(),
                &preprocess,
                &mut rng,
            );
            assert_eq!((seen.height, seen.width), (96, 128));
            let [x, y, w, h] = shown[0].bbox;
            let reds =
                (0..96 * 128).filter(|i| seen.pixels[3 * i] > 90 && seen.pixels[3 * i + 2] < 45);
            for pixel in reds {
                let (px, py) = ((pixel % 128) as f64, (pixel / 128) as f64);
                let inside = px > x - 2.0 && px < x + w + 2.0 && py > y - 2.0 && py < y + h + 2.0;
                assert!(inside, "seed {seed}: {px} {py} {:?}", shown[0].bbox);
            }
        }
    }
}
