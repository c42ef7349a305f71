//! Sizes of a Vision Transformer and what shapes it.

use serde::{Deserialize, Serialize};

use crate::{
    adapter::Adapter,
    error::ModelError,
    layers::{self, Resampling},
    moe::MoeConfig,
};

/// How many stages the blocks count as.
pub(super) const STAGES: usize = 4;

/// How the tokens are pooled into the features of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The class token: DINO, DINOv2, TransReID-SSL, PASS and classifiers.
    #[default]
    Class,
    /// The mean of the patches: MAE and HAP, which do not train their class token.
    Mean,
    /// The mean of the class token and the first register: distilled DeiT, whose distillation token
    /// is a register here, with a classifier on each.
    Distilled,
}

/// How a network knows where a patch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// An embedding of each position, which is learned and added to the patch.
    #[default]
    Learned,
    /// Queries and keys are turned by the place of their patch in the image: DINOv3.
    Rotary,
}

/// Sizes of a ViT, as the shapes of its weights show them, and the number of heads; stored with the
/// weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitSizes {
    /// Height and width in pixels at which the stored position embeddings apply as they are.
    pub image_size: [usize; 2],
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Hidden channels of the MLPs.
    pub hidden_dim: usize,
    /// Whether query, key and value have biases.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// Whether there is a class token.
    #[serde(default = "yes")]
    pub class_token: bool,
    /// Number of registers.
    #[serde(default)]
    pub registers: usize,
    /// Whether each branch is scaled per channel before it is added.
    #[serde(default)]
    pub layer_scale: bool,
    /// How the tokens are pooled into the features of the image.
    #[serde(default)]
    pub pool: Pool,
    /// Whether there is a norm before the blocks, and the patches have no bias: CLIP's.
    #[serde(default)]
    pub pre_norm: bool,
    /// Whether the MLPs have x · σ(1.702 x) instead of GELU: OpenAI's CLIP.
    #[serde(default)]
    pub quick_gelu: bool,
    /// Whether the last norm follows the pooling instead of preceding it, so that the map has none:
    /// timm's and MAE's classifiers on the mean of the patches.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fc_norm: bool,
    /// How position embeddings reach the grid of images of other sizes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resampling: Resampling,
    /// Whether images are cropped to whole patches at the bottom and the right, as in Hugging Face's
    /// transformers, rather than padded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub crop: bool,
    /// How it knows where a patch lies.
    #[serde(default, skip_serializing_if = "is_default")]
    pub positions: Positions,
    /// Whether keys have a bias, where queries and values have one.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub key_bias: bool,
    /// Whether the MLPs are gated: SwiGLU in place of GELU.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gated: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

impl VitSizes {
    fn preset(image_size: [usize; 2], embed_dim: usize, depth: usize, num_heads: usize) -> Self {
        Self {
            image_size,
            patch_size: 16,
            embed_dim,
            depth,
            num_heads,
            hidden_dim: 4 * embed_dim,
            qkv_bias: true,
            class_token: true,
            registers: 0,
            layer_scale: false,
            pool: Pool::Class,
            pre_norm: false,
            quick_gelu: false,
            fc_norm: false,
            resampling: Resampling::default(),
            crop: false,
            positions: Positions::Learned,
            key_bias: true,
            gated: false,
        }
    }

    /// 0.3 M parameters. Ours, for tests and demonstrations.
    pub fn pico() -> Self {
        Self::preset([128, 64], 64, 4, 2)
    }

    /// ViT-Ti/16 (DeiT).
    pub fn tiny() -> Self {
        Self::preset([224, 224], 192, 12, 3)
    }

    /// ViT-S/16.
    pub fn small() -> Self {
        Self::preset([224, 224], 384, 12, 6)
    }

    /// ViT-B/16.
    pub fn base() -> Self {
        Self::preset([224, 224], 768, 12, 12)
    }

    fn dinov3(embed_dim: usize, depth: usize, num_heads: usize) -> Self {
        Self {
            registers: 4,
            layer_scale: true,
            positions: Positions::Rotary,
            key_bias: false,
            ..Self::preset([256, 256], embed_dim, depth, num_heads)
        }
    }

    /// 0.2 M parameters, with what distinguishes DINOv3-S+. Ours, for tests and demonstrations.
    pub fn dinov3_pico() -> Self {
        Self {
            image_size: [128, 64],
            hidden_dim: 128,
            gated: true,
            ..Self::dinov3(64, 4, 2)
        }
    }

    /// DINOv3 ViT-S/16.
    pub fn dinov3_small() -> Self {
        Self::dinov3(384, 12, 6)
    }

    /// DINOv3 ViT-S+/16.
    pub fn dinov3_small_plus() -> Self {
        Self {
            gated: true,
            ..Self::dinov3_small()
        }
    }

    /// DINOv3 ViT-B/16.
    pub fn dinov3_base() -> Self {
        Self::dinov3(768, 12, 12)
    }

    /// DINOv3 ViT-L/16.
    pub fn dinov3_large() -> Self {
        Self::dinov3(1024, 24, 16)
    }

    /// Rows and columns of the stored position embeddings.
    pub fn grid(&self) -> [usize; 2] {
        self.image_grid(self.image_size)
    }

    /// Rows and columns of patches of an image of a height and width.
    pub fn image_grid(&self, image: [usize; 2]) -> [usize; 2] {
        image.map(|size| match self.crop {
            // What is smaller than a patch is padded to one.
            true => (size / self.patch_size).max(1),
            false => size.div_ceil(self.patch_size),
        })
    }

    /// Blocks that count to the last stage.
    pub fn last_stage(&self) -> usize {
        let last = |block: &usize| block * STAGES / self.depth + 1 == STAGES;
        (0..self.depth).filter(last).count().max(1)
    }

    /// Tokens in front of the patches.
    pub(super) fn prefix(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }
}

/// Sizes and settings of a Vision Transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Its sizes.
    pub sizes: VitSizes,
    /// Drop path of the last block; earlier blocks have less, linearly from 0.
    pub drop_path: f64,
    /// How its blocks depend on prompt weights: not at all, or by experts.
    pub adapter: Adapter,
}

impl VitConfig {
    /// The plain network of those sizes, drop path 0.1.
    pub fn new(sizes: VitSizes) -> Self {
        Self {
            sizes,
            drop_path: 0.1,
            adapter: Adapter::None,
        }
    }

    /// Checks that the sizes can work, and that they are not absurd: they may come from a file.
    pub fn check(&self) -> Result<(), ModelError> {
        let setting = |field, expected: String, found: String| ModelError::Setting {
            field,
            expected,
            found,
        };
        if !(0.0..1.0).contains(&self.drop_path) {
            let found = self.drop_path.to_string();
            return Err(setting("drop_path", "a rate in [0, 1)".into(), found));
        }
        let sizes = &self.sizes;
        for (field, value, most) in [
            ("image_size", sizes.image_size[0], 8192),
            ("image_size", sizes.image_size[1], 8192),
            ("patch_size", sizes.patch_size, 256),
            ("embed_dim", sizes.embed_dim, 8192),
            ("depth", sizes.depth, 128),
            ("hidden_dim", sizes.hidden_dim, 65_536),
            ("registers", sizes.registers + 1, 1025),
        ] {
            if !(1..=most).contains(&value) {
                let expected = format!("1 to {most}");
                return Err(setting(field, expected, value.to_string()));
            }
        }
        if sizes.num_heads == 0 || !sizes.embed_dim.is_multiple_of(sizes.num_heads) {
            let expected = format!("a divisor of `embed_dim`, {}", sizes.embed_dim);
            return Err(setting("num_heads", expected, sizes.num_heads.to_string()));
        }
        let head_dim = sizes.embed_dim / sizes.num_heads;
        if sizes.positions == Positions::Rotary && !head_dim.is_multiple_of(4) {
            let expected = "heads of a multiple of 4 channels, for rotary positions".into();
            return Err(setting("num_heads", expected, sizes.num_heads.to_string()));
        }
        if sizes.pool == Pool::Class && !sizes.class_token {
            let expected = "mean, because there is no class token".into();
            return Err(setting("pool", expected, "class".into()));
        }
        if sizes.pool == Pool::Distilled && !(sizes.class_token && sizes.registers > 0) {
            let expected = "class or mean: distilled needs a class token and a register".into();
            return Err(setting("pool", expected, "distilled".into()));
        }
        match &self.adapter {
            Adapter::None => {}
            Adapter::Lambda(_) => {
                let expected =
                    "none or moe: SOLIDER's controller sits between the stages of a Swin";
                return Err(setting("adapter", expected.into(), "lambda".into()));
            }
            Adapter::Moe(config) => {
                config.check(sizes.last_stage())?;
            }
        }
        Ok(())
    }

    /// The mixture of experts of a block, counted from 0; none in a block that is not conditional.
    pub(super) fn experts(&self, block: usize) -> Option<&MoeConfig> {
        match &self.adapter {
            Adapter::Moe(moe) if block + moe.blocks >= self.sizes.depth => Some(moe),
            _ => None,
        }
    }

    /// The stage that a block counts to.
    pub(super) fn stage(&self, block: usize) -> usize {
        block * STAGES / self.sizes.depth
    }

    /// Number of parameters, without building anything.
    pub fn parameters(&self) -> usize {
        let sizes = &self.sizes;
        let (width, hidden) = (sizes.embed_dim, sizes.hidden_dim);
        let qkv_bias = if sizes.qkv_bias { 3 * width } else { 0 };
        let layer_scale = if sizes.layer_scale { 2 * width } else { 0 };
        let block = 4 * width
            + 4 * width * width
            + qkv_bias
            + width
            + 2 * width * hidden
            + hidden
            + width
            + layer_scale
            + if sizes.gated {
                width * hidden + hidden
            } else {
                0
            };
        let experts: usize = match &self.adapter {
            Adapter::Moe(moe) => moe.blocks * moe.parameters(width, hidden),
            _ => 0,
        };
        let class = usize::from(sizes.class_token);
        let positions = match sizes.positions {
            Positions::Learned => class + sizes.grid().iter().product::<usize>(),
            Positions::Rotary => 0,
        };
        let pre_norm = if sizes.pre_norm { 2 * width } else { 0 };
        pre_norm
            + width * (3 * sizes.patch_size * sizes.patch_size + 1)
            + width * (class + sizes.registers + positions + 2)
            + sizes.depth * block
            + experts
    }

    /// Floating-point operations of the matrix products of a forward pass on an image, two a
    /// multiplication.
    pub fn operations(&self, size: [usize; 2]) -> usize {
        let sizes = &self.sizes;
        let [rows, columns] = sizes.image_grid(size);
        let tokens = sizes.prefix() + rows * columns;
        let gate = if sizes.gated { sizes.hidden_dim } else { 0 };
        let block = layers::block_operations(tokens, tokens, sizes.embed_dim, sizes.hidden_dim)
            + 2 * tokens * sizes.embed_dim * gate;
        2 * rows * columns * 3 * sizes.patch_size.pow(2) * sizes.embed_dim + sizes.depth * block
    }
}
