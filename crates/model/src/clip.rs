//! CLIP: a vision transformer and a text transformer that meet in one space.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
//! (arXiv 2103.00020). The computation, the parameter names and their initialisation are those of OpenAI's
//! and OpenCLIP's code, so a published checkpoint loads by name. Departures, none of which changes a number:
//!
//! * the patch convolution is written as a matrix product over cut patches (kernel = stride, so it is one);
//! * position embeddings are resampled while running, for images of any size (see [`resample_matrix`]);
//! * texts may be shorter than the context: attention is causal, so what follows the end token is never seen.
//!
//! Dense features change the last block of the image tower, [`Dense`]:
//! ClearCLIP (arXiv 2407.12442), MaskCLIP (arXiv 2112.01071), SCLIP (arXiv 2312.01597).

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::{gelu, sigmoid};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::kernels::{self, attention::Grid, scalar};
use crate::layers::{self, project};

/// The number of tokens of CLIP's byte-pair vocabulary.
pub const VOCABULARY: usize = 49_408;
/// `ln(1 / 0.07)`: the first value of the learned log-temperature in OpenAI's and OpenCLIP's code.
pub const FIRST_LOGIT_SCALE: f32 = 2.659_26;

/// The non-linearity inside the MLPs. The two differ by up to 0.02, enough to spoil a checkpoint that was
/// trained with the other, so it is always read from the checkpoint's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`: OpenAI's checkpoints and a few of OpenCLIP's.
    QuickGelu,
    /// `x · Φ(x)` with the exact error function: most of OpenCLIP's checkpoints.
    Gelu,
}

impl Activation {
    fn forward(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Self::Gelu => gelu(x),
        }
    }

    fn fused(self) -> scalar::Activation {
        match self {
            Self::QuickGelu => scalar::Activation::QuickGelu,
            Self::Gelu => scalar::Activation::Gelu,
        }
    }
}

/// The image tower's sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Height and width, in pixels, at which the stored position embeddings apply as they are.
    pub image: [usize; 2],
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Channels of a token.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Hidden channels of the MLPs.
    pub hidden: usize,
}

/// The text tower's sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Longest text in tokens, with the start and end tokens.
    pub context: usize,
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Channels of a token.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Hidden channels of the MLPs.
    pub hidden: usize,
}

/// Both towers' sizes and what they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Channels of the space in which images and texts are compared.
    pub embed: usize,
    /// The MLPs' non-linearity, in both towers.
    pub activation: Activation,
    /// Added to the variance in every layer norm.
    pub epsilon: f64,
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
}

/// A configuration that cannot be built, or that asks for more than any published CLIP does.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("CLIP configuration: `{field}` is {found}; expected {expected}")]
pub struct ClipConfigError {
    /// The field, as a path.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// What would be accepted.
    pub expected: &'static str,
}

impl ClipConfig {
    /// OpenAI's ViT-B/32 at 224: 151,277,313 parameters.
    pub fn vit_b_32() -> Self {
        Self::vit_base(32)
    }

    /// OpenAI's ViT-B/16 at 224: 149,620,737 parameters.
    pub fn vit_b_16() -> Self {
        Self::vit_base(16)
    }

    /// OpenAI's ViT-L/14 at 224: 427,616,513 parameters.
    pub fn vit_l_14() -> Self {
        Self {
            embed: 768,
            vision: VisionConfig {
                image: [224, 224],
                patch: 14,
                width: 1024,
                layers: 24,
                heads: 16,
                hidden: 4096,
            },
            text: TextConfig {
                width: 768,
                heads: 12,
                hidden: 3072,
                ..Self::vit_base(16).text
            },
            ..Self::vit_base(16)
        }
    }

    /// A stand-in small enough to train on a CPU and to ship with the program (our choice, about 7.8 million
    /// parameters, most of them the token table): 128×64 pixels in patches of 8.
    pub fn mini() -> Self {
        Self {
            embed: 128,
            activation: Activation::Gelu,
            epsilon: 1e-5,
            vision: VisionConfig {
                image: [128, 64],
                patch: 8,
                width: 192,
                layers: 6,
                heads: 3,
                hidden: 768,
            },
            text: TextConfig {
                context: 48,
                vocabulary: VOCABULARY,
                width: 96,
                layers: 3,
                heads: 3,
                hidden: 384,
            },
        }
    }

    fn vit_base(patch: usize) -> Self {
        Self {
            embed: 512,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
            vision: VisionConfig {
                image: [224, 224],
                patch,
                width: 768,
                layers: 12,
                heads: 12,
                hidden: 3072,
            },
            text: TextConfig {
                context: 77,
                vocabulary: VOCABULARY,
                width: 512,
                layers: 12,
                heads: 8,
                hidden: 2048,
            },
        }
    }

    /// Checks every size: positive, within generous bounds (so that a configuration from a file cannot ask for
    /// absurd allocations), heads dividing widths, at least one patch.
    pub fn validate(&self) -> Result<(), ClipConfigError> {
        let within = |field, value: usize, limit: usize, expected| {
            if (1..=limit).contains(&value) {
                Ok(())
            } else {
                Err(ClipConfigError {
                    field,
                    found: value.to_string(),
                    expected,
                })
            }
        };
        let divides = |field, heads: usize, width: usize| {
            if heads > 0 && width.is_multiple_of(heads) {
                Ok(())
            } else {
                Err(ClipConfigError {
                    field,
                    found: format!("{heads} with a width of {width}"),
                    expected: "a divisor of the width",
                })
            }
        };
        let (vision, text) = (&self.vision, &self.text);
        within("embed", self.embed, 8192, "1 to 8192")?;
        if !(self.epsilon > 0.0 && self.epsilon < 0.1) {
            return Err(ClipConfigError {
                field: "epsilon",
                found: self.epsilon.to_string(),
                expected: "a number between 0 and 0.1",
            });
        }
        within("vision.patch", vision.patch, 256, "1 to 256")?;
        for side in vision.image {
            within("vision.image", side, 4096, "1 to 4096")?;
            if side < vision.patch {
                return Err(ClipConfigError {
                    field: "vision.image",
                    found: format!("{side} with a patch of {}", vision.patch),
                    expected: "at least one patch",
                });
            }
        }
        within("vision.width", vision.width, 8192, "1 to 8192")?;
        within("vision.layers", vision.layers, 128, "1 to 128")?;
        within("vision.hidden", vision.hidden, 65_536, "1 to 65536")?;
        divides("vision.heads", vision.heads, vision.width)?;
        within("text.context", text.context, 4096, "3 to 4096")?;
        within("text.context", text.context / 3, 4096, "3 to 4096")?;
        within("text.vocabulary", text.vocabulary, 1 << 20, "1 to 1048576")?;
        within("text.width", text.width, 8192, "1 to 8192")?;
        within("text.layers", text.layers, 128, "1 to 128")?;
        within("text.hidden", text.hidden, 65_536, "1 to 65536")?;
        divides("text.heads", text.heads, text.width)
    }

    /// Rows and columns of patches of an image of `height`×`width` pixels; what is left over at the right and
    /// at the bottom is not seen, as in the convolution of the published models.
    pub fn grid(&self, height: usize, width: usize) -> [usize; 2] {
        [height / self.vision.patch, width / self.vision.patch]
    }

    /// The number of parameters, without building anything.
    pub fn parameters(&self) -> usize {
        let blocks = |width: usize, hidden: usize, layers: usize| {
            layers * (4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width)
        };
        let (vision, text) = (&self.vision, &self.text);
        let [rows, columns] = self.grid(vision.image[0], vision.image[1]);
        let image = vision.width * (1 + 3 * vision.patch * vision.patch + rows * columns + 1 + 4)
            + blocks(vision.width, vision.hidden, vision.layers)
            + vision.width * self.embed;
        let words = text.width * (text.vocabulary + text.context + 2)
            + blocks(text.width, text.hidden, text.layers)
            + text.width * self.embed;
        image + words + 1
    }

    /// Floating-point operations of the products of the image tower on an image of its size, two a multiplication.
    pub fn operations(&self) -> usize {
        let vision = &self.vision;
        let [rows, columns] = self.grid(vision.image[0], vision.image[1]);
        let (patches, width) = (rows * columns, vision.width);
        let block = layers::block_operations(patches + 1, patches + 1, width, vision.hidden);
        2 * patches * 3 * vision.patch.pow(2) * width + vision.layers * block
    }

    /// A new model, initialised as OpenCLIP initialises it: PyTorch's defaults in the image tower, normal
    /// distributions by depth and width in the text tower.
    ///
    /// # Panics
    ///
    /// If the configuration is not valid; call [`ClipConfig::validate`] on one that comes from outside.
    pub fn init(&self, rng: &mut ChaCha8Rng, device: &Device) -> Clip {
        self.build(&mut Fill::Random(rng), device)
    }

    /// A model whose weights are all zero, to load a checkpoint into without drawing numbers for nothing.
    ///
    /// # Panics
    ///
    /// If the configuration is not valid; call [`ClipConfig::validate`] on one that comes from outside.
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
                    Draw::Uniform((patch_fan as f32).powf(-0.5)),
                    device,
                ),
            },
            class_embedding: fill.param([vision.width], Draw::Normal(scale), device),
            positional_embedding: fill.param(
                [1 + rows * columns, vision.width],
                Draw::Normal(scale),
                device,
            ),
            ln_pre: norm(vision.width),
            transformer: Transformer {
                resblocks: (0..vision.layers)
                    .map(|_| {
                        Block::new(
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
            proj: fill.param([vision.width, self.embed], Draw::Normal(scale), device),
            patch: vision.patch,
            grid: [rows, columns],
        };
        let draws = BlockDraws::text(text.width, text.layers);
        Clip {
            visual,
            token_embedding: Embedding {
                weight: fill.param([text.vocabulary, text.width], Draw::Normal(0.02), device),
            },
            positional_embedding: fill.param(
                [text.context, text.width],
                Draw::Normal(0.01),
                device,
            ),
            transformer: Transformer {
                resblocks: (0..text.layers)
                    .map(|_| {
                        let sizes = [text.width, text.heads, text.hidden];
                        Block::new(sizes, &draws, self, fill, device)
                    })
                    .collect(),
            },
            ln_final: norm(text.width),
            text_projection: fill.param(
                [text.width, self.embed],
                Draw::Normal((text.width as f32).powf(-0.5)),
                device,
            ),
            logit_scale: Param::from_data(TensorData::from([FIRST_LOGIT_SCALE]), device),
            config: self.clone(),
        }
    }
}

/// Which dense features the last block of the image tower gives. In all three, the tokens then pass the final
/// layer norm and the projection, and are L2-normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dense {
    /// ClearCLIP: `softmax(q qᵀ / √d) v`, with no residual and no MLP.
    #[default]
    Clear,
    /// MaskCLIP: the value projection alone (and the output projection that belongs to it): no attention, no
    /// residual, no MLP.
    Mask,
    /// SCLIP: `(softmax(q qᵀ / √d) + softmax(k kᵀ / √d)) v`, with residual and MLP.
    #[serde(rename = "self")]
    SelfSelf,
}

impl std::str::FromStr for Dense {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "clear" => Ok(Self::Clear),
            "mask" => Ok(Self::Mask),
            "self" => Ok(Self::SelfSelf),
            _ => Err(format!(
                "dense features `{name}`: expected clear, mask or self"
            )),
        }
    }
}

impl std::fmt::Display for Dense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clear => "clear",
            Self::Mask => "mask",
            Self::SelfSelf => "self",
        })
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
    /// [1]: logarithm of the factor on cosines.
    pub logit_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl Clip {
    /// The configuration the model was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The same model for images of another height and width in pixels: the position embeddings of the image tower are
    /// resampled once, as they would be for each image of that size (see [`resample_matrix`]).
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

    /// Normalised image features.
    ///
    /// # Shapes
    ///
    /// - images: [batch, 3, height, width], of any size of at least one patch, normalised with the mean and
    ///   standard deviation that belong to the weights
    /// - output: [batch, embed], of length 1
    pub fn encode_image(&self, images: Tensor<4>) -> Tensor<2> {
        self.encode_image_patches(images, None)
    }

    /// As [`Clip::encode_image`], seeing only the patches of the given numbers (row-major), the same in the
    /// whole batch: training on a part of the patches costs in proportion (FLIP, arXiv 2212.00794).
    pub fn encode_image_patches(
        &self,
        images: Tensor<4>,
        patches: Option<Tensor<1, Int>>,
    ) -> Tensor<2> {
        let mut x = self.visual.embed(images, patches);
        for block in &self.visual.transformer.resblocks {
            x = block.forward(x, None);
        }
        normalise(self.visual.pool(x))
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

    /// As [`Clip::encode_image_dense`] for several variants at once, seeing only the patches of the given numbers,
    /// and without arranging them in rows.
    ///
    /// Returns ([batch, patches, embed] for each variant, [batch, embed]), all of length 1 over `embed`.
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
            normalise(tokens).reshape([batch, patches, self.config.embed])
        });
        (tokens, normalise(self.visual.pool(class)))
    }

    /// Normalised text features.
    ///
    /// # Shapes
    ///
    /// - tokens: [batch, length], length at most the context; each row holds the end token, which is the
    ///   vocabulary's largest number, and anything behind it
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
        let ends = self.ends(&tokens);
        let positions = self.positional_embedding.val().slice([0..length]);
        let mut x = self.token_embedding.forward(tokens) + positions.unsqueeze();
        let mask = causal_mask(length, &x.device());
        for block in &self.transformer.resblocks {
            x = block.forward(x, Some(&mask));
        }
        let x = x.reshape([batch * length, width]).select(0, ends);
        normalise(self.ln_final.forward(x).matmul(self.text_projection.val()))
    }

    /// The place of each row's end token (the first of its largest numbers) among all tokens: [batch].
    fn ends(&self, tokens: &Tensor<2, Int>) -> Tensor<1, Int> {
        let [batch, length] = tokens.dims();
        let vocabulary = self.config.text.vocabulary as i64;
        let numbers: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        let ends: Vec<i64> = numbers
            .chunks_exact(length)
            .enumerate()
            .map(|(row, numbers)| {
                let mut end = 0;
                for (place, &number) in numbers.iter().enumerate() {
                    assert!(
                        (0..vocabulary).contains(&number),
                        "token {number}; the vocabulary has {vocabulary}"
                    );
                    if number > numbers[end] {
                        end = place;
                    }
                }
                (row * length + end) as i64
            })
            .collect();
        Tensor::from_data(TensorData::new(ends, [batch]), &tokens.device())
    }

    /// The factor on cosines, `exp(logit_scale)`: [1].
    pub fn scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }
}

/// The image tower.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Cuts and projects patches.
    pub conv1: PatchConvolution,
    /// [width].
    pub class_embedding: Param<Tensor<1>>,
    /// [1 + rows·columns, width]: the class token's first, then the patches', row-major.
    pub positional_embedding: Param<Tensor<2>>,
    /// Layer norm before the blocks.
    pub ln_pre: LayerNorm,
    /// The blocks.
    pub transformer: Transformer,
    /// Layer norm behind the blocks.
    pub ln_post: LayerNorm,
    /// [width, embed].
    pub proj: Param<Tensor<2>>,
    #[module(skip)]
    patch: usize,
    #[module(skip)]
    grid: [usize; 2],
}

impl VisionTransformer {
    /// Images to tokens: [batch, 3, height, width] to [batch, 1 + patches, width].
    fn embed(&self, images: Tensor<4>, patches: Option<Tensor<1, Int>>) -> Tensor<3> {
        let [batch, channels, height, width] = images.dims();
        assert_eq!(channels, 3, "images have {channels} channels; expected 3");
        let grid = [height / self.patch, width / self.patch];
        assert!(
            grid[0] > 0 && grid[1] > 0,
            "an image of {height}x{width} holds no patch of {}",
            self.patch
        );
        let positions = self.positions(grid);
        let [_, dim] = positions.dims();
        let count = grid[0] * grid[1];
        let (mut tokens, mut patch_positions) = (
            cut_patches(images, self.patch),
            positions.clone().slice([1..1 + count]),
        );
        if let Some(patches) = patches {
            tokens = tokens.select(1, patches.clone());
            patch_positions = patch_positions.select(0, patches);
        }
        let weight = self.conv1.weight.val();
        let [_, _, p, q] = weight.dims();
        let weight = weight.reshape([dim, 3 * p * q]).transpose();
        let tokens =
            burn::tensor::module::linear(tokens, weight, None) + patch_positions.unsqueeze::<3>();
        let class = (self.class_embedding.val().unsqueeze::<2>() + positions.slice([0..1]))
            .unsqueeze::<3>()
            .expand([batch, 1, dim]);
        self.ln_pre.forward(Tensor::cat(vec![class, tokens], 1))
    }

    /// Position embeddings for a grid: [1 + rows·columns, width].
    fn positions(&self, grid: [usize; 2]) -> Tensor<2> {
        let all = self.positional_embedding.val();
        if grid == self.grid {
            return all;
        }
        let count = all.dims()[0];
        let map = resample_grid(all.clone().slice([1..count]), self.grid, grid);
        Tensor::cat(vec![all.slice([0..1]), map], 0)
    }

    /// The class token's feature, not normalised: [batch, tokens, width] to [batch, embed].
    fn pool(&self, x: Tensor<3>) -> Tensor<2> {
        let [batch, _, width] = x.dims();
        let class = x.slice([0..batch, 0..1]).reshape([batch, width]);
        self.ln_post.forward(class).matmul(self.proj.val())
    }
}

/// The patch embedding's weight, in the convolution's layout.
#[derive(Module, Debug)]
pub struct PatchConvolution {
    /// [width, 3, patch, patch].
    pub weight: Param<Tensor<4>>,
}

/// A stack of blocks.
#[derive(Module, Debug)]
pub struct Transformer {
    /// The blocks, in order.
    pub resblocks: Vec<Block>,
}

/// Pre-norm attention and MLP, each with a residual.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub ln_1: LayerNorm,
    /// The attention.
    pub attn: Attention,
    /// Before the MLP.
    pub ln_2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// ε of the norms.
    #[module(skip)]
    epsilon: f64,
}

impl Block {
    fn new(
        [width, heads, hidden]: [usize; 3],
        draws: &BlockDraws,
        config: &ClipConfig,
        fill: &mut Fill<'_>,
        device: &Device,
    ) -> Self {
        let norm = LayerNormConfig::new(width).with_epsilon(config.epsilon);
        Self {
            ln_1: norm.init(device),
            attn: Attention {
                in_proj: fill.linear([width, 3 * width], draws.in_proj, Draw::Zero, device),
                out_proj: fill.linear([width, width], draws.out_proj, Draw::Zero, device),
                heads,
            },
            ln_2: norm.init(device),
            mlp: Mlp {
                c_fc: fill.linear([width, hidden], draws.c_fc, draws.c_fc_bias, device),
                c_proj: fill.linear([hidden, width], draws.c_proj, draws.c_proj_bias, device),
                activation: config.activation,
            },
            epsilon: config.epsilon,
        }
    }

    /// x: [batch, tokens, width]; mask: [1, 1, tokens, tokens], a [`causal_mask`], added to the scores.
    fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4>>) -> Tensor<3> {
        if kernels::can_fuse(&x) {
            let Attention {
                in_proj,
                out_proj,
                heads,
            } = &self.attn;
            let parameters =
                kernels::attention::Parameters::new(&self.ln_1, in_proj, out_proj, None);
            let grid = Arc::new(Grid::whole(x.dims()[1], mask.is_some()));
            let x = kernels::attention::attention(x, parameters, self.epsilon, *heads, grid, None);
            return self.feed(x);
        }
        let [q, k, v] = self.attn.project(self.ln_1.forward(x.clone()));
        let x = x + self.attn.output(attend(q, k, v, mask));
        self.feed(x)
    }

    fn feed(&self, x: Tensor<3>) -> Tensor<3> {
        if kernels::can_fuse(&x) {
            let Mlp {
                c_fc,
                c_proj,
                activation,
            } = &self.mlp;
            let parameters = kernels::mlp::Parameters::new(&self.ln_2, c_fc, c_proj);
            return kernels::mlp::mlp(x, parameters, self.epsilon, activation.fused(), None);
        }
        x.clone() + self.mlp.forward(self.ln_2.forward(x))
    }

    /// The last block of dense features: every token by each variant, and the class token as always.
    ///
    /// Returns ([batch, tokens, width] for each variant, [batch, 1, width]).
    fn dense<const N: usize>(
        &self,
        x: Tensor<3>,
        dense: [Dense; N],
    ) -> ([Tensor<3>; N], Tensor<3>) {
        let [batch, _, _] = x.dims();
        let [q, k, v] = self.attn.project(self.ln_1.forward(x.clone()));
        let [_, heads, _, _] = q.dims();
        let class_query = q.clone().slice([0..batch, 0..heads, 0..1]);
        let class = attend(class_query, k.clone(), v.clone(), None);
        let class = self.feed(x.clone().slice([0..batch, 0..1]) + self.attn.output(class));
        let itself = |x: &Tensor<4>| attend(x.clone(), x.clone(), v.clone(), None);
        let tokens = dense.map(|dense| match dense {
            Dense::Clear => self.attn.output(itself(&q)),
            Dense::Mask => self.attn.output(v.clone()),
            Dense::SelfSelf => {
                let both = self.attn.output(itself(&q) + itself(&k));
                self.feed(x.clone() + both)
            }
        });
        (tokens, class)
    }
}

/// Multi-head attention with one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// [width, 3·width]: queries, keys, values.
    pub in_proj: Linear,
    /// [width, width].
    pub out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

impl Attention {
    /// [batch, tokens, width] to three times [batch, heads, tokens, width / heads].
    fn project(&self, x: Tensor<3>) -> [Tensor<4>; 3] {
        let [batch, tokens, width] = x.dims();
        let qkv = project(x, &self.in_proj);
        let part = |index: usize| {
            qkv.clone()
                .slice([0..batch, 0..tokens, index * width..(index + 1) * width])
                .reshape([batch, tokens, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        [part(0), part(1), part(2)]
    }

    /// [batch, heads, tokens, width / heads] to [batch, tokens, width].
    fn output(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, dim] = x.dims();
        let x = x.swap_dims(1, 2).reshape([batch, tokens, heads * dim]);
        project(x, &self.out_proj)
    }
}

/// Two linear layers with the activation between.
#[derive(Module, Debug)]
pub struct Mlp {
    /// [width, hidden].
    pub c_fc: Linear,
    /// [hidden, width].
    pub c_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let active = self.activation.forward(project(x, &self.c_fc));
        project(active, &self.c_proj)
    }
}

/// `softmax(q kᵀ / √d + mask) v`, all [batch, heads, tokens, d].
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<4>>) -> Tensor<4> {
    match mask {
        None => layers::attend([q, k, v], None),
        // Minus infinity is not for a fused operation to meet.
        Some(mask) => layers::attend_in_steps([q, k, v], Some(mask.clone())),
    }
}

/// Minus infinity above the diagonal, 0 elsewhere: [1, 1, tokens, tokens].
fn causal_mask(tokens: usize, device: &Device) -> Tensor<4> {
    let mut mask = vec![0f32; tokens * tokens];
    for row in 0..tokens {
        mask[row * tokens + row + 1..(row + 1) * tokens].fill(f32::NEG_INFINITY);
    }
    Tensor::from_data(TensorData::new(mask, [1, 1, tokens, tokens]), device)
}

/// [batch, 3, height, width] to [batch, rows·columns, 3·patch·patch], the convolution's order inside a patch.
fn cut_patches(images: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = images.dims();
    let [rows, columns] = [height / patch, width / patch];
    images
        .slice([0..batch, 0..channels, 0..rows * patch, 0..columns * patch])
        .reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, rows * columns, channels * patch * patch])
}

/// Each row divided by its length.
fn normalise(x: Tensor<2>) -> Tensor<2> {
    let length = (x.clone() * x.clone()).sum_dim(1).sqrt();
    x / length.clamp_min(1e-12)
}

/// Resamples embeddings of the positions of a grid to another grid, see [`resample_matrix`].
///
/// map: [rows·columns, dim] of the grid `from` → [rows·columns, dim] of the grid `to`.
pub fn resample_grid(map: Tensor<2>, from: [usize; 2], to: [usize; 2]) -> Tensor<2> {
    let dim = map.dims()[1];
    let device = map.device();
    let matrix = |from, to| {
        let data = TensorData::new(resample_matrix(from, to), [to, from]);
        Tensor::<2>::from_data(data, &device)
    };
    // [rows, columns·dim], then [new rows·columns, dim] with the columns in front of the product.
    let map = map.reshape([from[0], from[1] * dim]);
    let map = matrix(from[0], to[0]).matmul(map);
    let map = map.reshape([to[0], from[1], dim]);
    let map = matrix(from[1], to[1]).unsqueeze::<3>().matmul(map);
    map.reshape([to[0] * to[1], dim])
}

/// The matrix [to, from] that resamples a line of `from` values to `to` values, row-major: cubic (a = −1/2),
/// widened when shrinking, without aligned corners. It is `interpolate(mode="bicubic", antialias=True)` of
/// PyTorch in one dimension, which OpenCLIP uses on position embeddings when it loads a checkpoint at another
/// size (Hugging Face's option to interpolate, without antialias and with a = −3/4, gives other numbers).
pub fn resample_matrix(from: usize, to: usize) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    let widen = scale.max(1.0);
    let support = 2.0 * widen;
    let mut matrix = vec![0f32; to * from];
    for (row, line) in matrix.chunks_exact_mut(from).enumerate() {
        let centre = scale * (row as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|column| cubic((column as f64 - centre + 0.5) / widen))
            .collect();
        let total: f64 = weights.iter().sum();
        for (column, weight) in (first..end).zip(weights) {
            line[column] = (weight / total) as f32;
        }
    }
    matrix
}

/// Keys' cubic kernel with a = −1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

/// A distribution to draw a parameter from.
#[derive(Clone, Copy, Debug)]
enum Draw {
    Zero,
    /// Mean 0 and this standard deviation.
    Normal(f32),
    /// Between minus and plus this bound.
    Uniform(f32),
}

/// The distributions of a block's parameters; the attention's biases start at zero.
struct BlockDraws {
    in_proj: Draw,
    out_proj: Draw,
    c_fc: Draw,
    c_fc_bias: Draw,
    c_proj: Draw,
    c_proj_bias: Draw,
}

impl BlockDraws {
    /// PyTorch's defaults: Xavier for the fused projection, `±1/√fan_in` elsewhere.
    fn torch(width: usize, hidden: usize) -> Self {
        let bound = |fan: usize| Draw::Uniform((fan as f32).powf(-0.5));
        Self {
            in_proj: Draw::Uniform((6.0 / (4 * width) as f32).sqrt()),
            out_proj: bound(width),
            c_fc: bound(width),
            c_fc_bias: bound(width),
            c_proj: bound(hidden),
            c_proj_bias: bound(hidden),
        }
    }

    /// The text tower's: normal by width and depth; the MLP's biases keep PyTorch's default.
    fn text(width: usize, layers: usize) -> Self {
        let w = (width as f32).powf(-0.5);
        let projection = Draw::Normal(w * (2.0 * layers as f32).powf(-0.5));
        Self {
            in_proj: Draw::Normal(w),
            out_proj: projection,
            c_fc: Draw::Normal((2.0 * width as f32).powf(-0.5)),
            c_fc_bias: Draw::Uniform(w),
            c_proj: projection,
            c_proj_bias: Draw::Uniform(w / 2.0),
        }
    }
}

/// Where the first weights come from.
enum Fill<'a> {
    Zero,
    Random(&'a mut ChaCha8Rng),
}

impl Fill<'_> {
    fn param<const D: usize>(
        &mut self,
        shape: [usize; D],
        draw: Draw,
        device: &Device,
    ) -> Param<Tensor<D>> {
        let count = shape.iter().product();
        let values: Vec<f32> = match (self, draw) {
            (Self::Zero, _) | (_, Draw::Zero) => vec![0.0; count],
            (Self::Random(rng), Draw::Normal(std)) => {
                (0..count).map(|_| std * normal(rng)).collect()
            }
            (Self::Random(rng), Draw::Uniform(bound)) => (0..count)
                .map(|_| rng.random_range(-bound..bound))
                .collect(),
        };
        Param::from_data(TensorData::new(values, shape), device)
    }

    fn linear(
        &mut self,
        [inputs, outputs]: [usize; 2],
        weight: Draw,
        bias: Draw,
        device: &Device,
    ) -> Linear {
        Linear {
            weight: self.param([inputs, outputs], weight, device),
            bias: Some(self.param([outputs], bias, device)),
        }
    }
}

/// A standard normal number (Box–Muller).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
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
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| normal(rng)).collect();
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
    fn a_resized_model_sees_images_of_that_size_as_before() {
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
    fn what_follows_the_end_is_never_seen() {
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
    fn resampling_to_the_same_size_is_the_identity_and_rows_sum_to_one() {
        let same = resample_matrix(7, 7);
        for (index, value) in same.iter().enumerate() {
            let expected = if index % 8 == 0 { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-6);
        }
        for (from, to) in [(14, 32), (14, 5), (1, 9), (9, 1)] {
            for row in resample_matrix(from, to).chunks_exact(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
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
