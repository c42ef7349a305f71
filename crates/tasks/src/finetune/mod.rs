//! Fine-tuning: a backbone and the head of a task, trained on labelled data.
//!
//! | file | holds |
//! |---|---|
//! | [`recipe`] | the recipe: data, model, optimiser, run, and the task's own settings |
//! | [`check`] | which values make sense |
//! | [`schedule`] | learning rates by step, depth and kind of parameter |
//! | [`trainer`] | one step: the backbone in replicas, the head once |
//! | [`correct`] | self-correction of labels in cycles |
//! | [`checkpoint`] | saving and going on |
//! | [`mod@train`] | the loop |
//! | [`model`] | the result: prediction on all threads |
//!
//! What differs between tasks is a [`Task`], one file each in [`crate::tuned`].

pub mod check;
pub mod checkpoint;
pub mod correct;
pub mod model;
pub mod recipe;
pub mod schedule;
pub mod train;
pub mod trainer;

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_data::Rng as DataRng;
use clasp_data::image::Rgb;
use clasp_data::layouts::LayoutError;
use clasp_model::backbone::{Backbone, Features};
use clasp_model::heads::Training;
use clasp_model::layers::Rng;
use clasp_model::mix::Mix;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::TaskError;
use crate::features::Preprocess;
use crate::probe::Progress;
use clasp_weights::onnx::Output;

pub use correct::Teacher;
pub use model::Model;
pub use recipe::Recipe;
pub use train::{Control, Event, Summary, train};

/// An image that is trained on, and what is known of it.
#[derive(Debug, Clone)]
pub struct Example<T> {
    /// Normalised, [3, height, width].
    pub pixels: Vec<f32>,
    /// Height and width; smaller ones of a batch are padded at the bottom and the right.
    pub size: [usize; 2],
    /// The truth, as far as the image shows it.
    pub target: T,
    /// Where it comes from, for messages.
    pub key: String,
}

/// What a backbone hands to a head.
#[derive(Debug, Clone)]
pub struct Stages {
    /// The backbone, on its device.
    pub backbone: Backbone,
    /// The mix of prompts.
    pub mix: Mix,
    /// Channels of the pooled features.
    pub pooled: usize,
    /// Channels of the map of each stage, finest first.
    pub channels: Vec<usize>,
    /// Pixels of the image per position of each, along each axis.
    pub strides: Vec<usize>,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Losses {
    /// What is minimised.
    pub total: Tensor<1>,
    /// Its terms and other figures, by name.
    pub terms: Vec<(&'static str, f64)>,
}

impl Losses {
    /// The weighted sum of named terms.
    ///
    /// # Panics
    /// Without terms.
    pub fn sum<const N: usize>(terms: [(&'static str, Tensor<1>, f64); N]) -> Self {
        let mut total: Option<Tensor<1>> = None;
        let mut values = Vec::with_capacity(N);
        for (name, term, weight) in terms {
            values.push((name, scalar(&term)));
            let term = term * weight;
            total = Some(match total {
                Some(total) => total + term,
                None => term,
            });
        }
        match total {
            Some(total) => Self {
                total,
                terms: values,
            },
            None => panic!("a loss without terms"),
        }
    }
}

/// What to tell of entries that a data set's reader left out.
pub fn left_out(file: &Path, problems: &[String]) -> Option<String> {
    let (first, others) = (problems.first()?, problems.len() - 1);
    let others = match others {
        0 => String::new(),
        others => format!(", and {others} more; `clasp data check` lists all"),
    };
    Some(format!("{}: {first}{others}", file.display()))
}

/// The last part of a path, to name a file by.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The value of a loss.
pub fn scalar(tensor: &Tensor<1>) -> f64 {
    let data = tensor.clone().without_autodiff().into_data();
    data.iter::<f64>().next().unwrap_or(f64::NAN)
}

/// The values of a tensor in training, row-major.
pub fn read<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    let data = tensor.clone().without_autodiff().into_data();
    data.iter::<f32>().collect()
}

/// What an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The task.
    pub task: &'static str,
    /// What was done, in words.
    pub protocol: String,
    /// What was evaluated on: a split, or a file.
    pub data: String,
    /// The training loss on these data, where published schedules watch it.
    pub loss: Option<f64>,
    /// What the data hold that could not be used, in words.
    pub notes: Vec<String>,
    /// The figures to quote, the one that models are chosen by first; larger is better, but where the name ends in `MR`.
    pub figures: Vec<(String, f64)>,
    /// Everything else that was measured.
    pub details: Value,
    /// A table for eyes.
    #[serde(skip)]
    pub table: String,
    /// Predictions in the format in which the task's benchmark takes them: COCO's results (pose, detection), a tar of PNG
    /// masks (parsing), a CSV of probabilities (attributes), JSON lines of rankings (re-identification, search).
    #[serde(skip)]
    pub predictions: Vec<u8>,
}

/// The judgement of predictions, whoever made them.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The figures to quote, as in [`Report::figures`].
    pub figures: Vec<(String, f64)>,
    /// A table for eyes.
    pub table: String,
    /// Everything else that was measured.
    pub details: Value,
}

/// How an evaluation runs; what it does is in the task's settings.
#[derive(Clone, Copy)]
pub struct Running<'a> {
    /// Images in a batch.
    pub batch: usize,
    /// Threads, each with its own clone of the model.
    pub threads: usize,
    /// Whether [`Report::predictions`] are wanted where they are large (masks).
    pub predictions: bool,
    /// Hears how far it is.
    pub progress: &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync),
}

/// Images to choose or to judge a model by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// Kept apart from training to choose by: `val`.
    Val,
    /// What is reported: `test`, or `val` where a data set has no other.
    Test,
    /// By name.
    Named(String),
}

impl Split {
    /// The split of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "val" => Self::Val,
            "test" => Self::Test,
            other => Self::Named(other.to_owned()),
        }
    }

    /// The first of the splits meant that is among those of a file.
    ///
    /// # Errors
    /// [`LayoutError::NoSplit`].
    pub fn among(&self, splits: Vec<String>, file: &Path) -> Result<String, LayoutError> {
        let wanted: &[&str] = match self {
            Self::Val => &["val"],
            Self::Test => &["test", "val"],
            Self::Named(name) => &[name],
        };
        { wanted.iter() }
            .find(|name| splits.iter().any(|split| split == *name))
            .map(|name| (*name).to_owned())
            .ok_or_else(|| LayoutError::NoSplit {
                file: file.display().to_string(),
                wanted: self.name().to_owned(),
                splits,
            })
    }

    /// Opens the first of the splits meant that is there, where each is a file of its own.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open<D>(&self, open: impl Fn(&str) -> Result<D, LayoutError>) -> Result<D, LayoutError> {
        match (self, open(self.name())) {
            (Self::Test, Err(LayoutError::NotFound { .. } | LayoutError::NoSplitFile { .. })) => {
                open("val")
            }
            (_, opened) => opened,
        }
    }

    /// Its name, or what it is looked for under.
    pub fn name(&self) -> &str {
        match self {
            Self::Val => "val",
            Self::Test => "test",
            Self::Named(name) => name,
        }
    }
}

/// A downstream task. The value itself is what has to travel with the weights: settings, names of classes or joints.
pub trait Task: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Section `[task]` of a recipe.
    type Settings: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// Labelled data to train on.
    type Data: Send + Sync + 'static;
    /// Labelled data to evaluate on.
    type Eval: Send + Sync;
    /// The head.
    type Head: Module + Clone + Send + Sync;
    /// The truth of an example.
    type Target: Clone + Send + Sync + 'static;

    /// The mix of prompts unless another is asked for.
    fn default_mix() -> Mix;

    /// The settings.
    fn settings(&self) -> &Self::Settings;

    /// The settings, of which those that do not shape the head may be changed.
    fn settings_mut(&mut self) -> &mut Self::Settings;

    /// Whether it looks at whole scenes, at a scale of their own, and not at inputs of one size.
    const SCENES: bool = false;

    /// Checks the values of settings.
    ///
    /// # Errors
    /// One is out of range.
    fn check(settings: &Self::Settings) -> Result<(), TaskError>;

    /// Checks the height and width of inputs against the strides of the backbone's maps.
    ///
    /// # Errors
    /// The head cannot take inputs of that size.
    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        let _ = strides;
        check::size(size, 1)
    }

    /// Opens the training data of a folder, and the task as the data make it. `choose_by` is what models will be chosen
    /// by, so that it can be kept apart.
    ///
    /// # Errors
    /// The data are not there, or not what they should be.
    fn open(
        settings: &Self::Settings,
        folder: &Path,
        choose_by: Option<&Split>,
    ) -> Result<(Self, Self::Data), TaskError>;

    /// Opens data to evaluate on.
    ///
    /// # Errors
    /// The data are not there, not what they should be, or of other classes or joints.
    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Self::Eval, TaskError>;

    /// What the data hold that cannot be used, in words.
    fn notes(&self, data: &Self::Data) -> Vec<String> {
        let _ = data;
        Vec::new()
    }

    /// The files that examples are read from.
    fn files<'a>(&self, data: &'a Self::Data) -> Vec<&'a Path>;

    /// Examples of an epoch.
    fn examples(&self, data: &Self::Data) -> usize;

    /// The examples of an epoch, in batches of `batch`; as many as [`Task::examples`]. `None` shuffles them.
    fn order(&self, data: &Self::Data, batch: usize, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        let _ = (data, batch, seed, epoch);
        None
    }

    /// Checks a batch size against the data.
    ///
    /// # Errors
    /// No batch of that size can be made.
    fn check_batch(&self, data: &Self::Data, batch: usize) -> Result<(), TaskError> {
        let _ = (data, batch);
        Ok(())
    }

    /// Reads and augments an example; all draws come from `rng`.
    ///
    /// # Errors
    /// Its image or labels cannot be read.
    fn example(
        &self,
        data: &Self::Data,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Self::Target>, TaskError>;

    /// A head with fresh weights.
    ///
    /// # Errors
    /// The head does not go with the backbone.
    fn head(
        &self,
        stages: &Stages,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<Self::Head, TaskError>;

    /// What the head makes of features before anything is decoded, by name: for other programs.
    fn outputs(&self, head: &Self::Head, features: Features) -> Vec<(String, Output)>;

    /// The loss of a batch; statistics and memories that are not trained go out through `training`.
    fn loss(
        &self,
        head: &Self::Head,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
    ) -> Losses;

    /// Whether it knows [`Task::refined_loss`].
    const CORRECTS: bool = false;

    /// The loss of a batch whose labels a model of earlier cycles refines ([`correct`]).
    fn refined_loss(
        &self,
        head: &Self::Head,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
        teacher: &Teacher<'_, Self::Head>,
    ) -> Losses {
        let _ = teacher;
        self.loss(head, features, targets, training)
    }

    /// Evaluates a model.
    ///
    /// # Errors
    /// Images that cannot be read, features that are not finite, or a stop.
    fn evaluate(
        &self,
        model: &Model<Self>,
        data: &Self::Eval,
        running: &Running<'_>,
    ) -> Result<Report, TaskError>;

    /// What the model makes of an image: a person's crop, or a scene for detection and search.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError>;

    /// A picture of a prediction.
    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb;

    /// What a person's box is enlarged by before it is cut out of a photo.
    const MARGIN: f64 = 1.0;

    /// The prediction for a crop as one for the photo that it was cut out of, at `left` and `top`.
    fn moved(&self, prediction: Value, [left, top]: [f64; 2]) -> Value {
        let _ = (left, top);
        prediction
    }

    /// Draws the prediction for one person, [`Task::moved`], into a photo. crop: x, y, width, height.
    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        let _ = crop;
        *photo = self.draw(photo, prediction);
    }
}
