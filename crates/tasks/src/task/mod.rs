//! The contract of a downstream task, in traits cut by what asks for them.
//!
//! | file | trait | asked for by |
//! |---|---|---|
//! | [`mod@self`] | [`Task`]: name, configuration, recipes | everything |
//! | [`objective`] | [`Objective`]: head, loss, outputs | training, export |
//! | [`examples`] | [`TrainingExamples`]: labeled images to train on | training |
//! | [`evaluation`] | [`Evaluate`]: metrics of a model, of predictions, of frozen features | `eval`, `score`, checkpoint selection |
//! | [`shard`] | an evaluation by several processes | `eval --shard` |
//! | [`prediction`] | [`Predictor`]: predictions and pictures of them | `predict` |
//! | [`inference`] | [`Inference`]: batch, threads and progress of a pass over images | evaluation |
//! | [`model`] | [`FinetunedModel`]: a backbone with a task's head | all of these |
//! | [`check`] | checks of configuration values | all of these |
//!
//! A type that has all of them is a [`DownstreamTask`]; [`crate::registry`] lists these.

pub mod check;
pub mod evaluation;
pub mod examples;
pub mod inference;
pub mod model;
pub mod objective;
pub mod prediction;
pub mod shard;

use std::fmt::Debug;

use clasp_model::prompt::PromptWeights;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TaskError;

pub use check::WrongList;
pub use evaluation::{Evaluate, Evaluation, ScoreRequest, SplitChoice, TaskScores};
pub use examples::{Example, TrainingExamples};
pub use inference::Inference;
pub use model::FinetunedModel;
pub use objective::{BatchLoss, FeatureLayout, HeadInput, LabelRefiner, Objective};
pub use prediction::Predictor;

/// What an input of a task shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// One person from edge to edge, resized to the input size of the recipe.
    Person,
    /// A whole scene with several people, at a scale of its own.
    Scene,
}

/// A downstream task. The value itself is what has to be stored with the weights: configuration,
/// names of classes or joints.
pub trait Task: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name on the command line and in files.
    const NAME: &'static str;
    /// The task and its metrics in a few words, for the help.
    const ABOUT: &'static str;
    /// The head or heads, for the documentation.
    const HEAD: &'static str;
    /// The metrics, for the documentation.
    const METRICS: &'static str;
    /// Built-in recipes, name and text; the first is the default. Names begin with the task's.
    const RECIPES: &'static [(&'static str, &'static str)];
    /// What an input shows.
    const INPUT: InputKind = InputKind::Person;

    /// Section `[task]` of a recipe.
    type Config: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync;

    /// The prompt weights unless others are given.
    fn default_prompt() -> PromptWeights;

    /// The configuration.
    fn config(&self) -> &Self::Config;

    /// The configuration; values that do not shape the head may be changed.
    fn config_mut(&mut self) -> &mut Self::Config;

    /// Checks the values of a configuration.
    ///
    /// # Errors
    /// One is out of range.
    fn check(config: &Self::Config) -> Result<(), TaskError>;

    /// Checks what a model's file stores beside the configuration: lists whose lengths and indices
    /// fit together where training made them.
    ///
    /// # Errors
    /// They do not, or would take too much memory.
    fn check_lists(&self) -> Result<(), WrongList>;

    /// Checks the height and width of inputs against the strides of the backbone's feature maps.
    ///
    /// # Errors
    /// The head cannot take inputs of that size.
    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        let _ = strides;
        check::size(size, 1)
    }
}

/// A task that can be trained, evaluated and used for predictions.
pub trait DownstreamTask: TrainingExamples + Evaluate + Predictor {}

impl<T: TrainingExamples + Evaluate + Predictor> DownstreamTask for T {}
