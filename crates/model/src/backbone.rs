//! One interface over the backbones, used by every stage.
//!
//! ```
//! # fn main() -> Result<(), clasp_model::ModelError> {
//! use burn::tensor::{Device, Tensor};
//! use clasp_model::{backbone::BackboneConfig, layers::Rng, prompt::PromptWeights};
//! use rand_chacha::rand_core::SeedableRng;
//!
//! let device = Device::flex();
//! let backbone = BackboneConfig::named("swin-pico")?.init(&mut Rng::seed_from_u64(0), &device);
//! let images = Tensor::zeros([2, 3, 128, 64], &device);
//! let features = backbone.forward(images, PromptWeights::mean().tensor(&device), None);
//! assert_eq!(features.map.dims(), [2, backbone.channels(), 4, 2]);
//! # Ok(())
//! # }
//! ```

use std::{fmt, str::FromStr};

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    layers::{self, Rng},
    moe::Moe,
    parameters::ParameterGroups,
    prompt::PromptWeights,
    swin::{
        LastStage, Swin, SwinConfig, SwinSizes, TimmWindows, TransformersWindows, WindowPadding,
    },
    vit::{Vit, VitConfig, VitSizes},
};

pub use crate::{
    adapter::{Adapter, LambdaConfig},
    features::{Features, GradientCut, SharedFeatures, with_gradient},
};

/// Defines [`Architecture`]: a row for each preset with its name and its sizes, and one for
/// each family, which is called as its variant of [`Sizes`].
macro_rules! architectures {
    (
        presets { $($(#[doc = $doc:literal])* $preset:ident $name:literal => $sizes:expr;)* }
        families { $($(#[doc = $family_doc:literal])* $family:ident $family_name:literal;)* }
    ) => {
        /// The backbones by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Architecture {
            $($(#[doc = $doc])* $preset,)*
            $($(#[doc = $family_doc])* $family,)*
        }

        impl Architecture {
            /// Every architecture that a name alone describes, smallest first in each family.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$preset),*];

            /// The name in recipes, on the command line and in checkpoints.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$preset => $name,)*
                    $(Self::$family => $family_name,)*
                }
            }

            /// The sizes of the preset; none for a family.
            pub fn sizes(self) -> Option<Sizes> {
                match self {
                    $(Self::$preset => Some($sizes),)*
                    $(Self::$family => None,)*
                }
            }

            /// The family of sizes.
            fn family(sizes: &Sizes) -> Self {
                match sizes {
                    $(Sizes::$family(_) => Self::$family,)*
                }
            }
        }
    };
}

architectures! {
    presets {
        /// 0.6 M parameters, window 4: for demonstrations and tests.
        SwinPico "swin-pico" => Sizes::Swin(SwinSizes::pico());
        /// 0.9 M parameters, window 4, two stages: for demonstrations on a CPU.
        SwinNano "swin-nano" => Sizes::Swin(SwinSizes::nano());
        /// Swin-T, 28 M parameters.
        SwinTiny "swin-tiny" => Sizes::Swin(SwinSizes::tiny());
        /// Swin-S, 49 M parameters.
        SwinSmall "swin-small" => Sizes::Swin(SwinSizes::small());
        /// Swin-B, 87 M parameters.
        SwinBase "swin-base" => Sizes::Swin(SwinSizes::base());
        /// 0.3 M parameters: for demonstrations and tests.
        VitPico "vit-pico" => Sizes::Vit(VitSizes::pico());
        /// ViT-Ti/16, 5.5 M parameters.
        VitTiny "vit-tiny" => Sizes::Vit(VitSizes::tiny());
        /// ViT-S/16, 22 M parameters.
        VitSmall "vit-small" => Sizes::Vit(VitSizes::small());
        /// ViT-B/16, 86 M parameters.
        VitBase "vit-base" => Sizes::Vit(VitSizes::base());
        /// 0.2 M parameters, rotary positions and gated MLPs: for demonstrations and tests.
        VitPicoDinov3 "vit-pico-dinov3" => Sizes::Vit(VitSizes::dinov3_pico());
        /// DINOv3 ViT-S/16, 22 M parameters.
        VitSmallDinov3 "vit-small-dinov3" => Sizes::Vit(VitSizes::dinov3_small());
        /// DINOv3 ViT-S+/16, 29 M parameters.
        VitSmallPlusDinov3 "vit-small-plus-dinov3" => Sizes::Vit(VitSizes::dinov3_small_plus());
        /// DINOv3 ViT-B/16, 86 M parameters.
        VitBaseDinov3 "vit-base-dinov3" => Sizes::Vit(VitSizes::dinov3_base());
        /// DINOv3 ViT-L/16, 303 M parameters.
        VitLargeDinov3 "vit-large-dinov3" => Sizes::Vit(VitSizes::dinov3_large());
    }
    families {
        /// A Swin of other sizes, which stand beside the name.
        Swin "swin";
        /// A ViT of other sizes, which stand beside the name.
        Vit "vit";
    }
}

impl Architecture {
    /// The name that comes nearest to sizes: the preset that they differ from in no more than the
    /// window and strides of a Swin, or the image, the patch and the pooling of a ViT.
    pub fn nearest(sizes: &Sizes) -> Self {
        let near = |name: &Self| match (sizes, name.sizes()) {
            (Sizes::Swin(one), Some(Sizes::Swin(other))) => {
                *one == SwinSizes {
                    window_size: one.window_size,
                    windows: one.windows.clone(),
                    merging: one.merging.clone(),
                    ..other
                }
            }
            (Sizes::Vit(one), Some(Sizes::Vit(other))) => {
                let (image_size, patch_size, pool) = (one.image_size, one.patch_size, one.pool);
                *one == VitSizes {
                    image_size,
                    patch_size,
                    pool,
                    ..other
                }
            }
            _ => false,
        };
        { Self::ALL.into_iter() }
            .find(near)
            .unwrap_or_else(|| Self::family(sizes))
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

/// Sizes of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Sizes {
    /// Of a Swin.
    Swin(SwinSizes),
    /// Of a ViT.
    Vit(VitSizes),
}

impl Sizes {
    /// Pixels of the image per position of the last map, along each axis.
    pub fn stride(&self) -> usize {
        match self {
            Self::Swin(swin) => swin.stage_stride(swin.depths.len() - 1),
            Self::Vit(vit) => vit.patch_size,
        }
    }

    /// Rows and columns of the last map of an image.
    pub fn grid(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Swin(_) => [height, width].map(|size| size.div_ceil(self.stride())),
            Self::Vit(vit) => vit.image_grid([height, width]),
        }
    }
}

/// Everything that shapes a backbone; travels with its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// Which network.
    pub name: Architecture,
    /// Its sizes, where they are not those of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Sizes>,
    /// How its blocks depend on prompt weights.
    #[serde(default)]
    pub adapter: Adapter,
    /// Drop path of the last block; earlier blocks have less, linearly from 0.
    #[serde(default = "default_drop_path")]
    pub drop_path: f64,
    /// How windows lie on a map that they do not divide.
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
            sizes: None,
            adapter: Adapter::None,
            drop_path: default_drop_path(),
            padding: WindowPadding::default(),
        }
    }

    /// The same with an adapter.
    pub fn with_adapter(self, adapter: Adapter) -> Self {
        Self { adapter, ..self }
    }

    /// Number of all blocks, and of those of the last stage.
    pub fn blocks(&self) -> [usize; 2] {
        match self.sizes() {
            Some(Sizes::Swin(sizes)) => [
                sizes.depths.iter().sum(),
                sizes.depths.last().copied().unwrap_or(0),
            ],
            Some(Sizes::Vit(sizes)) => [sizes.depth, sizes.last_stage()],
            None => [0, 0],
        }
    }

    /// The plain backbone of those sizes, drop path 0.1.
    pub fn of_sizes(sizes: Sizes) -> Self {
        let name = Architecture::nearest(&sizes);
        Self {
            sizes: Some(sizes).filter(|sizes| name.sizes().as_ref() != Some(sizes)),
            ..Self::new(name)
        }
    }

    /// The same with a ViT's position embeddings stored for images of that height and width; a Swin
    /// has none.
    pub fn for_images(self, image: [usize; 2]) -> Self {
        match self.sizes() {
            Some(Sizes::Vit(sizes)) => Self {
                sizes: Some(Sizes::Vit(VitSizes {
                    image_size: image,
                    ..sizes
                }))
                .filter(|sizes| self.name.sizes().as_ref() != Some(sizes)),
                ..self
            },
            _ => self,
        }
    }

    /// The same with a Swin's strides as they are published, such as 4, 2, 2, 1
    /// ([`SwinSizes::with_strides`]).
    ///
    /// # Errors
    /// Strides that do not go with the sizes, or a ViT.
    pub fn with_strides(self, strides: &[usize]) -> Result<Self, ModelError> {
        let Some(Sizes::Swin(sizes)) = self.sizes() else {
            return Err(ModelError::Setting {
                field: "strides",
                expected: "none: only a Swin has them".into(),
                found: format!("{strides:?}"),
            });
        };
        let sizes = Sizes::Swin(sizes.with_strides(strides)?);
        Ok(Self {
            sizes: Some(sizes).filter(|sizes| self.name.sizes().as_ref() != Some(sizes)),
            ..self
        })
    }

    /// The network's sizes; none for a name that needs them beside it.
    pub fn sizes(&self) -> Option<Sizes> {
        self.sizes.clone().or_else(|| self.name.sizes())
    }

    /// Checks settings that come from outside.
    pub fn check(&self) -> Result<(), ModelError> {
        match self.network()? {
            NetworkConfig::Swin(config) => config.check(),
            NetworkConfig::Vit(config) => config.check(),
        }
    }

    /// Number of parameters, without building anything.
    ///
    /// # Errors
    /// Settings that [`BackboneConfig::check`] refuses.
    pub fn parameters(&self) -> Result<usize, ModelError> {
        self.check()?;
        Ok(match self.network()? {
            NetworkConfig::Swin(config) => config.parameters(),
            NetworkConfig::Vit(config) => config.parameters(),
        })
    }

    /// Layer and kind of every parameter, without building anything.
    ///
    /// # Errors
    /// Settings that [`BackboneConfig::check`] refuses.
    pub fn parameter_groups(&self) -> Result<ParameterGroups, ModelError> {
        self.check()?;
        Ok(match self.network()? {
            NetworkConfig::Swin(config) => config.parameter_groups(),
            NetworkConfig::Vit(config) => config.parameter_groups(),
        })
    }

    /// Floating-point operations of the matrix products of a forward pass on an image of that size,
    /// two a multiplication.
    ///
    /// # Errors
    /// Settings that [`BackboneConfig::check`] refuses.
    pub fn operations(&self, size: [usize; 2]) -> Result<usize, ModelError> {
        self.check()?;
        Ok(match self.network()? {
            NetworkConfig::Swin(config) => config.operations(size),
            NetworkConfig::Vit(config) => config.operations(size),
        })
    }

    /// How to make timm's Swin so that it cuts images of a height and width as this backbone does;
    /// none where timm has no such windows, or of a ViT.
    ///
    /// # Errors
    /// Settings that [`BackboneConfig::check`] refuses.
    pub fn timm_windows(&self, image: [usize; 2]) -> Result<Option<TimmWindows>, ModelError> {
        self.check()?;
        Ok(match self.network()? {
            NetworkConfig::Swin(config) => config.timm_windows(image),
            NetworkConfig::Vit(_) => None,
        })
    }

    /// How to call transformers' Swin so that it cuts images of a height and width as this backbone
    /// does; none where it has no such windows, or of a ViT.
    ///
    /// # Errors
    /// Settings that [`BackboneConfig::check`] refuses.
    pub fn transformers_windows(
        &self,
        image: [usize; 2],
    ) -> Result<Option<TransformersWindows>, ModelError> {
        self.check()?;
        Ok(match self.network()? {
            NetworkConfig::Swin(config) => config.transformers_windows(image),
            NetworkConfig::Vit(_) => None,
        })
    }

    /// The network behind this configuration.
    fn network(&self) -> Result<NetworkConfig, ModelError> {
        Ok(match self.sizes() {
            Some(Sizes::Swin(sizes)) => NetworkConfig::Swin(SwinConfig {
                sizes,
                drop_path: self.drop_path,
                padding: self.padding,
                adapter: self.adapter.clone(),
            }),
            Some(Sizes::Vit(sizes)) => NetworkConfig::Vit(VitConfig {
                sizes,
                drop_path: self.drop_path,
                adapter: self.adapter.clone(),
            }),
            None => {
                return Err(ModelError::Setting {
                    field: "sizes",
                    expected: format!("sizes beside the name `{}`, which is no preset", self.name),
                    found: "none".into(),
                });
            }
        })
    }

    /// A backbone with fresh weights.
    ///
    /// # Panics
    /// On settings that [`BackboneConfig::check`] refuses.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Backbone {
        match self.network() {
            Ok(NetworkConfig::Swin(config)) => Backbone::Swin(config.init(rng, device)),
            Ok(NetworkConfig::Vit(config)) => Backbone::Vit(config.init(rng, device)),
            Err(error) => panic!("{error}"),
        }
    }
}

enum NetworkConfig {
    Swin(SwinConfig),
    Vit(VitConfig),
}

/// A backbone of any kind.
#[derive(Module, Debug)]
pub enum Backbone {
    /// Swin Transformer.
    Swin(Swin),
    /// Vision Transformer.
    Vit(Vit),
}

impl Backbone {
    /// Features of a batch under prompt weights.
    ///
    /// # Shapes
    /// - images: [batch, 3, height, width], normalized; any size
    /// - prompt_weights: [1, prompts], see [`PromptWeights::tensor`]; [batch, prompts] for
    ///   SOLIDER's controller too; ignored without an adapter
    ///
    /// `drop_path` is the generator of stochastic depth, for training; without it nothing is
    /// dropped.
    pub fn forward(
        &self,
        images: Tensor<4>,
        prompt_weights: Tensor<2>,
        mut drop_path: Option<&mut Rng>,
    ) -> Features {
        let shared = self.shared(images, &prompt_weights, drop_path.as_deref_mut());
        self.conditional(shared, &prompt_weights, drop_path)
    }

    /// The first part of [`Backbone::forward`]: all blocks before the conditional ones. It does not
    /// depend on prompts, so that it runs once for the passes under several prompts; SOLIDER's
    /// controller, which has no conditional blocks, takes its prompt weights here.
    ///
    /// # Shapes
    /// As in [`Backbone::forward`].
    pub fn shared(
        &self,
        images: Tensor<4>,
        prompt_weights: &Tensor<2>,
        drop_path: Option<&mut Rng>,
    ) -> SharedFeatures {
        self.shared_masked(images, None, prompt_weights, drop_path)
    }

    /// As [`Backbone::shared`], with the mask token in place of the patches where `mask` is 1. A
    /// Swin masks all patches that a position of its map covers.
    ///
    /// # Shapes
    /// - mask: 0 or 1, [batch, rows, columns] of the map ([`Backbone::grid`])
    ///
    /// # Panics
    /// With a mask and without a mask token ([`Backbone::with_mask_token`]).
    pub fn shared_masked(
        &self,
        images: Tensor<4>,
        mask: Option<&Tensor<3>>,
        prompt_weights: &Tensor<2>,
        drop_path: Option<&mut Rng>,
    ) -> SharedFeatures {
        match self {
            Self::Swin(swin) => swin.shared(images, mask, prompt_weights, drop_path),
            Self::Vit(vit) => vit.shared(images, mask, drop_path),
        }
    }

    /// A copy for passes in the thread's precision, until the weights change. Where passes are in bf16 and
    /// not by the CPU's fused operations, the weights of the shared blocks' layers, and of the halvings
    /// between stages, are bf16, so that no product casts its weight; elsewhere it is the backbone itself.
    /// The gradient of such a weight is bf16, and so is the sum of several in one pass
    /// ([`crate::optim::gradients`] returns f32).
    ///
    /// Its passes panic in another precision.
    pub fn with_cast_weights(mut self) -> Self {
        layers::cast_weights(match &mut self {
            Self::Swin(swin) => swin.shared_layers_mut(),
            Self::Vit(vit) => vit.shared_layers_mut(),
        });
        self
    }

    /// The same with a mask token, zeros at first, for pre-training with masked patches.
    pub fn with_mask_token(mut self, device: &Device) -> Self {
        match &mut self {
            Self::Swin(swin) => {
                let channels = swin.config().sizes.embed_dim;
                swin.mask_token = Some(layers::mask_token(channels, device));
            }
            Self::Vit(vit) => {
                let channels = vit.config().sizes.embed_dim;
                vit.mask_token = Some(layers::mask_token(channels, device));
            }
        }
        self
    }

    /// The same without a mask token, and the token: what is done with a backbone after
    /// pre-training knows no masks.
    pub fn split_mask_token(mut self) -> (Self, Option<Param<Tensor<1>>>) {
        let token = match &mut self {
            Self::Swin(swin) => swin.mask_token.take(),
            Self::Vit(vit) => vit.mask_token.take(),
        };
        (self, token)
    }

    /// The same with the given mask token.
    pub fn join_mask_token(mut self, token: Option<Param<Tensor<1>>>) -> Self {
        match &mut self {
            Self::Swin(swin) => swin.mask_token = token,
            Self::Vit(vit) => vit.mask_token = token,
        }
        self
    }

    /// Whether it has a mask token.
    pub fn has_mask_token(&self) -> bool {
        match self {
            Self::Swin(swin) => swin.mask_token.is_some(),
            Self::Vit(vit) => vit.mask_token.is_some(),
        }
    }

    /// The second part of [`Backbone::forward`]: the conditional blocks under prompt weights, and
    /// the last norm.
    ///
    /// # Shapes
    /// - prompt_weights: [1, prompts]
    pub fn conditional(
        &self,
        shared: SharedFeatures,
        prompt_weights: &Tensor<2>,
        drop_path: Option<&mut Rng>,
    ) -> Features {
        match self {
            Self::Swin(swin) => swin.conditional(shared, prompt_weights, drop_path),
            Self::Vit(vit) => vit.conditional(shared, prompt_weights, drop_path),
        }
    }

    /// A copy of the last stage of a Swin with prompt weights folded in ([`Swin::last_stage`]);
    /// none of a ViT, or of a Swin of one stage.
    pub fn last_stage(&self, prompt_weights: PromptWeights) -> Option<LastStage> {
        match self {
            Self::Swin(swin) => swin.last_stage(prompt_weights),
            Self::Vit(_) => None,
        }
    }

    /// Weights of merged experts under each prompt, [prompts, experts] a block; empty without such
    /// experts.
    pub fn expert_weights(&self) -> Vec<Tensor<2>> {
        let moe: Vec<Option<&Moe>> = match self {
            Self::Swin(swin) => { swin.layers.iter() }
                .flat_map(|stage| &stage.blocks)
                .map(|block| block.moe.as_ref())
                .collect(),
            Self::Vit(vit) => vit.blocks.iter().map(|block| block.moe.as_ref()).collect(),
        };
        moe.into_iter()
            .flatten()
            .filter_map(Moe::expert_weights)
            .collect()
    }

    /// Layer and kind of every parameter.
    ///
    /// # Errors
    /// A parameter that no module of the backbone claims, or a claim without a parameter: a fault
    /// of the backbone's code, which the contract test finds.
    pub fn parameter_groups(&self) -> Result<ParameterGroups, ModelError> {
        let groups = match self {
            Self::Swin(swin) => swin.config().parameter_groups(),
            Self::Vit(vit) => vit.config().parameter_groups(),
        };
        let groups = match self.has_mask_token() {
            true => groups.with_mask_token(),
            false => groups,
        };
        groups.check(self)?;
        Ok(groups)
    }

    /// Its sizes.
    pub fn sizes(&self) -> Sizes {
        match self {
            Self::Swin(swin) => Sizes::Swin(swin.config().sizes.clone()),
            Self::Vit(vit) => Sizes::Vit(vit.config().sizes.clone()),
        }
    }

    /// Channels of the map and of the pooled features.
    pub fn channels(&self) -> usize {
        match self {
            Self::Swin(swin) => swin.channels(),
            Self::Vit(vit) => vit.config().sizes.embed_dim,
        }
    }

    /// Pixels of the image per position of the map, along each axis.
    pub fn stride(&self) -> usize {
        self.sizes().stride()
    }

    /// Pixels of the image per position of each different map of the pyramid, along each axis.
    pub fn strides(&self) -> Vec<usize> {
        match self {
            Self::Swin(swin) => swin.strides(),
            Self::Vit(_) => vec![self.stride()],
        }
    }

    /// Rows and columns of the map of an image of that size.
    pub fn grid(&self, height: usize, width: usize) -> [usize; 2] {
        self.sizes().grid([height, width])
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.num_params()
    }

    /// Whether its features depend on prompt weights: without an adapter they do not.
    pub fn has_prompts(&self) -> bool {
        let adapter = match self {
            Self::Swin(swin) => &swin.config().adapter,
            Self::Vit(vit) => &vit.config().adapter,
        };
        *adapter != Adapter::None
    }

    /// The same backbone with prompt weights folded into its parameters, for export: it ignores the
    /// prompt weights of [`Backbone::forward`], and its configuration's adapter is
    /// [`Adapter::folded`].
    pub fn fold(self, prompt_weights: PromptWeights) -> Self {
        match self {
            Self::Swin(swin) => Self::Swin(swin.fold(prompt_weights)),
            Self::Vit(vit) => Self::Vit(vit.fold(prompt_weights)),
        }
    }
}
