//! One label file as bytes: Parquet written and read through its column interface.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
    Int32Type,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

use super::{LabelError, LabelRef, Labels, StoreMeta};
use crate::vocabulary::Vocabulary;

/// Version of the format, `clasp.format` in the metadata.
const FORMAT: &str = "1";

/// Rows of a row group; what a writer holds at a time is about 0.5 kB a row.
const GROUP: usize = 1 << 16;

/// The metadata key of [`digest`].
const DIGEST: &str = "clasp.digest";

/// The rows of one file, column by column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub keys: Vec<Arc<str>>,
    pub widths: Vec<u16>,
    pub heights: Vec<u16>,
    /// `[images, rows, columns]`.
    pub parts: Vec<u8>,
    /// `[images, rows, columns]`.
    pub part_confidence: Vec<u8>,
    /// `[images, logits]`.
    pub attributes: Vec<f32>,
}

impl Columns {
    /// The labels of one image; `cells` and `logits` are the store's.
    pub fn row(&self, index: usize, cells: usize, logits: usize) -> LabelRef<'_> {
        LabelRef {
            key: &self.keys[index],
            width: self.widths[index],
            height: self.heights[index],
            parts: &self.parts[index * cells..(index + 1) * cells],
            part_confidence: &self.part_confidence[index * cells..(index + 1) * cells],
            attributes: &self.attributes[index * logits..(index + 1) * logits],
        }
    }
}

/// What a file holds: the store's metadata, the name of its input shard, its rows.
#[derive(Debug)]
pub(super) struct Shard {
    pub meta: StoreMeta,
    pub name: String,
    pub columns: Columns,
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
            required fixed_len_byte_array({cells}) parts;
            required fixed_len_byte_array({cells}) part_confidence;
            required group attributes (LIST) {{ repeated group list {{ required float element; }} }}
        }}",
        cells = meta.cells()
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
        let cells = |bytes: &Vec<u8>| FixedLenByteArray::from(bytes.clone());
        let parts: Vec<_> = group.iter().map(|label| cells(&label.parts)).collect();
        let confidence: Vec<_> = group
            .iter()
            .map(|label| cells(&label.part_confidence))
            .collect();
        write_column::<ByteArrayType>(&mut out, &keys)?;
        write_column::<Int32Type>(&mut out, &widths)?;
        write_column::<Int32Type>(&mut out, &heights)?;
        write_column::<FixedLenByteArrayType>(&mut out, &parts)?;
        write_column::<FixedLenByteArrayType>(&mut out, &confidence)?;
        write_lists(&mut out, group)?;
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

/// Reads and checks a whole file. `path` is for messages.
pub(super) fn decode(path: &Path, bytes: Vec<u8>) -> std::result::Result<Shard, LabelError> {
    // The Parquet reader is not ours and the file is a user's: whatever it does with damaged
    // bytes, the program reports the file and goes on.
    let caught = std::panic::catch_unwind(|| decode_checked(Bytes::from(bytes)));
    caught
        .unwrap_or_else(|_| Err("the Parquet reader failed on it".into()))
        .map_err(|problem| LabelError::damaged(path, problem))
}

fn decode_checked(bytes: Bytes) -> std::result::Result<Shard, String> {
    let size = bytes.len();
    let reader = SerializedFileReader::new(bytes.clone()).map_err(|error| error.to_string())?;
    let metadata = reader.metadata();
    check_digest(&bytes, metadata)?;
    let (meta, name) = decode_meta(metadata)?;
    check_schema(metadata, meta.cells())?;
    let (cells, logits) = (meta.cells(), meta.vocabulary.logits());
    // Plain pages hold every byte of a row, so the size of the file bounds the number of rows.
    let row_bytes = 2 * cells + 4 * logits + 8;
    let claimed = metadata
        .row_groups()
        .iter()
        .try_fold(0_usize, |sum, group| {
            sum.checked_add(usize::try_from(group.num_rows()).ok()?)
        });
    let images = claimed
        .filter(|rows| {
            rows.checked_mul(row_bytes)
                .is_some_and(|needed| needed <= size)
        })
        .ok_or_else(|| format!("it claims more rows than its {size} bytes can hold"))?;

    let mut columns = Columns {
        keys: Vec::with_capacity(images),
        widths: Vec::with_capacity(images),
        heights: Vec::with_capacity(images),
        parts: Vec::with_capacity(images * cells),
        part_confidence: Vec::with_capacity(images * cells),
        attributes: Vec::with_capacity(images * logits),
    };
    for index in 0..metadata.num_row_groups() {
        let group = reader
            .get_row_group(index)
            .map_err(|error| error.to_string())?;
        read_group(group.as_ref(), cells, logits, &mut columns)
            .map_err(|error| format!("row group {index}: {error}"))?;
    }
    for row in (0..images).map(|i| columns.row(i, cells, logits)) {
        if let Some(problem) = meta.row_fault(&row) {
            return Err(format!("labels of {:?}: {problem}", row.key));
        }
    }
    Ok(Shard {
        meta,
        name,
        columns,
    })
}

/// Checks the pages and our metadata against the digest, and that the pages of all columns lie one
/// after the other from the first magic number to the footer: nothing that the Parquet reader is
/// going to decode is then other than it was written.
fn check_digest(bytes: &Bytes, metadata: &ParquetMetaData) -> std::result::Result<(), String> {
    const MAGIC: usize = 4;
    // The file ends with the footer, its length in 4 bytes, and the magic number.
    let footer = bytes.len().checked_sub(MAGIC + 4).and_then(|end| {
        let length = u32::from_le_bytes(bytes.get(end..end + 4)?.try_into().ok()?);
        end.checked_sub(usize::try_from(length).ok()?)
    });
    let pages = footer
        .and_then(|footer| bytes.get(..footer))
        .ok_or("its footer is longer than the file")?;
    let mut end = MAGIC as i64;
    for column in metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
    {
        let (start, length) = (column.data_page_offset(), column.compressed_size());
        if column.dictionary_page_offset().is_some() || start != end || length < 0 {
            let path = column.column_path();
            return Err(format!(
                "column `{path}`: expected pages at byte {end}, found {start}"
            ));
        }
        end = start.saturating_add(length);
    }
    if usize::try_from(end) != Ok(pages.len()) {
        return Err(format!(
            "expected {} bytes of pages, found {end}",
            pages.len()
        ));
    }
    let pairs = metadata.file_metadata().key_value_metadata();
    let ours = pairs.into_iter().flatten().filter_map(|pair| {
        let value = pair.value.as_deref()?;
        (pair.key.starts_with("clasp.") && pair.key != DIGEST).then_some((pair.key.as_str(), value))
    });
    let (expected, found) = (metadata_value(metadata, DIGEST)?, digest(pages, ours));
    if expected != found {
        return Err(format!(
            "its content has digest {found}, it was written with {expected}"
        ));
    }
    Ok(())
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
    if format != FORMAT {
        return Err(format!(
            "expected format {FORMAT}, found {format:?}; was it written by a newer version?"
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

/// The leaf columns that a label file has, in order.
const LEAVES: [(&str, PhysicalType); 6] = [
    ("key", PhysicalType::BYTE_ARRAY),
    ("width", PhysicalType::INT32),
    ("height", PhysicalType::INT32),
    ("parts", PhysicalType::FIXED_LEN_BYTE_ARRAY),
    ("part_confidence", PhysicalType::FIXED_LEN_BYTE_ARRAY),
    ("attributes.list.element", PhysicalType::FLOAT),
];

fn check_schema(metadata: &ParquetMetaData, cells: usize) -> std::result::Result<(), String> {
    let schema = metadata.file_metadata().schema_descr();
    let found: Vec<_> = schema
        .columns()
        .iter()
        .map(|leaf| (leaf.path().string(), leaf.physical_type()))
        .collect();
    let fits = found.len() == LEAVES.len()
        && found
            .iter()
            .zip(LEAVES)
            .all(|((name, kind), (expected, of))| name == expected && *kind == of);
    if !fits {
        return Err(format!("expected the columns {LEAVES:?}, found {found:?}"));
    }
    for leaf in schema.columns() {
        let level = i16::from(leaf.physical_type() == PhysicalType::FLOAT);
        let levels = (leaf.max_def_level(), leaf.max_rep_level());
        if levels != (level, level) {
            return Err(format!(
                "column `{}`: expected levels {:?}, found {levels:?}",
                leaf.path(),
                (level, level)
            ));
        }
        let fixed = leaf.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY;
        if fixed && usize::try_from(leaf.type_length()) != Ok(cells) {
            return Err(format!(
                "column `{}`: expected {cells} bytes a row, found {}",
                leaf.path(),
                leaf.type_length()
            ));
        }
    }
    for column in metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
    {
        if column.compression() != Compression::UNCOMPRESSED {
            return Err(format!(
                "column `{}`: expected plain pages, found {}",
                column.column_path(),
                column.compression()
            ));
        }
    }
    Ok(())
}

/// Appends the rows of a row group to `columns`.
fn read_group(
    group: &dyn RowGroupReader,
    cells: usize,
    logits: usize,
    columns: &mut Columns,
) -> std::result::Result<(), String> {
    let rows = usize::try_from(group.metadata().num_rows()).map_err(|error| error.to_string())?;
    let mismatch = |name: &str| format!("column `{name}` has another type than its schema says");
    let column = |index: usize| {
        group
            .get_column_reader(index)
            .map_err(|error| error.to_string())
    };

    let ColumnReader::ByteArrayColumnReader(reader) = column(0)? else {
        return Err(mismatch("key"));
    };
    for key in read_values(reader, rows)? {
        let key = key
            .as_utf8()
            .map_err(|error| format!("column `key`: {error}"))?;
        columns.keys.push(Arc::from(key));
    }
    for (index, sizes) in [(1, &mut columns.widths), (2, &mut columns.heights)] {
        let ColumnReader::Int32ColumnReader(reader) = column(index)? else {
            return Err(mismatch(LEAVES[index].0));
        };
        for size in read_values(reader, rows)? {
            sizes.push(
                u16::try_from(size)
                    .map_err(|_| format!("column `{}`: found {size}", LEAVES[index].0))?,
            );
        }
    }
    for (index, bytes) in [(3, &mut columns.parts), (4, &mut columns.part_confidence)] {
        let name = LEAVES[index].0;
        let ColumnReader::FixedLenByteArrayColumnReader(reader) = column(index)? else {
            return Err(mismatch(name));
        };
        for value in read_values(reader, rows)? {
            if value.len() != cells {
                return Err(format!(
                    "column `{name}`: expected {cells} bytes a row, found {}",
                    value.len()
                ));
            }
            bytes.extend_from_slice(value.data());
        }
    }
    let ColumnReader::FloatColumnReader(reader) = column(5)? else {
        return Err(mismatch("attributes"));
    };
    read_lists(reader, rows, logits, &mut columns.attributes)
}

fn read_values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
) -> std::result::Result<Vec<T::T>, String> {
    let mut values = Vec::with_capacity(rows);
    reader
        .read_records(rows, None, None, &mut values)
        .map_err(|error| error.to_string())?;
    if values.len() != rows {
        return Err(format!("expected {rows} values, found {}", values.len()));
    }
    Ok(values)
}

fn read_lists(
    mut reader: ColumnReaderImpl<FloatType>,
    rows: usize,
    logits: usize,
    attributes: &mut Vec<f32>,
) -> std::result::Result<(), String> {
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    reader
        .read_records(
            rows,
            Some(&mut definition),
            Some(&mut repetition),
            &mut values,
        )
        .map_err(|error| error.to_string())?;
    // Every list must have as many elements as the vocabulary has values: the levels are then
    // one pattern, repeated.
    let levels = logits.max(1);
    let regular = repetition.len() == rows * levels
        && repetition
            .iter()
            .enumerate()
            .all(|(i, &level)| level == i16::from(i % levels != 0))
        && definition
            .iter()
            .all(|&level| level == i16::from(logits > 0))
        && values.len() == rows * logits;
    if !regular {
        return Err(format!(
            "column `attributes`: expected {rows} lists of {logits} logits, found {} logits",
            values.len()
        ));
    }
    attributes.extend_from_slice(&values);
    Ok(())
}
