//! Features of any images, and files of them.
//!
//! `.npy` holds a `float32` array [images, channels] in NumPy's format, version 1.0, and
//! `<file>.keys.txt` beside it one key a line: line i is the key of row i. The keys are written
//! last, and those of an earlier array are removed first, so that keys never lie beside the array
//! of others. `.parquet` holds the columns `key` (string) and `feature` (list of floats), and in its
//! metadata, as JSON below `clasp.features`, the [`FeatureOrigin`].

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Seek, SeekFrom, Write};
use std::iter;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clasp_data::image::Limits;
use clasp_data::source::{ReadFailure, Source, UnreadableImages};
use clasp_data::{NewFile, check_schema};
use clasp_model::prompt::PromptWeights;
use fs_err as fs;
use parquet::basic::Compression;
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnDescPtr;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{
    Batching, Extractor, ImageFeatures, ImagePass, PassProgress, Preprocess, each_image,
};

/// What computed features: two files of the same origin can be compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureOrigin {
    /// SHA-256 of the weights and of the settings, besides those below, that decide the features.
    pub model: String,
    /// The prompt.
    pub prompt: PromptWeights,
    /// Height and width of the input.
    pub size: [usize; 2],
}

impl fmt::Display for FeatureOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.size;
        let model = self.model.get(..16).unwrap_or(&self.model);
        write!(
            f,
            "features of model {model}, prompt {}, size {height}x{width}",
            self.prompt
        )
    }
}

/// Features of images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// Position of each image in its source.
    pub items: Vec<usize>,
    /// Key of each image.
    pub keys: Vec<String>,
    /// Length of a feature.
    pub channels: usize,
    /// [images, channels].
    pub features: Vec<f32>,
    /// Images that could not be read and have no row.
    pub unreadable: UnreadableImages,
    /// What computed them, as far as the file that they were read from says.
    pub origin: Option<FeatureOrigin>,
}

impl Embeddings {
    /// Checks that the features of a file are those that `origin` would compute.
    ///
    /// # Errors
    /// The file says that they are of another origin.
    pub fn check_origin(&self, file: &Path, origin: &FeatureOrigin) -> Result<(), TaskError> {
        match &self.origin {
            Some(found) if found != origin => Err(TaskError::Mismatch {
                file: file.display().to_string(),
                expected: origin.to_string(),
                found: format!(
                    "{found}\n  hint: compute them by `clasp embed` with this model, --prompt {} and --size {}x{}; \
                     no --prompt for a fine-tuned model",
                    origin.prompt, origin.size[0], origin.size[1]
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Pooled features of every image of a source, not normalized. Images that cannot be read are
/// skipped and listed.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::ops::ControlFlow;
///
/// use burn::tensor::Device;
/// use clasp_data::source::Source;
/// use clasp_tasks::backbone::BackboneExtractor;
/// use clasp_tasks::embed::embed;
/// use clasp_tasks::features::{Batching, Preprocess};
///
/// let device = Device::flex();
/// let (backbone, meta) = clasp_weights::import::load_backbone("run".as_ref(), &device)?;
/// let extractor = BackboneExtractor::new(backbone, "identity".parse()?, device);
/// let images = Source::open("photos")?;
/// let batching = Batching::default();
/// let quiet = |_| ControlFlow::Continue(());
/// let found = embed(&extractor, &Preprocess::of(&meta), &images, false, &batching, &quiet)?;
/// assert_eq!(found.features.len(), found.keys.len() * found.channels);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// More than 5 % of the images cannot be read, unless `keep_going`; features that are not finite; a
/// stop through `progress`.
pub fn embed<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    source: &Source,
    keep_going: bool,
    batching: &Batching,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<Embeddings, TaskError> {
    let mut embeddings = Embeddings::default();
    let chunk = batching.chunk();
    for start in (0..source.len()).step_by(chunk) {
        let items = start..source.len().min(start + chunk);
        let rows = embed_some(extractor, preprocess, source, items, batching, progress)?;
        for (item, row) in (start..).zip(rows) {
            match row {
                Ok(row) => {
                    embeddings.unreadable.ok();
                    embeddings.channels = row.len();
                    embeddings.features.extend(row);
                    embeddings.items.push(item);
                    embeddings.keys.push(source.key(item).to_owned());
                }
                Err(failure) => embeddings.unreadable.fail(source.key(item), failure),
            }
        }
        if !keep_going {
            embeddings.unreadable.check_early()?;
        }
    }
    if !keep_going {
        embeddings.unreadable.check()?;
    }
    Ok(embeddings)
}

/// Pooled features of some images of a source, in order; for an unreadable image, the reason.
/// `progress` counts all images of the source.
///
/// # Errors
/// Features that are not finite; a stop through `progress`.
pub fn embed_some<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    source: &Source,
    items: Range<usize>,
    batching: &Batching,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<Vec<Result<Vec<f32>, ReadFailure>>, TaskError> {
    let failed: Vec<OnceLock<ReadFailure>> = vec![OnceLock::new(); items.len()];
    let load = |i: usize| match source.load(items.start + i, &Limits::default()) {
        Ok(image) => Ok(Some(preprocess.apply(&image))),
        Err(failure) => {
            failed[i].get_or_init(|| failure);
            Ok(None)
        }
    };
    let name = |i: usize| source.key(items.start + i).to_owned();
    let of_all = |so_far: PassProgress| {
        progress(PassProgress {
            done: items.start + so_far.done,
            total: source.len(),
            ..so_far
        })
    };
    let size = [preprocess.height, preprocess.width];
    let images = (items.len(), &name as _);
    let rows = pooled(extractor, size, images, batching, load, &of_all)?;
    let reasons = failed.into_iter().map(OnceLock::into_inner);
    Ok(rows
        .into_iter()
        .zip(reasons)
        .map(|(row, failure)| {
            row.ok_or(failure.unwrap_or(ReadFailure {
                reason: String::new(),
                permanent: false,
            }))
        })
        .collect())
}

/// Pooled features of `count` images, which `name` names in errors; `load(i)` gives input i, `[3,
/// height, width]`, or `None` to skip it.
///
/// # Errors
/// Those of `load`; features that are not finite; a stop through `progress`.
pub fn pooled<E: Extractor>(
    extractor: &E,
    size: [usize; 2],
    (count, name): (usize, &(dyn Fn(usize) -> String + Sync)),
    batching: &Batching,
    load: impl Fn(usize) -> Result<Option<Vec<f32>>, TaskError> + Sync,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<Vec<Option<Vec<f32>>>, TaskError> {
    let keep = |_: usize, features: &ImageFeatures| Ok(features.pooled.to_vec());
    let pass = ImagePass {
        stage: "images",
        count,
        size,
        stages: 0,
        name,
    };
    each_image(extractor, pass, batching, load, keep, progress)
}

/// A file of features that is written row by row and gets its name when it is complete.
pub struct FeatureFile {
    path: PathBuf,
    rows: usize,
    channels: usize,
    format: FeatureFormat,
}

enum FeatureFormat {
    Npy { array: NewFile, keys: NewFile },
    Parquet(ParquetRows),
}

impl FeatureFile {
    /// Starts the file in the format of its extension: `.npy`, which does not keep the origin, or
    /// `.parquet`.
    ///
    /// # Errors
    /// Another extension, or the folder cannot be written to.
    pub fn create(path: &Path, origin: Option<&FeatureOrigin>) -> Result<Self, TaskError> {
        let format = match path.extension().and_then(|ending| ending.to_str()) {
            Some("npy") => {
                let mut array = NewFile::create(path)?;
                array.write_all(&npy_header(0, 0))?;
                let keys = NewFile::create(&keys_file(path))?;
                FeatureFormat::Npy { array, keys }
            }
            Some("parquet") => FeatureFormat::Parquet(ParquetRows::create(path, origin)?),
            other => {
                return Err(TaskError::Format {
                    file: path.display().to_string(),
                    found: other.map_or("none".to_owned(), |other| format!(".{other}")),
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            rows: 0,
            channels: 0,
            format,
        })
    }

    /// Checks, before any computation, that the keys of a source can be written.
    ///
    /// # Errors
    /// A key with a line break, which the list of keys beside `.npy` cannot have.
    pub fn check_keys(&self, source: &Source) -> Result<(), TaskError> {
        match self.format {
            FeatureFormat::Npy { .. } => source.keys().try_for_each(|key| self.check_key(key)),
            FeatureFormat::Parquet(_) => Ok(()),
        }
    }

    fn check_key(&self, key: &str) -> Result<(), TaskError> {
        if !key.contains(['\n', '\r']) {
            return Ok(());
        }
        Err(TaskError::Mismatch {
            file: self.path.display().to_string(),
            expected: "keys without line breaks (a .parquet takes any)".to_owned(),
            found: format!("{key:?}"),
        })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// A key with a line break, a row of another length than the first, or the file cannot be
    /// written.
    pub fn push(&mut self, key: &str, row: &[f32]) -> Result<(), TaskError> {
        let differs = |expected: String, found: String| TaskError::Mismatch {
            file: self.path.display().to_string(),
            expected,
            found,
        };
        if self.rows == 0 {
            self.channels = row.len();
        }
        if row.len() != self.channels {
            let expected = format!("rows of {} numbers", self.channels);
            return Err(differs(expected, format!("{} for `{key}`", row.len())));
        }
        if matches!(self.format, FeatureFormat::Npy { .. }) {
            self.check_key(key)?;
        }
        match &mut self.format {
            FeatureFormat::Npy { array, keys } => {
                for value in row {
                    array.write_all(&value.to_le_bytes())?;
                }
                writeln!(keys, "{key}")?;
            }
            FeatureFormat::Parquet(parquet) => parquet.push(key, row).map_err(io::Error::other)?,
        }
        self.rows += 1;
        Ok(())
    }

    /// Completes the file and returns the paths that were written.
    ///
    /// # Errors
    /// The file cannot be written; then there is no new file, but the keys of an earlier array may
    /// be removed.
    pub fn finish(self) -> Result<Vec<PathBuf>, TaskError> {
        match self.format {
            FeatureFormat::Npy {
                mut array,
                mut keys,
            } => {
                array.seek(SeekFrom::Start(0))?;
                array.write_all(&npy_header(self.rows, self.channels))?;
                array.sync()?;
                keys.sync()?;
                let names = keys_file(&self.path);
                match fs::remove_file(&names) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    _ => array.finish()?,
                }
                keys.finish()?;
                Ok(vec![self.path, names])
            }
            FeatureFormat::Parquet(parquet) => {
                let file = parquet.finish().map_err(io::Error::other)?;
                file.finish()?;
                Ok(vec![self.path])
            }
        }
    }
}

/// The file of the images' keys beside an array of features, `FILE.keys.txt`.
pub fn keys_file(path: &Path) -> PathBuf {
    let mut keys = path.as_os_str().to_owned();
    keys.push(".keys.txt");
    PathBuf::from(keys)
}

/// NumPy's header: magic, version, length, description. Always 128 bytes, so that the number of
/// rows can be written when it is known.
fn npy_header(rows: usize, channels: usize) -> Vec<u8> {
    let text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {channels}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(118_u16.to_le_bytes());
    bytes.extend(format!("{text:<117}\n").into_bytes());
    bytes
}

/// Key of the [`FeatureOrigin`] in a file's metadata.
const ORIGIN: &str = "clasp.features";

/// Rows of a Parquet file, written in groups.
struct ParquetRows {
    writer: SerializedFileWriter<NewFile>,
    keys: Vec<ByteArray>,
    /// [keys, channels].
    values: Vec<f32>,
}

impl ParquetRows {
    /// Rows of a group.
    const GROUP: usize = 1 << 14;

    fn create(path: &Path, origin: Option<&FeatureOrigin>) -> Result<Self, TaskError> {
        let file = NewFile::create(path)?;
        let origin = origin.map(serde_json::to_string).transpose();
        let origin = origin.map_err(io::Error::other)?;
        Ok(Self {
            writer: Self::writer(file, origin).map_err(io::Error::other)?,
            keys: Vec::new(),
            values: Vec::new(),
        })
    }

    fn writer(
        file: NewFile,
        origin: Option<String>,
    ) -> Result<SerializedFileWriter<NewFile>, ParquetError> {
        let schema = "message embeddings {
            required binary key (STRING);
            required group feature (LIST) { repeated group list { required float element; } }
        }";
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_key_value_metadata(
                origin.map(|origin| vec![KeyValue::new(ORIGIN.to_owned(), origin)]),
            );
        let schema = Arc::new(parse_message_type(schema)?);
        SerializedFileWriter::new(file, schema, Arc::new(properties.build()))
    }

    fn push(&mut self, key: &str, row: &[f32]) -> Result<(), ParquetError> {
        self.keys.push(key.into());
        self.values.extend_from_slice(row);
        if self.keys.len() == Self::GROUP {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let missing = || ParquetError::General("the schema has too few columns".into());
        let channels = self.values.len() / self.keys.len();
        let mut group = self.writer.next_row_group()?;
        let mut column = group.next_column()?.ok_or_else(missing)?;
        column
            .typed::<ByteArrayType>()
            .write_batch(&self.keys, None, None)?;
        column.close()?;
        // A list is stored as its elements with a repetition level that is 0 at the start of a
        // list.
        let repetition: Vec<i16> = (0..self.values.len())
            .map(|i| i16::from(i % channels != 0))
            .collect();
        let mut column = group.next_column()?.ok_or_else(missing)?;
        column.typed::<FloatType>().write_batch(
            &self.values,
            Some(&vec![1; self.values.len()]),
            Some(&repetition),
        )?;
        column.close()?;
        group.close()?;
        self.keys.clear();
        self.values.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<NewFile, ParquetError> {
        self.write_group()?;
        self.writer.into_inner()
    }
}

/// Joins the files `parts`, as `clasp embed --shard` writes them, into the file `out`: the rows of
/// one after the other, as if one process had written them. Returns the number of rows and the
/// paths that were written.
///
/// # Errors
/// A part cannot be read, is of another format, length of features or origin, or has a key that
/// another part has; the file cannot be written.
pub fn merge_features(parts: &[PathBuf], out: &Path) -> Result<(usize, Vec<PathBuf>), TaskError> {
    let read = |path: &PathBuf| match path.extension().is_some_and(|ending| ending == "npy") {
        true => read_npy(path),
        false => read_features(path),
    };
    let Some((first, others)) = parts.split_first() else {
        return Ok((0, FeatureFile::create(out, None)?.finish()?));
    };
    let part = read(first)?;
    let origin = part.origin.clone();
    let mut file = FeatureFile::create(out, origin.as_ref())?;
    let mut known = HashSet::new();
    let others = others.iter().map(|path| (path, read(path)));
    for (path, part) in iter::once((first, Ok(part))).chain(others) {
        let part = part?;
        if part.origin != origin {
            let text = |origin: &Option<FeatureOrigin>| match origin {
                Some(origin) => origin.to_string(),
                None => "features of an unknown model".to_owned(),
            };
            return Err(TaskError::Mismatch {
                file: path.display().to_string(),
                expected: format!("{}, as those of {}", text(&origin), first.display()),
                found: text(&part.origin),
            });
        }
        for (at, key) in part.keys.into_iter().enumerate() {
            file.push(&key, &part.features[at * part.channels..][..part.channels])?;
            if let Some(key) = known.replace(key) {
                return Err(TaskError::Mismatch {
                    file: path.display().to_string(),
                    expected: "other images than the parts before it".to_owned(),
                    found: format!("`{key}` again"),
                });
            }
        }
    }
    Ok((known.len(), file.finish()?))
}

/// Reads a `.npy` file of features with its keys, as [`FeatureFile`] writes them.
///
/// # Errors
/// The files cannot be read, or are not what [`FeatureFile`] writes.
fn read_npy(path: &Path) -> Result<Embeddings, TaskError> {
    let keys = fs::read_to_string(keys_file(path))?;
    let keys: Vec<String> = keys.lines().map(str::to_owned).collect();
    let bytes = fs::read(path)?;
    let rows = keys.len();
    let (header, values) = bytes
        .split_at_checked(npy_header(0, 0).len())
        .unwrap_or_default();
    let channels = (values.len() / 4).checked_div(rows).unwrap_or(0);
    if header != npy_header(rows, channels) || values.len() != 4 * rows * channels {
        return Err(TaskError::Mismatch {
            file: path.display().to_string(),
            expected: format!("the {rows} features of `clasp embed` whose keys are beside it"),
            found: format!("{} bytes of another kind", bytes.len()),
        });
    }
    let values = values.as_chunks::<4>().0.iter();
    Ok(Embeddings {
        items: (0..rows).collect(),
        channels,
        features: values.map(|value| f32::from_le_bytes(*value)).collect(),
        keys,
        ..Embeddings::default()
    })
}

/// Reads a Parquet file of features, as `clasp embed` writes it: the column `key` (strings) and the
/// column `feature` (lists of 32-bit floats, all of one length).
///
/// # Errors
/// The file cannot be read, lacks a column, or holds features that are not finite, of different
/// lengths or without a key, or a key twice.
pub fn read_features(path: &Path) -> Result<Embeddings, TaskError> {
    // The reader of Parquet panics on some damaged files.
    let read = clasp_data::contained::contained(|| feature_rows(path));
    let differs = |found: String| TaskError::Mismatch {
        file: path.display().to_string(),
        expected: "the columns `key` (string) and `feature` (list of 32-bit floats) of \
                   `clasp embed --out F.parquet`"
            .to_owned(),
        found,
    };
    let FeatureRows {
        keys,
        lengths,
        features,
        origin,
    } = match read {
        Some(rows) => rows?.map_err(differs)?,
        None => return Err(differs("a damaged file".to_owned())),
    };
    let channels = lengths.first().copied().unwrap_or(0);
    if keys.len() != lengths.len() {
        let found = format!("{} keys and {} features", keys.len(), lengths.len());
        return Err(differs(found));
    }
    for (key, length) in keys.iter().zip(&lengths) {
        if *length != channels || channels == 0 {
            let found = format!("{length} values for `{key}`, {channels} for the first");
            return Err(differs(found));
        }
    }
    if let Some(at) = features.iter().position(|value| !value.is_finite()) {
        let key = &keys[at / channels];
        return Err(differs(format!("{} for `{key}`", features[at])));
    }
    let mut sorted: Vec<&String> = keys.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(differs(format!("the key `{}` twice", pair[0])));
    }
    Ok(Embeddings {
        items: (0..keys.len()).collect(),
        channels,
        features,
        keys,
        origin,
        ..Embeddings::default()
    })
}

/// What a file of features holds.
struct FeatureRows {
    keys: Vec<String>,
    /// Of each feature.
    lengths: Vec<usize>,
    features: Vec<f32>,
    origin: Option<FeatureOrigin>,
}

/// Rows that are decoded at a time.
const DECODED: usize = 1 << 12;

/// Keys that are decoded at a time: few, as each may be as long as a page.
const DECODED_KEYS: usize = 16;

/// Bytes of keys for each byte of the file. Keys differ, so that they do not shrink by more.
const KEY_INFLATION: u64 = 64;

/// Keys that are read.
#[derive(Default)]
struct FeatureKeys {
    all: Vec<String>,
    /// Of all together.
    bytes: u64,
}

impl FeatureKeys {
    /// Adds those of a row group, or says what is wrong with them. `claimed`: values of the features
    /// so far; `size`: bytes of the file.
    fn read(
        &mut self,
        mut names: ColumnReaderImpl<ByteArrayType>,
        claimed: u64,
        size: u64,
    ) -> Result<Result<(), String>, ParquetError> {
        loop {
            let (mut some, mut definition) = (Vec::new(), Vec::new());
            let (records, ..) =
                names.read_records(DECODED_KEYS, Some(&mut definition), None, &mut some)?;
            if some.len() != records {
                return Ok(Err("rows without a key".to_owned()));
            }
            if records == 0 {
                return Ok(Ok(()));
            }
            // Keys of a dictionary share their bytes until they are copied below; every feature has
            // a value.
            self.bytes += some.iter().map(|name| name.len() as u64).sum::<u64>();
            let rows = (self.all.len() + records) as u64;
            if self.bytes > size.saturating_mul(KEY_INFLATION) || rows > claimed {
                return Ok(Err(format!(
                    "{rows} keys of {} bytes or more for {claimed} values in a file of {size} bytes",
                    self.bytes
                )));
            }
            for name in some {
                match std::str::from_utf8(name.data()) {
                    Ok(name) => self.all.push(name.to_owned()),
                    Err(_) => {
                        let row = self.all.len();
                        return Ok(Err(format!("a key that is not UTF-8 in row {row}")));
                    }
                }
            }
        }
    }
}

/// The content, or what is wrong with it.
fn feature_rows(path: &Path) -> Result<Result<FeatureRows, String>, TaskError> {
    let file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    Ok(columns_of(file.into_file(), bytes).unwrap_or_else(|error| Err(error.to_string())))
}

fn columns_of(
    file: std::fs::File,
    bytes: u64,
) -> Result<Result<FeatureRows, String>, ParquetError> {
    check_schema(&file)?;
    let reader = SerializedFileReader::new(file)?;
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let origin = { metadata.into_iter().flatten() }
        .find(|pair| pair.key == ORIGIN)
        .and_then(|pair| pair.value.as_deref())
        .map(serde_json::from_str)
        .transpose();
    let origin = match origin {
        Ok(origin) => origin,
        Err(error) => return Ok(Err(format!("metadata `{ORIGIN}` that says: {error}"))),
    };
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let leaf = |name: &str| {
        let of_name = |column: &ColumnDescPtr| {
            column.path().parts().first().map(String::as_str) == Some(name)
        };
        schema.columns().iter().position(of_name)
    };
    let (Some(key), Some(feature)) = (leaf("key"), leaf("feature")) else {
        return Ok(Err("other columns".to_owned()));
    };
    let (mut keys, mut lengths, mut values) = (FeatureKeys::default(), Vec::new(), Vec::new());
    let mut claimed = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        // Repeated values take no space in the file: what it claims is bounded by its size, before
        // anything is decoded.
        claimed += values_of_pages(group.get_column_page_reader(feature)?)?;
        if claimed > bytes {
            return Ok(Err(format!("{claimed} values in a file of {bytes} bytes")));
        }
        let (
            ColumnReader::ByteArrayColumnReader(names),
            ColumnReader::FloatColumnReader(mut lists),
        ) = (
            group.get_column_reader(key)?,
            group.get_column_reader(feature)?,
        )
        else {
            return Ok(Err("columns of other types".to_owned()));
        };
        if let Err(found) = keys.read(names, claimed, bytes)? {
            return Ok(Err(found));
        }
        loop {
            let (mut definition, mut repetition, before) = (Vec::new(), Vec::new(), values.len());
            let (records, ..) = lists.read_records(
                DECODED,
                Some(&mut definition),
                Some(&mut repetition),
                &mut values,
            )?;
            if repetition.len() != values.len() - before {
                return Ok(Err("missing values or empty lists".to_owned()));
            }
            for level in repetition {
                match (level, lengths.last_mut()) {
                    (0, _) | (_, None) => lengths.push(1),
                    (_, Some(length)) => *length += 1,
                }
            }
            if records == 0 {
                break;
            }
        }
    }
    Ok(Ok(FeatureRows {
        keys: keys.all,
        lengths,
        features: values,
        origin,
    }))
}

/// The number of values that the headers of a column's pages claim.
fn values_of_pages(mut pages: Box<dyn PageReader>) -> Result<u64, ParquetError> {
    let mut values = 0_u64;
    while let Some(page) = pages.peek_next_page()? {
        values = values.saturating_add(page.num_levels.unwrap_or(0) as u64);
        pages.skip_next_page()?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, image, quiet};
    use clasp_data::image::encode_jpeg;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;
    use std::sync::Mutex;

    /// Of each of the three parts of an origin.
    #[test]
    fn features_of_another_origin_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let origin = FeatureOrigin {
            model: "ab".repeat(32),
            // Divided by its sum again, this mix would change.
            prompt: "identity=0.15,part=0.65,attribute=0.2".parse().unwrap(),
            size: [256, 128],
        };
        let write = |name: &str, key: &str, origin: Option<&FeatureOrigin>| {
            let mut file = FeatureFile::create(&at(name), origin).unwrap();
            file.push(key, &[1.0, 2.0]).unwrap();
            file.finish().unwrap();
        };
        write("a.parquet", "a", Some(&origin));
        let read = read_features(&at("a.parquet")).unwrap();
        assert_eq!(read.origin.as_ref(), Some(&origin));
        read.check_origin(&at("a.parquet"), &origin).unwrap();
        let others = [
            FeatureOrigin {
                model: "cd".repeat(32),
                ..origin.clone()
            },
            FeatureOrigin {
                prompt: "part".parse().unwrap(),
                ..origin.clone()
            },
            FeatureOrigin {
                size: [128, 256],
                ..origin.clone()
            },
        ];
        for other in &others {
            let error = read.check_origin(&at("a.parquet"), other).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(&other.to_string()) && error.contains(&origin.to_string()),
                "{error}"
            );
            write("b.parquet", "b", Some(other));
            let parts = [at("a.parquet"), at("b.parquet")];
            let error = merge_features(&parts, &at("both.parquet")).unwrap_err();
            assert!(error.to_string().contains("b.parquet"), "{error}");
        }
        write("b.parquet", "b", None);
        let parts = [at("a.parquet"), at("b.parquet")];
        merge_features(&parts, &at("both.parquet")).unwrap_err();
        write("b.parquet", "b", Some(&origin));
        merge_features(&parts, &at("both.parquet")).unwrap();
        let both = read_features(&at("both.parquet")).unwrap();
        assert_eq!((both.keys.len(), both.origin), (2, Some(origin)));
    }

    fn folder(good: usize, bad: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..good {
            let picture = image([i as u8 * 20, 50, 90], 32, 64);
            fs_err::write(
                folder.path().join(format!("a{i}.jpg")),
                encode_jpeg(&picture, 90),
            )
            .unwrap();
        }
        for i in 0..bad {
            fs_err::write(folder.path().join(format!("a{i}b.jpg")), b"broken").unwrap();
        }
        folder
    }

    fn run(folder: &Path, keep_going: bool) -> Result<Embeddings, TaskError> {
        let source = Source::open(&folder.display().to_string()).unwrap();
        let batching = Batching {
            batch: 3,
            ..Batching::default()
        };
        embed(
            &Fake::Colors,
            &Preprocess::imagenet(64, 32),
            &source,
            keep_going,
            &batching,
            &quiet,
        )
    }

    #[test]
    fn unreadable_images_are_skipped_and_listed() {
        let folder = folder(8, 1);
        assert!(matches!(
            run(folder.path(), false),
            Err(TaskError::Unreadable(_))
        ));
        let found = run(folder.path(), true).unwrap();
        assert_eq!(found.keys, ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"]);
        assert_eq!(found.features.len(), 8 * found.channels);
        assert_eq!(
            (found.unreadable.seen, found.unreadable.failed[0].0.as_str()),
            (9, "a0b")
        );
    }

    #[test]
    fn the_error_of_a_non_finite_feature_names_the_image() {
        let folder = folder(3, 0);
        let source = Source::open(&folder.path().display().to_string()).unwrap();
        let preprocess = Preprocess::imagenet(64, 32);
        let batching = Batching::default();
        let error = embed(&Fake::Nan, &preprocess, &source, false, &batching, &quiet).unwrap_err();
        assert!(
            error.to_string().starts_with("a0: expected finite"),
            "{error}"
        );
    }

    #[test]
    fn merged_parts_are_the_file_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let row = |index: usize| [index as f32, -0.5, 1e-30 * index as f32];
        let write = |path: &Path, rows: Range<usize>| {
            let mut file = FeatureFile::create(path, None).unwrap();
            for index in rows {
                file.push(&format!("image {index}"), &row(index)).unwrap();
            }
            file.finish().unwrap()
        };
        for ending in ["npy", "parquet"] {
            let whole = write(&at(&format!("whole.{ending}")), 0..10);
            // One of the parts has no image.
            let parts = [0..4, 4..4, 4..9, 9..10].map(|rows| {
                let path = at(&format!("{}-{}.{ending}", rows.start, rows.end));
                write(&path, rows);
                path
            });
            let merged = at(&format!("merged.{ending}"));
            let (rows, files) = merge_features(&parts, &merged).unwrap();
            assert_eq!(rows, 10);
            for (one, other) in whole.iter().zip(&files) {
                assert_eq!(fs::read(one).unwrap(), fs::read(other).unwrap(), "{ending}");
            }
            let twice = [parts[0].clone(), parts[0].clone()];
            let error = merge_features(&twice, &merged).unwrap_err().to_string();
            assert!(error.contains("`image 0` again"), "{error}");
        }
        fs::write(at("0-4.npy"), "no array").unwrap();
        let error = merge_features(&[at("0-4.npy")], &at("merged.npy"));
        assert!(error.unwrap_err().to_string().contains("of another kind"));
    }

    #[test]
    fn chunks_equal_the_whole_list() {
        let folder = folder(8, 1);
        let whole = run(folder.path(), true).unwrap();
        let source = Source::open(&folder.path().display().to_string()).unwrap();
        let preprocess = Preprocess::imagenet(64, 32);
        let batching = Batching::default();
        let last = Mutex::new(0);
        let mut rows = Vec::new();
        for items in [0..4, 4..9] {
            let progress = |so_far: PassProgress| {
                assert_eq!(so_far.total, 9);
                *last.lock().unwrap() = so_far.done;
                ControlFlow::Continue(())
            };
            let some = embed_some(
                &Fake::Colors,
                &preprocess,
                &source,
                items,
                &batching,
                &progress,
            );
            rows.extend(some.unwrap());
        }
        assert_eq!(*last.lock().unwrap(), 9);
        assert!(rows[1].as_ref().is_err_and(|reason| reason.permanent));
        let features: Vec<f32> = rows.into_iter().flatten().flatten().collect();
        assert_eq!(features, whole.features);
        assert_eq!(whole.items, [0, 2, 3, 4, 5, 6, 7, 8]);
    }

    /// Shape and values of a `.npy`.
    fn npy(path: &Path) -> (String, Vec<f32>) {
        let bytes = fs::read(path).unwrap();
        let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((header % 64, bytes[header - 1]), (0, b'\n'));
        let text = String::from_utf8_lossy(&bytes[10..header]).into_owned();
        let values = bytes[header..].chunks(4);
        let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (text, values.collect())
    }

    #[test]
    fn files_hold_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [("a/x", [1.0, -2.5]), ("b", [0.1, 3e-8]), ("c", [0.0, 4.0])];
        let path = folder.path().join("f.npy");
        let write = |path: &Path| {
            let mut file = FeatureFile::create(path, None).unwrap();
            for (key, row) in &rows {
                file.push(key, row).unwrap();
            }
            file
        };
        let file = write(&path);
        assert!(!path.exists(), "an incomplete file has its final name");
        assert_eq!(file.finish().unwrap().len(), 2);
        let (header, values) = npy(&path);
        assert!(header.contains("'shape': (3, 2)"), "{header}");
        assert_eq!(values, rows.map(|(_, row)| row).concat());
        let keys = fs::read_to_string(folder.path().join("f.npy.keys.txt")).unwrap();
        assert_eq!(keys, "a/x\nb\nc\n");

        let path = folder.path().join("f.parquet");
        write(&path).finish().unwrap();
        let bytes = bytes::Bytes::from(fs::read(&path).unwrap());
        let reader = SerializedFileReader::new(bytes).unwrap();
        let read: Vec<_> = reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| row.unwrap())
            .collect();
        assert_eq!(
            (read.len(), read[0].get_string(0).unwrap().as_str()),
            (3, "a/x")
        );
        assert_eq!(read[2].get_list(1).unwrap().len(), 2);
        let read = read_features(&path).unwrap();
        assert_eq!(
            (read.keys, read.channels),
            (rows.map(|(key, _)| key.to_owned()).to_vec(), 2)
        );
        assert_eq!(read.features, rows.map(|(_, row)| row).concat());

        let empty = folder.path().join("empty.npy");
        FeatureFile::create(&empty, None).unwrap().finish().unwrap();
        assert!(npy(&empty).0.contains("(0, 0)"));
    }

    const NULLABLE_KEYS: &str = "message schema { optional binary key (STRING); \
         required group feature (LIST) { repeated group list { required float element; } } }";

    /// A file with the columns of this schema, whose keys are `a`, `b`, … and whose features repeat
    /// one value.
    fn written(path: &Path, schema: &str, features: &[usize]) {
        let keys: Vec<ByteArray> = (0..features.len())
            .map(|at| ByteArray::from(vec![b'a' + at as u8]))
            .collect();
        written_as(path, schema, &keys, features);
    }

    fn written_as(path: &Path, schema: &str, keys: &[ByteArray], features: &[usize]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = fs::File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let defined = vec![1; keys.len()];
        let names = column.typed::<ByteArrayType>();
        names.write_batch(keys, Some(&defined), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        for length in features {
            let repetition: Vec<i16> = (0..*length).map(|at| i16::from(at > 0)).collect();
            let (values, defined) = (vec![0.5; *length], vec![1; *length]);
            let lists = column.typed::<FloatType>();
            lists
                .write_batch(&values, Some(&defined), Some(&repetition))
                .unwrap();
        }
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn keys_that_could_be_missing_are_read_and_claims_above_the_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        written(&path, NULLABLE_KEYS, &[3, 3]);
        let read = read_features(&path).unwrap();
        assert_eq!(
            (read.keys, read.channels),
            (vec!["a".to_owned(), "b".to_owned()], 3)
        );
        written(&path, NULLABLE_KEYS, &[100_000]);
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < 10_000, "{size}");
        let error = read_features(&path).unwrap_err().to_string();
        assert!(error.contains("100000 values in a file of"), "{error}");
    }

    /// A key of a dictionary takes its length once in the file, and in memory once a row.
    #[test]
    fn repeated_keys_are_refused_before_they_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        let long = ByteArray::from("k".repeat(10_000).as_str());
        written_as(&path, NULLABLE_KEYS, &vec![long; 1000], &[1; 1000]);
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < 100_000, "{size}");
        let error = read_features(&path).unwrap_err().to_string();
        assert!(error.contains("bytes or more for 1000 values"), "{error}");
    }

    #[test]
    fn damaged_features_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |name: &str, rows: &[(&str, [f32; 2])]| {
            let mut file = FeatureFile::create(&at(name), None).unwrap();
            rows.iter()
                .for_each(|(key, row)| file.push(key, row).unwrap());
            file.finish().unwrap();
            read_features(&at(name)).unwrap_err().to_string()
        };
        let error = refused("twice.parquet", &[("a", [1.0, 2.0]), ("a", [3.0, 4.0])]);
        assert!(error.contains("`a` twice"), "{error}");
        let error = refused("nan.parquet", &[("a", [1.0, f32::NAN])]);
        assert!(error.contains("NaN for `a`"), "{error}");
        let bytes = fs::read(at("nan.parquet")).unwrap();
        for end in (0..bytes.len()).step_by(7) {
            fs::write(at("cut.parquet"), &bytes[..end]).unwrap();
            assert!(read_features(&at("cut.parquet")).is_err(), "{end}");
        }
    }

    #[test]
    fn invalid_rows_are_errors_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = FeatureFile::create(&at("f.csv"), None).err().unwrap();
        assert!(error.to_string().contains("found .csv"), "{error}");
        let mut file = FeatureFile::create(&at("f.npy"), None).unwrap();
        file.push("a", &[1.0]).unwrap();
        let error = file.push("b", &[1.0, 2.0]).unwrap_err().to_string();
        assert!(error.contains("`b`"), "{error}");
        assert!(file.push("b\nc", &[1.0]).is_err());
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn keys_are_never_beside_the_array_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let (path, keys) = (
            folder.path().join("f.npy"),
            folder.path().join("f.npy.keys.txt"),
        );
        let begin = || {
            let mut file = FeatureFile::create(&path, None).unwrap();
            file.push("a", &[1.0]).unwrap();
            file
        };
        begin().finish().unwrap();
        assert!(keys.exists());
        // The array cannot be renamed, as when the process is killed between the two files.
        let file = begin();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(file.finish().is_err());
        assert!(!keys.exists(), "the keys of the earlier array are left");
    }
}
