//! Heads of pre-training, one a task.

pub mod attribute;
pub mod dino;
pub mod part;

pub use attribute::{AttributeHead, AttributeHeadConfig};
pub use dino::{DinoHead, DinoHeadConfig};
pub use part::{PartHead, PartHeadConfig};
