//! Configurations of OpenCLIP and Hugging Face.

use std::path::Path;

use clasp_data::image::check_normalization;
use clasp_model::clip::{Activation, ClipConfig, TextConfig, VisionConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::WeightsError;

/// Means of the red, green and blue of CLIP's training images, in 0 to 1.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviations of the same.
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

pub(super) fn check_preprocessing(
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
    norm_kwargs: Option<NormSection>,
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
    norm_kwargs: Option<NormSection>,
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
struct NormSection {
    eps: f64,
}

/// PyTorch's default for layer norms.
const EPSILON: f64 = 1e-5;

/// Refuses options of OpenCLIP that this program's CLIP does not have. An option that is off (null,
/// false or 0), has the value that plain CLIP has, or plays no part at inference, is no reason to
/// refuse.
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

pub(super) fn open_clip_config(
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
        // A cast from f64 to an integer saturates, and the size is bounded by `validate`. The ratio
        // may be a rounded quotient.
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

/// Hugging Face's `config.json` of a `CLIPModel`, with that library's defaults for what is absent
/// (it writes only what differs from them, so an absent `hidden_act` does say `quick_gelu`).
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

pub(super) fn hugging_face_config(value: Value, path: &Path) -> Result<ClipConfig, WeightsError> {
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
