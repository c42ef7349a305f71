//! Sizes of CLIP's two towers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{kernels::activation::Activation, layers};

/// The number of tokens of CLIP's byte-pair vocabulary.
pub const VOCABULARY: usize = 49_408;

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

/// The sizes in lines of a name and its value, for people.
impl fmt::Display for ClipConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vision, text) = (&self.vision, &self.text);
        let [height, width] = vision.image;
        writeln!(
            f,
            "image tower {height}x{width} pixels (height x width), patches of {}, {} layers, width {}, {} heads, MLP {}",
            vision.patch, vision.layers, vision.width, vision.heads, vision.hidden
        )?;
        writeln!(
            f,
            "text tower  {} tokens of {}, {} layers, width {}, {} heads, MLP {}",
            text.context, text.vocabulary, text.layers, text.width, text.heads, text.hidden
        )?;
        write!(
            f,
            "embedding   {} channels; {}, layer norm epsilon {}; {:.1} M parameters",
            self.embed,
            self.activation,
            self.epsilon,
            self.parameters() as f64 / 1e6
        )
    }
}

impl ClipConfig {
    /// Two layers on 4×4 patches of 32×32 pixels, for tests.
    pub fn tiny() -> Self {
        Self {
            embed: 16,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
            vision: VisionConfig {
                image: [32, 32],
                patch: 8,
                width: 24,
                layers: 2,
                heads: 2,
                hidden: 48,
            },
            text: TextConfig {
                context: 16,
                vocabulary: 49_408,
                width: 16,
                layers: 1,
                heads: 2,
                hidden: 32,
            },
        }
    }

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

    /// clasp-mini, small enough to train on a CPU and to ship with the program (our choice, about
    /// 7.8 million parameters, most of them the token table): 128×64 pixels in patches of 8.
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

    /// Checks every size: positive, within generous bounds (so that a configuration from a file
    /// cannot ask for absurd allocations), heads dividing widths, at least one patch.
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

    /// Rows and columns of patches of an image of `height`×`width` pixels; what is left over at the
    /// right and at the bottom is not seen, as in the convolution of the published models.
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

    /// Floating-point operations of the matrix products of the image tower on an image of its size,
    /// two a multiplication.
    pub fn operations(&self) -> usize {
        let vision = &self.vision;
        let [rows, columns] = self.grid(vision.image[0], vision.image[1]);
        let (patches, width) = (rows * columns, vision.width);
        let block = layers::block_operations(patches + 1, patches + 1, width, vision.hidden);
        2 * patches * 3 * vision.patch.pow(2) * width + vision.layers * block
    }
}
