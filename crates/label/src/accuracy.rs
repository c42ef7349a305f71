//! Accuracy of labels: a store against the ground truth of the same images, as `clasp synth` writes
//! it.

use std::fmt;

use clasp_data::labels::{AttributeConfig, AttributeRule, Calibration, Store, largest};
use serde::Serialize;

use crate::Error;
use crate::parts::IGNORE;

/// Accuracy of the labels of a store. All shares are from 0 to 1, and 0 of nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// Images in both stores.
    pub images: usize,
    /// Images of the labels without ground truth.
    pub unknown: usize,
    /// The part maps.
    pub parts: PartAccuracy,
    /// Each attribute of the labels with ground truth, in the order of the labels' vocabulary.
    pub attributes: Vec<AttributeAccuracy>,
}

/// Accuracy of part maps, over all patch positions of all images whose true class is known. Where
/// the grids differ, a position of the ground truth is compared with the label at its center.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartAccuracy {
    /// Share of the images without a single labeled position: k-means skips such images.
    pub skipped: f64,
    /// Share of the positions that have a label, that is, not 255.
    pub labeled: f64,
    /// Share of the labeled positions whose label is the true class; `None` where the classes
    /// differ (k-means).
    pub right: Option<f64>,
    /// Intersection over union of each class, in the order of the vocabulary, over labeled
    /// positions; a class that occurs in neither store is omitted. Empty where the classes differ.
    pub iou: Vec<(String, f64)>,
    /// Precision of the foreground (any class but the first) over labeled positions.
    pub foreground_precision: f64,
    /// Recall of the foreground over labeled positions.
    pub foreground_recall: f64,
}

/// Accuracy of an attribute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttributeAccuracy {
    /// Its name.
    pub name: String,
    /// Images with a known true value.
    pub images: usize,
    /// Share of these that training masks: too small a margin, or a disabled attribute.
    pub masked: f64,
    /// Whether the attribute is disabled for its small spread.
    pub off: bool,
    /// Accuracy of the most probable value over the unmasked images.
    pub right: f64,
    /// Accuracy over all images.
    pub right_of_all: f64,
    /// Mean recall over the true values that occur.
    pub recall: f64,
    /// Mean recall of guessing.
    pub chance: f64,
    /// Share of the commonest true value, the accuracy of always predicting it.
    pub commonest: f64,
}

impl Accuracy {
    /// Mean accuracy over the attributes, each over its unmasked images; attributes without any are
    /// omitted. 0 if there are none.
    pub fn attributes_right(&self) -> f64 {
        let learned = self.attributes.iter().filter(|a| a.masked < 1.0);
        let (sum, count) =
            learned.fold((0.0, 0usize), |(sum, count), a| (sum + a.right, count + 1));
        sum / count.max(1) as f64
    }

    /// Mean over the attributes of the share of images that are masked; 0 without attributes.
    pub fn attributes_masked(&self) -> f64 {
        let sum: f64 = self.attributes.iter().map(|a| a.masked).sum();
        sum / self.attributes.len().max(1) as f64
    }
}

/// Compares `labels` with `truth`. Attributes and values are matched by name; the labels'
/// calibration is that beside them, or taken from `labels` if absent.
///
/// # Errors
///
/// The stores have no image in common, or the labels no image at all.
pub fn accuracy(
    labels: &Store,
    truth: &Store,
    calibration: Option<&Calibration>,
    config: &AttributeConfig,
) -> Result<Accuracy, Error> {
    let own;
    let calibration = match calibration {
        Some(calibration) => calibration,
        None => {
            own = Calibration::of_store(labels)?;
            &own
        }
    };
    let vocabulary = &labels.meta.vocabulary;
    let rule = AttributeRule::new(calibration, config);
    let matched = matches(labels, truth);
    let mut counts: Vec<AttributeCounts> = { matched.iter() }
        .map(|m| AttributeCounts::new(m.values.len()))
        .collect();
    let classes = {
        let names = |store: &Store| -> Vec<String> {
            let parts = store.meta.vocabulary.parts.iter();
            parts.map(|part| part.name.clone()).collect()
        };
        let (mine, true_ones) = (names(labels), names(truth));
        (mine == true_ones).then_some(mine)
    };
    let mut parts = PartCounts::default();
    let (mut images, mut unknown) = (0, 0);
    for row in labels.iter() {
        let Some(right) = truth.get(row.key) else {
            unknown += 1;
            continue;
        };
        images += 1;
        let grid = |store: &Store| [store.meta.rows, store.meta.columns];
        parts.add(
            row.values.parts,
            grid(labels),
            right.values.parts,
            grid(truth),
        );
        let targets = rule.targets(&row, vocabulary);
        for (matched, count) in matched.iter().zip(&mut counts) {
            let logits = &right.values.attributes[matched.truth.clone()];
            let Some(value) = true_value(logits).and_then(|value| matched.values[value]) else {
                continue;
            };
            let found = largest(&targets.target[matched.labels.clone()]);
            count.add(value, found == value, targets.mask[matched.index]);
        }
    }
    if images == 0 {
        return Err(Error::Config {
            key: "images".into(),
            expected: "labels and ground truth of the same images, by key".into(),
            found: format!(
                "{} labels and ground truth of {} other images",
                labels.len(),
                truth.len()
            ),
        });
    }
    let attributes = { matched.iter().zip(&counts) }
        .filter(|(_, count)| count.images > 0)
        .map(|(matched, count)| {
            let name = vocabulary.attributes[matched.index].name.clone();
            count.accuracy(name, rule.weight[matched.index] == 0.0)
        })
        .collect();
    Ok(Accuracy {
        images,
        unknown,
        parts: parts.accuracy(images, classes),
        attributes,
    })
}

/// An attribute of both stores.
struct MatchedAttribute {
    /// Its index in the labels' vocabulary.
    index: usize,
    /// Its values in the labels.
    labels: std::ops::Range<usize>,
    /// Its values in the ground truth.
    truth: std::ops::Range<usize>,
    /// For each value of the ground truth, its index in the labels.
    values: Vec<Option<usize>>,
}

fn matches(labels: &Store, truth: &Store) -> Vec<MatchedAttribute> {
    let (mine, known) = (&labels.meta.vocabulary, &truth.meta.vocabulary);
    let known_ranges = known.ranges();
    let same = |name: &str| known.attributes.iter().position(|a| a.name == name);
    { mine.attributes.iter().zip(mine.ranges()).enumerate() }
        .filter_map(|(index, (attribute, range))| {
            let other = same(&attribute.name)?;
            let values = &known.attributes[other].values;
            let place = |name: &str| attribute.values.iter().position(|v| v.name == name);
            Some(MatchedAttribute {
                index,
                labels: range,
                truth: known_ranges[other].clone(),
                values: values.iter().map(|value| place(&value.name)).collect(),
            })
        })
        .collect()
}

/// The true value by its log-probabilities; `None` where they are all equal, which means unknown.
fn true_value(logits: &[f32]) -> Option<usize> {
    let known = logits.windows(2).any(|pair| pair[0] != pair[1]);
    known.then(|| largest(logits))
}

/// Counts of one attribute.
struct AttributeCounts {
    images: usize,
    clear: usize,
    clear_right: usize,
    /// Images and right answers by true value.
    totals: Vec<usize>,
    hits: Vec<usize>,
}

impl AttributeCounts {
    fn new(values: usize) -> Self {
        Self {
            images: 0,
            clear: 0,
            clear_right: 0,
            totals: vec![0; values],
            hits: vec![0; values],
        }
    }

    fn add(&mut self, value: usize, right: bool, clear: bool) {
        self.images += 1;
        self.clear += usize::from(clear);
        self.clear_right += usize::from(clear && right);
        if let (Some(total), Some(hit)) = (self.totals.get_mut(value), self.hits.get_mut(value)) {
            *total += 1;
            *hit += usize::from(right);
        }
    }

    fn accuracy(&self, name: String, off: bool) -> AttributeAccuracy {
        let occurring = || { self.totals.iter().zip(&self.hits) }.filter(|(total, _)| **total > 0);
        let recalls: f64 = occurring().map(|(total, hits)| share(*hits, *total)).sum();
        let values = occurring().count().max(1) as f64;
        AttributeAccuracy {
            name,
            images: self.images,
            masked: share(self.images - self.clear, self.images),
            off,
            right: share(self.clear_right, self.clear),
            right_of_all: share(self.hits.iter().sum(), self.images),
            recall: recalls / values,
            chance: 1.0 / values,
            commonest: share(self.totals.iter().copied().max().unwrap_or(0), self.images),
        }
    }
}

fn share(count: usize, of: usize) -> f64 {
    count as f64 / of.max(1) as f64
}

/// Counts of grid positions: `confusion[(true class, label)]`.
struct PartCounts {
    positions: usize,
    skipped: usize,
    confusion: Vec<[usize; 256]>,
}

impl Default for PartCounts {
    fn default() -> Self {
        Self {
            positions: 0,
            skipped: 0,
            confusion: vec![[0; 256]; 256],
        }
    }
}

impl PartCounts {
    fn add(&mut self, labels: &[u8], from: [usize; 2], truth: &[u8], to: [usize; 2]) {
        self.skipped += usize::from(labels.iter().all(|&label| label == IGNORE));
        let at = |i: usize, from: usize, to: usize| (2 * i + 1) * from / (2 * to);
        for row in 0..to[0] {
            for column in 0..to[1] {
                let class = truth[row * to[1] + column];
                if class == IGNORE {
                    continue;
                }
                self.positions += 1;
                let (y, x) = (at(row, from[0], to[0]), at(column, from[1], to[1]));
                let label = labels[y * from[1] + x];
                if label != IGNORE {
                    self.confusion[usize::from(class)][usize::from(label)] += 1;
                }
            }
        }
    }

    fn accuracy(&self, images: usize, classes: Option<Vec<String>>) -> PartAccuracy {
        let total = |class: usize| self.confusion[class].iter().sum::<usize>();
        let called = |class: usize| self.confusion.iter().map(|row| row[class]).sum::<usize>();
        let labeled: usize = (0..256).map(total).sum();
        let right: usize = (0..256).map(|class| self.confusion[class][class]).sum();
        let both = labeled - total(0) - called(0) + self.confusion[0][0];
        let iou = { classes.iter().flatten().enumerate() }.filter_map(|(class, name)| {
            let hits = self.confusion[class][class];
            let union = total(class) + called(class) - hits;
            (union > 0).then(|| (name.clone(), share(hits, union)))
        });
        PartAccuracy {
            skipped: share(self.skipped, images),
            labeled: share(labeled, self.positions),
            right: classes.as_ref().map(|_| share(right, labeled)),
            iou: iou.collect(),
            foreground_precision: share(both, labeled - called(0)),
            foreground_recall: share(both, labeled - total(0)),
        }
    }
}

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        let parts = &self.parts;
        writeln!(
            f,
            "{} images with ground truth, {} without",
            self.images, self.unknown
        )?;
        writeln!(
            f,
            "parts: {:.1} % of the grid positions labeled, {:.1} % of the images not at all",
            percent(parts.labeled),
            percent(parts.skipped)
        )?;
        writeln!(
            f,
            "foreground: precision {:.1} %, recall {:.1} %",
            percent(parts.foreground_precision),
            percent(parts.foreground_recall)
        )?;
        if let Some(right) = parts.right {
            writeln!(f, "right class: {:.1} % of the labeled", percent(right))?;
        }
        for (name, iou) in &parts.iou {
            writeln!(f, "  IoU {name:<16} {:>6.1}", percent(*iou))?;
        }
        if self.attributes.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<18} {:>8} {:>14} {:>13} {:>12} {:>8} {:>12}",
            "attribute",
            "masked %",
            "right, kept %",
            "right, all %",
            "mean recall",
            "chance",
            "commonest %"
        )?;
        for a in &self.attributes {
            writeln!(
                f,
                "{:<18} {:>8.1} {:>14} {:>13.1} {:>12.1} {:>8.1} {:>12.1}",
                a.name,
                percent(a.masked),
                match (a.off, a.masked < 1.0) {
                    (true, _) => "off".to_owned(),
                    (_, true) => format!("{:.1}", percent(a.right)),
                    _ => "none".to_owned(),
                },
                percent(a.right_of_all),
                percent(a.recall),
                percent(a.chance),
                percent(a.commonest)
            )?;
        }
        write!(
            f,
            "\nmean over attributes: {:.1} % right of the unmasked images, {:.1} % masked",
            percent(self.attributes_right()),
            percent(self.attributes_masked())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::meta;
    use clasp_data::labels::{LabelValues, Labels, METHOD_TRUTH, StoreMeta, write_shard};

    fn store(folder: &std::path::Path, meta: &StoreMeta, rows: &[(Vec<u8>, Vec<f32>)]) -> Store {
        let labels: Vec<Labels> = { rows.iter().enumerate() }
            .map(|(i, (parts, attributes))| Labels {
                key: i.to_string(),
                width: 1,
                height: 1,
                image_sha256: String::new(),
                values: LabelValues {
                    parts: parts.clone(),
                    part_confidence: vec![255; parts.len()],
                    attributes: attributes.clone(),
                },
            })
            .collect();
        write_shard(folder, "people", meta, &labels).unwrap();
        Store::open(folder).unwrap()
    }

    #[test]
    fn accuracy_equals_a_count_by_hand() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        // Three ages, glasses no and yes. Of the last person the age is not known.
        let truth_meta = StoreMeta {
            method: METHOD_TRUTH.into(),
            ..meta([2, 2])
        };
        let far = -10.0;
        let truth = [
            (vec![0, 1, 0, 2], vec![0.0, far, far, 0.0, far]),
            (vec![0, 1, 0, 2], vec![far, 0.0, far, 0.0, far]),
            (vec![0, 1, 0, 2], vec![far, 0.0, far, far, 0.0]),
            (vec![0, 1, 255, 2], vec![0.0, 0.0, 0.0, far, 0.0]),
        ];
        let truth = store(folders[0].path(), &truth_meta, &truth);
        // On a grid of one row: its two labels stand for two rows.
        let labels = [
            (vec![0, 1], vec![4.0, 0.0, 0.0, 3.0, 0.0]),
            (vec![1, 1], vec![0.0, 4.0, 0.0, 0.0, 3.0]),
            (vec![255, 255], vec![4.0, 0.0, 0.0, 0.0, 3.0]),
            (vec![0, 2], vec![0.0, 4.0, 0.0, 0.1, 0.0]),
        ];
        let labels = store(folders[1].path(), &meta([1, 2]), &labels);
        let calibration = Calibration {
            mean: vec![0.0; 5],
            ..Calibration::of_store(&labels).unwrap()
        };
        let config = AttributeConfig {
            temperature: Some(1.0),
            ..AttributeConfig::default()
        };
        let found = accuracy(&labels, &truth, Some(&calibration), &config).unwrap();
        assert_eq!((found.images, found.unknown), (4, 0));
        // 15 known positions; image 2 has no label, so 11 are labeled. Labels are right at the two
        // 0s and the 1 of image 0, the 1 of image 1, the 0 and the 2 of image 3.
        let parts = &found.parts;
        assert_eq!(parts.skipped, 0.25);
        assert_eq!(parts.labeled, 11.0 / 15.0);
        assert_eq!(parts.right, Some(6.0 / 11.0));
        // Foreground: 6 positions, all called so, and two more.
        assert_eq!(parts.foreground_precision, 6.0 / 8.0);
        assert_eq!(parts.foreground_recall, 1.0);
        let iou: Vec<f64> = parts.iou.iter().map(|(_, iou)| *iou).collect();
        // Class 0: 3 of 5. Class 1: 2 of 3 + 6 - 2 = 7. Class 2: 1 of 3 + 2 - 1 = 4.
        assert_eq!(iou, [3.0 / 5.0, 2.0 / 7.0, 1.0 / 4.0]);

        let [age, glasses] = &found.attributes[..] else {
            panic!("{:?}", found.attributes)
        };
        assert_eq!((age.images, age.masked, age.off), (3, 0.0, false));
        assert_eq!((age.right, age.right_of_all), (2.0 / 3.0, 2.0 / 3.0));
        // Of one child and two adults, the child and one adult are right.
        assert_eq!(
            (age.recall, age.chance, age.commonest),
            (0.75, 0.5, 2.0 / 3.0)
        );
        assert_eq!((glasses.images, glasses.masked), (4, 0.25));
        assert_eq!((glasses.right, glasses.right_of_all), (2.0 / 3.0, 0.5));
        assert_eq!(found.attributes_masked(), 0.125);
        assert!(found.to_string().contains("age"));

        // The ground truth agrees with itself.
        let found = accuracy(&truth, &truth, None, &AttributeConfig::default()).unwrap();
        assert!(
            found
                .attributes
                .iter()
                .all(|a| (a.right, a.right_of_all) == (1.0, 1.0))
        );
        assert_eq!(found.parts.right, Some(1.0));
    }

    #[test]
    fn labels_of_other_images_have_no_accuracy() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let row = (vec![0, 1], vec![1.0, 0.0, 0.0, 0.0, 1.0]);
        let truth = store(folders[0].path(), &meta([1, 2]), &[]);
        let labels = store(folders[1].path(), &meta([1, 2]), &[row]);
        let error = accuracy(&labels, &truth, None, &AttributeConfig::default()).unwrap_err();
        assert!(
            error.to_string().contains("ground truth of 0 other images"),
            "{error}"
        );
    }
}
