//! What every backbone, adapter and head must do.

#![allow(clippy::unwrap_used)]

mod adapters;
mod cases;
mod features;
mod parameters;
mod settings;
mod training;
