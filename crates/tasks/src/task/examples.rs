//! Labeled images to train on.

use std::path::Path;

use clasp_data::Rng as DataRng;

use super::Objective;
use super::evaluation::SplitChoice;
use crate::TaskError;
use crate::features::Preprocess;

/// An image that is trained on, with its labels.
#[derive(Debug, Clone)]
pub struct Example<T> {
    /// Normalized, `[3, height, width]`.
    pub pixels: Vec<f32>,
    /// Height and width; smaller images of a batch are padded at the bottom and the right.
    pub size: [usize; 2],
    /// The ground truth, in coordinates of this view.
    pub target: T,
    /// Where it comes from, for messages.
    pub key: String,
}

/// How a task reads its training data.
pub trait TrainingExamples: Objective {
    /// Labeled images to train on.
    type TrainingSet: Send + Sync + 'static;

    /// Opens the training data of a folder, and the task that follows from them: its classes,
    /// joints or identities. `selection` is the split that checkpoints are selected on, so that it
    /// can be held out of training.
    ///
    /// # Errors
    /// The data are missing or unusable.
    fn open(
        config: &Self::Config,
        folder: &Path,
        selection: Option<&SplitChoice>,
    ) -> Result<(Self, Self::TrainingSet), TaskError>;

    /// Warnings about labels that cannot be used.
    fn notes(&self, data: &Self::TrainingSet) -> Vec<String> {
        let _ = data;
        Vec::new()
    }

    /// The files that examples are read from.
    fn files<'a>(&self, data: &'a Self::TrainingSet) -> Vec<&'a Path>;

    /// Examples of an epoch.
    fn count(&self, data: &Self::TrainingSet) -> usize;

    /// The indices of an epoch's examples in batches of `batch`, [`TrainingExamples::count`] in
    /// all. `None` shuffles them.
    fn epoch_order(
        &self,
        data: &Self::TrainingSet,
        batch: usize,
        seed: u64,
        epoch: u64,
    ) -> Option<Vec<u32>> {
        let _ = (data, batch, seed, epoch);
        None
    }

    /// Checks a batch size against the data.
    ///
    /// # Errors
    /// No batch of that size can be drawn.
    fn check_batch(&self, data: &Self::TrainingSet, batch: usize) -> Result<(), TaskError> {
        let _ = (data, batch);
        Ok(())
    }

    /// Reads and augments an example; all random numbers come from `rng`.
    ///
    /// # Errors
    /// Its image or labels cannot be read.
    fn example(
        &self,
        data: &Self::TrainingSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Self::Target>, TaskError>;
}

/// A warning about entries that a dataset's reader skipped: the first one, and how many more there
/// are.
pub fn skipped_note(file: &Path, problems: &[String]) -> Option<String> {
    let (first, others) = (problems.first()?, problems.len() - 1);
    let others = match others {
        0 => String::new(),
        others => format!(", and {others} more; `clasp data check` lists all"),
    };
    Some(format!("{}: {first}{others}", file.display()))
}
