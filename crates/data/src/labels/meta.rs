//! What all labels of a store share.

use std::path::Path;

use super::error::LabelError;
use crate::vocabulary::Vocabulary;

/// [`StoreMeta::method`] of a store that holds the ground truth of synthetic people.
pub const METHOD_TRUTH: &str = "truth";

/// Most patch positions of a part map; bounds what a file can claim.
const MOST_POSITIONS: usize = 1 << 16;

/// What all labels of a store share. Shards that differ in any field cannot be in one store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreMeta {
    /// Part classes and attributes.
    pub vocabulary: Vocabulary,
    /// Name of the CLIP model.
    pub model: String,
    /// SHA-256 of the model's weights, in hex.
    pub model_sha256: String,
    /// Rows of a part map.
    pub rows: usize,
    /// Columns of a part map.
    pub columns: usize,
    /// `clip`, `kmeans` or [`METHOD_TRUTH`].
    pub method: String,
    /// How dense features were taken: `clear`, `mask` or `self`; empty without CLIP.
    pub dense: String,
    /// Positions whose highest probability is lower have the ignore index 255.
    pub confidence: f32,
}

impl StoreMeta {
    /// Patch positions of a part map, rows x columns.
    pub fn positions(&self) -> usize {
        self.rows * self.columns
    }

    /// Checks that the labels of `path` share all of this with those of `first`.
    pub(super) fn check_same(
        &self,
        first: &Path,
        other: &Self,
        path: &Path,
    ) -> Result<(), LabelError> {
        match self.difference(other) {
            None => Ok(()),
            Some((field, expected, found)) => Err(LabelError::Conflict {
                path: path.to_owned(),
                first: first.to_owned(),
                field,
                expected,
                found,
            }),
        }
    }

    /// Name of the first field in which two stores differ, with both values.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let words = |meta: &Self| {
            let v = &meta.vocabulary;
            let digest = v.digest();
            let short = digest.get(..12).unwrap_or(&digest).to_owned();
            format!(
                "{} parts, {} attribute values, digest {short}",
                v.parts.len(),
                v.logits()
            )
        };
        let fields: [(&'static str, fn(&Self) -> String); 6] = [
            ("model", |m| m.model.clone()),
            ("model SHA-256", |m| m.model_sha256.clone()),
            ("part map", |m| {
                format!("{} rows x {} columns", m.rows, m.columns)
            }),
            ("method", |m| m.method.clone()),
            ("dense features", |m| m.dense.clone()),
            ("confidence", |m| m.confidence.to_string()),
        ];
        if self.vocabulary != other.vocabulary {
            return Some(("vocabulary", words(self), words(other)));
        }
        fields.into_iter().find_map(|(name, field)| {
            let (mine, others) = (field(self), field(other));
            (mine != others).then_some((name, mine, others))
        })
    }

    /// What is wrong with it, if anything: an inconsistent vocabulary, a part map of impossible
    /// size, a confidence outside 0 to 1.
    pub(super) fn fault(&self) -> Option<String> {
        if let Err(error) = self.vocabulary.check("vocabulary") {
            return Some(error.to_string());
        }
        let most = MOST_POSITIONS;
        let positions = self.rows.saturating_mul(self.columns);
        if positions == 0 || positions > most {
            return Some(format!(
                "part map: expected 1 to {most} positions, found {} rows x {} columns",
                self.rows, self.columns
            ));
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return Some(format!(
                "confidence: expected 0 to 1, found {}",
                self.confidence
            ));
        }
        None
    }
}
