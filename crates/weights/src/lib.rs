//! Weights: between modules, tensors by name, and files.
//!
//! | file | holds |
//! |---|---|
//! | [`state`] | a module's parameters by PyTorch's names and in its layout, both ways, with a report |
//! | [`checkpoint`] | safetensors files with metadata, written atomically |
//! | [`backbone`] | the file that pre-training hands to later stages |
//! | [`finetuned`] | the file of a fine-tuned model |
//! | [`tensors`], [`torch`] | files of tensors: safetensors and PyTorch's |
//! | `shards` | checkpoints in several files |
//! | [`import`] | published checkpoints as backbones |
//! | [`export`] | backbones for timm, transformers and SOLIDER |
//! | [`onnx`] | any network for engines that run ONNX, checked by one |
//! | [`clip`] | CLIP folders of Hugging Face and OpenCLIP |
//! | [`hub`] | models by name, from a hub or its cache |
//!
//! Files are read as data only, and every size in them is checked before anything is allocated.

pub mod backbone;
#[cfg(test)]
mod backbone_tests;
pub mod checkpoint;
pub mod clip;
pub mod error;
pub mod export;
mod exported;
pub mod finetuned;
pub mod hub;
pub mod import;
pub mod onnx;
mod shards;
pub mod state;
pub mod tensors;
#[cfg(test)]
mod testing;
pub mod torch;

pub use error::WeightsError;
