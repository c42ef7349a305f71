//! Names of the files of a CLIP folder.

/// Names of OpenCLIP's files.
pub const OPEN_CLIP: [&str; 2] = ["open_clip_config.json", "open_clip_model.safetensors"];
/// Names of Hugging Face's files.
pub const HUGGING_FACE: [&str; 2] = ["config.json", "model.safetensors"];
/// Hugging Face's description of the preprocessing.
pub const PREPROCESSOR: &str = "preprocessor_config.json";
