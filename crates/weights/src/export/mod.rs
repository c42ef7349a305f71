//! Backbones for other programs: safetensors in timm's or SOLIDER's names.
//!
//! Both name the plain network. Experts have no place there, SOLIDER's controller only in SOLIDER's
//! names; a backbone that has them is refused unless they are to be dropped, because its features
//! change.
//!
//! | names | network | loads in |
//! |---|---|---|
//! | `timm` | Swin, ViT | `timm.models.SwinTransformer`, `VisionTransformer`, `Eva`, `strict=True` |
//! | `solider` | Swin, SOLIDER's controller | SOLIDER's `swin_transformer.py`, under `backbone.` |
//!
//! timm's Swin is built for one size of images where its windows depend on the size; the lines of
//! Python say which (`img_size`), and bias tables are brought to it.
//!
//! The metadata hold `format` = `pt` as other tools expect it, `python` (how to load it), and the
//! preprocessing and licenses of the backbone.

mod card;
mod hub;
mod solider;
mod timm;
mod transformers;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use clasp_model::backbone::{Adapter, Backbone, Sizes};
use clasp_model::layers::Resampling;
use clasp_model::prompt::PromptWeights;
use clasp_model::swin::{SwinSizes, WindowPadding};
use clasp_model::vit::{Positions, VitSizes};
use serde::Serialize;

use crate::backbone::{BackboneMeta, backbone_state};
use crate::checkpoint::{self, Metadata, StorageFormat};
use crate::error::WeightsError;
use crate::exported::{LICENSES, PREPROCESSING, Preprocessing, WINDOWS, windows_of};
use crate::state::{HostTensor, StateDict};

pub use card::{CardMetrics, ModelCard};
pub use hub::{HubExport, HubLibrary, export_hub};

/// Whose names a file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamingScheme {
    /// timm's.
    Timm,
    /// SOLIDER's, which are OpenMMLab's.
    Solider,
}

impl fmt::Display for NamingScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timm => "timm",
            Self::Solider => "solider",
        })
    }
}

impl FromStr for NamingScheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "timm" => Ok(Self::Timm),
            "solider" => Ok(Self::Solider),
            _ => Err(format!("expected timm or solider, found `{name}`")),
        }
    }
}

/// How a backbone is written.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions {
    /// Whose names.
    pub names: NamingScheme,
    /// Leave out an adapter that the names have no place for.
    pub drop_adapter: bool,
    /// In 32 or 16 bits.
    pub precision: StorageFormat,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackboneExport {
    /// Tensors in the file.
    pub tensors: usize,
    /// Names of the adapter's parameters that were left out.
    pub dropped: Vec<String>,
    /// Python that loads the file.
    pub python: String,
    /// Where features differ from this program's, if anywhere.
    pub warnings: Vec<String>,
}

/// Writes a backbone under other names atomically: complete, or not at all.
///
/// # Errors
///
/// The names have no place for the network or its adapter; the file cannot be written.
pub fn export(
    path: &Path,
    backbone: &Backbone,
    meta: &BackboneMeta,
    options: ExportOptions,
) -> Result<BackboneExport, WeightsError> {
    let NamedBackbone {
        state,
        dropped,
        python,
        warnings,
    } = named(backbone, meta, options)?;
    let preprocessing =
        Preprocessing::of(meta).map_err(|error| WeightsError::format(path, error.to_string()))?;
    let metadata = Metadata::from([
        ("format".to_owned(), "pt".to_owned()),
        ("written_by".to_owned(), card::written_by()),
        ("python".to_owned(), python.clone()),
        (PREPROCESSING.to_owned(), preprocessing),
        (LICENSES.to_owned(), meta.licenses.join("\n")),
        (WINDOWS.to_owned(), windows_of(meta)),
    ]);
    checkpoint::write_as(path, &state, &metadata, options.precision)?;
    Ok(BackboneExport {
        tensors: state.len(),
        dropped,
        python,
        warnings,
    })
}

/// A backbone whose mixture of experts is folded at a prompt, and its metadata; none where it has no
/// mixture of experts.
pub fn folded(
    backbone: &Backbone,
    meta: &BackboneMeta,
    prompt: PromptWeights,
) -> Option<(Backbone, BackboneMeta)> {
    let Adapter::Moe(_) = meta.config.adapter else {
        return None;
    };
    let mut meta = meta.clone();
    meta.config.adapter = meta.config.adapter.folded();
    Some((backbone.clone().fold(prompt), meta))
}

/// A backbone under other names.
pub struct NamedBackbone {
    /// Its tensors.
    pub state: StateDict,
    /// Names of the adapter's parameters that were left out.
    pub dropped: Vec<String>,
    /// Python that loads a file of the tensors.
    pub python: String,
    /// Where features differ from this program's, if anywhere.
    pub warnings: Vec<String>,
}

/// A backbone under other names.
///
/// # Errors
///
/// The names have no place for the network or its adapter.
pub fn named(
    backbone: &Backbone,
    meta: &BackboneMeta,
    options: ExportOptions,
) -> Result<NamedBackbone, WeightsError> {
    let sizes = backbone.sizes();
    let mut state = backbone_state(backbone);
    let dropped = drop_adapter(&mut state, meta, options)?;
    let mut warnings = warn_dropped(&dropped);
    if let Sizes::Swin(swin) = &sizes
        && !swin.merging.is_empty()
    {
        warnings.push(format!(
            "weights of a Swin with strides {:?} between its stages: a network with stride 2 before each, as timm's does, loads them but \
             computes other features",
            swin.merging
        ));
    }
    let python = match (options.names, &sizes) {
        (NamingScheme::Timm, Sizes::Swin(swin)) => {
            timm_swin(&mut state, swin, meta, &mut warnings)?.python()
        }
        (NamingScheme::Timm, Sizes::Vit(vit)) => {
            refuse_unsupported(vit)?;
            warnings.extend(other_images_in_timm(vit, meta));
            timm::vit_state(&mut state, vit);
            timm::vit(vit).python()
        }
        (NamingScheme::Solider, Sizes::Swin(swin)) => {
            warnings.extend(other_windows_in_solider(meta));
            state = solider::solider(state, swin);
            "state = safetensors.torch.load_file(FILE)  # what `torch.load(...)['teacher']` gives in SOLIDER's code"
                .to_owned()
        }
        (NamingScheme::Solider, Sizes::Vit(_)) => {
            return Err(WeightsError::Export {
                what: "a ViT".to_owned(),
                names: options.names.to_string(),
                lost: "SOLIDER publishes Swin alone".to_owned(),
                hint: "--names timm".to_owned(),
            });
        }
    };
    Ok(NamedBackbone {
        state,
        dropped,
        python,
        warnings,
    })
}

/// Brings a Swin's state to timm and says how timm builds it; where timm has not its windows at its
/// own size, what comes nearest, with a warning.
fn timm_swin(
    state: &mut StateDict,
    sizes: &SwinSizes,
    meta: &BackboneMeta,
    warnings: &mut Vec<String>,
) -> Result<timm::TimmModel, WeightsError> {
    let own = [meta.height, meta.width];
    let size = format!("{}x{}", meta.height, meta.width);
    let found = timm::swin(&meta.config, sizes, own)?;
    let detection = meta.config.padding == WindowPadding::Detection;
    let multiple = sizes.window_size * sizes.stage_stride(sizes.depths.len() - 1);
    match found {
        Some((_, windows)) if windows.always_partition => {
            warnings.push(format!(
                "timm shifts windows before it pads, this backbone after: features agree on images whose height and width are \
                 multiples of {multiple}, as {size} is, or which windows divide all the same"
            ));
            Ok(timm::swin_always_partition(sizes))
        }
        Some((model, windows)) => {
            timm::tables(state, sizes, &windows);
            Ok(model)
        }
        None if !sizes.merging.is_empty() => Ok(timm::swin_always_partition(sizes)),
        None if detection => {
            warnings.push(format!(
                "timm does not compute this backbone's features at its own size, {size}: it shifts windows before it pads, this \
                 backbone after. They agree on images whose height and width are multiples of {multiple}; elsewhere use `clasp \
                 export onnx`"
            ));
            Ok(timm::swin_always_partition(sizes))
        }
        None => Err(WeightsError::Export {
            what: format!("a Swin of Hugging Face's transformers for images of {size}"),
            names: NamingScheme::Timm.to_string(),
            lost: "timm has other windows at this size, so that every feature would differ"
                .to_owned(),
            hint: format!(
                "--size HxW of another size, such as {0}x{0}; or `clasp export onnx`",
                multiple
            ),
        }),
    }
}

/// A ViT that timm does not support is an error.
fn refuse_unsupported(sizes: &VitSizes) -> Result<(), WeightsError> {
    match timm::unsupported_in_vit(sizes) {
        None => Ok(()),
        Some(what) => Err(WeightsError::Export {
            what: format!("a ViT with {what}"),
            names: NamingScheme::Timm.to_string(),
            lost: "timm has no such network, so that every feature would differ".to_owned(),
            hint: "`clasp export onnx` has every network".to_owned(),
        }),
    }
}

/// A ViT of transformers takes images of other sizes than its own in another way than timm.
fn other_images_in_timm(sizes: &VitSizes, meta: &BackboneMeta) -> Option<String> {
    // Without position embeddings they differ in the images that the patch does not divide.
    let rotary = sizes.positions == Positions::Rotary;
    let divides = [meta.height, meta.width].map(|side| side.is_multiple_of(sizes.patch_size));
    if rotary {
        return (sizes.crop && divides != [true; 2]).then(|| {
            format!(
                "timm pads images that the patch does not divide, transformers, whose ViT this is, crops them: features agree \
                 on images of multiples of {}, which its own size is not",
                sizes.patch_size
            )
        });
    }
    let differs = sizes.crop || sizes.resampling != Resampling::Antialiased;
    let [height, width] = sizes.grid().map(|count| count * sizes.patch_size);
    differs.then(|| {
        let own = match [meta.height, meta.width] == [height, width] {
            true => "",
            false => ", which its own size is not",
        };
        format!(
            "timm interpolates position embeddings and takes images that the patch does not divide in another way than \
             transformers, whose ViT this is: features agree on images of {height}x{width}{own}"
        )
    })
}

/// SOLIDER's code pads before it shifts; a backbone with other windows computes other features there.
fn other_windows_in_solider(meta: &BackboneMeta) -> Option<String> {
    (meta.config.padding != WindowPadding::Detection).then(|| {
        "SOLIDER's code pads maps before it shifts windows and never shrinks a window; this backbone comes from a program \
         that does not, so that features differ on images that windows do not divide and in stages of one window"
            .to_owned()
    })
}

/// Says that an adapter was left out.
fn warn_dropped(dropped: &[String]) -> Vec<String> {
    if dropped.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the features are not those of the backbone: {} parameters of its adapter are left out",
        dropped.len()
    )]
}

/// Takes out of a state what belongs to an adapter that the names have no place for.
fn drop_adapter(
    state: &mut StateDict,
    meta: &BackboneMeta,
    options: ExportOptions,
) -> Result<Vec<String>, WeightsError> {
    // SOLIDER's names have a place for its controller, and nothing has one for a mixture of
    // experts.
    let keeps =
        options.names == NamingScheme::Solider && matches!(meta.config.adapter, Adapter::Lambda(_));
    let parameters = meta.config.parameter_groups()?;
    let of_adapter = |name: &&String| !keeps && parameters.is_adapter(name);
    let dropped: Vec<String> = state.keys().filter(of_adapter).cloned().collect();
    if !dropped.is_empty() && !options.drop_adapter {
        let count = |names: &mut dyn Iterator<Item = &HostTensor>| -> usize {
            names.map(|array| array.data.len()).sum()
        };
        let lost = count(&mut dropped.iter().filter_map(|name| state.get(name)));
        let all = count(&mut state.values());
        let what = match &meta.config.adapter {
            Adapter::Moe(moe) => format!(
                "the mixture of experts of {} block{}",
                moe.blocks,
                if moe.blocks == 1 { "" } else { "s" }
            ),
            _ => "SOLIDER's controller".to_owned(),
        };
        return Err(WeightsError::Export {
            what,
            names: options.names.to_string(),
            lost: format!(
                "{lost} of {all} numbers would be lost, and with them the control by prompt weights"
            ),
            hint: match &meta.config.adapter {
                Adapter::Moe(_) => "--prompt PROMPT folds a prompt into the plain network, which keeps its features",
                _ => "--drop-adapter writes the plain network without it; its features differ",
            }
            .to_owned(),
        });
    }
    for name in &dropped {
        state.remove(name);
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests;
