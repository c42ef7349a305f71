//! ViTs in the names of Hugging Face's transformers: DINOv2, ViT-MAE, DINO and ViT.
//!
//! Names only, so that everything behind it sees timm's: queries, keys and values are three matrices there and one here.

use std::collections::BTreeMap;

/// The tensor that they begin with.
const FIRST: &str = "embeddings.patch_embeddings.projection.weight";

/// Tensors under timm's names and where they are: one name, or those of queries, keys and values.
pub struct View {
    /// Shapes by timm's name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Names in the file by timm's name.
    pub places: BTreeMap<String, Vec<String>>,
}

impl View {
    /// The names of a file as they are, or timm's for transformers'.
    pub fn new(shapes: &BTreeMap<String, Vec<usize>>) -> Self {
        let prefix = shapes.keys().find_map(|name| name.strip_suffix(FIRST));
        let mut view = Self {
            shapes: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        for (name, shape) in shapes {
            let timm = prefix.and_then(|prefix| rename(prefix, name));
            let timm = timm.unwrap_or_else(|| name.clone());
            view.shapes.insert(timm.clone(), shape.clone());
            view.places.insert(timm, vec![name.clone()]);
        }
        if prefix.is_some() {
            view.join();
        }
        view
    }

    /// Queries, keys and values of the same shape, one after the other.
    fn join(&mut self) {
        let queries: Vec<String> = self.shapes.keys().cloned().collect();
        for query in queries {
            let Some((block, kind)) = query.split_once("attn.query.") else {
                continue;
            };
            let parts = ["query", "key", "value"].map(|part| format!("{block}attn.{part}.{kind}"));
            let shapes = parts.each_ref().map(|part| self.shapes.get(part));
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

/// timm's name of one of transformers', or none for what lies outside the backbone.
fn rename(prefix: &str, name: &str) -> Option<String> {
    // ViT-MAE's decoder stands beside the backbone; its names tell MAE.
    if let Some(rest) = name.strip_prefix("decoder.") {
        let known = rest.starts_with("decoder_") || rest == "mask_token";
        return known.then(|| format!("{prefix}{rest}"));
    }
    let inner = name.strip_prefix(prefix)?;
    let renamed = if let Some(rest) = inner.strip_prefix("embeddings.") {
        match rest.split_once('.') {
            Some(("patch_embeddings", rest)) => {
                format!("patch_embed.{}", rest.replacen("projection.", "proj.", 1))
            }
            _ if rest == "position_embeddings" => "pos_embed".to_owned(),
            _ => rest.to_owned(),
        }
    } else if let Some(rest) = inner.strip_prefix("layernorm.") {
        format!("norm.{rest}")
    } else if let Some(rest) = inner.strip_prefix("pooler.") {
        // Trained for a classifier; the pooled feature here is the class token.
        format!("head.{rest}")
    } else {
        let block = ["encoder.layer.", "layers."];
        let block = block.iter().find_map(|start| inner.strip_prefix(start))?;
        let (index, rest) = block.split_once('.')?;
        let rest = NAMES
            .iter()
            .find_map(|(theirs, timm)| Some(format!("{timm}{}", rest.strip_prefix(theirs)?)));
        format!("blocks.{index}.{}", rest?)
    };
    Some(format!("{prefix}{renamed}"))
}

/// Names within a block: of published files, and of the modules of transformers 5 where they differ.
const NAMES: [(&str, &str); 19] = [
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
    // DINOv2's ViT-g, which is refused for its SwiGLU.
    ("mlp.weights_", "mlp.weights_"),
];
