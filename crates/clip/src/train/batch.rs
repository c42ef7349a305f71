//! Training pairs, and a batch of them as arrays.

use std::collections::BTreeMap;

use clasp_data::vocabulary::IGNORE;
use clasp_model::clip::ClipConfig;
use clasp_model::tokenizer::tokenize_flat;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};

use super::config::{ClipTrainConfig, ResolutionStage};
use super::error::ClipTrainError;

/// An image with its caption and annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingPair {
    /// [3, height, width], normalized with the mean and standard deviation that the model will be
    /// saved with.
    pub image: Vec<f32>,
    /// The caption.
    pub caption: String,
    /// Part class of each pixel, [height, width]; 255 (ignore index) where unknown. `None` if no
    /// class is known.
    pub parts: Option<Vec<u8>>,
    /// Value of each attribute of [`ClassPhrases`]; 255 (ignore index) where unknown. Empty if no
    /// value is known.
    pub values: Vec<u8>,
}

/// What a CLIP is trained on.
pub struct ClipTrainData<'a> {
    /// `pair(index, size)` gives the pair of an index at a size (height, width); the same index
    /// always gives the same pair. It is called from several threads, a batch ahead of the
    /// training.
    pub pair: &'a (dyn Fn(u64, [usize; 2]) -> TrainingPair + Sync),
    /// Phrases for part classes and attribute values, for the part and attribute losses.
    pub phrases: &'a ClassPhrases,
    /// Pairs at the last stage's size that `pair` never gives; may be empty.
    pub held_out: &'a [TrainingPair],
}

/// Texts for part classes and attribute values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassPhrases {
    /// Phrases for each part class, for the part loss; empty for none.
    pub parts: Vec<Vec<String>>,
    /// Phrases for each value of each attribute, for the attribute loss; empty for none.
    pub attributes: Vec<Vec<Vec<String>>>,
    /// Part classes on which each attribute is visible, for the attribute loss of single tokens; an
    /// attribute without any is learned from the pooled feature alone. Attributes beyond the list
    /// have none.
    pub places: Vec<Vec<u8>>,
}

/// A batch of pairs as arrays.
pub(super) struct PairBatch {
    /// Index and caption of each pair, for messages.
    pub keys: Vec<String>,
    pub size: [usize; 2],
    /// [batch, 3, height, width].
    pub images: Vec<f32>,
    /// [batch, columns].
    pub tokens: Vec<i64>,
    pub columns: usize,
    /// Pairs with the same number have the same caption.
    pub captions: Vec<usize>,
    /// Part class of each patch, [batch, patches]; 255 where no class has most of the patch.
    pub classes: Vec<u8>,
    /// Value of each attribute, [batch, attributes]; 255 where unknown.
    pub values: Vec<u8>,
}

/// `attributes`: how many there are; a pair has a value for each of them, or none at all.
pub(super) fn check_pair(
    pair: &TrainingPair,
    index: u64,
    [height, width]: [usize; 2],
    attributes: usize,
) -> Result<(), ClipTrainError> {
    let check = |what, found, expected| {
        if found == expected {
            return Ok(());
        }
        Err(ClipTrainError::Pair {
            index,
            what,
            found,
            expected,
        })
    };
    check("the image", pair.image.len(), 3 * height * width)?;
    if attributes > 0 && !pair.values.is_empty() {
        check("the list of attributes", pair.values.len(), attributes)?;
    }
    match &pair.parts {
        Some(parts) => check("the map of classes", parts.len(), height * width),
        None => Ok(()),
    }
}

/// The batch of a step: the pairs from `step · batch` on, loaded by `threads` threads.
pub(super) fn draw(
    data: &ClipTrainData<'_>,
    step: usize,
    config: &ClipTrainConfig,
    model: &ClipConfig,
    threads: usize,
) -> Result<PairBatch, ClipTrainError> {
    let (batch, size) = (config.run.batch, config.stage(step).size);
    let (make, words) = (data.pair, data.phrases);
    let first = (step * batch) as u64;
    let pairs: Vec<TrainingPair> = std::thread::scope(|scope| {
        let share = batch.div_ceil(threads.max(1));
        let parts: Vec<_> = (0..batch)
            .step_by(share)
            .map(|start| {
                scope.spawn(move || {
                    (start..batch.min(start + share))
                        .map(|place| make(first + place as u64, size))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        // All are joined before the first failure is returned: a scope panics for panicked threads
        // that are not joined.
        let parts: Vec<_> = parts.into_iter().map(|part| part.join()).collect();
        let parts: Result<Vec<_>, _> = parts.into_iter().collect();
        parts.map(|parts| parts.concat())
    })
    .map_err(|_| ClipTrainError::Worker)?;
    for (index, pair) in (first..).zip(&pairs) {
        check_pair(pair, index, size, words.attributes.len())?;
    }
    let unknown = vec![IGNORE; words.attributes.len()];
    let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
    let (tokens, columns) = tokenize_flat(&captions, model.text.context);
    let patch = model.vision.patch;
    let keys = { (first..).zip(&captions) }
        .map(|(index, caption)| format!("pair {index}: {caption}"))
        .collect();
    Ok(PairBatch {
        keys,
        size,
        tokens,
        columns,
        captions: numbers(&captions),
        classes: pairs
            .iter()
            .flat_map(|pair| patch_classes(pair.parts.as_deref(), size, patch))
            .collect(),
        values: pairs
            .iter()
            .flat_map(|pair| match pair.values.len() {
                0 => unknown.clone(),
                _ => pair.values.clone(),
            })
            .collect(),
        images: pairs
            .iter()
            .flat_map(|pair| pair.image.iter().copied())
            .collect(),
    })
}

/// The class that covers most of each patch and at least two fifths of it, 255 where none does. Of
/// equals, the lowest.
///
/// Small parts rarely cover more than half of a patch: with a higher bound, feet, bare arms and
/// bags would rarely be trained.
///
/// parts: [height, width]; returns [rows · columns of patches]
pub(super) fn patch_classes(
    parts: Option<&[u8]>,
    [height, width]: [usize; 2],
    patch: usize,
) -> Vec<u8> {
    let (rows, columns) = (height / patch, width / patch);
    let Some(parts) = parts else {
        return vec![IGNORE; rows * columns];
    };
    let class = |place: usize| {
        let (top, left) = (place / columns * patch, place % columns * patch);
        let mut counts = [0usize; 256];
        for row in top..top + patch {
            for &part in &parts[row * width + left..row * width + left + patch] {
                counts[usize::from(part)] += 1;
            }
        }
        let most = counts
            .iter()
            .enumerate()
            .max_by_key(|(class, count)| (**count, 255 - *class));
        match most {
            Some((class, count)) if 5 * count >= 2 * patch * patch => {
                u8::try_from(class).unwrap_or(IGNORE)
            }
            _ => IGNORE,
        }
    };
    (0..rows * columns).map(class).collect()
}

/// Equal texts get equal numbers.
pub(super) fn numbers(texts: &[&str]) -> Vec<usize> {
    let mut known = BTreeMap::new();
    texts
        .iter()
        .map(|text| {
            let next = known.len();
            *known.entry(*text).or_insert(next)
        })
        .collect()
}

/// The patches that a step uses, ascending; `None` for all.
pub(super) fn draw_patches(
    seed: u64,
    step: usize,
    stage: &ResolutionStage,
    model: &ClipConfig,
) -> Option<Vec<i64>> {
    let [rows, columns] = model.grid(stage.size[0], stage.size[1]);
    let count = rows * columns;
    let kept = ((count as f32 * stage.patches).round() as usize).clamp(1, count);
    if kept == count {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1 + step as u64);
    let mut order: Vec<i64> = (0..count as i64).collect();
    for place in 0..kept {
        let other = place + (rng.next_u64() % (count - place) as u64) as usize;
        order.swap(place, other);
    }
    order.truncate(kept);
    order.sort_unstable();
    Some(order)
}
