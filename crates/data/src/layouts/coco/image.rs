//! Images and categories in COCO's JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::json::{EntryErrors, WholeNumber};

/// An image of the dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct CocoImage {
    /// Its number in the file.
    pub id: u64,
    /// The file.
    pub path: PathBuf,
    /// Height in pixels, as the file says.
    pub height: usize,
    /// Width in pixels, as the file says.
    pub width: usize,
}

/// Number, height and width of an image, if they can be.
pub(super) fn read_image(
    id: WholeNumber,
    [height, width]: [WholeNumber; 2],
    faults: &mut EntryErrors,
) -> Option<(u64, [usize; 2])> {
    let entry = format!("image {}", id.0);
    let side = |side: WholeNumber| usize::try_from(side.0).ok().filter(|side| *side > 0);
    let (Some(height), Some(width)) = (side(height), side(width)) else {
        faults.add(entry, "a size", format!("{} x {}", width.0, height.0));
        return None;
    };
    let Ok(id) = u64::try_from(id.0) else {
        faults.add(entry, "an id from 0", id.0.to_string());
        return None;
    };
    Some((id, [height, width]))
}

/// Annotations of categories that the file does not list.
pub(super) struct UnknownCategories {
    listed: Vec<i64>,
    counts: BTreeMap<i64, usize>,
}

impl UnknownCategories {
    /// Counts those that are not among `listed`, the ids of `categories`.
    pub fn besides(listed: impl Iterator<Item = WholeNumber>) -> Self {
        Self {
            listed: listed.map(|id| id.0).collect(),
            counts: BTreeMap::new(),
        }
    }

    /// Counts an annotation of this category, where it is not listed.
    pub fn count(&mut self, category: WholeNumber) {
        if !self.listed.contains(&category.0) {
            *self.counts.entry(category.0).or_default() += 1;
        }
    }

    /// A line for each.
    pub fn describe(&self) -> Vec<String> {
        let all = self.counts.iter();
        all.map(|(category, count)| {
            format!(
                "{count} annotations have category_id {category}, which is none of `categories`: \
                 skipped"
            )
        })
        .collect()
    }
}
