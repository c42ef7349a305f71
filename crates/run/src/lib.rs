//! What all training loops share: the run folder, recipes, log, checkpoints and schedules. It knows
//! no network and no tensor: pre-training, fine-tuning and the training of a small CLIP use it.
//!
//! | file | holds |
//! |---|---|
//! | [`recipe`] | recipes in TOML: `"auto"`, overrides, errors that name the right key |
//! | [`check`] | range checks of their values |
//! | [`folder`] | the run folder: create, resume, lock, warnings, steps that are not finite |
//! | [`origin`] | the header of `run.toml`: date, command line, version, device |
//! | [`collective`] | what the ranks that train one network exchange: between threads, over TCP, or by MPI |
//! | [`ranks`] | checks that these ranks train the same, and the machine that a plan is for |
//! | [`control`] | what a caller provides (stop flag, threads) and the events that it receives |
//! | [`log`] | metrics by step, as JSON lines and TensorBoard events |
//! | [`listing`] | the runs below a folder, with their state |
//! | [`checkpoints`] | which exist, when one is written, which are kept, checks of their metadata |
//! | [`schedule`] | learning rates and the like as functions of the step |
//! | [`summary`] | how a run ended |
//! | [`error`] | errors |
//!
//! # A training loop
//!
//! Each loop stays one visible function; nothing here calls back into it, except for the closure
//! that writes the file of a checkpoint. In outline:
//!
//! ```text
//! let existing = resume.then(|| RunFolder::resume(folder)).transpose()?;   // locks the folder
//! let data = ...; let plan = recipe.plan(data.len(), ...)?; // "auto" is resolved once
//! let mut trainer = ...;
//! let resumed = match &existing {                     // state of the checkpoint
//!     Some(run) => run.latest_checkpoint()?.map(|path| restore(&path, &mut trainer)).transpose()?,
//!     None => None,
//! };
//! let mut run = match existing {
//!     Some(run) => run,
//!     None => RunFolder::create(folder, &RunHeader { .. }.with_recipe(&toml))?,
//! };
//! let mut log = run.open_log(trainer.step, &[])?;
//! let mut checkpoints = CheckpointSchedule::new(run.path(), plan.save_every, keep, resumed);
//! control.report(Event::Start { .. });
//! while trainer.step < plan.steps && !control.stop_requested() {
//!     let batch = loader.next();
//!     let mut metrics = trainer.step(&batch)          // changes nothing on error
//!         .map_err(|cause| run.refuse_step(trainer.step + 1, cause, keys(&batch)))?;
//!     add_progress(&mut metrics, epoch, batch.len(), seconds);
//!     if is_logged(trainer.step, log_every, plan.steps) { log.write(trainer.step, &metrics)?; }
//!     control.report(Event::Step { .. });
//!     if checkpoints.is_due(trainer.step) {
//!         let path = checkpoints.save(trainer.step, |path| write(path, &trainer))?;
//!         control.report(Event::CheckpointSaved(&path));
//!     }
//! }
//! let path = checkpoints.save(trainer.step, |path| write(path, &trainer))?; // end, or stopped
//! ```
//!
//! A checkpoint is checked on resume with [`checkpoints::CheckpointMetadata`]: format, recipe keys
//! that must not change, number of images. Gathering the gradients of replicas needs tensors and is
//! in the crate `model` (`Replicas`, `optim::add`).

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod check;
pub mod checkpoints;
pub mod collective;
pub mod control;
pub mod error;
pub mod folder;
pub mod listing;
pub mod log;
pub mod origin;
pub mod ranks;
pub mod recipe;
pub mod schedule;
pub mod summary;

pub use check::InvalidValue;
pub use checkpoints::{CheckpointMetadata, CheckpointSchedule};
pub use collective::{Collective, CollectiveError, ExchangeFormat, Local, Rank};
pub use control::{Control, Event};
pub use error::RunError;
pub use folder::{NonFinite, RunFolder};
pub use log::{Log, Metrics};
pub use origin::RunHeader;
pub use ranks::{Machine, StepError};
pub use recipe::{Auto, RecipeError};
pub use summary::RunSummary;
