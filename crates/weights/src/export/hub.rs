//! A backbone as a folder of the hub: `model.safetensors`, `config.json` and a model card.
//!
//! The folder is timm's, which `timm.create_model("local-dir:DIR", pretrained=True)` loads, and
//! transformers through its `timm_wrapper`; or transformers' own Swin, for windows that timm does
//! not have, or its own DINOv3. Either computes the backbone's features for images of its own size, or the backbone is
//! refused.

use std::path::{Path, PathBuf};

use clasp_data::atomic_write;
use clasp_model::backbone::{Backbone, Sizes};
use clasp_model::swin::SwinSizes;
use clasp_model::vit::{Pool, Positions, VitSizes};
use serde::Serialize;
use serde_json::{Value, json};

use super::card::{self, ModelCard};
use super::timm::{self, TimmModel};
use super::{ExportOptions, NamingScheme, drop_adapter, transformers, warn_dropped};
use crate::backbone::{BackboneMeta, backbone_state};
use crate::checkpoint::{self, Metadata, StorageFormat};
use crate::error::WeightsError;
use crate::exported::{LICENSES, WINDOWS, windows_of};
use crate::import::resample;
use crate::state::StateDict;

/// Whose folder it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubLibrary {
    /// timm's, which transformers loads too.
    Timm,
    /// transformers' own Swin or DINOv3.
    Transformers,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HubExport {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Tensors in the file of weights.
    pub tensors: usize,
    /// Names of the adapter's parameters that were left out.
    pub dropped: Vec<String>,
    /// Python that loads the folder.
    pub python: String,
    /// Where features differ from this program's, if anywhere.
    pub warnings: Vec<String>,
}

/// A network in a library's terms.
struct HubModel {
    state: StateDict,
    /// Files beside the weights.
    files: Vec<(&'static str, Value)>,
    /// Python that loads the folder DIR and computes features of `pixels`.
    python: String,
    /// What is to be known about other sizes.
    note: String,
}

/// Writes the folder. Its files are written one by one, each complete; the model card last.
///
/// # Errors
///
/// The library computes other features at the backbone's own size; the backbone has an adapter; the
/// folder holds one of the files already, or cannot be written.
pub fn export_hub(
    folder: &Path,
    backbone: &Backbone,
    meta: &BackboneMeta,
    model_card: &ModelCard,
    library: HubLibrary,
    leave_out_adapter: bool,
) -> Result<HubExport, WeightsError> {
    let mut state = backbone_state(backbone);
    let options = ExportOptions {
        names: NamingScheme::Timm,
        drop_adapter: leave_out_adapter,
        precision: StorageFormat::F32,
    };
    let dropped = drop_adapter(&mut state, meta, options)?;
    let model = match (library, backbone.sizes()) {
        (HubLibrary::Timm, Sizes::Swin(sizes)) => timm_swin(state, &sizes, meta)?,
        (HubLibrary::Timm, Sizes::Vit(sizes)) => timm_vit(state, &sizes, meta)?,
        (HubLibrary::Transformers, Sizes::Swin(sizes)) => transformers_swin(state, &sizes, meta)?,
        (HubLibrary::Transformers, Sizes::Vit(sizes)) if sizes.positions == Positions::Rotary => {
            transformers_vit(state, &sizes, meta)?
        }
        (HubLibrary::Transformers, Sizes::Vit(_)) => {
            return Err(WeightsError::Export {
                what: "a ViT with learned positions".to_owned(),
                names: "transformers' own".to_owned(),
                lost: "its folder is timm's, which transformers loads".to_owned(),
                hint: "--library timm".to_owned(),
            });
        }
    };
    let warnings = warn_dropped(&dropped);
    let card = card::text(meta, model_card, &model.python, &model.note, &warnings);
    let mut texts: Vec<(&str, String)> = Vec::new();
    for (name, value) in model.files {
        let text = serde_json::to_string_pretty(&value)
            .map_err(|error| WeightsError::format(&folder.join(name), error))?;
        texts.push((name, text + "\n"));
    }
    texts.push(("README.md", card));
    let weights = folder.join("model.safetensors");
    let names = { texts.iter() }.map(|(name, _)| folder.join(name));
    let files: Vec<PathBuf> = [weights.clone()].into_iter().chain(names).collect();
    fs_err::create_dir_all(folder)?;
    if let Some(there) = files.iter().find(|file| file.exists()) {
        return Err(WeightsError::NotFound {
            what: format!(
                "{}: expected a folder without a model, found {}",
                folder.display(),
                there.file_name().unwrap_or_default().to_string_lossy()
            ),
            hint: "write into another folder, or remove this model first".to_owned(),
        });
    }
    let metadata = Metadata::from([
        ("format".to_owned(), "pt".to_owned()),
        ("written_by".to_owned(), card::written_by()),
        (LICENSES.to_owned(), meta.licenses.join("\n")),
        (WINDOWS.to_owned(), windows_of(meta)),
    ]);
    checkpoint::write(&weights, &model.state, &metadata)?;
    for (name, text) in &texts {
        atomic_write(&folder.join(name), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(HubExport {
        files,
        tensors: model.state.len(),
        dropped,
        python: model.python,
        warnings,
    })
}

fn timm_swin(
    mut state: StateDict,
    sizes: &SwinSizes,
    meta: &BackboneMeta,
) -> Result<HubModel, WeightsError> {
    let own = [meta.height, meta.width];
    let Some((model, windows)) = timm::swin(&meta.config, sizes, own)? else {
        return Err(no_windows(sizes, meta, "timm"));
    };
    if let Some([rows, columns]) = windows.tables.iter().find(|window| is_misread(**window)) {
        return Err(WeightsError::Export {
            what: format!("a Swin with windows of {rows}x{columns}"),
            names: "timm".to_owned(),
            lost: "timm takes its table of biases for that of a square window when it loads a folder".to_owned(),
            hint: "--size HxW of another size; or `clasp export safetensors`, which is loaded as it is".to_owned(),
        });
    }
    timm::tables(&mut state, sizes, &windows);
    let grid = own.map(|side| side.div_ceil(sizes.stage_stride(sizes.depths.len() - 1)));
    let channels = sizes.stage_channels(sizes.depths.len() - 1);
    let note = match windows.dynamic_img_size {
        true => "The model takes images of any size.".to_owned(),
        false => format!(
            "The model takes images of {}x{} pixels (height x width), the size of the backbone: its windows depend on it.",
            own[0], own[1]
        ),
    };
    Ok(HubModel {
        state,
        files: vec![(
            "config.json",
            timm_config(&model, meta, "avg", channels, grid, "head.fc"),
        )],
        python: timm_python(meta),
        note,
    })
}

/// Whether the table of a window that is no square has as many rows as that of a square.
fn is_misread([rows, columns]: [usize; 2]) -> bool {
    let count = (2 * rows - 1) * (2 * columns - 1);
    rows != columns && count.isqrt().pow(2) == count
}

fn timm_vit(
    mut state: StateDict,
    sizes: &VitSizes,
    meta: &BackboneMeta,
) -> Result<HubModel, WeightsError> {
    super::refuse_unsupported(sizes)?;
    let own = [meta.height, meta.width];
    if sizes.crop && !is_divided(own, sizes) {
        return Err(WeightsError::Export {
            what: format!("a ViT of transformers for images of {}x{}", own[0], own[1]),
            names: NamingScheme::Timm.to_string(),
            lost: format!(
                "transformers crops images to whole patches of {} pixels, timm pads them, so that every feature would differ",
                sizes.patch_size
            ),
            hint: format!("--size HxW of multiples of {}", sizes.patch_size),
        });
    }
    let at_own = VitSizes {
        image_size: own,
        ..sizes.clone()
    };
    resample::fit(
        &mut state,
        &Sizes::Vit(sizes.clone()),
        &Sizes::Vit(at_own.clone()),
    );
    timm::vit_state(&mut state, &at_own);
    let model = timm::vit(&at_own);
    let pool = match sizes.pool {
        Pool::Mean => "avg",
        Pool::Class | Pool::Distilled => "token",
    };
    let config = timm_config(&model, meta, pool, sizes.embed_dim, at_own.grid(), "head");
    Ok(HubModel {
        state,
        files: vec![("config.json", config)],
        python: timm_python(meta),
        note: "The model takes images of any size.".to_owned(),
    })
}

/// Whether the patch divides an image.
fn is_divided(image: [usize; 2], sizes: &VitSizes) -> bool {
    { image.iter() }.all(|side| side.is_multiple_of(sizes.patch_size))
}

/// timm's `config.json`, which transformers takes too (`timm_wrapper`).
fn timm_config(
    model: &TimmModel,
    meta: &BackboneMeta,
    pool: &str,
    channels: usize,
    grid: [usize; 2],
    classifier: &str,
) -> Value {
    let fixed = !model.arguments.contains_key("dynamic_img_size");
    json!({
        "architecture": model.architecture,
        "model_type": "timm_wrapper",
        "num_classes": 0,
        "num_features": channels,
        "global_pool": pool,
        "model_args": model.arguments,
        "pretrained_cfg": {
            "tag": "clasp",
            "custom_load": false,
            "input_size": [3, meta.height, meta.width],
            "fixed_input_size": fixed,
            "interpolation": meta.filter.to_string(),
            "crop_pct": 1.0,
            // Resized without regard to the ratio of its sides, as this program does.
            "crop_mode": "squash",
            "mean": meta.mean,
            "std": meta.std,
            "num_classes": 0,
            "pool_size": grid,
            "first_conv": "patch_embed.proj",
            "classifier": classifier,
            "license": card::license(meta),
        },
    })
}

fn timm_python(meta: &BackboneMeta) -> String {
    format!(
        "import timm, torch, transformers\n\
         pixels = torch.zeros(1, 3, {}, {})  # less the mean, over the standard deviation\n\
         model = timm.create_model(\"local-dir:DIR\", pretrained=True, num_classes=0).eval()\n\
         features = model(pixels)\n\
         # or\n\
         model = transformers.AutoModel.from_pretrained(\"DIR\")\n\
         features = model(pixels).pooler_output",
        meta.height, meta.width
    )
}

fn transformers_swin(
    state: StateDict,
    sizes: &SwinSizes,
    meta: &BackboneMeta,
) -> Result<HubModel, WeightsError> {
    let own = [meta.height, meta.width];
    let Some(windows) = meta.config.transformers_windows(own)? else {
        return Err(no_windows(sizes, meta, "transformers"));
    };
    let argument = match windows.always_partition {
        true => ", always_partition=True",
        false => "",
    };
    let note = match windows.always_partition {
        true => {
            "`always_partition=True` is needed: without it transformers has other windows, or refuses images whose \
             maps are smaller than a window."
        }
        false => "At other sizes the features may need `always_partition=True`.",
    };
    Ok(HubModel {
        state: transformers::state(state),
        files: vec![
            ("config.json", transformers::config(sizes, meta)),
            ("preprocessor_config.json", transformers::preprocessor(meta)),
        ],
        python: transformers_python(meta, argument),
        note: note.to_owned(),
    })
}

/// The Python that loads a folder in transformers; `argument` goes into the call of the model.
fn transformers_python(meta: &BackboneMeta, argument: &str) -> String {
    format!(
        "import torch, transformers\n\
         pixels = torch.zeros(1, 3, {}, {})  # less the mean, over the standard deviation\n\
         model = transformers.AutoModel.from_pretrained(\"DIR\")\n\
         features = model(pixels{argument}).pooler_output",
        meta.height, meta.width
    )
}

fn transformers_vit(
    state: StateDict,
    sizes: &VitSizes,
    meta: &BackboneMeta,
) -> Result<HubModel, WeightsError> {
    let own = [meta.height, meta.width];
    let refused = |lost: String, hint: String| WeightsError::Export {
        what: format!(
            "a ViT with rotary positions for images of {}x{}",
            own[0], own[1]
        ),
        names: "transformers".to_owned(),
        lost,
        hint,
    };
    if let Some(what) = transformers::unsupported_in_vit(sizes) {
        return Err(refused(
            format!("transformers' DINOv3 has no {what}, so that every feature would differ"),
            "--library timm, or `clasp export onnx`".to_owned(),
        ));
    }
    if !sizes.crop && !is_divided(own, sizes) {
        let side = sizes.patch_size;
        return Err(refused(
            format!(
                "transformers crops images to whole patches of {side} pixels, this backbone pads them, so that every feature \
                 would differ"
            ),
            format!("--size HxW of multiples of {side}; or --library timm"),
        ));
    }
    Ok(HubModel {
        state: transformers::vit_state(state, sizes),
        files: vec![
            ("config.json", transformers::vit_config(sizes, meta)),
            ("preprocessor_config.json", transformers::preprocessor(meta)),
        ],
        python: transformers_python(meta, ""),
        note: "The model takes images of any size.".to_owned(),
    })
}

/// Why a library cannot have a Swin at its own size, and what can be done.
fn no_windows(sizes: &SwinSizes, meta: &BackboneMeta, library: &str) -> WeightsError {
    let multiple = sizes.window_size * sizes.stage_stride(sizes.depths.len() - 1);
    let other = match library {
        "timm" => "--library transformers writes transformers' own Swin, if it has such windows",
        _ => "--library timm",
    };
    WeightsError::Export {
        what: format!(
            "a Swin with windows of {} for images of {}x{}",
            sizes.window_size, meta.height, meta.width
        ),
        names: library.to_owned(),
        lost: format!(
            "{library} shifts, pads or shrinks windows in another way at this size, so that every feature would differ"
        ),
        hint: format!(
            "{other}; --size HxW of multiples of {multiple}, which windows divide; or `clasp export onnx`. A backbone that \
             was pre-trained with model.windows = \"timm\" has timm's windows"
        ),
    }
}
