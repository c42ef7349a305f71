//! Files among the images of a source that are not read.

use std::collections::BTreeMap;

use super::kinds::NOT_READ;

/// Files among the images of a source that are not read, counted by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedFiles {
    /// Image formats that are not decoded, and archives, by extension.
    pub kinds: BTreeMap<String, usize>,
    /// Images without extension.
    pub unnamed: usize,
    /// Hidden images.
    pub hidden: usize,
    /// Masks and other fields of a sample beside its image: `x.seg.png`.
    pub fields: usize,
    /// Masks in folders of masks.
    pub masks: usize,
    /// Pipes, sockets, devices, and members of a tar that are not plain files.
    pub special: usize,
    /// Links in a tar to what is not in it.
    pub broken_links: usize,
    /// Linked folders that are read under another name, or hold the link.
    pub linked_folders: usize,
    /// Lines of a list that repeat an earlier one.
    pub repeated_lines: usize,
    notes: Vec<String>,
}

impl SkippedFiles {
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(super) fn other(&mut self, extension: &str) {
        self.others(extension, 1);
    }

    pub(super) fn others(&mut self, extension: &str, count: usize) {
        if NOT_READ.contains(&extension) {
            *self.kinds.entry(extension.to_owned()).or_default() += count;
        }
    }

    /// A line for each reason; none where all files were read.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = self.notes.clone();
        if !self.kinds.is_empty() {
            lines.push(format!(
                "skipped {} of formats that are not read",
                describe_others(&self.kinds).replace("other ", "")
            ));
        }
        let counts = [
            (self.unnamed, "images without extension"),
            (self.hidden, "hidden images"),
            (
                self.fields,
                "masks or other fields beside images, as x.seg.png",
            ),
            (self.masks, "masks in folders of masks"),
            (self.special, "pipes, sockets, devices or sparse files"),
            (self.broken_links, "links to files that are not in the tar"),
            (
                self.linked_folders,
                "linked folders that are read under another name",
            ),
            (
                self.repeated_lines,
                "lines of a list that repeat an earlier one",
            ),
        ];
        let nonzero = counts.into_iter().filter(|(count, _)| *count > 0);
        lines.extend(nonzero.map(|(count, what)| format!("skipped {count} {what}")));
        lines
    }
}

pub(super) fn describe_others(others: &BTreeMap<String, usize>) -> String {
    if others.is_empty() {
        return "it is empty".to_owned();
    }
    let mut by_count: Vec<_> = others.iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts = by_count.iter().take(3).map(|(extension, count)| {
        if extension.is_empty() {
            format!("{count} without extension")
        } else {
            format!("{count} x .{extension}")
        }
    });
    let parts: Vec<String> = parts.collect();
    let total: usize = others.values().sum();
    format!("{total} other files ({})", parts.join(", "))
}
