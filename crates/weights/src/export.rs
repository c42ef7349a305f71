//! Backbones for other programs: safetensors in timm's or SOLIDER's names.
//!
//! Both name the plain network. Experts have no place there, SOLIDER's controller only in SOLIDER's
//! names; a backbone that has them is refused unless they are to be dropped, because its features
//! change.
//!
//! | names | network | loads in |
//! |---|---|---|
//! | `timm` | Swin, ViT | `timm.models.SwinTransformer`, `VisionTransformer`, `strict=True` |
//! | `solider` | Swin, SOLIDER's controller | SOLIDER's `swin_transformer.py`, under `backbone.` |
//!
//! The metadata hold `format` = `pt` as other tools expect it, `python` (how to load it), and the
//! preprocessing and licenses of the backbone.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use clasp_model::backbone::{Adapter, Backbone, Sizes};
use clasp_model::prompt::PromptWeights;
use clasp_model::swin::{SwinSizes, WindowPadding};
use clasp_model::vit::{Pool, VitSizes};
use serde::Serialize;
use serde_json::json;

use crate::backbone::{BackboneMeta, backbone_state};
use crate::checkpoint::{self, Metadata, StorageFormat};
use crate::error::WeightsError;
use crate::state::{HostTensor, StateDict};

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
    let sizes = backbone.sizes();
    let mut state = backbone_state(backbone);
    let dropped = drop_adapter(&mut state, meta, options)?;
    let mut warnings = Vec::new();
    if !dropped.is_empty() {
        warnings.push(format!(
            "the features are not those of the backbone: {} parameters of its adapter are left out",
            dropped.len()
        ));
    }
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
            let detection = meta.config.padding == WindowPadding::Detection;
            if detection {
                warnings.push(format!(
                    "timm shifts windows before it pads, this backbone after: features agree on images whose height and \
                     width are multiples of {}",
                    swin.window_size << (swin.depths.len() + 1)
                ));
            }
            timm_swin(swin, detection)
        }
        (NamingScheme::Timm, Sizes::Vit(vit)) => {
            timm_positions(&mut state, vit);
            timm_vit(vit)
        }
        (NamingScheme::Solider, Sizes::Swin(swin)) => {
            state = solider(state, swin);
            "state = safetensors.torch.load_file(FILE)  # what `torch.load(...)['teacher']` gives in SOLIDER's code"
                .to_owned()
        }
        (NamingScheme::Solider, Sizes::Vit(_)) => return Err(vit_in_solider_names()),
    };
    let preprocessing = json!({
        "height": meta.height, "width": meta.width, "mean": meta.mean, "std": meta.std, "interpolation": meta.filter,
    });
    let metadata = Metadata::from([
        ("format".to_owned(), "pt".to_owned()),
        (
            "written_by".to_owned(),
            format!("clasp {}", env!("CARGO_PKG_VERSION")),
        ),
        ("python".to_owned(), python.clone()),
        ("preprocessing".to_owned(), preprocessing.to_string()),
        ("licenses".to_owned(), meta.licenses.join("\n")),
    ]);
    checkpoint::write_as(path, &state, &metadata, options.precision)?;
    Ok(BackboneExport {
        tensors: state.len(),
        dropped,
        python,
        warnings,
    })
}

/// The tensors of a backbone under other names; a mixture of experts is folded at `prompt`.
///
/// # Errors
///
/// The names have no place for the network or its adapter.
pub fn named_state(
    backbone: &Backbone,
    meta: &BackboneMeta,
    names: NamingScheme,
    prompt: PromptWeights,
) -> Result<StateDict, WeightsError> {
    let (mut backbone, mut meta) = (backbone.clone(), meta.clone());
    if matches!(meta.config.adapter, Adapter::Moe(_)) {
        backbone = backbone.fold(prompt);
        meta.config.adapter = meta.config.adapter.folded();
    }
    let mut state = backbone_state(&backbone);
    let options = ExportOptions {
        names,
        drop_adapter: false,
        precision: StorageFormat::F32,
    };
    drop_adapter(&mut state, &meta, options)?;
    match (names, backbone.sizes()) {
        (NamingScheme::Timm, Sizes::Swin(_)) => {}
        (NamingScheme::Timm, Sizes::Vit(vit)) => timm_positions(&mut state, &vit),
        (NamingScheme::Solider, Sizes::Swin(swin)) => state = solider(state, &swin),
        (NamingScheme::Solider, Sizes::Vit(_)) => return Err(vit_in_solider_names()),
    }
    Ok(state)
}

fn vit_in_solider_names() -> WeightsError {
    WeightsError::Export {
        what: "a ViT".to_owned(),
        names: NamingScheme::Solider.to_string(),
        lost: "SOLIDER publishes Swin alone".to_owned(),
        hint: "--names timm".to_owned(),
    }
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

fn tuple(values: &[usize]) -> String {
    let values: Vec<String> = values.iter().map(usize::to_string).collect();
    format!("({},)", values.join(", "))
}

fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn load_in(class: &str, arguments: &str) -> String {
    format!(
        "import timm; from safetensors.torch import load_file\n\
         model = timm.models.{class}({arguments}, num_classes=0, dynamic_img_size=True)\n\
         model.load_state_dict(load_file(FILE), strict=True)"
    )
}

fn timm_swin(sizes: &SwinSizes, detection: bool) -> String {
    let SwinSizes {
        patch_size,
        embed_dim,
        depths,
        num_heads,
        window_size,
        mlp_ratio,
        merging: _,
    } = sizes;
    // timm's default is the published patch.
    let patch = match patch_size {
        4 => String::new(),
        size => format!("patch_size={size}, "),
    };
    // timm leaves out the shift where a map at this size is one window.
    let partition = if detection {
        ", always_partition=True"
    } else {
        ""
    };
    let arguments = format!(
        "{patch}embed_dim={embed_dim}, depths={}, num_heads={}, window_size={window_size}, mlp_ratio={mlp_ratio}{partition}",
        tuple(depths),
        tuple(num_heads)
    );
    load_in("SwinTransformer", &arguments)
}

fn timm_vit(sizes: &VitSizes) -> String {
    let VitSizes {
        image_size,
        patch_size,
        embed_dim,
        depth,
        num_heads,
        hidden_dim,
        qkv_bias,
        class_token,
        registers,
        layer_scale,
        pool,
        pre_norm,
        quick_gelu,
    } = sizes;
    let mut arguments = format!(
        "img_size={}, patch_size={patch_size}, embed_dim={embed_dim}, depth={depth}, num_heads={num_heads}, mlp_ratio={}, \
         dynamic_img_pad=True",
        tuple(image_size),
        *hidden_dim as f64 / *embed_dim as f64
    );
    let mut more = |wanted: bool, text: &str| {
        if wanted {
            arguments.push_str(", ");
            arguments.push_str(text);
        }
    };
    more(!qkv_bias, &format!("qkv_bias={}", python_bool(*qkv_bias)));
    more(
        !class_token,
        &format!("class_token={}", python_bool(*class_token)),
    );
    more(
        *registers > 0,
        &format!("reg_tokens={registers}, no_embed_class=True"),
    );
    more(*layer_scale, "init_values=1.0");
    more(*pool == Pool::Mean, "global_pool='avg', fc_norm=False");
    more(*pre_norm, "pre_norm=True");
    more(*quick_gelu, "act_layer='quick_gelu'");
    load_in("VisionTransformer", &arguments)
}

/// With registers, timm has position embeddings of the patches alone: the class token takes its own
/// in. With a norm before the blocks its patches have no bias: their positions take it in.
fn timm_positions(state: &mut StateDict, sizes: &VitSizes) {
    if sizes.pre_norm
        && let Some(bias) = state.remove("patch_embed.proj.bias")
        && let Some(positions) = state.get_mut("pos_embed")
    {
        let class = usize::from(sizes.class_token);
        for position in positions.data.chunks_exact_mut(sizes.embed_dim).skip(class) {
            for (value, bias) in position.iter_mut().zip(&bias.data) {
                *value += bias;
            }
        }
    }
    if sizes.registers == 0 || !sizes.class_token {
        return;
    }
    let Some(positions) = state.get_mut("pos_embed") else {
        return;
    };
    let of_class: Vec<f32> = positions.data.drain(..sizes.embed_dim).collect();
    positions.shape[1] -= 1;
    if let Some(class) = state.get_mut("cls_token") {
        for (value, position) in class.data.iter_mut().zip(of_class) {
            *value += position;
        }
    }
}

/// Our Swin in SOLIDER's names and layout; see [`crate::import::names`].
fn solider(state: StateDict, sizes: &SwinSizes) -> StateDict {
    let stages = sizes.depths.len();
    let mut renamed = StateDict::new();
    for (name, mut array) in state {
        let name = if let Some(rest) = name.strip_prefix("layers.") {
            let rest = match rest.split_once(".downsample.") {
                Some((stage, inner)) => {
                    to_unfold(&mut array);
                    let stage = stage.parse::<usize>().unwrap_or(1).saturating_sub(1);
                    format!("{stage}.downsample.{inner}")
                }
                None => rest
                    .replacen("attn.", "attn.w_msa.", 1)
                    .replacen("mlp.fc1.", "ffn.layers.0.0.", 1)
                    .replacen("mlp.fc2.", "ffn.layers.1.", 1),
            };
            format!("stages.{rest}")
        } else if let Some(rest) = name.strip_prefix("norm.") {
            format!("norm{}.{rest}", stages - 1)
        } else {
            name.replacen("patch_embed.proj.", "patch_embed.projection.", 1)
        };
        // SOLIDER has a fourth controller, whose output is not used: as the third.
        if let Some((kind, rest)) = name.split_once(&format!(".{}.", stages.saturating_sub(2)))
            && kind.starts_with("semantic_embed")
        {
            renamed.insert(
                format!("backbone.{kind}.{}.{rest}", stages - 1),
                array.clone(),
            );
        }
        renamed.insert(format!("backbone.{name}"), array);
    }
    // Norms of earlier stages' maps, which this program does not have: SOLIDER's first values.
    for stage in 0..stages - 1 {
        let channels = sizes.embed_dim << stage;
        for (kind, value) in [("weight", 1.0), ("bias", 0.0)] {
            let array = HostTensor {
                shape: vec![channels],
                data: vec![value; channels],
            };
            renamed.insert(format!("backbone.norm{stage}.{kind}"), array);
        }
    }
    renamed
}

/// The last axis from (column, row, channel) to (channel, row, column).
fn to_unfold(array: &mut HostTensor) {
    let inputs = array.shape.last().copied().unwrap_or(0).max(1);
    let channels = inputs / 4;
    array.data = array
        .data
        .chunks_exact(inputs)
        .flat_map(|line| {
            (0..inputs).map(move |place| {
                let (channel, row, column) = (place / 4, place / 2 % 2, place % 2);
                line[(2 * column + row) * channels + channel]
            })
        })
        .collect();
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
