//! The kinds of pseudo-labels: what an image has of each, how a label file stores it, and what is
//! checked. A new kind is added here, to each item of this file.

use parquet::data_type::{FixedLenByteArray, FixedLenByteArrayType};
use parquet::errors::Result;

use super::columns::{GroupReader, GroupWriter, Read, write_column, write_lists};
use super::meta::StoreMeta;
use crate::augment::crop::GridCrop;
use crate::vocabulary::IGNORE;

/// The pseudo-labels of one image, of each kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelValues {
    /// Part class of each patch position: `[rows, columns]`, the ignore index 255 where the
    /// confidence is too low.
    pub parts: Vec<u8>,
    /// round(255 p), p the probability of the best class: `[rows, columns]`.
    pub part_confidence: Vec<u8>,
    /// Raw logits, one for each value of the vocabulary.
    pub attributes: Vec<f32>,
}

/// [`LabelValues`], borrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelValuesRef<'a> {
    /// See [`LabelValues::parts`].
    pub parts: &'a [u8],
    /// See [`LabelValues::part_confidence`].
    pub part_confidence: &'a [u8],
    /// See [`LabelValues::attributes`].
    pub attributes: &'a [f32],
}

impl LabelValues {
    /// A view of these values.
    pub fn view(&self) -> LabelValuesRef<'_> {
        LabelValuesRef {
            parts: &self.parts,
            part_confidence: &self.part_confidence,
            attributes: &self.attributes,
        }
    }
}

impl LabelValuesRef<'_> {
    /// An owned copy.
    pub fn to_values(self) -> LabelValues {
        LabelValues {
            parts: self.parts.to_vec(),
            part_confidence: self.part_confidence.to_vec(),
            attributes: self.attributes.to_vec(),
        }
    }

    /// What is wrong with them, if anything: the field that does not fit the part map or the
    /// vocabulary of `meta`.
    pub(super) fn fault(&self, meta: &StoreMeta) -> Option<String> {
        let (positions, logits, classes) = (
            meta.positions(),
            meta.vocabulary.logits(),
            meta.vocabulary.parts.len(),
        );
        for (name, found) in [
            ("parts", self.parts.len()),
            ("part_confidence", self.part_confidence.len()),
        ] {
            if found != positions {
                return Some(format!(
                    "{name}: expected {positions} patch positions ({} rows x {} columns), found {found}",
                    meta.rows, meta.columns
                ));
            }
        }
        if self.attributes.len() != logits {
            return Some(format!(
                "attributes: expected {logits} logits, found {}",
                self.attributes.len()
            ));
        }
        let foreign = |part: &&u8| **part != IGNORE && usize::from(**part) >= classes;
        if let Some(part) = self.parts.iter().find(foreign) {
            return Some(format!(
                "parts: expected classes 0 to {} or {IGNORE}, found {part}",
                classes - 1
            ));
        }
        if let Some(logit) = self.attributes.iter().find(|logit| !logit.is_finite()) {
            return Some(format!("attributes: expected finite logits, found {logit}"));
        }
        None
    }
}

/// The labels of a whole image that belong to its patch positions, and are cropped with it.
#[derive(Clone, Copy, Debug)]
pub struct GridLabels<'a> {
    /// Rows of the grid.
    pub rows: usize,
    /// Columns of the grid.
    pub columns: usize,
    /// Part class of each position, `[rows, columns]`; 255 is the ignore index.
    pub parts: &'a [u8],
}

/// The labels at each position of the backbone's output for a view.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewLabels {
    /// Part class of each position, `[rows, columns]`; 255 is the ignore index.
    pub parts: Vec<u8>,
}

impl<'a> LabelValuesRef<'a> {
    /// Those that belong to patch positions; `meta` is the store's.
    pub fn on_grid(&self, meta: &StoreMeta) -> GridLabels<'a> {
        GridLabels {
            rows: meta.rows,
            columns: meta.columns,
            parts: self.parts,
        }
    }
}

impl GridLabels<'_> {
    /// The labels of a crop on another grid: for the center of each output position, the label of
    /// the position that it lies in.
    ///
    /// # Panics
    ///
    /// Where there are not rows x columns labels.
    pub(crate) fn crop(&self, crop: &GridCrop) -> ViewLabels {
        assert_eq!(
            self.parts.len(),
            self.rows * self.columns,
            "labels in a grid of {} rows x {} columns",
            self.rows,
            self.columns
        );
        ViewLabels {
            parts: crop.apply(self.parts),
        }
    }
}

/// The values of many images, column by column.
#[derive(Debug, Default)]
pub(super) struct ValueColumns {
    /// `[images, rows, columns]`.
    parts: Vec<u8>,
    /// `[images, rows, columns]`.
    part_confidence: Vec<u8>,
    /// `[images, logits]`.
    attributes: Vec<f32>,
}

impl ValueColumns {
    /// The values of one image.
    pub fn row(&self, index: usize, meta: &StoreMeta) -> LabelValuesRef<'_> {
        let positions = index * meta.positions()..(index + 1) * meta.positions();
        let logits = meta.vocabulary.logits();
        LabelValuesRef {
            parts: &self.parts[positions.clone()],
            part_confidence: &self.part_confidence[positions],
            attributes: &self.attributes[index * logits..(index + 1) * logits],
        }
    }

    /// The class and the confidence of one patch position of an image.
    pub fn part(&mut self, index: usize, position: usize, meta: &StoreMeta) -> [&mut u8; 2] {
        let at = index * meta.positions() + position;
        [&mut self.parts[at], &mut self.part_confidence[at]]
    }

    /// Appends those of other images.
    pub fn append(&mut self, other: Self) {
        self.parts.extend(other.parts);
        self.part_confidence.extend(other.part_confidence);
        self.attributes.extend(other.attributes);
    }

    /// Appends those of a row group.
    pub fn read(&mut self, group: &GroupReader<'_>, meta: &StoreMeta) -> Read<()> {
        let (positions, logits) = (meta.positions(), meta.vocabulary.logits());
        self.parts.extend(group.maps("parts", positions)?);
        let confidence = group.maps("part_confidence", positions)?;
        self.part_confidence.extend(confidence);
        let attributes = group.lists("attributes", logits, "logits")?;
        self.attributes.extend(attributes);
        Ok(())
    }
}

/// Columns that every file has. `attributes` may be missing where the vocabulary has none.
pub(super) const REQUIRED: [&str; 2] = ["parts", "part_confidence"];

/// The columns in Parquet's schema language, in the order of [`write`].
pub(super) fn schema(meta: &StoreMeta) -> String {
    format!(
        "required fixed_len_byte_array({positions}) parts;
         required fixed_len_byte_array({positions}) part_confidence;
         required group attributes (LIST) {{ repeated group list {{ required float element; }} }}",
        positions = meta.positions()
    )
}

/// Writes the columns of a row group.
pub(super) fn write<'a>(
    out: &mut GroupWriter<'_>,
    rows: impl Iterator<Item = &'a LabelValues> + Clone,
) -> Result<()> {
    let map = |bytes: &Vec<u8>| FixedLenByteArray::from(bytes.clone());
    let parts: Vec<_> = rows.clone().map(|row| map(&row.parts)).collect();
    write_column::<FixedLenByteArrayType>(out, &parts)?;
    let confidence: Vec<_> = rows.clone().map(|row| map(&row.part_confidence)).collect();
    write_column::<FixedLenByteArrayType>(out, &confidence)?;
    write_lists(out, rows.map(|row| row.attributes.as_slice()))
}

/// Bytes that the values of an image take in memory.
pub(super) fn row_bytes(meta: &StoreMeta) -> usize {
    2 * meta.positions() + 4 * meta.vocabulary.logits()
}
