//! The configuration from the shapes.

use clasp_model::backbone::Sizes;
use clasp_model::layers::Resampling;
use clasp_model::swin::SwinSizes;
use clasp_model::vit::{Pool, Positions, VitSizes};

use super::names::{Layout, sides};
use super::options::ImportOptions;
use super::recognition::VitTraits;
use super::source::CheckpointSource;
use super::windows::{StageWindows, stage_windows};
use crate::state::StateDict;

/// Width, hidden channels and heads of published ViTs. A width alone does not say: an old ViT-S has
/// 8 heads of 768.
const HEADS: [[usize; 3]; 6] = [
    [64, 256, 2],
    [192, 768, 3],
    [384, 1536, 6],
    [768, 3072, 12],
    [1024, 4096, 16],
    [1280, 5120, 16],
];

/// The same of DINOv3; the first is that of small networks here.
const DINOV3_HEADS: [[usize; 3]; 7] = [
    [64, 128, 2],
    [192, 768, 3],
    [384, 1536, 6],
    [768, 3072, 12],
    [1024, 4096, 16],
    [1280, 5120, 20],
    [4096, 8192, 32],
];

/// Height and width of the images of a network without position embeddings, where nothing says
/// more: DINOv3's, as timm has them.
const DINOV3_IMAGE: [usize; 2] = [256, 256];

/// Sizes of the network whose tensors these are, in our names, and what they do not show and was
/// assumed.
pub(super) fn derive(
    layout: Layout,
    source: CheckpointSource,
    traits: VitTraits,
    state: &StateDict,
    options: &ImportOptions,
) -> Result<(Sizes, Option<String>), String> {
    match layout {
        Layout::Vit => Ok((Sizes::Vit(vit(source, traits, state, options)?), None)),
        _ => {
            let (sizes, assumed) = swin(state, options.size)?;
            Ok((Sizes::Swin(sizes), assumed))
        }
    }
}

fn shape<'a>(state: &'a StateDict, name: &str) -> Result<&'a [usize], String> {
    match state.get(name) {
        Some(array) => Ok(&array.shape),
        None => Err(format!(
            "`{name}` is missing, which the network's sizes are read from"
        )),
    }
}

/// How many of `NAME.0.…`, `NAME.1.…` follow one another from 0.
fn count(state: &StateDict, name: &str) -> usize {
    (0..)
        .take_while(|index| {
            let prefix = format!("{name}.{index}.");
            let mut rest = state.range(prefix.clone()..);
            rest.next()
                .is_some_and(|(name, _)| name.starts_with(&prefix))
        })
        .count()
}

fn swin(
    state: &StateDict,
    image: Option<[usize; 2]>,
) -> Result<(SwinSizes, Option<String>), String> {
    let patch = shape(state, "patch_embed.proj.weight")?;
    let &[embed_dim, 3, patch_size, width] = patch else {
        return Err(format!(
            "`patch_embed.proj.weight`: expected [channels, 3, patch, patch], found {patch:?}"
        ));
    };
    if patch_size != width {
        return Err(format!(
            "`patch_embed.proj.weight`: expected square patches, found {patch_size}x{width}"
        ));
    }
    if state.contains_key("pos_embed") {
        return Err(
            "`pos_embed`: absolute position embeddings, which a Swin does not have here".to_owned(),
        );
    }
    let stages = count(state, "layers");
    let mut sizes = SwinSizes {
        patch_size,
        embed_dim,
        depths: Vec::new(),
        num_heads: Vec::new(),
        window_size: 0,
        windows: Vec::new(),
        mlp_ratio: 0,
        merging: Vec::new(),
    };
    let mut rows = Vec::with_capacity(stages);
    for stage in 0..stages {
        sizes
            .depths
            .push(count(state, &format!("layers.{stage}.blocks")));
        let block = format!("layers.{stage}.blocks.0");
        let name = format!("{block}.attn.relative_position_bias_table");
        let table = shape(state, &name)?;
        let &[positions, heads] = table else {
            return Err(format!(
                "`{name}`: expected [positions, heads], found {table:?}"
            ));
        };
        rows.push(positions);
        sizes.num_heads.push(heads);
    }
    let fc1 = shape(state, "layers.0.blocks.0.mlp.fc1.weight")?;
    sizes.mlp_ratio = match fc1 {
        [hidden, inputs] if *inputs > 0 && hidden.is_multiple_of(*inputs) => hidden / inputs,
        _ => {
            return Err(format!(
                "`layers.0.blocks.0.mlp.fc1.weight`: expected a multiple of {embed_dim} by {embed_dim}, found {fc1:?}"
            ));
        }
    };
    let StageWindows { windows, assumed } = stage_windows(&rows, patch_size, image)?;
    let whole = windows.first().copied().unwrap_or([1; 2]);
    sizes.window_size = whole[0];
    if windows.iter().any(|window| *window != [whole[0]; 2]) {
        sizes.windows = windows;
    }
    Ok((sizes, assumed))
}

/// Height and width in pixels of the images that a ViT's position embeddings are of.
fn vit_image(
    state: &StateDict,
    [width, patch]: [usize; 2],
    class_token: bool,
    image: Option<[usize; 2]>,
) -> Result<[usize; 2], String> {
    let positions = shape(state, "pos_embed")?;
    let patches = match positions {
        [1, count, w] if *w == width && *count > usize::from(class_token) => {
            count - usize::from(class_token)
        }
        _ => {
            return Err(format!(
                "`pos_embed`: expected [1, tokens, {width}], found {positions:?}"
            ));
        }
    };
    let wanted = image.map(|size| size.map(|side| side.div_ceil(patch)));
    let grid = match (sides(patches), wanted) {
        // Of a square both readings are common; of other counts the size that is asked for says.
        (Some([rows, columns]), _) if rows == columns => [rows, columns],
        (_, Some([rows, columns])) if rows.checked_mul(columns) == Some(patches) => [rows, columns],
        (Some(grid), _) => grid,
        (None, _) => {
            return Err(format!(
                "`pos_embed` holds {patches} patches, neither a square nor twice as high as wide\n\
                 hint: --size HxW of the images that it was trained on"
            ));
        }
    };
    let image = grid.map(|side| side.checked_mul(patch));
    let [Some(height), Some(wide)] = image else {
        return Err(format!("a grid of {grid:?} patches of {patch}"));
    };
    Ok([height, wide])
}

fn vit(
    source: CheckpointSource,
    traits: VitTraits,
    state: &StateDict,
    options: &ImportOptions,
) -> Result<VitSizes, String> {
    let projection = shape(state, "patch_embed.proj.weight")?;
    let (width, patch) = match projection {
        [width, 3, patch, other] if patch == other && *patch > 0 => (*width, *patch),
        _ => {
            return Err(format!(
                "`patch_embed.proj.weight`: expected [width, 3, patch, patch], found {projection:?}"
            ));
        }
    };
    let fc1 = shape(state, "blocks.0.mlp.fc1.weight")?;
    let hidden = match fc1 {
        [hidden, inputs] if *inputs == width => *hidden,
        _ => {
            return Err(format!(
                "`blocks.0.mlp.fc1.weight`: expected [hidden, {width}], found {fc1:?}"
            ));
        }
    };
    let rotary = source == CheckpointSource::DinoV3 && !state.contains_key("pos_embed");
    let published: &[[usize; 3]] = match rotary {
        true => &DINOV3_HEADS,
        false => &HEADS,
    };
    let known = { published.iter() }.find(|[w, h, _]| *w == width && *h == hidden);
    let heads = match (options.heads, known) {
        (Some(heads), _) => heads,
        (None, Some([_, _, heads])) => *heads,
        (None, None) => {
            return Err(format!(
                "the number of attention heads does not show in the shapes, and no published ViT has width {width} and \
                 hidden {hidden}\nhint: --heads"
            ));
        }
    };
    let class_token = state.contains_key("cls_token");
    let registers = match state.get("reg_token").map(|array| array.shape.as_slice()) {
        Some([1, count, _]) => *count,
        _ => 0,
    };
    let image_size = match rotary {
        true => options.size.unwrap_or(DINOV3_IMAGE),
        false => vit_image(state, [width, patch], class_token, options.size)?,
    };
    let qkv_bias = state.contains_key("blocks.0.attn.qkv.bias");
    Ok(VitSizes {
        image_size,
        patch_size: patch,
        embed_dim: width,
        depth: count(state, "blocks"),
        num_heads: heads,
        hidden_dim: hidden,
        qkv_bias,
        class_token,
        registers,
        layer_scale: state.contains_key("blocks.0.ls1.gamma"),
        pool: match source {
            CheckpointSource::Mae | CheckpointSource::Hap => Pool::Mean,
            _ if traits.fc_norm => Pool::Mean,
            _ if traits.distilled => Pool::Distilled,
            _ if !class_token => Pool::Mean,
            _ => Pool::Class,
        },
        pre_norm: state.contains_key("norm_pre.weight"),
        quick_gelu: source == CheckpointSource::ClipOpenAi,
        fc_norm: traits.fc_norm,
        // transformers' DINOv2 with registers alone has the antialiased form.
        resampling: if traits.transformers && registers == 0 && !rotary {
            Resampling::Bicubic
        } else {
            Resampling::Antialiased
        },
        crop: traits.transformers,
        positions: match rotary {
            true => Positions::Rotary,
            false => Positions::Learned,
        },
        key_bias: !(traits.no_key_bias || rotary && !qkv_bias),
        gated: state.contains_key("blocks.0.mlp.fc1_g.weight"),
    })
}
