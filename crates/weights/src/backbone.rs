//! The backbone file: what pre-training hands to every later stage.
//!
//! A safetensors file whose tensors are the backbone's parameters under the published names
//! (`patch_embed.proj.weight`, `layers.0.blocks.0.attn.qkv.weight`, …), in 32 bits. Its metadata hold
//! `format` = `clasp-backbone/1` and `backbone`, a JSON object with the fields of [`BackboneMeta`]:
//! the network's configuration, the preprocessing that it was trained with, and where it comes from.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clasp_data::image::check_normalization;
use clasp_model::backbone::{Backbone, BackboneConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{self, Metadata};
use crate::error::WeightsError;
use crate::import;
use crate::state::{LoadReport, StateDict, load_state_dict, state_dict};

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-backbone/1";

/// Longest side of the images that a backbone is for, in pixels.
const LONGEST: usize = 8192;

/// What a backbone file says about its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneMeta {
    /// What made it: `pretrain`, `init` or `import`.
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
    /// Filter that resizes images: `bicubic`.
    pub filter: String,
    /// Method of pre-training.
    pub method: String,
    /// Heads that it was trained with.
    pub heads: Vec<String>,
    /// Tasks of its mixes that it has learnt.
    pub tasks: Vec<String>,
    /// Steps of pre-training.
    pub step: u64,
    /// Digest of the vocabulary of its labels; empty without labels.
    pub vocabulary: String,
    /// The recipe, TOML.
    pub recipe: String,
    /// Licence lines to keep with the weights: of the code, of the weights, of the data.
    pub licences: Vec<String>,
    /// The file that it was imported from and who published it; empty where this program trained it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
}

impl BackboneMeta {
    /// Checks what decides sizes and pixels, on the way into a file and out of it: a file is input like any other.
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

/// Writes a backbone file, whole or not at all.
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

/// Reads a backbone file, or `backbone.safetensors` of a run's folder, or any checkpoint that
/// [`import`](import::import) knows, onto `device`.
///
/// # Errors
///
/// There is no such file, it is another kind of file, or its tensors do not fit its configuration.
pub fn load_backbone(
    path: &Path,
    device: &Device,
) -> Result<(Backbone, BackboneMeta), WeightsError> {
    let imported = import::import(path, &import::Options::default(), device)?;
    Ok((imported.backbone, imported.meta))
}

/// SHA-256 of a backbone file, or of that of a run's folder, in hexadecimal.
///
/// # Errors
///
/// There is no such file, or it cannot be read.
pub fn digest(path: &Path) -> Result<String, WeightsError> {
    sha256(&backbone_file(path)?)
}

/// SHA-256 of a file in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String, WeightsError> {
    let mut digest = Sha256::new();
    std::io::copy(&mut fs_err::File::open(file)?, &mut digest)?;
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
    match backbone {
        Backbone::Swin(swin) => state_dict(swin),
        Backbone::Vit(vit) => state_dict(vit),
    }
}

pub(crate) fn load_backbone_state(backbone: Backbone, state: &StateDict) -> (Backbone, LoadReport) {
    match backbone {
        Backbone::Swin(swin) => {
            let (swin, report) = load_state_dict(swin, state);
            (Backbone::Swin(swin), report)
        }
        Backbone::Vit(vit) => {
            let (vit, report) = load_state_dict(vit, state);
            (Backbone::Vit(vit), report)
        }
    }
}

/// The file that a path means: itself, or that of a run's folder.
pub(crate) fn backbone_file(path: &Path) -> Result<PathBuf, WeightsError> {
    let candidates = if path.is_dir() {
        ["backbone.safetensors", "model.safetensors"]
            .map(|name| path.join(name))
            .to_vec()
    } else {
        vec![path.to_owned()]
    };
    if let Some(file) = candidates.into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    Err(WeightsError::NotFound {
        what: format!(
            "{}: expected a backbone file, or the folder of a run that has ended, found nothing",
            path.display()
        ),
        hint: "`clasp pretrain` writes backbone.safetensors into its run folder when it ends, `clasp finetune` model.safetensors"
            .to_owned(),
    })
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
        let problem = format!("not a backbone file: expected `format` {FORMAT}, found {found}");
        return Err(WeightsError::format(path, problem));
    }
    let json = metadata.get("backbone").map_or("", String::as_str);
    let meta: BackboneMeta = serde_json::from_str(json)
        .map_err(|error| WeightsError::format(path, format!("metadata `backbone`: {error}")))?;
    meta.check()
        .map_err(|problem| WeightsError::format(path, problem))?;
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::start_from;
    use burn::tensor::Tensor;
    use clasp_model::backbone::Adapter;
    use clasp_model::layers::Rng;
    use clasp_model::mix::Mix;
    use clasp_model::moe::{MoeConfig, MoeKind};
    use rand_chacha::rand_core::SeedableRng;

    fn meta(config: BackboneConfig) -> BackboneMeta {
        BackboneMeta {
            stage: "pretrain".to_owned(),
            clasp: "0.1.0".to_owned(),
            config,
            height: 128,
            width: 64,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            filter: "bicubic".to_owned(),
            method: "clasp".to_owned(),
            heads: vec!["dino".to_owned()],
            tasks: vec!["identity".to_owned()],
            step: 3,
            vocabulary: String::new(),
            recipe: "seed = 0\n".to_owned(),
            licences: Vec::new(),
            origin: String::new(),
        }
    }

    fn config(adapter: Adapter) -> BackboneConfig {
        BackboneConfig::named("swin-pico")
            .unwrap()
            .with_adapter(adapter)
    }

    #[test]
    fn a_backbone_survives_the_way_there_and_back() {
        let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
        let path = folder.path().join("backbone.safetensors");
        for adapter in [Adapter::None, Adapter::Moe(MoeConfig::default())] {
            let config = config(adapter);
            let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
            save_backbone(&path, &backbone, &meta(config.clone())).unwrap();
            // The folder of a run does as well as the file.
            let (loaded, said) = load_backbone(folder.path(), &device).unwrap();
            assert_eq!(said, meta(config.clone()));
            assert_eq!(read_backbone_meta(&path).unwrap(), said);
            let images = Tensor::ones([1, 3, 64, 32], &device);
            let features = |backbone: &Backbone| {
                backbone
                    .forward(images.clone(), Mix::mean().tensor(&device), None)
                    .pooled
                    .into_data()
            };
            assert_eq!(features(&loaded), features(&backbone));
        }
    }

    #[test]
    fn a_plain_backbone_starts_an_adapted_one_and_another_size_does_not() {
        let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
        let path = folder.path().join("plain.safetensors");
        let plain = config(Adapter::None);
        let backbone = plain.init(&mut Rng::seed_from_u64(1), &device);
        save_backbone(&path, &backbone, &meta(plain)).unwrap();
        let adapted =
            config(Adapter::Moe(MoeConfig::default())).init(&mut Rng::seed_from_u64(2), &device);
        let (adapted, report) = start_from(adapted, &path).unwrap();
        assert!(report.unexpected.is_empty() && !report.missing.is_empty());
        let images = Tensor::ones([1, 3, 64, 32], &device);
        let mix = Mix::single(1).tensor(&device);
        let features = |backbone: &Backbone| {
            backbone
                .forward(images.clone(), mix.clone(), None)
                .pooled
                .into_data()
        };
        features(&adapted).assert_approx_eq(
            &features(&backbone),
            burn::tensor::Tolerance::<f32>::absolute(1e-6),
        );

        let other = BackboneConfig::named("swin-nano")
            .unwrap()
            .init(&mut Rng::seed_from_u64(2), &device);
        let message = start_from(other, &path).unwrap_err().to_string();
        assert!(
            message.contains("another architecture") && message.contains("expected ["),
            "{message}"
        );
    }

    #[test]
    fn preprocessing_out_of_range_is_neither_written_nor_read() {
        let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
        let path = folder.path().join("backbone.safetensors");
        let config = config(Adapter::None);
        let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
        let good = meta(config);
        type Change = fn(&mut BackboneMeta);
        let changes: [(&str, Change); 7] = [
            ("height", |meta| meta.height = 0),
            ("height", |meta| meta.height = 10_000_000_000_000),
            ("width", |meta| meta.width = 8193),
            ("mean", |meta| meta.mean[1] = 1e30),
            ("std", |meta| meta.std[2] = 0.0),
            ("std", |meta| meta.std[0] = -1.0),
            ("std", |meta| meta.std[0] = 1e-30),
        ];
        for (what, change) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            let refused = |error: WeightsError| {
                let message = error.to_string();
                assert!(
                    message.contains(what) && message.contains("backbone.safetensors"),
                    "{message}"
                );
            };
            refused(save_backbone(&path, &backbone, &bad).unwrap_err());
            assert!(!path.exists());
            // As another program may have written it.
            let metadata = Metadata::from([
                ("format".to_owned(), FORMAT.to_owned()),
                ("backbone".to_owned(), serde_json::to_string(&bad).unwrap()),
            ]);
            checkpoint::write(&path, &backbone_state(&backbone), &metadata).unwrap();
            refused(load_backbone(&path, &device).unwrap_err());
            refused(read_backbone_meta(&path).unwrap_err());
            fs_err::remove_file(&path).unwrap();
            // The backbone of a fine-tuned model is no other.
            let tuned = crate::tuned::TunedMeta {
                task: "reid".to_owned(),
                settings: serde_json::Value::Null,
                backbone: bad,
                mix: Mix::mean(),
                chosen_by: None,
            };
            let metadata = Metadata::from([
                ("format".to_owned(), crate::tuned::FORMAT.to_owned()),
                ("model".to_owned(), serde_json::to_string(&tuned).unwrap()),
            ]);
            checkpoint::write(&path, &backbone_state(&backbone), &metadata).unwrap();
            refused(crate::tuned::read_meta(&path).unwrap_err());
            refused(load_backbone(&path, &device).unwrap_err());
            fs_err::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn other_files_are_refused() {
        let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
        let message = load_backbone(folder.path(), &device)
            .unwrap_err()
            .to_string();
        assert!(message.contains("backbone.safetensors"), "{message}");
        let path = folder.path().join("other.safetensors");
        checkpoint::write(&path, &StateDict::new(), &Metadata::new()).unwrap();
        let message = load_backbone(&path, &device).unwrap_err().to_string();
        assert!(message.contains("no tensors"), "{message}");
        // A configuration that claims more than the file holds.
        let small = config(Adapter::Moe(MoeConfig::default()));
        let large = config(Adapter::Moe(MoeConfig {
            form: MoeKind::Merged,
            experts: 1024,
            ..MoeConfig::default()
        }));
        let backbone = small.init(&mut Rng::seed_from_u64(1), &device);
        save_backbone(&path, &backbone, &meta(large)).unwrap();
        let message = load_backbone(&path, &device).unwrap_err().to_string();
        assert!(message.contains("a network of"), "{message}");
    }
}
