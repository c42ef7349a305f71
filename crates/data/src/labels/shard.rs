//! One label file as bytes: Parquet written and read through its column interface.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

use super::error::LabelError;
use super::file_names::{SIDECAR, shard_name};
use super::meta::StoreMeta;
use super::pages::Pages;
use super::row::{LabelRef, Labels};
use crate::vocabulary::Vocabulary;

/// Version of the format, `clasp.format` in the metadata.
const FORMAT: &str = "2";

/// Versions that are read: the first has no digests of images.
const FORMATS: [&str; 2] = ["1", FORMAT];

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
    /// `[images, rows, columns]`.
    pub parts: Vec<u8>,
    /// `[images, rows, columns]`.
    pub part_confidence: Vec<u8>,
    /// `[images, logits]`.
    pub attributes: Vec<f32>,
    /// Digests of the image files, empty where unknown.
    pub images: Vec<Arc<str>>,
}

impl LabelColumns {
    /// The labels of one image; `positions` and `logits` are the store's.
    pub fn row(&self, index: usize, positions: usize, logits: usize) -> LabelRef<'_> {
        LabelRef {
            key: &self.keys[index],
            width: self.widths[index],
            height: self.heights[index],
            parts: &self.parts[index * positions..(index + 1) * positions],
            part_confidence: &self.part_confidence[index * positions..(index + 1) * positions],
            attributes: &self.attributes[index * logits..(index + 1) * logits],
            image_sha256: &self.images[index],
        }
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
    let schema = format!(
        "message labels {{
            required binary key (STRING);
            required int32 width (INTEGER(16, false));
            required int32 height (INTEGER(16, false));
            required fixed_len_byte_array({positions}) parts;
            required fixed_len_byte_array({positions}) part_confidence;
            required group attributes (LIST) {{ repeated group list {{ required float element; }} }}
            required binary image_sha256 (STRING);
        }}",
        positions = meta.positions()
    );
    let schema = Arc::new(parse_message_type(&schema)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    for group in labels.chunks(GROUP) {
        let mut out = writer.next_row_group()?;
        let keys: Vec<_> = group
            .iter()
            .map(|label| ByteArray::from(label.key.as_str()))
            .collect();
        let widths: Vec<_> = group.iter().map(|label| i32::from(label.width)).collect();
        let heights: Vec<_> = group.iter().map(|label| i32::from(label.height)).collect();
        let positions = |bytes: &Vec<u8>| FixedLenByteArray::from(bytes.clone());
        let parts: Vec<_> = group.iter().map(|label| positions(&label.parts)).collect();
        let confidence: Vec<_> = group
            .iter()
            .map(|label| positions(&label.part_confidence))
            .collect();
        write_column::<ByteArrayType>(&mut out, &keys)?;
        write_column::<Int32Type>(&mut out, &widths)?;
        write_column::<Int32Type>(&mut out, &heights)?;
        write_column::<FixedLenByteArrayType>(&mut out, &parts)?;
        write_column::<FixedLenByteArrayType>(&mut out, &confidence)?;
        write_lists(&mut out, group)?;
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

fn write_column<T: DataType>(
    out: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[T::T],
) -> Result<()> {
    let mut column = out
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has too few columns".into()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// Writes the lists of logits. Parquet stores a list as its elements with two levels each: the
/// repetition level is 0 where a list begins, the definition level 0 where it is empty.
fn write_lists(out: &mut SerializedRowGroupWriter<'_, Vec<u8>>, labels: &[Labels]) -> Result<()> {
    let mut column = out
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has too few columns".into()))?;
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for label in labels {
        values.extend_from_slice(&label.attributes);
        let levels = label.attributes.len().max(1);
        definition.extend(std::iter::repeat_n(
            i16::from(!label.attributes.is_empty()),
            levels,
        ));
        repetition.extend((0..levels).map(|i| i16::from(i > 0)));
    }
    column
        .typed::<FloatType>()
        .write_batch(&values, Some(&definition), Some(&repetition))?;
    column.close()
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

/// Reads and checks a whole file. `path` is for messages; `sidecar` is what the store's own file says
/// of all labels, for files that other programs wrote.
pub(super) fn decode(
    path: &Path,
    bytes: Vec<u8>,
    sidecar: Option<&StoreMeta>,
) -> std::result::Result<LabelShard, LabelError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    // The Parquet reader is not ours and the file is a user's: whatever it does with damaged
    // bytes, the program reports the file and goes on.
    let caught = std::panic::catch_unwind(|| decode_checked(Bytes::from(bytes), &name, sidecar));
    caught
        .unwrap_or_else(|_| Err("the Parquet reader failed on it".into()))
        .map_err(|problem| LabelError::damaged(path, problem))
}

fn decode_checked(
    bytes: Bytes,
    file_name: &str,
    sidecar: Option<&StoreMeta>,
) -> std::result::Result<LabelShard, String> {
    let size = bytes.len();
    let reader = SerializedFileReader::new(bytes.clone()).map_err(|error| error.to_string())?;
    let metadata = reader.metadata();
    let edited = !is_as_written(&bytes, metadata);
    // Most programs keep columns and drop what they do not know.
    let (meta, name) = match (decode_meta(metadata), sidecar) {
        (Ok(found), _) => found,
        (Err(_), Some(meta)) if edited => (meta.clone(), shard_name(file_name)),
        (Err(problem), None) if edited => {
            return Err(format!(
                "{problem}; and there is no `{SIDECAR}` beside it, which says what its labels are of"
            ));
        }
        (Err(problem), _) => return Err(problem),
    };
    let (positions, logits) = (meta.positions(), meta.vocabulary.logits());
    let leaves = LabelLeaves::of(metadata)?;
    check_claims(&bytes, metadata, 2 * positions + 4 * logits + 8)?;
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
        let group = Group {
            bytes: &bytes,
            reader: reader
                .get_row_group(index)
                .map_err(|error| error.to_string())?,
        };
        group
            .read(&leaves, positions, logits, &mut columns)
            .map_err(|error| format!("row group {index}: {error}"))?;
    }
    for row in (0..columns.keys.len()).map(|i| columns.row(i, positions, logits)) {
        if let Some(problem) = meta.row_fault(&row) {
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

/// Times its size that a file may take in memory: more than labels can be compressed, and a bound on
/// what a damaged or hostile file can claim.
const MOST_INFLATION: usize = 1000;

/// Checks, before anything is allocated by it, what the file claims to hold.
fn check_claims(
    bytes: &Bytes,
    metadata: &ParquetMetaData,
    row_bytes: usize,
) -> std::result::Result<(), String> {
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

/// The bytes of a column chunk.
fn chunk_of(bytes: &Bytes, column: &ColumnChunkMetaData) -> std::result::Result<Bytes, String> {
    let data = column.data_page_offset();
    let start = column
        .dictionary_page_offset()
        .filter(|at| *at > 0)
        .unwrap_or(data)
        .min(data);
    let range = usize::try_from(start).ok().and_then(|start| {
        let length = usize::try_from(column.compressed_size()).ok()?;
        let end = start.checked_add(length)?;
        (end <= bytes.len()).then_some(start..end)
    });
    match range {
        Some(range) => Ok(bytes.slice(range)),
        None => Err("its pages lie outside the file".to_owned()),
    }
}

fn metadata_value<'a>(
    metadata: &'a ParquetMetaData,
    key: &str,
) -> std::result::Result<&'a str, String> {
    let pairs = metadata.file_metadata().key_value_metadata();
    pairs
        .and_then(|pairs| pairs.iter().find(|pair| pair.key == key)?.value.as_deref())
        .ok_or_else(|| format!("expected `{key}` in its metadata, found none"))
}

fn decode_meta(metadata: &ParquetMetaData) -> std::result::Result<(StoreMeta, String), String> {
    fn number<T: std::str::FromStr>(
        metadata: &ParquetMetaData,
        key: &str,
    ) -> std::result::Result<T, String> {
        let text = metadata_value(metadata, key)?;
        text.parse()
            .map_err(|_| format!("`{key}` in its metadata: expected a number, found {text:?}"))
    }
    let value = |key| metadata_value(metadata, key);
    let format = value("clasp.format")?;
    if !FORMATS.contains(&format) {
        return Err(format!(
            "expected format 1 or 2, found {format:?}; was it written by a newer version?"
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

/// Where the columns are among those of a file, found by their names; others are passed over.
struct LabelLeaves {
    key: usize,
    width: usize,
    height: usize,
    parts: usize,
    part_confidence: usize,
    /// None where a file of k-means labels lost its empty lists.
    attributes: Option<usize>,
    image_sha256: Option<usize>,
}

impl LabelLeaves {
    fn of(metadata: &ParquetMetaData) -> std::result::Result<Self, String> {
        let schema = metadata.file_metadata().schema_descr();
        let names: Vec<&str> = (schema.columns().iter())
            .map(|leaf| leaf.path().parts().first().map_or("", String::as_str))
            .collect();
        let find = |name: &str| -> std::result::Result<Option<usize>, String> {
            let mut places = (0..names.len()).filter(|at| names[*at] == name);
            match (places.next(), places.next()) {
                (Some(_), Some(_)) => Err(format!(
                    "column `{name}`: expected one column, found a structure of several"
                )),
                (place, _) => Ok(place),
            }
        };
        let needed = |name: &str| {
            find(name)?.ok_or_else(|| {
                format!("expected a column `{name}`, found `{}`", names.join("`, `"))
            })
        };
        Ok(Self {
            key: needed("key")?,
            width: needed("width")?,
            height: needed("height")?,
            parts: needed("parts")?,
            part_confidence: needed("part_confidence")?,
            attributes: find("attributes")?,
            image_sha256: find("image_sha256")?,
        })
    }
}

/// A row group of a file.
struct Group<'a> {
    bytes: &'a Bytes,
    reader: Box<dyn RowGroupReader + 'a>,
}

/// Values of a column, whatever their physical type.
enum ColumnValues {
    Bytes(Vec<Vec<u8>>),
    Integers(Vec<i64>),
    Reals(Vec<f64>),
}

impl ColumnValues {
    fn kind(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "texts or bytes",
            Self::Integers(_) => "whole numbers",
            Self::Reals(_) => "decimal numbers",
        }
    }
}

/// A column of a row group: its values, and how many of them each row has (a row without a value
/// has none, one of a list as many as the list).
struct Column {
    values: ColumnValues,
    counts: Vec<usize>,
}

impl Group<'_> {
    /// Appends its rows to `columns`.
    fn read(
        &self,
        leaves: &LabelLeaves,
        positions: usize,
        logits: usize,
        columns: &mut LabelColumns,
    ) -> std::result::Result<(), String> {
        let rows = self.reader.metadata().num_rows() as usize;
        let in_column =
            |name: &'static str| move |problem: String| format!("column `{name}`: {problem}");
        for key in self.texts(leaves.key, rows).map_err(in_column("key"))? {
            columns.keys.push(key);
        }
        for (leaf, name, sizes) in [
            (leaves.width, "width", &mut columns.widths),
            (leaves.height, "height", &mut columns.heights),
        ] {
            let found = self.sizes(leaf, rows).map_err(in_column(name))?;
            sizes.extend(found);
        }
        for (leaf, name, bytes) in [
            (leaves.parts, "parts", &mut columns.parts),
            (
                leaves.part_confidence,
                "part_confidence",
                &mut columns.part_confidence,
            ),
        ] {
            let found = self.maps(leaf, rows, positions).map_err(in_column(name))?;
            bytes.extend(found);
        }
        match leaves.attributes {
            Some(leaf) => {
                let found = self.logits(leaf, rows, logits);
                columns
                    .attributes
                    .extend(found.map_err(in_column("attributes"))?);
            }
            None if logits == 0 => {}
            None => return Err("expected a column `attributes`, found none".to_owned()),
        }
        match leaves.image_sha256 {
            Some(leaf) => {
                let found = self.optional_texts(leaf, rows);
                columns
                    .images
                    .extend(found.map_err(in_column("image_sha256"))?);
            }
            None => columns
                .images
                .extend(std::iter::repeat_n(Arc::from(""), rows)),
        }
        Ok(())
    }

    /// The column at `leaf`.
    fn column(&self, leaf: usize, rows: usize) -> std::result::Result<Column, String> {
        let chunk = self.reader.metadata().column(leaf);
        let reader = match chunk.compression() {
            Compression::ZSTD(_) => {
                let pages = Pages::new(chunk_of(self.bytes, chunk)?, chunk.num_values(), true);
                get_column_reader(chunk.column_descr_ptr(), Box::new(pages))
            }
            _ => (self.reader)
                .get_column_reader(leaf)
                .map_err(|error| error.to_string())?,
        };
        let descriptor = chunk.column_descr();
        let levels = [descriptor.max_def_level(), descriptor.max_rep_level()];
        if levels[1] > 1 {
            return Err("expected a value or a list, found lists of lists".to_owned());
        }
        let unsigned = matches!(
            descriptor.logical_type_ref(),
            Some(LogicalType::Integer(integer)) if !integer.is_signed
        );
        let (values, counts) = match reader {
            ColumnReader::ByteArrayColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                let values = values.into_iter().map(|value| value.data().to_vec());
                (ColumnValues::Bytes(values.collect()), counts)
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                let values = values.into_iter().map(|value| value.data().to_vec());
                (ColumnValues::Bytes(values.collect()), counts)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                let wide = |value: i32| match unsigned {
                    true => i64::from(value as u32),
                    false => i64::from(value),
                };
                (
                    ColumnValues::Integers(values.into_iter().map(wide).collect()),
                    counts,
                )
            }
            ColumnReader::Int64ColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                (ColumnValues::Integers(values), counts)
            }
            ColumnReader::FloatColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                (
                    ColumnValues::Reals(values.into_iter().map(f64::from).collect()),
                    counts,
                )
            }
            ColumnReader::DoubleColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels)?;
                (ColumnValues::Reals(values), counts)
            }
            _ => return Err("expected numbers, texts or bytes, found another type".to_owned()),
        };
        Ok(Column { values, counts })
    }

    fn texts(&self, leaf: usize, rows: usize) -> std::result::Result<Vec<Arc<str>>, String> {
        let column = self.column(leaf, rows)?;
        one_each(&column.counts)?;
        self.decoded(column.values)
    }

    /// Texts, empty where a row has none.
    fn optional_texts(
        &self,
        leaf: usize,
        rows: usize,
    ) -> std::result::Result<Vec<Arc<str>>, String> {
        let column = self.column(leaf, rows)?;
        let mut texts = self.decoded(column.values)?.into_iter();
        let text = |count: &usize| match count {
            0 => Some(Arc::from("")),
            1 => texts.next(),
            _ => None,
        };
        let all: Option<Vec<Arc<str>>> = column.counts.iter().map(text).collect();
        all.ok_or_else(|| "expected a text a row, found lists".to_owned())
    }

    fn decoded(&self, values: ColumnValues) -> std::result::Result<Vec<Arc<str>>, String> {
        let ColumnValues::Bytes(values) = values else {
            return Err(format!("expected texts, found {}", values.kind()));
        };
        let text = |value: Vec<u8>| match String::from_utf8(value) {
            Ok(text) => Ok(Arc::from(text)),
            Err(_) => Err("expected UTF-8 text, found other bytes".to_owned()),
        };
        values.into_iter().map(text).collect()
    }

    fn sizes(&self, leaf: usize, rows: usize) -> std::result::Result<Vec<u16>, String> {
        let column = self.column(leaf, rows)?;
        one_each(&column.counts)?;
        let wrong = |found: String| format!("expected 1 to {}, found {found}", u16::MAX);
        match column.values {
            ColumnValues::Integers(values) => { values.into_iter() }
                .map(|value| u16::try_from(value).map_err(|_| wrong(value.to_string())))
                .collect(),
            // pandas makes such a column of one that once lacked a value.
            ColumnValues::Reals(values) => { values.into_iter() }
                .map(
                    |value| match value.fract() == 0.0 && (0.0..65536.0).contains(&value) {
                        true => Ok(value as u16),
                        false => Err(wrong(value.to_string())),
                    },
                )
                .collect(),
            other => Err(wrong(other.kind().to_owned())),
        }
    }

    /// Maps of one byte a cell: binary, or lists of whole numbers.
    fn maps(
        &self,
        leaf: usize,
        rows: usize,
        positions: usize,
    ) -> std::result::Result<Vec<u8>, String> {
        let column = self.column(leaf, rows)?;
        match column.values {
            ColumnValues::Bytes(values) => {
                one_each(&column.counts)?;
                if let Some(row) = values.iter().position(|value| value.len() != positions) {
                    let found = values[row].len();
                    return Err(format!(
                        "row {row}: expected {positions} bytes, found {found}"
                    ));
                }
                Ok(values.concat())
            }
            ColumnValues::Integers(values) => {
                if let Some(row) = column.counts.iter().position(|count| *count != positions) {
                    let found = column.counts[row];
                    return Err(format!(
                        "row {row}: expected {positions} positions, found {found}"
                    ));
                }
                let byte = |value: i64| {
                    u8::try_from(value).map_err(|_| format!("expected 0 to 255, found {value}"))
                };
                values.into_iter().map(byte).collect()
            }
            other => Err(format!(
                "expected bytes or lists of whole numbers, found {}",
                other.kind()
            )),
        }
    }

    /// Lists of as many logits as the vocabulary has values.
    fn logits(
        &self,
        leaf: usize,
        rows: usize,
        logits: usize,
    ) -> std::result::Result<Vec<f32>, String> {
        let column = self.column(leaf, rows)?;
        if let Some(row) = column.counts.iter().position(|count| *count != logits) {
            let found = column.counts[row];
            return Err(format!(
                "row {row}: expected {logits} logits, found {found}"
            ));
        }
        match column.values {
            ColumnValues::Reals(values) => {
                Ok(values.into_iter().map(|value| value as f32).collect())
            }
            ColumnValues::Integers(values) => {
                Ok(values.into_iter().map(|value| value as f32).collect())
            }
            _ if logits == 0 => Ok(Vec::new()),
            other => Err(format!("expected numbers, found {}", other.kind())),
        }
    }
}

fn one_each(counts: &[usize]) -> std::result::Result<(), String> {
    match counts.iter().position(|count| *count != 1) {
        None => Ok(()),
        Some(row) => Err(format!(
            "row {row}: expected one value, found {}",
            counts[row]
        )),
    }
}

/// All values of a column, and how many each row has. `levels`: the definition level of a value, and
/// the repetition level of one that is not the first of its list.
fn read_rows<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    [most_defined, most_repeated]: [i16; 2],
) -> std::result::Result<(Vec<T::T>, Vec<usize>), String> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let mut done = 0;
    while done < rows {
        let (records, ..) = reader
            .read_records(
                rows - done,
                (most_defined > 0).then_some(&mut defined),
                (most_repeated > 0).then_some(&mut repeated),
                &mut values,
            )
            .map_err(|error| error.to_string())?;
        if records == 0 {
            return Err(format!("expected {rows} rows, found {done}"));
        }
        done += records;
    }
    let counts = match (most_defined, most_repeated) {
        (0, 0) => vec![1; rows],
        (_, 0) => { defined.iter() }
            .map(|level| usize::from(*level == most_defined))
            .collect(),
        _ => {
            let mut counts: Vec<usize> = Vec::with_capacity(rows);
            for (at, level) in repeated.iter().enumerate() {
                if *level == 0 {
                    counts.push(0);
                }
                let is_value = most_defined == 0 || defined.get(at) == Some(&most_defined);
                if let Some(count) = counts.last_mut() {
                    *count += usize::from(is_value);
                }
            }
            counts
        }
    };
    if counts.len() != rows || counts.iter().sum::<usize>() != values.len() {
        return Err(format!(
            "expected {rows} rows, found {} values",
            values.len()
        ));
    }
    Ok((values, counts))
}
