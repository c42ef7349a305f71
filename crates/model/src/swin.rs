//! Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030) for images of any size, with adapters.
//!
//! Field names are timm's (`swin_*_patch4_window7_224`), so published weights map one to one; patch merging
//! takes the 2×2 neighbours in the order of Microsoft's code. Maps that windows do not divide are padded
//! with zeros at the bottom and the right, in one of two ways ([`WindowPadding`]), each equal to a published
//! implementation. timm can also shrink the window to a map that is smaller than it, when a model is built
//! for one size; that resizes the bias table, so it is not done here: the window is the same at every size.
//!
//! Departure in form only: query, key and value of a padding position are the projection's bias, so the
//! projections run on the real positions and padding is added after them. On the CPU a block is two fused
//! operations (`kernels`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    backend::DispatchDevice,
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{
        Device, Int, Tensor, TensorData,
        activation::{gelu, sigmoid, softplus},
        module::linear,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    backbone::{Adapter, Features, Shared},
    error::ModelError,
    kernels::{self, attention::Grid, mlp, scalar::Activation},
    layers::{self, Drops, EPSILON, Factors, Rng, normalise, project},
    mix::{self, IDENTITY, Mix},
    moe::{self, Conditioned, Moe},
};

/// What forbids attention between regions that a cyclic shift made neighbours, added to the scores.
const FORBIDDEN: f32 = -100.0;

/// How maps that the window does not divide are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowPadding {
    /// Pad, then shift, in every stage: Microsoft's and MMDetection's detector, and SOLIDER.
    #[default]
    Detection,
    /// Shift, then pad, and no shift in stages whose map at 224×224 is one window: timm with
    /// `dynamic_img_size`. The same as the classifier wherever the windows divide the map.
    Classification,
}

/// What the shapes of a Swin's weights say; travels with weights that no preset describes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinSizes {
    /// Side of a patch in pixels.
    #[serde(default = "published_patch")]
    pub patch_size: usize,
    /// Channels of the first stage.
    pub embed_dim: usize,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Attention heads per stage.
    pub num_heads: Vec<usize>,
    /// Side of a window in positions.
    pub window_size: usize,
    /// Hidden over outer channels of the MLPs.
    pub mlp_ratio: usize,
    /// Stride of the merging before each later stage, 1 or 2; none for 2 everywhere. Dense tasks of SOLIDER lower the last:
    /// the same weights see overlapping neighbours there, and the map stays finer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merging: Vec<usize>,
}

/// The patch of every published Swin.
fn published_patch() -> usize {
    4
}

impl SwinSizes {
    fn preset(embed_dim: usize, depths: &[usize], first_heads: usize, window_size: usize) -> Self {
        Self {
            patch_size: published_patch(),
            embed_dim,
            depths: depths.to_vec(),
            num_heads: (0..depths.len())
                .map(|stage| first_heads << stage)
                .collect(),
            window_size,
            mlp_ratio: 4,
            merging: Vec::new(),
        }
    }

    /// 0.6 M parameters. Ours, for tests and demonstrations: window 4 divides the maps of 128×64 images.
    pub fn pico() -> Self {
        Self::preset(16, &[2, 2, 2, 2], 1, 4)
    }

    /// 0.9 M parameters. Ours, for demonstrations: patches of 8 and two stages, so that a 128×64 image ends in the
    /// 8×4 map that a 256×128 image has in the published sizes. A person of 128×64 pixels does not fit a 4×2 map.
    pub fn nano() -> Self {
        Self {
            patch_size: 8,
            ..Self::preset(64, &[2, 4], 2, 4)
        }
    }

    /// Swin-T.
    pub fn tiny() -> Self {
        Self::preset(96, &[2, 2, 6, 2], 3, 7)
    }

    /// Swin-S.
    pub fn small() -> Self {
        Self::preset(96, &[2, 2, 18, 2], 3, 7)
    }

    /// Swin-B.
    pub fn base() -> Self {
        Self::preset(128, &[2, 2, 18, 2], 4, 7)
    }

    /// The same with published strides, such as 4, 2, 2, 1: that of the patches, then of the merging before each later stage.
    ///
    /// # Errors
    /// They are not the patch and as many ones and twos as there are later stages.
    pub fn with_strides(self, strides: &[usize]) -> Result<Self, ModelError> {
        let found = Self {
            merging: strides.get(1..).unwrap_or_default().to_vec(),
            ..self
        };
        if strides.first() != Some(&found.patch_size) || !found.merging_fits() {
            let later = found.depths.len() - 1;
            return Err(ModelError::Setting {
                field: "strides",
                expected: format!("{}, then {later} times 1 or 2", found.patch_size),
                found: format!("{strides:?}"),
            });
        }
        if found.merging.contains(&1) {
            return Ok(found);
        }
        Ok(Self {
            merging: Vec::new(),
            ..found
        })
    }

    fn merging_fits(&self) -> bool {
        self.merging.len() + 1 == self.depths.len()
            && self.merging.iter().all(|stride| matches!(stride, 1 | 2))
    }

    /// Channels of a stage, counted from 0; each has twice as many as the one before.
    pub fn stage_channels(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// Pixels of the image per position of a stage's map.
    pub fn stage_stride(&self, stage: usize) -> usize {
        let merged: usize = (1..=stage).map(|stage| self.merging(stage)).product();
        self.patch_size * merged
    }

    /// The stride of the merging before a stage.
    fn merging(&self, stage: usize) -> usize {
        self.merging.get(stage - 1).copied().unwrap_or(2)
    }
}

/// A Swin Transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct SwinConfig {
    /// Its sizes.
    pub sizes: SwinSizes,
    /// Drop path of the last block; earlier blocks have less, linearly from 0.
    pub drop_path: f64,
    /// How maps that the window does not divide are padded.
    pub padding: WindowPadding,
    /// How the network is adapted to a mix of tasks.
    pub adapter: Adapter,
}

impl SwinConfig {
    /// The plain network, drop path 0.1.
    pub fn new(sizes: SwinSizes) -> Self {
        Self {
            sizes,
            drop_path: 0.1,
            padding: WindowPadding::default(),
            adapter: Adapter::None,
        }
    }

    /// Number of parameters, without building anything.
    pub fn parameters(&self) -> usize {
        let mut count =
            self.sizes.embed_dim * (3 * self.sizes.patch_size * self.sizes.patch_size + 3);
        for (stage, (depth, heads)) in self
            .sizes
            .depths
            .iter()
            .zip(&self.sizes.num_heads)
            .enumerate()
        {
            let channels = self.sizes.stage_channels(stage);
            if stage > 0 {
                let before = self.sizes.stage_channels(stage - 1);
                count += 8 * before + 8 * before * before;
                if let Adapter::Lambda(_) = self.adapter {
                    count += 6 * channels;
                }
            }
            let (hidden, relative) = (
                self.sizes.mlp_ratio * channels,
                2 * self.sizes.window_size - 1,
            );
            let block = 4 * channels
                + relative * relative * heads
                + 4 * channels * (channels + 1)
                + 2 * channels * hidden
                + hidden
                + channels;
            count += depth * block;
            if let Adapter::Moe(moe) = &self.adapter
                && stage + 1 == self.sizes.depths.len()
            {
                count += moe.blocks * moe.parameters(channels, hidden);
            }
        }
        count + 2 * self.sizes.stage_channels(self.sizes.depths.len() - 1)
    }

    /// Floating-point operations of the products of a pass over an image, two a multiplication.
    pub fn operations(&self, [height, width]: [usize; 2]) -> usize {
        let sizes = &self.sizes;
        let mut map = [height, width].map(|size| size.div_ceil(sizes.patch_size));
        let mut count = 2 * map[0] * map[1] * 3 * sizes.patch_size.pow(2) * sizes.embed_dim;
        for (stage, depth) in sizes.depths.iter().enumerate() {
            let channels = sizes.stage_channels(stage);
            if stage > 0 {
                map = map.map(|size| size.div_ceil(sizes.merging(stage)));
                // Four neighbours of half as many channels.
                count += 2 * map[0] * map[1] * 2 * channels * channels;
            }
            let tokens = map[0] * map[1];
            let window = sizes.window_size.pow(2);
            count += depth
                * layers::block_operations(tokens, window, channels, sizes.mlp_ratio * channels);
        }
        count
    }

    /// Checks that the sizes can work.
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
        // Sizes may come from a file: generous bounds, so that no product below overflows.
        let within = |field, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(setting(field, format!("1 to {most}"), value.to_string()))
        };
        within("patch_size", self.sizes.patch_size, 64)?;
        within("embed_dim", self.sizes.embed_dim, 4096)?;
        within("window_size", self.sizes.window_size, 64)?;
        within("mlp_ratio", self.sizes.mlp_ratio, 16)?;
        within("depths", self.sizes.depths.len(), 6)?;
        if self.sizes.num_heads.len() != self.sizes.depths.len() {
            let expected = format!("one entry for each of {} stages", self.sizes.depths.len());
            let found = format!("{:?}", self.sizes.num_heads);
            return Err(setting("num_heads", expected, found));
        }
        if !self.sizes.merging.is_empty() && !self.sizes.merging_fits() {
            let later = self.sizes.depths.len() - 1;
            let found = format!("{:?}", self.sizes.merging);
            return Err(setting(
                "merging",
                format!("{later} times 1 or 2, or none"),
                found,
            ));
        }
        for (stage, (depth, heads)) in self
            .sizes
            .depths
            .iter()
            .zip(&self.sizes.num_heads)
            .enumerate()
        {
            within("depths", *depth, 128)?;
            let channels = self.sizes.stage_channels(stage);
            if *heads == 0 || !channels.is_multiple_of(*heads) {
                let expected = format!("a divisor of the {channels} channels of stage {stage}");
                return Err(setting("num_heads", expected, heads.to_string()));
            }
        }
        match &self.adapter {
            Adapter::None => {}
            Adapter::Lambda(config) => {
                if let Some(lambda) = config.lambda.filter(|l| !(0.0..=1.0).contains(l)) {
                    return Err(setting("lambda", "0 to 1".into(), lambda.to_string()));
                }
            }
            Adapter::Moe(config) => {
                config.check(self.sizes.depths.last().copied().unwrap_or(0))?;
            }
        }
        Ok(())
    }

    /// s = (λ, 1−λ): [1 or batch, 2], when the adapter is SOLIDER's.
    fn semantic_weight(&self, mix: &Tensor<2>) -> Option<Tensor<2>> {
        let Adapter::Lambda(config) = &self.adapter else {
            return None;
        };
        let identity = mix.clone().narrow(1, IDENTITY, 1);
        let one_minus_lambda = match config.lambda {
            Some(lambda) => identity.full_like(1.0 - lambda),
            None => identity,
        };
        let lambda = one_minus_lambda.clone().neg() + 1.0;
        Some(Tensor::cat(vec![lambda, one_minus_lambda], 1))
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

        let patch_embed = PatchEmbed {
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
                        Block::init(self, place, rate(before + index), channels, rng, device)
                    })
                    .collect();
                before += self.sizes.depths[stage];
                Stage { downsample, blocks }
            })
            .collect();
        // SOLIDER modulates what a stage hands to the next; its layer after the last stage touches
        // nothing that is returned, so it is not built.
        let modulated = match self.adapter {
            Adapter::Lambda(_) => 1..stages,
            _ => 0..0,
        };
        let mut modulations = || -> Vec<Linear> {
            let layer =
                |stage| layers::linear(2, self.sizes.stage_channels(stage), true, rng, device);
            modulated.clone().map(layer).collect()
        };
        let (semantic_embed_w, semantic_embed_b) = (modulations(), modulations());
        Swin {
            patch_embed,
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
    pub patch_embed: PatchEmbed,
    /// The stages.
    pub layers: Vec<Stage>,
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
    /// What the blocks before the conditional ones make of a batch; see [`crate::backbone::Backbone::shared`].
    pub(crate) fn shared(
        &self,
        images: Tensor<4>,
        mix: &Tensor<2>,
        rng: Option<&mut Rng>,
    ) -> Shared {
        let batch = images.dims()[0];
        mix::assert_rows(mix, batch);
        let semantic = self.config.semantic_weight(mix);
        let rates = self.layers.iter().flat_map(|stage| &stage.blocks);
        let count = rates.clone().count() - self.conditional_blocks();
        let rates = rates.map(|block| block.drop_path).take(count);
        let mut drops = Drops::draw(rates, batch, rng, &images.device());

        let mut x = self.patch_embed.forward(images);
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
                x = block.forward(x, &windows[position % 2], mix, drops.next());
            }
            if !last {
                pyramid.push(x.clone().permute([0, 3, 1, 2]));
            }
        }
        let [_, height, width, _] = x.dims();
        Shared {
            x,
            pyramid,
            grid: [height, width],
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
            mut x, mut pyramid, ..
        } = shared;
        let [batch, height, width, _] = x.dims();
        mix::assert_rows(mix, batch);
        if let Some(stage) = self.layers.last() {
            let first = self.first_conditional();
            let blocks = &stage.blocks[first..];
            let rates = blocks.iter().map(|block| block.drop_path);
            let mut drops = Drops::draw(rates, batch, rng, &x.device());
            let windows = windows(&self.config, self.layers.len() - 1, height, width, &x);
            for (position, block) in blocks.iter().enumerate() {
                let windows = &windows[(first + position) % 2];
                x = block.forward(x, windows, mix, drops.next());
            }
        }
        let x = normalise(x, &self.norm);
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

    /// The first conditional block of the last stage; as many as there are without conditional ones.
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

    /// Pixels per position of the last map: 32 with four stages and published strides.
    pub fn stride(&self) -> usize {
        self.config
            .sizes
            .stage_stride(self.config.sizes.depths.len() - 1)
    }

    /// The same network for one mix, without prompts. Experts leave the plain network; SOLIDER's controller gets the mix's λ.
    pub fn fold(mut self, mix: Mix) -> Self {
        if let Adapter::Lambda(config) = &mut self.config.adapter {
            config.lambda.get_or_insert(1.0 - mix.weights()[IDENTITY]);
        }
        let device = self.norm.gamma.val().device();
        for block in self.layers.iter_mut().flat_map(|stage| &mut stage.blocks) {
            *block = block.clone().fold(&mix.tensor(&device));
        }
        self.config.adapter = self.config.adapter.folded();
        self
    }

    /// A copy of the last stage for a mix, with tensors of its own; none of a network of one stage.
    pub fn last_stage(&self, mix: Mix) -> Option<LastStage> {
        let tracked = self.norm.gamma.val().device().is_autodiff();
        let mut swin = self.valid().fold(mix);
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

/// The last stage and the norm after it as a network of its own, for one mix: two-stage detectors look at regions with it.
#[derive(Module, Debug)]
pub struct LastStage {
    /// The stage.
    pub stage: Stage,
    /// The norm after it.
    pub norm: LayerNorm,
    /// SOLIDER's W and W' before the blocks; empty without that adapter.
    pub semantic_embed: Vec<Linear>,
    #[module(skip)]
    config: SwinConfig,
}

impl LastStage {
    /// Cells along each axis of a region that fills one window of the stage, which halves them: 14 with published windows of 7.
    pub fn cells(&self) -> usize {
        2 * self.config.sizes.window_size
    }

    /// What the stage makes of maps that the stage before it might have made.
    ///
    /// # Shapes
    /// - maps: [batch, channels, height, width] → [batch, 2·channels, height/2, width/2], or as high and wide where the
    ///   merging has a stride of 1
    pub fn forward(&self, maps: Tensor<4>, rng: Option<&mut Rng>) -> Tensor<4> {
        let (batch, index) = (maps.dims()[0], self.config.sizes.depths.len() - 1);
        // Prompts are folded in, so that no block depends on this.
        let mix = Mix::mean().tensor(&maps.device());
        let rates = self.stage.blocks.iter().map(|block| block.drop_path);
        let mut drops = Drops::draw(rates, batch, rng, &maps.device());
        let mut x = maps.permute([0, 2, 3, 1]);
        if let Some(downsample) = &self.stage.downsample {
            x = downsample.forward(x);
        }
        if let ([scale, offset], Some(semantic)) = (
            self.semantic_embed.as_slice(),
            self.config.semantic_weight(&mix),
        ) {
            x = modulate([scale, offset], x, semantic);
        }
        let [_, height, width, _] = x.dims();
        let windows = windows(&self.config, index, height, width, &x);
        for (position, block) in self.stage.blocks.iter().enumerate() {
            let windows = &windows[position % 2];
            x = block.forward(x, windows, &mix, drops.next());
        }
        normalise(x, &self.norm).permute([0, 3, 1, 2])
    }
}

/// The windows of a stage's even blocks and of its odd blocks, which are shifted.
fn windows(
    config: &SwinConfig,
    stage: usize,
    height: usize,
    width: usize,
    x: &Tensor<4>,
) -> [Windows; 2] {
    let side = config.sizes.window_size;
    let one_window = 224usize.div_ceil(config.sizes.stage_stride(stage)) <= side;
    let shift = match config.padding {
        WindowPadding::Classification if one_window => 0,
        _ => side / 2,
    };
    [0, shift].map(|shift| {
        let key = Key {
            size: [height, width],
            side,
            shift,
            padding: config.padding,
            device: (!kernels::can_fuse(x)).then(|| x.device().inner()),
        };
        cached(key, Key::windows)
    })
}

/// What a block's windows follow from.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    /// Rows and columns of the map.
    size: [usize; 2],
    side: usize,
    shift: usize,
    padding: WindowPadding,
    /// Where Burn's graph computes; none for the fused operation.
    device: Option<Device>,
}

impl Key {
    fn windows(&self) -> Windows {
        let cut = Cut::new(self.size, self.side, self.shift, self.padding);
        match &self.device {
            None => Windows::Fused(Arc::new(cut.grid())),
            Some(device) => Windows::Graph(Arc::new(cut.tensors(device))),
        }
    }
}

/// The windows of `key`, from an earlier pass if they were made not long ago: making them costs more on the host than a small
/// block, and sending them to a device a wait.
fn cached(key: Key, make: impl FnOnce(&Key) -> Windows) -> Windows {
    /// As many as the stages of two backbones need for three sizes of images.
    const KEPT: usize = 48;
    /// Positions of a map whose windows are kept: masks of larger ones take too much of a device's memory.
    const POSITIONS: usize = 1 << 14;
    static RECENT: Mutex<VecDeque<(Key, Windows)>> = Mutex::new(VecDeque::new());
    let records = { key.device.as_ref() }
        .is_some_and(|device| matches!(device.as_dispatch(), DispatchDevice::Capture(_)));
    if records || key.size.iter().product::<usize>() > POSITIONS {
        return make(&key);
    }
    // The list is whole whenever a thread lets go of it.
    let recent = || RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, windows)) = recent().iter().find(|(known, _)| *known == key) {
        return windows.clone();
    }
    let windows = make(&key);
    let mut recent = recent();
    // Another replica may have put it there meanwhile.
    if recent.iter().all(|(known, _)| *known != key) {
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back((key, windows.clone()));
    }
    windows
}

/// x·softplus(W s + b) + (W' s + b'); x: [batch, height, width, channels], s: [1 or batch, 2].
fn modulate([scale, offset]: [&Linear; 2], x: Tensor<4>, semantic: Tensor<2>) -> Tensor<4> {
    let shape = [semantic.dims()[0], 1, 1, x.dims()[3]];
    let scale = softplus(scale.forward(semantic.clone()), 1.0);
    let offset = offset.forward(semantic);
    x * scale.reshape(shape) + offset.reshape(shape)
}

/// Square patches of pixels to tokens.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The projection.
    pub proj: PatchProjection,
    /// The norm after it.
    pub norm: LayerNorm,
}

/// A convolution whose stride is its kernel: a matrix product over patches, stored as a convolution.
#[derive(Module, Debug)]
pub struct PatchProjection {
    /// [channels, 3, patch, patch].
    pub weight: Param<Tensor<4>>,
    /// [channels].
    pub bias: Param<Tensor<1>>,
}

impl PatchProjection {
    pub(crate) fn init(channels: usize, patch: usize, rng: &mut Rng, device: &Device) -> Self {
        // PyTorch's default for a convolution, which the published networks keep: 1 / sqrt(inputs).
        let bound = 1.0 / ((3 * patch * patch) as f64).sqrt();
        Self {
            weight: layers::uniform_symmetric([channels, 3, patch, patch], bound, rng, device),
            bias: layers::uniform_symmetric([channels], bound, rng, device),
        }
    }

    /// images: [batch, 3, height, width] → [batch, ⌈height/patch⌉, ⌈width/patch⌉, channels].
    pub(crate) fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [channels, _, patch, _] = weight.dims();
        let [batch, colours, height, width] = images.dims();
        assert_eq!(colours, 3, "images have {colours} channels, expected 3");
        assert!(height > 0 && width > 0, "images are {height}x{width}");
        let images = pad_end(pad_end(images, 2, patch), 3, patch);
        let [_, _, height, width] = images.dims();
        let (rows, columns) = (height / patch, width / patch);

        let patches = images
            .reshape([batch, 3, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, 3 * patch * patch]);
        let weight = weight.reshape([channels, 3 * patch * patch]).transpose();
        linear(patches, weight, Some(self.bias.val())).reshape([batch, rows, columns, channels])
    }
}

impl PatchEmbed {
    /// images: [batch, 3, height, width] → [batch, ⌈height/4⌉, ⌈width/4⌉, channels].
    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        normalise(self.proj.forward(images), &self.norm)
    }
}

/// Halves the map, unless its stride is 1, and doubles the channels.
#[derive(Module, Debug)]
pub struct PatchMerging {
    /// Norm over the four neighbours' channels.
    pub norm: LayerNorm,
    /// 4·channels → 2·channels, without bias.
    pub reduction: Linear,
    stride: usize,
}

impl PatchMerging {
    fn init([channels, stride]: [usize; 2], rng: &mut Rng, device: &Device) -> Self {
        Self {
            norm: layers::layer_norm(4 * channels, device),
            reduction: layers::linear(4 * channels, 2 * channels, false, rng, device),
            stride,
        }
    }

    /// x: [batch, height, width, channels] → [batch, ⌈height/stride⌉, ⌈width/stride⌉, 2·channels].
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        // The neighbours in the order (0,0), (1,0), (0,1), (1,1): columns outside, rows inside.
        let neighbours = if self.stride == 1 {
            let [_, height, width, _] = x.dims();
            // One row and one column of zeros at the end, as MMDetection's "corner" padding.
            let x = pad_end(pad_end(x, 1, height + 1), 2, width + 1);
            let from = |row, column| x.clone().narrow(1, row, height).narrow(2, column, width);
            Tensor::cat(vec![from(0, 0), from(1, 0), from(0, 1), from(1, 1)], 3)
        } else {
            let x = pad_end(pad_end(x, 1, 2), 2, 2);
            let [batch, height, width, channels] = x.dims();
            x.reshape([batch, height / 2, 2, width / 2, 2, channels])
                .permute([0, 1, 3, 4, 2, 5])
                .reshape([batch, height / 2, width / 2, 4 * channels])
        };
        project(normalise(neighbours, &self.norm), &self.reduction)
    }
}

/// Blocks at one resolution, after a halving in all stages but the first.
#[derive(Module, Debug)]
pub struct Stage {
    /// The halving before the blocks.
    pub downsample: Option<PatchMerging>,
    /// The blocks; the odd ones have shifted windows.
    pub blocks: Vec<Block>,
}

/// Window attention, an MLP and, in conditional blocks, the mixture of experts.
#[derive(Module, Debug)]
pub struct Block {
    /// LN1.
    pub norm1: LayerNorm,
    /// Window attention.
    pub attn: WindowAttention,
    /// LN2.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// The mixture of experts of a conditional block.
    pub moe: Option<Moe>,
    drop_path: f64,
}

impl Block {
    fn init(
        config: &SwinConfig,
        [stage, index]: [usize; 2],
        drop_path: f64,
        channels: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let heads = config.sizes.num_heads[stage];
        let hidden = config.sizes.mlp_ratio * channels;
        let last = stage + 1 == config.sizes.depths.len();
        let plain = Self {
            norm1: layers::layer_norm(channels, device),
            attn: WindowAttention::init(channels, heads, config.sizes.window_size, rng, device),
            norm2: layers::layer_norm(channels, device),
            mlp: Mlp::init(channels, hidden, rng, device),
            moe: None,
            drop_path,
        };
        // Drawn last, so that the plain part of a block is the same with and without experts.
        let moe = match &config.adapter {
            Adapter::Moe(moe) if last && index + moe.blocks >= config.sizes.depths[stage] => {
                Some(moe.init(channels, hidden, rng, device))
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

    /// x: [batch, height, width, channels], mix: [1, tasks].
    fn forward(
        &self,
        x: Tensor<4>,
        windows: &Windows,
        mix: &Tensor<2>,
        [factors, later]: [Option<Factors>; 2],
    ) -> Tensor<4> {
        let norms = [&self.norm1, &self.norm2];
        let conditioned = { self.moe.as_ref() }.map(|moe| moe.condition(norms, &self.mlp, mix));
        let (norm1, norm2, mlp) = match &conditioned {
            Some(Conditioned { norm1, norm2, mlp }) => (norm1, norm2, mlp),
            None => (&self.norm1, &self.norm2, &self.mlp),
        };
        let attn = &self.attn;
        let [batch, height, width, channels] = x.dims();
        let flat = [batch, height * width, channels];
        let x = match windows {
            Windows::Fused(grid) => {
                let x = kernels::attention::attention(
                    x.reshape(flat),
                    attn.parameters(norm1),
                    EPSILON,
                    attn.heads,
                    grid.clone(),
                    factors.map(|factors| factors.values),
                );
                mlp.residual(x, norm2, EPSILON, later)
            }
            Windows::Graph(windows) => {
                let attended = attn.forward(norm1.forward(x.clone()), windows);
                let x = (x + Factors::scale(&factors, attended)).reshape(flat);
                let branch = mlp.forward(norm2.forward(x.clone()));
                x + Factors::scale(&later, branch)
            }
        };
        x.reshape([batch, height, width, channels])
    }
}

/// Two layers with GELU between, or CLIP's approximation of it.
#[derive(Module, Debug)]
pub struct Mlp {
    /// channels → hidden.
    pub fc1: Linear,
    /// hidden → channels.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(crate) fn init(channels: usize, hidden: usize, rng: &mut Rng, device: &Device) -> Self {
        Self {
            fc1: layers::linear(channels, hidden, true, rng, device),
            fc2: layers::linear(hidden, channels, true, rng, device),
            activation: Activation::Gelu,
        }
    }

    /// The same with other layers.
    pub(crate) fn with_layers(&self, fc1: Linear, fc2: Linear) -> Self {
        let activation = self.activation;
        Self {
            fc1,
            fc2,
            activation,
        }
    }

    /// The same with tensors that are no part of a graph.
    pub(crate) fn detached(self) -> Self {
        let detached = |layer: Linear| Linear {
            weight: moe::detached(layer.weight),
            bias: layer.bias.map(moe::detached),
        };
        Self {
            fc1: detached(self.fc1),
            fc2: detached(self.fc2),
            activation: self.activation,
        }
    }

    /// The same with another activation.
    pub(crate) fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = project(x, &self.fc1);
        let active = match self.activation {
            Activation::Gelu => gelu(hidden),
            Activation::QuickGelu => hidden.clone() * sigmoid(hidden * 1.702),
        };
        project(active, &self.fc2)
    }

    /// x + f · MLP(LN x) in one operation, for tensors that [`kernels::can_fuse`].
    pub(crate) fn residual(
        &self,
        x: Tensor<3>,
        norm: &LayerNorm,
        epsilon: f64,
        factors: Option<Factors>,
    ) -> Tensor<3> {
        let parameters = mlp::Parameters::new(norm, &self.fc1, &self.fc2);
        let factors = factors.map(|factors| factors.values);
        mlp::mlp(x, parameters, epsilon, self.activation, factors)
    }
}

/// Self-attention within windows, with a learned bias per relative position and head.
#[derive(Module, Debug)]
pub struct WindowAttention {
    /// [(2·side − 1)², heads].
    pub relative_position_bias_table: Param<Tensor<2>>,
    /// channels → 3·channels.
    pub qkv: Linear,
    /// channels → channels.
    pub proj: Linear,
    heads: usize,
}

impl WindowAttention {
    fn init(channels: usize, heads: usize, side: usize, rng: &mut Rng, device: &Device) -> Self {
        assert_eq!(channels % heads, 0, "{channels} channels for {heads} heads");
        let relative = (2 * side - 1) * (2 * side - 1);
        Self {
            relative_position_bias_table: layers::trunc_normal(
                [relative, heads],
                0.02,
                rng,
                device,
            ),
            qkv: layers::linear(channels, 3 * channels, true, rng, device),
            proj: layers::linear(channels, channels, true, rng, device),
            heads,
        }
    }

    /// What the fused operation takes.
    fn parameters(&self, norm: &LayerNorm) -> kernels::attention::Parameters {
        let table = self.relative_position_bias_table.val();
        kernels::attention::Parameters::new(norm, &self.qkv, &self.proj, Some(table))
    }

    /// x: [batch, height, width, channels], the same out.
    fn forward(&self, x: Tensor<4>, windows: &CutTensors) -> Tensor<4> {
        let [batch, _, _, channels] = x.dims();
        let [rows, columns] = windows.cut.count();
        let (side, area) = (windows.cut.side, windows.cut.area());
        let (heads, width) = (self.heads, channels / self.heads);

        // The bias comes after the padding: a padding position has no input, only the bias.
        let qkv = windows
            .cut
            .arrange(layers::product(x, self.qkv.weight.val(), None));
        let qkv = match &self.qkv.bias {
            Some(bias) => qkv + bias.val().reshape([1, 1, 1, 3 * channels]),
            None => qkv,
        };
        // One permutation: [3, batch, window rows, window columns, heads, side, side, width].
        let qkv = qkv
            .reshape([batch, rows, side, columns, side, 3, heads, width])
            .permute([5, 0, 1, 3, 6, 2, 4, 7]);
        // With one bias for all windows they are part of the batch; a mask sets them apart.
        let bias = self.bias(windows);
        let groups = if windows.mask.is_some() {
            batch
        } else {
            batch * rows * columns
        };
        let merged = batch * rows * columns * heads / groups;
        let qkv = three(qkv.reshape([3, groups, merged, area, width]));
        let output = layers::attend(qkv, Some(bias))
            .reshape([batch, rows, columns, heads, side, side, width])
            .permute([0, 1, 4, 2, 5, 3, 6])
            .reshape([batch, rows * side, columns * side, channels]);
        project(windows.cut.restore(output), &self.proj)
    }

    /// What is added to the scores: [1, heads, area, area], or [1, windows·heads, area, area] with a mask.
    fn bias(&self, windows: &CutTensors) -> Tensor<4> {
        let area = windows.cut.area();
        let bias = self
            .relative_position_bias_table
            .val()
            .select(0, windows.bias_index.clone())
            .reshape([area, area, self.heads])
            .permute([2, 0, 1])
            .unsqueeze::<4>();
        match &windows.mask {
            None => bias,
            Some(mask) => {
                let count = mask.dims()[0];
                (bias + mask.clone()).reshape([1, count * self.heads, area, area])
            }
        }
    }
}

/// Splits [3, a, b, c, d] into three of [a, b, c, d].
fn three(x: Tensor<5>) -> [Tensor<4>; 3] {
    [0, 1, 2].map(|index| x.clone().narrow(0, index, 1).squeeze_dim::<4>(0))
}

/// Pads the end of an axis with zeros to a multiple.
fn pad_end(x: Tensor<4>, axis: usize, multiple: usize) -> Tensor<4> {
    let size = x.dims()[axis];
    let missing = size.next_multiple_of(multiple) - size;
    if missing == 0 {
        return x;
    }
    let mut shape = x.dims();
    shape[axis] = missing;
    let zeros = Tensor::zeros(shape, &x.device());
    Tensor::cat(vec![x, zeros], axis)
}

/// For each pair of positions of a window, the row of the bias table: [area·area].
fn relative_position_index(side: usize) -> Vec<u32> {
    let place = |position: usize| (position / side, position % side);
    let area = side * side;
    (0..area * area)
        .map(|pair| {
            let ((row, column), (other_row, other_column)) =
                (place(pair / area), place(pair % area));
            let rows = row + side - 1 - other_row;
            let columns = column + side - 1 - other_column;
            (rows * (2 * side - 1) + columns) as u32
        })
        .collect()
}

/// The windows of a block, in the form that its attention takes.
#[derive(Clone)]
enum Windows {
    /// Of the fused operation.
    Fused(Arc<Grid>),
    /// Of Burn's graph.
    Graph(Arc<CutTensors>),
}

/// How a map is cut into windows: where its rows and columns go.
struct Cut {
    rows: Arrangement,
    columns: Arrangement,
    side: usize,
    shift: usize,
    /// Rows and columns of the map.
    size: [usize; 2],
}

/// A cut with its tensors.
struct CutTensors {
    cut: Cut,
    bias_index: Tensor<1, Int>,
    /// [windows, 1, area, area], 0 or [`FORBIDDEN`]; none without a shift.
    mask: Option<Tensor<4>>,
}

impl Cut {
    fn new(size: [usize; 2], side: usize, shift: usize, padding: WindowPadding) -> Self {
        let [rows, columns] = size.map(|size| Arrangement::new(size, side, shift, padding));
        Self {
            rows,
            columns,
            side,
            shift,
            size,
        }
    }

    fn tensors(self, device: &Device) -> CutTensors {
        let index = relative_position_index(self.side);
        let index: Vec<i64> = index.into_iter().map(i64::from).collect();
        let count = index.len();
        CutTensors {
            bias_index: Tensor::from_data(TensorData::new(index, [count]), device),
            mask: (self.shift > 0).then(|| self.mask(device)),
            cut: self,
        }
    }

    fn grid(&self) -> Grid {
        let [height, width] = self.size;
        let places = |arrangement: &Arrangement| -> Vec<Option<usize>> {
            arrangement
                .arrange
                .iter()
                .flat_map(|run| run.places())
                .collect()
        };
        let (rows, columns) = (places(&self.rows), places(&self.columns));
        let [_, across] = self.count();
        let windows = (0..self.windows()).map(|window| {
            let tokens = (0..self.area()).map(|position| {
                let row = rows[window / across * self.side + position / self.side]?;
                let column = columns[window % across * self.side + position % self.side]?;
                Some((row * width + column) as u32)
            });
            let regions = self.regions(window);
            let alike = self.shift == 0 || regions.iter().all(|region| *region == regions[0]);
            kernels::attention::Window {
                tokens: tokens.collect(),
                regions: if alike { Vec::new() } else { regions },
                penalty: FORBIDDEN,
            }
        });
        Grid {
            tokens: height * width,
            area: self.area(),
            windows: windows.collect(),
            bias_index: relative_position_index(self.side),
            causal: false,
        }
    }

    /// Positions of a window.
    fn area(&self) -> usize {
        self.side * self.side
    }

    /// Windows along the height and the width.
    fn count(&self) -> [usize; 2] {
        [&self.rows, &self.columns].map(|axis| axis.padded / self.side)
    }

    fn windows(&self) -> usize {
        self.count().iter().product()
    }

    /// After a cyclic shift the last window holds positions from both ends of the map; those of different
    /// regions may not attend to one another.
    fn regions(&self, window: usize) -> Vec<u8> {
        let region = |position: usize, size: usize| {
            u8::from(position >= size - self.side) + u8::from(position >= size - self.shift)
        };
        let [_, across] = self.count();
        (0..self.area())
            .map(|position| {
                let row = (window / across) * self.side + position / self.side;
                let column = (window % across) * self.side + position % self.side;
                3 * region(row, self.rows.padded) + region(column, self.columns.padded)
            })
            .collect()
    }

    /// The mask of the regions: [windows, 1, area, area].
    fn mask(&self, device: &Device) -> Tensor<4> {
        let area = self.area();
        let mut values = Vec::with_capacity(self.windows() * area * area);
        for window in 0..self.windows() {
            let regions = self.regions(window);
            for one in &regions {
                let forbidden = |other| if one == other { 0.0 } else { FORBIDDEN };
                values.extend(regions.iter().map(forbidden));
            }
        }
        Tensor::from_data(
            TensorData::new(values, [self.windows(), 1, area, area]),
            device,
        )
    }

    /// [batch, height, width, channels] → shifted and padded.
    fn arrange(&self, x: Tensor<4>) -> Tensor<4> {
        take_runs(
            take_runs(x, 1, &self.rows.arrange),
            2,
            &self.columns.arrange,
        )
    }

    /// Undoes [`Cut::arrange`]: what stands at padding positions is dropped.
    fn restore(&self, x: Tensor<4>) -> Tensor<4> {
        take_runs(
            take_runs(x, 1, &self.rows.restore),
            2,
            &self.columns.restore,
        )
    }
}

/// Consecutive positions of an axis, or zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Run {
    Take { start: usize, length: usize },
    Zeros { length: usize },
}

impl Run {
    /// Position by position.
    fn places(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let (start, length) = match *self {
            Self::Take { start, length } => (Some(start), length),
            Self::Zeros { length } => (None, length),
        };
        (0..length).map(move |offset| start.map(|start| start + offset))
    }
}

/// One axis of a map, shifted cyclically and padded to whole windows.
#[derive(Debug, PartialEq)]
struct Arrangement {
    /// Size with padding.
    padded: usize,
    /// From the map to the windows.
    arrange: Vec<Run>,
    /// Back.
    restore: Vec<Run>,
}

impl Arrangement {
    fn new(size: usize, side: usize, shift: usize, padding: WindowPadding) -> Self {
        let padded = size.next_multiple_of(side);
        // Position in the arrangement → position in the map.
        let source: Vec<Option<usize>> = match padding {
            WindowPadding::Detection => (0..padded)
                .map(|position| Some((position + shift) % padded).filter(|p| *p < size))
                .collect(),
            WindowPadding::Classification => (0..padded)
                .map(|position| (position < size).then(|| (position + shift) % size))
                .collect(),
        };
        let mut back = vec![0; size];
        for (position, place) in source.iter().enumerate() {
            if let Some(place) = place {
                back[*place] = position;
            }
        }
        Self {
            padded,
            arrange: runs(source.into_iter()),
            restore: runs(back.into_iter().map(Some)),
        }
    }
}

/// Joins positions that follow one another.
fn runs(positions: impl Iterator<Item = Option<usize>>) -> Vec<Run> {
    let mut list: Vec<Run> = Vec::new();
    for position in positions {
        match (list.last_mut(), position) {
            (Some(Run::Take { start, length }), Some(p)) if *start + *length == p => *length += 1,
            (Some(Run::Zeros { length }), None) => *length += 1,
            (_, Some(start)) => list.push(Run::Take { start, length: 1 }),
            (_, None) => list.push(Run::Zeros { length: 1 }),
        }
    }
    list
}

/// Builds an axis from runs of it.
fn take_runs(x: Tensor<4>, axis: usize, runs: &[Run]) -> Tensor<4> {
    let size = x.dims()[axis];
    let pieces: Vec<Tensor<4>> = runs
        .iter()
        .map(|run| match *run {
            Run::Take { start: 0, length } if length == size => x.clone(),
            Run::Take { start, length } => x.clone().narrow(axis, start, length),
            Run::Zeros { length } => {
                let mut shape = x.dims();
                shape[axis] = length;
                Tensor::zeros(shape, &x.device())
            }
        })
        .collect();
    match <[Tensor<4>; 1]>::try_from(pieces) {
        Ok([piece]) => piece,
        Err(pieces) => Tensor::cat(pieces, axis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernels::tests::{assert_alike, trace},
        moe::{MoeConfig, MoeKind},
        named,
    };
    use rand_chacha::rand_core::SeedableRng;

    /// A block with its input.
    #[derive(Module, Debug)]
    struct Case {
        block: Block,
        x: Param<Tensor<4>>,
    }

    #[test]
    fn fused_blocks_are_the_graphs() {
        let device = Device::flex().autodiff();
        for seed in 0..24 {
            let mut rng = Rng::seed_from_u64(seed);
            let mut pick = |most: usize| 1 + (layers::uniform(&mut rng) * most as f64) as usize;
            let (heads, side) = (pick(3), 1 + pick(4));
            let (channels, size) = (4 * heads * pick(3), [pick(11), pick(11)]);
            let shape = [pick(3), size[0], size[1], channels];
            let adapter = match seed % 4 {
                1 => Adapter::Moe(MoeConfig {
                    form: MoeKind::Merged,
                    ..MoeConfig::default()
                }),
                2 => Adapter::Moe(MoeConfig::default()),
                _ => Adapter::None,
            };
            let sizes = SwinSizes {
                embed_dim: channels,
                depths: vec![1],
                num_heads: vec![heads],
                window_size: side,
                ..SwinSizes::tiny()
            };
            let config = SwinConfig {
                adapter,
                ..SwinConfig::new(sizes)
            };
            let padding = match seed % 2 {
                0 => WindowPadding::Detection,
                _ => WindowPadding::Classification,
            };
            let shift = if pick(2) == 1 { 0 } else { side / 2 };
            let case = Case {
                block: Block::init(&config, [0, 0], 0.3, channels, &mut rng, &device),
                x: layers::trunc_normal(shape, 1.0, &mut rng, &device),
            };
            // Away from biases and norms that do nothing.
            let case = named::map(case, &mut |_, _, value| {
                let noise = layers::trunc_normal(value.dims(), 0.1, &mut rng, &Device::flex());
                value + noise.val()
            });
            let run = |windows: Windows| {
                trace(&case, |case| {
                    let mix = "identity=0.7,part=0.3"
                        .parse::<Mix>()
                        .unwrap()
                        .tensor(&device);
                    let mut rng = Rng::seed_from_u64(seed);
                    let mut drops =
                        Drops::draw([0.3].into_iter(), shape[0], Some(&mut rng), &device);
                    case.block
                        .forward(case.x.val(), &windows, &mix, drops.next())
                })
            };
            let cut = || Cut::new(size, side, shift, padding);
            assert_alike(
                &run(Windows::Graph(Arc::new(cut().tensors(&device)))),
                &run(Windows::Fused(Arc::new(cut().grid()))),
                &format!("{shape:?}, {heads} heads, window {side}, shift {shift}, {padding:?}"),
            );
        }
    }
}
