//! Python pickles of plain values and NumPy arrays, as data only.
//!
//! A pickle is a program for a stack machine. This reader runs the part of it that builds numbers, texts, lists, dictionaries,
//! ranges and NumPy's arrays; a call of anything else gives a value that says nothing, and nothing is ever imported or executed.
//! Objects of a class with entries of its own, such as `EasyDict`, are dictionaries. The opcodes are those of Python's
//! `pickletools`, protocols 2 to 5.
//!
//! Values live in one arena and refer to one another by number, so that a cycle costs nothing; blocks of bytes stay in the
//! pickle and are read where they are asked for. A hostile file can therefore take no more memory than a multiple of its size.

mod stack;

use std::borrow::Cow;
use std::collections::HashMap;

pub use stack::Stack;

/// Most values, and most of a range that is read: several times what the largest published pickle has.
const MOST: usize = 1 << 22;

/// Most arguments of a call, and most axes of an array.
const MOST_ARGUMENTS: usize = 8;
/// How often all bytes of a pickle may be copied: what is written once may be used again and again.
const COPIES: usize = 4;

/// What is wrong, in words.
pub type Result<T> = std::result::Result<T, String>;

/// A value's number in the arena.
type Id = usize;

#[derive(Debug, Clone)]
enum Node<'a> {
    /// `None`, or an object that is not known.
    Other,
    Number(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// A list or a tuple.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Start, end, step.
    Range([f64; 3]),
    /// A class or a function, by module and name.
    Global(String),
    Dtype(Dtype),
    /// None before its state is set.
    Array(Option<Array>),
}

impl Node<'_> {
    /// A text, or bytes that are one.
    fn text(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            Node::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// How NumPy stores a value: kind (`b`, `i`, `u`, `f`, `U`, `S`, `O`), bytes, whether the highest byte comes first.
#[derive(Debug, Clone, Copy)]
struct Dtype {
    kind: u8,
    size: usize,
    big: bool,
}

#[derive(Debug, Clone)]
struct Array {
    shape: Vec<usize>,
    dtype: Dtype,
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
pub struct Value<'a> {
    pickle: &'a Pickle<'a>,
    id: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    ///
    /// # Errors
    /// If it breaks off, or does what no pickle of such values does.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine {
            bytes,
            place: 0,
            nodes: Vec::new(),
            stack: Stack::default(),
            memo: HashMap::new(),
            copied: 0,
        };
        loop {
            let place = machine.place;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Self {
                        length: bytes.len(),
                        nodes: machine.nodes,
                        root,
                    });
                }
                Err(problem) => return Err(format!("{problem}, at byte {place} of the pickle")),
            }
        }
    }

    /// The outermost value.
    pub fn root(&'a self) -> Value<'a> {
        Value {
            pickle: self,
            id: self.root,
        }
    }
}

impl<'a> Value<'a> {
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
            Node::Array(Some(array)) => self.of(array.data).node(),
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
                .map(|id| match self.of(*id).node() {
                    Node::Number(number) => Some(*number),
                    _ => None,
                })
                .collect(),
            Node::Range([start, end, step]) => {
                let count = ((end - start) / step).ceil().max(0.0);
                let number = |i: u32| start + f64::from(i) * step;
                (count <= MOST as f64).then(|| (0..count as u32).map(number).collect())
            }
            Node::Array(Some(array)) => self.array_numbers(array),
            _ => None,
        }
    }

    /// The size of each axis of an array.
    pub fn shape(&self) -> Option<&'a [usize]> {
        match self.node() {
            Node::Array(Some(array)) => Some(&array.shape),
            _ => None,
        }
    }

    fn array_numbers(&self, array: &Array) -> Option<Vec<f64>> {
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

impl Dtype {
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
            _ => self.number(bytes).map_or(Node::Other, Node::Number),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    place: usize,
    nodes: Vec<Node<'a>>,
    stack: Stack<Id>,
    memo: HashMap<u64, Id>,
    /// Bytes that were copied.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// One opcode; the root when it was the last.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.byte()? {
            0x80 => match self.byte()? {
                2..=5 => {}
                version => return Err(format!("protocol {version}, expected 2 to 5")),
            },
            0x95 => drop(self.take(8)?),
            b'.' => return self.stack.pop().map(Some),

            b'(' => self.stack.mark(),
            b'0' => drop(self.stack.pop()?),
            b'1' => drop(self.stack.pop_to_mark()?),

            b'N' => self.make(Node::Other)?,
            0x88 => self.make(Node::Number(1.0))?,
            0x89 => self.make(Node::Number(0.0))?,
            opcode @ (b'K' | b'M') => {
                let value = self.whole(if opcode == b'K' { 1 } else { 2 })?;
                self.make(Node::Number(value as f64))?;
            }
            b'J' => {
                let bytes = self.take(4)?;
                self.make(long(bytes))?;
            }
            0x8a => {
                let length = self.whole(1)?;
                let bytes = self.take(length)?;
                self.make(long(bytes))?;
            }
            b'G' => {
                let bits = self
                    .take(8)?
                    .iter()
                    .fold(0, |bits, byte| bits << 8 | u64::from(*byte));
                self.make(Node::Number(f64::from_bits(bits)))?;
            }

            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            // Texts of Python 2 are bytes.
            b'U' | b'C' => self.data(1)?,
            b'T' | b'B' => self.data(4)?,
            0x8e | 0x96 => self.data(8)?,

            b')' | b']' | 0x8f => self.make(Node::List(Vec::new()))?,
            b't' | 0x91 => {
                let items = self.stack.pop_to_mark()?;
                self.make(Node::List(items))?;
            }
            opcode @ 0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let items = self.stack.pop_many(count)?;
                self.make(Node::List(items))?;
            }
            b'a' => {
                let item = self.stack.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.stack.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.make(Node::Dict(Vec::new()))?,
            b's' => {
                let value = self.stack.pop()?;
                let key = self.stack.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.stack.pop_to_mark()?;
                self.set(&items)?;
            }

            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let top = self.stack.top()?;
                self.memo.insert(self.memo.len() as u64, top);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.make(global(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.stack.pop()?, self.stack.pop()?);
                let (module, name) = (self.nodes[module].text(), self.nodes[name].text());
                let (Some(module), Some(name)) = (module, name) else {
                    return Err("a class whose name is not a text".to_owned());
                };
                let global = global(module, name);
                self.make(global)?;
            }
            b'R' => {
                let (arguments, callable) = (self.stack.pop()?, self.stack.pop()?);
                let made = self.call(callable, arguments)?;
                self.make(made)?;
            }
            // A new object: what it holds follows.
            0x81 => {
                self.stack.pop()?;
                self.stack.pop()?;
                self.make(Node::Dict(Vec::new()))?;
            }
            b'b' => {
                let (state, object) = (self.stack.pop()?, self.stack.top()?);
                self.build(object, state)?;
            }
            other => {
                return Err(format!(
                    "opcode {other:#04x}, which no pickle of such values has"
                ));
            }
        }
        Ok(None)
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.place..).unwrap_or(&[]);
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| rest.get(..count))
            .ok_or("the pickle breaks off")?;
        self.place += taken.len();
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A whole number of some bytes, the lowest first.
    fn whole(&mut self, bytes: u64) -> Result<u64> {
        let bytes = self.take(bytes)?.iter().rev();
        Ok(bytes.fold(0, |whole, byte| whole << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.place..).unwrap_or(&[]);
        let end = (rest.iter().position(|byte| *byte == b'\n')).ok_or("a line without an end")?;
        self.place += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    /// A text whose length is a number of so many bytes.
    fn text(&mut self, bytes: u64) -> Result<()> {
        let length = self.whole(bytes)?;
        let text = std::str::from_utf8(self.take(length)?);
        self.make(Node::Text(
            text.map_err(|_| "a text that is not UTF-8")?.into(),
        ))
    }

    /// Bytes whose length is a number of so many bytes.
    fn data(&mut self, bytes: u64) -> Result<()> {
        let length = self.whole(bytes)?;
        let data = self.take(length)?;
        self.make(Node::Bytes(data.into()))
    }

    fn make(&mut self, node: Node<'a>) -> Result<()> {
        if self.nodes.len() == MOST {
            return Err(format!("more than {MOST} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.stack.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            // Of a class that is not known.
            Node::Other | Node::Dict(_) => {}
            _ => return Err("values are added to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.stack.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a dictionary with a key and no value".to_owned());
        }
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Node::Other => {}
            _ => return Err("entries are set in what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn put(&mut self, bytes: u64) -> Result<()> {
        let (slot, top) = (self.whole(bytes)?, self.stack.top()?);
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, bytes: u64) -> Result<()> {
        let slot = self.whole(bytes)?;
        let id = self.memo.get(&slot).copied();
        self.stack
            .push(id.ok_or_else(|| format!("memo {slot} is used and was never stored"))?);
        Ok(())
    }

    /// What a call of the few known functions gives.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<Node<'a>> {
        let (Node::Global(name), Node::List(arguments)) =
            (&self.nodes[callable], &self.nodes[arguments])
        else {
            return Ok(Node::Other);
        };
        let nodes: Vec<&Node<'a>> = { arguments.iter() }
            .take(MOST_ARGUMENTS)
            .map(|id| &self.nodes[*id])
            .collect();
        let copied = match nodes[..] {
            [Node::Text(text), ..] => text.len(),
            [Node::Dtype(_), Node::Bytes(bytes)] => bytes.len(),
            _ => 0,
        };
        self.copied += copied;
        if self.copied / COPIES > self.bytes.len() {
            return Err("the same bytes are used over and over".to_owned());
        }
        Ok(match (name.as_str(), &nodes[..]) {
            (
                "builtins.range" | "__builtin__.xrange",
                [Node::Number(start), Node::Number(end), Node::Number(step)],
            ) => Node::Range([*start, *end, *step]),
            // How protocol 2 writes the bytes of Python 3.
            ("_codecs.encode", [Node::Text(text), ..]) => {
                let byte = |c: char| u8::try_from(u32::from(c)).ok();
                let bytes: Option<Vec<u8>> = text.chars().map(byte).collect();
                Node::Bytes(bytes.ok_or("bytes that are none")?.into())
            }
            ("__builtin__.bytes" | "builtins.bytes", []) => Node::Bytes((&[][..]).into()),
            ("numpy.dtype", [code, ..]) => { code.text() }
                .and_then(Dtype::parse)
                .map_or(Node::Other, Node::Dtype),
            ("numpy.core.multiarray.scalar", [Node::Dtype(dtype), Node::Bytes(bytes)]) => {
                dtype.value(bytes)
            }
            ("numpy.core.multiarray._reconstruct", _) => Node::Array(None),
            ("numpy.core.numeric._frombuffer", [_, _, _, Node::Text(order)]) => {
                self.shaped(arguments[2], arguments[1], order == "F", arguments[0])?
            }
            _ => Node::Other,
        })
    }

    /// Gives an object its state: the arrays and types of NumPy have one that matters.
    fn build(&mut self, object: Id, state: Id) -> Result<()> {
        let Node::List(state) = &self.nodes[state] else {
            return Ok(());
        };
        let built = match (&self.nodes[object], &state[..]) {
            // Version, byte order, and what structured types have.
            (Node::Dtype(dtype), [_, order, ..]) => Node::Dtype(Dtype {
                big: self.nodes[*order].text() == Some(">"),
                ..*dtype
            }),
            (Node::Array(None), [_, shape, dtype, fortran, data]) => {
                let fortran = matches!(self.nodes[*fortran], Node::Number(set) if set != 0.0);
                self.shaped(*shape, *dtype, fortran, *data)?
            }
            _ => return Ok(()),
        };
        self.nodes[object] = built;
        Ok(())
    }

    /// An array, as large as its data say; of another type of values than numbers, texts and objects nothing is known.
    fn shaped(&self, shape: Id, dtype: Id, fortran: bool, data: Id) -> Result<Node<'a>> {
        let (Node::List(axes), Node::Dtype(dtype)) = (&self.nodes[shape], &self.nodes[dtype])
        else {
            return Ok(Node::Other);
        };
        let axis = |id: &Id| match self.nodes[*id] {
            Node::Number(size) if size >= 0.0 && size.fract() == 0.0 => Some(size as usize),
            _ => None,
        };
        let axes = axes.iter().take(MOST_ARGUMENTS);
        let shape: Option<Vec<usize>> = axes.map(axis).collect();
        let shape = shape.ok_or("an array whose shape is none")?;
        let count = shape
            .iter()
            .try_fold(1_usize, |count, size| count.checked_mul(*size));
        let (held, size) = match &self.nodes[data] {
            Node::Bytes(bytes) => (bytes.len(), dtype.size),
            Node::List(items) => (items.len(), 1),
            _ => return Err("an array without data".to_owned()),
        };
        if size == 0 || count.and_then(|count| count.checked_mul(size)) != Some(held) {
            return Err(format!(
                "an array of shape {shape:?} with {held} bytes or values"
            ));
        }
        Ok(Node::Array(Some(Array {
            shape,
            dtype: *dtype,
            fortran,
            data,
        })))
    }
}

/// A class or a function; one of a longer name is not known.
fn global(module: &str, name: &str) -> Node<'static> {
    match module.len() + name.len() {
        // NumPy 2 has moved what NumPy 1 calls `numpy.core`.
        0..100 => Node::Global(format!("{module}.{name}").replace("numpy._core.", "numpy.core.")),
        _ => Node::Other,
    }
}

/// A little-endian number in two's complement; of more than 64 bits it is of no use here.
fn long(bytes: &[u8]) -> Node<'static> {
    if bytes.len() > 8 {
        return Node::Other;
    }
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let mut value = [if negative { 0xff } else { 0 }; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    Node::Number(i64::from_le_bytes(value) as f64)
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
