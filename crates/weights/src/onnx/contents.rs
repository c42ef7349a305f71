//! What an ONNX file says of itself.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use fs_err as fs;
use prost::Message;
use serde::Serialize;

use super::error::OnnxError;
use super::proto::{DimensionSize, ModelMessage, ValueMessage};

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contents {
    /// The program that wrote it, and its version.
    pub written_by: String,
    /// Version of ONNX's own operators.
    pub opset: Option<i64>,
    /// Operations.
    pub operations: usize,
    /// What it takes in, besides constants.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
    /// Text by key.
    pub metadata: BTreeMap<String, String>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: String,
    /// Sizes: numbers, or names.
    pub shape: Vec<String>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} [{}]",
            self.name,
            self.element,
            self.shape.join(", ")
        )
    }
}

impl Contents {
    /// Reads a file, weights beside it apart.
    ///
    /// # Errors
    /// It cannot be read, or is no ONNX.
    pub fn read(path: &Path) -> Result<Self, OnnxError> {
        let none = |cause: String| OnnxError::Format {
            file: path.display().to_string(),
            cause,
        };
        let bytes = fs::read(path)?;
        let model =
            ModelMessage::decode(bytes.as_slice()).map_err(|error| none(error.to_string()))?;
        let graph = model
            .graph
            .ok_or_else(|| none("there is no graph".to_owned()))?;
        if graph.output.is_empty() {
            return Err(none("its graph has no output".to_owned()));
        }
        let constants: HashSet<&str> = graph.initializer.iter().map(|c| c.name.as_str()).collect();
        let opset = { model.opset_import.iter() }
            .find(|set| matches!(set.domain.as_str(), "" | "ai.onnx"))
            .map(|set| set.version);
        let entries = model.metadata_props.into_iter();
        Ok(Self {
            written_by: format!("{} {}", model.producer_name, model.producer_version),
            opset,
            operations: graph.node.len(),
            inputs: { graph.input.iter() }
                .filter(|value| !constants.contains(value.name.as_str()))
                .map(port)
                .collect(),
            outputs: graph.output.iter().map(port).collect(),
            metadata: entries.map(|entry| (entry.key, entry.value)).collect(),
        })
    }
}

fn port(value: &ValueMessage) -> Port {
    let tensor = { value.r#type.as_ref() }.and_then(|kind| kind.tensor_type.as_ref());
    let element = match tensor.map_or(0, |tensor| tensor.elem_type) {
        1 => "f32".to_owned(),
        2 => "u8".to_owned(),
        3 => "i8".to_owned(),
        6 => "i32".to_owned(),
        7 => "i64".to_owned(),
        9 => "bool".to_owned(),
        10 => "f16".to_owned(),
        11 => "f64".to_owned(),
        16 => "bf16".to_owned(),
        other => format!("type {other}"),
    };
    let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
    Port {
        name: value.name.clone(),
        element,
        shape: { shape.iter() }
            .flat_map(|shape| &shape.dim)
            .map(|dimension| match &dimension.size {
                Some(DimensionSize::Value(size)) => size.to_string(),
                Some(DimensionSize::Name(name)) => name.clone(),
                None => "?".to_owned(),
            })
            .collect(),
    }
}
