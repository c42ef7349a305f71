//! Agreement of two label stores of the same images: what another model, precision or size changes.

use std::fmt;

use clasp_data::labels::{AttributeConfig, AttributeRule, Calibration, Store};
use clasp_data::vocabulary::Vocabulary;
use serde::Serialize;

use crate::Error;
use crate::parts::IGNORE;

/// Agreement of two stores. All shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Images in both.
    pub images: usize,
    /// Images in one store only.
    pub alone: usize,
    /// Share of the patch positions with the same class, or ignored, in both.
    pub positions: f64,
    /// The same of the positions that have a class in both.
    pub labeled_positions: f64,
    /// Share of the images with the same most probable value, and the same of those that training
    /// uses from both; by attribute.
    pub attributes: Vec<AttributeAgreement>,
    /// Largest difference of two logits.
    pub largest_difference: f32,
}

/// Agreement on an attribute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttributeAgreement {
    /// Its name.
    pub name: String,
    /// Share of the images with the same most probable value.
    pub all: f64,
    /// The same of the images that neither store masks.
    pub clear: f64,
}

/// Shares of what is equal.
#[derive(Default, Clone, Copy)]
struct EqualCount {
    equal: u64,
    all: u64,
}

impl EqualCount {
    fn add(&mut self, equal: bool) {
        self.equal += u64::from(equal);
        self.all += 1;
    }

    /// 1 of nothing: nothing differs.
    fn share(self) -> f64 {
        if self.all == 0 {
            1.0
        } else {
            self.equal as f64 / self.all as f64
        }
    }
}

/// Compares two stores, each calibrated over itself, with targets by `config`.
///
/// # Errors
/// The vocabularies or grids differ, or no image is in both.
pub fn compare(one: &Store, other: &Store, config: &AttributeConfig) -> Result<Agreement, Error> {
    let differ = |key: &str, expected: String, found: String| {
        Err(Error::Config {
            key: key.to_owned(),
            expected,
            found,
        })
    };
    let vocabulary = &one.meta.vocabulary;
    // Prompts may differ: their effect can be compared.
    if names(vocabulary) != names(&other.meta.vocabulary) {
        return differ(
            "vocabulary",
            format!("the same parts and attributes: {}", names(vocabulary)),
            names(&other.meta.vocabulary),
        );
    }
    let grid = |store: &Store| format!("{}x{}", store.meta.rows, store.meta.columns);
    if grid(one) != grid(other) {
        return differ("grid", grid(one), grid(other));
    }
    let rules = [Calibration::of_store(one)?, Calibration::of_store(other)?]
        .map(|calibration| AttributeRule::new(&calibration, config));
    let ranges = vocabulary.ranges();
    let (mut positions, mut labeled) = (EqualCount::default(), EqualCount::default());
    let mut attributes = vec![[EqualCount::default(); 2]; ranges.len()];
    let (mut images, mut largest) = (0, 0.0_f32);
    for mine in one.iter() {
        let Some(theirs) = other.get(mine.key) else {
            continue;
        };
        images += 1;
        for (a, b) in mine.values.parts.iter().zip(theirs.values.parts) {
            positions.add(a == b);
            if *a != IGNORE && *b != IGNORE {
                labeled.add(a == b);
            }
        }
        for (a, b) in mine.values.attributes.iter().zip(theirs.values.attributes) {
            largest = largest.max((a - b).abs());
        }
        let [a, b] = [(mine, &rules[0]), (theirs, &rules[1])]
            .map(|(labels, rule)| rule.targets(&labels, vocabulary));
        for (index, (range, [all, clear])) in ranges.iter().zip(&mut attributes).enumerate() {
            let best = |target: &[f32]| {
                let best = range
                    .clone()
                    .max_by(|i, j| target[*i].total_cmp(&target[*j]));
                best.unwrap_or(range.start)
            };
            let equal = best(&a.target) == best(&b.target);
            all.add(equal);
            if a.mask[index] && b.mask[index] {
                clear.add(equal);
            }
        }
    }
    if images == 0 {
        return differ(
            "images",
            "images that are in both folders".to_owned(),
            format!("{} and {} others", one.len(), other.len()),
        );
    }
    Ok(Agreement {
        images,
        alone: one.len() + other.len() - 2 * images,
        positions: positions.share(),
        labeled_positions: labeled.share(),
        attributes: { vocabulary.attributes.iter().zip(attributes) }
            .map(|(attribute, [all, clear])| AttributeAgreement {
                name: attribute.name.clone(),
                all: all.share(),
                clear: clear.share(),
            })
            .collect(),
        largest_difference: largest,
    })
}

/// Parts, attributes and their values.
fn names(vocabulary: &Vocabulary) -> String {
    let mut names: Vec<String> = { vocabulary.parts.iter() }
        .map(|part| part.name.clone())
        .collect();
    for attribute in &vocabulary.attributes {
        let values: Vec<&str> = { attribute.values.iter() }
            .map(|value| value.name.as_str())
            .collect();
        names.push(format!("{} ({})", attribute.name, values.join(", ")));
    }
    names.join(", ")
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        writeln!(
            f,
            "{} images in both, {} in one alone",
            self.images, self.alone
        )?;
        writeln!(
            f,
            "equal positions: {}   of those with a class in both: {}",
            percent(self.positions),
            percent(self.labeled_positions)
        )?;
        writeln!(
            f,
            "\n{:<20} {:>10} {:>16}",
            "attribute", "equal", "equal, unmasked"
        )?;
        for attribute in &self.attributes {
            writeln!(
                f,
                "{:<20} {:>10} {:>16}",
                attribute.name,
                percent(attribute.all),
                percent(attribute.clear)
            )?;
        }
        write!(
            f,
            "\nlargest difference of two logits: {:.4}",
            self.largest_difference
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::meta;
    use clasp_data::labels::{LabelValues, Labels, write_shard};

    fn store(
        folder: &std::path::Path,
        keys: std::ops::Range<usize>,
        change: impl Fn(usize, &mut Labels),
    ) -> Store {
        let labels: Vec<Labels> = keys
            .map(|i| {
                let mut labels = Labels {
                    key: format!("{i:02}"),
                    width: 1,
                    height: 1,
                    image_sha256: String::new(),
                    values: LabelValues {
                        parts: vec![0, 1],
                        part_confidence: vec![255, 255],
                        attributes: vec![
                            1.0,
                            2.0 + i as f32,
                            3.0,
                            1.0,
                            if i % 2 == 0 { 0.0 } else { 4.0 },
                        ],
                    },
                };
                change(i, &mut labels);
                labels
            })
            .collect();
        write_shard(folder, "people", &meta([1, 2]), &labels).unwrap();
        Store::open(folder).unwrap()
    }

    #[test]
    fn differences_are_counted() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let one = store(folders[0].path(), 0..10, |_, _| {});
        let same = compare(&one, &one, &AttributeConfig::default()).unwrap();
        assert_eq!(
            (
                same.images,
                same.alone,
                same.positions,
                same.labeled_positions
            ),
            (10, 0, 1.0, 1.0)
        );
        assert!(
            same.attributes
                .iter()
                .all(|a| (a.all, a.clear) == (1.0, 1.0))
        );
        // Of 02 to 09, one position of 02 is another, one of 03 is without a class, and 04 has the
        // other value of the last attribute.
        let other = store(folders[1].path(), 2..12, |i, labels| match i {
            2 => labels.values.parts[1] = 0,
            3 => labels.values.parts[1] = IGNORE,
            4 => labels.values.attributes[4] = 4.5,
            _ => {}
        });
        let found = compare(&one, &other, &AttributeConfig::default()).unwrap();
        assert_eq!((found.images, found.alone), (8, 4));
        assert_eq!(
            (found.positions, found.labeled_positions),
            (14.0 / 16.0, 14.0 / 15.0)
        );
        let last = found.attributes.last().unwrap();
        assert_eq!(last.all, 7.0 / 8.0);
        assert_eq!(found.largest_difference, 4.5);
    }

    #[test]
    fn other_images_are_an_error() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let one = store(folders[0].path(), 0..3, |_, _| {});
        let other = store(folders[1].path(), 5..8, |_, _| {});
        let error = compare(&one, &other, &AttributeConfig::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("images that are in both folders"), "{error}");
    }
}
