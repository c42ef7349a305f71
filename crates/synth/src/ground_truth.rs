//! The ground truth of synthetic people as a label store: the upper bound of any labeler.

use crate::render::RenderedPerson;
use clasp_data::labels::{LabelValues, Labels, METHOD_TRUTH, StoreMeta};
use clasp_data::part;
use clasp_data::vocabulary::{IGNORE, Vocabulary, VocabularyError};

/// Rows and columns of the part maps, as `clasp label` stores them by default.
const GRID: [usize; 2] = [16, 8];

/// Logit of a value that is not the true one; the true one has 0. A softmax at temperature 1 gives
/// the true one of eleven values 0.9995.
const FALSE_LOGIT: f32 = -10.0;

/// Metadata of a label store of the ground truth: the default vocabulary, a grid of 16 × 8.
///
/// # Errors
///
/// The built-in vocabulary cannot be read.
pub fn ground_truth_meta() -> Result<StoreMeta, VocabularyError> {
    Ok(StoreMeta {
        vocabulary: Vocabulary::standard()?,
        model: "synthetic people".into(),
        model_sha256: String::new(),
        rows: GRID[0],
        columns: GRID[1],
        method: METHOD_TRUTH.into(),
        dense: String::new(),
        confidence: 0.0,
    })
}

/// The ground truth of a picture, in the vocabulary and on the grid of `meta`.
///
/// A position has the class of most of its pixels; its confidence is their share. An attribute has
/// logits of 0 for the true value and −10 for the others. It has 0 everywhere, which is masked in
/// training, where the vocabulary does not name the true value, and for what no picture can show:
/// glasses from behind, and anything of a person that is hidden altogether.
#[must_use]
pub fn ground_truth_labels(key: &str, rendered: &RenderedPerson, meta: &StoreMeta) -> Labels {
    let (height, width) = (rendered.image.height, rendered.image.width);
    let positions = majority(&rendered.parts, [height, width], [meta.rows, meta.columns]);
    let vocabulary = &meta.vocabulary;
    let mut attributes = vec![0.0; vocabulary.logits()];
    for (attribute, range) in vocabulary.attributes.iter().zip(vocabulary.ranges()) {
        let truth = rendered.attributes.get(attribute.name.as_str());
        let unseen =
            attribute.name == "glasses" && rendered.attributes.get("view") == Some(&"back");
        let value = attribute
            .values
            .iter()
            .position(|value| Some(&value.name.as_str()) == truth)
            .filter(|_| !unseen && rendered.area > 0);
        if let Some(value) = value {
            attributes[range.clone()].fill(FALSE_LOGIT);
            attributes[range.start + value] = 0.0;
        }
    }
    let share = |share: f32| (255.0 * share).round() as u8;
    Labels {
        key: key.to_owned(),
        width: u16::try_from(width).unwrap_or(u16::MAX),
        height: u16::try_from(height).unwrap_or(u16::MAX),
        values: LabelValues {
            parts: positions.iter().map(|position| position.0).collect(),
            part_confidence: positions.iter().map(|position| share(position.1)).collect(),
            attributes,
        },
        image_sha256: String::new(),
    }
}

/// The commonest class among the pixels of each position of a grid, and its share of them; of equally
/// common ones the lowest. [`IGNORE`] and 0 for a position without a pixel, in a picture smaller than
/// the grid.
///
/// - `parts`: [height, width], classes or [`IGNORE`]
/// - returns [rows, columns]
#[must_use]
pub fn majority(
    parts: &[u8],
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Vec<(u8, f32)> {
    assert_eq!(
        parts.len(),
        height * width,
        "classes and pixels of a mask of {height} x {width}"
    );
    let mut counts = vec![[0u32; 256]; rows * columns];
    for (place, &part) in parts.iter().enumerate() {
        let row = place / width * rows / height;
        let column = place % width * columns / width;
        counts[row * columns + column][usize::from(part)] += 1;
    }
    let best = |counts: &[u32; 256]| {
        let total: u32 = counts.iter().sum();
        (0..=u8::MAX)
            .zip(counts)
            .max_by_key(|(class, count)| (**count, u8::MAX - class))
            .filter(|_| total > 0)
            .map_or((IGNORE, 0.0), |(class, &count)| {
                (class, count as f32 / total as f32)
            })
    };
    counts.iter().map(best).collect()
}

// The masks' classes are those of the default vocabulary, by number.
const _: () = assert!(part::NAMES.len() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SynthConfig, write_dataset};
    use clasp_data::labels::{AttributeConfig, AttributeRule, Calibration, Store};
    use clasp_data::source::Source;

    #[test]
    fn a_position_has_the_class_of_most_of_its_pixels() {
        let parts = [1, 1, 2, 3, 1, 2, 3, 2];
        let found = majority(&parts, [2, 4], [1, 2]);
        assert_eq!(found, [(1, 0.75), (2, 0.5)]);
        assert_eq!(majority(&[4], [1, 1], [1, 2]), [(4, 1.0), (IGNORE, 0.0)]);
    }

    #[test]
    fn classes_of_masks_are_those_of_the_vocabulary() {
        let meta = ground_truth_meta().unwrap();
        let names: Vec<&str> = { meta.vocabulary.parts.iter() }
            .map(|part| part.name.as_str())
            .collect();
        assert_eq!(names, part::NAMES);
        for (name, values) in crate::ATTRIBUTES {
            let attribute = { meta.vocabulary.attributes.iter() }.find(|a| a.name == *name);
            let found: Vec<&str> = { attribute.unwrap().values.iter() }
                .map(|value| value.name.as_str())
                .collect();
            assert_eq!(found, *values, "{name}");
        }
    }

    #[test]
    fn the_ground_truth_store_matches_the_unlabeled_images() {
        let folder = tempfile::tempdir().unwrap();
        let config = SynthConfig {
            train_identities: 0,
            test_identities: 0,
            unlabeled: 60,
            scenes: 0,
            height: 64,
            width: 32,
            ..SynthConfig::default()
        };
        write_dataset(folder.path(), &config, &mut |_, _| {}).unwrap();
        let images = folder.path().join("unlabeled").display().to_string();
        let source = Source::open(&images).unwrap();
        let store = Store::open(&folder.path().join("truth")).unwrap();
        assert_eq!(store.len(), 60);
        let vocabulary = &store.meta.vocabulary;
        let calibration = Calibration::read(&folder.path().join("truth"), vocabulary).unwrap();
        let rule = AttributeRule::new(&calibration, &AttributeConfig::default());
        let (mut unmasked, mut masked) = (0, 0);
        for (index, key) in source.keys().enumerate() {
            let row = store.get(key).unwrap();
            let (_, rendered, _) = crate::dataset::render_unlabeled(0, index as u64, 64, 32);
            let targets = rule.targets(&row, vocabulary);
            for ((attribute, range), clear) in { vocabulary.attributes.iter() }
                .zip(vocabulary.ranges())
                .zip(&targets.mask)
            {
                let truth = rendered.attributes[attribute.name.as_str()];
                if !clear {
                    assert_eq!(
                        (attribute.name.as_str(), rendered.attributes["view"]),
                        ("glasses", "back")
                    );
                    masked += 1;
                    continue;
                }
                unmasked += 1;
                let best = { attribute.values.iter().zip(&targets.target[range]) }
                    .max_by(|a, b| a.1.total_cmp(b.1))
                    .unwrap();
                assert!(
                    best.0.name == truth && *best.1 > 0.99,
                    "{best:?} for {truth}"
                );
            }
            // People stand in the middle; the corner is background.
            assert!(
                row.values.parts.iter().any(|&part| part != 0) && row.values.parts[0] == 0,
                "{key}"
            );
        }
        assert!(masked > 0 && unmasked > 13 * 55, "{masked} and {unmasked}");
        // A second call finds everything there; one without the store makes it again.
        fs_err::remove_file(folder.path().join("truth/unlabeled-000.parquet")).unwrap();
        write_dataset(folder.path(), &config, &mut |_, _| {}).unwrap();
        let again = Store::open(&folder.path().join("truth")).unwrap();
        assert!(again.iter().eq(store.iter()));
    }
}
