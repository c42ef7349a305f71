//! One label file as bytes: Parquet written and read through its column interface.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{SchemaDescriptor, Type};
use sha2::{Digest, Sha256};

use super::columns::{
    ColumnNames, GroupReader, MOST_INFLATION, Read, chunk_of, same_columns, write_column,
};
use super::error::LabelError;
use super::file_names::{SIDECAR, shard_name};
use super::meta::StoreMeta;
use super::row::{LabelRef, Labels};
use super::values::{self, ValueColumns};
use crate::contained::contained;
use crate::pages::{Pages, check_schema};
use crate::vocabulary::Vocabulary;

/// Version of the format, `clasp.format` in the metadata.
const FORMAT: &str = "2";

/// Rows of a row group; what a writer holds at a time is about 0.5 kB a row.
const GROUP: usize = 1 << 16;

/// The metadata key of [`digest`].
const DIGEST: &str = "clasp.digest";

/// The rows of one file, column by column.
#[derive(Debug, Default)]
pub(super) struct LabelColumns {
    pub keys: Vec<Arc<str>>,
    pub widths: Vec<u16>,
    pub heights: Vec<u16>,
    pub values: ValueColumns,
    /// Digests of the image files, empty where unknown.
    pub images: Vec<Arc<str>>,
}

impl LabelColumns {
    /// The labels of one image; `meta` is the store's.
    pub fn row(&self, index: usize, meta: &StoreMeta) -> LabelRef<'_> {
        LabelRef {
            key: &self.keys[index],
            width: self.widths[index],
            height: self.heights[index],
            values: self.values.row(index, meta),
            image_sha256: &self.images[index],
            corrected: &[],
        }
    }

    /// Appends the rows of another file.
    pub fn append(&mut self, other: Self) {
        self.keys.extend(other.keys);
        self.widths.extend(other.widths);
        self.heights.extend(other.heights);
        self.values.append(other.values);
        self.images.extend(other.images);
    }

    /// Appends the rows of a row group.
    fn read(&mut self, group: &GroupReader<'_>, meta: &StoreMeta) -> Read<()> {
        self.keys.extend(group.texts("key")?);
        self.widths.extend(group.sides("width")?);
        self.heights.extend(group.sides("height")?);
        self.values.read(group, meta)?;
        self.images.extend(group.optional_texts("image_sha256")?);
        Ok(())
    }
}

/// What a file holds: the store's metadata, the name of its input shard, its rows.
#[derive(Debug)]
pub(super) struct LabelShard {
    pub meta: StoreMeta,
    pub name: String,
    pub columns: LabelColumns,
    /// Whether another program wrote the file, or changed it.
    pub edited: bool,
}

/// The file for labels that fit `meta`.
pub(super) fn encode(name: &str, meta: &StoreMeta, labels: &[Labels]) -> Result<Vec<u8>> {
    let vocabulary = meta
        .vocabulary
        .to_toml()
        .map_err(|error| ParquetError::General(error.to_string()))?;
    let pairs: [(&str, String); 10] = [
        ("clasp.format", FORMAT.into()),
        ("clasp.shard", name.into()),
        ("clasp.vocabulary", vocabulary),
        ("clasp.model", meta.model.clone()),
        ("clasp.model_sha256", meta.model_sha256.clone()),
        ("clasp.rows", meta.rows.to_string()),
        ("clasp.columns", meta.columns.to_string()),
        ("clasp.method", meta.method.clone()),
        ("clasp.dense", meta.dense.clone()),
        ("clasp.confidence", meta.confidence.to_string()),
    ];
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        // An index of pages would stand between them and the footer, for nothing at this size.
        .set_offset_index_disabled(true)
        .build();
    let schema = Arc::new(schema(meta)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    for group in labels.chunks(GROUP) {
        let mut out = writer.next_row_group()?;
        let keys: Vec<_> = group
            .iter()
            .map(|label| ByteArray::from(label.key.as_str()))
            .collect();
        let widths: Vec<_> = group.iter().map(|label| i32::from(label.width)).collect();
        let heights: Vec<_> = group.iter().map(|label| i32::from(label.height)).collect();
        write_column::<ByteArrayType>(&mut out, &keys)?;
        write_column::<Int32Type>(&mut out, &widths)?;
        write_column::<Int32Type>(&mut out, &heights)?;
        values::write(&mut out, group.iter().map(|label| &label.values))?;
        let images: Vec<_> = (group.iter())
            .map(|label| ByteArray::from(label.image_sha256.as_str()))
            .collect();
        write_column::<ByteArrayType>(&mut out, &images)?;
        out.close()?;
    }
    writer.flush()?;
    let pages = digest(
        writer.inner(),
        pairs.iter().map(|(key, value)| (*key, value.as_str())),
    );
    for (key, value) in pairs.into_iter().chain([(DIGEST, pages)]) {
        writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    }
    writer.into_inner()
}

/// The columns of a file with the labels of a store.
fn schema(meta: &StoreMeta) -> Result<Type> {
    parse_message_type(&format!(
        "message labels {{
            required binary key (STRING);
            required int32 width (INTEGER(16, false));
            required int32 height (INTEGER(16, false));
            {values}
            required binary image_sha256 (STRING);
        }}",
        values = values::schema(meta)
    ))
}

/// SHA-256 in hex over everything before the footer and over our metadata but the digest itself;
/// lengths go in before contents.
fn digest<'a>(pages: &[u8], pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(pages);
    for (key, value) in pairs {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads and checks a whole file. `path` is for messages; `sidecar` is what the store's own file
/// says of all labels, for files that other programs wrote.
pub(super) fn decode(
    path: &Path,
    bytes: Vec<u8>,
    sidecar: Option<&StoreMeta>,
) -> std::result::Result<LabelShard, LabelError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    // The Parquet reader is not ours and the file is a user's: whatever it does with damaged
    // bytes, the program reports the file and continues.
    contained(|| decode_checked(Bytes::from(bytes), &name, sidecar))
        .unwrap_or_else(|| Err("the Parquet reader failed on it".into()))
        .map_err(|problem| LabelError::damaged(path, problem))
}

fn decode_checked(bytes: Bytes, file_name: &str, sidecar: Option<&StoreMeta>) -> Read<LabelShard> {
    let size = bytes.len();
    check_schema(Cursor::new(&bytes)).map_err(|error| error.to_string())?;
    let reader = SerializedFileReader::new(bytes.clone()).map_err(|error| error.to_string())?;
    let metadata = reader.metadata();
    let names = ColumnNames::of(metadata);
    let mut edited = !is_as_written(&bytes, metadata);
    // Most programs keep columns and drop what they do not know.
    let (meta, name) = match (decode_meta(metadata), sidecar) {
        (Ok(found), _) => {
            let schema = schema(&found.0).map_err(|error| error.to_string())?;
            let written = SchemaDescriptor::new(Arc::new(schema));
            edited |= !same_columns(&written, metadata.file_metadata().schema_descr());
            found
        }
        (Err(_), Some(meta)) if edited => (meta.clone(), shard_name(file_name)),
        (Err(problem), None) if edited => {
            return Err(format!(
                "{problem}; and there is no `{SIDECAR}` beside it, which says what its labels are of"
            ));
        }
        (Err(problem), _) => return Err(problem),
    };
    for name in { ["key", "width", "height"].iter() }.chain(&values::REQUIRED) {
        names.required(name)?;
    }
    check_claims(&bytes, metadata, values::row_bytes(&meta) + 8)?;
    let rows = metadata
        .row_groups()
        .iter()
        .map(|group| group.num_rows() as usize);
    let images: usize = rows.sum();
    let mut columns = LabelColumns {
        keys: Vec::with_capacity(images.min(size)),
        ..LabelColumns::default()
    };
    for index in 0..metadata.num_row_groups() {
        let group = reader
            .get_row_group(index)
            .map_err(|error| error.to_string())?;
        let read = columns.read(&GroupReader::new(&bytes, &names, group), &meta);
        read.map_err(|error| format!("row group {index}: {error}"))?;
    }
    for row in (0..columns.keys.len()).map(|i| columns.row(i, &meta)) {
        if let Some(problem) = row.fault(&meta) {
            return Err(format!("labels of {:?}: {problem}", row.key));
        }
    }
    Ok(LabelShard {
        meta,
        name,
        columns,
        edited,
    })
}

/// Whether the pages and our metadata have the digest that they were written with, so that nothing
/// in the file was changed since.
fn is_as_written(bytes: &Bytes, metadata: &ParquetMetaData) -> bool {
    const MAGIC: usize = 4;
    // The file ends with the footer, its length in 4 bytes, and the magic number.
    let footer = bytes.len().checked_sub(MAGIC + 4).and_then(|end| {
        let length = u32::from_le_bytes(bytes.get(end..end + 4)?.try_into().ok()?);
        end.checked_sub(usize::try_from(length).ok()?)
    });
    let Some(pages) = footer.and_then(|footer| bytes.get(..footer)) else {
        return false;
    };
    // The pages of all columns lie one after the other from the first magic number to the footer:
    // what the Parquet reader decodes is then what the digest is of.
    let mut end = MAGIC as i64;
    for column in { metadata.row_groups().iter() }.flat_map(|group| group.columns()) {
        let (start, length) = (column.data_page_offset(), column.compressed_size());
        if column.dictionary_page_offset().is_some() || start != end || length < 0 {
            return false;
        }
        end = start.saturating_add(length);
    }
    let pairs = metadata.file_metadata().key_value_metadata();
    let ours = pairs.into_iter().flatten().filter_map(|pair| {
        let value = pair.value.as_deref()?;
        (pair.key.starts_with("clasp.") && pair.key != DIGEST).then_some((pair.key.as_str(), value))
    });
    usize::try_from(end) == Ok(pages.len())
        && metadata_value(metadata, DIGEST).is_ok_and(|expected| expected == digest(pages, ours))
}

/// Checks, before anything is allocated by it, what the file claims to hold.
fn check_claims(bytes: &Bytes, metadata: &ParquetMetaData, row_bytes: usize) -> Read<()> {
    let most = bytes.len().saturating_mul(MOST_INFLATION);
    let mut claimed = 0_usize;
    for group in metadata.row_groups() {
        let rows = usize::try_from(group.num_rows()).map_err(|_| "a negative number of rows")?;
        claimed = claimed.saturating_add(rows.saturating_mul(row_bytes));
        for column in group.columns() {
            let name = column.column_path().string();
            let chunk =
                chunk_of(bytes, column).map_err(|problem| format!("column `{name}`: {problem}"))?;
            let checked = Pages::new(chunk, column.num_values(), false).check();
            let size = checked.map_err(|error| format!("column `{name}`: {error}"))?;
            claimed = claimed.saturating_add(size);
        }
    }
    match claimed <= most {
        true => Ok(()),
        false => Err(format!(
            "it claims to hold {claimed} bytes, more than its {} bytes can",
            bytes.len()
        )),
    }
}

fn metadata_value<'a>(metadata: &'a ParquetMetaData, key: &str) -> Read<&'a str> {
    let pairs = metadata.file_metadata().key_value_metadata();
    pairs
        .and_then(|pairs| pairs.iter().find(|pair| pair.key == key)?.value.as_deref())
        .ok_or_else(|| format!("expected `{key}` in its metadata, found none"))
}

fn decode_meta(metadata: &ParquetMetaData) -> Read<(StoreMeta, String)> {
    fn number<T: std::str::FromStr>(metadata: &ParquetMetaData, key: &str) -> Read<T> {
        let text = metadata_value(metadata, key)?;
        text.parse()
            .map_err(|_| format!("`{key}` in its metadata: expected a number, found {text:?}"))
    }
    let value = |key| metadata_value(metadata, key);
    let format = value("clasp.format")?;
    if format != FORMAT {
        return Err(format!(
            "expected format {FORMAT}, found {format:?}, of another version of clasp"
        ));
    }
    let vocabulary = Vocabulary::parse(value("clasp.vocabulary")?, "clasp.vocabulary")
        .map_err(|error| error.to_string())?;
    let meta = StoreMeta {
        vocabulary,
        model: value("clasp.model")?.into(),
        model_sha256: value("clasp.model_sha256")?.into(),
        rows: number(metadata, "clasp.rows")?,
        columns: number(metadata, "clasp.columns")?,
        method: value("clasp.method")?.into(),
        dense: value("clasp.dense")?.into(),
        confidence: number(metadata, "clasp.confidence")?,
    };
    match meta.fault() {
        Some(problem) => Err(problem),
        None => Ok((meta, value("clasp.shard")?.into())),
    }
}
