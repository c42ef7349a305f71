//! A folder of label files, as one table.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use super::shard::{self, Columns, Shard};
use super::{LabelError, Labels, StoreMeta};

/// The labels of one image, as the store holds them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelRef<'a> {
    /// The image's key in its source.
    pub key: &'a str,
    /// Width of the image in pixels.
    pub width: u16,
    /// Height of the image in pixels.
    pub height: u16,
    /// Part class of each cell: `[rows, columns]`, 255 where the labeller was not sure.
    pub parts: &'a [u8],
    /// round(255 p) of the best class of each cell: `[rows, columns]`.
    pub part_confidence: &'a [u8],
    /// Raw logits, one for each value of the vocabulary.
    pub attributes: &'a [f32],
}

impl LabelRef<'_> {
    /// These labels with storage of their own.
    pub fn to_labels(&self) -> Labels {
        Labels {
            key: self.key.into(),
            width: self.width,
            height: self.height,
            parts: self.parts.to_vec(),
            part_confidence: self.part_confidence.to_vec(),
            attributes: self.attributes.to_vec(),
        }
    }
}

/// Writes the labels of one input shard into the store's folder, which is made if need be, and
/// returns the file's path. The file appears whole or not at all, and takes the place of an
/// earlier one of the same shard.
///
/// # Errors
///
/// Labels that do not fit `meta`, a key that occurs twice, or a file system that refuses; nothing
/// is written then.
pub fn write_shard(
    folder: &Path,
    shard_name: &str,
    meta: &StoreMeta,
    labels: &[Labels],
) -> Result<PathBuf, LabelError> {
    let invalid = |key: &str, problem: String| LabelError::Invalid {
        shard: shard_name.into(),
        key: key.into(),
        problem,
    };
    if let Some(problem) = meta.fault() {
        return Err(invalid("", problem));
    }
    let mut keys = HashSet::with_capacity(labels.len());
    for label in labels {
        if let Some(problem) = meta.row_fault(&label.view()) {
            return Err(invalid(&label.key, problem));
        }
        if !keys.insert(label.key.as_str()) {
            return Err(invalid(&label.key, "key: occurs twice".into()));
        }
    }
    let bytes =
        shard::encode(shard_name, meta, labels).map_err(|error| invalid("", error.to_string()))?;
    fs::create_dir_all(folder)?;
    let path = folder.join(file_name(shard_name));
    crate::atomic_write(&path, |out| out.write_all(&bytes))?;
    Ok(path)
}

/// Names of the input shards whose labels are in `folder`, whole and made as `meta` says; a
/// folder that is not there yet has none. A labelling run leaves these out.
///
/// # Errors
///
/// A damaged file, or one that was made in another way: going on would mix two labellings.
pub fn finished_shards(folder: &Path, meta: &StoreMeta) -> Result<BTreeSet<String>, LabelError> {
    if !folder.exists() {
        return Ok(BTreeSet::new());
    }
    let mut names = BTreeSet::new();
    for path in files(folder)? {
        let shard = read(&path)?;
        meta.check_same(Path::new("this run"), &shard.meta, &path)?;
        names.insert(shard.name);
    }
    Ok(names)
}

/// Keys of the images of one finished shard, in the order they were written.
///
/// # Errors
///
/// No labels of this shard, or a damaged file.
pub fn shard_keys(folder: &Path, shard_name: &str) -> Result<Vec<String>, LabelError> {
    let shard = read(&folder.join(file_name(shard_name)))?;
    Ok(shard.columns.keys.iter().map(ToString::to_string).collect())
}

/// The file of a shard. Characters that are not safe in a file name on every system are
/// written as `%` and two hex digits, so different shards have different files.
fn file_name(shard: &str) -> String {
    let mut name = String::with_capacity(shard.len() + 8);
    for (i, byte) in shard.bytes().enumerate() {
        let safe = byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && i > 0);
        if safe {
            name.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name + ".parquet"
}

/// The label files of a folder, by name. Hidden files are what a killed writer left.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, LabelError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "parquet")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads and checks one label file.
pub(super) fn read(path: &Path) -> Result<Shard, LabelError> {
    shard::decode(path, fs::read(path)?)
}

/// All labels of a folder, in memory: about 0.5 kB an image.
#[derive(Debug)]
pub struct Store {
    /// What all labels share.
    pub meta: StoreMeta,
    /// Names of the input shards, in the order of their files.
    pub shards: Vec<String>,
    columns: Columns,
    rows_by_key: HashMap<Arc<str>, usize>,
}

impl Store {
    /// Reads every label file of a folder, in the order of their names.
    ///
    /// # Errors
    ///
    /// No label file, a damaged one, files made in different ways, or a key in two of them.
    pub fn open(folder: &Path) -> Result<Self, LabelError> {
        let paths = files(folder)?;
        let Some(first_path) = paths.first() else {
            return Err(LabelError::Empty {
                folder: folder.to_owned(),
            });
        };
        let first = read(first_path)?;
        let mut store = Self {
            meta: first.meta,
            shards: Vec::new(),
            columns: Columns::default(),
            rows_by_key: HashMap::new(),
        };
        // Where each file's rows begin, to name the file of an earlier key.
        let mut starts = Vec::with_capacity(paths.len());
        starts.push(0);
        store.append(first.name, first.columns, &paths, &starts)?;
        for path in &paths[1..] {
            let Shard {
                meta,
                name,
                columns,
            } = read(path)?;
            store.meta.check_same(first_path, &meta, path)?;
            starts.push(store.len());
            store.append(name, columns, &paths, &starts)?;
        }
        Ok(store)
    }

    /// Adds the rows of the file that `starts` ends with.
    fn append(
        &mut self,
        name: String,
        columns: Columns,
        paths: &[PathBuf],
        starts: &[usize],
    ) -> Result<(), LabelError> {
        let start = self.len();
        self.rows_by_key.reserve(columns.keys.len());
        for (i, key) in columns.keys.iter().enumerate() {
            if let Some(earlier) = self.rows_by_key.insert(Arc::clone(key), start + i) {
                let file = starts.partition_point(|&begin| begin <= earlier) - 1;
                return Err(LabelError::Duplicate {
                    key: key.to_string(),
                    first: paths[file].clone(),
                    second: paths[starts.len() - 1].clone(),
                });
            }
        }
        self.shards.push(name);
        self.columns.keys.extend(columns.keys);
        self.columns.widths.extend(columns.widths);
        self.columns.heights.extend(columns.heights);
        self.columns.parts.extend(columns.parts);
        self.columns.part_confidence.extend(columns.part_confidence);
        self.columns.attributes.extend(columns.attributes);
        Ok(())
    }

    /// Number of labelled images.
    pub fn len(&self) -> usize {
        self.columns.keys.len()
    }

    /// Whether no image is labelled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of the image with this key.
    pub fn get(&self, key: &str) -> Option<LabelRef<'_>> {
        self.rows_by_key.get(key).map(|&row| self.row(row))
    }

    /// All labels, in the order of the files and of their rows.
    pub fn iter(&self) -> impl Iterator<Item = LabelRef<'_>> {
        (0..self.len()).map(|row| self.row(row))
    }

    fn row(&self, row: usize) -> LabelRef<'_> {
        self.columns
            .row(row, self.meta.cells(), self.meta.vocabulary.logits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_safe_and_differ_as_the_shards_do() {
        assert_eq!(file_name("people-000"), "people-000.parquet");
        assert_eq!(file_name("a/b c"), "a%2Fb%20c.parquet");
        assert_eq!(file_name("../x"), "%2E.%2Fx.parquet");
        assert_eq!(file_name("a%2Fb"), "a%252Fb.parquet");
        assert_eq!(file_name("é"), "%C3%A9.parquet");
    }
}
