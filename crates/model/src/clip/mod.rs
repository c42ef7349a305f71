//! CLIP: a vision transformer and a text transformer with a common embedding space.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
//! (arXiv 2103.00020). The computation, the parameter names and their initialization are those of
//! OpenAI's and OpenCLIP's code, so a published checkpoint loads by name. Departures, none of which
//! changes a number:
//!
//! * the patch convolution is written as a matrix product over cut patches (kernel = stride, so it
//!   is one);
//! * position embeddings are resampled while running, for images of any size (see
//!   `resample_matrix`);
//! * texts may be shorter than the context: attention is causal, so tokens behind the end token
//!   have no effect.
//!
//! Dense features change the last block of the image tower, [`Dense`]:
//! ClearCLIP (arXiv 2407.12442), MaskCLIP (arXiv 2112.01071), SCLIP (arXiv 2312.01597).

mod block;
mod config;
mod dense;
mod init;
mod text;
mod vision;

use burn::{
    module::{Module, Param},
    nn::{Embedding, LayerNorm, LayerNormConfig},
    tensor::{Device, Int, Tensor, TensorData},
};
use rand_chacha::ChaCha8Rng;

use init::{BlockDraws, Fill, InitialDistribution};
use text::{causal_mask, end_positions};

pub use crate::kernels::activation::Activation;
pub use block::{ClipAttention, ClipBlock, ClipMlp, Transformer};
pub use config::{ClipConfig, ClipConfigError, TextConfig, VOCABULARY, VisionConfig};
pub use dense::Dense;
pub use vision::{PatchConvolution, VisionTransformer};

/// `ln(1 / 0.07)`: the first value of the learned log-temperature in OpenAI's and OpenCLIP's code.
pub const FIRST_LOGIT_SCALE: f32 = 2.659_26;

impl ClipConfig {
    /// A new model, initialized as OpenCLIP initializes it: PyTorch's defaults in the image tower,
    /// normal distributions by depth and width in the text tower.
    ///
    /// # Panics
    ///
    /// If the configuration is not valid; call [`ClipConfig::validate`] on one that comes from
    /// outside.
    pub fn init(&self, rng: &mut ChaCha8Rng, device: &Device) -> Clip {
        self.build(&mut Fill::Random(rng), device)
    }

    /// A model with zero weights, to load a checkpoint into.
    ///
    /// # Panics
    ///
    /// If the configuration is not valid; call [`ClipConfig::validate`] on one that comes from
    /// outside.
    pub fn zeros(&self, device: &Device) -> Clip {
        self.build(&mut Fill::Zero, device)
    }

    fn build(&self, fill: &mut Fill<'_>, device: &Device) -> Clip {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let (vision, text) = (&self.vision, &self.text);
        let [rows, columns] = self.grid(vision.image[0], vision.image[1]);
        let scale = (vision.width as f32).powf(-0.5);
        let norm = |width: usize| {
            LayerNormConfig::new(width)
                .with_epsilon(self.epsilon)
                .init(device)
        };
        let patch_fan = 3 * vision.patch * vision.patch;
        let visual = VisionTransformer {
            conv1: PatchConvolution {
                weight: fill.param(
                    [vision.width, 3, vision.patch, vision.patch],
                    InitialDistribution::Uniform((patch_fan as f32).powf(-0.5)),
                    device,
                ),
            },
            class_embedding: fill.param([vision.width], InitialDistribution::Normal(scale), device),
            positional_embedding: fill.param(
                [1 + rows * columns, vision.width],
                InitialDistribution::Normal(scale),
                device,
            ),
            ln_pre: norm(vision.width),
            transformer: Transformer {
                resblocks: (0..vision.layers)
                    .map(|_| {
                        ClipBlock::new(
                            [vision.width, vision.heads, vision.hidden],
                            &BlockDraws::torch(vision.width, vision.hidden),
                            self,
                            fill,
                            device,
                        )
                    })
                    .collect(),
            },
            ln_post: norm(vision.width),
            proj: fill.param(
                [vision.width, self.embed],
                InitialDistribution::Normal(scale),
                device,
            ),
            patch: vision.patch,
            grid: [rows, columns],
        };
        let draws = BlockDraws::text(text.width, text.layers);
        Clip {
            visual,
            token_embedding: Embedding {
                weight: fill.param(
                    [text.vocabulary, text.width],
                    InitialDistribution::Normal(0.02),
                    device,
                ),
            },
            positional_embedding: fill.param(
                [text.context, text.width],
                InitialDistribution::Normal(0.01),
                device,
            ),
            transformer: Transformer {
                resblocks: (0..text.layers)
                    .map(|_| {
                        let sizes = [text.width, text.heads, text.hidden];
                        ClipBlock::new(sizes, &draws, self, fill, device)
                    })
                    .collect(),
            },
            ln_final: norm(text.width),
            text_projection: fill.param(
                [text.width, self.embed],
                InitialDistribution::Normal((text.width as f32).powf(-0.5)),
                device,
            ),
            logit_scale: Param::from_data(TensorData::from([FIRST_LOGIT_SCALE]), device),
            config: self.clone(),
        }
    }
}

/// Both towers. Field names are OpenCLIP's, so that parameter paths need hardly any mapping.
#[derive(Module, Debug)]
pub struct Clip {
    /// The image tower.
    pub visual: VisionTransformer,
    /// [vocabulary, width].
    pub token_embedding: Embedding,
    /// Of the text tower: [context, width].
    pub positional_embedding: Param<Tensor<2>>,
    /// The text tower's blocks.
    pub transformer: Transformer,
    /// The text tower's last layer norm.
    pub ln_final: LayerNorm,
    /// [text width, embed].
    pub text_projection: Param<Tensor<2>>,
    /// `[1]`: logarithm of the factor on cosines.
    pub logit_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl Clip {
    /// The configuration the model was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The same model for images of another height and width in pixels: the position embeddings of
    /// the image tower are resampled once, as they would be for each image of that size (see
    /// `resample_matrix`).
    ///
    /// # Errors
    ///
    /// A size that the configuration does not allow, such as one below a patch.
    pub fn resized(mut self, image: [usize; 2]) -> Result<Self, ClipConfigError> {
        self.config.vision.image = image;
        self.config.validate()?;
        let grid = self.config.grid(image[0], image[1]);
        let positions = self.visual.positions(grid);
        self.visual.positional_embedding = self.visual.positional_embedding.map(|_| positions);
        self.visual.grid = grid;
        Ok(self)
    }

    /// Normalized image features.
    ///
    /// # Shapes
    ///
    /// - images: [batch, 3, height, width], of any size of at least one patch, normalized with the
    ///   mean and standard deviation that belong to the weights
    /// - output: [batch, embed], of length 1
    pub fn encode_image(&self, images: Tensor<4>) -> Tensor<2> {
        self.encode_image_patches(images, None)
    }

    /// As [`Clip::encode_image`], seeing only the patches of the given numbers (row-major), the
    /// same in the whole batch: training on a part of the patches costs in proportion (FLIP, arXiv
    /// 2212.00794).
    pub fn encode_image_patches(
        &self,
        images: Tensor<4>,
        patches: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        let mut x = self.visual.embed(images, patches);
        for block in &self.visual.transformer.resblocks {
            x = block.forward(x, None);
        }
        normalize(self.visual.pool(x))
    }

    /// Dense and pooled image features in one pass: all blocks but the last are shared.
    ///
    /// # Shapes
    ///
    /// - images: [batch, 3, height, width]
    /// - dense: [batch, embed, rows, columns], of length 1 over `embed`
    /// - pooled: [batch, embed], of length 1, equal to [`Clip::encode_image`]
    pub fn encode_image_dense(&self, images: Tensor<4>, dense: Dense) -> (Tensor<4>, Tensor<2>) {
        let [batch, _, height, width] = images.dims();
        let [rows, columns] = self.config.grid(height, width);
        let ([tokens], pooled) = self.encode_image_tokens(images, None, [dense]);
        let map = tokens
            .reshape([batch, rows, columns, self.config.embed])
            .permute([0, 3, 1, 2]);
        (map, pooled)
    }

    /// As [`Clip::encode_image_dense`] for several variants at once, seeing only the patches of the
    /// given numbers, and without arranging them in rows.
    ///
    /// Returns ([batch, patches, embed] for each variant, [batch, embed]), all of length 1 over
    /// `embed`.
    pub fn encode_image_tokens<const N: usize>(
        &self,
        images: Tensor<4>,
        patches: Option<Tensor<1, Int>>,
        dense: [Dense; N],
    ) -> ([Tensor<3>; N], Tensor<2>) {
        let [batch, _, _, _] = images.dims();
        let mut x = self.visual.embed(images, patches);
        let (last, blocks) = match self.visual.transformer.resblocks.split_last() {
            Some(split) => split,
            None => unreachable!("validated: at least one layer"),
        };
        for block in blocks {
            x = block.forward(x, None);
        }
        let (variants, class) = last.dense(x, dense);
        let tokens = variants.map(|tokens| {
            let [_, count, width] = tokens.dims();
            let patches = count - 1;
            let tokens = tokens.slice([0..batch, 1..count]);
            let tokens = self.visual.ln_post.forward(tokens);
            let tokens = tokens
                .reshape([batch * patches, width])
                .matmul(self.visual.proj.val());
            normalize(tokens).reshape([batch, patches, self.config.embed])
        });
        (tokens, normalize(self.visual.pool(class)))
    }

    /// Normalized text features.
    ///
    /// # Shapes
    ///
    /// - tokens: [batch, length], length at most the context; each row holds the end token, which
    ///   is the vocabulary's largest number, and anything behind it
    /// - output: [batch, embed], of length 1
    ///
    /// # Panics
    ///
    /// If a row is longer than the context, or holds a number outside the vocabulary.
    pub fn encode_text(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let [batch, length] = tokens.dims();
        let (context, width) = (self.config.text.context, self.config.text.width);
        assert!(
            length <= context,
            "{length} tokens; the context is {context}"
        );
        let ends = end_positions(&tokens, self.config.text.vocabulary);
        let positions = self.positional_embedding.val().slice([0..length]);
        let mut x = self.token_embedding.forward(tokens) + positions.unsqueeze();
        let mask = causal_mask(length, &x.device());
        for block in &self.transformer.resblocks {
            x = block.forward(x, Some(&mask));
        }
        let x = x.reshape([batch * length, width]).select(0, ends);
        normalize(self.ln_final.forward(x).matmul(self.text_projection.val()))
    }

    /// The factor on cosines, `exp(logit_scale)`: `[1]`.
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }
}

/// Each row divided by its length.
fn normalize(x: Tensor<2>) -> Tensor<2> {
    let length = (x.clone() * x.clone()).sum_dim(1).sqrt();
    x / length.clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn tiny() -> ClipConfig {
        ClipConfig {
            embed: 12,
            vision: VisionConfig {
                image: [32, 32],
                patch: 8,
                width: 24,
                layers: 2,
                heads: 3,
                hidden: 48,
            },
            text: TextConfig {
                context: 10,
                vocabulary: 50,
                width: 16,
                layers: 2,
                heads: 2,
                hidden: 32,
            },
            ..ClipConfig::mini()
        }
    }

    fn images(shape: [usize; 4], rng: &mut ChaCha8Rng, device: &Device) -> Tensor<4> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| init::normal(rng))
            .collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn largest_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn published_sizes() {
        assert_eq!(ClipConfig::vit_b_32().parameters(), 151_277_313);
        assert_eq!(ClipConfig::vit_b_16().parameters(), 149_620_737);
        assert_eq!(ClipConfig::vit_l_14().parameters(), 427_616_513);
        // Two bytes each: within the 16 MB that the program may ship.
        assert!(ClipConfig::mini().parameters() < 8_000_000);
        let clip = tiny().init(&mut ChaCha8Rng::seed_from_u64(0), &Device::flex());
        assert_eq!(clip.num_params(), tiny().parameters());
    }

    #[test]
    fn a_resized_model_gives_the_same_features() {
        let device = Device::flex();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let clip = tiny().init(&mut rng, &device);
        let x = images([2, 3, 40, 16], &mut rng, &device);
        let before = clip.encode_image(x.clone());
        let resized = clip.clone().resized([40, 16]).unwrap();
        assert_eq!(resized.config().vision.image, [40, 16]);
        assert_eq!(resized.num_params(), resized.config().parameters());
        assert!(largest_difference(before, resized.encode_image(x)) < 1e-5);
        assert!(clip.resized([4, 16]).is_err());
    }

    #[test]
    fn shapes_and_lengths_at_odd_sizes() {
        let device = Device::flex();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let clip = tiny().init(&mut rng, &device);
        for [height, width] in [[32, 32], [64, 32], [37, 21], [8, 8]] {
            let x = images([2, 3, height, width], &mut rng, &device);
            let alone = clip.encode_image(x.clone());
            for dense in [Dense::Clear, Dense::Mask, Dense::SelfSelf] {
                let (map, pooled) = clip.encode_image_dense(x.clone(), dense);
                assert_eq!(map.dims(), [2, 12, height / 8, width / 8]);
                assert!(largest_difference(pooled, alone.clone()) < 1e-5);
                let length = (map.clone() * map).sum_dim(1).sqrt();
                assert!((length - 1.0).abs().max().into_scalar::<f32>() < 1e-5);
            }
        }
    }

    #[test]
    fn gradients_follow_the_same_numbers() {
        let plain = Device::flex();
        let device = plain.clone().autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let clip = tiny().init(&mut rng, &device);
        let x = images([2, 3, 40, 24], &mut rng, &plain);
        let tracked = clip.encode_image(Tensor::from_inner(x.clone()));
        let untracked = clip.valid().encode_image(x);
        assert!(largest_difference(tracked.clone().inner(), untracked) < 1e-5);

        let tokens = Tensor::<2, Int>::from_data([[48, 3, 4, 49, 0], [48, 5, 49, 0, 0]], &device);
        let texts = clip.encode_text(tokens);
        let grads = (tracked.matmul(texts.transpose()) * clip.scale().unsqueeze())
            .powi_scalar(2)
            .sum()
            .backward();
        let finite =
            |g: Option<Tensor<2>>| g.is_some_and(|g| g.abs().sum().into_scalar::<f32>() > 0.0);
        assert!(finite(clip.visual.positional_embedding.val().grad(&grads)));
        assert!(finite(clip.token_embedding.weight.val().grad(&grads)));
        assert!(finite(
            clip.visual.transformer.resblocks[0]
                .mlp
                .c_fc
                .weight
                .val()
                .grad(&grads)
        ));
    }

    #[test]
    fn tokens_behind_the_end_have_no_effect() {
        let device = Device::flex();
        let clip = tiny().init(&mut ChaCha8Rng::seed_from_u64(3), &device);
        let short = Tensor::<2, Int>::from_data([[48, 7, 9, 49]], &device);
        let long = Tensor::<2, Int>::from_data([[48, 7, 9, 49, 5, 0, 49, 0]], &device);
        assert!(largest_difference(clip.encode_text(short), clip.encode_text(long)) < 1e-6);
    }

    #[test]
    fn all_patches_named_equal_all_patches() {
        let device = Device::flex();
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let clip = tiny().init(&mut rng, &device);
        let x = images([1, 3, 32, 32], &mut rng, &device);
        let every = Tensor::<1, Int>::arange(0..16, &device);
        let named = clip.encode_image_patches(x.clone(), Some(every.clone()));
        assert!(largest_difference(named, clip.encode_image(x.clone())) < 1e-6);
        let ([named], _) = clip.encode_image_tokens(x.clone(), Some(every), [Dense::Clear]);
        let (map, _) = clip.encode_image_dense(x, Dense::Clear);
        let map = map.permute([0, 2, 3, 1]).reshape([1, 16, 12]);
        assert!(largest_difference(named, map) < 1e-6);
    }

    #[test]
    fn absurd_configurations_are_refused() {
        let refused = |change: fn(&mut ClipConfig), field: &str| {
            let mut config = tiny();
            change(&mut config);
            assert_eq!(config.validate().map_err(|e| e.field), Err(field));
        };
        refused(|c| c.vision.width = 0, "vision.width");
        refused(|c| c.vision.width = usize::MAX, "vision.width");
        refused(|c| c.vision.heads = 5, "vision.heads");
        refused(|c| c.vision.heads = 0, "vision.heads");
        refused(|c| c.vision.image = [4, 32], "vision.image");
        refused(|c| c.text.context = 2, "text.context");
        refused(|c| c.text.layers = 0, "text.layers");
        refused(|c| c.epsilon = f64::NAN, "epsilon");
        assert_eq!(tiny().validate(), Ok(()));
    }
}
