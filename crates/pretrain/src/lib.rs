//! Pre-training of a backbone on images of people: DINO, SOLIDER and CLASP by one recipe key.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@train`] | the loop, on the framework of `clasp_run` |
//! | [`recipe`] | the recipe: sections, defaults, ranges |
//! | [`plan`] | `"auto"` resolved for given data and machine |
//! | [`dataset`] | images with their labels; the view generator |
//! | [`batch`] | the tensors of a batch |
//! | [`student`] | the networks, and which features each loss uses |
//! | `teacher` | the teacher targets of a batch |
//! | `objective` | the losses, their names and weights |
//! | `metrics` | what is measured beside them |
//! | [`schedule`] | learning rate and the like of a step |
//! | [`step`] | one step: replicas, optimizer, teacher, center |
//! | [`ranks`] | which images of a batch a process computes, and what processes exchange |
//! | [`mod@distillation`] | the frozen teacher of distillation |
//! | [`collapse`] | the collapse monitor |
//! | [`experts`] | which prompt uses which expert |
//! | [`checkpoint`] | saving and resuming |
//! | [`error`] | errors |
//!
//! To add a loss: its function of tensors, a file in `clasp_model::losses` with its line in
//! `mod.rs` there; its row in `objective`; its weight in `LossSection` in [`recipe`]; and the
//! outputs that it needs of the student in [`student`], if these are new.
//!
//! What is the paper's and what is this project's choice: `docs/method.md`.

pub mod batch;
pub mod checkpoint;
pub mod collapse;
pub mod dataset;
pub mod distillation;
pub mod error;
pub mod experts;
mod masking;
mod metrics;
mod objective;
pub mod plan;
pub mod ranks;
pub mod recipe;
pub mod schedule;
pub mod step;
pub mod student;
mod teacher;
pub mod train;

pub use clasp_run::{Control, Event};
pub use error::{PretrainError, Result};
pub use plan::{PretrainPlan, machine};
pub use recipe::PretrainRecipe;
pub use train::{PretrainSummary, train, train_on_ranks};
