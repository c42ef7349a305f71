//! Statistics of a label store, with warnings.

use std::fmt;

use clasp_data::labels::{
    AttributeConfig, AttributeRule, Calibration, CorrectionCounts, Store, largest,
};
use serde::Serialize;

use crate::Error;
use crate::parts::IGNORE;

/// A class or value that is chosen less often than this is rarely chosen.
const RARELY: f64 = 0.01;
/// A class or value that is chosen more often than this is almost always chosen.
const ALMOST_ALWAYS: f64 = 0.95;
/// An attribute that is masked in this share of the images or more cannot be learned.
const MOSTLY_MASKED: f64 = 0.97;
/// Bins of the confidence histogram.
const BINS: usize = 10;

/// Statistics of a label store. All shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelStats {
    /// Labeled images.
    pub images: usize,
    /// Whether `clip` or `kmeans` made the labels.
    pub method: String,
    /// The model that did.
    pub model: String,
    /// Share of patch positions with a class other than the ignore index 255.
    pub labeled_positions: f64,
    /// Share of images without a single labeled position.
    pub without_parts: f64,
    /// Each part class.
    pub parts: Vec<PartStats>,
    /// Mean of the largest class probability over all positions.
    pub mean_confidence: f64,
    /// Share of positions whose largest probability is in [0, 0.1), [0.1, 0.2), ... [0.9, 1].
    pub confidence: [f64; BINS],
    /// Temperature of the attribute targets, in units of logits.
    pub temperature: f32,
    /// Each attribute, after calibration.
    pub attributes: Vec<AttributeStats>,
    /// What people corrected; it is counted in the shares.
    pub corrections: CorrectionCounts,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// How often a part class was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartStats {
    /// Its name.
    pub name: String,
    /// Share of the labeled positions that have it.
    pub positions: f64,
    /// Share of the images that have it in at least one position.
    pub images: f64,
}

/// How often the values of an attribute were chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttributeStats {
    /// Its name.
    pub name: String,
    /// Standard deviation of its logits inside the attribute, in units of logits (see
    /// [`Calibration::spread`]).
    pub spread: f32,
    /// Its weight in the loss; 0 = disabled for its small spread.
    pub weight: f32,
    /// Share of the images that are masked in training: too small a margin, or a disabled
    /// attribute.
    pub masked: f64,
    /// Each value.
    pub values: Vec<ValueStats>,
}

/// How often a value was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueStats {
    /// Its name.
    pub name: String,
    /// Share of the images whose most probable value it is, masked ones included.
    pub share: f64,
}

/// Counts a store. The calibration is the one beside the labels, or taken from `store` if absent;
/// `config` says how logits become targets.
///
/// # Errors
///
/// The store has no image.
pub fn stats(
    store: &Store,
    calibration: Option<&Calibration>,
    config: &AttributeConfig,
) -> Result<LabelStats, Error> {
    let meta = &store.meta;
    let vocabulary = &meta.vocabulary;
    let own;
    let calibration = match calibration {
        Some(calibration) => calibration,
        None => {
            own = Calibration::of_store(store)?;
            &own
        }
    };
    let rule = AttributeRule::new(calibration, config);
    let ranges = vocabulary.ranges();
    let mut positions = vec![0u64; vocabulary.parts.len()];
    let mut images = vec![0u64; vocabulary.parts.len()];
    let mut chosen = vec![0u64; vocabulary.logits()];
    let mut masked = vec![0u64; vocabulary.attributes.len()];
    let (mut bins, mut confidence, mut without) = ([0u64; BINS], 0u64, 0u64);
    for labels in store.iter() {
        let mut seen = vec![false; vocabulary.parts.len()];
        for &part in labels.values.parts.iter().filter(|&&part| part != IGNORE) {
            positions[usize::from(part)] += 1;
            seen[usize::from(part)] = true;
        }
        without += u64::from(!seen.contains(&true));
        images
            .iter_mut()
            .zip(&seen)
            .for_each(|(count, &seen)| *count += u64::from(seen));
        for &c in labels.values.part_confidence {
            bins[(usize::from(c) * BINS / 255).min(BINS - 1)] += 1;
            confidence += u64::from(c);
        }
        let targets = rule.targets(&labels, vocabulary);
        for ((range, counts), masked) in ranges.iter().zip(&targets.mask).zip(&mut masked) {
            chosen[range.start + largest(&targets.target[range.clone()])] += 1;
            *masked += u64::from(!counts);
        }
    }
    let share = |count: u64, of: u64| {
        if of == 0 {
            0.0
        } else {
            count as f64 / of as f64
        }
    };
    let total = store.len() as u64;
    let all_positions = total * (meta.rows * meta.columns) as u64;
    let labeled: u64 = positions.iter().sum();
    let mut stats = LabelStats {
        images: store.len(),
        method: meta.method.clone(),
        model: meta.model.clone(),
        labeled_positions: share(labeled, all_positions),
        without_parts: share(without, total),
        parts: vocabulary
            .parts
            .iter()
            .zip(positions.iter().zip(&images))
            .map(|(part, (&positions, &images))| PartStats {
                name: part.name.clone(),
                positions: share(positions, labeled),
                images: share(images, total),
            })
            .collect(),
        mean_confidence: share(confidence, all_positions) / 255.0,
        confidence: bins.map(|count| share(count, all_positions)),
        temperature: rule.temperature,
        attributes: vocabulary
            .attributes
            .iter()
            .zip(&ranges)
            .zip(&masked)
            .zip(calibration.spread.iter().zip(&rule.weight))
            .map(
                |(((attribute, range), &masked), (&spread, &weight))| AttributeStats {
                    name: attribute.name.clone(),
                    spread,
                    weight,
                    masked: share(masked, total),
                    values: attribute
                        .values
                        .iter()
                        .zip(&chosen[range.clone()])
                        .map(|(value, &count)| ValueStats {
                            name: value.name.clone(),
                            share: share(count, total),
                        })
                        .collect(),
                },
            )
            .collect(),
        corrections: store.corrections(),
        warnings: Vec::new(),
    };
    stats.warnings = warnings(&stats);
    Ok(stats)
}

/// Warnings about a store. A part counts as rarely chosen by images, since a foot is a small part
/// of every image, and as almost always chosen by positions.
fn warnings(stats: &LabelStats) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut warnings = Vec::new();
    if stats.without_parts > 0.5 {
        warnings.push(format!(
            "{} of the images have no labeled position: lower the confidence, or look at them with `show`",
            percent(stats.without_parts)
        ));
    }
    if let [first, ..] = &stats.corrections.unused[..] {
        warnings.push(format!(
            "the corrections of {} images are not used, as the labels are of other images of these \
             keys or there are none (the first is {first:?}): correct these images again",
            stats.corrections.unused.len()
        ));
    }
    for part in &stats.parts {
        if part.images < RARELY {
            warnings.push(format!(
                "part `{}` is rarely chosen (in {} of the images): try other synonyms",
                part.name,
                percent(part.images)
            ));
        } else if part.positions > ALMOST_ALWAYS {
            warnings.push(format!(
                "part `{}` is almost always chosen ({} of the labeled positions): the part maps carry little information",
                part.name,
                percent(part.positions)
            ));
        }
    }
    for attribute in &stats.attributes {
        if attribute.weight == 0.0 {
            warnings.push(format!(
                "attribute `{}` is disabled, because its logits hardly vary from image to image \
                 (spread {:.3}): try other prompts, or lower attributes.minimum_spread",
                attribute.name, attribute.spread
            ));
            continue;
        }
        if attribute.masked >= MOSTLY_MASKED {
            warnings.push(format!(
                "attribute `{}` is masked in {} of the images, whose margins are too small: try other prompts",
                attribute.name,
                percent(attribute.masked)
            ));
            continue;
        }
        for value in &attribute.values {
            let how = match value.share {
                share if share < RARELY => "rarely",
                share if share > ALMOST_ALWAYS => "almost always",
                _ => continue,
            };
            warnings.push(format!(
                "attribute `{}`: `{}` is {how} chosen (for {} of the images): try other prompts, or leave it out",
                attribute.name,
                value.name,
                percent(value.share)
            ));
        }
    }
    warnings
}

impl fmt::Display for LabelStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        writeln!(
            f,
            "{} images labeled by {} ({})",
            self.images, self.model, self.method
        )?;
        writeln!(
            f,
            "positions with a class: {:.1} %   mean confidence: {:.2}   images without any: {:.1} %",
            percent(self.labeled_positions),
            self.mean_confidence,
            percent(self.without_parts)
        )?;
        if self.corrections.images > 0 {
            writeln!(
                f,
                "corrected: {} attributes and {} positions of {} images",
                self.corrections.attributes, self.corrections.positions, self.corrections.images
            )?;
        }
        writeln!(
            f,
            "\n{:<20} {:>12} {:>12}",
            "part", "% of positions", "% of images"
        )?;
        for part in &self.parts {
            writeln!(
                f,
                "{:<20} {:>12.1} {:>12.1}",
                part.name,
                percent(part.positions),
                percent(part.images)
            )?;
        }
        writeln!(f, "\nconfidence of positions")?;
        for (bin, &share) in self.confidence.iter().enumerate() {
            let bar = "#".repeat((share * 50.0).round() as usize);
            writeln!(
                f,
                "  {:.1} to {:.1} {:>6.1} % {bar}",
                bin as f64 / 10.0,
                (bin + 1) as f64 / 10.0,
                percent(share)
            )?;
        }
        if !self.attributes.is_empty() {
            writeln!(
                f,
                "\nattributes at temperature {:.3}\n{:<18} {:>7} {:>7} {:>8}  % of images by value",
                self.temperature, "attribute", "spread", "weight", "masked %"
            )?;
        }
        for attribute in &self.attributes {
            let values: Vec<String> = attribute
                .values
                .iter()
                .map(|value| format!("{} {:.1}", value.name, percent(value.share)))
                .collect();
            writeln!(
                f,
                "{:<18} {:>7.3} {:>7} {:>8.1}  {}",
                attribute.name,
                attribute.spread,
                match attribute.weight {
                    0.0 => "off".to_owned(),
                    weight => format!("{weight:.2}"),
                },
                percent(attribute.masked),
                values.join(", ")
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, vocabulary};
    use clasp_data::labels::{LabelValues, Labels, write_shard};

    /// Ten images with two positions: background and head each; the last ones unsure. Glasses vary,
    /// sleeves do not.
    fn store(folder: &std::path::Path) -> Store {
        let meta = meta([1, 2]);
        let labels: Vec<Labels> = (0..10)
            .map(|i| Labels {
                key: format!("{i:02}"),
                width: 1,
                height: 1,
                image_sha256: String::new(),
                values: LabelValues {
                    parts: if i < 8 { vec![0, 1] } else { vec![0, IGNORE] },
                    part_confidence: vec![255, if i < 8 { 204 } else { 25 }],
                    attributes: vec![
                        10.0,
                        20.0 + i as f32,
                        30.0,
                        1.0,
                        if i < 5 { 0.0 } else { 4.0 },
                    ],
                },
            })
            .collect();
        write_shard(folder, "people", &meta, &labels).unwrap();
        Store::open(folder).unwrap()
    }

    #[test]
    fn shares_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let stats = stats(&store(folder.path()), None, &AttributeConfig::default()).unwrap();
        assert_eq!(
            (stats.images, stats.labeled_positions, stats.without_parts),
            (10, 0.9, 0.0)
        );
        assert!((stats.parts[0].positions - 10.0 / 18.0).abs() < 1e-12);
        assert_eq!(
            (
                stats.parts[0].images,
                stats.parts[1].images,
                stats.parts[2].images
            ),
            (1.0, 0.8, 0.0)
        );
        assert_eq!(
            (
                stats.confidence[0],
                stats.confidence[8],
                stats.confidence[9]
            ),
            (0.1, 0.4, 0.5)
        );
        // Glasses: yes is over its mean for one half.
        let glasses = &stats.attributes[1];
        assert_eq!(
            (glasses.values[0].share, glasses.values[1].share),
            (0.5, 0.5)
        );
        assert!(
            stats
                .warnings
                .iter()
                .any(|w| w.contains(&vocabulary().parts[2].name)),
            "{:?}",
            stats.warnings
        );
        let text = stats.to_string();
        assert!(
            text.contains("10 images") && text.contains("warning: part"),
            "{text}"
        );
        assert!(
            serde_json::to_string(&stats)
                .unwrap()
                .contains("\"labeled_positions\":0.9")
        );
    }

    #[test]
    fn what_is_always_chosen_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        // A calibration of other images, without glasses.
        let calibration = Calibration {
            mean: vec![0.0, 0.0, 0.0, 1000.0, -1000.0],
            ..Calibration::of_store(&store).unwrap()
        };
        let stats = stats(&store, Some(&calibration), &AttributeConfig::default()).unwrap();
        let all = stats.warnings.join("\n");
        assert!(
            all.contains("`yes` is almost always") && all.contains("`no` is rarely"),
            "{all}"
        );
    }

    #[test]
    fn attributes_that_teach_nothing_are_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        // Ages vary and glasses do not.
        let narrow = Calibration {
            spread: vec![1.0, 0.01],
            ..Calibration::of_store(&store).unwrap()
        };
        let stats_of = |calibration: &Calibration, temperature: Option<f64>| {
            let config = AttributeConfig {
                temperature,
                ..AttributeConfig::default()
            };
            stats(&store, Some(calibration), &config).unwrap()
        };
        let found = stats_of(&narrow, None);
        assert_eq!(found.attributes[1].weight, 0.0);
        assert_eq!(found.attributes[1].masked, 1.0);
        let all = found.warnings.join("\n");
        assert!(all.contains("`glasses` is disabled"), "{all}");
        assert!(
            !all.contains("`age` is disabled") && !all.contains("`age` is masked"),
            "{all}"
        );
        assert!(found.to_string().contains("off"), "{found}");
        // So warm that every call is close.
        let all = stats_of(&Calibration::of_store(&store).unwrap(), Some(1e4))
            .warnings
            .join("\n");
        for name in ["age", "glasses"] {
            let words = format!("`{name}` is masked in 100.0 % of the images");
            assert!(all.contains(&words), "{all}");
        }
    }
}
