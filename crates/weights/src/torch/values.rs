//! What the pickle of a PyTorch file describes: tensors, and the storages that they lie in.
//!
//! Of a pickle ([`clasp_data::pickle`]) plain values and PyTorch's tensors are built; calls of
//! anything else say nothing.

use std::io::Read;

use clasp_data::pickle::machine::{self, PickleNodes};
use clasp_data::pickle::{Id, Library, Made, Result, StreamInput};

/// The most axes of a tensor.
const MOST_AXES: usize = 16;
/// The deepest nesting of what holds tensors; a cycle is deeper than any.
const DEEPEST: usize = 32;
/// The most tensors, and the most steps of the search for them.
const MOST_TENSORS: usize = 1 << 18;
const MOST_STEPS: usize = 1 << 22;
/// The most bytes of the names that are built on the way: a text of the pickle may be part of many.
const MOST_NAME_BYTES: usize = 64 << 20;
/// The longest key of a storage, a number in digits; each storage has a copy.
const LONGEST_KEY: usize = 256;

/// A value.
pub type Node = clasp_data::pickle::Node<'static, TorchObject>;

/// What only pickles of PyTorch have.
#[derive(Debug, Clone, PartialEq)]
pub enum TorchObject {
    /// A block of numbers.
    Storage(Storage),
    /// A tensor.
    Tensor(TensorView),
}

/// The type of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TorchDtype {
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

impl TorchDtype {
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
    pub dtype: Option<TorchDtype>,
    /// Numbers in it (bytes, without a type).
    pub length: u64,
    /// Where a view into the block starts, in numbers; only old files have such.
    pub start: u64,
}

/// A tensor's place in a storage.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorView {
    /// The block.
    pub storage: Storage,
    /// Type of its numbers.
    pub dtype: TorchDtype,
    /// The first number, from the block's beginning.
    pub offset: u64,
    /// Size of each axis.
    pub shape: Vec<u64>,
    /// Numbers from one position of each axis to the next.
    pub stride: Vec<u64>,
}

impl TensorView {
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

/// The pickle of a file.
pub struct TorchPickle(PickleNodes<'static, TorchObject>);

impl TorchPickle {
    /// Reads one pickle and leaves the stream behind its end.
    ///
    /// # Errors
    /// It breaks off, does what no pickle of a checkpoint does, or is beyond the limits.
    pub fn read(stream: &mut impl Read) -> Result<Self> {
        machine::run(&mut StreamInput::new(stream), &mut Torch).map(Self)
    }

    /// A value.
    pub fn node(&self, id: Id) -> &Node {
        &self.0.nodes[id]
    }

    /// The outermost value.
    pub fn root(&self) -> &Node {
        self.node(self.0.root)
    }

    /// The value of a key of the outermost dictionary.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Node::Dict(entries) = self.root() else {
            return None;
        };
        { entries.iter().rev() }
            .find(|(name, _)| self.node(*name).text() == Some(key))
            .map(|(_, value)| self.node(*value))
    }

    /// All storages that are referred to, also by what is not a tensor here.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.0.nodes.iter().filter_map(|node| match node {
            Node::Object(TorchObject::Storage(storage)) => Some(storage),
            _ => None,
        })
    }

    /// All tensors by their path through dictionaries and lists, joined by dots.
    pub fn tensors(&self) -> Result<Vec<(String, &TensorView)>> {
        let mut search = Search {
            steps: 0,
            name_bytes: 0,
            found: Vec::new(),
        };
        self.search(self.0.root, &mut String::new(), 0, &mut search)?;
        Ok(search.found)
    }

    fn search<'a>(
        &'a self,
        id: Id,
        path: &mut String,
        depth: usize,
        search: &mut Search<'a>,
    ) -> Result<()> {
        search.steps += 1;
        if depth > DEEPEST || search.steps > MOST_STEPS {
            return Err(format!(
                "values inside one another more than {DEEPEST} levels deep, or in a circle, or more than {MOST_STEPS} of them"
            ));
        }
        let mut inside = |name: &str, value: Id, path: &mut String| {
            search.count_name(name.len())?;
            let length = path.len();
            if length > 0 {
                path.push('.');
            }
            path.push_str(name);
            let result = self.search(value, path, depth + 1, search);
            path.truncate(length);
            result
        };
        match self.node(id) {
            Node::Dict(entries) => {
                for (name, value) in entries {
                    if let Some(name) = key_of(self.node(*name)) {
                        inside(&name, *value, path)?;
                    }
                }
            }
            Node::List(items) => {
                for (index, value) in items.iter().enumerate() {
                    inside(&index.to_string(), *value, path)?;
                }
            }
            Node::Object(TorchObject::Tensor(view)) => {
                if search.found.len() == MOST_TENSORS {
                    return Err(format!("more than {MOST_TENSORS} tensors"));
                }
                search.count_name(path.len())?;
                search.found.push((path.clone(), view));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The search for tensors, and what bounds it.
struct Search<'a> {
    steps: usize,
    name_bytes: usize,
    found: Vec<(String, &'a TensorView)>,
}

impl Search<'_> {
    /// Counts a name, or a part of one, before it is copied.
    fn count_name(&mut self, bytes: usize) -> Result<()> {
        self.name_bytes += bytes;
        match self.name_bytes <= MOST_NAME_BYTES {
            true => Ok(()),
            false => Err(format!(
                "names of tensors of more than {} MiB together",
                MOST_NAME_BYTES >> 20
            )),
        }
    }
}

/// A key of a dictionary or of a storage: a text, or a number in digits.
fn key_of(node: &Node) -> Option<String> {
    match node {
        Node::Int(key) => Some(key.to_string()),
        node => node.text().map(str::to_owned),
    }
}

/// The part of PyTorch that is known.
struct Torch;

impl Library<'static> for Torch {
    type Object = TorchObject;

    /// The numbers of tensors lie outside the pickle.
    const KEEPS_BLOCKS: bool = false;

    fn call(
        &mut self,
        function: &str,
        arguments: &[Id],
        nodes: &[Node],
    ) -> Result<Made<'static, TorchObject>> {
        let tensor = |parts, dtype| view(nodes, parts, dtype).map(TorchObject::Tensor);
        let node = match (function, arguments) {
            ("collections.OrderedDict" | "builtins.dict", []) => Node::Dict(Vec::new()),
            ("collections.OrderedDict" | "builtins.dict", [items, ..]) => {
                let Node::List(items) = &nodes[*items] else {
                    return Ok(Made::New(Node::Other));
                };
                let pair = |item: &Id| match &nodes[*item] {
                    Node::List(pair) => match pair.as_slice() {
                        [key, value] => Some((*key, *value)),
                        _ => None,
                    },
                    _ => None,
                };
                Node::Dict(items.iter().filter_map(pair).collect())
            }
            ("collections.defaultdict", _) => Node::Dict(Vec::new()),
            ("torch.Size", [shape]) => return Ok(Made::Same(*shape)),
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [data, ..],
            ) => return Ok(Made::Same(*data)),
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                [storage, offset, shape, stride, ..],
            ) => Node::Object(tensor([*storage, *offset, *shape, *stride], None)?),
            (
                "torch._utils._rebuild_tensor_v3",
                [storage, offset, shape, stride, _, _, dtype, ..],
            ) => {
                let Node::Global(dtype) = &nodes[*dtype] else {
                    return Err("a tensor without a type".to_owned());
                };
                match TorchDtype::of(dtype) {
                    Some(dtype) => {
                        let parts = [*storage, *offset, *shape, *stride];
                        Node::Object(tensor(parts, Some(dtype))?)
                    }
                    // Types that no network here has.
                    None => Node::Other,
                }
            }
            _ => Node::Other,
        };
        Ok(Made::New(node))
    }

    /// `('storage', class, key, device, numbers)`, in old files with a view of another block behind
    /// it.
    fn outside(&self, reference: Id, nodes: &[Node]) -> Result<Node> {
        let wrong = || "a reference to a storage that is none".to_owned();
        let Node::List(parts) = &nodes[reference] else {
            return Err(wrong());
        };
        let [tag, class, key, _, length, rest @ ..] = parts.as_slice() else {
            return Err(wrong());
        };
        let (Some(tag), Node::Global(class)) = (nodes[*tag].text(), &nodes[*class]) else {
            return Err(wrong());
        };
        if tag != "storage" {
            return Err(wrong());
        }
        let dtype = match class.as_str() {
            "torch.storage.UntypedStorage" | "torch.UntypedStorage" => None,
            class => match TorchDtype::of(class) {
                Some(dtype) => Some(dtype),
                // Complex and quantized numbers: no network here has them.
                None => return Err(format!("a storage of type `{class}`")),
            },
        };
        let mut storage = Storage {
            key: { key_of(&nodes[*key]) }
                .filter(|key| key.len() <= LONGEST_KEY)
                .ok_or_else(wrong)?,
            dtype,
            length: size(nodes, *length)?,
            start: 0,
        };
        if let [view, ..] = rest
            && let Node::List(view) = &nodes[*view]
        {
            let [_, start, _] = view.as_slice() else {
                return Err(wrong());
            };
            storage.start = size(nodes, *start)?;
        }
        Ok(Node::Object(TorchObject::Storage(storage)))
    }
}

fn view(nodes: &[Node], parts: [Id; 4], dtype: Option<TorchDtype>) -> Result<TensorView> {
    let [storage, offset, shape, stride] = parts;
    let Node::Object(TorchObject::Storage(storage)) = &nodes[storage] else {
        return Err("a tensor without a storage".to_owned());
    };
    let (shape, stride) = (sizes(nodes, shape)?, sizes(nodes, stride)?);
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
    let offset = size(nodes, offset)?;
    let view = TensorView {
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

fn size(nodes: &[Node], id: Id) -> Result<u64> {
    match &nodes[id] {
        Node::Int(value) => {
            u64::try_from(*value).map_err(|_| format!("a size or an offset of {value}"))
        }
        _ => Err("a size or an offset that is no integer".to_owned()),
    }
}

fn sizes(nodes: &[Node], id: Id) -> Result<Vec<u64>> {
    match &nodes[id] {
        Node::List(items) if items.len() <= MOST_AXES => {
            items.iter().map(|item| size(nodes, *item)).collect()
        }
        _ => Err(format!(
            "a shape that is none, or of more than {MOST_AXES} axes"
        )),
    }
}
