//! Pages of Parquet columns, as far as the Parquet library does not read them: what their headers
//! claim is checked before anything is decompressed, and Zstandard, which Polars writes by default,
//! is decompressed without C code.

use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Largest page that is decompressed; writers make pages of about 1 MiB.
const MOST_PAGE: usize = 64 << 20;

/// Depth of structures and lists in a page header or footer that is read.
const MOST_DEPTH: usize = 16;

/// Depth of groups in a schema that is read; the features of `clasp embed` have two.
const MOST_GROUPS: usize = 64;

/// Most bytes of the paths of all columns: the Parquet library copies the names of the groups around
/// a column for each.
const MOST_PATH_BYTES: u64 = 64 << 20;

/// Checks that the groups in the schema of a Parquet file are not nested deeper than a stack takes,
/// as the Parquet library reads, walks and drops them by recursion, and that the names of its columns
/// take no more memory than there is. What else is wrong with a footer is left to the library.
///
/// # Errors
/// The file cannot be read, its footer breaks off, its groups are too deep, or its names too long.
pub fn check_schema(mut file: impl Read + Seek) -> Result<()> {
    // The file ends with the footer, its length in 4 bytes, and the magic number.
    let Some(end) = file.seek(SeekFrom::End(0))?.checked_sub(8) else {
        return Ok(());
    };
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    let Some(start) = end.checked_sub(length).filter(|_| magic == *b"PAR1") else {
        return Ok(());
    };
    let mut footer = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(length).read_to_end(&mut footer)?;
    let mut thrift = Thrift {
        bytes: &footer,
        at: 0,
    };
    thrift.structure(0, &mut |thrift, field, kind| match (field, kind) {
        (2, 9) => thrift.schema().map(|()| true),
        // The library goes by the number alone.
        (2, _) => Err(broken()),
        _ => Ok(false),
    })
}

/// A page header, Thrift's `PageHeader` of the Parquet format.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageHeader {
    /// 0: values, 1: an index, 2: a dictionary, 3: values of version 2.
    pub(crate) kind: i64,
    pub(crate) uncompressed: i64,
    pub(crate) compressed: i64,
    pub(crate) num_values: i64,
    pub(crate) encoding: i64,
    pub(crate) def_encoding: i64,
    rep_encoding: i64,
    is_sorted: bool,
    num_nulls: i64,
    num_rows: i64,
    pub(crate) def_length: i64,
    pub(crate) rep_length: i64,
    pub(crate) is_compressed: bool,
}

impl PageHeader {
    /// The header at the beginning of `bytes`, and its length. Sizes are not negative, and levels
    /// fit into the page.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut thrift = Thrift { bytes, at: 0 };
        let header = thrift.header()?;
        let levels = header.def_length.saturating_add(header.rep_length);
        let negative = [
            header.num_values,
            header.compressed,
            header.uncompressed,
            header.def_length,
            header.rep_length,
        ];
        if negative.iter().any(|size| *size < 0) || levels > header.compressed {
            return Err(broken());
        }
        Ok((header, thrift.at))
    }
}

/// Reads Thrift's compact protocol.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn broken() -> ParquetError {
    ParquetError::General("a header of a page or a footer that cannot be read".into())
}

impl Thrift<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = self.bytes.get(self.at).copied().ok_or_else(broken)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken())
    }

    fn integer(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count));
        self.at = end
            .filter(|end| *end <= self.bytes.len())
            .ok_or_else(broken)?;
        Ok(())
    }

    /// Hands each field of a structure, its number and type, to `take`, which says whether it read
    /// it.
    fn structure(
        &mut self,
        depth: usize,
        take: &mut dyn FnMut(&mut Self, i16, u8) -> Result<bool>,
    ) -> Result<()> {
        if depth > MOST_DEPTH {
            return Err(broken());
        }
        let mut field = 0_i16;
        loop {
            let byte = self.byte()?;
            let kind = byte & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            field = match byte >> 4 {
                0 => self.integer()? as i16,
                step => field.checked_add(step.into()).ok_or_else(broken)?,
            };
            if !take(self, field, kind)? {
                self.value(kind, depth)?;
            }
        }
    }

    /// Passes over a value.
    fn value(&mut self, kind: u8, depth: usize) -> Result<()> {
        // Lists of lists go deeper without a structure.
        if depth > MOST_DEPTH {
            return Err(broken());
        }
        match kind {
            // In a structure the type says true or false.
            1 | 2 => Ok(()),
            3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => {
                let (kind, count) = self.list()?;
                for _ in 0..count {
                    match kind {
                        1 | 2 => self.skip(1)?,
                        kind => self.value(kind, depth + 1)?,
                    }
                }
                Ok(())
            }
            12 => self.structure(depth + 1, &mut |_, _, _| Ok(false)),
            _ => Err(broken()),
        }
    }

    /// The type and the number of a list's elements.
    fn list(&mut self) -> Result<(u8, u64)> {
        let byte = self.byte()?;
        let count = match byte >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        Ok((byte & 0x0f, count))
    }

    /// Passes over the schema in a footer: its elements in depth-first order, each of which says how
    /// many children it has.
    fn schema(&mut self) -> Result<()> {
        let (_, count) = self.list()?;
        // Of each group around an element: children that are still to come, and the bytes of its path.
        let mut groups: Vec<(i32, u64)> = Vec::new();
        let mut path_bytes = 0_u64;
        for _ in 0..count {
            let (mut children, mut name) = (0, 0);
            self.structure(2, &mut |thrift, field, kind| match (field, kind) {
                (5, 5) => {
                    children = i32::try_from(thrift.integer()?).map_err(|_| broken())?;
                    Ok(true)
                }
                (5, _) => Err(broken()),
                (4, 8) => {
                    name = thrift.varint()?;
                    thrift.skip(name)?;
                    Ok(true)
                }
                _ => Ok(false),
            })?;
            let mut path = name;
            if let Some((left, above)) = groups.last_mut() {
                *left -= 1;
                path = path.saturating_add(*above);
            }
            match children {
                ..=0 => path_bytes = path_bytes.saturating_add(path),
                _ => groups.push((children, path)),
            }
            if path_bytes > MOST_PATH_BYTES {
                return Err(ParquetError::General(format!(
                    "names of columns of more than {} MiB together",
                    MOST_PATH_BYTES >> 20
                )));
            }
            if groups.len() > MOST_GROUPS {
                return Err(ParquetError::General(format!(
                    "groups inside one another more than {MOST_GROUPS} deep"
                )));
            }
            while groups.last().is_some_and(|(left, _)| *left <= 0) {
                groups.pop();
            }
        }
        Ok(())
    }

    fn header(&mut self) -> Result<PageHeader> {
        let mut header = PageHeader {
            is_compressed: true,
            ..PageHeader::default()
        };
        self.structure(0, &mut |thrift, field, kind| {
            let header = &mut header;
            match (field, kind) {
                (1, 5) => header.kind = thrift.integer()?,
                (2, 5) => header.uncompressed = thrift.integer()?,
                (3, 5) => header.compressed = thrift.integer()?,
                (5, 12) => thrift.structure(1, &mut |thrift, field, kind| {
                    match (field, kind) {
                        (1, 5) => header.num_values = thrift.integer()?,
                        (2, 5) => header.encoding = thrift.integer()?,
                        (3, 5) => header.def_encoding = thrift.integer()?,
                        (4, 5) => header.rep_encoding = thrift.integer()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                (7, 12) => thrift.structure(1, &mut |thrift, field, kind| {
                    match (field, kind) {
                        (1, 5) => header.num_values = thrift.integer()?,
                        (2, 5) => header.encoding = thrift.integer()?,
                        (3, 1) => header.is_sorted = true,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                (8, 12) => thrift.structure(1, &mut |thrift, field, kind| {
                    match (field, kind) {
                        (1, 5) => header.num_values = thrift.integer()?,
                        (2, 5) => header.num_nulls = thrift.integer()?,
                        (3, 5) => header.num_rows = thrift.integer()?,
                        (4, 5) => header.encoding = thrift.integer()?,
                        (5, 5) => header.def_length = thrift.integer()?,
                        (6, 5) => header.rep_length = thrift.integer()?,
                        (7, 2) => header.is_compressed = false,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(header)
    }
}

/// The pages of a column chunk.
pub(crate) struct Pages {
    bytes: Bytes,
    at: usize,
    /// Values that the chunk holds; the pages end with them.
    left: i64,
    zstd: bool,
    /// Largest page that is decompressed.
    most: usize,
}

impl Pages {
    /// The pages in `bytes`, which are a whole column chunk of `values` values.
    pub fn new(bytes: Bytes, values: i64, zstd: bool) -> Self {
        Self {
            bytes,
            at: 0,
            left: values,
            zstd,
            most: MOST_PAGE,
        }
    }

    /// With another bound on the size of a page.
    pub fn with_most(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Checks all headers: sizes that the chunk can hold, and pages that may be decompressed. The
    /// bytes that they are decompressed to.
    pub fn check(mut self) -> Result<usize> {
        let mut total = 0_usize;
        while let Some((header, _)) = self.next_header()? {
            total = total.saturating_add(header.uncompressed as usize);
        }
        match self.left {
            ..=0 => Ok(total),
            left => Err(ParquetError::General(format!(
                "its pages lack {left} values"
            ))),
        }
    }

    /// The next header and the bytes of its page, as they are stored.
    fn next_header(&mut self) -> Result<Option<(PageHeader, Bytes)>> {
        if self.left <= 0 || self.at >= self.bytes.len() {
            return Ok(None);
        }
        let (header, length) = PageHeader::read(&self.bytes[self.at..])?;
        let start = self.at + length;
        let size = |size: i64| usize::try_from(size).ok();
        let end = size(header.compressed).and_then(|size| start.checked_add(size));
        let end = end.filter(|end| *end <= self.bytes.len());
        let (Some(end), Some(whole)) = (end, size(header.uncompressed)) else {
            return Err(broken());
        };
        if whole > self.most {
            let most = self.most;
            return Err(ParquetError::General(format!(
                "a page of {whole} bytes, more than the {most} that are read"
            )));
        }
        // Dictionaries (2) and indices (1) hold no values of rows.
        if matches!(header.kind, 0 | 3) {
            self.left -= header.num_values;
        }
        self.at = end;
        Ok(Some((header, self.bytes.slice(start..end))))
    }

    fn decompressed(&self, stored: &[u8], size: usize) -> Result<Vec<u8>> {
        let failed = |reason: String| ParquetError::General(format!("Zstandard: {reason}"));
        if !self.zstd {
            return Ok(stored.to_vec());
        }
        let decoder = ruzstd::decoding::StreamingDecoder::new(stored);
        let decoder = decoder.map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::with_capacity(size);
        // One byte more, to see that it is not longer than it says.
        let read = decoder.take(size as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| failed(error.to_string()))?;
        match bytes.len() == size {
            true => Ok(bytes),
            false => Err(failed(format!(
                "expected {size} bytes, found {}",
                bytes.len()
            ))),
        }
    }
}

fn encoding(number: i64) -> Result<Encoding> {
    Ok(match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        other => {
            return Err(ParquetError::General(format!(
                "encoding {other} is not read"
            )));
        }
    })
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        loop {
            let Some((header, stored)) = self.next_header()? else {
                return Ok(None);
            };
            let whole = header.uncompressed as usize;
            let page = match header.kind {
                0 => Page::DataPage {
                    buf: self.decompressed(&stored, whole)?.into(),
                    num_values: header.num_values as u32,
                    encoding: encoding(header.encoding)?,
                    def_level_encoding: encoding(header.def_encoding)?,
                    rep_level_encoding: encoding(header.rep_encoding)?,
                    statistics: None,
                },
                2 => Page::DictionaryPage {
                    buf: self.decompressed(&stored, whole)?.into(),
                    num_values: header.num_values as u32,
                    encoding: encoding(header.encoding)?,
                    is_sorted: header.is_sorted,
                },
                3 => {
                    // Levels come first, never compressed.
                    let levels = (header.def_length + header.rep_length) as usize;
                    let mut buf = stored[..levels].to_vec();
                    let values = whole.checked_sub(levels).ok_or_else(broken)?;
                    match header.is_compressed {
                        true => buf.extend(self.decompressed(&stored[levels..], values)?),
                        false => buf.extend_from_slice(&stored[levels..]),
                    }
                    Page::DataPageV2 {
                        buf: buf.into(),
                        num_values: header.num_values as u32,
                        encoding: encoding(header.encoding)?,
                        num_nulls: u32::try_from(header.num_nulls).map_err(|_| broken())?,
                        num_rows: u32::try_from(header.num_rows).map_err(|_| broken())?,
                        def_levels_byte_len: header.def_length as u32,
                        rep_levels_byte_len: header.rep_length as u32,
                        is_compressed: false,
                        statistics: None,
                    }
                }
                _ => continue,
            };
            return Ok(Some(page));
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let (at, left) = (self.at, self.left);
        let header = self.next_header()?;
        (self.at, self.left) = (at, left);
        Ok(header.map(|(header, _)| PageMetadata {
            num_rows: (header.kind == 3).then_some(header.num_rows as usize),
            num_levels: Some(header.num_values as usize),
            is_dict: header.kind == 2,
        }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.next_header().map(drop)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A list of a list of a list …: each level used to be a frame of the stack, as its depth was
    /// counted in structures alone.
    #[test]
    fn nested_lists_in_a_page_header_are_refused() {
        let mut header = vec![0x99];
        header.extend(vec![0x19; 1 << 20]);
        assert!(PageHeader::read(&header).is_err());
    }

    fn varint(out: &mut Vec<u8>, mut number: usize) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }

    /// A file without pages with this schema: the name and the number of children of each element.
    fn with_schema(elements: &[(&str, usize)]) -> Vec<u8> {
        let mut footer = vec![
            0x15, 0x02, // The version.
            0x19, 0xfc, // A list of structures, and its length.
        ];
        varint(&mut footer, elements.len());
        for (name, children) in elements {
            // A required group, or a required column of bytes.
            footer.extend(match children {
                0 => &[0x15, 0x0c, 0x25, 0x00, 0x18][..],
                _ => &[0x35, 0x00, 0x18],
            });
            varint(&mut footer, name.len());
            footer.extend(name.as_bytes());
            if *children > 0 {
                footer.push(0x15);
                varint(&mut footer, 2 * children);
            }
            footer.push(0);
        }
        // No rows, no row groups.
        footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
        let length = (footer.len() as u32).to_le_bytes();
        [b"PAR1", &footer[..], &length, b"PAR1"].concat()
    }

    /// Groups inside one another.
    fn nested(depth: usize) -> Vec<u8> {
        with_schema(&[vec![("a", 1); depth], vec![("b", 0)]].concat())
    }

    /// The library's recursion over them overflows the stack, which ends the process.
    #[test]
    fn deep_schemas_are_refused() {
        let check = |depth| check_schema(Cursor::new(nested(depth)));
        check(MOST_GROUPS).unwrap();
        for depth in [MOST_GROUPS + 1, 100_000] {
            let error = check(depth).unwrap_err().to_string();
            assert!(error.contains("more than 64 deep"), "{error}");
        }
        // What the library reads as far as this is read.
        let whole = Bytes::from(nested(3));
        parquet::file::reader::SerializedFileReader::new(whole).unwrap();
        let cut = [&nested(3)[..16], &[12, 0, 0, 0], b"PAR1"].concat();
        assert!(check_schema(Cursor::new(cut)).is_err());
        check_schema(Cursor::new(b"text")).unwrap();
    }

    /// The library copies the name of a group for each column in it: 100 MB from 108 kB here.
    #[test]
    fn long_names_of_groups_are_refused() {
        let long = "k".repeat(100_000);
        let file = |columns| {
            let groups = [("root", 1), (long.as_str(), columns)];
            let file = with_schema(&[&groups[..], &vec![("b", 0); columns]].concat());
            check_schema(Cursor::new(file)).map_err(|error| error.to_string())
        };
        assert_eq!(file(10), Ok(()));
        let error = file(1000).unwrap_err();
        assert!(
            error.contains("names of columns of more than 64 MiB"),
            "{error}"
        );
    }
}
