//! Foreign names and layouts to ours.
//!
//! Ours are timm's. The others differ in names and in two more things. Microsoft's and OpenMMLab's
//! Swin halve the map at the end of a stage, timm's and ours at the beginning of the next, so the
//! stage in the name is one less. OpenMMLab's (and with it SOLIDER's) patch merging takes the four
//! neighbors by `nn.Unfold`: channels outside, neighbors row by row inside; Microsoft's, timm's and
//! ours take neighbors outside, column by column, and channels inside.

use super::dinov3;
use crate::state::{HostTensor, StateDict};

/// How a network's tensors are named and laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// timm's Swin, and ours.
    TimmSwin,
    /// Microsoft's Swin.
    MicrosoftSwin,
    /// OpenMMLab's Swin, and SOLIDER's.
    OpenMmlabSwin,
    /// timm's, DINO's, MAE's and ours.
    Vit,
}

/// What a foreign name is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A name of ours, or one that nothing here has.
    Is(String),
    /// Known, and of no use here.
    LeftOut(&'static str),
}

const BUFFER: &str = "follow from the window, not learned";
const CLASSIFIER: &str = "classifier or projection head";
const DECODER: &str = "decoder and mask token of the pre-training";

/// What a name without its prefix is here; `stages` is the number of a Swin's stages.
pub fn rename(layout: Layout, name: &str, stages: usize) -> Name {
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    if name.ends_with("relative_position_index") || name.ends_with("attn_mask") {
        return Name::LeftOut(BUFFER);
    }
    if name == "position_ids" {
        return Name::LeftOut("a row of numbers, not learned");
    }
    if matches!(first, "head" | "fc" | "pre_logits" | "head_dist") {
        return Name::LeftOut(CLASSIFIER);
    }
    if name == "mask_token" && layout != Layout::Vit {
        return Name::LeftOut(DECODER);
    }
    match layout {
        Layout::TimmSwin => Name::Is(name.to_owned()),
        Layout::MicrosoftSwin => Name::Is(later_downsample("layers", first, rest, name)),
        Layout::OpenMmlabSwin => open_mmlab(name, first, rest, stages),
        Layout::Vit => {
            if first.starts_with("decoder_") || first == "mask_token" {
                return Name::LeftOut(DECODER);
            }
            if first == "local_cls_norm" {
                return Name::LeftOut("norm of the class token in small views of the pre-training");
            }
            // A distillation token is a register here.
            if matches!(first, "register_tokens" | "dist_token" | "storage_tokens") {
                return Name::Is("reg_token".to_owned());
            }
            // LayerScale in DeiT-III's own files and in timm's Eva.
            for (theirs, ours) in [(".gamma_1", ".ls1.gamma"), (".gamma_2", ".ls2.gamma")] {
                if let Some(block) = name.strip_suffix(theirs) {
                    return Name::Is(format!("{block}{ours}"));
                }
            }
            // Gated MLPs in timm's Eva and in DINOv3's own files.
            for (theirs, ours) in [
                (".mlp.fc1_x.", ".mlp.fc1."),
                (".mlp.w1.", ".mlp.fc1_g."),
                (".mlp.w2.", ".mlp.fc1."),
                (".mlp.w3.", ".mlp.fc2."),
            ] {
                if let Some((block, kind)) = name.split_once(theirs) {
                    return Name::Is(format!("{block}{ours}{kind}"));
                }
            }
            // DINOv2 may keep its blocks in chunks: `blocks.CHUNK.BLOCK.attn…`.
            if first == "blocks"
                && let Some((_, inner)) = rest.split_once('.')
                && inner.starts_with(|c: char| c.is_ascii_digit())
            {
                return Name::Is(format!("blocks.{inner}"));
            }
            Name::Is(name.to_owned())
        }
    }
}

/// `layers.0.downsample.…` is `layers.1.downsample.…` here.
fn later_downsample(stages: &str, first: &str, rest: &str, name: &str) -> String {
    let Some((stage, inner)) = rest.split_once('.').filter(|_| first == stages) else {
        return name.to_owned();
    };
    match stage.parse::<usize>() {
        Ok(stage) if inner.starts_with("downsample.") && stage < 64 => {
            format!("layers.{}.{inner}", stage + 1)
        }
        _ => format!("layers.{rest}"),
    }
}

fn open_mmlab(name: &str, first: &str, rest: &str, stages: usize) -> Name {
    let last = stages.saturating_sub(1);
    if let Some(stage) = first.strip_prefix("norm") {
        return match stage.parse::<usize>() {
            Ok(stage) if stage == last => Name::Is(format!("norm.{rest}")),
            Ok(_) => Name::LeftOut("norms of earlier stages' maps, of which each head has its own"),
            Err(_) => Name::Is(name.to_owned()),
        };
    }
    if matches!(first, "semantic_embed_w" | "semantic_embed_b") {
        let stage: Option<usize> = rest.split('.').next().and_then(|stage| stage.parse().ok());
        return match stage {
            Some(stage) if stage >= last => Name::LeftOut(
                "controller behind the last stage, which touches nothing that is used",
            ),
            _ => Name::Is(name.to_owned()),
        };
    }
    let name = match first {
        "patch_embed" => name.replacen("projection", "proj", 1),
        "stages" => later_downsample("stages", first, rest, name)
            .replacen("attn.w_msa.", "attn.", 1)
            .replacen("ffn.layers.0.0.", "mlp.fc1.", 1)
            .replacen("ffn.layers.1.", "mlp.fc2.", 1),
        _ => name.to_owned(),
    };
    Name::Is(name)
}

/// Brings renamed tensors to our layout. `size` is that of the images, where it is known.
pub fn convert(
    layout: Layout,
    state: &mut StateDict,
    size: Option<[usize; 2]>,
) -> Result<(), String> {
    match layout {
        Layout::TimmSwin | Layout::MicrosoftSwin => Ok(()),
        Layout::OpenMmlabSwin => {
            for (name, array) in state.iter_mut() {
                if name.contains(".downsample.") {
                    from_unfold(array).ok_or_else(|| {
                        format!(
                            "`{name}`: expected a last axis of four times the channels, found {:?}",
                            array.shape
                        )
                    })?;
                }
            }
            Ok(())
        }
        Layout::Vit => {
            dinov3::convert(state)?;
            vit_tokens(state, size)
        }
    }
}

/// The last axis from (channel, row, column) to (column, row, channel).
fn from_unfold(array: &mut HostTensor) -> Option<()> {
    let inputs = *array.shape.last()?;
    if inputs == 0 || !inputs.is_multiple_of(4) {
        return None;
    }
    let channels = inputs / 4;
    array.data = array
        .data
        .chunks_exact(inputs)
        .flat_map(|line| {
            (0..inputs).map(move |place| {
                let (neighbor, channel) = (place / channels, place % channels);
                let (column, row) = (neighbor / 2, neighbor % 2);
                line[4 * channel + 2 * row + column]
            })
        })
        .collect();
    Some(())
}

/// Position embeddings as here: the class token has one and registers have none. What a published
/// network adds to a token that does not depend on the image is added to the token once and for
/// all.
fn vit_tokens(state: &mut StateDict, size: Option<[usize; 2]>) -> Result<(), String> {
    if state.contains_key("part_token1") {
        pass_tokens(state)?;
    }
    if state.contains_key("norm_pre.weight") {
        clip_tokens(state);
    }
    let length = |state: &StateDict, name: &str| match state.get(name).map(|a| a.shape.as_slice()) {
        None => Ok(0),
        Some([1, count, _]) => Ok(*count),
        Some(shape) => Err(format!(
            "`{name}`: expected [1, tokens, width], found {shape:?}"
        )),
    };
    let (class, registers) = (length(state, "cls_token")?, length(state, "reg_token")?);
    let positions = length(state, "pos_embed")?;
    if positions == 0 || class > 1 || (registers == 0 && class == 0) {
        return Ok(());
    }
    let patch = match state
        .get("patch_embed.proj.weight")
        .map(|a| a.shape.as_slice())
    {
        Some([_, _, patch, _]) => (*patch).max(1),
        _ => 1,
    };
    let known = size.and_then(|[height, width]| {
        let [rows, columns] = [height, width].map(|side| side.div_ceil(patch));
        rows.checked_mul(columns)
    });
    let is_grid = |count: usize| known == Some(count) || sides(count).is_some();
    // timm with registers, and distilled DeiT: position embeddings of all tokens. timm with
    // `no_embed_class`, and DeiT-III: of the patches alone.
    if registers > 0 && positions > class + registers && is_grid(positions - class - registers) {
        let Some(table) = state.get_mut("pos_embed") else {
            return Ok(());
        };
        let width = table.shape[2];
        let of_registers: Vec<f32> = table
            .data
            .drain(class * width..(class + registers) * width)
            .collect();
        table.shape[1] -= registers;
        if let Some(tokens) = state.get_mut("reg_token") {
            add(tokens, &of_registers)?;
        }
    } else if class == 1 && is_grid(positions) && !is_grid(positions - 1) {
        let Some(table) = state.get_mut("pos_embed") else {
            return Ok(());
        };
        let width = table.shape[2];
        table.data.splice(0..0, std::iter::repeat_n(0.0, width));
        table.shape[1] += 1;
    }
    Ok(())
}

/// CLIP's class token is a row and its positions are a matrix, and its patches have no bias.
fn clip_tokens(state: &mut StateDict) {
    for (name, rank) in [("cls_token", 3), ("pos_embed", 3)] {
        if let Some(array) = state.get_mut(name) {
            while array.shape.len() < rank {
                array.shape.insert(0, 1);
            }
        }
    }
    let width = state
        .get("patch_embed.proj.weight")
        .and_then(|array| array.shape.first());
    if let Some(&width) = width {
        state
            .entry("patch_embed.proj.bias".to_owned())
            .or_insert_with(|| HostTensor {
                shape: vec![width],
                data: vec![0.0; width],
            });
    }
}

/// PASS has three part tokens, each with a position embedding: registers, here.
fn pass_tokens(state: &mut StateDict) -> Result<(), String> {
    let mut registers = HostTensor::default();
    for part in 1..=3 {
        let [mut token, position] = [format!("part_token{part}"), format!("part{part}_pos")]
            .map(|name| state.remove(&name).ok_or(format!("`{name}` is missing")))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
            .try_into()
            .map_err(|_| "two tensors a part".to_owned())?;
        add(&mut token, &position.data)?;
        registers.data.extend(token.data);
        registers.shape = vec![1, part, registers.data.len() / part];
    }
    state.insert("reg_token".to_owned(), registers);
    if let (Some(mut class), Some(table)) = (state.remove("cls_pos"), state.get_mut("pos_embed"))
        && let [1, _, width] = table.shape[..]
        && class.data.len() == width
    {
        class.data.append(&mut table.data);
        table.data = class.data;
        table.shape[1] += 1;
    }
    Ok(())
}

fn add(array: &mut HostTensor, other: &[f32]) -> Result<(), String> {
    if array.data.len() != other.len() {
        return Err(format!(
            "a token of {} numbers with a position embedding of {}",
            array.data.len(),
            other.len()
        ));
    }
    for (value, other) in array.data.iter_mut().zip(other) {
        *value += other;
    }
    Ok(())
}

/// Rows and columns of a number of patches: a square, or twice as high as wide, as people are.
pub fn sides(count: usize) -> Option<[usize; 2]> {
    let side = count.isqrt();
    if side > 0 && side * side == count {
        return Some([side, side]);
    }
    let half = (count / 2).isqrt();
    (half > 0 && 2 * half * half == count).then_some([2 * half, half])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(layout: Layout, foreign: &str, ours: &str) {
        assert_eq!(rename(layout, foreign, 4), Name::Is(ours.to_owned()));
    }

    #[test]
    fn names_are_ours() {
        let layout = Layout::OpenMmlabSwin;
        is(
            layout,
            "stages.2.blocks.1.attn.w_msa.qkv.bias",
            "layers.2.blocks.1.attn.qkv.bias",
        );
        is(
            layout,
            "stages.0.blocks.0.ffn.layers.0.0.weight",
            "layers.0.blocks.0.mlp.fc1.weight",
        );
        is(
            layout,
            "stages.0.blocks.0.ffn.layers.1.bias",
            "layers.0.blocks.0.mlp.fc2.bias",
        );
        is(
            layout,
            "stages.0.downsample.norm.weight",
            "layers.1.downsample.norm.weight",
        );
        is(
            layout,
            "patch_embed.projection.weight",
            "patch_embed.proj.weight",
        );
        is(layout, "norm3.weight", "norm.weight");
        is(layout, "semantic_embed_w.2.bias", "semantic_embed_w.2.bias");
        for left_out in [
            "norm0.weight",
            "semantic_embed_b.3.bias",
            "head.mlp.0.weight",
        ] {
            assert!(
                matches!(rename(layout, left_out, 4), Name::LeftOut(_)),
                "{left_out}"
            );
        }
        let layout = Layout::MicrosoftSwin;
        is(
            layout,
            "layers.2.downsample.norm.bias",
            "layers.3.downsample.norm.bias",
        );
        is(
            layout,
            "layers.2.blocks.3.norm1.bias",
            "layers.2.blocks.3.norm1.bias",
        );
        is(layout, "norm.weight", "norm.weight");
        let layout = Layout::Vit;
        is(
            layout,
            "blocks.3.attn.qkv.weight",
            "blocks.3.attn.qkv.weight",
        );
        is(
            layout,
            "blocks.1.3.attn.qkv.weight",
            "blocks.3.attn.qkv.weight",
        );
        is(layout, "register_tokens", "reg_token");
        is(layout, "storage_tokens", "reg_token");
        is(
            layout,
            "blocks.3.mlp.w1.weight",
            "blocks.3.mlp.fc1_g.weight",
        );
        is(layout, "blocks.3.mlp.fc1_x.bias", "blocks.3.mlp.fc1.bias");
        assert!(matches!(
            rename(layout, "decoder_blocks.0.norm1.weight", 0),
            Name::LeftOut(_)
        ));
    }

    #[test]
    fn grids_are_squares_or_twice_as_high_as_wide() {
        assert_eq!(sides(196), Some([14, 14]));
        assert_eq!(sides(128), Some([16, 8]));
        assert_eq!(sides(1369), Some([37, 37]));
        assert_eq!((sides(192), sides(0)), (None, None));
    }
}
