//! Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030) for images of any size, with
//! adapters.
//!
//! Field names are timm's (`swin_*_patch4_window7_224`), so published weights map one to one; patch
//! merging takes the 2×2 neighbors in the order of Microsoft's code. Maps that windows do not
//! divide are padded with zeros at the bottom and the right, and windows larger than a map may
//! shrink to it, by the rule of one of the published implementations ([`WindowPadding`]).
//!
//! Departure in form only: query, key and value of a padding position are the projection's bias, so
//! the projections run on the real positions and padding is added after them. On the CPU a block is
//! two fused operations (`kernels`).

mod axis;
mod block;
mod config;
mod layout;
#[cfg(test)]
mod tests;
mod windows;

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor, activation::softplus},
};

use windows::windows;

use crate::{
    adapter::Adapter,
    features::{Features, SharedFeatures},
    layers::{self, DropPath, PatchProjection, Rng, normalize},
    parameters::ParameterGroups,
    prompt::{self, IDENTITY, PromptWeights},
};

pub use block::{PatchMerging, SwinBlock, SwinPatchEmbed, SwinStage, WindowAttention};
pub use config::{SwinConfig, SwinSizes, WindowPadding};
pub use layout::{TimmWindows, TransformersWindows};

impl SwinConfig {
    /// Layer and kind of every parameter: patches, then a layer a block, then the last norm. What a
    /// stage begins with, the merging of patches and SOLIDER's controller, belongs to its first
    /// block.
    pub fn parameter_groups(&self) -> ParameterGroups {
        let depths = &self.sizes.depths;
        let blocks: usize = depths.iter().sum();
        ParameterGroups::collect(blocks + 2, |claims| {
            SwinPatchEmbed::claim(claims.field("patch_embed"));
            let mut before = 0;
            for (stage, depth) in depths.iter().enumerate() {
                let first = before + 1;
                if self.modulated_stages().contains(&stage) {
                    for list in ["semantic_embed_w", "semantic_embed_b"] {
                        let mut list = claims.field(list).at(first).of_adapter();
                        list.linear(&(stage - 1).to_string(), true);
                    }
                }
                let mut layers = claims.field("layers");
                let mut layer = layers.field(stage);
                if stage > 0 {
                    PatchMerging::claim(layer.field("downsample").at(first));
                }
                let mut list = layer.field("blocks");
                for block in 0..*depth {
                    let claims = list.field(block).at(first + block);
                    SwinBlock::claim(self.experts(stage, block), claims);
                }
                before += depth;
            }
            claims.in_layer(blocks + 1).norm("norm");
        })
    }

    /// A network with fresh weights: truncated normal of standard deviation 0.02, biases zero.
    ///
    /// # Panics
    /// On settings that [`SwinConfig::check`] refuses.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Swin {
        assert!(self.check().is_ok(), "{:?}", self.check());
        let stages = self.sizes.depths.len();
        let blocks: usize = self.sizes.depths.iter().sum();
        let rate = |block: usize| self.drop_path * block as f64 / (blocks.max(2) - 1) as f64;

        let patch_embed = SwinPatchEmbed {
            proj: PatchProjection::init(self.sizes.embed_dim, self.sizes.patch_size, rng, device),
            norm: layers::layer_norm(self.sizes.embed_dim, device),
        };
        let mut before = 0;
        let stage_list = (0..stages)
            .map(|stage| {
                let channels = self.sizes.stage_channels(stage);
                let downsample = (stage > 0).then(|| {
                    let sizes = [
                        self.sizes.stage_channels(stage - 1),
                        self.sizes.merging(stage),
                    ];
                    PatchMerging::init(sizes, rng, device)
                });
                let blocks = (0..self.sizes.depths[stage])
                    .map(|index| {
                        let place = [stage, index];
                        SwinBlock::init(self, place, rate(before + index), channels, rng, device)
                    })
                    .collect();
                before += self.sizes.depths[stage];
                SwinStage { downsample, blocks }
            })
            .collect();
        let mut modulations = || -> Vec<Linear> {
            let layer =
                |stage| layers::linear(2, self.sizes.stage_channels(stage), true, rng, device);
            self.modulated_stages().map(layer).collect()
        };
        let (semantic_embed_w, semantic_embed_b) = (modulations(), modulations());
        Swin {
            patch_embed,
            mask_token: None,
            layers: stage_list,
            norm: layers::layer_norm(self.sizes.stage_channels(stages - 1), device),
            semantic_embed_w,
            semantic_embed_b,
            config: self.clone(),
        }
    }
}

/// The Swin Transformer.
#[derive(Module, Debug)]
pub struct Swin {
    /// Patches to tokens.
    pub patch_embed: SwinPatchEmbed,
    /// In place of masked patches, while it learns from them: `[channels]`.
    pub mask_token: Option<Param<Tensor<1>>>,
    /// The stages.
    pub layers: Vec<SwinStage>,
    /// The norm after the last stage.
    pub norm: LayerNorm,
    /// SOLIDER's W, b: one layer after each stage but the last; empty without that adapter.
    pub semantic_embed_w: Vec<Linear>,
    /// SOLIDER's W', b'.
    pub semantic_embed_b: Vec<Linear>,
    #[module(skip)]
    config: SwinConfig,
}

impl Swin {
    /// The shared blocks; see [`crate::backbone::Backbone::shared_masked`].
    pub(crate) fn shared(
        &self,
        images: Tensor<4>,
        mask: Option<&Tensor<3>>,
        prompt_weights: &Tensor<2>,
        rng: Option<&mut Rng>,
    ) -> SharedFeatures {
        let batch = images.dims()[0];
        prompt::assert_rows(prompt_weights, batch);
        let semantic = self.config.semantic_weight(prompt_weights);
        let rates = self.layers.iter().flat_map(|stage| &stage.blocks);
        let count = rates.clone().count() - self.conditional_blocks();
        let rates = rates.map(|block| block.drop_path).take(count);
        let mut drops = DropPath::draw(rates, batch, rng, &images.device());

        let mut x = self.patch_embed.forward(images);
        if let Some(mask) = mask {
            x = layers::mask_patches(x, mask, self.mask_token.as_ref());
        }
        let mut pyramid = Vec::with_capacity(self.layers.len());
        for (index, stage) in self.layers.iter().enumerate() {
            if let Some(downsample) = &stage.downsample {
                x = downsample.forward(x);
                if let Some(semantic) = &semantic {
                    let layers = [&self.semantic_embed_w, &self.semantic_embed_b];
                    x = modulate(layers.map(|list| &list[index - 1]), x, semantic.clone());
                }
            }
            let [_, height, width, _] = x.dims();
            let windows = windows(&self.config, index, height, width, &x);
            let last = index + 1 == self.layers.len();
            let blocks = match last {
                true => &stage.blocks[..self.first_conditional()],
                false => &stage.blocks[..],
            };
            for (position, block) in blocks.iter().enumerate() {
                x = block.forward(x, &windows[position % 2], prompt_weights, drops.next());
            }
            if !last {
                pyramid.push(x.clone().permute([0, 3, 1, 2]));
            }
        }
        let [_, height, width, _] = x.dims();
        SharedFeatures {
            x,
            pyramid,
            grid: [height, width],
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
            mut x, mut pyramid, ..
        } = shared;
        let [batch, height, width, _] = x.dims();
        prompt::assert_rows(prompt_weights, batch);
        if let Some(stage) = self.layers.last() {
            let first = self.first_conditional();
            let blocks = &stage.blocks[first..];
            let rates = blocks.iter().map(|block| block.drop_path);
            let mut drops = DropPath::draw(rates, batch, rng, &x.device());
            let windows = windows(&self.config, self.layers.len() - 1, height, width, &x);
            for (position, block) in blocks.iter().enumerate() {
                let windows = &windows[(first + position) % 2];
                x = block.forward(x, windows, prompt_weights, drops.next());
            }
        }
        let x = normalize(x, &self.norm);
        let [_, height, width, channels] = x.dims();
        let pooled = x
            .clone()
            .reshape([batch, height * width, channels])
            .mean_dim(1)
            .squeeze_dim::<2>(1);
        let map = x.permute([0, 3, 1, 2]);
        pyramid.push(map.clone());
        Features {
            map,
            pooled,
            pyramid,
        }
    }

    /// The layers of the shared blocks and of the halvings between stages, whose weights are factors of
    /// products alone. Those of conditional blocks may be merged, and their gradients are sums over prompts.
    pub(crate) fn shared_layers_mut(&mut self) -> Vec<&mut Linear> {
        { self.layers.iter_mut() }
            .flat_map(|stage| {
                let halving = { stage.downsample.iter_mut() }.map(|halving| &mut halving.reduction);
                let shared = stage.blocks.iter_mut().filter(|block| block.moe.is_none());
                halving.chain(shared.flat_map(SwinBlock::layers_mut))
            })
            .collect()
    }

    /// The first conditional block of the last stage; as many as there are without conditional
    /// ones.
    fn first_conditional(&self) -> usize {
        let depth = self.layers.last().map_or(0, |stage| stage.blocks.len());
        depth - self.conditional_blocks()
    }

    fn conditional_blocks(&self) -> usize {
        match &self.config.adapter {
            Adapter::Moe(moe) => moe.blocks,
            _ => 0,
        }
    }

    /// The configuration that made this network.
    pub fn config(&self) -> &SwinConfig {
        &self.config
    }

    /// Channels of the last stage.
    pub fn channels(&self) -> usize {
        self.config
            .sizes
            .stage_channels(self.config.sizes.depths.len() - 1)
    }

    /// Pixels per position of each stage's map.
    pub fn strides(&self) -> Vec<usize> {
        { 0..self.config.sizes.depths.len() }
            .map(|stage| self.config.sizes.stage_stride(stage))
            .collect()
    }

    /// The same network with prompt weights folded in. A mixture of experts becomes part of the
    /// plain weights; SOLIDER's controller keeps the λ of these prompt weights.
    pub fn fold(mut self, prompt_weights: PromptWeights) -> Self {
        if let Adapter::Lambda(config) = &mut self.config.adapter {
            config
                .lambda
                .get_or_insert(1.0 - prompt_weights.weights()[IDENTITY]);
        }
        let device = self.norm.gamma.val().device();
        for block in self.layers.iter_mut().flat_map(|stage| &mut stage.blocks) {
            *block = block.clone().fold(&prompt_weights.tensor(&device));
        }
        self.config.adapter = self.config.adapter.folded();
        self
    }

    /// A copy of the last stage with prompt weights folded in, which shares no tensors; none of a
    /// network of one stage.
    pub fn last_stage(&self, prompt_weights: PromptWeights) -> Option<LastStage> {
        let tracked = self.norm.gamma.val().device().is_autodiff();
        let mut swin = self.valid().fold(prompt_weights);
        let stage = swin
            .layers
            .pop()
            .filter(|stage| stage.downsample.is_some())?;
        let lists = [&mut swin.semantic_embed_w, &mut swin.semantic_embed_b];
        let last = LastStage {
            stage,
            norm: swin.norm,
            semantic_embed: lists.into_iter().filter_map(Vec::pop).collect(),
            config: swin.config,
        };
        Some(if tracked { last.train() } else { last })
    }
}

/// The last stage and the norm after it as a network of its own: two-stage detectors apply it to
/// regions.
#[derive(Module, Debug)]
pub struct LastStage {
    /// The stage.
    pub stage: SwinStage,
    /// The norm after it.
    pub norm: LayerNorm,
    /// SOLIDER's W and W' before the blocks; empty without that adapter.
    pub semantic_embed: Vec<Linear>,
    #[module(skip)]
    config: SwinConfig,
}

impl LastStage {
    /// Rows and columns of a region whose map fills one window after the stage's merging: 14 with
    /// published windows of 7.
    pub fn region_size(&self) -> usize {
        let index = self.config.sizes.depths.len() - 1;
        2 * self
            .config
            .sizes
            .stage_window(index)
            .into_iter()
            .fold(0, usize::max)
    }

    /// The stage's output for maps of the size and channels that the stage before it gives.
    ///
    /// # Shapes
    /// - maps: [batch, channels, height, width] → [batch, 2·channels, height/2, width/2], or as
    ///   high and wide where the merging has a stride of 1
    pub fn forward(&self, maps: Tensor<4>, rng: Option<&mut Rng>) -> Tensor<4> {
        let (batch, index) = (maps.dims()[0], self.config.sizes.depths.len() - 1);
        // Prompt weights are folded in, so that no block depends on these.
        let prompt_weights = PromptWeights::mean().tensor(&maps.device());
        let rates = self.stage.blocks.iter().map(|block| block.drop_path);
        let mut drops = DropPath::draw(rates, batch, rng, &maps.device());
        let mut x = maps.permute([0, 2, 3, 1]);
        if let Some(downsample) = &self.stage.downsample {
            x = downsample.forward(x);
        }
        if let ([scale, offset], Some(semantic)) = (
            self.semantic_embed.as_slice(),
            self.config.semantic_weight(&prompt_weights),
        ) {
            x = modulate([scale, offset], x, semantic);
        }
        let [_, height, width, _] = x.dims();
        let windows = windows(&self.config, index, height, width, &x);
        for (position, block) in self.stage.blocks.iter().enumerate() {
            let windows = &windows[position % 2];
            x = block.forward(x, windows, &prompt_weights, drops.next());
        }
        normalize(x, &self.norm).permute([0, 3, 1, 2])
    }
}

/// x·softplus(W s + b) + (W' s + b'); x: [batch, height, width, channels], s: [1 or batch, 2].
fn modulate([scale, offset]: [&Linear; 2], x: Tensor<4>, semantic: Tensor<2>) -> Tensor<4> {
    let shape = [semantic.dims()[0], 1, 1, x.dims()[3]];
    let scale = softplus(scale.forward(semantic.clone()), 1.0);
    let offset = offset.forward(semantic);
    x * scale.reshape(shape) + offset.reshape(shape)
}
