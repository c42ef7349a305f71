//! ViTs and Swins in the names of Hugging Face's transformers (DINOv3, DINOv2, ViT-MAE, DINO, ViT,
//! DeiT, Swin, CLIP's image tower) and of OpenCLIP.
//!
//! Names only, so that everything behind it sees timm's: queries, keys and values are three
//! matrices there and one here.

use std::collections::BTreeMap;

/// A family of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameFamily {
    /// Those of the networks' own programs and of timm.
    Plain,
    /// Hugging Face's transformers.
    Transformers,
    /// The same, of CLIP's image tower.
    TransformersClip,
    /// OpenCLIP.
    OpenClip,
}

impl NameFamily {
    /// Families with a tensor that only they have, a prefix apart.
    const MARKS: [(&str, Self); 4] = [
        (
            "embeddings.patch_embeddings.projection.weight",
            Self::Transformers,
        ),
        // DINOv3's.
        ("embeddings.patch_embeddings.weight", Self::Transformers),
        ("embeddings.class_embedding", Self::TransformersClip),
        ("class_embedding", Self::OpenClip),
    ];

    /// timm's name of one without its prefix, or none.
    fn rename(self, name: &str) -> Option<String> {
        match self {
            Self::Plain => Some(name.to_owned()),
            Self::Transformers => transformers(name),
            Self::TransformersClip => transformers_clip(name),
            Self::OpenClip => open_clip(name),
        }
    }

    /// Whether transformers runs networks of these names.
    pub fn is_transformers(self) -> bool {
        matches!(self, Self::Transformers | Self::TransformersClip)
    }
}

/// Tensors under timm's names and where they are: one name, or those of queries, keys and values.
pub struct TimmNames {
    /// Shapes by timm's name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Names in the file by timm's name.
    pub places: BTreeMap<String, Vec<String>>,
    /// Whose the names in the file are.
    pub family: NameFamily,
}

impl TimmNames {
    /// The names of a file as they are, or timm's for transformers'.
    pub fn new(shapes: &BTreeMap<String, Vec<usize>>) -> Self {
        let found = NameFamily::MARKS.iter().find_map(|(first, family)| {
            let prefix = shapes.keys().find_map(|name| name.strip_suffix(first))?;
            Some((prefix, *family))
        });
        let mut view = Self {
            shapes: BTreeMap::new(),
            places: BTreeMap::new(),
            family: found.map_or(NameFamily::Plain, |(_, family)| family),
        };
        for (name, shape) in shapes {
            let timm = found.and_then(|(prefix, family)| {
                // ViT-MAE's decoder stands beside the backbone; its names identify MAE.
                let decoder = name.strip_prefix("decoder.");
                let decoder =
                    decoder.filter(|rest| rest.starts_with("decoder_") || *rest == "mask_token");
                let inner = || family.rename(name.strip_prefix(prefix)?);
                let timm = decoder.map(str::to_owned).or_else(inner)?;
                Some(format!("{prefix}{timm}"))
            });
            let timm = timm.unwrap_or_else(|| name.clone());
            view.shapes.insert(timm.clone(), shape.clone());
            view.places.insert(timm, vec![name.clone()]);
        }
        if found.is_some() {
            view.join();
        }
        view
    }

    /// Queries, keys and values of the same shape, one after the other. Where keys have no bias,
    /// the other two have timm's names.
    fn join(&mut self) {
        let queries: Vec<String> = self.shapes.keys().cloned().collect();
        for query in queries {
            let Some((block, kind)) = query.split_once("attn.query.") else {
                continue;
            };
            let parts = ["query", "key", "value"].map(|part| format!("{block}attn.{part}.{kind}"));
            let shapes = parts.each_ref().map(|part| self.shapes.get(part));
            if let ("bias", [Some(_), None, Some(_)]) = (kind, shapes) {
                for (theirs, timm) in [(&parts[0], "q_bias"), (&parts[2], "v_bias")] {
                    let name = format!("{block}attn.{timm}");
                    if let Some(shape) = self.shapes.remove(theirs) {
                        self.shapes.insert(name.clone(), shape);
                    }
                    if let Some(places) = self.places.remove(theirs) {
                        self.places.insert(name, places);
                    }
                }
                continue;
            }
            let [Some(shape), Some(key), Some(value)] = shapes else {
                continue;
            };
            let mut joined = shape.clone();
            let Some(rows) = joined.first_mut() else {
                continue;
            };
            let Some(all) = rows
                .checked_mul(3)
                .filter(|_| shape == key && shape == value)
            else {
                continue;
            };
            *rows = all;
            let name = format!("{block}attn.qkv.{kind}");
            let mut places = Vec::with_capacity(3);
            for part in &parts {
                self.shapes.remove(part);
                places.extend(self.places.remove(part).into_iter().flatten());
            }
            self.shapes.insert(name.clone(), joined);
            self.places.insert(name, places);
        }
    }
}

/// timm's name of one of transformers', or none.
fn transformers(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("embeddings.") {
        return Some(match rest.split_once('.') {
            Some(("patch_embeddings", rest)) => match rest.strip_prefix("projection.") {
                Some(kind) => format!("patch_embed.proj.{kind}"),
                None => format!("patch_embed.proj.{rest}"),
            },
            Some(("norm", rest)) => format!("patch_embed.norm.{rest}"),
            _ if rest == "position_embeddings" => "pos_embed".to_owned(),
            _ if rest == "distillation_token" => "dist_token".to_owned(),
            _ => rest.to_owned(),
        });
    }
    if let Some(rest) = name.strip_prefix("layernorm.") {
        return Some(format!("norm.{rest}"));
    }
    // The pooler is trained for a classifier; the pooled feature here is the class token.
    if let Some(rest) = name.strip_prefix("pooler.") {
        return Some(format!("head.{rest}"));
    }
    if let Some(rest) = name.strip_prefix("encoder.layers.") {
        return swin_name(rest);
    }
    let block = ["encoder.layer.", "layers.", "layer.", "model.layer."];
    block_name(
        block.iter().find_map(|start| name.strip_prefix(start))?,
        &TRANSFORMERS,
    )
}

/// `STAGE.blocks.BLOCK.THEIRS…` → `layers.STAGE.blocks.BLOCK.TIMM…`, and the halving at the end of a
/// stage, as in Microsoft's own names.
fn swin_name(name: &str) -> Option<String> {
    let (stage, rest) = name.split_once('.')?;
    let rest = match rest.strip_prefix("blocks.") {
        Some(rest) => block_name(rest, &TRANSFORMERS_SWIN)?,
        None => rest.to_owned(),
    };
    Some(format!("layers.{stage}.{rest}"))
}

/// The same of CLIP's image tower.
fn transformers_clip(name: &str) -> Option<String> {
    for (theirs, timm) in [
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding.weight", "pos_embed"),
        ("embeddings.position_ids", "position_ids"),
        ("embeddings.patch_embedding.", "patch_embed.proj."),
        // Their own spelling.
        ("pre_layrnorm.", "norm_pre."),
        ("post_layernorm.", "norm."),
    ] {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Some(format!("{timm}{rest}"));
        }
    }
    block_name(name.strip_prefix("encoder.layers.")?, &TRANSFORMERS_CLIP)
}

/// The same of OpenCLIP's.
fn open_clip(name: &str) -> Option<String> {
    for (theirs, timm) in [
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1.", "patch_embed.proj."),
        ("ln_pre.", "norm_pre."),
        ("ln_post.", "norm."),
        ("proj", "head.proj"),
    ] {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Some(format!("{timm}{rest}"));
        }
    }
    block_name(name.strip_prefix("transformer.resblocks.")?, &OPEN_CLIP)
}

/// `3.THEIRS…` → `blocks.3.TIMM…`
fn block_name(name: &str, names: &[(&str, &str)]) -> Option<String> {
    let (index, rest) = name.split_once('.')?;
    let rest = names
        .iter()
        .find_map(|(theirs, timm)| Some(format!("{timm}{}", rest.strip_prefix(theirs)?)))?;
    Some(format!("blocks.{index}.{rest}"))
}

/// Names within a block: of published files, and of the modules of transformers 5 where they
/// differ.
const TRANSFORMERS: [(&str, &str); 22] = [
    ("attention.attention.query.", "attn.query."),
    ("attention.attention.key.", "attn.key."),
    ("attention.attention.value.", "attn.value."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.q_proj.", "attn.query."),
    ("attention.k_proj.", "attn.key."),
    ("attention.v_proj.", "attn.value."),
    ("attention.o_proj.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
    ("mlp.gate_proj.", "mlp.fc1_g."),
    ("mlp.up_proj.", "mlp.fc1."),
    ("mlp.down_proj.", "mlp.fc2."),
    // DINOv2's ViT-g, which is refused for its SwiGLU.
    ("mlp.weights_", "mlp.weights_"),
];

/// Names within a block of a Swin: of published files, and of the modules of transformers 5.
const TRANSFORMERS_SWIN: [(&str, &str); 18] = [
    ("attention.self.query.", "attn.query."),
    ("attention.self.key.", "attn.key."),
    ("attention.self.value.", "attn.value."),
    (
        "attention.self.relative_position_bias_table",
        "attn.relative_position_bias_table",
    ),
    (
        "attention.self.relative_position_index",
        "attn.relative_position_index",
    ),
    ("attention.output.dense.", "attn.proj."),
    ("attention.q_proj.", "attn.query."),
    ("attention.k_proj.", "attn.key."),
    ("attention.v_proj.", "attn.value."),
    ("attention.o_proj.", "attn.proj."),
    (
        "attention.relative_position_bias.relative_position_bias_table",
        "attn.relative_position_bias_table",
    ),
    (
        "attention.relative_position_bias.relative_position_index",
        "attn.relative_position_index",
    ),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
];

/// Names within a block of CLIP's image tower.
const TRANSFORMERS_CLIP: [(&str, &str); 8] = [
    ("self_attn.q_proj.", "attn.query."),
    ("self_attn.k_proj.", "attn.key."),
    ("self_attn.v_proj.", "attn.value."),
    ("self_attn.out_proj.", "attn.proj."),
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
];

/// The same in OpenCLIP's names.
const OPEN_CLIP: [(&str, &str); 6] = [
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];
