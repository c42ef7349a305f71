//! Fine-tuning: a backbone and the head of a task, trained on labeled data.
//!
//! | file | holds |
//! |---|---|
//! | [`recipe`] | the recipe: data, model, optimizer, run, and the task's configuration |
//! | [`schedule`] | learning rates by step, layer and kind of parameter |
//! | [`init`] | the backbone that training starts from |
//! | `inputs` | examples as input tensors |
//! | [`trainer`] | one step: the backbone in replicas, the head once |
//! | `ranks` | what several ranks that train one model exchange in a step |
//! | [`self_correction`] | self-correction of labels in cycles |
//! | [`checkpoint`] | saving and resuming |
//! | [`mod@train`] | the loop |
//!
//! Tasks differ in their implementation of the traits of [`crate::task`].

pub mod checkpoint;
pub mod init;
mod inputs;
mod ranks;
pub mod recipe;
pub mod schedule;
pub mod self_correction;
pub mod train;
pub mod trainer;

pub use clasp_run::{Control, Event};
pub use recipe::FinetuneRecipe;
pub use train::{FinetuneSummary, train, train_on_ranks};
