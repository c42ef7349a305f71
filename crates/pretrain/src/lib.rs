//! Pre-training of a backbone on images of people: DINO, SOLIDER and CLASP by one recipe field.
//!
//! | file | holds |
//! |---|---|
//! | [`recipe`] | the recipe, its defaults, `"auto"` and overrides |
//! | [`attributes`] | how stored logits become attribute targets |
//! | [`views`] | from images and labels to the tensors of a step |
//! | [`student`] | the networks, and which features each loss sees |
//! | `objective` | the losses of a share of a batch |
//! | [`step`] | one step: replicas, optimiser, teacher, centre |
//! | [`monitor`] | the collapse monitor, use of the experts |
//! | [`checkpoint`] | saving and going on |
//! | [`mod@train`] | the loop |
//!
//! What is the paper's and what is this project's choice is told in `docs/method.md`.

pub mod attributes;
pub mod checkpoint;
pub mod error;
pub mod monitor;
mod objective;
pub mod recipe;
pub mod step;
pub mod student;
pub mod train;
pub mod views;

pub use error::{PretrainError, Result};
pub use recipe::{Machine, Plan, Recipe};
pub use train::{Control, Event, Summary, train};
