//! Pickles of plain values and NumPy's arrays.
//!
//! Read are numbers, texts, lists, dictionaries, ranges and arrays. Objects of a class with entries
//! of its own, such as `EasyDict`, are dictionaries. Blocks of bytes stay in the pickle and are
//! read where they are asked for.

use super::input::BytesInput;
use super::machine::{self, Library, MOST_NODES, Made};
use super::node::{self, Id, Result};

/// Most arguments of a call, and most axes of an array.
const MOST_ARGUMENTS: usize = 8;
/// How often all bytes of a pickle may be copied: what is written once may be used again and again.
const COPIES: usize = 4;

type Node<'a> = node::Node<'a, NumpyObject>;

/// What only pickles of NumPy have.
#[derive(Debug, Clone, PartialEq)]
enum NumpyObject {
    /// Start, end, step.
    Range([f64; 3]),
    Dtype(NumpyDtype),
    /// None before its state is set.
    Array(Option<NumpyArray>),
}

/// How NumPy stores a value: kind (`b`, `i`, `u`, `f`, `U`, `S`, `O`), bytes, whether the highest
/// byte comes first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct NumpyDtype {
    kind: u8,
    size: usize,
    big: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct NumpyArray {
    shape: Vec<usize>,
    dtype: NumpyDtype,
    /// Whether values come column by column.
    fortran: bool,
    /// Bytes, or a list of objects.
    data: Id,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'a> {
    /// Its length in bytes.
    length: usize,
    nodes: Vec<Node<'a>>,
    root: Id,
}

/// A value in a pickle.
#[derive(Debug, Clone, Copy)]
pub struct PickleValue<'a> {
    pickle: &'a Pickle<'a>,
    id: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    ///
    /// # Errors
    /// If it breaks off, or does what no pickle of such values does.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut numpy = Numpy {
            length: bytes.len(),
            copied: 0,
        };
        let values = machine::run(&mut BytesInput::new(bytes), &mut numpy)?;
        Ok(Self {
            length: bytes.len(),
            nodes: values.nodes,
            root: values.root,
        })
    }

    /// The outermost value.
    pub fn root(&'a self) -> PickleValue<'a> {
        PickleValue {
            pickle: self,
            id: self.root,
        }
    }
}

impl<'a> PickleValue<'a> {
    fn node(&self) -> &'a Node<'a> {
        &self.pickle.nodes[self.id]
    }

    fn of(&self, id: Id) -> Self {
        Self { id, ..*self }
    }

    /// The value of a key of a dictionary; of one that is set twice, the last.
    pub fn get(&self, key: &str) -> Option<Self> {
        let Node::Dict(entries) = self.node() else {
            return None;
        };
        { entries.iter().rev() }
            .find(|(name, _)| self.of(*name).text() == Some(key))
            .map(|(_, value)| self.of(*value))
    }

    /// A text.
    pub fn text(&self) -> Option<&'a str> {
        self.node().text()
    }

    /// The values of a list, or of an array of objects.
    pub fn items(&self) -> Option<impl ExactSizeIterator<Item = Self>> {
        let node = match self.node() {
            Node::Object(NumpyObject::Array(Some(array))) => self.of(array.data).node(),
            node => node,
        };
        match node {
            Node::List(items) => Some(items.iter().map(|id| self.of(*id))),
            _ => None,
        }
    }

    /// The texts of a list; none if they are longer together than the pickle, as only a trap's are.
    pub fn texts(&self) -> Option<Vec<&'a str>> {
        let texts: Vec<&str> = self
            .items()?
            .map(|item| item.text())
            .collect::<Option<_>>()?;
        let length: usize = texts.iter().map(|text| text.len()).sum();
        (length <= self.pickle.length).then_some(texts)
    }

    /// The numbers of a list, a range or an array, the latter row by row.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self.node() {
            Node::List(items) => { items.iter() }
                .map(|id| self.of(*id).node().number())
                .collect(),
            Node::Object(NumpyObject::Range([start, end, step])) => {
                let count = ((end - start) / step).ceil().max(0.0);
                let number = |i: u32| start + f64::from(i) * step;
                (count <= MOST_NODES as f64).then(|| (0..count as u32).map(number).collect())
            }
            Node::Object(NumpyObject::Array(Some(array))) => self.array_numbers(array),
            _ => None,
        }
    }

    /// The size of each axis of an array.
    pub fn shape(&self) -> Option<&'a [usize]> {
        match self.node() {
            Node::Object(NumpyObject::Array(Some(array))) => Some(&array.shape),
            _ => None,
        }
    }

    fn array_numbers(&self, array: &NumpyArray) -> Option<Vec<f64>> {
        let Node::Bytes(bytes) = self.of(array.data).node() else {
            return self.of(array.data).numbers();
        };
        let values: Option<Vec<f64>> = { bytes.chunks_exact(array.dtype.size) }
            .map(|value| array.dtype.number(value))
            .collect();
        let (values, [rows, columns]) = match (values, &array.shape[..]) {
            (values, [rows, columns]) if array.fortran => (values?, [*rows, *columns]),
            (values, _) => return values,
        };
        let value = |i: usize| values[i % columns * rows + i / columns];
        Some((0..values.len()).map(value).collect())
    }
}

impl NumpyDtype {
    /// Of a code such as `i8` or `U13`; the size of a letter of `U` is four bytes.
    fn parse(code: &str) -> Option<Self> {
        let code = code.trim_start_matches(['<', '>', '=', '|']);
        let (kind, size) = code.split_at_checked(1)?;
        let kind = kind.as_bytes()[0];
        let size: usize = size.parse().ok()?;
        let size = size.checked_mul(if kind == b'U' { 4 } else { 1 })?;
        Some(Self {
            kind,
            size,
            big: false,
        })
    }

    fn number(self, bytes: &[u8]) -> Option<f64> {
        let mut raw = [0; 8];
        let part = raw.get_mut(..bytes.len())?;
        part.copy_from_slice(bytes);
        if self.big {
            part.reverse();
        }
        let bits = u64::from_le_bytes(raw);
        Some(match (self.kind, bytes.len()) {
            (b'b', 1) | (b'u', 1 | 2 | 4 | 8) => bits as f64,
            (b'i', 1) => f64::from(bits as i8),
            (b'i', 2) => f64::from(bits as i16),
            (b'i', 4) => f64::from(bits as i32),
            (b'i', 8) => bits as i64 as f64,
            (b'f', 4) => f64::from(f32::from_bits(bits as u32)),
            (b'f', 8) => f64::from_bits(bits),
            _ => return None,
        })
    }

    /// A single value of this type.
    fn value(self, bytes: &[u8]) -> Node<'static> {
        let letter = |word: [u8; 4]| match self.big {
            true => u32::from_be_bytes(word),
            false => u32::from_le_bytes(word),
        };
        match self.kind {
            b'U' => { bytes.as_chunks().0.iter() }
                .map(|word| char::from_u32(letter(*word)))
                .collect::<Option<String>>()
                .map_or(Node::Other, |text| {
                    Node::Text(text.trim_end_matches('\0').to_owned().into())
                }),
            b'S' => Node::Bytes(bytes.to_vec().into()),
            _ => self.number(bytes).map_or(Node::Other, Node::Float),
        }
    }
}

/// The part of NumPy and Python that is known.
struct Numpy {
    /// Bytes of the pickle.
    length: usize,
    /// Bytes that were copied.
    copied: usize,
}

impl<'a> Library<'a> for Numpy {
    type Object = NumpyObject;

    const KEEPS_BLOCKS: bool = true;

    fn call(
        &mut self,
        function: &str,
        arguments: &[Id],
        all: &[Node<'a>],
    ) -> Result<Made<'a, NumpyObject>> {
        let nodes: Vec<&Node<'a>> = { arguments.iter() }
            .take(MOST_ARGUMENTS)
            .map(|id| &all[*id])
            .collect();
        let copied = match nodes[..] {
            [Node::Text(text), ..] => text.len(),
            [Node::Object(NumpyObject::Dtype(_)), Node::Bytes(bytes)] => bytes.len(),
            _ => 0,
        };
        self.copied += copied;
        if self.copied / COPIES > self.length {
            return Err("the same bytes are used over and over".to_owned());
        }
        // NumPy 2 has moved what NumPy 1 calls `numpy.core`.
        let function = function.replace("numpy._core.", "numpy.core.");
        Ok(Made::New(match (function.as_str(), &nodes[..]) {
            ("builtins.range" | "__builtin__.xrange", [start, end, step]) => {
                match (start.number(), end.number(), step.number()) {
                    (Some(start), Some(end), Some(step)) => {
                        Node::Object(NumpyObject::Range([start, end, step]))
                    }
                    _ => Node::Other,
                }
            }
            // How protocol 2 writes the bytes of Python 3.
            ("_codecs.encode", [Node::Text(text), ..]) => {
                let byte = |c: char| u8::try_from(u32::from(c)).ok();
                let bytes: Option<Vec<u8>> = text.chars().map(byte).collect();
                Node::Bytes(bytes.ok_or("bytes that are none")?.into())
            }
            ("__builtin__.bytes" | "builtins.bytes", []) => Node::Bytes((&[][..]).into()),
            ("numpy.dtype", [code, ..]) => { code.text() }
                .and_then(NumpyDtype::parse)
                .map_or(Node::Other, |dtype| Node::Object(NumpyObject::Dtype(dtype))),
            (
                "numpy.core.multiarray.scalar",
                [Node::Object(NumpyObject::Dtype(dtype)), Node::Bytes(bytes)],
            ) => dtype.value(bytes),
            ("numpy.core.multiarray._reconstruct", _) => Node::Object(NumpyObject::Array(None)),
            ("numpy.core.numeric._frombuffer", [_, _, _, Node::Text(order)]) => shaped(
                all,
                [arguments[2], arguments[1], arguments[0]],
                order == "F",
            )?,
            _ => Node::Other,
        }))
    }

    /// Whatever its class, an object is what it holds.
    fn object(&mut self, _: &str, _: &[Id], _: &[Node<'a>]) -> Result<Made<'a, NumpyObject>> {
        Ok(Made::New(Node::Dict(Vec::new())))
    }

    /// The arrays and types of NumPy have a state that matters.
    fn with_state(&self, object: Id, state: Id, all: &[Node<'a>]) -> Result<Option<Node<'a>>> {
        let Node::List(state) = &all[state] else {
            return Ok(None);
        };
        Ok(match (&all[object], &state[..]) {
            // Version, byte order, and what structured types have.
            (Node::Object(NumpyObject::Dtype(dtype)), [_, order, ..]) => {
                Some(Node::Object(NumpyObject::Dtype(NumpyDtype {
                    big: all[*order].text() == Some(">"),
                    ..*dtype
                })))
            }
            (Node::Object(NumpyObject::Array(None)), [_, shape, dtype, fortran, data]) => {
                let fortran = all[*fortran].number().is_some_and(|set| set != 0.0);
                Some(shaped(all, [*shape, *dtype, *data], fortran)?)
            }
            _ => None,
        })
    }
}

/// An array, as large as its data say; of another type of values than numbers, texts and objects
/// nothing is known.
fn shaped<'a>(all: &[Node<'a>], [shape, dtype, data]: [Id; 3], fortran: bool) -> Result<Node<'a>> {
    let (Node::List(axes), Node::Object(NumpyObject::Dtype(dtype))) = (&all[shape], &all[dtype])
    else {
        return Ok(Node::Other);
    };
    let axis = |id: &Id| {
        let size = all[*id].number()?;
        (size >= 0.0 && size.fract() == 0.0).then_some(size as usize)
    };
    let axes = axes.iter().take(MOST_ARGUMENTS);
    let shape: Option<Vec<usize>> = axes.map(axis).collect();
    let shape = shape.ok_or("an array whose shape is none")?;
    let count = shape
        .iter()
        .try_fold(1_usize, |count, size| count.checked_mul(*size));
    let (held, size) = match &all[data] {
        Node::Bytes(bytes) => (bytes.len(), dtype.size),
        Node::List(items) => (items.len(), 1),
        _ => return Err("an array without data".to_owned()),
    };
    if size == 0 || count.and_then(|count| count.checked_mul(size)) != Some(held) {
        return Err(format!(
            "an array of shape {shape:?} with {held} bytes or values"
        ));
    }
    Ok(Node::Object(NumpyObject::Array(Some(NumpyArray {
        shape,
        dtype: *dtype,
        fortran,
        data,
    }))))
}
