//! Pickles, as data only.
//!
//! A pickle is a program for a stack machine. This reader runs the part of it that builds plain values and
//! PyTorch's tensors; calls of anything else give an opaque value and nothing is ever imported or executed.
//! The opcodes are those of Python's `pickletools`, protocols 0 to 5.
//!
//! Values live in one arena and refer to one another by number, so a memo or a cycle costs nothing and drops
//! without recursion. The length of the pickle, the number of values and the number of references are limited,
//! so a hostile file gives an error before it takes much memory.

use std::collections::HashMap;
use std::io::Read;

use clasp_data::pickle::Stack;

/// The longest pickle: the description of a checkpoint has a few megabytes at most, its numbers lie elsewhere.
const LONGEST: u64 = 64 << 20;
/// The most values in a pickle.
const MOST_NODES: usize = 1 << 22;
/// The most references to values, on the stack and in containers, counted as they are pushed.
const MOST_PUSHES: usize = 1 << 24;
/// Longer texts are of no use here and not kept.
const LONGEST_TEXT: u64 = 1 << 12;
/// The most axes of a tensor.
const MOST_AXES: usize = 16;
/// The deepest nesting of what holds tensors; a cycle is deeper than any.
const DEEPEST: usize = 32;
/// The most tensors, and the most steps of the search for them.
const MOST_TENSORS: usize = 1 << 18;
const MOST_STEPS: usize = 1 << 22;

/// What is wrong, in words.
pub type Result<T> = std::result::Result<T, String>;

/// A value's number in the arena.
pub type Id = u32;

/// The type of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit float with the exponent of a 32-bit one.
    Bf16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 8 bits; also booleans.
    U8,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }

    /// Of a class such as `torch.HalfStorage` or a value such as `torch.float16`.
    fn of(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("torch.")? {
            "DoubleStorage" | "float64" => Self::F64,
            "FloatStorage" | "float32" => Self::F32,
            "HalfStorage" | "float16" => Self::F16,
            "BFloat16Storage" | "bfloat16" => Self::Bf16,
            "LongStorage" | "int64" => Self::I64,
            "IntStorage" | "int32" => Self::I32,
            "ShortStorage" | "int16" => Self::I16,
            "CharStorage" | "int8" => Self::I8,
            "ByteStorage" | "uint8" | "BoolStorage" | "bool" => Self::U8,
            _ => return None,
        })
    }
}

/// A block of numbers outside the pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    /// Its name in the container.
    pub key: String,
    /// None for blocks of bytes, whose tensors say their type.
    pub dtype: Option<Dtype>,
    /// Numbers in it (bytes, without a type).
    pub length: u64,
    /// Where a view into the block starts, in numbers; only old files have such.
    pub start: u64,
}

/// A tensor's place in a storage.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The block.
    pub storage: Storage,
    /// Type of its numbers.
    pub dtype: Dtype,
    /// The first number, from the block's beginning.
    pub offset: u64,
    /// Size of each axis.
    pub shape: Vec<u64>,
    /// Numbers from one position of each axis to the next.
    pub stride: Vec<u64>,
}

impl View {
    /// Numbers of the tensor; none where the product overflows.
    pub fn count(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(1u64, |count, axis| count.checked_mul(*axis))
    }

    /// One past the last number of the block that the tensor touches.
    pub fn end(&self) -> Option<u64> {
        if self.count()? == 0 {
            return Some(self.offset);
        }
        let last = self
            .shape
            .iter()
            .zip(&self.stride)
            .try_fold(self.offset, |last, (axis, stride)| {
                last.checked_add((axis - 1).checked_mul(*stride)?)
            })?;
        last.checked_add(1)
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// `None`, a number that is not used, bytes, an object of a class that is not known.
    Opaque,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A text.
    Text(String),
    /// A list, a tuple or a set.
    Sequence(Vec<Id>),
    /// A dictionary.
    Dict(Vec<(Id, Id)>),
    /// A class or a function, by module and name.
    Global(String),
    /// A block of numbers.
    Storage(Storage),
    /// A tensor.
    Tensor(View),
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// The outermost value.
    pub root: Id,
}

impl Pickle {
    /// A value.
    pub fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::Opaque)
    }

    /// The value of a key of the outermost dictionary.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Node::Dict(entries) = self.node(self.root) else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| matches!(self.node(*name), Node::Text(name) if name == key))
            .map(|(_, value)| self.node(*value))
    }

    /// All storages that are referred to, also by what is not a tensor here.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// All tensors by their path through dictionaries and lists, joined by dots.
    pub fn tensors(&self) -> Result<Vec<(String, &View)>> {
        let mut found = Vec::new();
        let mut steps = 0;
        self.search(self.root, &mut String::new(), 0, &mut steps, &mut found)?;
        Ok(found)
    }

    fn search<'a>(
        &'a self,
        id: Id,
        path: &mut String,
        depth: usize,
        steps: &mut usize,
        found: &mut Vec<(String, &'a View)>,
    ) -> Result<()> {
        *steps += 1;
        if depth > DEEPEST || *steps > MOST_STEPS {
            return Err(format!(
                "values inside one another more than {DEEPEST} levels deep, or in a circle, or more than {MOST_STEPS} of them"
            ));
        }
        let mut inside = |name: &str, value: Id, path: &mut String| {
            let length = path.len();
            if length > 0 {
                path.push('.');
            }
            path.push_str(name);
            let result = self.search(value, path, depth + 1, steps, found);
            path.truncate(length);
            result
        };
        match self.node(id) {
            Node::Dict(entries) => {
                for (name, value) in entries {
                    match self.node(*name) {
                        Node::Text(name) => inside(name, *value, path)?,
                        Node::Int(name) => inside(&name.to_string(), *value, path)?,
                        _ => {}
                    }
                }
            }
            Node::Sequence(items) => {
                for (index, value) in items.iter().enumerate() {
                    inside(&index.to_string(), *value, path)?;
                }
            }
            Node::Tensor(view) => {
                if found.len() == MOST_TENSORS {
                    return Err(format!("more than {MOST_TENSORS} tensors"));
                }
                found.push((path.clone(), view));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Bytes that arrive, counted and limited.
struct Stream<'a, R> {
    inner: &'a mut R,
    place: u64,
}

impl<R: Read> Stream<'_, R> {
    fn advance(&mut self, count: u64) -> Result<()> {
        self.place = self.place.saturating_add(count);
        if self.place > LONGEST {
            return Err(format!("a pickle of more than {LONGEST} bytes"));
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|error| format!("the pickle breaks off ({error})"))?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Bytes as they arrive: a length that is claimed allocates nothing.
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        self.advance(count)?;
        let mut bytes = Vec::new();
        let found = self
            .inner
            .by_ref()
            .take(count)
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        if found as u64 != count {
            return Err("the pickle breaks off".to_owned());
        }
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.advance(count)?;
        let mut part = self.inner.by_ref().take(count);
        let found = std::io::copy(&mut part, &mut std::io::sink());
        if found.map_err(|error| error.to_string())? != count {
            return Err("the pickle breaks off".to_owned());
        }
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<Node> {
        if length > LONGEST_TEXT {
            self.skip(length)?;
            return Ok(Node::Opaque);
        }
        Ok(match String::from_utf8(self.take(length)?) {
            Ok(text) => Node::Text(text),
            Err(_) => Node::Opaque,
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                byte if bytes.len() as u64 <= LONGEST_TEXT => bytes.push(byte),
                _ => return Err(format!("a line of more than {LONGEST_TEXT} bytes")),
            }
        }
        String::from_utf8(bytes).map_err(|_| "a line that is not UTF-8".to_owned())
    }
}

/// Reads one pickle and leaves the stream behind its end.
pub fn read(input: &mut impl Read) -> Result<Pickle> {
    let mut machine = Machine::default();
    let mut stream = Stream {
        inner: input,
        place: 0,
    };
    loop {
        let place = stream.place;
        match machine.step(&mut stream) {
            Ok(None) => {}
            Ok(Some(root)) => {
                return Ok(Pickle {
                    nodes: machine.nodes,
                    root,
                });
            }
            Err(problem) => return Err(format!("{problem}, at byte {place} of a pickle")),
        }
    }
}

#[derive(Default)]
struct Machine {
    nodes: Vec<Node>,
    stack: Stack<Id>,
    memo: HashMap<u32, Id>,
    pushes: usize,
}

impl Machine {
    /// One opcode; the root when it was the last.
    fn step<R: Read>(&mut self, stream: &mut Stream<'_, R>) -> Result<Option<Id>> {
        let opcode = stream.byte()?;
        match opcode {
            0x80 => {
                let version = stream.byte()?;
                if version > 5 {
                    return Err(format!("protocol {version}, expected 0 to 5"));
                }
            }
            0x95 => {
                stream.array::<8>()?;
            }
            b'.' => return self.stack.pop().map(Some),

            b'(' => {
                self.count()?;
                self.stack.mark();
            }
            b'0' => {
                if !self.stack.unmark() {
                    self.stack.pop()?;
                }
            }
            b'1' => {
                self.stack.pop_to_mark()?;
            }
            b'2' => {
                let top = self.stack.top()?;
                self.push(top)?;
            }

            b'N' => self.make(Node::Opaque)?,
            0x88 => self.make(Node::Bool(true))?,
            0x89 => self.make(Node::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(stream.array()?);
                self.make(Node::Int(value.into()))?;
            }
            b'K' => {
                let value = stream.byte()?;
                self.make(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(stream.array()?);
                self.make(Node::Int(value.into()))?;
            }
            b'I' => {
                let line = stream.line()?;
                let node = match line.as_str() {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    line => integer(line),
                };
                self.make(node)?;
            }
            b'L' => {
                let line = stream.line()?;
                self.make(integer(line.trim_end_matches('L')))?;
            }
            0x8a => {
                let length = stream.byte()?;
                let bytes = stream.take(length.into())?;
                self.make(long(&bytes))?;
            }
            0x8b => {
                let length = u32::from_le_bytes(stream.array()?);
                stream.skip(length.into())?;
                self.make(Node::Opaque)?;
            }
            b'F' => {
                stream.line()?;
                self.make(Node::Opaque)?;
            }
            b'G' => {
                stream.array::<8>()?;
                self.make(Node::Opaque)?;
            }

            b'U' | 0x8c => {
                let length = stream.byte()?;
                let node = stream.text(length.into())?;
                self.make(node)?;
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(stream.array()?);
                let node = stream.text(length.into())?;
                self.make(node)?;
            }
            0x8d => {
                let length = u64::from_le_bytes(stream.array()?);
                let node = stream.text(length)?;
                self.make(node)?;
            }
            b'V' => {
                let line = stream.line()?;
                self.make(Node::Text(line))?;
            }
            b'S' => {
                let line = stream.line()?;
                let text = line.trim_matches(['\'', '"']).to_owned();
                self.make(Node::Text(text))?;
            }
            b'C' => {
                let length = stream.byte()?;
                stream.skip(length.into())?;
                self.make(Node::Opaque)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(stream.array()?);
                stream.skip(length.into())?;
                self.make(Node::Opaque)?;
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(stream.array()?);
                stream.skip(length)?;
                self.make(Node::Opaque)?;
            }

            b')' | b']' | 0x8f => self.make(Node::Sequence(Vec::new()))?,
            b't' | b'l' | 0x91 => {
                let items = self.stack.pop_to_mark()?;
                self.make(Node::Sequence(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0..opcode - 0x84 {
                    items.push(self.stack.pop()?);
                }
                items.reverse();
                self.make(Node::Sequence(items))?;
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
            b'd' => {
                let items = self.stack.pop_to_mark()?;
                self.make(Node::Dict(pairs(&items)?))?;
            }
            b's' => {
                let value = self.stack.pop()?;
                let key = self.stack.pop()?;
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.stack.pop_to_mark()?;
                self.set(pairs(&items)?)?;
            }

            b'p' => {
                let line = stream.line()?;
                self.put(slot(&line)?)?;
            }
            b'q' => {
                let slot = stream.byte()?;
                self.put(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(stream.array()?);
                self.put(slot)?;
            }
            0x94 => {
                let slot = u32::try_from(self.memo.len()).map_err(|error| error.to_string())?;
                self.put(slot)?;
            }
            b'g' => {
                let line = stream.line()?;
                self.get(slot(&line)?)?;
            }
            b'h' => {
                let slot = stream.byte()?;
                self.get(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(stream.array()?);
                self.get(slot)?;
            }

            b'c' => {
                let (module, name) = (stream.line()?, stream.line()?);
                self.make(Node::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.stack.pop()?, self.stack.pop()?);
                let (Node::Text(module), Node::Text(name)) = (self.node(module), self.node(name))
                else {
                    return Err("a class whose name is not a text".to_owned());
                };
                let global = Node::Global(format!("{module}.{name}"));
                self.make(global)?;
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.stack.pop()?, self.stack.pop()?);
                self.call(callable, arguments)?;
            }
            0x92 => {
                let (_, arguments, class) =
                    (self.stack.pop()?, self.stack.pop()?, self.stack.pop()?);
                self.call(class, arguments)?;
            }
            b'o' => {
                self.stack.pop_to_mark()?;
                self.make(Node::Opaque)?;
            }
            b'i' => {
                stream.line()?;
                stream.line()?;
                self.stack.pop_to_mark()?;
                self.make(Node::Opaque)?;
            }
            // The state of an object: the tensors of state dicts do not lie there.
            b'b' => {
                self.stack.pop()?;
                self.stack.top()?;
            }

            b'Q' => {
                let id = self.stack.pop()?;
                self.persistent(id)?;
            }
            b'P' => return Err("a reference to a storage in text form".to_owned()),
            other => {
                return Err(format!(
                    "opcode {other:#04x}, which is none of a checkpoint's"
                ));
            }
        }
        Ok(None)
    }

    fn node(&self, id: Id) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::Opaque)
    }

    fn count(&mut self) -> Result<()> {
        self.pushes += 1;
        if self.pushes > MOST_PUSHES {
            return Err(format!("more than {MOST_PUSHES} references to values"));
        }
        Ok(())
    }

    fn push(&mut self, id: Id) -> Result<()> {
        self.count()?;
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() == MOST_NODES {
            return Err(format!("more than {MOST_NODES} values"));
        }
        let id = u32::try_from(self.nodes.len()).map_err(|error| error.to_string())?;
        self.nodes.push(node);
        self.push(id)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.stack.top()?;
        match self.nodes.get_mut(list as usize) {
            Some(Node::Sequence(list)) => list.extend(items),
            Some(Node::Opaque) => {}
            _ => return Err("values are added to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<()> {
        let dict = self.stack.top()?;
        match self.nodes.get_mut(dict as usize) {
            Some(Node::Dict(dict)) => dict.extend(items),
            // Of a class that is not known.
            Some(Node::Opaque) => {}
            _ => return Err("entries are set in what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn put(&mut self, slot: u32) -> Result<()> {
        let top = self.stack.top()?;
        if self.memo.len() >= MOST_NODES {
            return Err(format!("more than {MOST_NODES} values in the memo"));
        }
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<()> {
        match self.memo.get(&slot).copied() {
            Some(id) => self.push(id),
            None => Err(format!("memo {slot} is used and was never stored")),
        }
    }

    /// What a call of the few known functions gives; any other is not made and gives an opaque value.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<()> {
        let Node::Global(name) = self.node(callable) else {
            return self.make(Node::Opaque);
        };
        let Node::Sequence(arguments) = self.node(arguments) else {
            return self.make(Node::Opaque);
        };
        let node = match (name.as_str(), arguments.as_slice()) {
            ("collections.OrderedDict" | "builtins.dict", []) => Node::Dict(Vec::new()),
            ("collections.OrderedDict" | "builtins.dict", [items, ..]) => {
                let Node::Sequence(items) = self.node(*items) else {
                    return self.make(Node::Opaque);
                };
                let pair = |item: &Id| match self.node(*item) {
                    Node::Sequence(pair) => match pair.as_slice() {
                        [key, value] => Some((*key, *value)),
                        _ => None,
                    },
                    _ => None,
                };
                let entries: Vec<_> = items.iter().filter_map(pair).collect();
                self.pushes += entries.len();
                Node::Dict(entries)
            }
            ("collections.defaultdict", _) => Node::Dict(Vec::new()),
            ("torch.Size", [shape]) => return self.push(*shape),
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [data, ..],
            ) => return self.push(*data),
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                [storage, offset, shape, stride, ..],
            ) => Node::Tensor(self.view([*storage, *offset, *shape, *stride], None)?),
            (
                "torch._utils._rebuild_tensor_v3",
                [storage, offset, shape, stride, _, _, dtype, ..],
            ) => {
                let Node::Global(dtype) = self.node(*dtype) else {
                    return Err("a tensor without a type".to_owned());
                };
                match Dtype::of(dtype) {
                    Some(dtype) => {
                        let parts = [*storage, *offset, *shape, *stride];
                        Node::Tensor(self.view(parts, Some(dtype))?)
                    }
                    // Types that no network here has.
                    None => Node::Opaque,
                }
            }
            _ => Node::Opaque,
        };
        self.make(node)
    }

    fn view(&self, parts: [Id; 4], dtype: Option<Dtype>) -> Result<View> {
        let [storage, offset, shape, stride] = parts;
        let Node::Storage(storage) = self.node(storage) else {
            return Err("a tensor without a storage".to_owned());
        };
        let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
        if shape.len() != stride.len() {
            return Err(format!(
                "a tensor of shape {shape:?} and strides {stride:?}"
            ));
        }
        let Some(dtype) = dtype.or(storage.dtype) else {
            return Err("a tensor without a type".to_owned());
        };
        if storage.dtype.is_some_and(|stored| stored != dtype) {
            return Err("a tensor of another type than its storage".to_owned());
        }
        let offset = self.size(offset)?;
        let view = View {
            storage: storage.clone(),
            dtype,
            offset: offset
                .checked_add(storage.start)
                .ok_or("a tensor that starts beyond any storage")?,
            shape,
            stride,
        };
        let unit = match storage.dtype {
            Some(_) => 1,
            None => dtype.size(),
        };
        match view.end() {
            Some(end) if end <= storage.length / unit => Ok(view),
            _ => Err(format!(
                "a tensor of shape {:?} and strides {:?} from {} on, in a storage of {}",
                view.shape,
                view.stride,
                view.offset,
                storage.length / unit
            )),
        }
    }

    fn size(&self, id: Id) -> Result<u64> {
        match self.node(id) {
            Node::Int(value) => {
                u64::try_from(*value).map_err(|_| format!("a size or an offset of {value}"))
            }
            other => Err(format!("a size or an offset that is no number: {other:?}")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>> {
        match self.node(id) {
            Node::Sequence(items) if items.len() <= MOST_AXES => {
                items.iter().map(|item| self.size(*item)).collect()
            }
            _ => Err(format!(
                "a shape that is none, or of more than {MOST_AXES} axes"
            )),
        }
    }

    /// `('storage', class, key, device, numbers)`, in old files with a view of another block behind it.
    fn persistent(&mut self, id: Id) -> Result<()> {
        let wrong = || "a reference to a storage that is none".to_owned();
        let Node::Sequence(parts) = self.node(id) else {
            return Err(wrong());
        };
        let [tag, class, key, _, length, rest @ ..] = parts.as_slice() else {
            return Err(wrong());
        };
        let (Node::Text(tag), Node::Global(class)) = (self.node(*tag), self.node(*class)) else {
            return Err(wrong());
        };
        if tag != "storage" {
            return Err(wrong());
        }
        let text = |id: &Id| match self.node(*id) {
            Node::Text(key) => Ok(key.clone()),
            Node::Int(key) => Ok(key.to_string()),
            _ => Err(wrong()),
        };
        let dtype = match class.as_str() {
            "torch.storage.UntypedStorage" | "torch.UntypedStorage" => None,
            class => match Dtype::of(class) {
                Some(dtype) => Some(dtype),
                // Complex and quantised numbers: no network here has them.
                None => return Err(format!("a storage of type `{class}`")),
            },
        };
        let mut storage = Storage {
            key: text(key)?,
            dtype,
            length: self.size(*length)?,
            start: 0,
        };
        if let [view, ..] = rest
            && let Node::Sequence(view) = self.node(*view)
        {
            let [_, start, _] = view.as_slice() else {
                return Err(wrong());
            };
            storage.start = self.size(*start)?;
        }
        self.make(Node::Storage(storage))
    }
}

fn integer(text: &str) -> Node {
    text.parse().map_or(Node::Opaque, Node::Int)
}

/// A little-endian number in two's complement; opaque where it has more than 64 bits.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Opaque;
    }
    let negative = bytes.last().is_some_and(|last| *last >= 0x80);
    let mut value = [if negative { 0xff } else { 0 }; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(value))
}

fn slot(line: &str) -> Result<u32> {
    line.parse()
        .map_err(|_| format!("memo `{line}`, which is no number"))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        return Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect());
    }
    Err("a dictionary with a key and no value".to_owned())
}
