//! Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) for images of any size, with the
//! mixture of experts.
//!
//! The computation and the names are timm's (`vit_*_patch16_224`), which DINO, MAE, DeiT and TransReID-SSL share;
//! registers (arXiv 2309.16588) and LayerScale are those of DINOv2 (arXiv 2304.07193), the norm before the blocks is CLIP's. Departures, none of which
//! changes a number on sizes that the patch divides:
//!
//! * images are padded with zeros at the bottom and the right to whole patches (timm's `dynamic_img_pad`);
//! * position embeddings are resampled to the image's grid while running, as timm does with `dynamic_img_size`
//!   ([`resample_grid`]);
//! * the class token has a position embedding and registers have none, as in DINOv2.
//!
//! For what works with stages, the blocks count as four stages of equal depth: the pyramid holds the map after
//! each, and conditional blocks lie in the last.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{
    backbone::{Adapter, Features, Shared},
    clip::resample_grid,
    error::ModelError,
    kernels::{self, attention::Grid, scalar::Activation},
    layers::{self, Drops, Factors, Rng, project},
    mix::{self, Mix},
    moe::{Conditioned, Moe},
    swin::{Mlp, PatchProjection},
};

/// Added to the variance in the norms, in every published ViT of the layouts above.
const EPSILON: f64 = 1e-6;
/// First value of LayerScale, DINOv2's.
const LAYER_SCALE: f64 = 1e-5;
/// How many stages the blocks count as.
const STAGES: usize = 4;

/// What stands for the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The class token: DINO, DINOv2, TransReID-SSL, PASS and classifiers.
    #[default]
    Class,
    /// The mean of the patches: MAE and HAP, which do not train their class token.
    Mean,
}

/// What the shapes of a ViT's weights say, and the number of heads; travels with the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitSizes {
    /// Height and width in pixels at which the stored position embeddings apply as they are.
    pub image: [usize; 2],
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Channels of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Hidden channels of the MLPs.
    pub hidden: usize,
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
    /// What stands for the whole image.
    #[serde(default)]
    pub pool: Pool,
    /// Whether there is a norm before the blocks, and the patches have no bias: CLIP's.
    #[serde(default)]
    pub pre_norm: bool,
    /// Whether the MLPs have x · σ(1.702 x) instead of GELU: OpenAI's CLIP.
    #[serde(default)]
    pub quick_gelu: bool,
}

fn yes() -> bool {
    true
}

impl VitSizes {
    fn preset(image: [usize; 2], width: usize, depth: usize, heads: usize) -> Self {
        Self {
            image,
            patch: 16,
            width,
            depth,
            heads,
            hidden: 4 * width,
            qkv_bias: true,
            class_token: true,
            registers: 0,
            layer_scale: false,
            pool: Pool::Class,
            pre_norm: false,
            quick_gelu: false,
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

    /// Rows and columns of the stored position embeddings.
    pub fn grid(&self) -> [usize; 2] {
        self.image.map(|size| size.div_ceil(self.patch))
    }

    /// Blocks that count to the last stage.
    pub fn last_stage(&self) -> usize {
        let last = |block: &usize| block * STAGES / self.depth + 1 == STAGES;
        (0..self.depth).filter(last).count().max(1)
    }

    /// Tokens in front of the patches.
    fn prefix(&self) -> usize {
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
    /// How the network is adapted to a mix of tasks: not at all, or by experts.
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
            ("image", sizes.image[0], 8192),
            ("image", sizes.image[1], 8192),
            ("patch", sizes.patch, 256),
            ("width", sizes.width, 8192),
            ("depth", sizes.depth, 128),
            ("hidden", sizes.hidden, 65_536),
            ("registers", sizes.registers + 1, 1025),
        ] {
            if !(1..=most).contains(&value) {
                let expected = format!("1 to {most}");
                return Err(setting(field, expected, value.to_string()));
            }
        }
        if sizes.heads == 0 || !sizes.width.is_multiple_of(sizes.heads) {
            let expected = format!("a divisor of the width, {}", sizes.width);
            return Err(setting("heads", expected, sizes.heads.to_string()));
        }
        if sizes.pool == Pool::Class && !sizes.class_token {
            let expected = "mean, because there is no class token".into();
            return Err(setting("pool", expected, "class".into()));
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

    /// The stage that a block counts to.
    fn stage(&self, block: usize) -> usize {
        block * STAGES / self.sizes.depth
    }

    /// Number of parameters, without building anything.
    pub fn parameters(&self) -> usize {
        let sizes = &self.sizes;
        let (width, hidden) = (sizes.width, sizes.hidden);
        let [rows, columns] = sizes.grid();
        let qkv_bias = if sizes.qkv_bias { 3 * width } else { 0 };
        let layer_scale = if sizes.layer_scale { 2 * width } else { 0 };
        let block = 4 * width
            + 4 * width * width
            + qkv_bias
            + width
            + 2 * width * hidden
            + hidden
            + width
            + layer_scale;
        let experts: usize = match &self.adapter {
            Adapter::Moe(moe) => moe.blocks * moe.parameters(width, hidden),
            _ => 0,
        };
        let class = usize::from(sizes.class_token);
        let pre_norm = if sizes.pre_norm { 2 * width } else { 0 };
        pre_norm
            + width * (3 * sizes.patch * sizes.patch + 1)
            + width * (2 * class + sizes.registers + rows * columns + 2)
            + sizes.depth * block
            + experts
    }

    /// Floating-point operations of the products of a pass over an image, two a multiplication.
    pub fn operations(&self, size: [usize; 2]) -> usize {
        let sizes = &self.sizes;
        let [rows, columns] = size.map(|size| size.div_ceil(sizes.patch));
        let tokens = sizes.prefix() + rows * columns;
        let block = layers::block_operations(tokens, tokens, sizes.width, sizes.hidden);
        2 * rows * columns * 3 * sizes.patch.pow(2) * sizes.width + sizes.depth * block
    }

    /// A network with fresh weights, as DINO has them: truncated normal of standard deviation 0.02, biases zero.
    ///
    /// # Panics
    /// On settings that [`VitConfig::check`] refuses.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Vit {
        assert!(self.check().is_ok(), "{:?}", self.check());
        let sizes = &self.sizes;
        let [rows, columns] = sizes.grid();
        let width = sizes.width;
        let mut tokens = |count| layers::trunc_normal([1, count, width], 0.02, rng, device);
        let class = usize::from(sizes.class_token);
        let cls_token = sizes.class_token.then(|| tokens(1));
        let reg_token = (sizes.registers > 0).then(|| tokens(sizes.registers));
        let pos_embed = tokens(class + rows * columns);
        let rate = |block: usize| self.drop_path * block as f64 / (sizes.depth.max(2) - 1) as f64;
        Vit {
            cls_token,
            reg_token,
            pos_embed,
            patch_embed: PatchEmbed {
                proj: PatchProjection::init(width, sizes.patch, rng, device),
            },
            norm_pre: sizes.pre_norm.then(|| norm(width, device)),
            blocks: (0..sizes.depth)
                .map(|block| Block::init(self, block, rate(block), rng, device))
                .collect(),
            norm: norm(width, device),
            config: self.clone(),
        }
    }
}

fn norm(width: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(width)
        .with_epsilon(EPSILON)
        .init(device)
}

/// The Vision Transformer.
#[derive(Module, Debug)]
pub struct Vit {
    /// [1, 1, width].
    pub cls_token: Option<Param<Tensor<3>>>,
    /// Registers: [1, registers, width].
    pub reg_token: Option<Param<Tensor<3>>>,
    /// [1, class + rows·columns, width], of the class token and of the patches row by row.
    pub pos_embed: Param<Tensor<3>>,
    /// Patches to tokens.
    pub patch_embed: PatchEmbed,
    /// CLIP's norm before the blocks.
    pub norm_pre: Option<LayerNorm>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The norm after them.
    pub norm: LayerNorm,
    #[module(skip)]
    config: VitConfig,
}

/// The norm of each token.
fn normalise(x: Tensor<3>, norm: &LayerNorm) -> Tensor<3> {
    kernels::norm::layer_norm(x, norm, EPSILON)
}

impl Vit {
    /// What the blocks before the conditional ones make of a batch; see [`crate::backbone::Backbone::shared`].
    pub(crate) fn shared(&self, images: Tensor<4>, rng: Option<&mut Rng>) -> Shared {
        let batch = images.dims()[0];
        let blocks = &self.blocks[..self.first_conditional()];
        let rates = blocks.iter().map(|block| block.drop_path);
        let mut drops = Drops::draw(rates, batch, rng, &images.device());
        let (mut x, grid) = self.embed(images);
        let mut pyramid = Vec::with_capacity(STAGES);
        // No mix reaches blocks without experts.
        let mix = Mix::mean().tensor(&x.device());
        for (index, block) in blocks.iter().enumerate() {
            x = block.forward(x, &mix, drops.next());
            self.collect(&mut pyramid, index, &x, grid);
        }
        let [_, tokens, width] = x.dims();
        // As a map with the tokens in front as further rows: [batch, 1, tokens, width] and the grid beside.
        Shared {
            x: x.reshape([batch, 1, tokens, width]),
            pyramid,
            grid,
        }
    }

    /// What the conditional blocks make of it; see [`crate::backbone::Backbone::conditional`].
    pub(crate) fn conditional(
        &self,
        shared: Shared,
        mix: &Tensor<2>,
        rng: Option<&mut Rng>,
    ) -> Features {
        let Shared {
            x,
            mut pyramid,
            grid,
        } = shared;
        let [batch, _, tokens, width] = x.dims();
        let mut x = x.reshape([batch, tokens, width]);
        mix::assert_rows(mix, batch);
        let first = self.first_conditional();
        let blocks = &self.blocks[first..];
        let rates = blocks.iter().map(|block| block.drop_path);
        let mut drops = Drops::draw(rates, batch, rng, &x.device());
        for (index, block) in blocks.iter().enumerate() {
            x = block.forward(x, mix, drops.next());
            self.collect(&mut pyramid, first + index, &x, grid);
        }
        let x = normalise(x, &self.norm);
        let map = self.map(x.clone(), grid);
        let pooled = match self.config.sizes.pool {
            Pool::Class => x.narrow(1, 0, 1),
            Pool::Mean => {
                let prefix = self.config.sizes.prefix();
                x.narrow(1, prefix, grid[0] * grid[1]).mean_dim(1)
            }
        };
        if let Some(last) = pyramid.last_mut() {
            *last = map.clone();
        }
        Features {
            map,
            pooled: pooled.squeeze_dim::<2>(1),
            pyramid,
        }
    }

    /// Adds the map after block `index` to the pyramid where a stage ends there. A network of fewer blocks than stages
    /// gives some maps twice, so that there are always four.
    fn collect(&self, pyramid: &mut Vec<Tensor<4>>, index: usize, x: &Tensor<3>, grid: [usize; 2]) {
        let next = if index + 1 == self.blocks.len() {
            STAGES
        } else {
            self.config.stage(index + 1)
        };
        while pyramid.len() < next {
            pyramid.push(self.map(x.clone(), grid));
        }
    }

    /// The first conditional block; as many as there are without conditional ones.
    fn first_conditional(&self) -> usize {
        match &self.config.adapter {
            Adapter::Moe(moe) => self.blocks.len() - moe.blocks,
            _ => self.blocks.len(),
        }
    }

    /// [batch, 3, height, width] → [batch, prefix + rows·columns, width] and the grid.
    fn embed(&self, images: Tensor<4>) -> (Tensor<3>, [usize; 2]) {
        let patches = self.patch_embed.proj.forward(images);
        let [batch, rows, columns, width] = patches.dims();
        let grid = [rows, columns];
        let class = usize::from(self.cls_token.is_some());

        let positions = self.pos_embed.val();
        let stored = self.config.sizes.grid();
        let of_patches = positions.clone().narrow(1, class, stored[0] * stored[1]);
        let of_patches = if stored == grid {
            of_patches
        } else {
            resample_grid(of_patches.squeeze_dim::<2>(0), stored, grid).unsqueeze::<3>()
        };
        let patches = patches.reshape([batch, rows * columns, width]) + of_patches;

        let mut tokens = Vec::with_capacity(3);
        if let Some(token) = &self.cls_token {
            let token = token.val() + positions.narrow(1, 0, 1);
            tokens.push(token.expand([batch, 1, width]));
        }
        if let Some(registers) = &self.reg_token {
            let registers = registers.val();
            let count = registers.dims()[1];
            tokens.push(registers.expand([batch, count, width]));
        }
        tokens.push(patches);
        let tokens = Tensor::cat(tokens, 1);
        let tokens = match &self.norm_pre {
            None => tokens,
            Some(norm) => normalise(tokens, norm),
        };
        (tokens, grid)
    }

    /// The patches of [batch, prefix + rows·columns, width] as a map: [batch, width, rows, columns].
    fn map(&self, tokens: Tensor<3>, [rows, columns]: [usize; 2]) -> Tensor<4> {
        let [batch, _, width] = tokens.dims();
        tokens
            .narrow(1, self.config.sizes.prefix(), rows * columns)
            .reshape([batch, rows, columns, width])
            .permute([0, 3, 1, 2])
    }

    /// The configuration that made this network.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The same network for one mix, without prompts. Experts leave the plain network.
    pub fn fold(mut self, mix: Mix) -> Self {
        let device = self.pos_embed.val().device();
        for block in &mut self.blocks {
            *block = block.clone().fold(&mix.tensor(&device));
        }
        self.config.adapter = self.config.adapter.folded();
        self
    }
}

/// Patches to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The projection.
    pub proj: PatchProjection,
}

/// Attention, an MLP and, in conditional blocks, the mixture of experts.
#[derive(Module, Debug)]
pub struct Block {
    /// LN1.
    pub norm1: LayerNorm,
    /// Attention.
    pub attn: Attention,
    /// Scale of the attention's branch.
    pub ls1: Option<LayerScale>,
    /// LN2.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Scale of the MLP's branch.
    pub ls2: Option<LayerScale>,
    /// The mixture of experts of a conditional block.
    pub moe: Option<Moe>,
    drop_path: f64,
}

impl Block {
    fn init(
        config: &VitConfig,
        block: usize,
        drop_path: f64,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let sizes = &config.sizes;
        let width = sizes.width;
        let scale = || {
            sizes.layer_scale.then(|| LayerScale {
                gamma: layers::constant([width], LAYER_SCALE, device),
            })
        };
        let plain = Self {
            norm1: norm(width, device),
            attn: Attention {
                qkv: layers::linear(width, 3 * width, sizes.qkv_bias, rng, device),
                proj: layers::linear(width, width, true, rng, device),
                heads: sizes.heads,
            },
            ls1: scale(),
            norm2: norm(width, device),
            mlp: Mlp::init(width, sizes.hidden, rng, device).with_activation(if sizes.quick_gelu {
                Activation::QuickGelu
            } else {
                Activation::Gelu
            }),
            ls2: scale(),
            moe: None,
            drop_path,
        };
        // Drawn last, so that the plain part of a block is the same with and without experts.
        let moe = match &config.adapter {
            Adapter::Moe(moe) if block + moe.blocks >= sizes.depth => {
                Some(moe.init(width, sizes.hidden, rng, device))
            }
            _ => None,
        };
        Self { moe, ..plain }
    }

    /// The same for prompt weights [1, tasks], as a block without prompts.
    fn fold(self, mix: &Tensor<2>) -> Self {
        let Some(moe) = &self.moe else {
            return self;
        };
        let conditioned = moe.condition([&self.norm1, &self.norm2], &self.mlp, mix);
        let Conditioned { norm1, norm2, mlp } = conditioned.detached();
        Self {
            norm1,
            norm2,
            mlp,
            moe: None,
            ..self
        }
    }

    /// x: [batch, tokens, width], mix: [1, tasks].
    fn forward(
        &self,
        x: Tensor<3>,
        mix: &Tensor<2>,
        [factors, later]: [Option<Factors>; 2],
    ) -> Tensor<3> {
        let norms = [&self.norm1, &self.norm2];
        let conditioned = { self.moe.as_ref() }.map(|moe| moe.condition(norms, &self.mlp, mix));
        let (norm1, norm2, mlp) = match &conditioned {
            Some(Conditioned { norm1, norm2, mlp }) => (norm1, norm2, mlp),
            None => (&self.norm1, &self.norm2, &self.mlp),
        };
        let attn = &self.attn;
        let tokens = x.dims()[1];
        let fuse = kernels::can_fuse(&x) && self.ls1.is_none() && self.ls2.is_none();
        let x = if fuse {
            let parameters =
                kernels::attention::Parameters::new(norm1, &attn.qkv, &attn.proj, None);
            let grid = Arc::new(Grid::whole(tokens, false));
            let factors = factors.map(|factors| factors.values);
            kernels::attention::attention(x, parameters, EPSILON, attn.heads, grid, factors)
        } else {
            let attended = attn.forward(normalise(x.clone(), norm1));
            let attended = LayerScale::apply(&self.ls1, attended);
            x + Factors::scale(&factors, attended)
        };

        if fuse {
            mlp.residual(x, norm2, EPSILON, later)
        } else {
            let branch = mlp.forward(normalise(x.clone(), norm2));
            let branch = LayerScale::apply(&self.ls2, branch);
            x + Factors::scale(&later, branch)
        }
    }
}

/// A factor per channel.
#[derive(Module, Debug)]
pub struct LayerScale {
    /// [width].
    pub gamma: Param<Tensor<1>>,
}

impl LayerScale {
    /// x: [batch, tokens, width].
    fn apply(scale: &Option<Self>, x: Tensor<3>) -> Tensor<3> {
        match scale {
            None => x,
            Some(scale) => x * scale.gamma.val().unsqueeze::<3>(),
        }
    }
}

/// Multi-head attention with one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// width → 3·width: queries, keys, values.
    pub qkv: Linear,
    /// width → width.
    pub proj: Linear,
    heads: usize,
}

impl Attention {
    /// x: [batch, tokens, width], the same out.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let dim = width / self.heads;
        let qkv = project(x, &self.qkv)
            .reshape([batch, tokens, 3, self.heads, dim])
            .permute([2, 0, 3, 1, 4]);
        let qkv = [0, 1, 2].map(|index| qkv.clone().narrow(0, index, 1).squeeze_dim::<4>(0));
        let output = layers::attend(qkv, None);
        let output = output.swap_dims(1, 2).reshape([batch, tokens, width]);
        project(output, &self.proj)
    }
}
