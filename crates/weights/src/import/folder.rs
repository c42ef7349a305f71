//! What the files beside a checkpoint say about it: `config.json` of transformers or timm,
//! `open_clip_config.json`, `preprocessor_config.json`.

use std::io::Read;
use std::path::Path;

use clasp_data::image::Filter;
use clasp_model::swin::WindowPadding;
use fs_err as fs;
use serde_json::Value;

use super::hugging_face::NameFamily;
use super::options::ImportOptions;
use super::source::CheckpointSource;
use crate::checkpoint::Metadata;
use crate::error::WeightsError;
use crate::exported::{LICENSES, PREPROCESSING, Preprocessing, STATED_BESIDE, WINDOWS};

/// Longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// What a folder says about the checkpoint in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FolderConfig {
    /// Attention heads of a ViT.
    pub heads: Option<usize>,
    /// Height and width of its images.
    pub size: Option<[usize; 2]>,
    /// Mean and standard deviation of the colors.
    pub mean: Option<[f32; 3]>,
    pub std: Option<[f32; 3]>,
    /// Whether the feature of a ViT is the mean of its patches, timm's `global_pool="avg"`.
    pub mean_pool: Option<bool>,
    /// Filter by which images are resized.
    pub filter: Option<Filter>,
    /// License lines of a file that this program exported.
    pub licenses: Option<Vec<String>>,
    /// License of the weights, as timm's folders state it.
    pub license: Option<String>,
    /// timm's `always_partition`: windows are shifted in every stage and never shrink.
    pub always_partition: bool,
    /// Why the network is another than the names say.
    pub other: Option<String>,
    /// Whether a CLIP's activation is QuickGELU, or the name of another one.
    pub quick_gelu: Option<Result<bool, String>>,
}

impl FolderConfig {
    /// Reads the files beside `path` that tensors of these names come with; without such files
    /// nothing is known.
    ///
    /// # Errors
    ///
    /// A file beside a checkpoint in transformers' or OpenCLIP's names is no JSON.
    pub fn beside(path: &Path, family: NameFamily) -> Result<Self, WeightsError> {
        let mut found = Self::default();
        match family {
            NameFamily::OpenClip => {
                if let Some(config) = read(&path.with_file_name("open_clip_config.json"))? {
                    found.open_clip(&config);
                }
            }
            NameFamily::Transformers | NameFamily::TransformersClip => {
                if let Some(config) = read(&path.with_file_name("config.json"))? {
                    found.transformers(&config);
                }
                if let Some(config) = read(&path.with_file_name("preprocessor_config.json"))? {
                    found.mean = colors(&config["image_mean"]);
                    found.std = colors(&config["image_std"]);
                }
            }
            // Many folders have a file of that name.
            NameFamily::Plain => {
                if let Ok(Some(config)) = read(&path.with_file_name("config.json"))
                    && config["architecture"].is_string()
                {
                    found.timm(&config);
                }
            }
        }
        Ok(found)
    }

    /// With what the metadata of a file say that this program exported.
    pub fn with_exported(mut self, metadata: &Metadata) -> Self {
        if !metadata.contains_key(WINDOWS) {
            return self;
        }
        let lines = metadata.get(LICENSES).filter(|text| !text.is_empty());
        self.licenses = lines.map(|text| text.lines().map(str::to_owned).collect());
        let preprocessing = metadata.get(PREPROCESSING);
        let preprocessing = preprocessing.and_then(|text| serde_json::from_str(text).ok());
        if let Some(Preprocessing {
            height: height @ 1..=65_536,
            width: width @ 1..=65_536,
            mean,
            std,
            interpolation,
        }) = preprocessing
        {
            self.size = Some([height, width]);
            (self.mean, self.std) = (Some(mean), Some(std));
            self.filter = Some(interpolation);
        }
        self
    }

    /// How windows lie on a map, where the folder or the metadata of a file that this program
    /// exported say it.
    pub fn window_padding(&self, metadata: &Metadata) -> Option<WindowPadding> {
        let exported = metadata.get(WINDOWS).map(|text| Value::from(text.as_str()));
        match exported.map(serde_json::from_value) {
            Some(Ok(padding)) => Some(padding),
            _ => self.always_partition.then_some(WindowPadding::Detection),
        }
    }

    fn transformers(&mut self, config: &Value) {
        // A CLIP has its image tower's inside.
        let vision = match &config["vision_config"] {
            Value::Null => config,
            vision => vision,
        };
        self.heads = whole(&vision["num_attention_heads"]);
        let image = &vision["image_size"];
        self.size = match (whole(image), whole(&image[0]), whole(&image[1])) {
            (Some(side), ..) => Some([side; 2]),
            (None, Some(height), Some(width)) => Some([height, width]),
            _ => None,
        };
        if config["model_type"] == "dinov3_vit" {
            let activation = match config["use_gated_mlp"] == Value::Bool(true) {
                true => "silu",
                false => "gelu",
            };
            self.other = [
                ("rope_theta", Value::from(100.0)),
                ("layer_norm_eps", Value::from(1e-5)),
                ("hidden_act", Value::from(activation)),
            ]
            .into_iter()
            .find_map(|(key, expected)| differs(config, key, &expected));
        }
        let is_clip = ["clip", "clip_vision_model"].map(Value::from);
        self.quick_gelu = match vision["hidden_act"].as_str() {
            Some("quick_gelu") => Some(Ok(true)),
            Some("gelu") => Some(Ok(false)),
            Some(other) => Some(Err(other.to_owned())),
            // transformers leaves out what is its default.
            None => is_clip.contains(&config["model_type"]).then_some(Ok(true)),
        };
    }

    fn open_clip(&mut self, config: &Value) {
        let model = &config["model_cfg"];
        self.quick_gelu = Some(Ok(model["quick_gelu"].as_bool().unwrap_or(false)));
        let vision = &model["vision_cfg"];
        let per_head = whole(&vision["head_width"]).unwrap_or(64);
        self.heads = whole(&vision["width"]).and_then(|width| width.checked_div(per_head));
        self.mean = colors(&config["preprocess_cfg"]["mean"]);
        self.std = colors(&config["preprocess_cfg"]["std"]);
    }

    fn timm(&mut self, config: &Value) {
        let arguments = &config["model_args"];
        self.heads = whole(&arguments["num_heads"]);
        let pool = match &arguments["global_pool"] {
            Value::Null => &config["global_pool"],
            pool => pool,
        };
        self.mean_pool = Some(pool == "avg");
        self.other = [
            ("rope_temperature", Value::from(100.0)),
            ("rope_type", Value::from("dinov3")),
            ("rope_rotate_half", Value::from(true)),
        ]
        .into_iter()
        .find_map(|(key, expected)| differs(arguments, key, &expected));
        self.always_partition = arguments["always_partition"] == Value::Bool(true);
        // Older folders have one object for everything.
        let pretrained = match &config["pretrained_cfg"] {
            Value::Null => config,
            pretrained => pretrained,
        };
        self.mean = colors(&pretrained["mean"]);
        self.std = colors(&pretrained["std"]);
        let is_name = |text: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
            !text.is_empty() && text.len() <= 40 && text.chars().all(plain) && *text != "unknown"
        };
        self.license = { pretrained["license"].as_str() }
            .filter(is_name)
            .map(str::to_owned);
        let sides = [1, 2].map(|axis| whole(&pretrained["input_size"][axis]));
        if let [Some(height), Some(width)] = sides {
            self.size = Some([height, width]);
        }
    }

    /// The license lines of a source, with the one that the folder states.
    pub fn licenses(&self, of_source: [&str; 3]) -> Vec<String> {
        let line = |line: &str| match &self.license {
            Some(license) if line.starts_with("weights: ") => {
                format!("weights: {license}{STATED_BESIDE}")
            }
            _ => line.to_owned(),
        };
        let own = self.licenses.clone();
        own.unwrap_or_else(|| of_source.map(line).to_vec())
    }

    /// The options with what the folder says where the caller says nothing.
    ///
    /// # Errors
    ///
    /// A CLIP whose activation this program does not have; a ViT whose rotary positions, norms or
    /// activation it does not have.
    pub fn complete(
        &self,
        options: &ImportOptions,
        family: NameFamily,
    ) -> Result<ImportOptions, String> {
        if let Some(other) = &self.other {
            return Err(other.clone());
        }
        let is_clip = matches!(family, NameFamily::TransformersClip | NameFamily::OpenClip);
        let source = match (&self.quick_gelu, options.source) {
            (Some(quick), None) if is_clip => Some(match quick {
                Ok(true) => CheckpointSource::ClipOpenAi,
                Ok(false) => CheckpointSource::ClipOpen,
                Err(other) => {
                    return Err(format!(
                        "the image tower of a CLIP with the activation `{other}`, as the configuration beside it says; \
                         expected quick_gelu or gelu, which are all that this program has"
                    ));
                }
            }),
            (_, source) => source,
        };
        Ok(ImportOptions {
            source,
            heads: options.heads.or(self.heads),
            size: options.size.or(self.size),
            ..options.clone()
        })
    }
}

/// Says that a setting of a configuration has another value than the only one that this program
/// has; what a configuration leaves out is its library's default, which is that value.
fn differs(config: &Value, key: &str, expected: &Value) -> Option<String> {
    let found = &config[key];
    let same = match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => found == expected,
        _ => found == expected || found.is_null(),
    };
    (!same).then(|| {
        format!(
            "the config.json beside it states `{key}`: expected {expected}, which is all that this program has, found {found}"
        )
    })
}

/// A JSON file; none where there is none.
fn read(path: &Path) -> Result<Option<Value>, WeightsError> {
    if !path.is_file() {
        return Ok(None);
    }
    let wrong = |problem: String| WeightsError::format(path, problem);
    let mut text = String::new();
    let read = fs::File::open(path)?
        .take(LONGEST)
        .read_to_string(&mut text);
    read.map_err(|error| wrong(format!("not a configuration: {error}")))?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| wrong(format!("not a configuration: {error}")))
}

/// A whole number of a sensible size.
fn whole(value: &Value) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    (1..=65_536).contains(&number).then_some(number)
}

/// Three numbers.
fn colors(value: &Value) -> Option<[f32; 3]> {
    let values: Vec<f32> = { value.as_array()?.iter() }
        .map(|value| value.as_f64().map(|value| value as f32))
        .collect::<Option<_>>()?;
    values.try_into().ok()
}
