//! The index of a Parquet file with images, by one pass over the headers of its pages.
//!
//! Read are the columns that Hugging Face's datasets have, a structure of `bytes` and `path`, and
//! plain binary columns. Where a page is neither compressed nor coded by a dictionary, the place
//! of each image in the file is noted, as for tars; any other page is decompressed when one of its
//! images is read. Sizes are compared with the length of the file before anything is allocated.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use fs_err as fs;
use parquet::basic::{Compression, ConvertedType, LogicalType, Type as PhysicalType};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};

use super::error::SourceError;
use super::parquet_pages::{ByteColumn, MOST_PAGE, PageFailure, PagePlace};
use super::skipped::SkippedFiles;
use crate::contained::contained;
use crate::pages::{PageHeader, check_schema};

/// Bytes of a file for each row that it may claim: an image takes more, and so does an entry of the
/// index.
const LEAST_ROW: u64 = 64;

/// Rows that a file of any size may claim.
const ROWS_OF_ANY: u64 = 4096;

/// First bytes of a page that are read for its header; more where statistics make it longer.
const HEADER: u64 = 1 << 12;

/// Longest page header that is read.
const MOST_HEADER: u64 = 1 << 20;

/// Longest path of an image that becomes its key.
const MOST_PATH: usize = 4096;

/// Bytes of paths that are decompressed for each byte of the file.
const MOST_INFLATION: u64 = 64;

/// Encodings of values that are read; the other one for bytes, `DELTA_BYTE_ARRAY`, lets a few bytes
/// stand for gigabytes.
const ENCODINGS: [i64; 4] = [PLAIN, CODED[0], 6, CODED[1]];
/// Those of places in a dictionary, old and new.
const CODED: [i64; 2] = [2, 8];
const PLAIN: i64 = 0;
const RLE: i64 = 3;

/// Where a row's image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowPlace {
    /// In the file as it is.
    Bytes { offset: u64, size: u64 },
    /// In a page that has to be decompressed.
    Page { page: u32, at: u32 },
}

/// A row with an image.
#[derive(Debug)]
pub(super) struct ImageRow {
    /// Number in the file, from 0.
    pub row: u64,
    pub place: RowPlace,
}

/// What a Parquet file holds.
#[derive(Debug)]
pub(super) struct ParquetImages {
    pub rows: Vec<ImageRow>,
    /// The path of each of them; none if not every row has its own.
    pub paths: Option<Vec<String>>,
    pub column: Arc<ByteColumn>,
    /// What ended the index before the end of the file.
    pub ended: Result<(), SourceError>,
}

/// The leaves of a schema that hold the images and their paths.
struct ImageLeaves {
    /// As in messages.
    name: String,
    bytes: usize,
    path: Option<usize>,
}

/// Indexes a file. What is left out is counted.
///
/// # Errors
/// Where the file is no Parquet file, or has no column of images. An error behind the first image
/// is in the result.
pub(super) fn index(path: &Path, skipped: &mut SkippedFiles) -> Result<ParquetImages, SourceError> {
    let shown = path.display().to_string();
    let damaged = |reason: String| SourceError::DamagedParquet {
        file: shown.clone(),
        reason,
        complete: 0,
    };
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let broken = |error| damaged(format!("its footer cannot be read ({error})"));
    check_schema(&file).map_err(broken)?;
    // Not ours, as the pages are.
    let metadata = contained(|| ParquetMetaDataReader::new().parse_and_finish(file.file()))
        .unwrap_or_else(|| Err(parquet::errors::ParquetError::General("it panics".into())))
        .map_err(broken)?;
    let leaves = image_leaves(&metadata, &shown, skipped)?;
    let mut indexer = ParquetIndexer {
        file: &file,
        length,
        column: byte_column(path, &metadata, leaves.bytes),
        rows: Vec::new(),
        next: 0,
        empty: 0,
    };
    let ended = indexer.read(&metadata, leaves.bytes);
    let ParquetIndexer {
        column,
        rows,
        empty,
        ..
    } = indexer;
    let complete = rows.len();
    let ended = ended.map_err(|reason| SourceError::DamagedParquet {
        file: shown.clone(),
        reason,
        complete,
    });
    if ended.is_ok() && rows.is_empty() {
        let found = match empty {
            0 => format!("column `{}` has no row", leaves.name),
            _ => format!(
                "column `{}` has bytes in none of its {empty} rows\n  \
                 hint: give the folder of the images, if `path` names files",
                leaves.name
            ),
        };
        return Err(SourceError::Empty {
            place: shown,
            found,
        });
    }
    if empty > 0 {
        let name = &leaves.name;
        skipped.note(format!(
            "{shown}: {empty} rows without bytes in column `{name}`"
        ));
    }
    let paths = match leaves.path {
        Some(leaf) if ended.is_ok() => {
            let found = paths(path, &file, length, &metadata, leaf, &rows);
            if let Err(why) = &found {
                let name = &leaves.name;
                skipped.note(format!(
                    "{shown}: the paths of column `{name}` do not tell its images apart ({why}); \
                     keys are row numbers"
                ));
            }
            found.ok()
        }
        _ => None,
    };
    Ok(ParquetImages {
        rows,
        paths,
        column: Arc::new(column),
        ended,
    })
}

/// The column of images: `image`, or else the only one that may be one.
fn image_leaves(
    metadata: &ParquetMetaData,
    shown: &str,
    skipped: &mut SkippedFiles,
) -> Result<ImageLeaves, SourceError> {
    let (mut candidates, names) = image_candidates(metadata);
    let list = |names: Vec<&str>| format!("`{}`", names.join("`, `"));
    let of = |candidates: &[ImageLeaves]| {
        let names = candidates.iter().map(|leaves| leaves.name.as_str());
        list(names.collect())
    };
    let chosen = candidates.iter().position(|leaves| leaves.name == "image");
    let chosen = chosen.or((candidates.len() == 1).then_some(0));
    let Some(chosen) = chosen else {
        let found = match candidates.len() {
            0 => format!("a Parquet file with the columns {}", list(names)),
            _ => format!(
                "a Parquet file with several columns of bytes, {}",
                of(&candidates)
            ),
        };
        return Err(SourceError::Unknown {
            path: shown.to_owned(),
            found: format!(
                "{found}\nhint: images are read from a column `image`, or the only one with bytes: a \
                 structure of `bytes` and `path`, or binary"
            ),
        });
    };
    let chosen = candidates.swap_remove(chosen);
    if !candidates.is_empty() {
        skipped.note(format!(
            "{shown}: further columns of bytes are not read: {}",
            of(&candidates)
        ));
    }
    Ok(chosen)
}

/// The columns that may be images, and the names of all.
fn image_candidates(metadata: &ParquetMetaData) -> (Vec<ImageLeaves>, Vec<&str>) {
    let columns = metadata.file_metadata().schema_descr().columns();
    let leaf = |parts: &[&str]| {
        let is_it = |column: &parquet::schema::types::ColumnDescPtr| {
            column
                .path()
                .parts()
                .iter()
                .map(String::as_str)
                .eq(parts.iter().copied())
                && column.physical_type() == PhysicalType::BYTE_ARRAY
                && column.max_rep_level() == 0
        };
        columns.iter().position(is_it)
    };
    let is_text = |leaf: usize| {
        let column = &columns[leaf];
        !matches!(column.converted_type(), ConvertedType::NONE)
            || matches!(
                column.logical_type_ref(),
                Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
            )
    };
    let mut names: Vec<&str> = Vec::new();
    for column in columns {
        let name = column.path().parts().first().map_or("", String::as_str);
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    let candidates = { names.iter() }
        .filter_map(|name| {
            let (bytes, path) = match leaf(&[name, "bytes"]) {
                Some(bytes) => (bytes, leaf(&[name, "path"])),
                None => (
                    leaf(&[name]).filter(|leaf| !is_text(*leaf))?,
                    leaf(&["path"]),
                ),
            };
            let name = (*name).to_owned();
            Some(ImageLeaves { name, bytes, path })
        })
        .collect();
    (candidates, names)
}

fn byte_column(path: &Path, metadata: &ParquetMetaData, leaf: usize) -> ByteColumn {
    let chunks = metadata.row_groups().iter();
    ByteColumn {
        path: path.to_owned(),
        chunks: chunks
            .map(|group| (group.column(leaf).clone(), None))
            .collect(),
        pages: Vec::new(),
    }
}

/// The paths of the rows with an image, or why they do not tell them apart.
fn paths(
    path: &Path,
    file: &fs::File,
    length: u64,
    metadata: &ParquetMetaData,
    leaf: usize,
    rows: &[ImageRow],
) -> Result<Vec<String>, String> {
    let mut column = byte_column(path, metadata, leaf);
    let mut wanted = rows.iter().map(|row| row.row).peekable();
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    let (mut row, mut inflated) = (0_u64, 0_u64);
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let chunk = group.column(leaf);
        if chunk.num_values() != group.num_rows() {
            return Err(format!(
                "{} of {} rows have one",
                chunk.num_values(),
                group.num_rows()
            ));
        }
        let mut pages = ChunkPages::new(file, length, chunk, number)?;
        while let Some((header, page)) = pages.next()? {
            if header.kind != 2 && !ENCODINGS.contains(&header.encoding) {
                return Err(format!("encoding {} is not read", header.encoding));
            }
            inflated += header.uncompressed as u64;
            if inflated > length.saturating_mul(MOST_INFLATION) {
                return Err("they inflate too much".to_owned());
            }
            if header.kind == 2 {
                column.chunks[number].1 = Some(page);
                continue;
            }
            let values = match column.read(&page) {
                Ok(values) => values,
                Err(PageFailure::Io(_, reason) | PageFailure::Damaged(reason)) => {
                    return Err(reason);
                }
            };
            for value in values {
                if wanted.next_if_eq(&row).is_some() {
                    let missing = || format!("row {row} has none");
                    let value = value.ok_or_else(missing)?;
                    let text = value.as_utf8().map_err(|error| error.to_string())?;
                    if text.is_empty() || text.len() > MOST_PATH {
                        return Err(missing());
                    }
                    if !seen.insert(text.to_owned()) {
                        return Err(format!("row {row} repeats `{text}`"));
                    }
                    found.push(text.to_owned());
                }
                row += 1;
            }
        }
    }
    match found.len() == rows.len() {
        true => Ok(found),
        false => Err(format!("{} of {} rows have one", found.len(), rows.len())),
    }
}

struct ParquetIndexer<'a> {
    file: &'a fs::File,
    length: u64,
    column: ByteColumn,
    rows: Vec<ImageRow>,
    /// Number of the next row.
    next: u64,
    /// Rows without bytes.
    empty: u64,
}

impl ParquetIndexer<'_> {
    fn read(&mut self, metadata: &ParquetMetaData, leaf: usize) -> Result<(), String> {
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let at = |reason: String| format!("row group {number}: {reason}");
            let chunk = group.column(leaf);
            let rows = u64::try_from(group.num_rows()).map_err(|error| at(error.to_string()))?;
            let most = self.length / LEAST_ROW + ROWS_OF_ANY;
            if chunk.num_values() != group.num_rows() || self.next.saturating_add(rows) > most {
                return Err(at(format!(
                    "it claims {rows} rows and {} images, in a file of {} bytes",
                    chunk.num_values(),
                    self.length
                )));
            }
            self.chunk(number, chunk, rows).map_err(at)?;
        }
        Ok(())
    }

    /// Indexes the pages of a column chunk of `rows` rows.
    fn chunk(
        &mut self,
        number: usize,
        chunk: &ColumnChunkMetaData,
        rows: u64,
    ) -> Result<(), String> {
        let end = self.next + rows;
        let nulls = chunk
            .statistics()
            .and_then(|statistics| statistics.null_count_opt());
        let defined = chunk.column_descr().max_def_level() > 0;
        let all = !defined || nulls == Some(0);
        let mut pages = ChunkPages::new(self.file, self.length, chunk, number)?;
        while let Some((header, page)) = pages.next()? {
            if header.kind == 2 {
                self.column.chunks[number].1 = Some(page);
                continue;
            }
            if page.rows as u64 > end - self.next {
                return Err(format!("its pages have more than its {rows} rows"));
            }
            if !ENCODINGS.contains(&header.encoding) {
                let encoding = header.encoding;
                return Err(format!("images in encoding {encoding}, which is not read"));
            }
            let stored = match header.kind {
                3 => !header.is_compressed || chunk.compression() == Compression::UNCOMPRESSED,
                _ => chunk.compression() == Compression::UNCOMPRESSED,
            };
            let levels = header.kind == 3 || !defined || header.def_encoding == RLE;
            if all && stored && levels && header.encoding == PLAIN {
                self.places(&header, &page, defined)?;
            } else {
                self.page(page, all)?;
            }
        }
        match end - self.next {
            0 => Ok(()),
            lacking => Err(format!("its pages lack {lacking} of {rows} rows")),
        }
    }

    /// Notes the place of each value of a page that is stored as it is: its length in four bytes,
    /// then its bytes.
    fn places(
        &mut self,
        header: &PageHeader,
        page: &PagePlace,
        defined: bool,
    ) -> Result<(), String> {
        let end = page.offset + page.length as u64;
        let start = end - header.compressed as u64;
        let mut at = match (header.kind, defined) {
            (3, _) => start + (header.def_length + header.rep_length) as u64,
            (_, true) => start + 4 + self.number(start, end)?,
            (_, false) => start,
        };
        for _ in 0..page.rows {
            let size = self.number(at, end)?;
            let offset = at + 4;
            at = offset + size;
            if at > end {
                let row = self.next;
                return Err(format!(
                    "row {row}: an image of {size} bytes leaves its page"
                ));
            }
            let (row, place) = (self.next, RowPlace::Bytes { offset, size });
            self.rows.push(ImageRow { row, place });
            self.next += 1;
        }
        match at == end {
            true => Ok(()),
            false => Err(format!(
                "a page that ends at byte {end} and its last image at {at}"
            )),
        }
    }

    /// Four bytes of a page as a number.
    fn number(&self, at: u64, end: u64) -> Result<u64, String> {
        if at + 4 > end {
            return Err(format!("row {}: its page ends before it", self.next));
        }
        let mut bytes = [0; 4];
        read_at(self.file, at, &mut bytes)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }

    /// Notes the rows of a page that has to be decompressed; unless `all` rows have an image, it is
    /// decompressed now, to see which.
    fn page(&mut self, page: PagePlace, all: bool) -> Result<(), String> {
        let number = u32::try_from(self.column.pages.len()).map_err(|error| error.to_string())?;
        let values = match all {
            true => None,
            false => Some(self.column.read(&page).map_err(|failure| match failure {
                PageFailure::Io(_, reason) | PageFailure::Damaged(reason) => {
                    format!("row {}: {reason}", self.next)
                }
            })?),
        };
        let rows = u32::try_from(page.rows).map_err(|error| error.to_string())?;
        for at in 0..rows {
            let has_bytes = |values: &Vec<Option<_>>| values[at as usize].is_some();
            if values.as_ref().is_none_or(has_bytes) {
                let place = RowPlace::Page { page: number, at };
                let row = self.next;
                self.rows.push(ImageRow { row, place });
            } else {
                self.empty += 1;
            }
            self.next += 1;
        }
        self.column.pages.push(page);
        Ok(())
    }
}

/// The pages of a column chunk, by their headers.
struct ChunkPages<'a> {
    file: &'a fs::File,
    chunk: usize,
    at: u64,
    end: u64,
    /// Values that the chunk has and no page so far.
    left: i64,
}

impl<'a> ChunkPages<'a> {
    fn new(
        file: &'a fs::File,
        length: u64,
        chunk: &ColumnChunkMetaData,
        number: usize,
    ) -> Result<Self, String> {
        if chunk.file_path().is_some_and(|path| !path.is_empty()) {
            return Err("its columns lie in other files, which are not read".to_owned());
        }
        let data = chunk.data_page_offset();
        let dictionary = chunk.dictionary_page_offset().filter(|at| *at > 0);
        let start = u64::try_from(dictionary.unwrap_or(data).min(data)).ok();
        let size = u64::try_from(chunk.compressed_size()).ok();
        let range = start
            .zip(size)
            .and_then(|(at, size)| Some((at, at.checked_add(size)?)));
        let Some((at, end)) = range.filter(|(_, end)| *end <= length) else {
            return Err("its pages lie outside the file".to_owned());
        };
        Ok(Self {
            file,
            chunk: number,
            at,
            end,
            left: chunk.num_values(),
        })
    }

    /// The next page with values or a dictionary.
    fn next(&mut self) -> Result<Option<(PageHeader, PagePlace)>, String> {
        loop {
            if self.left <= 0 || self.at >= self.end {
                return Ok(None);
            }
            let (header, header_length) = self.header()?;
            if header.kind != 2 && header.num_values > self.left {
                let (found, left) = (header.num_values, self.left);
                return Err(format!(
                    "a page of {found} values in a chunk that has {left} left"
                ));
            }
            let whole = header_length as u64 + header.compressed as u64;
            let Some(end) = { self.at.checked_add(whole) }.filter(|end| *end <= self.end) else {
                let at = self.at;
                return Err(format!("the page at byte {at} leaves its column chunk"));
            };
            let place = PagePlace {
                chunk: self.chunk,
                offset: self.at,
                length: whole as usize,
                is_coded: CODED.contains(&header.encoding),
                rows: if header.kind == 2 {
                    0
                } else {
                    header.num_values as usize
                },
            };
            // A page that is stored as it is may be larger; only its images are read.
            if header.uncompressed != header.compressed && header.uncompressed > MOST_PAGE as i64 {
                return Err(format!(
                    "a page of {} bytes, more than the {MOST_PAGE} that are decompressed\n  \
                     hint: write it again with fewer rows a page, or without compression",
                    header.uncompressed
                ));
            }
            self.at = end;
            match header.kind {
                0 | 3 => self.left -= header.num_values,
                2 => {}
                _ => continue,
            }
            return Ok(Some((header, place)));
        }
    }

    fn header(&self) -> Result<(PageHeader, usize), String> {
        let mut most = HEADER;
        loop {
            let length = most.min(self.end - self.at);
            let mut bytes = vec![0; length as usize];
            read_at(self.file, self.at, &mut bytes)?;
            match PageHeader::read(&bytes) {
                Ok(found) => return Ok(found),
                Err(_) if length == most && most < MOST_HEADER => most *= 16,
                Err(error) => return Err(format!("byte {}: {error}", self.at)),
            }
        }
    }
}

fn read_at(mut file: &fs::File, at: u64, bytes: &mut [u8]) -> Result<(), String> {
    { file.seek(SeekFrom::Start(at)) }
        .and_then(|_| file.read_exact(bytes))
        .map_err(|error| error.to_string())
}
