//! The part and attribute losses of a step: which texts name the classes, and which tokens and
//! images are compared with them.

use burn::tensor::{Device, Tensor};
use clasp_data::vocabulary::IGNORE;
use clasp_model::clip::{Clip, ClipConfig};
use clasp_model::tokenizer::tokenize_flat;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

use super::batch::{ClassPhrases, PairBatch};
use super::config::ClipTrainConfig;
use super::losses::{attribute_loss, attribute_losses, part_loss};
use super::tensors::integers;

/// The part loss of a step: the class of each token, and phrases for the classes.
pub(super) struct PartObjective {
    pub(super) weight: f64,
    /// [phrases, columns], and the columns.
    tokens: (Vec<i64>, usize),
    /// Class of each phrase.
    phrase_class: Vec<usize>,
    /// Class of each used patch, [batch, used patches]; 255 where unknown.
    classes: Vec<u8>,
    /// Weight of a token by its class; the weights of all tokens of the batch sum to 1.
    class_weight: Vec<f32>,
    /// Used patches of an image.
    seen: usize,
}

/// Phrases for each class in a step.
const PHRASES: usize = 3;
/// Phrases for each value in a step, one of which is compared with the mean of the others.
const VALUE_PHRASES: usize = 4;
impl PartObjective {
    /// `None` without phrases, without weight, or without a token whose class is known.
    pub(super) fn new(
        config: &ClipTrainConfig,
        step: usize,
        phrases: &[Vec<String>],
        batch: &PairBatch,
        patches: Option<&[i64]>,
        model: &ClipConfig,
    ) -> Option<Self> {
        if phrases.is_empty() || config.loss.part_weight == 0.0 {
            return None;
        }
        let all = batch.classes.len() / batch.captions.len();
        let every: Vec<i64> = (0..all as i64).collect();
        let patches = patches.unwrap_or(&every);
        let classes: Vec<u8> = batch
            .classes
            .chunks_exact(all)
            .flat_map(|row| patches.iter().map(|&patch| row[patch as usize]))
            .map(|class| {
                if usize::from(class) < phrases.len() {
                    class
                } else {
                    IGNORE
                }
            })
            .collect();
        let mut counts = vec![0f32; phrases.len()];
        for &class in classes.iter().filter(|class| **class != IGNORE) {
            counts[usize::from(class)] += 1.0;
        }
        let total: f32 = counts.iter().map(|count| count.sqrt()).sum();
        if total == 0.0 {
            return None;
        }
        // A compromise between equal weights of tokens and of classes: bags are small, backgrounds
        // large.
        let class_weight = counts
            .iter()
            .map(|count| {
                if *count > 0.0 {
                    1.0 / (count.sqrt() * total)
                } else {
                    0.0
                }
            })
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ 0x7061_7274);
        rng.set_stream(1 + step as u64);
        let mut texts = Vec::new();
        let mut phrase_class = Vec::new();
        for (class, phrases) in phrases.iter().enumerate() {
            for _ in 0..PHRASES.min(phrases.len()) {
                let place = (rng.next_u64() % phrases.len() as u64) as usize;
                texts.push(phrases[place].as_str());
                phrase_class.push(class);
            }
        }
        Some(Self {
            weight: config.loss.part_weight,
            tokens: tokenize_flat(&texts, model.text.context),
            phrase_class,
            classes,
            class_weight,
            seen: patches.len(),
        })
    }

    /// The loss of the images `rows`, a share of the batch's, mean over both maps; `None` if no
    /// class is known.
    ///
    /// Clear features are the mask features averaged over tokens with similar queries. Until
    /// queries are similar within a part, this mean blurs positions, so the mask features are
    /// trained as well.
    pub(super) fn loss(
        &self,
        clip: &Clip,
        maps: [Tensor<3>; 2],
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> Option<Tensor<1>> {
        let [count, seen, embed] = maps[0].dims();
        let known: Vec<(i64, usize)> = self.classes[rows.start * self.seen..rows.end * self.seen]
            .iter()
            .enumerate()
            .filter(|(_, class)| **class != IGNORE)
            .map(|(place, class)| (place as i64, usize::from(*class)))
            .collect();
        if known.is_empty() {
            return None;
        }
        let places = known.iter().map(|(place, _)| *place).collect();
        let classes: Vec<usize> = known.iter().map(|(_, class)| *class).collect();
        let weights: Vec<f32> = classes
            .iter()
            .map(|class| self.class_weight[*class])
            .collect();
        let places = integers(places, [known.len()], device);
        let (phrases, columns) = &self.tokens;
        let shape = [self.phrase_class.len(), *columns];
        let phrases = clip.encode_text(integers(phrases.clone(), shape, device));
        let [clear, mask] = maps.map(|map| {
            let tokens = map.reshape([count * seen, embed]).select(0, places.clone());
            let phrases = phrases.clone();
            part_loss(tokens, phrases, &classes, &self.phrase_class, &weights)
        });
        Some((clear + mask) * 0.5)
    }
}

/// The attribute loss of a step: the values of the batch, and phrases for them.
pub(super) struct AttributeObjective {
    pub(super) weight: f64,
    /// [`VALUE_PHRASES`] phrases for each value of each attribute, one attribute after the other:
    /// [values · phrases, columns], and the columns.
    tokens: (Vec<i64>, usize),
    /// Number of values of each attribute.
    counts: Vec<usize>,
    /// Value of each attribute, [batch, attributes]; 255 where unknown.
    values: Vec<u8>,
    /// Number of known values in the batch.
    known: usize,
    /// Value of each attribute at each used patch, [batch, used patches, attributes]; 255 where it
    /// is unknown or not visible. Empty without known part classes.
    token_values: Vec<u8>,
    /// Number of tokens of the batch with a known value, for each attribute.
    pub(super) token_known: Vec<usize>,
}

impl AttributeObjective {
    /// `None` without attributes, without weight, or without a known value.
    pub(super) fn new(
        config: &ClipTrainConfig,
        step: usize,
        words: &ClassPhrases,
        batch: &PairBatch,
        patches: Option<&[i64]>,
        model: &ClipConfig,
    ) -> Option<Self> {
        let attributes = &words.attributes;
        let known = batch.values.iter().filter(|value| **value != IGNORE);
        let known = known.count();
        if known == 0 || config.loss.attribute_weight == 0.0 {
            return None;
        }
        let token_values = token_values(words, batch, patches);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ 0x7661_6c75);
        rng.set_stream(1 + step as u64);
        let texts: Vec<&str> = attributes
            .iter()
            .flatten()
            .flat_map(|phrases| std::iter::repeat_n(phrases, VALUE_PHRASES))
            .map(|phrases| {
                let place = rng.next_u64() % phrases.len().max(1) as u64;
                phrases.get(place as usize).map_or("", String::as_str)
            })
            .collect();
        Some(Self {
            weight: config.loss.attribute_weight,
            tokens: tokenize_flat(&texts, model.text.context),
            counts: attributes.iter().map(Vec::len).collect(),
            values: batch.values.clone(),
            known,
            token_known: (0..attributes.len())
                .map(|attribute| {
                    let of_attribute = token_values.iter().skip(attribute);
                    let of_attribute = of_attribute.step_by(attributes.len());
                    of_attribute.filter(|value| **value != IGNORE).count()
                })
                .collect(),
            token_values,
        })
    }

    /// The loss of the images `rows`, a share of the batch, from their features [rows, embed], with
    /// the same share of the loss on the phrases themselves.
    ///
    /// Each value is represented by the mean feature of all but one of its phrases, as
    /// pseudo-labels use a mean over phrases. The remaining phrase is classified with these means
    /// like an image of known value, which pulls phrases of the same value together and pushes
    /// values apart. Without this term there is a saddle point: where the phrases of two values
    /// coincide, images get no gradient that separates the values, and while images do not separate
    /// them, neither do phrases get one.
    ///
    /// The tokens of a part are classified by the attributes that are visible on it, each attribute
    /// with the same weight. The pooled feature follows (its last block averages the values from
    /// which dense features are made), and a token that shows a hat is a far stronger signal than
    /// an image that has one somewhere.
    ///
    /// Returns the sum of the three terms, and the term of the images alone.
    pub(super) fn loss(
        &self,
        clip: &Clip,
        images: Tensor<2>,
        maps: Option<&[Tensor<3>; 2]>,
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> (Tensor<1>, f32) {
        let attributes = self.counts.len();
        let answers = rows.start * attributes..rows.end * attributes;
        let truth = &self.values[answers];
        let (phrases, columns) = &self.tokens;
        let values: usize = self.counts.iter().sum();
        let shape = [values * VALUE_PHRASES, *columns];
        let phrases = clip.encode_text(integers(phrases.clone(), shape, device));
        let [_, embed] = phrases.dims();
        let phrases = phrases.reshape([values, VALUE_PHRASES, embed]);
        let asked = phrases.clone().slice([0..values, 0..1]);
        let asked = asked.reshape([values, embed]);
        let named = phrases.slice([0..values, 1..VALUE_PHRASES]).mean_dim(1);
        let named = named.reshape([values, embed]);
        let length = (named.clone() * named.clone()).sum_dim(1).sqrt();
        let named = named / (length + 1e-6);
        let scale = clip.scale().detach();
        let of_images = attribute_loss(images, named.clone(), scale.clone(), &self.counts, truth);
        let of_images = of_images / self.known.max(1) as f64;
        let images_alone = of_images.clone().into_scalar::<f32>();
        let own = own_values(&self.counts);
        let of_phrases = attribute_loss(asked, named.clone(), scale.clone(), &self.counts, &own);
        let share = rows.len() as f64 * attributes as f64 / self.values.len() as f64;
        let mut sum = of_images + of_phrases * (share / values as f64);
        if let Some(maps) = maps {
            for map in maps {
                let loss = self.token_loss(map.clone(), named.clone(), scale.clone(), rows, device);
                sum = match loss {
                    Some(loss) => sum + loss * 0.5,
                    None => sum,
                };
            }
        }
        (sum, images_alone)
    }

    /// The loss of the tokens of the images `rows`, [rows, seen patches, embed], mean over the
    /// attributes that are visible on any token of the batch; `None` where these images show none.
    fn token_loss(
        &self,
        map: Tensor<3>,
        named: Tensor<2>,
        scale: Tensor<1>,
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> Option<Tensor<1>> {
        let [count, seen, embed] = map.dims();
        let attributes = self.counts.len();
        let width = seen * attributes;
        let truth = self
            .token_values
            .get(rows.start * width..rows.end * width)?;
        let (places, truth): (Vec<i64>, Vec<&[u8]>) = (0..)
            .zip(truth.chunks_exact(attributes))
            .filter(|(_, answers)| answers.iter().any(|value| *value != IGNORE))
            .unzip();
        if places.is_empty() {
            return None;
        }
        let kept = places.len();
        let places = integers(places, [kept], device);
        let tokens = map.reshape([count * seen, embed]).select(0, places);
        let losses = attribute_losses(tokens, named, scale, &self.counts, &truth.concat());
        let shown = self.token_known.iter().filter(|known| **known > 0).count();
        { losses.into_iter().zip(&self.token_known) }
            .filter(|(_, known)| **known > 0)
            .map(|(loss, known)| loss / (*known as f64 * shown as f64))
            .reduce(|sum, loss| sum + loss)
    }
}

/// Value of each attribute at each used patch, [batch, used patches, attributes], see
/// [`ClassPhrases::places`].
fn token_values(words: &ClassPhrases, batch: &PairBatch, patches: Option<&[i64]>) -> Vec<u8> {
    if words.places.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let all = batch.classes.len() / batch.captions.len();
    let every: Vec<i64> = (0..all as i64).collect();
    let patches = patches.unwrap_or(&every);
    let attributes = words.attributes.len();
    let mut found = Vec::with_capacity(batch.captions.len() * patches.len() * attributes);
    let images = { batch.classes.chunks_exact(all) }.zip(batch.values.chunks_exact(attributes));
    for (classes, values) in images {
        for &patch in patches {
            let class = classes[patch as usize];
            found.extend(values.iter().enumerate().map(|(attribute, value)| {
                let places = words.places.get(attribute);
                match places.is_some_and(|places| places.contains(&class)) {
                    true => *value,
                    false => IGNORE,
                }
            }));
        }
    }
    found
}

/// Target of the phrase of each value, [values, attributes]: the value for its own attribute, 255
/// for the others.
pub(super) fn own_values(counts: &[usize]) -> Vec<u8> {
    let mut truth = Vec::new();
    for (attribute, &values) in counts.iter().enumerate() {
        for value in 0..values {
            let row = truth.len() + attribute;
            truth.resize(truth.len() + counts.len(), IGNORE);
            truth[row] = u8::try_from(value).unwrap_or(IGNORE);
        }
    }
    truth
}
