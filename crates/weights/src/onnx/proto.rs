//! The messages of an ONNX file that are written here, with the field numbers of `onnx.proto`, and
//! their pieces.

use std::fmt;

use burn::tensor::{DType, TensorData, f16};
use prost::{Message, Oneof};

use super::error::OnnxError;
use super::trace::Size;

/// Name of the axis whose size is the batch.
const BATCH: &str = "batch";

/// A whole file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelMessage {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphMessage>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<EntryMessage>,
}

/// Which version of the operators is meant.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Text by key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryMessage {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes, constants, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphMessage {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeMessage>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Constant>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueMessage>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueMessage>,
}

/// An operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeMessage {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeMessage>,
}

/// A setting of an operation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeMessage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub s: Vec<u8>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// 1 float, 2 int, 3 string, 7 ints.
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// A tensor in the file or, when it is external, in the file beside it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Constant {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    /// `location`, `offset` and `length`.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<EntryMessage>,
    /// 0 here, 1 external.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// Name, type and shape of an input or output.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueMessage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// The type of a tensor.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// Elements and shape.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

/// A shape.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// A size.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Dimension {
    #[prost(oneof = "DimensionSize", tags = "1, 2")]
    pub size: Option<DimensionSize>,
}

/// A number, or a name that all sizes of that name share.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum DimensionSize {
    #[prost(int64, tag = "1")]
    Value(i64),
    #[prost(string, tag = "2")]
    Name(String),
}

/// What the elements of a tensor are, by ONNX's numbers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum ElementType {
    F32 = 1,
    U8 = 2,
    I32 = 6,
    I64 = 7,
    Bool = 9,
    F16 = 10,
    F64 = 11,
}

pub(super) fn int(name: &str, value: i64) -> AttributeMessage {
    AttributeMessage {
        name: name.to_owned(),
        r#type: 2,
        i: value,
        ..AttributeMessage::default()
    }
}

pub(super) fn float(name: &str, value: f64) -> AttributeMessage {
    AttributeMessage {
        name: name.to_owned(),
        r#type: 1,
        f: value as f32,
        ..AttributeMessage::default()
    }
}

pub(super) fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> AttributeMessage {
    AttributeMessage {
        name: name.to_owned(),
        r#type: 7,
        ints: values.into_iter().map(|value| value as i64).collect(),
        ..AttributeMessage::default()
    }
}

pub(super) fn text(name: &str, value: &str) -> AttributeMessage {
    AttributeMessage {
        name: name.to_owned(),
        r#type: 3,
        s: value.as_bytes().to_vec(),
        ..AttributeMessage::default()
    }
}

pub(super) fn node(
    operator: &str,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<AttributeMessage>,
) -> NodeMessage {
    NodeMessage {
        op_type: operator.to_owned(),
        name: outputs.first().cloned().unwrap_or_default(),
        input: inputs,
        output: outputs,
        attribute: attributes,
    }
}

/// The element type of a tensor; with `fp16` floats have 16 bits.
pub(super) fn element(dtype: DType, fp16: bool) -> Result<ElementType, OnnxError> {
    Ok(match dtype {
        DType::F32 | DType::Flex32 if fp16 => ElementType::F16,
        DType::F32 | DType::Flex32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::F64 => ElementType::F64,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::U8 => ElementType::U8,
        DType::Bool(_) => ElementType::Bool,
        other => return Err(OnnxError::Operation(format!("a tensor of {other:?}"))),
    })
}

/// A constant.
pub(super) fn constant(name: &str, data: &TensorData, fp16: bool) -> Result<Constant, OnnxError> {
    let element = element(data.dtype(), fp16)?;
    let raw_data = match element {
        ElementType::F16 => {
            let mut bytes = Vec::with_capacity(data.num_elements() * 2);
            for value in data.iter::<f32>() {
                let short = f16::from_f32(value);
                if value.is_finite() && !short.is_finite() {
                    return Err(OnnxError::Fp16(format!("{value} in `{name}`")));
                }
                bytes.extend(short.to_le_bytes());
            }
            bytes
        }
        ElementType::F32 => data.iter::<f32>().flat_map(f32::to_le_bytes).collect(),
        ElementType::F64 => data.iter::<f64>().flat_map(f64::to_le_bytes).collect(),
        ElementType::I64 => data.iter::<i64>().flat_map(i64::to_le_bytes).collect(),
        ElementType::I32 => data.iter::<i32>().flat_map(i32::to_le_bytes).collect(),
        ElementType::Bool => data.iter::<bool>().map(u8::from).collect(),
        ElementType::U8 => data.iter::<u8>().collect(),
    };
    Ok(Constant {
        name: name.to_owned(),
        dims: data.shape().iter().map(|size| *size as i64).collect(),
        data_type: element as i32,
        raw_data,
        ..Constant::default()
    })
}

/// An input or output of a graph.
pub(super) fn value(name: &str, element: ElementType, sizes: &[Size]) -> ValueMessage {
    let dim = sizes.iter().map(|size| Dimension {
        size: Some(match *size {
            Size::Fixed(size) => DimensionSize::Value(size as i64),
            Size::Batch(1) => DimensionSize::Name(BATCH.to_owned()),
            Size::Batch(times) => DimensionSize::Name(format!("{times}*{BATCH}")),
        }),
    });
    let tensor = TensorType {
        elem_type: element as i32,
        shape: Some(Shape { dim: dim.collect() }),
    };
    ValueMessage {
        name: name.to_owned(),
        r#type: Some(Type {
            tensor_type: Some(tensor),
        }),
    }
}

/// Text by key.
pub(super) fn entry(key: &str, value: impl ToString) -> EntryMessage {
    EntryMessage {
        key: key.to_owned(),
        value: value.to_string(),
    }
}

impl fmt::Display for ValueMessage {
    /// `images: f32 [batch, 3, 256, 128]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensor = self
            .r#type
            .as_ref()
            .and_then(|kind| kind.tensor_type.as_ref());
        let (element, shape) = tensor.map_or((0, None), |tensor| {
            (tensor.elem_type, tensor.shape.as_ref())
        });
        let element = if element == ElementType::U8 as i32 {
            "u8"
        } else {
            "f32"
        };
        let sizes = shape.into_iter().flat_map(|shape| &shape.dim);
        let sizes: Vec<String> = sizes
            .map(|dimension| match &dimension.size {
                Some(DimensionSize::Value(size)) => size.to_string(),
                Some(DimensionSize::Name(name)) => name.clone(),
                None => "?".to_owned(),
            })
            .collect();
        write!(f, "{}: {element} [{}]", self.name, sizes.join(", "))
    }
}
