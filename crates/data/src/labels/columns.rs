//! Columns of a Parquet file: writing, and reading of whatever physical type another program chose.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType, FixedLenByteArray, FloatType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::RowGroupReader;
use parquet::file::writer::SerializedRowGroupWriter;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor};

use crate::pages::Pages;

/// Times its size that a file may take in memory: more than labels can be compressed, and a bound
/// on what a damaged or hostile file can claim.
pub(super) const MOST_INFLATION: usize = 1000;

/// A row group that is written.
pub(super) type GroupWriter<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

/// What is wrong with a column or file, in words.
pub(super) type Read<T> = std::result::Result<T, String>;

/// Writes the next column, one value a row.
pub(super) fn write_column<T: DataType>(out: &mut GroupWriter<'_>, values: &[T::T]) -> Result<()> {
    let mut column = out
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has too few columns".into()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// Writes the next column, a list of numbers a row. Parquet stores a list as its elements with two
/// levels each: the repetition level is 0 where a list begins, the definition level 0 where it is
/// empty.
pub(super) fn write_lists<'a>(
    out: &mut GroupWriter<'_>,
    lists: impl Iterator<Item = &'a [f32]>,
) -> Result<()> {
    let mut column = out
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has too few columns".into()))?;
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        values.extend_from_slice(list);
        let levels = list.len().max(1);
        definition.extend(std::iter::repeat_n(i16::from(!list.is_empty()), levels));
        repetition.extend((0..levels).map(|i| i16::from(i > 0)));
    }
    column
        .typed::<FloatType>()
        .write_batch(&values, Some(&definition), Some(&repetition))?;
    column.close()
}

/// The bytes of a column chunk.
pub(super) fn chunk_of(bytes: &Bytes, column: &ColumnChunkMetaData) -> Read<Bytes> {
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

/// Whether two files have the same columns: names, types, and where values may be missing or
/// repeated.
pub(super) fn same_columns(one: &SchemaDescriptor, other: &SchemaDescriptor) -> bool {
    let facts = |column: &ColumnDescPtr| {
        let levels = [column.max_def_level(), column.max_rep_level()];
        let kind = (column.physical_type(), column.type_length(), levels);
        (column.path().clone(), kind)
    };
    { one.columns().iter().map(facts) }.eq(other.columns().iter().map(facts))
}

/// Names of the columns of a file, the first part of each path, in its order.
pub(super) struct ColumnNames<'a>(Vec<&'a str>);

impl<'a> ColumnNames<'a> {
    pub fn of(metadata: &'a ParquetMetaData) -> Self {
        let columns = metadata.file_metadata().schema_descr().columns();
        let name = |column: &'a ColumnDescPtr| column.path().parts().first();
        let names = columns.iter().map(|c| name(c).map_or("", String::as_str));
        Self(names.collect())
    }

    /// The place of a column, if there is one of this name.
    fn find(&self, name: &str) -> Read<Option<usize>> {
        let mut places = (0..self.0.len()).filter(|at| self.0[*at] == name);
        match (places.next(), places.next()) {
            (Some(_), Some(_)) => Err(format!(
                "column `{name}`: expected one column, found a structure of several"
            )),
            (place, _) => Ok(place),
        }
    }

    /// The place of a column that every file has.
    pub fn required(&self, name: &str) -> Read<usize> {
        self.find(name)?.ok_or_else(|| {
            let names = self.0.join("`, `");
            format!("expected a column `{name}`, found `{names}`")
        })
    }

    /// Whether there is a column of this name.
    pub fn has(&self, name: &str) -> Read<bool> {
        Ok(self.find(name)?.is_some())
    }
}

/// A row group that is read. Columns are found by name; errors begin with it.
pub(super) struct GroupReader<'a> {
    bytes: &'a Bytes,
    names: &'a ColumnNames<'a>,
    reader: Box<dyn RowGroupReader + 'a>,
}

/// Values of a column, whatever their physical type.
enum ColumnValues {
    /// Not copied yet: rows of a dictionary share their bytes, so that a small file may hold more
    /// than memory does.
    Bytes(Vec<ByteArray>),
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

impl<'a> GroupReader<'a> {
    pub fn new(
        bytes: &'a Bytes,
        names: &'a ColumnNames<'a>,
        reader: Box<dyn RowGroupReader + 'a>,
    ) -> Self {
        Self {
            bytes,
            names,
            reader,
        }
    }

    /// Number of rows, as the file claims.
    pub fn rows(&self) -> usize {
        self.reader.metadata().num_rows() as usize
    }

    /// What `values` makes of the column `name`; an error begins with the name.
    fn read<T>(&self, name: &str, values: impl FnOnce(Column) -> Read<T>) -> Read<T> {
        let place = self.names.required(name)?;
        { self.column(place) }
            .and_then(values)
            .map_err(|problem| format!("column `{name}`: {problem}"))
    }

    /// The column at a place of the schema.
    fn column(&self, place: usize) -> Read<Column> {
        let rows = self.rows();
        let chunk = self.reader.metadata().column(place);
        let reader = match chunk.compression() {
            Compression::ZSTD(_) => {
                let pages = Pages::new(chunk_of(self.bytes, chunk)?, chunk.num_values(), true);
                get_column_reader(chunk.column_descr_ptr(), Box::new(pages))
            }
            _ => (self.reader)
                .get_column_reader(place)
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
        let most = self.bytes.len().saturating_mul(MOST_INFLATION);
        let (values, counts) = match reader {
            ColumnReader::ByteArrayColumnReader(reader) => {
                let length: fn(&ByteArray) -> usize = ByteArray::len;
                let (values, counts) = read_rows(reader, rows, levels, Some((length, most)))?;
                (ColumnValues::Bytes(values), counts)
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                let length: fn(&FixedLenByteArray) -> usize = |value| value.len();
                let (values, counts) = read_rows(reader, rows, levels, Some((length, most)))?;
                let values = values.into_iter().map(ByteArray::from);
                (ColumnValues::Bytes(values.collect()), counts)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels, None)?;
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
                let (values, counts) = read_rows(reader, rows, levels, None)?;
                (ColumnValues::Integers(values), counts)
            }
            ColumnReader::FloatColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels, None)?;
                (
                    ColumnValues::Reals(values.into_iter().map(f64::from).collect()),
                    counts,
                )
            }
            ColumnReader::DoubleColumnReader(reader) => {
                let (values, counts) = read_rows(reader, rows, levels, None)?;
                (ColumnValues::Reals(values), counts)
            }
            _ => return Err("expected numbers, texts or bytes, found another type".to_owned()),
        };
        Ok(Column { values, counts })
    }

    /// A text a row.
    pub fn texts(&self, name: &str) -> Read<Vec<Arc<str>>> {
        self.read(name, |column| {
            one_each(&column.counts)?;
            decoded(column.values)
        })
    }

    /// A text a row, empty where there is none; the column may be missing.
    pub fn optional_texts(&self, name: &str) -> Read<Vec<Arc<str>>> {
        if !self.names.has(name)? {
            return Ok(vec![Arc::from(""); self.rows()]);
        }
        self.read(name, |column| {
            let mut texts = decoded(column.values)?.into_iter();
            let text = |count: &usize| match count {
                0 => Some(Arc::from("")),
                1 => texts.next(),
                _ => None,
            };
            let all: Option<Vec<Arc<str>>> = column.counts.iter().map(text).collect();
            all.ok_or_else(|| "expected a text a row, found lists".to_owned())
        })
    }

    /// A side in pixels a row.
    pub fn sides(&self, name: &str) -> Read<Vec<u16>> {
        self.read(name, |column| {
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
        })
    }

    /// A map of `positions` bytes a row, binary or lists of whole numbers: [rows, positions].
    pub fn maps(&self, name: &str, positions: usize) -> Read<Vec<u8>> {
        self.read(name, |column| match column.values {
            ColumnValues::Bytes(values) => {
                one_each(&column.counts)?;
                if let Some(row) = values.iter().position(|value| value.len() != positions) {
                    let found = values[row].len();
                    return Err(format!(
                        "row {row}: expected {positions} bytes, found {found}"
                    ));
                }
                let values: Vec<&[u8]> = values.iter().map(ByteArray::data).collect();
                Ok(values.concat())
            }
            ColumnValues::Integers(values) => {
                as_many(&column.counts, positions, "positions")?;
                let byte = |value: i64| {
                    u8::try_from(value).map_err(|_| format!("expected 0 to 255, found {value}"))
                };
                values.into_iter().map(byte).collect()
            }
            other => Err(format!(
                "expected bytes or lists of whole numbers, found {}",
                other.kind()
            )),
        })
    }

    /// A list of `count` numbers a row, which errors call `what`: [rows, count]. With a count of 0
    /// the column may be missing.
    pub fn lists(&self, name: &str, count: usize, what: &str) -> Read<Vec<f32>> {
        if count == 0 && !self.names.has(name)? {
            return Ok(Vec::new());
        }
        self.read(name, |column| {
            as_many(&column.counts, count, what)?;
            match column.values {
                ColumnValues::Reals(values) => {
                    Ok(values.into_iter().map(|value| value as f32).collect())
                }
                ColumnValues::Integers(values) => {
                    Ok(values.into_iter().map(|value| value as f32).collect())
                }
                _ if count == 0 => Ok(Vec::new()),
                other => Err(format!("expected numbers, found {}", other.kind())),
            }
        })
    }
}

fn decoded(values: ColumnValues) -> Read<Vec<Arc<str>>> {
    let ColumnValues::Bytes(values) = values else {
        return Err(format!("expected texts, found {}", values.kind()));
    };
    let text = |value: &ByteArray| match std::str::from_utf8(value.data()) {
        Ok(text) => Ok(Arc::from(text)),
        Err(_) => Err("expected UTF-8 text, found other bytes".to_owned()),
    };
    values.iter().map(text).collect()
}

/// Checks that every row has a list of `expected` values.
fn as_many(counts: &[usize], expected: usize, what: &str) -> Read<()> {
    match counts.iter().position(|count| *count != expected) {
        None => Ok(()),
        Some(row) => Err(format!(
            "row {row}: expected {expected} {what}, found {}",
            counts[row]
        )),
    }
}

fn one_each(counts: &[usize]) -> Read<()> {
    match counts.iter().position(|count| *count != 1) {
        None => Ok(()),
        Some(row) => Err(format!(
            "row {row}: expected one value, found {}",
            counts[row]
        )),
    }
}

/// Rows of texts or bytes that are decoded at a time: few, as each may be as long as a page.
const FEW_ROWS: usize = 16;

/// All values of a column, and how many each row has. `levels`: the definition level of a value,
/// and the repetition level of one that is not the first of its list; `bound`: the bytes of a value,
/// and the most that all may have together.
fn read_rows<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    [most_defined, most_repeated]: [i16; 2],
    bound: Option<(fn(&T::T) -> usize, usize)>,
) -> Read<(Vec<T::T>, Vec<usize>)> {
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    let (mut done, mut bytes) = (0, 0_usize);
    let step = bound.map_or(rows, |_| FEW_ROWS);
    while done < rows {
        let before = values.len();
        let (records, ..) = reader
            .read_records(
                step.min(rows - done),
                (most_defined > 0).then_some(&mut defined),
                (most_repeated > 0).then_some(&mut repeated),
                &mut values,
            )
            .map_err(|error| error.to_string())?;
        if records == 0 {
            return Err(format!("expected {rows} rows, found {done}"));
        }
        done += records;
        if let Some((length, most)) = bound {
            bytes = { values[before..].iter().map(length) }.fold(bytes, usize::saturating_add);
            if bytes > most {
                return Err(format!(
                    "{bytes} bytes or more in its texts, more than the file's size allows ({most})"
                ));
            }
        }
    }
    // A damaged number of rows must not cut the file short in silence.
    let (more, ..) = { reader.read_records(1, Some(&mut vec![]), Some(&mut vec![]), &mut vec![]) }
        .map_err(|error| error.to_string())?;
    if more > 0 {
        return Err(format!("expected {rows} rows, found more"));
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

#[cfg(test)]
mod tests {
    use parquet::data_type::ByteArrayType;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// A key of a dictionary has its length once in the file, and used to be copied for each row
    /// without a look at what all take.
    #[test]
    fn texts_that_repeat_are_bounded_by_the_file() {
        let read = |keys: Vec<ByteArray>| {
            let schema = parse_message_type("message labels { required binary key (STRING); }");
            let schema = Arc::new(schema.unwrap());
            let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
            let mut group = writer.next_row_group().unwrap();
            write_column::<ByteArrayType>(&mut group, &keys).unwrap();
            group.close().unwrap();
            let bytes = Bytes::from(writer.into_inner().unwrap());
            let reader = SerializedFileReader::new(bytes.clone()).unwrap();
            let names = ColumnNames::of(reader.metadata());
            let group = reader.get_row_group(0).unwrap();
            GroupReader::new(&bytes, &names, group).texts("key")
        };
        let long = ByteArray::from("k".repeat(10_000).as_str());
        assert_eq!(read(vec![long.clone(); 100]).unwrap().len(), 100);
        let error = read(vec![long; 10_000]).unwrap_err();
        assert!(
            error.starts_with("column `key`: ") && error.contains("more than the file's size"),
            "{error}"
        );
    }
}
