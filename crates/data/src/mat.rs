//! MATLAB 5 files (`.mat`, `save -v6` and `-v7`): numbers, text, logicals, cells, structures,
//! sparse matrices.
//!
//! After "MAT-File Format" (MathWorks, level 5). A file is a header of 128 bytes and elements; an
//! element is a tag (type and size) and data, padded to 8 bytes; an array is an element of
//! elements; `-v7` deflates each variable by itself.
//!
//! Nothing is built from a file but its inflated bytes: an [`Array`] is a view of them that is read
//! where it is asked for, so that a file cannot make us recurse or allocate more than 8 bytes for a
//! byte that is there. Inflating stops at [`MAX_INFLATED`]. Values come in MATLAB's order, column
//! by column.
//!
//! Not read: files of `save -v7.3` (HDF5), big-endian files, complex numbers, objects and function
//! handles.

use std::path::Path;

use fs_err as fs;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

/// Times its size that the variables of a file may have when inflated. Published annotation has up
/// to about 20.
const MOST_INFLATION: usize = 200;

/// What small files may inflate to whatever their size.
const LEAST_LIMIT: usize = 64 << 20;

/// Most bytes that the variables of a file may have when inflated: 3 GiB. The largest published
/// ones, the galleries of 4000 frames of CUHK-SYSU, need about 2.
pub const MAX_INFLATED: usize = 3 << 30;
/// Most sizes of an array, and most letters of a text of the file in a message.
const MOST_DIMS: usize = 32;
const MOST_TOLD: usize = 1000;
/// Most values of a sparse matrix that is read as a full one.
const MAX_FULL: usize = 1 << 24;

/// Why a file or a value in it cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: expected {expected}, found {found}")]
pub struct MatError {
    /// Which part, for example `variable Img`.
    pub place: String,
    /// What would have been accepted.
    pub expected: String,
    /// What is there.
    pub found: String,
}

fn error(place: &str, expected: impl Into<String>, found: impl Into<String>) -> MatError {
    // Names in a file may be as long as the file.
    let short = |text: String| match text.char_indices().nth(MOST_TOLD) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    };
    MatError {
        place: short(place.to_owned()),
        expected: expected.into(),
        found: short(found.into()),
    }
}

/// The variables of a file.
#[derive(Debug, Clone)]
pub struct MatFile {
    /// The inflated elements, each a whole array.
    variables: Vec<Vec<u8>>,
}

impl MatFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, with its name; if it is no file of this format, without.
    pub fn read(path: &Path) -> std::io::Result<Result<Self, MatError>> {
        // Before it is opened: to open a pipe is to wait for a writer, and a device may have no end.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let found = "a folder, a device or a pipe";
            return Ok(Err(error("file", "a MATLAB file", found)));
        }
        Ok(Self::from_bytes(&fs::read(path)?))
    }

    /// Reads a file from memory.
    ///
    /// # Errors
    /// If it is no file of this format or inflates beyond [`MAX_INFLATED`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MatError> {
        // A variable that inflates without end is cut off long before the memory is.
        let most = bytes.len().saturating_mul(MOST_INFLATION).max(LEAST_LIMIT);
        Self::with_limit(bytes, MAX_INFLATED.min(most))
    }

    fn with_limit(bytes: &[u8], mut limit: usize) -> Result<Self, MatError> {
        let expected = "a MATLAB 5 file (save -v6 or -v7)";
        let found = |found: &str| Err(error("header", expected, found));
        let Some((header, mut rest)) = bytes.split_at_checked(128) else {
            return found("fewer than 128 bytes");
        };
        match (&header[124..126], &header[126..128]) {
            ([_, 1], b"IM") => {}
            ([_, 2], b"IM") => return found("one of save -v7.3\nhint: save it again with -v7"),
            (_, b"MI") => return found("a big-endian one"),
            _ => return found("another kind of file"),
        }
        let mut variables = Vec::new();
        while !rest.is_empty() {
            let element = Element::next(&mut rest, "file")?;
            let variable = match element.kind {
                MATRIX => element.data.to_vec(),
                COMPRESSED => {
                    let inflated = decompress_to_vec_zlib_with_limit(element.data, limit);
                    let mut inflated = inflated.map_err(|reason| {
                        let expected = format!("zlib data of at most {limit} bytes");
                        error("compressed variable", expected, reason.to_string())
                    })?;
                    limit -= inflated.len();
                    let mut view = &inflated[..];
                    let inner = Element::next(&mut view, "compressed variable")?;
                    if inner.kind != MATRIX {
                        continue;
                    }
                    // In place: the largest are two gigabytes.
                    let size = inner.data.len();
                    inflated.truncate(8 + size);
                    inflated.drain(..8.min(inflated.len()));
                    inflated
                }
                _ => continue,
            };
            variables.push(variable);
        }
        Ok(Self { variables })
    }

    /// The variables that can be read, with their names.
    pub fn variables(&self) -> impl Iterator<Item = (String, Array<'_>)> {
        { self.variables.iter() }
            .filter_map(|data| Array::parse(data, "variable").ok())
            .map(|array| (String::from_utf8_lossy(array.name).into_owned(), array))
    }

    /// A variable.
    ///
    /// # Errors
    /// If there is none of this name; the message lists those that there are.
    pub fn get(&self, name: &str) -> Result<Array<'_>, MatError> {
        let found = self.variables().find(|(other, _)| other == name);
        found.map(|(_, array)| array).ok_or_else(|| {
            let names: Vec<String> = self.variables().map(|(name, _)| name).collect();
            error(
                "file",
                format!("a variable `{name}`"),
                format!("`{}`", names.join("`, `")),
            )
        })
    }
}

const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// A tag and its data.
#[derive(Clone, Copy)]
struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

impl<'a> Element<'a> {
    /// Takes the element at the front of `rest`.
    fn next(rest: &mut &'a [u8], place: &str) -> Result<Self, MatError> {
        let cut = || error(place, "a whole element", "the end of the data");
        let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let kind = word(0).ok_or_else(cut)?;
        // Up to four bytes of data share the eight of the tag.
        if kind >> 16 != 0 {
            let size = (kind >> 16) as usize;
            let data = rest.get(4..4 + size.min(4)).ok_or_else(cut)?;
            if size > 4 {
                return Err(error(
                    place,
                    "a small element of 1 to 4 bytes",
                    size.to_string(),
                ));
            }
            *rest = rest.get(8..).unwrap_or(&[]);
            let kind = kind & 0xffff;
            return Ok(Self { kind, data });
        }
        let size = word(4).ok_or_else(cut)? as usize;
        let data = rest
            .get(8..)
            .and_then(|rest| rest.get(..size))
            .ok_or_else(cut)?;
        // Compressed elements are not padded; padding may be missing at the end.
        let padded = match kind {
            COMPRESSED => 8 + size,
            _ => 8 + size.next_multiple_of(8),
        };
        *rest = rest.get(padded..).unwrap_or(&[]);
        Ok(Self { kind, data })
    }

    /// Size of a number of this type in bytes.
    fn width(&self) -> Option<usize> {
        Some(match self.kind {
            1 | 2 | 16 => 1,
            3 | 4 | 17 => 2,
            5..=7 | 18 => 4,
            9 | 12 | 13 => 8,
            _ => return None,
        })
    }

    fn numbers(&self, place: &str) -> Result<Vec<f64>, MatError> {
        let width = self
            .width()
            .filter(|width| self.data.len().is_multiple_of(*width));
        let Some(width) = width else {
            let found = format!("{} bytes of type {}", self.data.len(), self.kind);
            return Err(error(place, "numbers", found));
        };
        let number = |bytes: &[u8]| {
            let mut raw = [0; 8];
            raw[..width].copy_from_slice(bytes);
            let bits = u64::from_le_bytes(raw);
            match self.kind {
                1 => f64::from(bits as i8),
                3 => f64::from(bits as i16),
                5 => f64::from(bits as i32),
                7 => f64::from(f32::from_bits(bits as u32)),
                9 => f64::from_bits(bits),
                12 => bits as i64 as f64,
                _ => bits as f64,
            }
        };
        Ok(self.data.chunks_exact(width).map(number).collect())
    }
}

/// What an array holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Arrays.
    Cell,
    /// Records of named arrays.
    Struct,
    /// Text.
    Char,
    /// A sparse matrix.
    Sparse,
    /// Numbers, or logicals as 0 and 1.
    Numeric,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cell => "cells",
            Self::Struct => "structures",
            Self::Char => "text",
            Self::Sparse => "a sparse matrix",
            Self::Numeric => "numbers",
        })
    }
}

/// A view of an array.
#[derive(Debug, Clone, Copy)]
pub struct Array<'a> {
    kind: Kind,
    /// Little-endian 32-bit sizes.
    dims: &'a [u8],
    name: &'a [u8],
    complex: bool,
    body: &'a [u8],
}

impl<'a> Array<'a> {
    fn parse(mut data: &'a [u8], place: &str) -> Result<Self, MatError> {
        // An array of no bytes is [].
        if data.is_empty() {
            return Ok(Self {
                kind: Kind::Numeric,
                dims: &[0; 8],
                name: &[],
                complex: false,
                body: &[],
            });
        }
        let flags = Element::next(&mut data, place)?;
        let (Some(class), Some(bits)) = (flags.data.first(), flags.data.get(1)) else {
            return Err(error(place, "flags of an array", "none"));
        };
        let kind = match class {
            1 => Kind::Cell,
            2 => Kind::Struct,
            4 => Kind::Char,
            5 => Kind::Sparse,
            6..=15 => Kind::Numeric,
            other => {
                let expected = "numbers, text, cells, structures or a sparse matrix";
                return Err(error(place, expected, format!("an array of class {other}")));
            }
        };
        let dims = Element::next(&mut data, place)?;
        let negative = |size: &[u8]| size[3] & 0x80 != 0;
        if dims.width() != Some(4)
            || dims.data.len() < 8
            || dims.data.len() > 4 * MOST_DIMS
            || !dims.data.len().is_multiple_of(4)
            || dims.data.chunks_exact(4).any(negative)
        {
            return Err(error(
                place,
                format!("2 to {MOST_DIMS} sizes"),
                format!("{} bytes of type {}", dims.data.len(), dims.kind),
            ));
        }
        let name = Element::next(&mut data, place)?.data;
        Ok(Self {
            kind,
            dims: dims.data,
            name,
            complex: bits & 0x08 != 0,
            body: data,
        })
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rows, columns, and further sizes.
    pub fn dims(&self) -> impl Iterator<Item = usize> {
        let size = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
        self.dims.chunks_exact(4).map(size)
    }

    /// Rows and columns, the latter of all further dimensions together.
    pub fn shape(&self) -> [usize; 2] {
        let mut dims = self.dims();
        let rows = dims.next().unwrap_or(0);
        [rows, dims.fold(1, usize::saturating_mul)]
    }

    /// Number of values; the largest number there is if it would be more.
    pub fn len(&self) -> usize {
        self.dims().fold(1, usize::saturating_mul)
    }

    /// Whether it has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wrong(&self, expected: &str) -> MatError {
        let dims: Vec<String> = self.dims().map(|size| size.to_string()).collect();
        let found = format!("{} of {}", self.kind, dims.join(" x "));
        error(&self.place(), expected, found)
    }

    fn place(&self) -> String {
        match self.name {
            [] => "array".to_owned(),
            name => format!("variable {}", String::from_utf8_lossy(name)),
        }
    }

    /// Its numbers; those of a sparse matrix with the zeros.
    ///
    /// # Errors
    /// If it holds something else, or another number of numbers than its sizes say.
    pub fn numbers(&self) -> Result<Vec<f64>, MatError> {
        let (place, mut rest) = (self.place(), self.body);
        match self.kind {
            Kind::Numeric if self.is_empty() => Ok(Vec::new()),
            Kind::Numeric if !self.complex => {
                let values = Element::next(&mut rest, &place)?.numbers(&place)?;
                if values.len() != self.len() {
                    return Err(self.wrong(&format!("sizes of {} numbers", values.len())));
                }
                Ok(values)
            }
            Kind::Sparse if !self.complex => {
                let [rows, columns] = self.shape();
                if self.len() > MAX_FULL {
                    return Err(self.wrong(&format!("at most {MAX_FULL} values")));
                }
                let mut part = || Element::next(&mut rest, &place)?.numbers(&place);
                let (row_of, starts, values) = (part()?, part()?, part()?);
                let entries = row_of.len().min(values.len());
                let mut full = vec![0.0; self.len()];
                for column in 0..columns {
                    let start = |c: usize| starts.get(c).map(|start| *start as usize);
                    let (Some(from), Some(to)) = (start(column), start(column + 1)) else {
                        return Err(self.wrong("a start for each column"));
                    };
                    // Otherwise every column may go through all entries again.
                    if from > to || to > entries {
                        return Err(self.wrong("starts that ascend up to the number of entries"));
                    }
                    for i in from..to {
                        match (row_of.get(i), values.get(i)) {
                            (Some(row), Some(value)) if (*row as usize) < rows => {
                                full[column * rows + *row as usize] = *value;
                            }
                            _ => return Err(self.wrong("a row and a value for each entry")),
                        }
                    }
                }
                Ok(full)
            }
            _ => Err(self.wrong("real numbers")),
        }
    }

    /// Its only number.
    ///
    /// # Errors
    /// If it holds something else.
    pub fn number(&self) -> Result<f64, MatError> {
        match self.numbers()?[..] {
            [number] => Ok(number),
            _ => Err(self.wrong("one number")),
        }
    }

    /// Its text: one row, or none.
    ///
    /// # Errors
    /// If it holds something else or several rows.
    pub fn text(&self) -> Result<String, MatError> {
        if self.is_empty() && matches!(self.kind, Kind::Char | Kind::Numeric) {
            return Ok(String::new());
        }
        if self.kind != Kind::Char || self.shape()[0] != 1 {
            return Err(self.wrong("one row of text"));
        }
        let (place, mut rest) = (self.place(), self.body);
        let data = Element::next(&mut rest, &place)?;
        let units = |width: usize| data.data.chunks_exact(width);
        Ok(match data.kind {
            4 | 17 => {
                let units: Vec<u16> = units(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
                String::from_utf16_lossy(&units)
            }
            18 => units(4)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .map(|unit| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
            1 | 2 | 16 => String::from_utf8_lossy(data.data).into_owned(),
            _ => return Err(self.wrong("text")),
        })
    }

    /// Its cells.
    ///
    /// # Errors
    /// If it holds something else. Cells beyond the end of the data are errors of the iterator.
    pub fn cells(
        &self,
    ) -> Result<impl Iterator<Item = Result<Array<'a>, MatError>> + use<'a>, MatError> {
        if self.kind != Kind::Cell {
            return Err(self.wrong("cells"));
        }
        Ok(Arrays {
            rest: self.body,
            left: self.len(),
        })
    }

    /// Its records, of which it may have one or many.
    ///
    /// # Errors
    /// If it holds something else. Records beyond the end of the data are errors of the iterator.
    pub fn records(
        &self,
    ) -> Result<impl Iterator<Item = Result<Record<'a>, MatError>> + use<'a>, MatError> {
        if self.kind != Kind::Struct {
            return Err(self.wrong("structures"));
        }
        let (place, mut rest) = (self.place(), self.body);
        let width = Element::next(&mut rest, &place)?.numbers(&place)?;
        let names = Element::next(&mut rest, &place)?.data;
        let width = width.first().map_or(0, |width| *width as usize);
        if width == 0 || !names.len().is_multiple_of(width) {
            return Err(self.wrong("names of fields"));
        }
        let count = names.len() / width;
        let mut arrays = Arrays {
            rest,
            left: self.len().saturating_mul(count),
        };
        let record = move || -> Option<Result<Record<'a>, MatError>> {
            let first = arrays.next()?;
            let others = std::iter::once(first).chain(arrays.by_ref().take(count - 1));
            let values = others.collect::<Result<Vec<_>, _>>();
            Some(values.map(|values| Record {
                names,
                width,
                values,
            }))
        };
        Ok(std::iter::from_fn(record))
    }

    /// Its only record.
    ///
    /// # Errors
    /// If it holds something else.
    pub fn record(&self) -> Result<Record<'a>, MatError> {
        let first = self.records()?.next();
        first.unwrap_or_else(|| Err(self.wrong("one structure")))
    }
}

/// Arrays one after the other.
struct Arrays<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Arrays<'a> {
    type Item = Result<Array<'a>, MatError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let element = Element::next(&mut self.rest, "array");
        let array = element.and_then(|element| match element.kind {
            MATRIX => Array::parse(element.data, "array"),
            other => Err(error(
                "array",
                "an array",
                format!("an element of type {other}"),
            )),
        });
        if array.is_err() {
            // What follows cannot be trusted.
            self.left = 0;
        }
        Some(array)
    }
}

/// One structure.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    names: &'a [u8],
    width: usize,
    values: Vec<Array<'a>>,
}

impl<'a> Record<'a> {
    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.names.chunks_exact(self.width).map(|name| {
            let end = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            std::str::from_utf8(&name[..end]).unwrap_or("?")
        })
    }

    /// A field.
    ///
    /// # Errors
    /// If there is none of this name; the message lists those that there are.
    pub fn get(&self, name: &str) -> Result<Array<'a>, MatError> {
        let at = self.names().position(|other| other == name);
        at.and_then(|at| self.values.get(at).copied())
            .ok_or_else(|| {
                let names: Vec<&str> = self.names().collect();
                error(
                    "structure",
                    format!("a field `{name}`"),
                    format!("`{}`", names.join("`, `")),
                )
            })
    }

    /// The field at a position, for datasets known by the order of their fields.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn at(&self, index: usize) -> Result<Array<'a>, MatError> {
        self.values.get(index).copied().ok_or_else(|| {
            let expected = format!("at least {} fields", index + 1);
            error("structure", expected, self.values.len().to_string())
        })
    }
}

#[cfg(test)]
#[path = "mat_tests.rs"]
pub(crate) mod tests;
