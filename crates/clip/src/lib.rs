//! Training of a small CLIP on image-caption pairs, and zero-shot scores of any CLIP.
//!
//! | module | holds |
//! |---|---|
//! | [`captions`] | pictures with captions in varied wordings |
//! | [`pairs`] | the training data: a function of an index |
//! | [`mod@train`] | contrastive training |
//! | [`zero_shot`] | zero-shot answers against ground truth |

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod captions;
mod error;
pub mod pairs;
mod photos;
#[cfg(test)]
mod testing;
pub mod train;
pub mod zero_shot;

pub use error::Error;
