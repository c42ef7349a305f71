//! Settings of labeling, the same in TOML and on the command line.

use std::collections::BTreeMap;

use clasp_data::vocabulary::Vocabulary;
use clasp_model::Precision;
use clasp_model::clip::Dense;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Settings of labeling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelConfig {
    /// Height and width in pixels at which CLIP sees an image, multiples of its patch; the model's
    /// own if absent.
    pub image_size: Option<[usize; 2]>,
    /// How the last block of CLIP gives dense features.
    pub dense: Dense,
    /// Rows and columns of the stored part map.
    pub grid: [usize; 2],
    /// A patch position whose largest class probability is below this gets the ignore index 255.
    pub confidence: f32,
    /// Factor on the cosines of parts before the softmax over classes.
    pub part_scale: f32,
    /// Factor on the cosines of attributes; the stored logits have it.
    pub attribute_scale: f32,
    /// Where in an upright crop each class is expected, by class name; classes that are not named
    /// may be anywhere. Empty: no prior.
    pub vertical_prior: BTreeMap<String, VerticalBand>,
    /// Precision of CLIP's image tower.
    #[serde(skip_serializing_if = "is_f32")]
    pub precision: Precision,
    /// Images in a batch. Changing it may change the last bits of the logits, as sums are grouped
    /// differently.
    pub batch: usize,
}

/// Omitted for f32, so that stores of earlier versions stay valid.
fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

impl Default for LabelConfig {
    fn default() -> Self {
        Self {
            image_size: None,
            dense: Dense::Clear,
            grid: [16, 8],
            confidence: 0.5,
            part_scale: 50.0,
            attribute_scale: 100.0,
            vertical_prior: BTreeMap::new(),
            precision: Precision::F32,
            batch: 16,
        }
    }
}

/// Where a class is expected: a Gaussian over the height of the image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerticalBand {
    /// Center, 0 at the top edge and 1 at the bottom edge.
    pub center: f32,
    /// Standard deviation, in heights of the image.
    pub std: f32,
}

impl LabelConfig {
    /// Checks what the types cannot: ranges, and that the prior's classes are in the vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the value.
    pub fn check(&self, vocabulary: &Vocabulary) -> Result<(), Error> {
        let wrong = |key: &str, expected: &str, found: String| {
            Err(Error::Config {
                key: key.to_owned(),
                expected: expected.to_owned(),
                found,
            })
        };
        if self.grid.iter().any(|&side| side == 0 || side > 256) {
            return wrong(
                "grid",
                "1 to 256 rows and columns",
                format!("{} x {}", self.grid[0], self.grid[1]),
            );
        }
        if let Some(size) = self.image_size
            && size.iter().any(|&side| side == 0 || side > 4096)
        {
            return wrong(
                "image_size",
                "height and width of 1 to 4096 pixels",
                format!("{} x {}", size[0], size[1]),
            );
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return wrong("confidence", "a probability", self.confidence.to_string());
        }
        for (key, scale) in [
            ("part_scale", self.part_scale),
            ("attribute_scale", self.attribute_scale),
        ] {
            if !(scale.is_finite() && scale > 0.0) {
                return wrong(key, "a positive number", scale.to_string());
            }
        }
        if self.batch == 0 || self.batch > 4096 {
            return wrong("batch", "1 to 4096 images", self.batch.to_string());
        }
        for (name, band) in &self.vertical_prior {
            if !vocabulary.parts.iter().any(|part| &part.name == name) {
                let names: Vec<_> = vocabulary
                    .parts
                    .iter()
                    .map(|part| part.name.as_str())
                    .collect();
                return wrong(
                    "vertical_prior",
                    &format!("one of {}", names.join(", ")),
                    format!("`{name}`"),
                );
            }
            if !(band.center.is_finite() && band.std.is_finite() && band.std > 0.0) {
                return wrong(
                    "vertical_prior",
                    "a finite center and a positive std",
                    format!("center {} and std {} for `{name}`", band.center, band.std),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_round_trip_and_unknown_keys() {
        let mut config = LabelConfig::default();
        config.vertical_prior.insert(
            "head".into(),
            VerticalBand {
                center: 0.1,
                std: 0.1,
            },
        );
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LabelConfig>(&text).unwrap(), config);
        assert_eq!(
            toml::from_str::<LabelConfig>("").unwrap(),
            LabelConfig::default()
        );
        let error = toml::from_str::<LabelConfig>("confidance = 0.5")
            .unwrap_err()
            .to_string();
        assert!(error.contains("confidance"), "{error}");
    }

    fn band(name: &str, std: f32) -> BTreeMap<String, VerticalBand> {
        BTreeMap::from([(name.to_owned(), VerticalBand { center: 0.1, std })])
    }

    #[test]
    fn ranges_are_checked() {
        let vocabulary = Vocabulary::standard().unwrap();
        assert!(LabelConfig::default().check(&vocabulary).is_ok());
        let wrong: [fn(&mut LabelConfig); 7] = [
            |c| c.grid = [0, 8],
            |c| c.confidence = 1.5,
            |c| c.part_scale = f32::NAN,
            |c| c.batch = 0,
            |c| c.image_size = Some([224, 0]),
            |c| c.vertical_prior = band("tail", 1.0),
            |c| c.vertical_prior = band("head", 0.0),
        ];
        for change in wrong {
            let mut config = LabelConfig::default();
            change(&mut config);
            assert!(
                matches!(config.check(&vocabulary), Err(Error::Config { .. })),
                "{config:?}"
            );
        }
    }
}
