//! Retrieval on held-out pairs.

use std::fmt;

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::clip::Clip;
use clasp_model::tokenizer::tokenize_flat;
use serde::{Deserialize, Serialize};

use super::batch::{TrainingPair, numbers};
use super::tensors::host;

/// Retrieval among the held-out pairs: the share of matches at rank 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Share of images whose nearest caption is theirs (or equal to theirs).
    pub image_to_text: f32,
    /// Share of captions whose nearest image is theirs (or has an equal caption).
    pub text_to_image: f32,
    /// Expected share of guessing.
    pub chance: f32,
}

impl fmt::Display for Retrieval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "held-out image to caption {:.3}, caption to image {:.3} (chance {:.3})",
            self.image_to_text, self.text_to_image, self.chance
        )
    }
}

/// Retrieval between images and captions: how often the nearest is a match.
///
/// `size`: height and width of the images.
pub fn retrieval(
    clip: &Clip,
    pairs: &[TrainingPair],
    [height, width]: [usize; 2],
    device: &Device,
) -> Retrieval {
    let count = pairs.len();
    let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
    let captions_number = numbers(&captions);
    let mut images = Vec::new();
    let mut texts = Vec::new();
    for pairs in pairs.chunks(32) {
        let pixels: Vec<f32> = pairs
            .iter()
            .flat_map(|pair| pair.image.iter().copied())
            .collect();
        let pixels = TensorData::new(pixels, [pairs.len(), 3, height, width]);
        images.push(clip.encode_image(Tensor::from_data(pixels, device)));
        let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
        let (tokens, columns) = tokenize_flat(&captions, clip.config().text.context);
        let tokens = TensorData::new(tokens, [pairs.len(), columns]);
        texts.push(clip.encode_text(Tensor::from_data(tokens, device)));
    }
    let cosines = host(Tensor::cat(images, 0).matmul(Tensor::cat(texts, 0).transpose()));
    let hits = |cosine: &dyn Fn(usize, usize) -> f32| {
        let hit = |row: &usize| {
            let best = (0..count).max_by(|a, b| cosine(*row, *a).total_cmp(&cosine(*row, *b)));
            best.is_some_and(|best| captions_number[best] == captions_number[*row])
        };
        (0..count).filter(hit).count() as f32 / count as f32
    };
    let equal = |row: &usize| captions_number.iter().filter(|c| *c == row).count() as f32;
    Retrieval {
        image_to_text: hits(&|row, column| cosines[row * count + column]),
        text_to_image: hits(&|row, column| cosines[column * count + row]),
        chance: captions_number.iter().map(equal).sum::<f32>() / (count * count) as f32,
    }
}
