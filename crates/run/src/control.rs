//! What the caller of a training loop provides, and what the loop reports back.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::log::Metrics;

/// What the caller of a training loop provides. The device itself is a type of the tensor library
/// and is passed to the loop beside this.
pub struct Control<'a> {
    /// Name of the device as in `--device`: `cpu`, `cuda:0`; recorded in `run.toml`.
    pub device_name: &'a str,
    /// Threads that may be used.
    pub threads: usize,
    /// Set (by Ctrl-C) to stop after the current step, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Receives every event, in order, on the thread of the loop.
    pub on_event: &'a mut dyn FnMut(Event<'_>),
}

impl Control<'_> {
    /// Whether the run has to stop after the current step.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Reports an event to the caller.
    pub fn report(&mut self, event: Event<'_>) {
        (self.on_event)(event);
    }
}

/// What a training loop reports while it runs.
pub enum Event<'a> {
    /// The data are open, the recipe is resolved, and training begins.
    Start {
        /// Images (or examples) of an epoch.
        examples: usize,
        /// Images of a step.
        batch: usize,
        /// Steps in all.
        steps: u64,
        /// Steps that are done already.
        from: u64,
    },
    /// The network starts from the weights of a file.
    WeightsLoaded {
        /// The file.
        path: &'a Path,
        /// Which keys matched, are missing or unexpected, as text.
        report: &'a dyn fmt::Display,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Metrics of this step.
        metrics: &'a Metrics,
    },
    /// The model was evaluated.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The metrics, as text.
        result: &'a dyn fmt::Display,
        /// Whether the model is selected by the evaluations and no earlier one was better.
        best: bool,
    },
    /// Something that the user should act on.
    Warning(&'a str),
    /// Something that the user may want to know, such as data that are skipped.
    Note(&'a str),
    /// A checkpoint is written.
    CheckpointSaved(&'a Path),
}
