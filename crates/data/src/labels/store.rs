//! A folder of label files, as one table.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::corrections::{self, CorrectedAttribute, CorrectedValues, Correction, CorrectionCounts};
use super::error::LabelError;
use super::file_names::{SIDECAR, shard_file};
use super::meta::StoreMeta;
use super::row::{LabelRef, Labels};
use super::shard::{self, LabelColumns, LabelShard};
use crate::missing::require;
use crate::vocabulary::Vocabulary;

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
        "# What all labels in this folder share, for label files that other programs wrote.\n{text}"
    );
    Ok(crate::atomic_write(&path, |file| {
        file.write_all(text.as_bytes())
    })?)
}

/// The contents of the sidecar of a store, if there is one.
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

/// Writes the labels of one input shard into the store's folder, which is created where it is
/// missing, and returns the file's path. The file is written atomically and replaces an earlier one
/// of the same shard.
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
        if let Some(problem) = label.view().fault(meta) {
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
    let path = folder.join(shard_file(shard_name));
    crate::atomic_write(&path, |out| out.write_all(&bytes))?;
    Ok(path)
}

/// Names of the input shards whose labels are in `folder`, complete and with the same `meta`; a
/// folder that does not exist yet has none. A labeling run skips these.
///
/// # Errors
///
/// A damaged file, or one with another `meta`: continuing would mix two labelings.
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
    let shard = read(&folder.join(shard_file(shard_name)))?;
    Ok(shard.columns.keys.iter().map(ToString::to_string).collect())
}

/// The labels of one finished shard, in the order they were written, and whether another program
/// wrote or changed them.
///
/// # Errors
///
/// No labels of this shard, or a damaged file.
pub fn read_shard(folder: &Path, shard_name: &str) -> Result<(Vec<Labels>, bool), LabelError> {
    let LabelShard {
        meta,
        columns,
        edited,
        ..
    } = read(&folder.join(shard_file(shard_name)))?;
    let row = |row| columns.row(row, &meta);
    let labels = (0..columns.keys.len()).map(|i| row(i).to_labels());
    Ok((labels.collect(), edited))
}

/// The label files of a folder, by name. Hidden files are remnants of killed writers.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, LabelError> {
    require(folder, "a folder with labels")?;
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
pub(super) fn read(path: &Path) -> Result<LabelShard, LabelError> {
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
    /// Those among them that another program wrote, or changed since they were labeled.
    pub edited: Vec<String>,
    columns: LabelColumns,
    rows_by_key: HashMap<Arc<str>, usize>,
    /// By row.
    corrected: HashMap<usize, CorrectedRow>,
    /// Keys of corrections that belong to no labels of the store.
    unused_corrections: Vec<String>,
}

/// A correction that is applied to the labels of an image.
#[derive(Debug)]
struct CorrectedRow {
    correction: Correction,
    attributes: Vec<CorrectedAttribute>,
    /// Position, class and confidence as the labeler wrote them, in the order of the changes.
    labeled: Vec<(usize, u8, u8)>,
}

impl Store {
    /// Reads every label file of a folder, in the order of their names.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), clasp_data::labels::LabelError> {
    /// use clasp_data::labels::Store;
    ///
    /// let store = Store::open("labels".as_ref())?;
    /// let classes = &store.meta.vocabulary.parts;
    /// for row in store.iter() {
    ///     let first = row.values.parts[0]; // top left patch position; 255 is the ignore index
    ///     let name = classes.get(usize::from(first)).map(|part| part.name.as_str());
    ///     println!("{}: {name:?}", row.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
            columns: LabelColumns::default(),
            rows_by_key: HashMap::new(),
            corrected: HashMap::new(),
            unused_corrections: Vec::new(),
        };
        // Where each file's rows begin, to name the file of an earlier key.
        let mut starts = Vec::with_capacity(paths.len());
        starts.push(0);
        store.append(first.name, first.columns, &paths, &starts)?;
        for path in &paths[1..] {
            let LabelShard {
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
        store.apply_corrections(folder)?;
        Ok(store)
    }

    fn apply_corrections(&mut self, folder: &Path) -> Result<(), LabelError> {
        for (key, (line, correction)) in corrections::read(folder)? {
            let values = correction.resolve(&self.meta).map_err(|problem| {
                LabelError::corrections(
                    &corrections::path(folder),
                    format!("line {line}: {problem}"),
                )
            })?;
            match self.row_of(&correction) {
                Ok(row) => self.apply(row, correction, values),
                Err(_) if correction.is_empty() => {}
                Err(_) => self.unused_corrections.push(key),
            }
        }
        self.unused_corrections.sort();
        Ok(())
    }

    /// The row that a correction is of, or why there is none.
    fn row_of(&self, correction: &Correction) -> Result<usize, String> {
        let Some(&row) = self.rows_by_key.get(correction.key.as_str()) else {
            return Err("expected the key of a labeled image, found no labels of it".into());
        };
        let (labeled, seen) = (self.row(row).image_sha256, correction.image_sha256.as_str());
        if !labeled.is_empty() && !seen.is_empty() && labeled != seen {
            return Err(format!(
                "the labels are of another image of this key: expected image_sha256 {labeled}, \
                 found {seen}"
            ));
        }
        Ok(row)
    }

    /// Replaces the corrections of a row.
    fn apply(&mut self, row: usize, correction: Correction, values: CorrectedValues) {
        if let Some(earlier) = self.corrected.remove(&row) {
            for (position, class, confidence) in earlier.labeled.into_iter().rev() {
                let [part, part_confidence] = self.columns.values.part(row, position, &self.meta);
                (*part, *part_confidence) = (class, confidence);
            }
        }
        if correction.is_empty() {
            return;
        }
        let mut labeled = Vec::with_capacity(values.parts.len());
        for (position, class) in values.parts {
            let [part, confidence] = self.columns.values.part(row, position, &self.meta);
            labeled.push((position, *part, *confidence));
            (*part, *confidence) = (class, u8::MAX);
        }
        let corrected = CorrectedRow {
            correction,
            attributes: values.attributes,
            labeled,
        };
        self.corrected.insert(row, corrected);
    }

    /// Adds `newer` to the corrections of its image, here and in the store's `folder`, and gives
    /// the sum; it is on the disk when this returns. `clear` removes earlier corrections first: with
    /// an empty `newer`, all of them. What other processes have written meanwhile is kept.
    ///
    /// # Errors
    ///
    /// No labels of this image, a name that the vocabulary does not have, a position outside the
    /// part map, or a file system that refuses; nothing changes then.
    pub fn add_correction(
        &mut self,
        folder: &Path,
        mut newer: Correction,
        clear: bool,
    ) -> Result<Correction, LabelError> {
        let failed = |problem: String| LabelError::Correction {
            key: newer.key.clone(),
            problem,
        };
        let row = self.row_of(&newer).map_err(failed)?;
        newer.resolve(&self.meta).map_err(failed)?;
        newer.image_sha256 = self.row(row).image_sha256.to_owned();
        let (sum, values) = corrections::add(folder, newer, clear, |sum| sum.resolve(&self.meta))?;
        self.apply(row, sum.clone(), values);
        Ok(sum)
    }

    /// What people corrected in the labels of an image.
    pub fn correction(&self, key: &str) -> Option<&Correction> {
        let row = self.rows_by_key.get(key)?;
        Some(&self.corrected.get(row)?.correction)
    }

    /// How much of the store is corrected.
    pub fn corrections(&self) -> CorrectionCounts {
        let rows = self.corrected.values();
        CorrectionCounts {
            images: rows.len(),
            attributes: rows.clone().map(|row| row.attributes.len()).sum(),
            positions: rows.map(|row| row.correction.parts.len()).sum(),
            unused: self.unused_corrections.clone(),
        }
    }

    /// Adds the rows of the file that `starts` ends with.
    fn append(
        &mut self,
        name: String,
        columns: LabelColumns,
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
        self.columns.append(columns);
        Ok(())
    }

    /// Number of labeled images.
    pub fn len(&self) -> usize {
        self.columns.keys.len()
    }

    /// Whether no image is labeled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels of the image with this key.
    pub fn get(&self, key: &str) -> Option<LabelRef<'_>> {
        self.rows_by_key.get(key).map(|&row| self.row(row))
    }

    /// Position of the labels of the image with this key.
    pub fn position(&self, key: &str) -> Option<usize> {
        self.rows_by_key.get(key).copied()
    }

    /// All labels, in the order of the files and of their rows.
    pub fn iter(&self) -> impl Iterator<Item = LabelRef<'_>> {
        (0..self.len()).map(|row| self.row(row))
    }

    /// The labels at a position.
    ///
    /// # Panics
    ///
    /// There are not so many.
    pub fn row(&self, row: usize) -> LabelRef<'_> {
        let corrected = self.corrected.get(&row);
        LabelRef {
            corrected: corrected.map_or(&[], |row| &row.attributes),
            ..self.columns.row(row, &self.meta)
        }
    }
}
