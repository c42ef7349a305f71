//! One interface over the backbones, used by every stage.
//!
//! ```
//! # fn main() -> Result<(), clasp_model::ModelError> {
//! use burn::tensor::{Device, Tensor};
//! use clasp_model::{backbone::BackboneConfig, layers::Rng, mix::Mix};
//! use rand_chacha::rand_core::SeedableRng;
//!
//! let device = Device::flex();
//! let backbone = BackboneConfig::named("swin-pico")?.init(&mut Rng::seed_from_u64(0), &device);
//! let images = Tensor::zeros([2, 3, 128, 64], &device);
//! let features = backbone.forward(images, Mix::mean().tensor(2, &device), None);
//! assert_eq!(features.map.dims(), [2, backbone.channels(), 4, 2]);
//! # Ok(())
//! # }
//! ```

use std::{fmt, str::FromStr};

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    layers::Rng,
    mix::Mix,
    moe::MoeConfig,
    swin::{Swin, SwinConfig, WindowPadding},
};

pub use crate::moe::Routing;

/// How a backbone is adapted to a mix of tasks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Adapter {
    /// The plain backbone; the mix is ignored.
    #[default]
    None,
    /// SOLIDER's controller (Chen et al. 2023): x·softplus(W s + b) + (W' s + b') between stages,
    /// s = (λ, 1−λ).
    Lambda(LambdaConfig),
    /// Prompt-controlled mixture of experts ([`crate::moe`]).
    Moe(MoeConfig),
}

/// Setting of SOLIDER's controller.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambdaConfig {
    /// A fixed λ, SOLIDER's semantic weight. Without, λ = 1 − the mix's weight of identity: appearance for
    /// identity, semantics for parts and attributes. That reading of the mix is this project's choice.
    pub lambda: Option<f32>,
}

/// The backbones by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// 0.6 M parameters, window 4: for demonstrations and tests.
    SwinPico,
    /// 2.3 M parameters, window 4: for demonstrations on a CPU.
    SwinNano,
    /// Swin-T, 28 M.
    SwinTiny,
    /// Swin-S, 49 M.
    SwinSmall,
    /// Swin-B, 87 M.
    SwinBase,
}

impl Architecture {
    /// Every architecture, smallest first.
    pub const ALL: [Self; 5] = [
        Self::SwinPico,
        Self::SwinNano,
        Self::SwinTiny,
        Self::SwinSmall,
        Self::SwinBase,
    ];

    /// The name in recipes and checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwinPico => "swin-pico",
            Self::SwinNano => "swin-nano",
            Self::SwinTiny => "swin-tiny",
            Self::SwinSmall => "swin-small",
            Self::SwinBase => "swin-base",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.name() == name)
            .ok_or_else(|| ModelError::Backbone {
                name: name.to_string(),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

/// Everything that shapes a backbone; travels with its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Which network.
    pub name: Architecture,
    /// How it is adapted to a mix.
    #[serde(default)]
    pub adapter: Adapter,
    /// Drop path of the last block; earlier blocks have less, linearly from 0.
    #[serde(default = "default_drop_path")]
    pub drop_path: f64,
    /// How maps that windows do not divide are padded.
    #[serde(default)]
    pub padding: WindowPadding,
}

fn default_drop_path() -> f64 {
    0.1
}

impl BackboneConfig {
    /// The plain backbone of that name, drop path 0.1.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        Ok(Self::new(name.parse()?))
    }

    /// The plain backbone of that architecture, drop path 0.1.
    pub fn new(name: Architecture) -> Self {
        Self {
            name,
            adapter: Adapter::None,
            drop_path: default_drop_path(),
            padding: WindowPadding::default(),
        }
    }

    /// The same with an adapter.
    pub fn with_adapter(self, adapter: Adapter) -> Self {
        Self { adapter, ..self }
    }

    /// Number of stages, each at half the resolution of the one before.
    pub fn stages(&self) -> usize {
        self.swin().depths.len()
    }

    /// Checks settings that come from outside.
    pub fn check(&self) -> Result<(), ModelError> {
        self.swin().check()
    }

    /// The Swin behind this configuration.
    fn swin(&self) -> SwinConfig {
        let preset = match self.name {
            Architecture::SwinPico => SwinConfig::pico(),
            Architecture::SwinNano => SwinConfig::nano(),
            Architecture::SwinTiny => SwinConfig::tiny(),
            Architecture::SwinSmall => SwinConfig::small(),
            Architecture::SwinBase => SwinConfig::base(),
        };
        SwinConfig {
            adapter: self.adapter.clone(),
            drop_path: self.drop_path,
            padding: self.padding,
            ..preset
        }
    }

    /// A backbone with fresh weights.
    ///
    /// # Panics
    /// On settings that [`BackboneConfig::check`] refuses.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Backbone {
        Backbone::Swin(self.swin().init(rng, device))
    }
}

/// What a backbone makes of a batch.
#[derive(Debug, Clone)]
pub struct Features {
    /// The last stage after the last norm: [batch, channels, height, width].
    pub map: Tensor<4>,
    /// Mean of `map` over its positions: [batch, channels].
    pub pooled: Tensor<2>,
    /// The output of each stage, strides 4, 8, 16, 32: [batch, channels, height, width]. The last is `map`;
    /// the others are not normalised.
    pub pyramid: Vec<Tensor<4>>,
    /// One entry a block that holds experts, in order; empty without.
    pub routing: Vec<Routing>,
}

/// A backbone of any kind.
#[derive(Module, Debug)]
pub enum Backbone {
    /// Swin Transformer.
    Swin(Swin),
}

impl Backbone {
    /// Features of a batch for a mix.
    ///
    /// # Shapes
    /// - images: [batch, 3, height, width], normalised; any size
    /// - mix: [batch, tasks], see [`Mix::tensor`]; without an adapter it is ignored
    ///
    /// `drop_path` is the generator of stochastic depth, for training; without it nothing is dropped.
    pub fn forward(
        &self,
        images: Tensor<4>,
        mix: Tensor<2>,
        drop_path: Option<&mut Rng>,
    ) -> Features {
        match self {
            Self::Swin(swin) => swin.forward(images, mix, drop_path),
        }
    }

    /// Channels of the map and of the pooled features.
    pub fn channels(&self) -> usize {
        match self {
            Self::Swin(swin) => swin.channels(),
        }
    }

    /// Pixels of the image per position of the map, along each axis.
    pub fn stride(&self) -> usize {
        match self {
            Self::Swin(swin) => swin.stride(),
        }
    }

    /// Rows and columns of the map of an image of that size.
    pub fn grid(&self, height: usize, width: usize) -> [usize; 2] {
        [height, width].map(|size| size.div_ceil(self.stride()))
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.num_params()
    }

    /// The same backbone for one mix, without prompts to feed: the export form.
    pub fn fold(self, mix: Mix) -> Self {
        match self {
            Self::Swin(swin) => Self::Swin(swin.fold(mix)),
        }
    }
}
