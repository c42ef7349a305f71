//! A backbone as timm builds and loads it.

use std::fmt::Write;

use clasp_model::backbone::BackboneConfig;
use clasp_model::layers::offset_matrix;
use clasp_model::swin::{SwinSizes, TimmWindows};
use clasp_model::vit::{Pool, Positions, VitSizes};
use serde_json::{Map, Value, json};

use super::transformers::thirds;
use crate::import::resample;
use crate::state::{HostTensor, StateDict};

/// timm's class of ViTs with rotary positions.
const EVA: &str = "Eva";

/// How to build a network in timm.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimmModel {
    /// A registered name of the same family; the arguments decide everything else.
    pub architecture: &'static str,
    /// The class, in `timm.models`.
    pub class: &'static str,
    /// Arguments of the class.
    pub arguments: Map<String, Value>,
}

impl TimmModel {
    /// Python that builds it and loads FILE.
    pub fn python(&self) -> String {
        let mut arguments = String::new();
        for (name, value) in &self.arguments {
            let _ = write!(arguments, "{name}={}, ", python(value));
        }
        let make = match self.class {
            // The class alone has another epsilon in its norms.
            EVA => format!("create_model('{}', ", self.architecture),
            class => format!("models.{class}("),
        };
        format!(
            "import timm; from safetensors.torch import load_file\n\
             model = timm.{make}{arguments}num_classes=0)\n\
             model.load_state_dict(load_file(FILE), strict=True)"
        )
    }
}

/// A value as Python writes it.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => format!("'{text}'"),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(python).collect();
            format!("({},)", values.join(", "))
        }
        other => other.to_string(),
    }
}

/// timm's Swin for images of a height and width, and its windows; none where timm has no such
/// windows. Where its features depend on the size, timm refuses images of other sizes.
pub(super) fn swin(
    config: &BackboneConfig,
    sizes: &SwinSizes,
    image: [usize; 2],
) -> Result<Option<(TimmModel, TimmWindows)>, clasp_model::ModelError> {
    Ok(config.timm_windows(image)?.map(|windows| {
        let mut arguments = swin_arguments(sizes, &windows.window_size);
        if windows.dynamic_img_size {
            arguments.insert("dynamic_img_size".to_owned(), json!(true));
        } else {
            arguments.insert("img_size".to_owned(), json!(image));
        }
        if windows.always_partition {
            arguments.insert("always_partition".to_owned(), json!(true));
        }
        (swin_model(arguments), windows)
    }))
}

/// timm's Swin that shifts every window and takes images of any size: what comes nearest to one
/// whose windows it does not have.
pub(super) fn swin_always_partition(sizes: &SwinSizes) -> TimmModel {
    let windows: Vec<[usize; 2]> = (0..sizes.depths.len())
        .map(|stage| sizes.stage_window(stage))
        .collect();
    let mut arguments = swin_arguments(sizes, &windows);
    arguments.insert("always_partition".to_owned(), json!(true));
    arguments.insert("dynamic_img_size".to_owned(), json!(true));
    swin_model(arguments)
}

fn swin_model(arguments: Map<String, Value>) -> TimmModel {
    TimmModel {
        architecture: "swin_tiny_patch4_window7_224",
        class: "SwinTransformer",
        arguments,
    }
}

fn swin_arguments(sizes: &SwinSizes, windows: &[[usize; 2]]) -> Map<String, Value> {
    let SwinSizes {
        patch_size,
        embed_dim,
        depths,
        num_heads,
        window_size: _,
        windows: _,
        mlp_ratio,
        merging: _,
    } = sizes;
    // Older versions of timm have one window for all stages.
    let window_size = match windows {
        [[height, width], rest @ ..]
            if height == width && rest.iter().all(|window| window == &windows[0]) =>
        {
            json!(height)
        }
        windows => json!(windows),
    };
    object(json!({
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "window_size": window_size,
        "mlp_ratio": mlp_ratio,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Brings the bias tables of a Swin to the windows that timm has.
pub(super) fn tables(state: &mut StateDict, sizes: &SwinSizes, windows: &TimmWindows) {
    for (stage, to) in windows.tables.iter().enumerate() {
        let from = sizes.stage_window(stage);
        if from == *to {
            continue;
        }
        let [rows, columns] = [0, 1].map(|axis| offset_matrix(from[axis], to[axis]));
        let sides = [from, *to].map(|window| window.map(|side| 2 * side - 1));
        let prefix = format!("layers.{stage}.blocks.");
        let tables = state.iter_mut().filter(|(name, _)| {
            name.starts_with(&prefix) && name.ends_with("relative_position_bias_table")
        });
        for (_, table) in tables {
            if let Some(fitted) = resample::grid(table, 0, sides[0], sides[1], [&rows, &columns]) {
                *table = fitted;
            }
        }
    }
}

/// What timm does not support in a ViT, if anything.
pub(super) fn unsupported_in_vit(sizes: &VitSizes) -> Option<&'static str> {
    let VitSizes {
        pool,
        pre_norm,
        quick_gelu,
        qkv_bias,
        key_bias,
        gated,
        ..
    } = sizes;
    match sizes.positions {
        Positions::Learned if *gated => Some("gated MLPs beside learned positions"),
        Positions::Learned => None,
        Positions::Rotary if *pre_norm => Some("a norm before the blocks beside rotary positions"),
        Positions::Rotary if *quick_gelu => Some("QuickGELU beside rotary positions"),
        Positions::Rotary if *pool == Pool::Distilled => {
            Some("a distillation token beside rotary positions")
        }
        Positions::Rotary if *qkv_bias && *key_bias => {
            Some("a bias of the keys beside rotary positions")
        }
        Positions::Rotary => None,
    }
}

/// timm's ViT, for sizes that [`unsupported_in_vit`] accepts.
pub(super) fn vit(sizes: &VitSizes) -> TimmModel {
    let VitSizes {
        image_size: _,
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
        fc_norm,
        resampling: _,
        crop: _,
        positions,
        key_bias: _,
        gated,
    } = sizes;
    let rotary = *positions == Positions::Rotary;
    let distilled = *pool == Pool::Distilled;
    let mut arguments = object(json!({
        // Whole patches.
        "img_size": sizes.grid().map(|count| count * patch_size),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": *hidden_dim as f64 / *embed_dim as f64,
        "dynamic_img_size": true,
        "dynamic_img_pad": true,
    }));
    let mut more = |wanted: bool, extra: Value| {
        if wanted {
            arguments.extend(object(extra));
        }
    };
    more(
        rotary,
        json!({ "qkv_bias": qkv_bias, "global_pool": "token", "swiglu_mlp": gated }),
    );
    more(!qkv_bias, json!({ "qkv_bias": false }));
    more(!class_token, json!({ "class_token": false }));
    more(rotary, json!({ "num_reg_tokens": registers }));
    more(
        *registers > 0 && !distilled && !rotary,
        json!({ "reg_tokens": registers, "no_embed_class": true }),
    );
    // timm's models with rotary positions always have LayerScale.
    more(*layer_scale || rotary, json!({ "init_values": 1.0 }));
    let pooled_norm = match rotary {
        true => "use_fc_norm",
        false => "fc_norm",
    };
    more(
        *pool == Pool::Mean,
        json!({ "global_pool": "avg", pooled_norm: fc_norm }),
    );
    more(*pre_norm, json!({ "pre_norm": true }));
    more(*quick_gelu, json!({ "act_layer": "quick_gelu" }));
    let (architecture, class) = match (distilled, rotary, gated) {
        (true, ..) => (
            "deit_base_distilled_patch16_224",
            "deit.VisionTransformerDistilled",
        ),
        // With a gate it is another class of MLP.
        (_, true, true) => ("vit_small_plus_patch16_dinov3", EVA),
        (_, true, false) => ("vit_small_patch16_dinov3", EVA),
        _ => ("vit_base_patch16_224", "VisionTransformer"),
    };
    TimmModel {
        architecture,
        class,
        arguments,
    }
}

/// Brings a ViT to timm.
///
/// With registers, timm has position embeddings of the patches alone: the class token takes its own
/// in. Its distilled DeiT has one of every token. With a norm before the blocks its patches have no bias: their positions take it in.
pub(super) fn vit_state(state: &mut StateDict, sizes: &VitSizes) {
    if sizes.positions == Positions::Rotary {
        *state = rotary_state(std::mem::take(state), sizes);
        return;
    }
    if !sizes.key_bias {
        for (_, bias) in biases(state) {
            let width = bias.data.len() / 3;
            bias.data[width..2 * width].fill(0.0);
        }
    }
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
    if sizes.fc_norm {
        for kind in ["weight", "bias"] {
            if let Some(array) = state.remove(&format!("norm.{kind}")) {
                state.insert(format!("fc_norm.{kind}"), array);
            }
        }
    }
    if sizes.pool == Pool::Distilled {
        if let Some(token) = state.remove("reg_token") {
            state.insert("dist_token".to_owned(), token);
        }
        if let Some(positions) = state.get_mut("pos_embed") {
            // The token has taken its position in.
            let at = sizes.embed_dim..sizes.embed_dim;
            let zeros = std::iter::repeat_n(0.0, sizes.embed_dim);
            positions.data.splice(at, zeros);
            positions.shape[1] += 1;
        }
        return;
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

/// Biases of queries, keys and values.
fn biases(state: &mut StateDict) -> impl Iterator<Item = (&String, &mut HostTensor)> {
    { state.iter_mut() }.filter(|(name, _)| name.ends_with(".attn.qkv.bias"))
}

/// A ViT with rotary positions in the names of timm's `Eva`, whose keys have no bias, and whose
/// branches are always scaled.
fn rotary_state(state: StateDict, sizes: &VitSizes) -> StateDict {
    let mut renamed = StateDict::new();
    if !sizes.layer_scale {
        for block in 0..sizes.depth {
            for branch in [1, 2] {
                let ones = HostTensor {
                    shape: vec![sizes.embed_dim],
                    data: vec![1.0; sizes.embed_dim],
                };
                renamed.insert(format!("blocks.{block}.gamma_{branch}"), ones);
            }
        }
    }
    for (name, array) in state {
        if let Some(attention) = name.strip_suffix("qkv.bias") {
            let [query, _, value] = thirds(&array);
            renamed.insert(format!("{attention}q_bias"), query);
            renamed.insert(format!("{attention}v_bias"), value);
            continue;
        }
        let mut name =
            name.replacen(".ls1.gamma", ".gamma_1", 1)
                .replacen(".ls2.gamma", ".gamma_2", 1);
        if sizes.gated {
            name = name.replacen(".mlp.fc1.", ".mlp.fc1_x.", 1);
        }
        if let Some(kind) = name.strip_prefix("norm.").filter(|_| sizes.fc_norm) {
            name = format!("fc_norm.{kind}");
        }
        renamed.insert(name, array);
    }
    renamed
}
