//! Attribute recognition: images with attributes that are true or false.

mod annotation;
mod dataset;
mod matlab;
pub(crate) mod pa100k;
pub(crate) mod peta;
pub(crate) mod rap2;
pub(crate) mod splits;
pub(crate) mod table;
#[cfg(test)]
mod tests;

pub(super) use matlab::describe_other;

pub use dataset::{AttributeDataset, AttributeImage};
