//! Text features of a vocabulary: the output of CLIP's text tower for every part name and attribute
//! value.
//!
//! A phrase's feature is: each template filled with the phrase, encoded, normalized, averaged over
//! the templates, normalized again. Synonyms of a part stay apart, as the best one counts at every
//! token of an image; the prompts of an attribute's value are averaged too, before the last
//! normalization (our choice: a value has one logit).

use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::vocabulary::{Vocabulary, fill};
use clasp_model::clip::Clip;
use clasp_model::tokenizer::tokenize_flat;

use crate::Error;

/// Texts that are encoded at once; bounds memory, not the result.
const BATCH: usize = 64;

/// Text features of a vocabulary. Rows have length 1.
#[derive(Debug, Clone)]
pub struct TextFeatures {
    /// [synonyms of all parts, embed]
    pub parts: Tensor<2>,
    /// Class of each row of `parts`.
    pub class_of_synonym: Vec<usize>,
    /// [attribute values, embed], in the vocabulary's order; none without attributes.
    pub attributes: Option<Tensor<2>>,
}

impl TextFeatures {
    /// Encodes all phrases of `vocabulary`.
    ///
    /// # Errors
    ///
    /// The device failed, or a text feature is not finite.
    pub fn new(clip: &Clip, vocabulary: &Vocabulary, device: &Device) -> Result<Self, Error> {
        let class_of_synonym: Vec<usize> = vocabulary
            .parts
            .iter()
            .enumerate()
            .flat_map(|(class, part)| std::iter::repeat_n(class, part.synonyms.len()))
            .collect();
        let synonyms: Vec<Vec<String>> = vocabulary
            .parts
            .iter()
            .flat_map(|part| &part.synonyms)
            .map(|synonym| filled(&vocabulary.part_templates, std::slice::from_ref(synonym)))
            .collect();
        let values: Vec<Vec<String>> = vocabulary
            .attributes
            .iter()
            .flat_map(|attribute| &attribute.values)
            .map(|value| filled(&vocabulary.templates, &value.prompts))
            .collect();
        Ok(Self {
            parts: encode_means(clip, &synonyms, device)?,
            class_of_synonym,
            attributes: if values.is_empty() {
                None
            } else {
                Some(encode_means(clip, &values, device)?)
            },
        })
    }
}

/// Every template with every phrase.
fn filled(templates: &[String], phrases: &[String]) -> Vec<String> {
    phrases
        .iter()
        .flat_map(|phrase| templates.iter().map(|template| fill(template, phrase)))
        .collect()
}

/// One feature for each group of texts: the normalized mean of theirs. [groups, embed]
fn encode_means(clip: &Clip, groups: &[Vec<String>], device: &Device) -> Result<Tensor<2>, Error> {
    let texts: Vec<&str> = groups.iter().flatten().map(String::as_str).collect();
    let embed = clip.config().embed;
    let features = encode(clip, &texts, device)?;
    let mut rows = features.chunks_exact(embed);
    let mut means = Vec::with_capacity(groups.len() * embed);
    for group in groups {
        let mut mean = vec![0f64; embed];
        for row in rows.by_ref().take(group.len()) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !(norm.is_finite() && norm > 0.0) {
            return Err(Error::Network {
                place: "text features",
                expected: "finite numbers that are not all zero".into(),
                found: format!(
                    "norm {norm} for `{}`",
                    group.first().map_or("", String::as_str)
                ),
            });
        }
        means.extend(mean.iter().map(|x| (x / norm) as f32));
    }
    Ok(Tensor::from_data(
        TensorData::new(means, [groups.len(), embed]),
        device,
    ))
}

/// Normalized features of texts, row after row.
fn encode(clip: &Clip, texts: &[&str], device: &Device) -> Result<Vec<f32>, Error> {
    let context = clip.config().text.context;
    let mut features = Vec::with_capacity(texts.len() * clip.config().embed);
    for texts in texts.chunks(BATCH) {
        let (tokens, columns) = tokenize_flat(texts, context);
        let tokens =
            Tensor::<2, Int>::from_data(TensorData::new(tokens, [texts.len(), columns]), device);
        features.extend(crate::read(clip.encode_text(tokens), "text features")?);
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{tiny_clip, vocabulary};

    fn unit(rows: &Tensor<2>) -> Vec<Vec<f32>> {
        let [count, embed] = rows.dims();
        let data = crate::read(rows.clone(), "rows").unwrap();
        let rows: Vec<Vec<f32>> = data.chunks_exact(embed).map(<[f32]>::to_vec).collect();
        assert_eq!(rows.len(), count);
        for row in &rows {
            let norm: f32 = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((norm - 1.0).abs() < 1e-5, "norm {norm}");
        }
        rows
    }

    #[test]
    fn synonyms_stay_apart_and_prompts_are_averaged() {
        let device = Device::flex();
        let clip = tiny_clip(&device);
        let vocabulary = vocabulary();
        let features = TextFeatures::new(&clip, &vocabulary, &device).unwrap();
        assert_eq!(features.class_of_synonym, [0, 1, 1, 2]);
        assert_eq!(unit(&features.parts).len(), 4);
        let values = unit(features.attributes.as_ref().unwrap());
        assert_eq!(values.len(), vocabulary.logits());

        // The first value has two prompts and the vocabulary two templates: the mean of four texts.
        let value = &vocabulary.attributes[0].values[0];
        let texts: Vec<String> = filled(&vocabulary.templates, &value.prompts);
        assert_eq!(texts.len(), 4);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let rows = encode(&clip, &texts, &device).unwrap();
        let embed = clip.config().embed;
        let mean: Vec<f32> = (0..embed)
            .map(|i| rows.iter().skip(i).step_by(embed).sum::<f32>() / 4.0)
            .collect();
        let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(
            mean.iter()
                .zip(&values[0])
                .all(|(m, v)| (m / norm - v).abs() < 1e-5)
        );
    }

    #[test]
    fn a_vocabulary_without_attributes_has_no_attribute_features() {
        let device = Device::flex();
        let mut vocabulary = vocabulary();
        vocabulary.attributes.clear();
        assert!(
            TextFeatures::new(&tiny_clip(&device), &vocabulary, &device)
                .unwrap()
                .attributes
                .is_none()
        );
    }
}
