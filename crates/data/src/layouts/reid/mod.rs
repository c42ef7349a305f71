//! Re-identification: images of people with identities and cameras.

mod dataset;
pub(crate) mod market1501;
pub(crate) mod msmt17;
pub(crate) mod table;

pub use dataset::{MsmtVal, ReidDataset, ReidImage, cameras, people};
