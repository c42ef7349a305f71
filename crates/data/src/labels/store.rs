//! A folder of label files, as one table.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::shard::{self, Columns, Shard};
use super::{LabelError, Labels, StoreMeta};
use crate::vocabulary::Vocabulary;

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
    /// [`image_digest`] of the file that was labelled; empty where it is not known.
    pub image_sha256: &'a str,
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
            image_sha256: self.image_sha256.to_owned(),
        }
    }

    /// Whether these are labels of another image than the one of `bytes` and [height, width]: what
    /// is different, in words.
    pub fn is_of_another(&self, bytes: &[u8], [height, width]: [usize; 2]) -> Option<String> {
        let size = [usize::from(self.height), usize::from(self.width)];
        if size != [height, width] {
            return Some(format!(
                "the image has changed since it was labelled: {width} x {height} pixels, the labels \
                 are of {} x {} (width x height)",
                size[1], size[0]
            ));
        }
        let changed = !self.image_sha256.is_empty() && self.image_sha256 != image_digest(bytes);
        changed.then(|| {
            "the image has changed since it was labelled: its file has another content".to_owned()
        })
    }
}

/// The digest of an image file that labels keep: the first 16 hexadecimal digits of its SHA-256.
pub fn image_digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The file beside the shards that says what all labels are of. Its name begins with `_`, as readers
/// of Parquet folders pass over such names.
pub(super) const SIDECAR: &str = "_store.toml";

/// [`StoreMeta`] as a file.
#[derive(Serialize, Deserialize)]
struct Sidecar {
    model: String,
    model_sha256: String,
    rows: usize,
    columns: usize,
    method: String,
    dense: String,
    confidence: f32,
    vocabulary: String,
}

/// Writes the sidecar of a store, unless there is one.
fn write_sidecar(folder: &Path, meta: &StoreMeta) -> Result<(), LabelError> {
    let path = folder.join(SIDECAR);
    if path.exists() {
        return Ok(());
    }
    let failed = |error: String| LabelError::damaged(&path, error);
    let sidecar = Sidecar {
        model: meta.model.clone(),
        model_sha256: meta.model_sha256.clone(),
        rows: meta.rows,
        columns: meta.columns,
        method: meta.method.clone(),
        dense: meta.dense.clone(),
        confidence: meta.confidence,
        vocabulary: (meta.vocabulary.to_toml()).map_err(|error| failed(error.to_string()))?,
    };
    let text = toml::to_string(&sidecar).map_err(|error| failed(error.to_string()))?;
    let text = format!(
        "# What all labels in this folder share. Label files that other programs wrote do not hold it.\n{text}"
    );
    Ok(crate::atomic_write(&path, |file| {
        file.write_all(text.as_bytes())
    })?)
}

/// What the sidecar of a store says; none where there is none.
fn read_sidecar(folder: &Path) -> Result<Option<StoreMeta>, LabelError> {
    let path = folder.join(SIDECAR);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let sidecar: Sidecar =
        toml::from_str(&text).map_err(|error| LabelError::damaged(&path, error.to_string()))?;
    let vocabulary = Vocabulary::parse(&sidecar.vocabulary, "vocabulary")
        .map_err(|error| LabelError::damaged(&path, error.to_string()))?;
    let meta = StoreMeta {
        vocabulary,
        model: sidecar.model,
        model_sha256: sidecar.model_sha256,
        rows: sidecar.rows,
        columns: sidecar.columns,
        method: sidecar.method,
        dense: sidecar.dense,
        confidence: sidecar.confidence,
    };
    match meta.fault() {
        Some(problem) => Err(LabelError::damaged(&path, problem)),
        None => Ok(Some(meta)),
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
    write_sidecar(folder, meta)?;
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

/// The labels of one finished shard, in the order they were written, and whether another program
/// wrote or changed them.
///
/// # Errors
///
/// No labels of this shard, or a damaged file.
pub fn read_shard(folder: &Path, shard_name: &str) -> Result<(Vec<Labels>, bool), LabelError> {
    let Shard {
        meta,
        columns,
        edited,
        ..
    } = read(&folder.join(file_name(shard_name)))?;
    let row = |row| columns.row(row, meta.cells(), meta.vocabulary.logits());
    let labels = (0..columns.keys.len()).map(|i| row(i).to_labels());
    Ok((labels.collect(), edited))
}

/// The name of the file of a shard in a store's folder.
pub fn shard_file(shard_name: &str) -> String {
    file_name(shard_name)
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

/// The shard whose file has a name, without its ending.
pub(super) fn shard_name(stem: &str) -> String {
    let mut bytes = Vec::with_capacity(stem.len());
    let mut rest = stem.as_bytes();
    while let [first, others @ ..] = rest {
        let code = (*first == b'%').then(|| others.get(..2)).flatten();
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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
    let folder = path.parent().unwrap_or(Path::new(""));
    shard::decode(path, fs::read(path)?, read_sidecar(folder)?.as_ref())
}

/// All labels of a folder, in memory: about 0.5 kB an image.
#[derive(Debug)]
pub struct Store {
    /// What all labels share.
    pub meta: StoreMeta,
    /// Names of the input shards, in the order of their files.
    pub shards: Vec<String>,
    /// Those among them that another program wrote, or changed since they were labelled.
    pub edited: Vec<String>,
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
            edited: first
                .edited
                .then(|| first.name.clone())
                .into_iter()
                .collect(),
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
                edited,
            } = read(path)?;
            if edited {
                store.edited.push(name.clone());
            }
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
        self.columns.images.extend(columns.images);
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
        for name in ["people-000", "a/b c", "../x", "a%2Fb", "é"] {
            let file = file_name(name);
            assert_eq!(shard_name(file.strip_suffix(".parquet").unwrap()), name);
        }
    }
}
