//! Reading images and labels, from files to augmented views: plain arrays, no tensor library.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | finds images in files, folders, lists and tars; splits them into shards |
//! | [`image`] | decodes, resizes as Pillow does, normalizes, encodes |
//! | [`augment`] | the views of pre-training, with the part map cropped along; warps and random erasing |
//! | [`loader`] | batches in a seeded order, loaded ahead by threads, resumable |
//! | [`vocabulary`], [`part`], [`labels`] | part classes and attributes; the store of pseudo-labels |
//! | [`layouts`], [`check`] | published datasets in the layouts of their authors |
//! | [`mat`], [`pickle`] | MATLAB files and pickles of NumPy arrays, in which some of them are annotated |
//! | [`font`] | text in pictures |
//! | [`pack`], [`statistics`] | tar shards from any source; formats and sizes of its images |
//! | [`random`], [`atomic`] | random generators seeded by purpose; files written atomically |
//! | [`text`] | text files in the encodings that tools write; how similar two names are |
//! | [`missing`], [`contained`] | paths that do not exist; decoders that panic |

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod atomic;
pub mod augment;
pub mod check;
pub mod contained;
pub mod font;
pub mod image;
pub mod labels;
pub mod layouts;
pub mod loader;
pub mod mat;
pub mod missing;
pub mod pack;
mod pages;
pub mod part;
pub mod pickle;
pub mod random;
pub mod source;
pub mod statistics;
pub mod text;
mod vectors;
pub mod vocabulary;

pub use atomic::{NewFile, atomic_write, atomic_write_unsynced};
pub use pages::check_schema;
pub use random::{Rng, rng_for};
