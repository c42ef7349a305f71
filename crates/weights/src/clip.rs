//! CLIP folders, as published.
//!
//! Two layouts are read, told apart by their files:
//!
//! | | weights | configuration | preprocessing |
//! |---|---|---|---|
//! | OpenCLIP | `open_clip_model.safetensors` | `open_clip_config.json` | in the configuration |
//! | Hugging Face | `model.safetensors` | `config.json` | `preprocessor_config.json`, if there is one |
//!
//! A folder that holds both is read as OpenCLIP's. [`save_clip`] writes OpenCLIP's layout.
//!
//! Configurations come from outside: every size is bounded before a model of that size is made, a feature that
//! this program's CLIP lacks (other towers, poolings, tokenizers) is an error that names it, and the weights must
//! hold each parameter in its shape and nothing else.

use crate::checkpoint::{self, Metadata, Precision};
use crate::error::WeightsError;
use crate::hub;
use crate::state::{Array, StateDict, load_state_dict, state_dict};
use burn::tensor::Device;
use clasp_data::image::check_normalization;
use clasp_model::clip::{Activation, Clip, ClipConfig, TextConfig, VOCABULARY, VisionConfig};
use fs_err as fs;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Means of the red, green and blue of CLIP's training images, in 0 to 1.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviations of the same.
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Names of OpenCLIP's files.
pub const OPEN_CLIP: [&str; 2] = ["open_clip_config.json", "open_clip_model.safetensors"];
/// Names of Hugging Face's files.
pub const HUGGING_FACE: [&str; 2] = ["config.json", "model.safetensors"];
/// Hugging Face's description of the preprocessing.
pub const PREPROCESSOR: &str = "preprocessor_config.json";

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
    /// Means to normalise images with.
    pub mean: [f32; 3],
    /// Standard deviations to normalise images with.
    pub std: [f32; 3],
}

/// Loads a CLIP from a folder, or by a name such as `openai/clip-vit-base-patch16` from the hub or its cache
/// ([`hub`]).
///
/// # Errors
///
/// Neither a folder nor a name that can be fetched; a file that is missing, broken or too large; a configuration
/// that asks for what this program's CLIP lacks; weights that do not fit the configuration.
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
        let folder = hub::fetch(folder_or_name, &hub::Options::from_env())?;
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
    let both = |names: [&str; 2]| {
        let paths = names.map(|name| folder.join(name));
        paths.iter().all(|path| path.is_file()).then_some(paths)
    };
    let Some([config, model]) = both(OPEN_CLIP).or_else(|| both(HUGGING_FACE)) else {
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
    let files = Files {
        config: &read_config(&config)?,
        config_path: &config,
        preprocessor: preprocessor.as_deref(),
        model: &fs::read(&model)?,
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
        model,
        model_path: Path::new(name),
    };
    let (clip, info) = files.load(name, device)?;
    check_vocabulary(&clip, Path::new(name))?;
    Ok((clip, info))
}

/// Writes a CLIP in OpenCLIP's layout, with CLIP's mean and standard deviation; `half` rounds the weights to 16
/// bits. The folder is made if need be.
///
/// # Errors
///
/// The folder cannot be written.
pub fn save_clip(folder: &Path, clip: &Clip, half: bool) -> Result<(), WeightsError> {
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
    let precision = if half {
        Precision::Half
    } else {
        Precision::Full
    };
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    checkpoint::write_as(&folder.join(OPEN_CLIP[1]), &state, &metadata, precision)?;
    clasp_data::atomic_write(&folder.join(OPEN_CLIP[0]), |out| {
        serde_json::to_writer_pretty(&mut *out, &contents)?;
        out.write_all(b"\n")
    })?;
    Ok(())
}

/// The shortest decimal number that reads back as the same f32: 0.48145466 rather than 0.4814546704292297.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The contents of a CLIP's files and where they lie.
struct Files<'a> {
    config: &'a [u8],
    config_path: &'a Path,
    preprocessor: Option<&'a [u8]>,
    model: &'a [u8],
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
        let (state, _) = checkpoint::read_bytes(self.model, self.model_path)?;
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
            sha256: hexadecimal(&Sha256::digest(self.model)),
            image_size: config.vision.image,
            mean,
            std,
        };
        Ok((clip, info))
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

fn check_preprocessing(
    path: &Path,
    mean: [f32; 3],
    std: [f32; 3],
) -> Result<[[f32; 3]; 2], WeightsError> {
    check_normalization(mean, std).map_err(|problem| WeightsError::format(path, problem))?;
    Ok([mean, std])
}

/// A size, or height and width.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Side {
    Square(usize),
    Rectangle([usize; 2]),
}

impl Side {
    fn pair(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Rectangle(pair) => pair,
        }
    }
}

/// `open_clip_config.json`, with that library's defaults for what is absent.
#[derive(Deserialize)]
struct OpenClipFile {
    model_cfg: OpenClipModel,
    #[serde(default)]
    preprocess_cfg: OpenClipPreprocess,
}

#[derive(Default, Deserialize)]
struct OpenClipPreprocess {
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
}

#[derive(Deserialize)]
struct OpenClipModel {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(default)]
struct OpenClipVision {
    layers: usize,
    width: usize,
    head_width: usize,
    mlp_ratio: f64,
    patch_size: usize,
    image_size: Side,
    norm_kwargs: Option<Norm>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for OpenClipVision {
    fn default() -> Self {
        Self {
            layers: 12,
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: Side::Square(224),
            norm_kwargs: None,
            rest: Map::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct OpenClipText {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    mlp_ratio: f64,
    norm_kwargs: Option<Norm>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for OpenClipText {
    fn default() -> Self {
        Self {
            context_length: 77,
            vocab_size: 49_408,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            norm_kwargs: None,
            rest: Map::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Norm {
    eps: f64,
}

/// PyTorch's default for layer norms.
const EPSILON: f64 = 1e-5;

/// Refuses options of OpenCLIP that this program's CLIP does not have. An option that is off (null, false or 0),
/// has the value that plain CLIP has, or plays no part at inference, is no reason to refuse.
fn refuse_unknown(
    path: &Path,
    section: &str,
    rest: &Map<String, Value>,
) -> Result<(), WeightsError> {
    for (key, value) in rest {
        let off = value.is_null() || *value == json!(false) || value.as_f64() == Some(0.0);
        let plain = match key.as_str() {
            "pool_type" => *value == json!("tok") || *value == json!("argmax"),
            "pos_embed_type" => *value == json!("learnable"),
            "proj_type" => *value == json!("linear"),
            "block_type" => *value == json!("default"),
            "patch_dropout"
            | "attn_pooler_queries"
            | "attn_pooler_heads"
            | "output_tokens"
            | "pad_id"
            | "eos_id"
            | "custom_text"
            | "init_logit_scale"
            | "hf_model_pretrained"
            | "hf_proj_type"
            | "hf_pooler_type" => true,
            key => key.starts_with("timm_") && key != "timm_model_name",
        };
        if !off && !plain {
            let field = format!("{section}.{key}");
            let expected = "a plain CLIP, which has no such option";
            return Err(WeightsError::config(path, field, value, expected));
        }
    }
    Ok(())
}

fn open_clip_config(
    value: Value,
    path: &Path,
) -> Result<(ClipConfig, [[f32; 3]; 2]), WeightsError> {
    let file: OpenClipFile =
        serde_json::from_value(value).map_err(|error| WeightsError::format(path, error))?;
    let model = file.model_cfg;
    let (vision, text) = (model.vision_cfg, model.text_cfg);
    refuse_unknown(path, "model_cfg", &model.rest)?;
    refuse_unknown(path, "model_cfg.vision_cfg", &vision.rest)?;
    refuse_unknown(path, "model_cfg.text_cfg", &text.rest)?;
    let epsilons = [&vision.norm_kwargs, &text.norm_kwargs]
        .map(|norm| norm.as_ref().map_or(EPSILON, |norm| norm.eps));
    let hidden = |width: usize, ratio: f64| {
        // A cast from f64 to an integer saturates, and the size is bounded by `validate`. The ratio may be a
        // rounded quotient.
        (width as f64 * ratio + 1e-6) as usize
    };
    let config = ClipConfig {
        embed: model.embed_dim,
        activation: if model.quick_gelu {
            Activation::QuickGelu
        } else {
            Activation::Gelu
        },
        epsilon: same(path, "norm_kwargs.eps", epsilons)?,
        vision: VisionConfig {
            image: vision.image_size.pair(),
            patch: vision.patch_size,
            width: vision.width,
            layers: vision.layers,
            heads: vision.width.checked_div(vision.head_width).unwrap_or(0),
            hidden: hidden(vision.width, vision.mlp_ratio),
        },
        text: TextConfig {
            context: text.context_length,
            vocabulary: text.vocab_size,
            width: text.width,
            layers: text.layers,
            heads: text.heads,
            hidden: hidden(text.width, text.mlp_ratio),
        },
    };
    let mean = file.preprocess_cfg.mean.unwrap_or(MEAN);
    let std = file.preprocess_cfg.std.unwrap_or(STD);
    Ok((config, check_preprocessing(path, mean, std)?))
}

/// The one value of both towers.
fn same<T: PartialEq + std::fmt::Display + Copy>(
    path: &Path,
    field: &str,
    [vision, text]: [T; 2],
) -> Result<T, WeightsError> {
    if vision == text {
        return Ok(vision);
    }
    let found = format!("{vision} in the image tower and {text} in the text tower");
    Err(WeightsError::config(path, field, found, "the same in both"))
}

/// Hugging Face's `config.json` of a `CLIPModel`, with that library's defaults for what is absent (it writes only
/// what differs from them, so an absent `hidden_act` does say `quick_gelu`).
#[derive(Deserialize)]
struct HuggingFaceFile {
    #[serde(default)]
    model_type: Option<String>,
    #[serde(default = "projection")]
    projection_dim: usize,
    vision_config: HuggingFaceVision,
    text_config: HuggingFaceText,
}

fn projection() -> usize {
    512
}

#[derive(Deserialize)]
#[serde(default)]
struct HuggingFaceVision {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: Side,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for HuggingFaceVision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: Side::Square(224),
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: EPSILON,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct HuggingFaceText {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    vocab_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for HuggingFaceText {
    fn default() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            vocab_size: 49_408,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: EPSILON,
        }
    }
}

fn hugging_face_config(value: Value, path: &Path) -> Result<ClipConfig, WeightsError> {
    if value.get("vision_config").is_none() {
        let expected = "the configuration of a CLIPModel, with both towers";
        return Err(WeightsError::config(
            path,
            "vision_config",
            "absent",
            expected,
        ));
    }
    let file: HuggingFaceFile =
        serde_json::from_value(value).map_err(|error| WeightsError::format(path, error))?;
    if let Some(kind) = file.model_type.filter(|kind| kind != "clip") {
        return Err(WeightsError::config(path, "model_type", kind, "clip"));
    }
    let (vision, text) = (file.vision_config, file.text_config);
    if vision.num_channels != 3 {
        let field = "vision_config.num_channels";
        return Err(WeightsError::config(path, field, vision.num_channels, "3"));
    }
    let activations = [vision.hidden_act.as_str(), text.hidden_act.as_str()];
    let activation = match same(path, "hidden_act", activations)? {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::Gelu,
        other => {
            let expected = "quick_gelu or gelu";
            return Err(WeightsError::config(path, "hidden_act", other, expected));
        }
    };
    let epsilons = [vision.layer_norm_eps, text.layer_norm_eps];
    Ok(ClipConfig {
        embed: file.projection_dim,
        activation,
        epsilon: same(path, "layer_norm_eps", epsilons)?,
        vision: VisionConfig {
            image: vision.image_size.pair(),
            patch: vision.patch_size,
            width: vision.hidden_size,
            layers: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            hidden: vision.intermediate_size,
        },
        text: TextConfig {
            context: text.max_position_embeddings,
            vocabulary: text.vocab_size,
            width: text.hidden_size,
            layers: text.num_hidden_layers,
            heads: text.num_attention_heads,
            hidden: text.intermediate_size,
        },
    })
}

/// OpenCLIP's names to ours. Its text tower lies under `text.` in models that were built with `custom_text`, and
/// some files hold the causal mask.
fn from_open_clip(state: StateDict) -> StateDict {
    state
        .into_iter()
        .filter(|(name, _)| name != "attn_mask" && name != "text.attn_mask")
        .map(|(name, array)| {
            let name = name.strip_prefix("text.").unwrap_or(&name);
            (name.replace(".attn.in_proj_", ".attn.in_proj."), array)
        })
        .collect()
}

/// Hugging Face's names to ours: queries, keys and values become one matrix, and the projections, linear layers
/// there, are turned.
fn from_hugging_face(mut state: StateDict, path: &Path) -> Result<StateDict, WeightsError> {
    let mut ours = StateDict::new();
    let queries: Vec<String> = state
        .keys()
        .filter(|name| name.contains(".self_attn.q_proj."))
        .cloned()
        .collect();
    for query in queries {
        let mut joined = Array::default();
        for letter in ["q", "k", "v"] {
            let name = query.replace(".q_proj.", &format!(".{letter}_proj."));
            let part = state.remove(&name).ok_or_else(|| WeightsError::Keys {
                path: path.to_owned(),
                report: format!("`{name}` is missing"),
            })?;
            if letter == "q" {
                joined.shape.clone_from(&part.shape);
                if let Some(rows) = joined.shape.first_mut() {
                    *rows = 0;
                }
            }
            if part.shape.is_empty() || part.shape[1..] != joined.shape[1..] {
                return Err(WeightsError::Keys {
                    path: path.to_owned(),
                    report: format!(
                        "`{name}`: shape {:?} does not go with its neighbours'",
                        part.shape
                    ),
                });
            }
            joined.shape[0] += part.shape[0];
            joined.data.extend(part.data);
        }
        let name = query.replace(".self_attn.q_proj.", ".attn.in_proj.");
        ours.insert(rename(&name), joined);
    }
    for (name, array) in state {
        // A buffer of older files.
        if name.ends_with(".position_ids") {
            continue;
        }
        let array = match name.as_str() {
            "visual_projection.weight" | "text_projection.weight" => transpose(array),
            _ => array,
        };
        ours.insert(rename(&name), array);
    }
    Ok(ours)
}

/// A name of Hugging Face's in ours.
fn rename(name: &str) -> String {
    const WHOLE: [(&str, &str); 7] = [
        ("visual_projection.weight", "visual.proj"),
        ("text_projection.weight", "text_projection"),
        (
            "vision_model.embeddings.class_embedding",
            "visual.class_embedding",
        ),
        (
            "vision_model.embeddings.patch_embedding.weight",
            "visual.conv1.weight",
        ),
        (
            "vision_model.embeddings.position_embedding.weight",
            "visual.positional_embedding",
        ),
        (
            "text_model.embeddings.token_embedding.weight",
            "token_embedding.weight",
        ),
        (
            "text_model.embeddings.position_embedding.weight",
            "positional_embedding",
        ),
    ];
    const PARTS: [(&str, &str); 10] = [
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("text_model.final_layer_norm.", "ln_final."),
        (
            "vision_model.encoder.layers.",
            "visual.transformer.resblocks.",
        ),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        (".self_attn.out_proj.", ".attn.out_proj."),
    ];
    if let Some((_, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return (*ours).to_owned();
    }
    PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| {
        name.replace(theirs, ours)
    })
}

/// A matrix turned; anything else as it is (its shape will be reported).
fn transpose(array: Array) -> Array {
    let [rows, columns] = match array.shape.as_slice() {
        [rows, columns] => [*rows, *columns],
        _ => return array,
    };
    let data = (0..rows * columns)
        .map(|place| array.data[place % rows * columns + place / rows])
        .collect();
    Array {
        shape: vec![columns, rows],
        data,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "clip_tests.rs"]
mod tests;
