//! What the labels of `--labels` say of the images of the gallery: filters, part maps, and
//! corrections of them.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use axum::http::StatusCode;
use clasp_data::labels::{
    AttributeConfig, AttributeRule, AttributeTargets, Calibration, Correction, LabelError, Store,
    largest,
};
use clasp_data::vocabulary::Attribute;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::{Problem, status_of};

/// An attribute with the number of images of each value.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServedAttribute {
    /// Its name.
    pub attribute: String,
    /// Its values with the images of which that value is sure.
    pub values: Vec<ValueCount>,
}

/// A value of an attribute with its number of images.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ValueCount {
    /// Its name.
    pub value: String,
    /// Images of which it is sure.
    pub images: usize,
}

/// The labels of an image, for people.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ImageLabels {
    /// The image's key.
    pub key: String,
    /// Rows of the part map.
    pub rows: usize,
    /// Columns of the part map.
    pub columns: usize,
    /// Part class of each patch position, row by row; 255 is the ignore index.
    pub parts: Vec<u8>,
    /// round(255 p), p the probability of the class of each position.
    pub part_confidence: Vec<u8>,
    /// Positions that people corrected, counted row by row.
    pub corrected_parts: Vec<usize>,
    /// Names of the part classes.
    pub classes: Vec<String>,
    /// Color of each class, `#rrggbb`.
    pub colors: Vec<String>,
    /// The likeliest value of each attribute.
    pub attributes: Vec<LikelyValue>,
}

/// The likeliest value of an attribute.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LikelyValue {
    /// The attribute.
    pub attribute: String,
    /// The value.
    pub value: String,
    /// All its values.
    pub values: Vec<String>,
    /// Its probability.
    pub probability: f32,
    /// Whether it is sure enough for something to be learned from it.
    pub sure: bool,
    /// Whether it was corrected.
    pub corrected: bool,
}

/// A store of labels with the likeliest values of its images; corrections are added to it.
#[derive(Debug)]
pub struct ServedLabels {
    folder: PathBuf,
    /// Number of labeled images.
    images: usize,
    /// The attributes of the vocabulary.
    attributes: Vec<Attribute>,
    /// Locked while a correction is written: only for threads that may wait.
    table: RwLock<LabelTable>,
}

#[derive(Debug)]
struct LabelTable {
    store: Store,
    rule: AttributeRule,
    /// For each image and attribute the position of the value that is sure; [`UNSURE`] otherwise.
    sure: Vec<u16>,
    /// For each image and attribute the probability of the likeliest value.
    probability: Vec<f32>,
}

const UNSURE: u16 = u16::MAX;

/// Attributes with the values that an image has to have; of one attribute any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelFilter(Vec<(usize, Vec<u16>)>);

/// An order of labeled images: that of the store, or the least confident first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOrder {
    /// That of the store.
    Stored,
    /// By the mean confidence of the part map.
    Parts,
    /// By the probability of the likeliest value of an attribute, which has this position.
    Attribute(usize),
}

/// Which labeled images are listed, and in which order.
#[derive(Clone, Debug)]
pub struct LabelQuery {
    /// The order.
    pub order: LabelOrder,
    /// The values that they have.
    pub filter: LabelFilter,
    /// Whether only those are listed that have corrections, or that have none.
    pub corrected: Option<bool>,
    /// How many are passed over.
    pub from: usize,
    /// Most images.
    pub count: usize,
}

/// A part of the labeled images.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LabelPage {
    /// Images of which that is a part.
    images: usize,
    /// Images with corrections in the whole store.
    corrected: usize,
    /// The images in their order.
    labels: Vec<ListedLabels>,
}

/// A labeled image in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ListedLabels {
    /// Its key.
    key: String,
    /// What it is sorted by, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
    /// Whether people corrected it.
    corrected: bool,
}

impl ServedLabels {
    /// Reads a folder of labels, with its calibration, or that of its logits where it has none.
    ///
    /// # Errors
    /// The labels cannot be read.
    pub fn open(folder: &Path) -> Result<Self, LabelError> {
        let store = Store::open(folder)?;
        let calibration = Calibration::read_or_of_store(folder, &store)?;
        let values = store.len() * store.meta.vocabulary.attributes.len();
        let mut table = LabelTable {
            rule: AttributeRule::new(&calibration, &AttributeConfig::default()),
            sure: vec![UNSURE; values],
            probability: vec![0.0; values],
            store,
        };
        (0..table.store.len()).for_each(|row| table.update_row(row));
        Ok(Self {
            folder: folder.to_owned(),
            images: table.store.len(),
            attributes: table.attributes().to_vec(),
            table: RwLock::new(table),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, LabelTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of labeled images.
    pub fn len(&self) -> usize {
        self.images
    }

    /// Whether no image is labeled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The attributes of which some image has a sure value, with their numbers of images.
    pub fn counts(&self) -> Vec<ServedAttribute> {
        self.read().counts()
    }

    /// A filter from `ATTRIBUTE:VALUE`s.
    ///
    /// # Errors
    /// An unknown attribute or value.
    pub fn filter<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<LabelFilter, Problem> {
        let mut filter = LabelFilter::default();
        for text in texts {
            let (at, value) = value_of(&self.attributes, text)?;
            match filter.0.iter_mut().find(|(of, _)| *of == at) {
                Some((_, values)) => values.push(value),
                None => filter.0.push((at, vec![value])),
            }
        }
        Ok(filter)
    }

    /// An order from its name: `stored`, `parts`, or an attribute.
    ///
    /// # Errors
    /// An unknown attribute.
    pub fn order(&self, name: &str) -> Result<LabelOrder, Problem> {
        let attributes = &self.attributes;
        match (name, attributes.iter().position(|one| one.name == name)) {
            ("stored", _) => Ok(LabelOrder::Stored),
            ("parts", _) => Ok(LabelOrder::Parts),
            (_, Some(at)) => Ok(LabelOrder::Attribute(at)),
            (_, None) => {
                let names: Vec<&str> = attributes.iter().map(|one| one.name.as_str()).collect();
                Err(Problem::bad_request(format!(
                    "sort: expected one of stored, parts, {}, found `{name}`",
                    names.join(", ")
                )))
            }
        }
    }

    /// Whether the image of a key has the values of a filter.
    pub fn matches(&self, key: &str, filter: &LabelFilter) -> bool {
        let table = self.read();
        let row = table.store.position(key);
        filter.0.is_empty() || row.is_some_and(|row| table.matches(row, filter))
    }

    /// Labeled images.
    pub fn list(&self, query: &LabelQuery) -> LabelPage {
        self.read().list(query)
    }

    /// The labels of an image.
    pub fn of_image(&self, key: &str) -> Option<ImageLabels> {
        self.read().of_image(key)
    }

    /// Adds corrections of an image to earlier ones, or replaces those with `clear`; they are on the
    /// disk when this returns.
    ///
    /// # Errors
    /// 404 for an image without labels, 400 for names that the vocabulary does not have; 500 or 507
    /// where the file system refuses or the file of corrections is damaged, of which `note` gets the
    /// reason.
    pub fn correct(
        &self,
        correction: Correction,
        clear: bool,
        note: &dyn Fn(String),
    ) -> Result<(), Problem> {
        if correction.is_empty() && !clear {
            return Err(Problem::bad_request(
                "expected attributes, parts or clear, found nothing to correct",
            ));
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let unknown =
            || Problem::not_found(format!("{}: expected a labeled image", correction.key));
        let row = table.store.position(&correction.key).ok_or_else(unknown)?;
        let added = table.store.add_correction(&self.folder, correction, clear);
        added.map_err(|error| {
            let status = match &error {
                LabelError::Correction { problem, .. } => return Problem::bad_request(problem),
                LabelError::Io(error) => status_of(error),
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            note(format!("--labels: {error}"));
            Problem::new(
                status,
                "the corrections cannot be written; the log of the server says why",
            )
        })?;
        table.update_row(row);
        Ok(())
    }
}

impl LabelTable {
    fn attributes(&self) -> &[Attribute] {
        &self.store.meta.vocabulary.attributes
    }

    /// Computes the likeliest values of an image.
    fn update_row(&mut self, row: usize) {
        let count = self.attributes().len();
        let likely: Vec<_> = self.likely(row).collect();
        for (at, (value, probability, sure)) in likely.into_iter().enumerate() {
            let value = u16::try_from(value).unwrap_or(UNSURE);
            self.sure[row * count + at] = if sure { value } else { UNSURE };
            self.probability[row * count + at] = probability;
        }
    }

    /// For each attribute: position of the likeliest value, its probability, whether it is sure.
    fn likely(&self, row: usize) -> impl Iterator<Item = (usize, f32, bool)> {
        let vocabulary = &self.store.meta.vocabulary;
        let AttributeTargets { target, mask, .. } =
            self.rule.targets(&self.store.row(row), vocabulary);
        let ranges = vocabulary.ranges().into_iter().zip(mask);
        ranges.map(move |(range, sure)| {
            let values = &target[range];
            let best = largest(values);
            (best, values[best], sure)
        })
    }

    fn counts(&self) -> Vec<ServedAttribute> {
        let attributes = self.attributes();
        let of = |(at, attribute): (usize, &Attribute)| {
            let mut images = vec![0; attribute.values.len()];
            for row in self.sure.chunks_exact(attributes.len()) {
                if let Some(count) = images.get_mut(usize::from(row[at])) {
                    *count += 1;
                }
            }
            let values = attribute.values.iter().zip(images);
            ServedAttribute {
                attribute: attribute.name.clone(),
                values: values
                    .map(|(value, images)| ValueCount {
                        value: value.name.clone(),
                        images,
                    })
                    .collect(),
            }
        };
        { attributes.iter().enumerate() }.map(of).collect()
    }

    fn matches(&self, row: usize, filter: &LabelFilter) -> bool {
        let count = self.attributes().len();
        let sure = &self.sure[row * count..(row + 1) * count];
        { filter.0.iter() }.all(|(at, values)| values.contains(&sure[*at]))
    }

    fn list(&self, query: &LabelQuery) -> LabelPage {
        let count = self.attributes().len();
        let key = |row: usize| self.store.row(row).key;
        let is_corrected = |row: usize| self.store.correction(key(row)).is_some();
        let confidence = |row: usize| match query.order {
            LabelOrder::Stored => None,
            LabelOrder::Parts => {
                let all = self.store.row(row).values.part_confidence;
                let sum: f64 = all.iter().map(|one| f64::from(*one)).sum();
                Some((sum / (255.0 * all.len().max(1) as f64)) as f32)
            }
            LabelOrder::Attribute(at) => self.probability.get(row * count + at).copied(),
        };
        let mut rows: Vec<(Option<f32>, usize)> = (0..self.store.len())
            .filter(|row| self.matches(*row, &query.filter))
            .filter(|row| {
                query
                    .corrected
                    .is_none_or(|wanted| is_corrected(*row) == wanted)
            })
            .map(|row| (confidence(row), row))
            .collect();
        rows.sort_by(|a, b| {
            let of = |one: &(Option<f32>, usize)| one.0.unwrap_or(0.0);
            of(a).total_cmp(&of(b)).then(a.1.cmp(&b.1))
        });
        let labels = rows.iter().skip(query.from).take(query.count);
        LabelPage {
            images: rows.len(),
            corrected: self.store.corrections().images,
            labels: labels
                .map(|&(confidence, row)| ListedLabels {
                    key: key(row).to_owned(),
                    confidence,
                    corrected: is_corrected(row),
                })
                .collect(),
        }
    }

    fn of_image(&self, key: &str) -> Option<ImageLabels> {
        let row = self.store.position(key)?;
        let labels = self.store.row(row);
        let meta = &self.store.meta;
        let class = |at: usize| clasp_label::show::color(u8::try_from(at).unwrap_or(u8::MAX));
        let colors = (0..meta.vocabulary.parts.len()).map(class);
        let likely = self.likely(row).zip(self.attributes());
        let correction = self.store.correction(key);
        Some(ImageLabels {
            key: key.to_owned(),
            rows: meta.rows,
            columns: meta.columns,
            parts: labels.values.parts.to_vec(),
            part_confidence: labels.values.part_confidence.to_vec(),
            classes: meta
                .vocabulary
                .parts
                .iter()
                .map(|part| part.name.clone())
                .collect(),
            colors: colors
                .map(|[r, g, b]| format!("#{r:02x}{g:02x}{b:02x}"))
                .collect(),
            attributes: likely
                .map(|((at, probability, sure), attribute)| LikelyValue {
                    attribute: attribute.name.clone(),
                    value: { attribute.values.get(at) }
                        .map(|value| value.name.clone())
                        .unwrap_or_default(),
                    values: { attribute.values.iter() }
                        .map(|value| value.name.clone())
                        .collect(),
                    probability,
                    sure,
                    corrected: correction
                        .is_some_and(|one| one.attributes.contains_key(&attribute.name)),
                })
                .collect(),
            corrected_parts: correction.map_or_else(Vec::new, |one| {
                one.parts
                    .iter()
                    .map(|part| part.row * meta.columns + part.column)
                    .collect()
            }),
        })
    }
}

/// Positions of the attribute and of the value in `ATTRIBUTE:VALUE`.
fn value_of(attributes: &[Attribute], text: &str) -> Result<(usize, u16), Problem> {
    let wrong = |expected: String| {
        Problem::bad_request(format!("filter: expected {expected}, found `{text}`"))
    };
    let pair = text.split_once(':');
    let (name, value) = pair.ok_or_else(|| wrong("ATTRIBUTE:VALUE".to_owned()))?;
    let at = attributes
        .iter()
        .position(|one| one.name == name)
        .ok_or_else(|| {
            let names: Vec<&str> = attributes.iter().map(|one| one.name.as_str()).collect();
            wrong(format!("one of {}", names.join(", ")))
        })?;
    let values = &attributes[at].values;
    let found = values.iter().position(|one| one.name == value);
    let found = found
        .and_then(|found| u16::try_from(found).ok())
        .ok_or_else(|| {
            let values: Vec<&str> = values.iter().map(|one| one.name.as_str()).collect();
            wrong(format!("{name}: one of {}", values.join(", ")))
        })?;
    Ok((at, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_data::labels::{LabelValues, Labels, PartCorrection, StoreMeta, write_shard};
    use clasp_data::vocabulary::Vocabulary;

    /// Four images whose first pair is no, no, yes, yes; the second is sure of the last only.
    fn store(folder: &Path) -> ServedLabels {
        let vocabulary = Vocabulary::standard().unwrap();
        let meta = StoreMeta {
            rows: 2,
            columns: 1,
            model: "m".to_owned(),
            model_sha256: String::new(),
            method: "clip".to_owned(),
            dense: "clear".to_owned(),
            confidence: 0.5,
            vocabulary: vocabulary.clone(),
        };
        let labels: Vec<Labels> = (0..4_u8)
            .map(|image| Labels {
                key: format!("a/{image}"),
                width: 8,
                height: 16,
                image_sha256: String::new(),
                values: LabelValues {
                    parts: vec![1, 2],
                    part_confidence: vec![255 - 40 * image, 200],
                    attributes: (0..vocabulary.logits())
                        .map(|at| ((at * 7 + usize::from(image) * 13) % 29) as f32)
                        .collect(),
                },
            })
            .collect();
        write_shard(folder, "a", &meta, &labels).unwrap();
        ServedLabels::open(folder).unwrap()
    }

    fn query(labels: &ServedLabels, order: &str) -> LabelQuery {
        LabelQuery {
            order: labels.order(order).unwrap(),
            filter: LabelFilter::default(),
            corrected: None,
            from: 0,
            count: 9,
        }
    }

    fn keys(page: &LabelPage) -> Vec<&str> {
        page.labels.iter().map(|one| one.key.as_str()).collect()
    }

    #[test]
    fn corrections_are_listed_filtered_by_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let labels = store(folder.path());
        assert_eq!(
            keys(&labels.list(&query(&labels, "parts"))),
            ["a/3", "a/2", "a/1", "a/0"]
        );
        let attribute = &labels.of_image("a/1").unwrap().attributes[0];
        let (name, value) = (attribute.attribute.clone(), attribute.values[0].clone());
        let correction = Correction {
            key: "a/1".to_owned(),
            attributes: [(name.clone(), Some(value.clone()))].into(),
            parts: vec![PartCorrection {
                row: 1,
                column: 0,
                class: Some("background".to_owned()),
            }],
            ..Correction::default()
        };
        labels.correct(correction, false, &|_| {}).unwrap();
        let check = |labels: &ServedLabels| {
            let of = labels.of_image("a/1").unwrap();
            assert_eq!((of.parts, of.corrected_parts), (vec![1, 0], vec![1]));
            let first = &of.attributes[0];
            assert!(first.value == value && first.corrected && first.sure);
            let text = format!("{name}:{value}");
            let filter = labels.filter([text.as_str()].into_iter()).unwrap();
            assert!(labels.matches("a/1", &filter));
            let corrected = LabelQuery {
                corrected: Some(true),
                filter,
                ..query(labels, &name)
            };
            let page = labels.list(&corrected);
            assert_eq!((keys(&page), page.corrected), (vec!["a/1"], 1));
        };
        check(&labels);
        check(&ServedLabels::open(folder.path()).unwrap());
        let unknown = Correction {
            key: "a/2".to_owned(),
            attributes: [("glass".to_owned(), None)].into(),
            ..Correction::default()
        };
        let problem = labels.correct(unknown, false, &|_| {}).unwrap_err();
        assert_eq!(problem.status(), 400);
        let text = serde_json::to_string(&problem).unwrap();
        let path = folder.path().display().to_string();
        assert!(text.contains("glass") && !text.contains(&path), "{text}");
        let back = Correction {
            key: "a/1".to_owned(),
            ..Correction::default()
        };
        labels.correct(back, true, &|_| {}).unwrap();
        assert_eq!(labels.of_image("a/1").unwrap().parts, [1, 2]);
    }
}
