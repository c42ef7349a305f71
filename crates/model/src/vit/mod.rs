//! Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) for images of any size,
//! with the mixture of experts.
//!
//! The computation and the names are timm's (`vit_*_patch16_224`), which DINO, MAE, DeiT and
//! TransReID-SSL share; registers (arXiv 2309.16588) and LayerScale are those of DINOv2 (arXiv
//! 2304.07193), the norm before the blocks is CLIP's, and rotary positions, gated MLPs and keys
//! without bias are DINOv3's (arXiv 2508.10104; timm's `vit_*_patch16_dinov3`). Departures, none of
//! which changes a number on sizes that the patch divides:
//!
//! * images are padded with zeros at the bottom and the right to whole patches (timm's
//!   `dynamic_img_pad`), or cropped to them (transformers; [`VitSizes::crop`]);
//! * position embeddings are resampled to the image's grid while running, as timm does with
//!   `dynamic_img_size`, or as transformers does ([`VitSizes::resampling`]);
//! * the class token has a position embedding and registers have none, as in DINOv2.
//!
//! Masked patches (iBOT) have the mask token in place of their projection, before the position
//! embeddings.
//!
//! For what works with stages, the blocks count as four stages of equal depth: the pyramid holds
//! the map after each, and conditional blocks lie in the last.

mod block;
mod config;
mod rotary;

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor},
};

use block::norm;
use config::STAGES;
use rotary::Rotation;

use crate::{
    adapter::Adapter,
    features::{Features, SharedFeatures},
    kernels,
    layers::{self, DropPath, PatchProjection, Rng, resample_grid},
    parameters::{ParameterGroups, ParameterKind},
    prompt::{self, PromptWeights},
};

pub use block::{LayerScale, VitAttention, VitBlock, VitPatchEmbed};
pub use config::{Pool, Positions, VitConfig, VitSizes};

impl VitConfig {
    /// Layer and kind of every parameter: tokens of an image, then a layer a block, then the last
    /// norm.
    pub fn parameter_groups(&self) -> ParameterGroups {
        let sizes = &self.sizes;
        ParameterGroups::collect(sizes.depth + 2, |claims| {
            for (name, present) in [
                ("cls_token", sizes.class_token),
                ("reg_token", sizes.registers > 0),
                ("pos_embed", sizes.positions == Positions::Learned),
            ] {
                if present {
                    claims.parameter(name, ParameterKind::Embedding);
                }
            }
            PatchProjection::claim(claims.field("patch_embed").field("proj"));
            if sizes.pre_norm {
                claims.norm("norm_pre");
            }
            let mut blocks = claims.field("blocks");
            for block in 0..sizes.depth {
                VitBlock::claim(self, block, blocks.field(block).at(block + 1));
            }
            claims.in_layer(sizes.depth + 1).norm("norm");
        })
    }

    /// A network with fresh weights, as DINO has them: truncated normal of standard deviation 0.02,
    /// biases zero.
    ///
    /// # Panics
    /// On settings that [`VitConfig::check`] refuses.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Vit {
        assert!(self.check().is_ok(), "{:?}", self.check());
        let sizes = &self.sizes;
        let [rows, columns] = sizes.grid();
        let width = sizes.embed_dim;
        let epsilon = sizes.positions.epsilon();
        let mut tokens = |count| layers::trunc_normal([1, count, width], 0.02, rng, device);
        let class = usize::from(sizes.class_token);
        let cls_token = sizes.class_token.then(|| tokens(1));
        let reg_token = (sizes.registers > 0).then(|| tokens(sizes.registers));
        let pos_embed = match sizes.positions {
            Positions::Learned => Some(tokens(class + rows * columns)),
            Positions::Rotary => None,
        };
        let rate = |block: usize| self.drop_path * block as f64 / (sizes.depth.max(2) - 1) as f64;
        Vit {
            cls_token,
            reg_token,
            mask_token: None,
            pos_embed,
            patch_embed: VitPatchEmbed {
                proj: PatchProjection::init(width, sizes.patch_size, rng, device),
            },
            norm_pre: sizes.pre_norm.then(|| norm(width, epsilon, device)),
            blocks: (0..sizes.depth)
                .map(|block| VitBlock::init(self, block, rate(block), rng, device))
                .collect(),
            norm: norm(width, epsilon, device),
            config: self.clone(),
        }
    }
}

/// The Vision Transformer.
#[derive(Module, Debug)]
pub struct Vit {
    /// [1, 1, width].
    pub cls_token: Option<Param<Tensor<3>>>,
    /// Registers: [1, registers, width].
    pub reg_token: Option<Param<Tensor<3>>>,
    /// In place of masked patches, while it learns from them: `[width]`.
    pub mask_token: Option<Param<Tensor<1>>>,
    /// [1, class + rows·columns, width], of the class token and of the patches row by row; none with
    /// rotary positions.
    pub pos_embed: Option<Param<Tensor<3>>>,
    /// Patches to tokens.
    pub patch_embed: VitPatchEmbed,
    /// CLIP's norm before the blocks.
    pub norm_pre: Option<LayerNorm>,
    /// The blocks.
    pub blocks: Vec<VitBlock>,
    /// The norm after them.
    pub norm: LayerNorm,
    #[module(skip)]
    config: VitConfig,
}

impl Vit {
    /// The layers of the shared blocks, as [`Swin::shared_layers_mut`](crate::swin::Swin::shared_layers_mut).
    pub(crate) fn shared_layers_mut(&mut self) -> Vec<&mut Linear> {
        { self.blocks.iter_mut() }
            .filter(|block| block.moe.is_none())
            .flat_map(VitBlock::layers_mut)
            .collect()
    }

    /// The shared blocks; see [`crate::backbone::Backbone::shared_masked`].
    pub(crate) fn shared(
        &self,
        images: Tensor<4>,
        mask: Option<&Tensor<3>>,
        rng: Option<&mut Rng>,
    ) -> SharedFeatures {
        let batch = images.dims()[0];
        let blocks = &self.blocks[..self.first_conditional()];
        let rates = blocks.iter().map(|block| block.drop_path);
        let mut drops = DropPath::draw(rates, batch, rng, &images.device());
        let (mut x, grid) = self.embed(images, mask);
        let rotation = self.rotation(grid, &x.device());
        let mut pyramid = Vec::with_capacity(STAGES);
        // Blocks without experts ignore prompt weights.
        let prompt_weights = PromptWeights::mean().tensor(&x.device());
        for (index, block) in blocks.iter().enumerate() {
            x = block.forward(x, rotation.as_ref(), &prompt_weights, drops.next());
            self.collect(&mut pyramid, index, &x, grid);
        }
        let [_, tokens, width] = x.dims();
        // As a map with the tokens in front as further rows: [batch, 1, tokens, width] and the grid
        // beside.
        SharedFeatures {
            x: x.reshape([batch, 1, tokens, width]),
            pyramid,
            grid,
        }
    }

    /// The conditional blocks; see [`crate::backbone::Backbone::conditional`].
    pub(crate) fn conditional(
        &self,
        shared: SharedFeatures,
        prompt_weights: &Tensor<2>,
        rng: Option<&mut Rng>,
    ) -> Features {
        let SharedFeatures {
            x,
            mut pyramid,
            grid,
        } = shared;
        let [batch, _, tokens, width] = x.dims();
        let mut x = x.reshape([batch, tokens, width]);
        prompt::assert_rows(prompt_weights, batch);
        let first = self.first_conditional();
        let blocks = &self.blocks[first..];
        let rates = blocks.iter().map(|block| block.drop_path);
        let mut drops = DropPath::draw(rates, batch, rng, &x.device());
        let rotation = self.rotation(grid, &x.device());
        for (index, block) in blocks.iter().enumerate() {
            x = block.forward(x, rotation.as_ref(), prompt_weights, drops.next());
            self.collect(&mut pyramid, first + index, &x, grid);
        }
        let sizes = &self.config.sizes;
        let x = match sizes.fc_norm {
            true => x,
            false => self.normalize(x, &self.norm),
        };
        let map = self.map(x.clone(), grid);
        let pooled = match sizes.pool {
            Pool::Class => x.narrow(1, 0, 1),
            Pool::Mean => x.narrow(1, sizes.prefix(), grid[0] * grid[1]).mean_dim(1),
            // The first register follows the class token.
            Pool::Distilled => x.narrow(1, 0, 2).mean_dim(1),
        };
        let pooled = match sizes.fc_norm {
            true => self.normalize(pooled, &self.norm),
            false => pooled,
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

    /// How the tokens of an image turn; none without rotary positions.
    fn rotation(&self, grid: [usize; 2], device: &Device) -> Option<Rotation> {
        let sizes = &self.config.sizes;
        (sizes.positions == Positions::Rotary).then(|| {
            let dim = sizes.embed_dim / sizes.num_heads;
            Rotation::new(sizes.prefix(), grid, dim, device)
        })
    }

    /// The norm of each token.
    fn normalize(&self, x: Tensor<3>, norm: &LayerNorm) -> Tensor<3> {
        kernels::norm::layer_norm(x, norm, self.config.sizes.positions.epsilon())
    }

    /// Adds the map after block `index` to the pyramid where a stage ends there. A network of fewer
    /// blocks than stages gives some maps twice, so that there are always four.
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
    fn embed(&self, images: Tensor<4>, mask: Option<&Tensor<3>>) -> (Tensor<3>, [usize; 2]) {
        let mut patches = self.patch_embed.proj.forward(self.cropped(images));
        if let Some(mask) = mask {
            patches = layers::mask_patches(patches, mask, self.mask_token.as_ref());
        }
        let [batch, rows, columns, width] = patches.dims();
        let grid = [rows, columns];
        let class = usize::from(self.cls_token.is_some());

        let mut patches = patches.reshape([batch, rows * columns, width]);
        let mut class_token = self.cls_token.as_ref().map(|token| token.val());
        if let Some(positions) = &self.pos_embed {
            let positions = positions.val();
            let stored = self.config.sizes.grid();
            let of_patches = positions.clone().narrow(1, class, stored[0] * stored[1]);
            let of_patches = if stored == grid {
                of_patches
            } else {
                let resampling = self.config.sizes.resampling;
                resample_grid(of_patches.squeeze_dim::<2>(0), stored, grid, resampling)
                    .unsqueeze::<3>()
            };
            patches = patches + of_patches;
            class_token = class_token.map(|token| token + positions.narrow(1, 0, 1));
        }

        let mut tokens = Vec::with_capacity(3);
        if let Some(token) = class_token {
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
            Some(norm) => self.normalize(tokens, norm),
        };
        (tokens, grid)
    }

    /// Images without what is cropped: [batch, 3, height, width].
    fn cropped(&self, images: Tensor<4>) -> Tensor<4> {
        let sizes = &self.config.sizes;
        if !sizes.crop {
            return images;
        }
        let [_, _, height, width] = images.dims();
        let [rows, columns] = sizes.image_grid([height, width]);
        let side = sizes.patch_size;
        let kept = [(rows * side).min(height), (columns * side).min(width)];
        images.narrow(2, 0, kept[0]).narrow(3, 0, kept[1])
    }

    /// The patches of [batch, prefix + rows·columns, width] as a map: [batch, width, rows,
    /// columns].
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

    /// The same network with prompt weights folded in. A mixture of experts becomes part of the
    /// plain weights.
    pub fn fold(mut self, prompt_weights: PromptWeights) -> Self {
        let device = self.norm.gamma.val().device();
        for block in &mut self.blocks {
            *block = block.clone().fold(&prompt_weights.tensor(&device));
        }
        self.config.adapter = self.config.adapter.folded();
        self
    }
}
