//! Human parsing: images with a class for each pixel.

pub(crate) mod atr;
pub(crate) mod ccp;
pub(crate) mod cihp;
mod dataset;
#[cfg(test)]
mod folder_tests;
mod folders;
pub(crate) mod lip;
mod mask;
pub(crate) mod table;
#[cfg(test)]
mod tests;

pub use dataset::{MaskedImage, ParsingDataset, Relabel};
pub use mask::{BLACK_AND_WHITE, IGNORE, LabelMap, is_black_and_white, label_map, read_label_map};
