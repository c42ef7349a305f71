//! Image-caption pairs for the training of a small CLIP ([`crate::train`]): synthetic people, and
//! photos with the tags and masks of CCP.
//!
//! Rendering a pair costs more than training on it, so a pool of synthetic pairs is rendered once
//! and used again with other crops, flips and brightness. No caption names left or right, so it
//! stays true of a flipped picture.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use clasp_data::image::{self, CLIP_MEAN, CLIP_STD, Filter, Rgb, normalize, resize, resize_crop};
use clasp_data::layouts::ccp::ccp_parts;
use clasp_data::part;
use clasp_data::vocabulary::{Attribute, IGNORE, PartClass, Vocabulary, fill};
use clasp_data::{Rng, rng_for};
use rand::RngExt;

use crate::captions::{ccp_caption, ccp_pair, synthetic_pair};
use crate::error::Error;
use crate::photos::{CcpPhotos, attributes_of_tags};
use crate::train::{ClassPhrases, TrainingPair};

/// Height to which photos in memory are reduced.
const PHOTO_HEIGHT: usize = 256;
/// Share of the pairs that are photos, where there are any.
const PHOTO_SHARE: f64 = 0.3;
/// Of those, the share with a mask.
const PHOTO_PARTS: f64 = 0.65;
/// Of the photos with a mask, the share that is shown whole.
const PHOTO_WHOLE: f64 = 0.5;
/// Part classes of the default vocabulary.
const CLASSES: u8 = 8;
/// Height and width at which pooled pictures are kept.
const POOL_SIZE: [usize; 2] = [160, 80];
/// A random crop keeps at least this share of each side: of synthetic pictures, of which there are
/// many, and of photos.
const KEPT: [f32; 2] = [0.88, 0.75];

/// A photo with its tags or its mask.
struct Photo {
    image: Rgb,
    tags: Vec<String>,
    mask: Option<Vec<u8>>,
}

/// A picture in any size with its caption and, where known, the part class of each pixel.
struct AnnotatedImage {
    image: Rgb,
    caption: String,
    parts: Option<Vec<u8>>,
    /// Value of each attribute of the default vocabulary, 255 where unknown; or nothing.
    values: Vec<u8>,
}

/// The photos of the train split of a folder with `attributes.csv` and `parsing.csv` that have CCP's
/// tags and labels.
pub struct PhotoDataset {
    photos: Vec<Photo>,
    with_mask: Vec<usize>,
    with_tags: Vec<usize>,
    labels: Vec<String>,
    vocabulary: Vocabulary,
}

impl PhotoDataset {
    /// Reads the train split of `attributes.csv` and `parsing.csv` in `folder`.
    ///
    /// # Errors
    ///
    /// A file is missing or broken; the message names it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let source = CcpPhotos::open(folder)?;
        let mut photos = Vec::new();
        for photo in source.tagged("train")? {
            let photo = photo?;
            photos.push(Photo {
                image: small(photo.image),
                tags: photo.tags,
                mask: None,
            });
        }
        let with_tags = (0..photos.len()).collect();
        for photo in source.masked("train")? {
            let photo = photo?;
            let from = [photo.image.height, photo.image.width];
            let image = small(photo.image);
            let mask = nearest(&photo.labels, from, [image.height, image.width]);
            photos.push(Photo {
                image,
                tags: Vec::new(),
                mask: Some(mask),
            });
        }
        let with_mask = (0..photos.len())
            .filter(|&i| photos[i].mask.is_some())
            .collect();
        Ok(Self {
            photos,
            with_mask,
            with_tags,
            labels: source.classes().to_vec(),
            vocabulary: Vocabulary::standard()?,
        })
    }

    /// How many photos there are.
    pub fn len(&self) -> usize {
        self.photos.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.photos.is_empty()
    }

    /// A photo, whole with its tags or a part by its mask.
    fn pair(&self, rng: &mut Rng) -> Option<AnnotatedImage> {
        if !self.with_mask.is_empty() && (self.with_tags.is_empty() || rng.random_bool(PHOTO_PARTS))
        {
            // Not every photo shows every part.
            for attempt in 0..16 {
                let photo = &self.photos[self.with_mask[rng.random_range(0..self.with_mask.len())]];
                if attempt == 0 && rng.random_bool(PHOTO_WHOLE) {
                    return photo
                        .mask
                        .as_deref()
                        .map(|mask| self.whole(&photo.image, mask, rng));
                }
                let class = rng.random_range(0..CLASSES);
                if let Some(mask) = &photo.mask
                    && let Some(pair) = ccp_pair(&photo.image, mask, &self.labels, class, rng)
                {
                    return Some(AnnotatedImage {
                        image: pair.image,
                        caption: pair.caption,
                        parts: Some(pair.parts),
                        values: Vec::new(),
                    });
                }
            }
            return None;
        }
        if self.with_tags.is_empty() {
            return None;
        }
        let photo = &self.photos[self.with_tags[rng.random_range(0..self.with_tags.len())]];
        let tags: Vec<&str> = photo.tags.iter().map(String::as_str).collect();
        Some(AnnotatedImage {
            image: photo.image.clone(),
            caption: ccp_caption(&tags, rng),
            parts: None,
            values: values(&self.vocabulary, &attributes_of_tags(&tags)),
        })
    }

    /// A whole photo with a mask, whose labels are its tags.
    fn whole(&self, image: &Rgb, mask: &[u8], rng: &mut Rng) -> AnnotatedImage {
        let mut counts = [0usize; 256];
        mask.iter()
            .for_each(|&label| counts[usize::from(label)] += 1);
        let seen = |label: usize| 500 * counts[label] > mask.len();
        let tags: Vec<&str> = (self.labels.iter().take(256).enumerate())
            .filter(|(label, name)| seen(*label) && !matches!(name.as_str(), "null" | "skin"))
            .map(|(_, name)| name.as_str())
            .collect();
        AnnotatedImage {
            image: image.clone(),
            caption: ccp_caption(&tags, rng),
            parts: Some(ccp_parts(mask, image.width, &self.labels)),
            values: values(&self.vocabulary, &attributes_of_tags(&tags)),
        }
    }
}

/// The number of each attribute's true value, 255 where it is not known.
fn values(vocabulary: &Vocabulary, truth: &BTreeMap<String, String>) -> Vec<u8> {
    let number = |attribute: &Attribute| {
        let value = truth.get(&attribute.name)?;
        let place = attribute.values.iter().position(|v| v.name == *value)?;
        u8::try_from(place).ok()
    };
    let attributes = vocabulary.attributes.iter();
    attributes.map(|a| number(a).unwrap_or(IGNORE)).collect()
}

/// The training data: a function of an index.
pub struct PairDataset {
    seed: u64,
    pool: Vec<OnceLock<AnnotatedImage>>,
    photos: Option<PhotoDataset>,
    vocabulary: Vocabulary,
}

impl PairDataset {
    /// A pool of `count` synthetic pairs, rendered when first used, and photos.
    ///
    /// # Errors
    ///
    /// The built-in vocabulary cannot be read.
    ///
    /// # Panics
    ///
    /// If `count` is 0.
    pub fn new(seed: u64, count: usize, photos: Option<PhotoDataset>) -> Result<Self, Error> {
        assert!(
            count > 0,
            "expected a pool of at least 1 synthetic pair, found {count}"
        );
        Ok(Self {
            seed,
            pool: (0..count).map(|_| OnceLock::new()).collect(),
            photos,
            vocabulary: Vocabulary::standard()?,
        })
    }

    /// The pair of an index, with its own crop, flip and light: image [3, height, width].
    pub fn pair(&self, index: u64, size: [usize; 2]) -> TrainingPair {
        let mut rng = rng_for(self.seed, 1, &format!("clip pair {index}"));
        let photo = match &self.photos {
            Some(photos) if rng.random_bool(PHOTO_SHARE) => photos.pair(&mut rng),
            _ => None,
        };
        let picture = match &photo {
            Some(photo) => photo,
            None => {
                let at = rng.random_range(0..self.pool.len());
                self.pool[at].get_or_init(|| {
                    let pair = synthetic_pair(self.seed, at as u64);
                    let from = [pair.image.height, pair.image.width];
                    AnnotatedImage {
                        image: resize(&pair.image, POOL_SIZE[0], POOL_SIZE[1], Filter::Bicubic),
                        caption: pair.caption,
                        parts: Some(nearest(&pair.parts, from, POOL_SIZE)),
                        values: pair.attributes.map_or(Vec::new(), |truth| {
                            let truth = truth.iter();
                            let owned = truth.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
                            values(&self.vocabulary, &owned.collect())
                        }),
                    }
                })
            }
        };
        let kept = KEPT[usize::from(photo.is_some())];
        augment(picture, size, kept, &mut rng)
    }

    /// Synthetic pairs that no index gives.
    pub fn held_out(&self, count: usize, size: [usize; 2]) -> Vec<TrainingPair> {
        (0..count as u64)
            .map(|i| {
                let pair = synthetic_pair(self.seed ^ 0x4845_4c44, i);
                TrainingPair {
                    image: plain(&pair.image, size),
                    caption: pair.caption,
                    parts: None,
                    values: Vec::new(),
                }
            })
            .collect()
    }
}

/// An image as the input of CLIP: `[3, height, width]`.
fn plain(image: &Rgb, [height, width]: [usize; 2]) -> Vec<f32> {
    normalize(
        &resize(image, height, width, Filter::Bicubic),
        CLIP_MEAN,
        CLIP_STD,
    )
}

/// A mild crop that keeps at least the share `kept` of each side, a flip, and another brightness;
/// no color becomes another. The classes go through the same crop and flip, by nearest neighbor.
///
/// `size`: height and width.
fn augment(picture: &AnnotatedImage, size: [usize; 2], kept: f32, rng: &mut Rng) -> TrainingPair {
    let image = &picture.image;
    let mut keep = |side: usize| {
        let kept = ((side as f32 * rng.random_range(kept..=1.0f32)) as usize).clamp(1, side);
        (rng.random_range(0..=side - kept), kept)
    };
    let ((x, width), (y, height)) = (keep(image.width), keep(image.height));
    let mut view = resize_crop(
        image,
        [x, y, width, height],
        size[0],
        size[1],
        Filter::Bilinear,
    );
    let mut parts = picture.parts.as_ref().map(|parts| {
        let cut: Vec<u8> = (y..y + height)
            .flat_map(|row| &parts[row * image.width + x..row * image.width + x + width])
            .copied()
            .collect();
        nearest(&cut, [height, width], size)
    });
    if rng.random_bool(0.5) {
        view = image::flip(&view);
        if let Some(parts) = &mut parts {
            parts.chunks_exact_mut(size[1]).for_each(<[u8]>::reverse);
        }
    }
    let gain = rng.random_range(0.85..1.15f32);
    let shift = rng.random_range(-12.0..12.0f32);
    for value in &mut view.pixels {
        *value = (f32::from(*value) * gain + shift).clamp(0.0, 255.0) as u8;
    }
    TrainingPair {
        image: normalize(&view, CLIP_MEAN, CLIP_STD),
        caption: picture.caption.clone(),
        parts,
        values: picture.values.clone(),
    }
}

/// Part classes on which an attribute of the default vocabulary can be seen.
fn places(attribute: &Attribute) -> Vec<u8> {
    let places: &[u8] = match attribute.name.as_str() {
        "age" | "hair_length" | "headwear" | "glasses" => &[part::HEAD],
        "gender" | "view" => &[part::HEAD, part::UPPER_BODY],
        "upper_color" | "upper_pattern" => &[part::UPPER_BODY],
        "sleeve_length" => &[part::UPPER_BODY, part::ARMS],
        "lower_color" => &[part::LOWER_BODY],
        "lower_type" => &[part::LOWER_BODY, part::LEGS],
        "footwear" => &[part::FEET],
        "bag" => &[part::UPPER_BODY, part::BAG],
        "carried_object" => &[part::ARMS],
        _ => &[],
    };
    places.to_vec()
}

/// Texts for part classes and attribute values: the phrases of the default vocabulary in its
/// templates.
///
/// # Errors
///
/// The built-in vocabulary cannot be read.
pub fn class_phrases() -> Result<ClassPhrases, Error> {
    let vocabulary = Vocabulary::standard()?;
    let every = |templates: &[String], texts: &[String]| -> Vec<String> {
        let pairs = texts
            .iter()
            .flat_map(|text| templates.iter().map(move |t| (t, text)));
        pairs.map(|(template, text)| fill(template, text)).collect()
    };
    let part = |part: &PartClass| every(&vocabulary.part_templates, &part.synonyms);
    let attribute = |attribute: &Attribute| {
        let values = attribute.values.iter();
        values
            .map(|value| every(&vocabulary.templates, &value.prompts))
            .collect()
    };
    Ok(ClassPhrases {
        parts: vocabulary.parts.iter().map(part).collect(),
        attributes: vocabulary.attributes.iter().map(attribute).collect(),
        places: vocabulary.attributes.iter().map(places).collect(),
    })
}

fn small(image: Rgb) -> Rgb {
    if image.height <= PHOTO_HEIGHT {
        return image;
    }
    let width = (image.width * PHOTO_HEIGHT / image.height).max(1);
    resize(&image, PHOTO_HEIGHT, width, Filter::Bilinear)
}

fn nearest(labels: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let at = |i: usize, from: usize, to: usize| ((2 * i + 1) * from / (2 * to)).min(from - 1);
    (0..to[0])
        .flat_map(|y| (0..to[1]).map(move |x| (y, x)))
        .map(|(y, x)| labels[at(y, from[0], to[0]) * from[1] + at(x, from[1], to[1])])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_always_gives_the_same_pair_and_others_differ() {
        let data = PairDataset::new(3, 4, None).unwrap();
        let again = PairDataset::new(3, 4, None).unwrap();
        let (first, second) = (data.pair(7, [32, 24]), data.pair(8, [32, 24]));
        assert_eq!(first, again.pair(7, [32, 24]));
        assert_eq!(first.image.len(), 3 * 32 * 24);
        assert_ne!(first.image, second.image);
        assert_eq!(data.held_out(2, [16, 8]), again.held_out(2, [16, 8]));
    }

    #[test]
    fn attribute_values_are_numbered_as_their_phrases() {
        let (vocabulary, words) = (Vocabulary::standard().unwrap(), class_phrases().unwrap());
        assert_eq!(words.attributes.len(), vocabulary.attributes.len());
        let known = |index| {
            let pair = synthetic_pair(3, index);
            let truth = pair.attributes?.into_iter();
            let truth = truth.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Some(truth.collect::<BTreeMap<_, _>>())
        };
        let truths: Vec<_> = (0..40).filter_map(known).collect();
        assert!(truths.len() > 15 && truths.len() < 38, "{}", truths.len());
        assert!(truths.iter().any(|truth| truth.len() == 14));
        assert!(truths.iter().any(|truth| truth.len() < 14));
        for truth in truths {
            let found = values(&vocabulary, &truth);
            for ((attribute, phrases), value) in vocabulary
                .attributes
                .iter()
                .zip(&words.attributes)
                .zip(found)
            {
                let Some(expected) = truth.get(&attribute.name) else {
                    assert_eq!(value, IGNORE);
                    continue;
                };
                let named = &attribute.values[usize::from(value)];
                assert_eq!(named.name, *expected);
                assert!(phrases[usize::from(value)].contains(&named.prompts[0]));
            }
        }
    }

    #[test]
    fn nearest_keeps_corners() {
        assert_eq!(nearest(&[1, 2, 3, 4], [2, 2], [4, 4])[..4], [1, 1, 2, 2]);
        assert_eq!(nearest(&[1, 2, 3, 4], [2, 2], [1, 1]), [4]);
    }
}
