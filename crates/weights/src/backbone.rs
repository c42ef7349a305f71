//! The backbone file: the result of pre-training, which every later stage reads.
//!
//! A safetensors file whose tensors are the backbone's parameters under the published names
//! (`patch_embed.proj.weight`, `layers.0.blocks.0.attn.qkv.weight`, …), in 32 bits. Its metadata
//! hold `format` = `clasp-backbone/2` and `backbone`, a JSON object with the fields of
//! [`BackboneMeta`]: the network's configuration, the preprocessing that it was trained with, and
//! where it comes from.

use std::path::{Path, PathBuf};

use clasp_data::image::{Filter, check_normalization};
use clasp_model::backbone::{Backbone, BackboneConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{self, Metadata};
use crate::error::WeightsError;
use crate::shards;
use crate::state::{LoadReport, StateDict, load_state_dict, state_dict};

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-backbone/2";

/// Longest side of the images that a backbone is for, in pixels.
const LONGEST: usize = 8192;

/// Metadata of a backbone file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneMeta {
    /// The stage that made it: `pretrain`, `init` or `import`.
    pub stage: String,
    /// Version of this program.
    pub clasp: String,
    /// The network.
    pub config: BackboneConfig,
    /// Height of the images that it was trained on, in pixels.
    pub height: usize,
    /// Width of the images that it was trained on, in pixels.
    pub width: usize,
    /// Mean of each channel, subtracted from pixels of 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, divided by.
    pub std: [f32; 3],
    /// Filter that resizes images.
    pub filter: Filter,
    /// Method of pre-training.
    pub method: String,
    /// Heads that it was trained with.
    pub heads: Vec<String>,
    /// Prompts that it was trained with.
    pub prompts: Vec<String>,
    /// Steps of pre-training.
    pub step: u64,
    /// Digest of the vocabulary of its labels; empty without labels.
    pub vocabulary: String,
    /// The recipe, TOML.
    pub recipe: String,
    /// License lines to keep with the weights: of the code, of the weights, of the data.
    pub licenses: Vec<String>,
    /// The file that it was imported from and who published it; empty where this program trained
    /// it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
}

impl BackboneMeta {
    /// Checks what decides sizes and pixels, on the way into a file and out of it: a file is input
    /// like any other.
    ///
    /// # Errors
    ///
    /// What is expected and what was found, in words.
    pub fn check(&self) -> Result<(), String> {
        self.config.check().map_err(|error| error.to_string())?;
        for (what, side) in [("height", self.height), ("width", self.width)] {
            if !(1..=LONGEST).contains(&side) {
                return Err(format!(
                    "{what}: expected 1 to {LONGEST} pixels, found {side}"
                ));
            }
        }
        check_normalization(self.mean, self.std)
    }
}

/// Writes a backbone file atomically: complete, or not at all.
///
/// # Errors
///
/// The file cannot be written, or the metadata are out of range.
pub fn save_backbone(
    path: &Path,
    backbone: &Backbone,
    meta: &BackboneMeta,
) -> Result<(), WeightsError> {
    meta.check()
        .map_err(|problem| WeightsError::format(path, problem))?;
    let json = serde_json::to_string(meta).map_err(|error| WeightsError::format(path, error))?;
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("backbone".to_owned(), json),
    ]);
    checkpoint::write(path, &backbone_state(backbone), &metadata)
}

/// SHA-256 of a backbone file, or of that of a run's folder, in hexadecimal; of a checkpoint in
/// several files one over all of them.
///
/// # Errors
///
/// There is no such file, or it cannot be read.
pub fn digest(path: &Path) -> Result<String, WeightsError> {
    sha256_of(&backbone_parts(path)?)
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String, WeightsError> {
    sha256_of(&[file.to_owned()])
}

/// SHA-256 of files, one after the other, in hexadecimal.
fn sha256_of(files: &[PathBuf]) -> Result<String, WeightsError> {
    let mut digest = Sha256::new();
    for file in files {
        std::io::copy(&mut fs_err::File::open(file)?, &mut digest)?;
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a backbone file, or that of a run's folder, says about itself, without reading its tensors.
///
/// # Errors
///
/// There is no such file, or it is another kind of file.
pub fn read_backbone_meta(path: &Path) -> Result<BackboneMeta, WeightsError> {
    let path = backbone_file(path)?;
    parse_meta(&path, &checkpoint::read_metadata(&path)?)
}

/// Parameters of a backbone in the published names.
pub fn backbone_state(backbone: &Backbone) -> StateDict {
    state_dict(backbone)
}

pub(crate) fn load_backbone_state(backbone: Backbone, state: &StateDict) -> (Backbone, LoadReport) {
    load_state_dict(backbone, state)
}

/// The file that a path means: itself, or that of a folder of a run or of the hub.
///
/// # Errors
///
/// There is no such file.
pub fn backbone_file(path: &Path) -> Result<PathBuf, WeightsError> {
    /// Ours, then those of the hub.
    const NAMES: [&str; 6] = [
        "backbone.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "open_clip_model.safetensors",
    ];
    let candidates = if path.is_dir() {
        NAMES.map(|name| path.join(name)).to_vec()
    } else {
        vec![path.to_owned()]
    };
    if let Some(file) = candidates.into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    let expected = "a backbone or published checkpoint, or the folder of a run that has ended or of a model of the hub";
    let hint = "a checkpoint is a file (.safetensors, .pth, .pt, .bin); `clasp pretrain` writes backbone.safetensors into its run folder when it ends, `clasp finetune` model.safetensors";
    Err(WeightsError::not_at(path, expected, hint))
}

/// The files with the tensors of [`backbone_file`]: itself, or the parts of a checkpoint in several files.
///
/// # Errors
///
/// There is no such file, or a part is missing.
pub fn backbone_parts(path: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let file = backbone_file(path)?;
    Ok(shards::parts(&file)?.unwrap_or_else(|| vec![file]))
}

/// What a file of this program says about itself; none for a file of others.
pub(crate) fn own_meta(
    path: &Path,
    metadata: &Metadata,
) -> Result<Option<BackboneMeta>, WeightsError> {
    match metadata.get("format") {
        Some(format) if format.starts_with("clasp-backbone/") => {
            parse_meta(path, metadata).map(Some)
        }
        _ => Ok(None),
    }
}

fn parse_meta(path: &Path, metadata: &Metadata) -> Result<BackboneMeta, WeightsError> {
    let found = metadata.get("format").map_or("none", String::as_str);
    if found != FORMAT {
        let problem = if found.starts_with("clasp-backbone/") {
            format!(
                "a backbone file of another version of clasp: expected `format` {FORMAT}, found {found}\n\
                 hint: pre-train or import it again with this version"
            )
        } else {
            format!("not a backbone file: expected `format` {FORMAT}, found {found}")
        };
        return Err(WeightsError::format(path, problem));
    }
    let json = metadata.get("backbone").map_or("", String::as_str);
    let meta: BackboneMeta = serde_json::from_str(json)
        .map_err(|error| WeightsError::format(path, format!("metadata `backbone`: {error}")))?;
    meta.check()
        .map_err(|problem| WeightsError::format(path, problem))?;
    Ok(meta)
}
