//! Pages of Parquet columns, as far as the Parquet library does not read them: what their headers
//! claim is checked before anything is decompressed, and Zstandard, which Polars writes by default,
//! is decompressed without C code.

use std::io::Read;

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

/// Largest page that is decompressed; writers make pages of about 1 MiB.
const MOST_PAGE: usize = 64 << 20;

/// Depth of structures in a page header that is read.
const MOST_DEPTH: usize = 8;

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
    ParquetError::General("a page header that cannot be read".into())
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
        take: &mut dyn FnMut(&mut Self, i64, u8) -> Result<bool>,
    ) -> Result<()> {
        if depth > MOST_DEPTH {
            return Err(broken());
        }
        let mut field = 0;
        loop {
            let byte = self.byte()?;
            let kind = byte & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            field = match byte >> 4 {
                0 => self.integer()?,
                step => field + i64::from(step),
            };
            if !take(self, field, kind)? {
                self.value(kind, depth)?;
            }
        }
    }

    /// Passes over a value.
    fn value(&mut self, kind: u8, depth: usize) -> Result<()> {
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
                let byte = self.byte()?;
                let count = match byte >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    match byte & 0x0f {
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
