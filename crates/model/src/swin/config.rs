//! Sizes of a Swin and what shapes it.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{adapter::Adapter, error::ModelError, layers, moe::MoeConfig, prompt::IDENTITY};

/// How windows lie on a map that they do not divide, or that is smaller than they are. The published
/// programs differ in it, so it is a property of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowPadding {
    /// Pad, then shift, in every stage: Microsoft's and MMDetection's detector, and SOLIDER.
    #[default]
    Detection,
    /// Shift, then pad, and no shift in stages whose map at 224×224 is one window: timm with
    /// `dynamic_img_size`. The same as the classifier wherever the windows divide the map.
    Classification,
    /// Shift, then pad. Along an axis where the map is not larger than the window, the window is as
    /// long as the map and is not shifted: timm's model for one size (`img_size`). A smaller window
    /// takes its biases from the stored table as timm does when it loads one
    /// ([`BiasResampling`](crate::layers::BiasResampling)).
    Timm,
    /// Pad, then shift, and no shift in stages whose map is exactly one window along its shorter
    /// axis: Hugging Face's transformers. Maps with a shorter axis are an error there unless
    /// `always_partition=True` is given; here they are computed as with it.
    Transformers,
}

/// Sizes of a Swin, as the shapes of its weights show them; stored with weights of no preset.
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
    /// Rows and columns of each stage's windows, as its bias table has them; none where all are
    /// squares of `window_size`. A Swin that timm made for images of 256×128 has windows of 7×4 in
    /// its last stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<[usize; 2]>,
    /// Hidden over outer channels of the MLPs.
    pub mlp_ratio: usize,
    /// Stride of the merging before each later stage, 1 or 2; none for 2 everywhere. Dense tasks of
    /// SOLIDER lower the last: the same weights merge overlapping neighbors there, and the map
    /// stays finer.
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
            windows: Vec::new(),
            mlp_ratio: 4,
            merging: Vec::new(),
        }
    }

    /// 0.6 M parameters. Ours, for tests and demonstrations: window 4 divides the maps of 128×64
    /// images.
    pub fn pico() -> Self {
        Self::preset(16, &[2, 2, 2, 2], 1, 4)
    }

    /// 0.9 M parameters. Ours, for demonstrations: patches of 8 and two stages, so that a 128×64
    /// image ends in the 8×4 map that a 256×128 image has in the published sizes. A person of
    /// 128×64 pixels does not fit a 4×2 map.
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

    /// The same with published strides, such as 4, 2, 2, 1: that of the patches, then of the
    /// merging before each later stage.
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

    /// Rows and columns of a stage's windows, as its bias table has them.
    pub fn stage_window(&self, stage: usize) -> [usize; 2] {
        { self.windows.get(stage) }
            .copied()
            .unwrap_or([self.window_size; 2])
    }

    /// Rows of a stage's table of relative position biases.
    pub(super) fn table_rows(&self, stage: usize) -> usize {
        { self.stage_window(stage) }
            .map(|side| 2 * side - 1)
            .iter()
            .product()
    }

    /// Pixels of the image per position of a stage's map.
    pub fn stage_stride(&self, stage: usize) -> usize {
        let merged: usize = (1..=stage).map(|stage| self.merging(stage)).product();
        self.patch_size * merged
    }

    /// The stride of the merging before a stage.
    pub(super) fn merging(&self, stage: usize) -> usize {
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
    /// How windows lie on a map that they do not divide.
    pub padding: WindowPadding,
    /// How its blocks depend on prompt weights.
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
            let hidden = self.sizes.mlp_ratio * channels;
            let block = 4 * channels
                + self.sizes.table_rows(stage) * heads
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

    /// Floating-point operations of the matrix products of a forward pass on an image, two a
    /// multiplication.
    pub fn operations(&self, [height, width]: [usize; 2]) -> usize {
        let sizes = &self.sizes;
        let mut map = [height, width].map(|size| size.div_ceil(sizes.patch_size));
        let mut count = 2 * map[0] * map[1] * 3 * sizes.patch_size.pow(2) * sizes.embed_dim;
        for (stage, depth) in sizes.depths.iter().enumerate() {
            let channels = sizes.stage_channels(stage);
            if stage > 0 {
                map = map.map(|size| size.div_ceil(sizes.merging(stage)));
                // Four neighbors of half as many channels.
                count += 2 * map[0] * map[1] * 2 * channels * channels;
            }
            let tokens = map[0] * map[1];
            let window = self.layout(stage, map).window.iter().product();
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
        for side in self.sizes.windows.iter().flatten() {
            within("windows", *side, 64)?;
        }
        within("mlp_ratio", self.sizes.mlp_ratio, 16)?;
        within("depths", self.sizes.depths.len(), 6)?;
        if self.sizes.num_heads.len() != self.sizes.depths.len() {
            let expected = format!("one entry for each of {} stages", self.sizes.depths.len());
            let found = format!("{:?}", self.sizes.num_heads);
            return Err(setting("num_heads", expected, found));
        }
        if !self.sizes.windows.is_empty() && self.sizes.windows.len() != self.sizes.depths.len() {
            let expected = format!(
                "one for each of {} stages, or none",
                self.sizes.depths.len()
            );
            let found = format!("{:?}", self.sizes.windows);
            return Err(setting("windows", expected, found));
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

    /// The mixture of experts of a block, counted from 0 in its stage; none in a block that is not
    /// conditional.
    pub(super) fn experts(&self, stage: usize, block: usize) -> Option<&MoeConfig> {
        let last = stage + 1 == self.sizes.depths.len();
        match &self.adapter {
            Adapter::Moe(moe) if last && block + moe.blocks >= self.sizes.depths[stage] => {
                Some(moe)
            }
            _ => None,
        }
    }

    /// The stages before which SOLIDER's controller modulates the map.
    pub(super) fn modulated_stages(&self) -> std::ops::Range<usize> {
        // SOLIDER modulates the input of each stage but the first. Its layer after the last stage
        // does not change any output, so it is not built.
        match self.adapter {
            Adapter::Lambda(_) => 1..self.sizes.depths.len(),
            _ => 0..0,
        }
    }

    /// s = (λ, 1−λ): [1 or batch, 2], when the adapter is SOLIDER's.
    pub(super) fn semantic_weight(&self, prompt_weights: &Tensor<2>) -> Option<Tensor<2>> {
        let Adapter::Lambda(config) = &self.adapter else {
            return None;
        };
        let identity = prompt_weights.clone().narrow(1, IDENTITY, 1);
        let one_minus_lambda = match config.lambda {
            Some(lambda) => identity.full_like(1.0 - lambda),
            None => identity,
        };
        let lambda = one_minus_lambda.clone().neg() + 1.0;
        Some(Tensor::cat(vec![lambda, one_minus_lambda], 1))
    }
}
