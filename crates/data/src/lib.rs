//! Images and labels of clasp, from files to views: plain arrays, no tensor library.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | finds images in files, folders, lists and tars; splits them into shards |
//! | [`image`], [`resize`] | decodes, resizes as Pillow does, normalises |
//! | [`augment`] | the pretraining views, with the label grid carried along |
//! | [`loader`] | batches in a seeded order, loaded ahead by threads, resumable |
//! | [`vocabulary`], [`labels`] | what pseudo-labels are about, and where they are kept |
//! | [`layouts`], [`check`] | public data sets as their authors lay them out |
//! | [`mat`], [`pickle`] | MATLAB files and pickles of NumPy arrays, in which some of them are annotated |
//! | [`synth`], [`captions`] | drawn people with exact labels, and image-caption pairs |
//! | [`font`] | letters for pictures |
//! | [`pack`] | tar shards from any source, and statistics |
//! | [`random`], [`atomic`] | generators that depend on their purpose alone; files written whole |
//! | [`text`] | text files in the encodings that tools write |

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod atomic;
pub mod augment;
pub mod captions;
pub mod check;
pub mod font;
pub mod image;
pub mod labels;
pub mod layouts;
pub mod loader;
pub mod mat;
pub mod pack;
pub mod pickle;
pub mod random;
pub mod source;
pub mod statistics;
pub mod synth;
pub mod text;
mod vectors;
pub mod vocabulary;

pub use atomic::{NewFile, atomic_write, atomic_write_unsynced};
pub use random::{Rng, rng_for};
