//! What pedestrian detection and person search share: views of scenes, targets of the CSP head (Liu et al., CVPR 2019), and
//! boxes from its answers.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use clasp_data::Rng as DataRng;
use clasp_data::image::{Filter, Rgb, crop, flip, resize};
use clasp_metrics::detection::{Decay, nms, soft_nms};
use clasp_model::heads::{DetectionHead, DetectionHeadConfig, DetectionOutput};
use clasp_model::layers::Rng;
use clasp_model::losses::DetectionTargets;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::drawing::paste;
use crate::features::{Preprocess, read_image, read_sized};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::recipe::setting;
use crate::finetune::{Example, Model, Stages, Task};
use clasp_weights::onnx::Output;

/// Pixels of the input per position of the head's grid.
pub const STRIDE: usize = 4;
/// Scenes are padded to multiples of this, so that every stage divides them.
pub const MULTIPLE: usize = 32;
/// Maps that the head takes in, from the coarsest.
const MAPS: usize = 3;
/// Best positions that are looked at before suppression.
const CANDIDATES: usize = 1000;
/// A person of whom less of the box lies in a view is neither to be found nor an error.
const LEAST_INSIDE: f64 = 0.5;
/// Most pixels of a scene that the network looks at in one piece.
const MOST_PIXELS: f64 = 32e6;
/// A person lower than this in a view, in pixels, likewise.
const LOWEST: f64 = 10.0;

/// How scenes are seen: part of `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Views {
    /// Least and largest scale of a scene in training; a view of the input's size is cut out of it.
    pub scale: [f64; 2],
    /// Least and largest brightness in training.
    pub brightness: [f64; 2],
    /// Probability of another brightness.
    pub brightness_probability: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Scale of the test.
    pub test_scale: f64,
    /// Show whole scenes in training and in the test, so large that the shorter side has the first length, but the longer one at most
    /// the second; 0 and 0 for pieces of scaled scenes in training, and `test_scale`.
    pub fit: [usize; 2],
    /// Boxes below this score are not told.
    pub score: f64,
    /// Overlap (IoU) with a better box above which a box is dropped.
    pub nms: f64,
    /// Lower the scores of overlapping boxes by exp(-IoU²/σ) with this σ instead of dropping them (soft NMS, 0.5 in its paper);
    /// 0 for dropping them.
    pub soft_sigma: f64,
    /// Most boxes of a scene.
    pub most: usize,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            scale: [0.4, 1.5],
            brightness: [0.5, 2.0],
            brightness_probability: 0.5,
            flip: 0.5,
            test_scale: 1.0,
            fit: [0, 0],
            score: 0.01,
            nms: 0.5,
            soft_sigma: 0.0,
            most: 100,
        }
    }
}

impl Views {
    /// Checks the values.
    ///
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), TaskError> {
        check::range("task.views.scale", self.scale, [0.05, 10.0])?;
        check::range("task.views.brightness", self.brightness, [0.0, 100.0])?;
        check::within(&[("task.views.test_scale", self.test_scale)], [0.05, 10.0])?;
        if self.fit != [0, 0] {
            let [shorter, longer] = self.fit.map(|side| side as f64);
            check::range("task.views.fit", [shorter, longer], [32.0, 8192.0])?;
        }
        let shares = [
            ("task.views.flip", self.flip),
            (
                "task.views.brightness_probability",
                self.brightness_probability,
            ),
            ("task.views.score", self.score),
            ("task.views.nms", self.nms),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(&[("task.views.soft_sigma", self.soft_sigma)], [0.0, 100.0])?;
        Ok(check::count("task.views.most", self.most, [1, 100_000])?)
    }

    /// How large a scene of that height and width is shown in the test, as a factor.
    fn scale_of(&self, [height, width]: [usize; 2]) -> f64 {
        match self.fit {
            [0, _] => self.test_scale,
            [shorter, longer] => {
                let of = |wanted: usize, side: usize| wanted as f64 / side.max(1) as f64;
                of(shorter, height.min(width)).min(of(longer, height.max(width)))
            }
        }
    }

    /// How large whole scenes are shown, in words.
    pub fn shown(&self) -> String {
        match self.fit {
            [0, _] => format!("at scale {}", self.test_scale),
            [shorter, longer] => format!(
                "with a shorter side of {shorter} and a longer one of at most {longer} pixels"
            ),
        }
    }

    /// The boxes to tell, best first, each with its score; those that repeat a better one are dropped or told with a lower score.
    pub fn suppress(&self, boxes: &[[f64; 4]], scores: &[f64]) -> Vec<(usize, f64)> {
        if self.soft_sigma > 0.0 {
            let sigma = self.soft_sigma;
            return soft_nms(boxes, scores, Decay::Gaussian { sigma }, self.score);
        }
        let kept = nms(boxes, scores, self.nms);
        kept.into_iter()
            .map(|index| (index, scores[index]))
            .collect()
    }

    /// How repeated boxes are told apart, in words.
    pub fn suppression(&self) -> String {
        if self.soft_sigma > 0.0 {
            format!("soft NMS of σ {}", self.soft_sigma)
        } else {
            format!("suppressed above IoU {}", self.nms)
        }
    }
}

/// Somebody in a scene or a view.
#[derive(Clone, Debug, PartialEq)]
pub struct Someone {
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Neither to be found nor an error.
    pub ignored: bool,
    /// Who it is, as a class; none for somebody unknown.
    pub person: Option<usize>,
}

/// A box that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// x, y, width, height in pixels of the scene.
    pub bbox: [f64; 4],
    /// Confidence, 0 to 1.
    pub score: f64,
    /// What stands for the person, of length 1; empty without embeddings.
    pub embedding: Vec<f32>,
}

/// Who is to be seen in an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The people.
    pub people: Vec<Someone>,
    /// Height and width of what shows the scene, at the top left of the input.
    pub size: [usize; 2],
    /// Height and width of the input.
    pub input: [usize; 2],
}

/// Height and width of a batch, whose smaller inputs are padded.
pub fn batch_size(batch: &[Target]) -> [usize; 2] {
    let most = |axis: usize| batch.iter().map(|target| target.input[axis]).max();
    [0, 1].map(|axis| most(axis).unwrap_or(0))
}

/// A whole scene as the network sees it, scaled and padded.
pub struct Input {
    /// Normalised: [3, padded height, padded width].
    pub pixels: Vec<f32>,
    /// Height and width with the padding.
    pub padded: [usize; 2],
    /// Height and width of the scene in it.
    pub size: [usize; 2],
    /// Pixels of the input per pixel of the scene, along x and y.
    pub scale: [f64; 2],
}

impl Input {
    /// A scene in the test.
    ///
    /// # Errors
    /// It would be shown with more than 32 million pixels.
    pub fn new(image: &Rgb, views: &Views, preprocess: &Preprocess) -> Result<Self, TaskError> {
        let scale = views.scale_of([image.height, image.width]);
        let (height, width) = (image.height as f64 * scale, image.width as f64 * scale);
        if height * width > MOST_PIXELS {
            let expected = format!(
                "a scale at which a scene of {} x {} (height x width) has at most {:.0} million pixels; or views.fit, such as [900,1500]",
                image.height,
                image.width,
                MOST_PIXELS / 1e6
            );
            return Err(setting("views.test_scale", &expected, scale));
        }
        let scene = scaled(image, scale);
        let size = [scene.height, scene.width];
        let padded = size.map(|side| side.next_multiple_of(MULTIPLE));
        let mut input = Rgb::filled(padded[1], padded[0], preprocess.mean_colour());
        paste(&mut input, &scene, 0, 0);
        Ok(Self {
            pixels: preprocess.normalise(&input),
            padded,
            size,
            scale: [
                size[1] as f64 / image.width as f64,
                size[0] as f64 / image.height as f64,
            ],
        })
    }
}

/// An image of `scale` times the height and width.
fn scaled(image: &Rgb, scale: f64) -> Rgb {
    let side = |length: usize| ((length as f64 * scale).round() as usize).max(1);
    let (height, width) = (side(image.height), side(image.width));
    if [height, width] == [image.height, image.width] {
        image.clone()
    } else {
        resize(image, height, width, Filter::Bilinear)
    }
}

/// The scene in a file, of that height and width where they are known.
///
/// # Errors
/// It cannot be read, or has another size.
pub fn read(path: &Path, size: Option<[usize; 2]>) -> Result<Rgb, TaskError> {
    match size {
        Some(size) => read_sized(path, size),
        None => read_image(path),
    }
}

/// A training view of a scene.
pub fn example(
    scene: &Rgb,
    key: &Path,
    people: &[Someone],
    views: &Views,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> Example<Target> {
    let (view, people, size) = if views.fit == [0, 0] {
        let (view, people) = view(scene, people, views, preprocess, rng);
        let size = [view.height, view.width];
        (view, people, size)
    } else {
        whole(scene, people, views, preprocess, rng)
    };
    let input = [view.height, view.width];
    Example {
        pixels: preprocess.normalise(&view),
        size: input,
        target: Target {
            people,
            size,
            input,
        },
        key: key.display().to_string(),
    }
}

/// The scene scaled as in the test, mirrored and brightened, padded; its people, and its height and width without the padding.
fn whole(
    image: &Rgb,
    people: &[Someone],
    views: &Views,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> (Rgb, Vec<Someone>, [usize; 2]) {
    let scale = views.scale_of([image.height, image.width]);
    let (scene, boxes) = augmented(image, people, scale, views, rng);
    let size = [scene.height, scene.width];
    let [height, width] = size.map(|side| side.next_multiple_of(MULTIPLE));
    let mut seen = Rgb::filled(width, height, preprocess.mean_colour());
    paste(&mut seen, &scene, 0, 0);
    let shown = { people.iter().zip(boxes) }
        .map(|(one, bbox)| Someone {
            bbox,
            ignored: one.ignored || bbox[3] < LOWEST,
            person: one.person,
        })
        .collect();
    (seen, shown, size)
}

/// A training view: a piece of the input's size of the scaled, mirrored, brightened scene, about somebody if there is
/// anybody; the mean colour beyond the scene.
pub fn view(
    image: &Rgb,
    people: &[Someone],
    views: &Views,
    preprocess: &Preprocess,
    rng: &mut DataRng,
) -> (Rgb, Vec<Someone>) {
    let scale = rng.random_range(views.scale[0]..=views.scale[1]);
    let (scene, boxes) = augmented(image, people, scale, views, rng);
    let (height, width) = (preprocess.height, preprocess.width);
    let wanted: Vec<usize> = (0..people.len()).filter(|i| !people[*i].ignored).collect();
    let start = |length: usize, size: usize, middle: Option<f64>, rng: &mut DataRng| -> i64 {
        if length <= size {
            // Smaller than the view: anywhere in it.
            return -(rng.random_range(0..=size - length) as i64);
        }
        let most = (length - size) as i64;
        match middle {
            // The middle of somebody lies anywhere in the view.
            Some(middle) => (middle as i64 - rng.random_range(0..size) as i64).clamp(0, most),
            None => rng.random_range(0..=most),
        }
    };
    let about = (!wanted.is_empty()).then(|| boxes[wanted[rng.random_range(0..wanted.len())]]);
    let top = start(scene.height, height, about.map(|b| b[1] + b[3] / 2.0), rng);
    let left = start(scene.width, width, about.map(|b| b[0] + b[2] / 2.0), rng);
    let mut seen = Rgb::filled(width, height, preprocess.mean_colour());
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
            shown.push(Someone {
                bbox: [x, y, w, h],
                ignored: one.ignored || share < LEAST_INSIDE || h < LOWEST,
                person: one.person,
            });
        }
    }
    (seen, shown)
}

/// A scene scaled, and mirrored and brightened by chance, with the boxes of its people.
fn augmented(
    image: &Rgb,
    people: &[Someone],
    scale: f64,
    views: &Views,
    rng: &mut DataRng,
) -> (Rgb, Vec<[f64; 4]>) {
    let mut scene = scaled(image, scale);
    let mirrored = rng.random_bool(views.flip);
    if mirrored {
        scene = flip(&scene);
    }
    let brighter = rng.random_bool(views.brightness_probability);
    let [low, high] = views.brightness;
    let brightness = rng.random_range(low..=high);
    if brighter {
        for pixel in scene.pixels.chunks_exact_mut(3) {
            // Up to white in the brightest channel, so that the hue stays (the V of HSV).
            let most = pixel.iter().copied().max().unwrap_or(0).max(1);
            let factor = brightness.min(255.0 / f64::from(most));
            for value in pixel {
                *value = (f64::from(*value) * factor).round() as u8;
            }
        }
    }
    let placed = |one: &Someone| {
        let [x, y, w, h] = one.bbox.map(|v| v * scale);
        let x = if mirrored {
            scene.width as f64 - x - w
        } else {
            x
        };
        [x, y, w, h]
    };
    let boxes = people.iter().map(placed).collect();
    (scene, boxes)
}

/// A head for a backbone.
///
/// # Errors
/// The strides of the maps are no multiples of 4 by powers of two, or the width does not go with 32 groups.
pub fn head(
    stages: &Stages,
    width: usize,
    embedding: Option<usize>,
    rng: &mut Rng,
    device: &Device,
) -> Result<DetectionHead, TaskError> {
    if width == 0 || width > 4096 || (width > 32 && !width.is_multiple_of(32)) {
        let expected = "1 to 32 or a multiple of 32 (groups of its normalisation)";
        return Err(setting("task.width", expected, width));
    }
    let from = stages.channels.len().saturating_sub(MAPS);
    let strides: Vec<usize> = stages.strides[from..].iter().map(|s| s / STRIDE).collect();
    let fits = |stride: &usize| stride.is_multiple_of(STRIDE) && *stride <= MULTIPLE;
    if let Some(wrong) = stages.strides[from..].iter().find(|stride| !fits(stride)) {
        let expected = "a backbone whose maps have 4, 8, 16 or 32 pixels a position";
        return Err(setting("model.backbone", expected, wrong));
    }
    let config = DetectionHeadConfig {
        channels: stages.channels[from..].to_vec(),
        strides,
        width,
        embedding,
    };
    Ok(config.init(rng, device))
}

/// The maps that the head takes in.
pub fn maps(pyramid: &[Tensor<4>]) -> &[Tensor<4>] {
    &pyramid[pyramid.len().saturating_sub(MAPS)..]
}

/// The answer by name.
pub fn outputs(output: DetectionOutput) -> Vec<(String, Output)> {
    let mut outputs: Vec<(String, Output)> = vec![
        ("centre".to_owned(), output.centre.into()),
        ("size".to_owned(), output.size.into()),
        ("offset".to_owned(), output.offset.into()),
    ];
    outputs.extend(
        output
            .embedding
            .map(|map| ("embedding".to_owned(), map.into())),
    );
    outputs
}

/// The position of a box's middle on a grid; none outside.
pub fn middle_of([x, y, w, h]: [f64; 4], rows: usize, columns: usize) -> Option<[usize; 2]> {
    let (cx, cy) = ((x + w / 2.0) / STRIDE as f64, (y + h / 2.0) / STRIDE as f64);
    let inside = cx >= 0.0 && cy >= 0.0 && cx < columns as f64 && cy < rows as f64;
    inside.then_some([cy as usize, cx as usize])
}

/// Targets of a batch of views of one size.
///
/// About a middle lies a Gaussian as wide as the box, σ = 0.3·((length − 1)/2 − 1) + 0.8 along each axis; sizes are learnt
/// within two positions of it.
pub fn targets(batch: &[Target]) -> DetectionTargets {
    const RADIUS: i64 = 2;
    let [height, width] = batch_size(batch);
    let (rows, columns) = (height / STRIDE, width / STRIDE);
    let area = rows * columns;
    let zeros = |channels: usize| vec![0.0; batch.len() * channels * area];
    let mut targets = DetectionTargets {
        nearness: zeros(1),
        middles: zeros(1),
        counts: vec![1.0; batch.len() * area],
        sizes: zeros(2),
        sized: zeros(1),
        offsets: zeros(2),
    };
    for (index, Target { people, .. }) in batch.iter().enumerate() {
        let plane = index * area;
        // Positions from the first to the last of a box along an axis.
        let ends = |bbox: [f64; 4], axis: usize| {
            let start = bbox[axis] / STRIDE as f64;
            (start, start + bbox[axis + 2] / STRIDE as f64)
        };
        let range = |start: f64, end: f64, size: usize| {
            let start = start.clamp(0.0, size as f64);
            start as usize..end.clamp(start, size as f64) as usize
        };
        let touched = |bbox: [f64; 4], axis: usize, size: usize| {
            let (start, end) = ends(bbox, axis);
            range(start.floor(), end.ceil(), size)
        };
        let span = |bbox: [f64; 4], axis: usize, size: usize| {
            let (start, end) = ends(bbox, axis);
            range(start.ceil(), end.floor(), size)
        };
        for one in people.iter().filter(|one| one.ignored) {
            for row in touched(one.bbox, 1, rows) {
                for column in touched(one.bbox, 0, columns) {
                    targets.counts[plane + row * columns + column] = 0.0;
                }
            }
        }
        for one in people.iter().filter(|one| !one.ignored) {
            let Some([row, column]) = middle_of(one.bbox, rows, columns) else {
                continue;
            };
            let [x, y, w, h] = one.bbox.map(|v| v / STRIDE as f64);
            let sigma = |length: f64| 0.3 * ((length.floor().max(1.0) - 1.0) * 0.5 - 1.0) + 0.8;
            let square = |sigma: f64| 2.0 * sigma.max(0.3).powi(2);
            let (wide, high) = (square(sigma(w)), square(sigma(h)));
            for r in span(one.bbox, 1, rows) {
                for c in span(one.bbox, 0, columns) {
                    let (dy, dx) = (r as f64 - row as f64, c as f64 - column as f64);
                    let near = (-dx * dx / wide - dy * dy / high).exp() as f32;
                    let at = plane + r * columns + c;
                    targets.nearness[at] = targets.nearness[at].max(near);
                    targets.counts[at] = 1.0;
                }
            }
            let at = row * columns + column;
            targets.nearness[plane + at] = 1.0;
            targets.middles[plane + at] = 1.0;
            targets.counts[plane + at] = 1.0;
            let offset = [
                y + h / 2.0 - row as f64 - 0.5,
                x + w / 2.0 - column as f64 - 0.5,
            ];
            for (axis, offset) in offset.into_iter().enumerate() {
                targets.offsets[(2 * index + axis) * area + at] = offset as f32;
            }
            for r in (row as i64 - RADIUS).max(0)..=(row as i64 + RADIUS).min(rows as i64 - 1) {
                for c in (column as i64 - RADIUS).max(0)
                    ..=(column as i64 + RADIUS).min(columns as i64 - 1)
                {
                    let at = r as usize * columns + c as usize;
                    targets.sized[plane + at] = 1.0;
                    targets.sizes[2 * index * area + at] = h.max(0.1).ln() as f32;
                    targets.sizes[(2 * index + 1) * area + at] = w.max(0.1).ln() as f32;
                }
            }
        }
    }
    targets
}

/// The head's answers on a whole scene.
pub struct Answers {
    centre: Vec<f32>,
    size: Vec<f32>,
    offset: Vec<f32>,
    embedding: Vec<f32>,
    length: usize,
    rows: usize,
    columns: usize,
    /// Pixels of the network's input per pixel of the scene, along x and y.
    scale: [f64; 2],
    limits: [f64; 2],
}

impl Answers {
    /// Runs a model on a scene, scaled and padded.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    pub fn new<T: Task>(
        model: &Model<T>,
        head: impl Fn(&[Tensor<4>]) -> DetectionOutput,
        image: &Rgb,
        views: &Views,
        index: usize,
    ) -> Result<Self, TaskError> {
        let input = Input::new(image, views, &model.preprocess)?;
        let [height, width] = input.padded;
        let features = model.features(input.pixels, [1, height, width]);
        let output = head(maps(&features.pyramid));
        let [_, _, rows, columns] = output.centre.dims();
        let length = output.embedding.as_ref().map_or(0, |map| map.dims()[1]);
        let answers = Self {
            centre: values(output.centre)?,
            size: values(output.size)?,
            offset: values(output.offset)?,
            embedding: match output.embedding {
                Some(map) => values(map)?,
                None => Vec::new(),
            },
            length,
            rows,
            columns,
            scale: input.scale,
            limits: [image.width as f64, image.height as f64],
        };
        for part in [
            &answers.centre,
            &answers.size,
            &answers.offset,
            &answers.embedding,
        ] {
            check_finite(part, part.len(), index)?;
        }
        Ok(answers)
    }

    /// The boxes, best first, after suppression.
    pub fn boxes(&self, views: &Views) -> Vec<Found> {
        let area = self.rows * self.columns;
        let score = |at: usize| 1.0 / (1.0 + f64::from(-self.centre[at]).exp());
        let mut order: Vec<usize> = (0..area).filter(|at| score(*at) >= views.score).collect();
        order.sort_by(|a, b| self.centre[*b].total_cmp(&self.centre[*a]));
        order.truncate(CANDIDATES);
        let bbox = |at: usize| {
            let of = |values: &[f32], axis: usize| f64::from(values[axis * area + at]);
            let length = |axis: usize| of(&self.size, axis).clamp(-3.0, 10.0).exp() * STRIDE as f64;
            let middle = |place: usize, axis: usize| {
                (place as f64 + 0.5 + of(&self.offset, axis).clamp(-0.5, 0.5)) * STRIDE as f64
            };
            let (h, w) = (length(0) / self.scale[1], length(1) / self.scale[0]);
            let y = middle(at / self.columns, 0) / self.scale[1];
            let x = middle(at % self.columns, 1) / self.scale[0];
            // Cut to the scene.
            let (left, top) = ((x - w / 2.0).max(0.0), (y - h / 2.0).max(0.0));
            let right = (x + w / 2.0).min(self.limits[0]);
            let bottom = (y + h / 2.0).min(self.limits[1]);
            [left, top, (right - left).max(0.0), (bottom - top).max(0.0)]
        };
        let boxes: Vec<[f64; 4]> = order.iter().map(|at| bbox(*at)).collect();
        let scores: Vec<f64> = order.iter().map(|at| score(*at)).collect();
        let mut kept = views.suppress(&boxes, &scores);
        kept.truncate(views.most);
        { kept.into_iter() }
            .map(|(index, score)| Found {
                bbox: boxes[index],
                score,
                embedding: self.at(order[index]),
            })
            .collect()
    }

    /// What stands for the person in a box: the embedding at its middle.
    pub fn embedding_of(&self, bbox: [f64; 4]) -> Vec<f32> {
        let [x, y, w, h] = bbox;
        let [sx, sy] = self.scale;
        let scaled = [x * sx, y * sy, w * sx, h * sy];
        let middle = middle_of(scaled, self.rows, self.columns);
        let [row, column] = middle.unwrap_or([self.rows / 2, self.columns / 2]);
        self.at(row * self.columns + column)
    }

    fn at(&self, position: usize) -> Vec<f32> {
        let area = self.rows * self.columns;
        (0..self.length)
            .map(|channel| self.embedding[channel * area + position])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_data::rng_for;

    fn someone(bbox: [f64; 4]) -> Someone {
        Someone {
            bbox,
            ignored: false,
            person: None,
        }
    }

    #[test]
    fn soft_suppression_lowers_what_hard_drops() {
        let boxes = [
            [0.0, 0.0, 10.0, 20.0],
            [1.0, 0.0, 10.0, 20.0],
            [50.0, 0.0, 10.0, 20.0],
        ];
        let scores = [0.9, 0.8, 0.7];
        let hard = Views::default();
        assert_eq!(hard.suppress(&boxes, &scores), [(0, 0.9), (2, 0.7)]);
        let soft = Views {
            soft_sigma: 0.5,
            ..hard
        };
        let overlap: f64 = 9.0 / 11.0;
        let lowered = 0.8 * (-overlap * overlap / 0.5).exp();
        assert_eq!(
            soft.suppress(&boxes, &scores),
            [(0, 0.9), (2, 0.7), (1, lowered)]
        );
    }

    fn target(people: &[Someone]) -> Target {
        Target {
            people: people.to_vec(),
            size: [160, 96],
            input: [160, 96],
        }
    }

    #[test]
    fn targets_stand_where_people_do() {
        // 40 x 24 positions; a person whose middle is (50, 82) in pixels, (12.5, 20.5) in positions.
        let people = [
            someone([40.0, 62.0, 20.0, 40.0]),
            Someone {
                ignored: true,
                ..someone([0.0, 0.0, 16.0, 16.0])
            },
        ];
        let targets = targets(&[target(&people)]);
        let at = 20 * 24 + 12;
        assert_eq!(targets.middles.iter().sum::<f32>(), 1.0);
        assert_eq!((targets.middles[at], targets.nearness[at]), (1.0, 1.0));
        assert!(targets.nearness[at + 1] < 1.0 && targets.nearness[at + 1] > 0.1);
        assert_eq!(targets.offsets[at], 0.0);
        assert!((targets.sizes[at] - 10.0_f32.ln()).abs() < 1e-6);
        assert!((targets.sizes[24 * 40 + at] - 5.0_f32.ln()).abs() < 1e-6);
        assert_eq!(targets.sized.iter().sum::<f32>(), 25.0);
        assert_eq!(targets.counts.iter().filter(|c| **c == 0.0).count(), 16);
    }

    #[test]
    fn perfect_answers_give_the_boxes_back() {
        let people = [
            someone([40.0, 62.0, 20.0, 40.0]),
            someone([5.0, 20.0, 31.0, 77.0]),
        ];
        let found = targets(&[target(&people)]);
        let answers = Answers {
            centre: found.middles.iter().map(|m| 20.0 * m - 10.0).collect(),
            size: found.sizes,
            offset: found.offsets,
            embedding: Vec::new(),
            length: 0,
            rows: 40,
            columns: 24,
            scale: [1.0; 2],
            limits: [96.0, 160.0],
        };
        let boxes = answers.boxes(&Views::default());
        assert_eq!(boxes.len(), 2);
        for one in &people {
            let near = |found: &Found| (0..4).all(|i| (found.bbox[i] - one.bbox[i]).abs() < 1e-3);
            assert!(boxes.iter().any(near), "{boxes:?}");
        }
    }

    #[test]
    fn whole_scenes_fit_and_huge_ones_are_refused() {
        let preprocess = Preprocess::imagenet(64, 64);
        let views = Views {
            fit: [90, 150],
            ..Views::default()
        };
        // By the shorter side, and by the longer one where that would be too long.
        for (scene, shown, padded) in [
            ([120, 160], [90, 120], [96, 128]),
            ([100, 400], [38, 150], [64, 160]),
        ] {
            let image = Rgb::filled(scene[1], scene[0], [9; 3]);
            let input = Input::new(&image, &views, &preprocess).unwrap();
            assert_eq!((input.size, input.padded), (shown, padded));
            let mut rng = rng_for(0, 0, "whole");
            let people = [someone([10.0, 20.0, 30.0, 60.0])];
            let (seen, people, size) = whole(&image, &people, &views, &preprocess, &mut rng);
            assert_eq!(([seen.height, seen.width], size), (padded, shown));
            let scale = shown[0] as f64 / scene[0] as f64;
            assert!((people[0].bbox[3] - 60.0 * scale).abs() < 0.5, "{people:?}");
        }
        let huge = Rgb::filled(8000, 5000, [9; 3]);
        assert!(Input::new(&huge, &views, &preprocess).is_ok());
        let error = Input::new(&huge, &Views::default(), &preprocess)
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(
            text.contains("5000 x 8000") && text.contains("views.fit"),
            "{text}"
        );
    }

    #[test]
    fn views_keep_people_where_they_are() {
        // A scene whose red rectangle is a person; the view's box must cover what is red.
        let mut image = Rgb::filled(200, 150, [0, 0, 90]);
        for y in 40..100 {
            for x in 120..150 {
                let at = 3 * (y * 200 + x);
                image.pixels[at..at + 3].copy_from_slice(&[200, 0, 0]);
            }
        }
        let people = [someone([120.0, 40.0, 30.0, 60.0])];
        let preprocess = Preprocess::imagenet(96, 128);
        for seed in 0..40 {
            let mut rng = rng_for(seed, 0, "view");
            let (seen, shown) = view(&image, &people, &Views::default(), &preprocess, &mut rng);
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
