//! CLIP folders, as published.
//!
//! Two layouts are read, distinguished by their files:
//!
//! | | weights | configuration | preprocessing |
//! |---|---|---|---|
//! | OpenCLIP | `open_clip_model.safetensors` | `open_clip_config.json` | in the configuration |
//! | Hugging Face | `model.safetensors` | `config.json` | `preprocessor_config.json`, if there is one |
//!
//! A folder that holds both is read as OpenCLIP's. Weights in several files have an index
//! (`….safetensors.index.json`) in place of the one file. [`save_clip`] writes OpenCLIP's layout.
//!
//! Configurations come from outside: every size is bounded before a model of that size is made, a
//! feature that this program's CLIP lacks (other towers, poolings, tokenizers) is an error that
//! names it, and the weights must hold each parameter in its shape and nothing else.

use std::io::Read;
use std::path::Path;

use burn::tensor::Device;
use clasp_data::missing::MissingPath;
use clasp_model::clip::{Activation, Clip, VOCABULARY};
use fs_err as fs;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::checkpoint::{self, Metadata, StorageFormat};
use crate::error::WeightsError;
use crate::hub;
use crate::shards::{self, INDEX};
use crate::state::{StateDict, load_state_dict, state_dict};
use config::{check_preprocessing, hugging_face_config, open_clip_config};
use names::{from_hugging_face, from_open_clip};

mod config;
pub(crate) mod files;
mod names;

pub use config::{MEAN, STD};
pub use files::{HUGGING_FACE, OPEN_CLIP, PREPROCESSOR};

/// The largest configuration that is read: real ones have a few kilobytes.
const LARGEST_CONFIG: u64 = 1 << 20;

/// What belongs to the weights beside the network.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipInfo {
    /// The name it was asked for by, or the folder's name.
    pub name: String,
    /// SHA-256 of the weights' file, in hexadecimal.
    pub sha256: String,
    /// Height and width at which it was trained.
    pub image_size: [usize; 2],
    /// Means to normalize images with.
    pub mean: [f32; 3],
    /// Standard deviations to normalize images with.
    pub std: [f32; 3],
}

/// Loads a CLIP from a folder, or by a name such as `openai/clip-vit-base-patch16` from the hub or
/// its cache ([`hub`]).
///
/// # Errors
///
/// Neither a folder nor a name that can be fetched; a file that is missing, broken or too large; a
/// configuration that asks for what this program's CLIP lacks; weights that do not fit the
/// configuration.
pub fn load_clip(folder_or_name: &str, device: &Device) -> Result<(Clip, ClipInfo), WeightsError> {
    let path = Path::new(folder_or_name);
    let (folder, name) = if path.is_dir() {
        let name = path.file_name().map_or_else(
            || folder_or_name.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        (path.to_owned(), name)
    } else if path.is_file() || is_weights_name(path) {
        return Err(single_file(path));
    } else {
        let folder = hub::fetch(folder_or_name, &hub::HubOptions::from_env())?;
        (folder, folder_or_name.to_owned())
    };
    let (clip, info) = load_folder(&folder, &name, device)?;
    check_vocabulary(&clip, &folder)?;
    Ok((clip, info))
}

/// Whether a path is called like a file of weights, which no model on the hub is.
fn is_weights_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    ["pt", "pth", "bin", "ckpt", "safetensors", "onnx"].contains(&extension.as_ref())
}

/// Says what to give in place of one file, which lacks the model's configuration.
fn single_file(path: &Path) -> WeightsError {
    if !path.exists() {
        return MissingPath::new(path, "a folder with a CLIP").into();
    }
    let mut beginning = Vec::new();
    let read =
        fs_err::File::open(path).and_then(|file| file.take(1 << 16).read_to_end(&mut beginning));
    let names = |name: &[u8]| beginning.windows(name.len()).any(|bytes| bytes == name);
    let what = match read {
        Err(error) => return error.into(),
        Ok(_) if beginning.starts_with(b"PK") && (names(b"constants.pkl") || names(b"/code/")) => {
            "a TorchScript archive, as OpenAI published CLIP: it holds a program, which is not run"
        }
        Ok(_) if beginning.starts_with(b"PK") => {
            "a file of PyTorch, without the model's configuration"
        }
        Ok(_) => crate::checkpoint::not_weights(&beginning)
            .unwrap_or("one file, without the model's configuration"),
    };
    let [open_config, open_weights] = crate::clip::OPEN_CLIP;
    let [config, weights] = crate::clip::HUGGING_FACE;
    WeightsError::Format {
        path: path.to_owned(),
        problem: format!(
            "expected the folder of a CLIP, found {what}\nhint: give a folder with {open_config} and {open_weights}, or with \
             {config}, {weights} and {PREPROCESSOR}; the same model has them on the hub under a name such as \
             openai/clip-vit-base-patch16"
        ),
    }
}

/// A model must know every token that CLIP's tokenizer gives.
fn check_vocabulary(clip: &Clip, path: &Path) -> Result<(), WeightsError> {
    let found = clip.config().text.vocabulary;
    if found >= VOCABULARY {
        return Ok(());
    }
    let expected = format!("at least {VOCABULARY}, as CLIP's tokenizer has it");
    Err(WeightsError::config(
        path,
        "text.vocabulary",
        found,
        expected,
    ))
}

fn load_folder(
    folder: &Path,
    name: &str,
    device: &Device,
) -> Result<(Clip, ClipInfo), WeightsError> {
    // Large models have the index of several files in place of one.
    let weights = |[config, weights]: [&str; 2]| {
        let index = format!("{weights}{INDEX}");
        let [config, weights, index] = [config, weights, index.as_str()].map(|n| folder.join(n));
        let weights = [weights, index].into_iter().find(|path| path.is_file())?;
        config.is_file().then_some([config, weights])
    };
    let Some([config, model]) = weights(OPEN_CLIP).or_else(|| weights(HUGGING_FACE)) else {
        return Err(WeightsError::NotFound {
            what: format!(
                "{}: expected a CLIP: {} and {}, or {} and {}",
                folder.display(),
                OPEN_CLIP[0],
                OPEN_CLIP[1],
                HUGGING_FACE[0],
                HUGGING_FACE[1],
            ),
            hint: "put the files of a published model there; a `.bin` or `.pt` file must be saved as safetensors first"
                .to_owned(),
        });
    };
    let preprocessor = folder.join(PREPROCESSOR);
    let preprocessor = if preprocessor.is_file() {
        Some(read_config(&preprocessor)?)
    } else {
        None
    };
    let parts = shards::parts(&model)?.unwrap_or_else(|| vec![model.clone()]);
    let contents = { parts.iter() }
        .map(fs::read)
        .collect::<Result<Vec<_>, _>>()?;
    let files = Files {
        config: &read_config(&config)?,
        config_path: &config,
        preprocessor: preprocessor.as_deref(),
        model: { parts.iter() }
            .zip(&contents)
            .map(|(path, bytes)| (path.as_path(), bytes.as_slice()))
            .collect(),
        model_path: &model,
    };
    files.load(name, device)
}

/// Loads a CLIP from the contents of its two files, in either layout.
///
/// # Errors
///
/// As [`load_clip`].
pub fn from_bytes(
    config: &[u8],
    model: &[u8],
    name: &str,
    device: &Device,
) -> Result<(Clip, ClipInfo), WeightsError> {
    let files = Files {
        config,
        config_path: Path::new(name),
        preprocessor: None,
        model: vec![(Path::new(name), model)],
        model_path: Path::new(name),
    };
    let (clip, info) = files.load(name, device)?;
    check_vocabulary(&clip, Path::new(name))?;
    Ok((clip, info))
}

/// Writes a CLIP in OpenCLIP's layout, with CLIP's mean and standard deviation; `fp16` rounds the
/// weights to 16 bits. The folder is made if need be.
///
/// # Errors
///
/// The folder cannot be written.
pub fn save_clip(folder: &Path, clip: &Clip, fp16: bool) -> Result<(), WeightsError> {
    fs::create_dir_all(folder)?;
    let (config, vision, text) = (clip.config(), &clip.config().vision, &clip.config().text);
    let image_size = match vision.image {
        [height, width] if height == width => json!(height),
        [height, width] => json!([height, width]),
    };
    let norm = json!({ "eps": config.epsilon });
    let contents = json!({
        "model_cfg": {
            "embed_dim": config.embed,
            "quick_gelu": config.activation == Activation::QuickGelu,
            "vision_cfg": {
                "image_size": image_size,
                "patch_size": vision.patch,
                "width": vision.width,
                "layers": vision.layers,
                "head_width": vision.width / vision.heads,
                "mlp_ratio": vision.hidden as f64 / vision.width as f64,
                "norm_kwargs": norm,
            },
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocabulary,
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "mlp_ratio": text.hidden as f64 / text.width as f64,
                "norm_kwargs": norm,
            },
        },
        "preprocess_cfg": {
            "mean": MEAN.map(decimal),
            "std": STD.map(decimal),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    });
    let mut state = StateDict::new();
    for (name, array) in state_dict(clip) {
        state.insert(name.replace(".attn.in_proj.", ".attn.in_proj_"), array);
    }
    if let Some(scale) = state.get_mut("logit_scale") {
        scale.shape.clear();
    }
    let precision = if fp16 {
        StorageFormat::Fp16
    } else {
        StorageFormat::F32
    };
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    checkpoint::write_as(&folder.join(OPEN_CLIP[1]), &state, &metadata, precision)?;
    clasp_data::atomic_write(&folder.join(OPEN_CLIP[0]), |out| {
        serde_json::to_writer_pretty(&mut *out, &contents)?;
        out.write_all(b"\n")
    })?;
    Ok(())
}

/// The shortest decimal number that reads back as the same f32: 0.48145466 rather than
/// 0.4814546704292297.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The contents of a CLIP's files and where they lie.
struct Files<'a> {
    config: &'a [u8],
    config_path: &'a Path,
    preprocessor: Option<&'a [u8]>,
    /// The files of the weights, one as a rule.
    model: Vec<(&'a Path, &'a [u8])>,
    model_path: &'a Path,
}

impl Files<'_> {
    fn load(&self, name: &str, device: &Device) -> Result<(Clip, ClipInfo), WeightsError> {
        let value: Value = serde_json::from_slice(self.config)
            .map_err(|error| WeightsError::format(self.config_path, error))?;
        let open_clip = value.get("model_cfg").is_some();
        let (config, [mean, std]) = if open_clip {
            open_clip_config(value, self.config_path)?
        } else {
            let preprocessing = self.hugging_face_preprocessing()?;
            (hugging_face_config(value, self.config_path)?, preprocessing)
        };
        config.validate().map_err(|error| {
            WeightsError::config(self.config_path, error.field, error.found, error.expected)
        })?;
        let mut state = StateDict::new();
        for (path, bytes) in &self.model {
            state.append(&mut checkpoint::read_bytes(bytes, path)?.0);
        }
        let (expected, found) = (
            config.parameters(),
            state.values().map(|array| array.data.len()).sum::<usize>(),
        );
        if found < expected {
            // Before a model of the claimed size is made.
            return Err(WeightsError::format(
                self.model_path,
                format!("{found} numbers; the configuration beside it describes {expected}"),
            ));
        }
        let state = if open_clip {
            from_open_clip(state)
        } else {
            from_hugging_face(state, self.model_path)?
        };
        let (clip, report) = load_state_dict(config.zeros(device), &state);
        if !report.is_complete() {
            return Err(WeightsError::Keys {
                path: self.model_path.to_owned(),
                report: report.to_string(),
            });
        }
        let info = ClipInfo {
            name: name.to_owned(),
            sha256: self.digest(),
            image_size: config.vision.image,
            mean,
            std,
        };
        Ok((clip, info))
    }

    /// SHA-256 of the files, one after the other, in hexadecimal.
    fn digest(&self) -> String {
        let mut digest = Sha256::new();
        self.model
            .iter()
            .for_each(|(_, bytes)| digest.update(bytes));
        hexadecimal(&digest.finalize())
    }

    fn hugging_face_preprocessing(&self) -> Result<[[f32; 3]; 2], WeightsError> {
        #[derive(Deserialize)]
        struct Preprocessor {
            image_mean: Option<[f32; 3]>,
            image_std: Option<[f32; 3]>,
        }
        let Some(bytes) = self.preprocessor else {
            return Ok([MEAN, STD]);
        };
        let path = self.config_path.with_file_name(PREPROCESSOR);
        let found: Preprocessor =
            serde_json::from_slice(bytes).map_err(|error| WeightsError::format(&path, error))?;
        let mean = found.image_mean.unwrap_or(MEAN);
        let std = found.image_std.unwrap_or(STD);
        check_preprocessing(&path, mean, std)
    }
}

fn read_config(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let length = fs::metadata(path)?.len();
    if length > LARGEST_CONFIG {
        let problem = format!("{length} bytes; a configuration has at most {LARGEST_CONFIG}");
        return Err(WeightsError::format(path, problem));
    }
    Ok(fs::read(path)?)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
