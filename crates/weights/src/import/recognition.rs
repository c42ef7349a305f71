//! Who published a checkpoint, by its names and shapes.

use std::collections::BTreeMap;

use clasp_model::moe::is_moe;

use super::hugging_face::TimmNames;
use super::names::sides;
use super::options::ImportOptions;
use super::source::CheckpointSource;

/// What was recognized in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecognizedCheckpoint {
    pub source: CheckpointSource,
    /// What stands in front of the backbone's names.
    pub prefix: String,
    /// Stages of a Swin.
    pub stages: usize,
    /// Whether a ViT's position embeddings are of images that are not square.
    pub upright: bool,
    /// What its tensors say about how a ViT computes its features.
    pub traits: VitTraits,
}

/// What shows in a ViT's names and not in the shapes of what is left of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct VitTraits {
    /// The last norm follows the pooling.
    pub fc_norm: bool,
    /// It has DeiT's distillation token.
    pub distilled: bool,
    /// transformers runs it: images are cropped to whole patches.
    pub transformers: bool,
    /// Queries and values have a bias and keys have none.
    pub no_key_bias: bool,
    /// The names are those of timm's `Eva`.
    pub eva: bool,
}

/// The tensor that every backbone here begins with, in its two names.
const FIRST: [&str; 2] = ["patch_embed.proj.weight", "patch_embed.projection.weight"];

const CONVOLUTIONAL_STEM: &str = "a ViT with a stem of convolutions (TransReID-SSL's ICS), which clasp does not have\n\
     hint: the checkpoint of the same repository without ICS can be read";

const OTHER_ROTATION: &str = "a ViT without position embeddings, or with timm's `Eva` names, that is not DINOv3's: expected a class token, \
     registers and LayerScale, and one matrix for queries, keys and values; the angles of other rotary positions \
     (EVA-02, RoPE-ViT) differ and do not show\n\
     hint: --as dinov3 if its positions are DINOv3's all the same";

const CLIP_WITHOUT_ACTIVATION: &str = "the image tower of a CLIP, and its activation does not show in its names and shapes\n\
     hint: put its config.json or open_clip_config.json beside it; or --as clip-openai (QuickGELU: OpenAI's, and models called \
     `quickgelu`) or --as clip-open (GELU: LAION's and most others). To label images with it: clasp label IMAGES --clip FOLDER";

/// Says who published tensors of these names and shapes.
pub(crate) fn recognize(
    names: &TimmNames,
    options: &ImportOptions,
) -> Result<RecognizedCheckpoint, String> {
    let shapes = &names.shapes;
    if shapes.is_empty() {
        return Err(
            "no tensors\nhint: a file of a whole model holds objects; save `model.state_dict()`"
                .to_owned(),
        );
    }
    // Of several backbones the teacher's, and the outermost.
    let wanted = if options.student {
        "student"
    } else {
        "teacher"
    };
    let prefix = shapes
        .keys()
        .filter_map(|name| FIRST.iter().find_map(|first| name.strip_suffix(first)))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .min_by_key(|prefix| (!prefix.contains(wanted), prefix.len(), *prefix))
        .ok_or_else(|| unknown(shapes))?;
    if options.student && !prefix.contains(wanted) {
        return Err("no student in this file".to_owned());
    }
    let has = |name: &str| shapes.contains_key(&format!("{prefix}{name}"));
    let any = |inner: &str| {
        let prefix = format!("{prefix}{inner}");
        let mut rest = shapes.range(prefix.clone()..);
        rest.next()
            .is_some_and(|(name, _)| name.starts_with(&prefix))
    };
    let container = if any("stages.0.") { "stages" } else { "layers" };
    let stages = (0..64)
        .take_while(|stage| any(&format!("{container}.{stage}.blocks.")))
        .count();
    let training = prefix.contains("teacher") || prefix.contains("student");
    let source = match options.source {
        Some(source) => source,
        None if any("stages.0.blocks.0.attn.w_msa.") => {
            // Beside the backbone, a converted checkpoint has at most DINO's head.
            let task = shapes.keys().any(|name| {
                let outside = !name.starts_with(prefix);
                outside && !name.starts_with("head.") && !name.starts_with("module.head.")
            });
            match (training, any("semantic_embed_w."), task) {
                (true, ..) => CheckpointSource::SoliderFull,
                (false, _, true) => CheckpointSource::SoliderTask,
                (false, true, false) => CheckpointSource::Solider,
                (false, false, false) => CheckpointSource::OpenMmlabSwin,
            }
        }
        None if has("layers.0.blocks.0.attn.relative_position_bias_table") => {
            match has("layers.0.downsample.reduction.weight") {
                _ if shapes.keys().any(|name| is_moe(name)) => CheckpointSource::Clasp,
                true if names.family.is_transformers() => CheckpointSource::TransformersSwin,
                true => CheckpointSource::MicrosoftSwin,
                false => CheckpointSource::TimmSwin,
            }
        }
        None if any("patch_embed.conv.") => {
            return Err(CONVOLUTIONAL_STEM.to_owned());
        }
        None if has("norm_pre.weight") => {
            return Err(CLIP_WITHOUT_ACTIVATION.to_owned());
        }
        None if has("blocks.0.attn.q_proj.weight")
            || (has("blocks.0.attn.q_bias") && has("pos_embed")) =>
        {
            return Err(OTHER_ROTATION.to_owned());
        }
        None if any("blocks.") && (has("pos_embed") || has("part_token1")) => {
            vit(shapes, prefix, training)
        }
        None if any("blocks.") && !any("patch_embed.norm.") => {
            let registers = ["reg_token", "register_tokens", "storage_tokens"];
            let scale = ["blocks.0.ls1.gamma", "blocks.0.gamma_1"];
            let dinov3 =
                has("cls_token") && registers.into_iter().any(has) && scale.into_iter().any(has);
            if !dinov3 {
                return Err(OTHER_ROTATION.to_owned());
            }
            CheckpointSource::DinoV3
        }
        None => return Err(unknown(shapes)),
    };
    Ok(RecognizedCheckpoint {
        source,
        prefix: prefix.to_owned(),
        stages,
        upright: is_upright(shapes, prefix),
        traits: VitTraits {
            fc_norm: has("fc_norm.weight") && !has("norm.weight"),
            distilled: has("dist_token"),
            transformers: names.family.is_transformers(),
            no_key_bias: has("blocks.0.attn.q_bias") || has("blocks.0.attn.qkv.bias_mask"),
            eva: has("blocks.0.gamma_1") && !has("pos_embed"),
        },
    })
}

/// People are higher than wide: networks for them are trained on such images, those for ImageNet on
/// squares.
fn is_upright(shapes: &BTreeMap<String, Vec<usize>>, prefix: &str) -> bool {
    let has = |name: &str| shapes.contains_key(&format!("{prefix}{name}"));
    match shapes.get(&format!("{prefix}pos_embed")).map(Vec::as_slice) {
        Some([1, count, _]) => {
            let tokens = usize::from(has("cls_token")) + usize::from(has("dist_token"));
            let patches = count - tokens.min(*count);
            // DeiT-III's are of patches alone.
            let patches = match (sides(patches), sides(*count)) {
                (None, Some(_)) => *count,
                _ => patches,
            };
            sides(patches).is_none_or(|[rows, columns]| rows != columns)
        }
        _ => false,
    }
}

fn vit(shapes: &BTreeMap<String, Vec<usize>>, prefix: &str, training: bool) -> CheckpointSource {
    let has = |name: &str| shapes.contains_key(&format!("{prefix}{name}"));
    let upright = is_upright(shapes, prefix);
    if has("part_token1") {
        CheckpointSource::Pass
    } else if has("decoder_embed.weight") {
        if upright {
            CheckpointSource::Hap
        } else {
            CheckpointSource::Mae
        }
    } else if has("register_tokens") || (has("mask_token") && has("blocks.0.ls1.gamma")) {
        CheckpointSource::DinoV2
    } else if training {
        // A training checkpoint of DINO's program; whose images it is of does not show.
        CheckpointSource::Dino
    } else {
        CheckpointSource::TimmVit
    }
}

fn unknown(shapes: &BTreeMap<String, Vec<usize>>) -> String {
    let names: Vec<&str> = shapes.keys().take(5).map(String::as_str).collect();
    format!(
        "not a backbone that clasp knows: expected the names of a Swin (timm, Microsoft, OpenMMLab, SOLIDER) or of a ViT \
         (timm, DINO, DINOv2, DINOv3, MAE, HAP, PASS, TransReID-SSL, CLIP), found {} tensors such as {}",
        shapes.len(),
        names.join(", ")
    )
}
