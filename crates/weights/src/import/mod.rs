//! Published checkpoints as backbones.
//!
//! A file is opened ([`TensorFile`]), recognized by its names and shapes ([`CheckpointSource`]),
//! renamed to the names of this program's networks, measured (the configuration follows from the
//! shapes), and loaded with a [`ImportReport`] of matched, missing and unexpected keys. Nothing is
//! guessed silently: what the shapes leave open is in a table of published sizes, or an error that
//! says which option decides it.
//!
//! | file | holds |
//! |---|---|
//! | [`options`] | what a caller may say about it |
//! | `folder` | what the files beside it say about it |
//! | `recognition` | who published it, by names and shapes |
//! | [`source`] | what is known of each publisher: layout, preprocessing, licenses |
//! | [`hugging_face`] | names of Hugging Face's transformers to timm's |
//! | [`names`] | foreign names and layouts to ours |
//! | `dinov3` | biases and periods of DINOv3's files |
//! | [`sizes`] | the configuration from the shapes |
//! | `windows` | windows of a Swin from its bias tables |
//! | [`resample`] | tables and position embeddings of another size |
//! | [`report`] | matched, missing and unexpected keys |

use std::path::Path;

use burn::tensor::Device;
use clasp_data::image::Filter;
use clasp_model::backbone::{Adapter, Backbone, BackboneConfig, LambdaConfig, Sizes};
use clasp_model::layers::Rng;
use clasp_model::swin::WindowPadding;
use clasp_model::vit::{Pool, VitSizes};
use rand_chacha::rand_core::SeedableRng;

use crate::backbone::{BackboneMeta, backbone_file, load_backbone_state, own_meta};
use crate::error::WeightsError;
use crate::finetuned;
use crate::state::{HostTensor, StateDict, held_values};
use crate::tensors::TensorFile;
use folder::FolderConfig;
use hugging_face::TimmNames;
use recognition::RecognizedCheckpoint;

mod dinov3;
mod folder;
pub mod hugging_face;
pub mod names;
pub mod options;
mod recognition;
pub mod report;
pub mod resample;
pub mod sizes;
pub mod source;
mod windows;

pub use options::ImportOptions;
pub use report::ImportReport;
pub use source::CheckpointSource;

/// A checkpoint that became a backbone.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The network.
    pub backbone: Backbone,
    /// What its file is to say.
    pub meta: BackboneMeta,
    /// Matched, missing and unexpected keys.
    pub report: ImportReport,
}

/// A checkpoint in this program's names, before any network is made.
pub(crate) struct RenamedCheckpoint {
    pub state: StateDict,
    pub meta: BackboneMeta,
    pub report: ImportReport,
}

/// Imports a checkpoint of any known source, or a backbone file of this program.
///
/// # Errors
///
/// The file cannot be read or is not recognized; its sizes are ambiguous; nothing of it is a
/// backbone; unless lenient, a tensor is missing, left over or of another shape.
pub fn import(
    path: &Path,
    options: &ImportOptions,
    device: &Device,
) -> Result<Imported, WeightsError> {
    import_tensors(TensorFile::open(&backbone_file(path)?)?, options, device)
}

/// Reads a backbone file, or `backbone.safetensors` of a run's folder, or any checkpoint that
/// [`import`] knows, onto `device`.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use burn::tensor::{Device, Tensor};
/// use clasp_model::prompt::PromptWeights;
///
/// let device = Device::flex();
/// let (backbone, meta) = clasp_weights::import::load_backbone("run".as_ref(), &device)?;
/// // Images less `meta.mean`, over `meta.std`: [batch, 3, height, width].
/// let images = Tensor::zeros([1, 3, meta.height, meta.width], &device);
/// let prompt: PromptWeights = "identity".parse()?;
/// let features = backbone.forward(images, prompt.tensor(&device), None).pooled;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// There is no such file, it is another kind of file, or its tensors do not fit its configuration.
pub fn load_backbone(
    path: &Path,
    device: &Device,
) -> Result<(Backbone, BackboneMeta), WeightsError> {
    let imported = import(path, &ImportOptions::default(), device)?;
    Ok((imported.backbone, imported.meta))
}

/// As [`import`], of a file that is open.
///
/// # Errors
///
/// As [`import`].
pub fn import_tensors(
    file: TensorFile,
    options: &ImportOptions,
    device: &Device,
) -> Result<Imported, WeightsError> {
    let path = file.path().to_owned();
    let RenamedCheckpoint {
        mut state,
        mut meta,
        mut report,
    } = open(file, options)?;
    if let (Some(image), Some(Sizes::Vit(from))) = (options.size, meta.config.sizes()) {
        let config = meta.config.clone().for_images(image);
        if let Some(Sizes::Vit(to)) = config.sizes() {
            report.resampled = resample::fit(&mut state, &Sizes::Vit(from), &Sizes::Vit(to));
        }
        meta.config = config;
    }
    let wrong = |error| WeightsError::format(&path, error);
    // The configuration decides what is allocated, so it may not outgrow the numbers that were read
    // by much: half of the network may be missing, which is then reported by name.
    let values = held_values(&state);
    let needed = meta.config.parameters().map_err(wrong)?;
    if needed > 2 * values {
        let listed = report.to_string();
        let problem = format!(
            "its names and shapes are those of a network of {needed} values ({}), and it holds {values}\n{listed}",
            meta.config.name
        );
        return Err(WeightsError::Keys {
            path,
            report: problem,
        });
    }
    // Every weight is replaced or reported, so the seed has no effect.
    let fresh = meta.config.init(&mut Rng::seed_from_u64(0), device);
    let (backbone, load) = load_backbone_state(fresh, &state);
    report.take(load);
    if report.matched.is_empty() {
        return Err(WeightsError::Keys {
            path,
            report: format!("nothing of a backbone\n{report}"),
        });
    }
    if !options.lenient && !report.is_complete() {
        let hint = "hint: `clasp import FILE -o OUT --lenient` loads the keys that match and initializes the rest";
        return Err(WeightsError::Keys {
            path,
            report: format!("some keys do not match\n{report}\n{hint}"),
        });
    }
    Ok(Imported {
        backbone,
        meta,
        report,
    })
}

/// Reads and renames a checkpoint. Only the tensors of the backbone are read.
pub(crate) fn open(
    file: TensorFile,
    options: &ImportOptions,
) -> Result<RenamedCheckpoint, WeightsError> {
    if let Some(meta) = own_meta(file.path(), file.metadata())? {
        return open_backbone(file, meta);
    }
    match finetuned::parse(file.path(), file.metadata())? {
        Some(meta) => open_finetuned(file, meta.backbone),
        None => open_published(file, options),
    }
}

/// A backbone file of this program.
fn open_backbone(
    mut file: TensorFile,
    meta: BackboneMeta,
) -> Result<RenamedCheckpoint, WeightsError> {
    let path = file.path().to_owned();
    let mut state = StateDict::new();
    for name in file.shapes().keys().cloned().collect::<Vec<_>>() {
        let array = file.read(&name)?;
        state.insert(name, array);
    }
    if let Some((name, count)) = not_finite(&state) {
        return Err(WeightsError::format(
            &path,
            format!("`{name}`: {count} of its numbers are not finite (NaN or infinite)"),
        ));
    }
    let report = ImportReport::new(CheckpointSource::Clasp, &file, "");
    Ok(RenamedCheckpoint {
        state,
        meta,
        report,
    })
}

/// The backbone of a fine-tuned model of this program.
fn open_finetuned(
    mut file: TensorFile,
    meta: BackboneMeta,
) -> Result<RenamedCheckpoint, WeightsError> {
    let prefix = "backbone.";
    let mut report = ImportReport::new(CheckpointSource::Clasp, &file, prefix);
    let mut state = StateDict::new();
    for name in file.shapes().keys().cloned().collect::<Vec<_>>() {
        if let Some(inner) = name.strip_prefix(prefix) {
            state.insert(inner.to_owned(), file.read(&name)?);
        } else {
            let heads = report.left_out.entry("the head of a task").or_default();
            heads.push(name);
        }
    }
    Ok(RenamedCheckpoint {
        state,
        meta,
        report,
    })
}

/// A checkpoint of other programs.
fn open_published(
    mut file: TensorFile,
    options: &ImportOptions,
) -> Result<RenamedCheckpoint, WeightsError> {
    let path = file.path().to_owned();
    let wrong = |problem: String| WeightsError::format(&path, problem);
    let view = TimmNames::new(file.shapes());
    let folder = FolderConfig::beside(&path, view.family)?.with_exported(file.metadata());
    let options = &folder.complete(options, view.family).map_err(wrong)?;
    let recognized = recognition::recognize(&view, options).map_err(wrong)?;
    let source = recognized.source;
    let mut report = ImportReport::new(source, &file, &recognized.prefix);
    let mut state = read_renamed(&mut file, view, &recognized, &mut report)?;
    names::convert(source.layout(), &mut state, options.size).map_err(wrong)?;
    if state.is_empty() {
        return Err(wrong(format!("nothing of a backbone\n{report}")));
    }
    if let Some((name, count)) = not_finite(&state) {
        return Err(wrong(format!(
            "`{name}`: {count} of its numbers are not finite (NaN or infinite), as after a training that diverged\n\
             hint: take an earlier checkpoint"
        )));
    }
    let (mut sizes, assumed) =
        sizes::derive(source.layout(), source, recognized.traits, &state, options)
            .map_err(wrong)?;
    if let (Sizes::Vit(vit), Some(true)) = (&mut sizes, folder.mean_pool) {
        vit.pool = Pool::Mean;
    }
    report.assumed.extend(assumed);
    if recognized.traits.eva && folder.mean_pool.is_none() && !recognized.traits.fc_norm {
        report.assumed.push(
            "the class token as the feature, as DINOv3 has it; timm gives the mean of the patches unless the model is made \
             with global_pool=\"token\""
                .to_owned(),
        );
    }
    report
        .assumed
        .extend(assumptions(&recognized, &sizes, options));
    let origin = path.file_name().map_or_else(String::new, |name| {
        format!("{}: {}", name.to_string_lossy(), source.describe())
    });
    let solider = state.contains_key("semantic_embed_w.0.weight");
    let mut meta = BackboneMeta {
        origin,
        ..published_meta(source, sizes, solider, &recognized.prefix, options)
    };
    meta.licenses = folder.licenses(source.licenses());
    meta.mean = folder.mean.unwrap_or(meta.mean);
    meta.std = folder.std.unwrap_or(meta.std);
    meta.filter = folder.filter.unwrap_or(meta.filter);
    if let Some(padding) = folder.window_padding(file.metadata()) {
        meta.config.padding = padding;
    }
    Ok(RenamedCheckpoint {
        state,
        meta,
        report,
    })
}

/// Reads the tensors of the backbone in our names; the others are left out.
fn read_renamed(
    file: &mut TensorFile,
    view: TimmNames,
    recognized: &RecognizedCheckpoint,
    report: &mut ImportReport,
) -> Result<StateDict, WeightsError> {
    let mut state = StateDict::new();
    for (name, places) in view.places {
        let Some(inner) = name.strip_prefix(&recognized.prefix) else {
            places
                .into_iter()
                .for_each(|name| report.leave_out("outside the backbone", name));
            continue;
        };
        match names::rename(recognized.source.layout(), inner, recognized.stages) {
            names::Name::Is(ours) => {
                let ours = match ours.strip_prefix("fc_norm.") {
                    Some(rest) if recognized.traits.fc_norm => format!("norm.{rest}"),
                    _ => ours,
                };
                let mut joined = HostTensor::default();
                for place in &places {
                    let mut part = file.read(place)?;
                    joined.data.append(&mut part.data);
                    joined.shape = part.shape;
                }
                // As many times the rows as there are parts.
                if let Some(rows) = joined.shape.first_mut() {
                    *rows *= places.len();
                }
                state.insert(ours, joined);
            }
            names::Name::LeftOut(reason) => {
                places
                    .into_iter()
                    .for_each(|name| report.leave_out(reason, name));
            }
        }
    }
    Ok(state)
}

/// What a file does not show and is taken from published networks.
fn assumptions(
    recognized: &RecognizedCheckpoint,
    sizes: &Sizes,
    options: &ImportOptions,
) -> Vec<String> {
    let mut assumed = Vec::new();
    if let (Sizes::Vit(vit), None) = (sizes, options.heads) {
        assumed.push(format!(
            "{} attention heads, as published networks of width {} have; heads do not show in a file, and with another \
             number every feature is wrong: --heads N",
            vit.num_heads, vit.embed_dim
        ));
    }
    if recognized.traits.fc_norm {
        assumed.push(
            "the mean of the patches, then the norm `fc_norm`, as the feature (timm's global_pool=\"avg\"); a pooling by the \
             largest value does not show"
                .to_owned(),
        );
    }
    if matches!(
        recognized.source,
        CheckpointSource::TimmVit | CheckpointSource::Dino
    ) && recognized.upright
    {
        assumed.push(
            "ImageNet's mean and standard deviation; the file is of images higher than wide, as TransReID-SSL's, and does \
             not say whose it is: --as transreid-ssl"
                .to_owned(),
        );
    }
    assumed
}

/// Metadata of a published backbone, found under `prefix`; with `solider` it has SOLIDER's
/// controller.
fn published_meta(
    source: CheckpointSource,
    sizes: Sizes,
    solider: bool,
    prefix: &str,
    options: &ImportOptions,
) -> BackboneMeta {
    let size = options.size.unwrap_or_else(|| source.size(&sizes, prefix));
    let mut config = BackboneConfig::of_sizes(sizes);
    config.padding = source.window_padding();
    if solider {
        config.adapter = Adapter::Lambda(LambdaConfig::default());
    }
    let (mean, std) = source.normalization(prefix);
    BackboneMeta {
        stage: "import".to_owned(),
        clasp: env!("CARGO_PKG_VERSION").to_owned(),
        config,
        height: size[0],
        width: size[1],
        mean,
        std,
        filter: Filter::Bicubic,
        method: source.name().to_owned(),
        heads: Vec::new(),
        prompts: Vec::new(),
        step: 0,
        vocabulary: String::new(),
        recipe: String::new(),
        licenses: source.licenses().map(str::to_owned).to_vec(),
        origin: String::new(),
    }
}

/// The first tensor with numbers that are not finite, and how many.
fn not_finite(state: &StateDict) -> Option<(&str, usize)> {
    let mut tensors = state.iter();
    tensors.find_map(|(name, array)| {
        let count = array.data.iter().filter(|value| !value.is_finite()).count();
        (count > 0).then_some((name.as_str(), count))
    })
}

/// How the windows of the network in a checkpoint lie on a map ([`WindowPadding`]).
///
/// # Errors
///
/// As [`import`].
pub fn window_padding(path: &Path) -> Result<WindowPadding, WeightsError> {
    let file = TensorFile::open(&backbone_file(path)?)?;
    if let Some(meta) = own_meta(file.path(), file.metadata())? {
        return Ok(meta.config.padding);
    }
    let opened = open(file, &ImportOptions::default())?;
    Ok(opened.meta.config.padding)
}

/// What a backbone computes in another way than the network of a file whose tensors fit.
fn computes_otherwise(backbone: &Backbone, config: &BackboneConfig) -> Option<String> {
    match (backbone, config.sizes()) {
        (Backbone::Swin(swin), Some(Sizes::Swin(_))) => {
            let [ours, theirs] = [swin.config().padding, config.padding].map(windows_name);
            (ours != theirs).then(|| {
                format!(
                    "windows of another program: expected `model.windows` = \"{ours}\", found those of \"{theirs}\"\n\
                     hint: leave out `model.windows`, which is then that of the file"
                )
            })
        }
        (Backbone::Vit(vit), Some(Sizes::Vit(theirs))) => {
            let ours = &vit.config().sizes;
            let keys = |sizes: &VitSizes| sizes.qkv_bias && sizes.key_bias;
            if theirs.qkv_bias && keys(ours) != keys(&theirs) {
                return Some(
                    "a ViT whose keys have a bias, or have none, other than the recipe's".into(),
                );
            }
            (ours.quick_gelu != theirs.quick_gelu).then(|| {
                "a ViT with QuickGELU in place of GELU, or the other way around, than the recipe's".into()
            })
        }
        _ => None,
    }
}

/// The name of a rule in recipes and files.
fn windows_name(padding: WindowPadding) -> String {
    format!("{padding:?}").to_lowercase()
}

/// A backbone with the weights of a checkpoint where they fit: of any known source, with or without
/// an adapter. Tables and position embeddings are resampled to the backbone's sizes. An adapter
/// that the file lacks starts afresh, one that the backbone lacks is left out; both are in the
/// report.
///
/// # Errors
///
/// The file cannot be read or is not recognized, or it holds another network: a tensor of the plain
/// network is missing, left over or of another shape, or its windows lie in another way.
pub fn start_from(
    backbone: Backbone,
    path: &Path,
) -> Result<(Backbone, ImportReport), WeightsError> {
    let path = backbone_file(path)?;
    let target = backbone.sizes();
    let mut options = ImportOptions::default();
    if let Sizes::Vit(sizes) = &target {
        options.heads = Some(sizes.num_heads);
        options.size = Some(sizes.image_size);
    }
    let RenamedCheckpoint {
        mut state,
        meta,
        mut report,
    } = open(TensorFile::open(&path)?, &options)?;
    if let Some(from) = meta.config.sizes() {
        if let (Sizes::Vit(from), Sizes::Vit(to)) = (&from, &target) {
            dinov3::fill_biases(&mut state, from, to);
        }
        report.resampled = resample::fit(&mut state, &from, &target);
    }
    let (backbone, load) = load_backbone_state(backbone, &state);
    report.take(load);
    let ours = backbone.parameter_groups()?;
    let theirs = meta.config.parameter_groups()?;
    let fits = report.missing.iter().all(|name| ours.is_adapter(name))
        && report.unexpected.iter().all(|name| theirs.is_adapter(name))
        && report.mismatched.is_empty();
    if report.matched.is_empty() || !fits {
        let report =
            format!("another architecture\n{report}\nhint: set `model.backbone` to the file's");
        return Err(WeightsError::Keys { path, report });
    }
    if let Some(report) = computes_otherwise(&backbone, &meta.config) {
        return Err(WeightsError::Keys { path, report });
    }
    Ok((backbone, report))
}

#[cfg(test)]
mod tests;
