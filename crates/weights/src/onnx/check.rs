//! Runs an ONNX file with rten, an engine that shares no code with Burn.

use std::path::Path;

use rten::{Model, Value, ValueOrView, ValueView};
use rten_tensor::prelude::*;

use super::error::OnnxError;

/// Values of a shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OutputValues {
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Row by row.
    pub data: Vec<f32>,
}

/// What a graph is run on.
pub(super) enum CheckImages {
    /// 0 to 255, [batch, height, width, 3].
    Bytes(Vec<u8>, [usize; 4]),
    /// Normalized, [batch, 3, height, width].
    Floats(Vec<f32>, [usize; 4]),
}

/// A loaded file.
pub(super) struct Engine {
    model: Model,
}

impl Engine {
    /// Loads a file of that name, `.onnx`.
    pub fn load(path: &Path) -> Result<Self, OnnxError> {
        let model = Model::load_file(path)
            .map_err(|error| OnnxError::Engine(format!("cannot load it: {error}")))?;
        Ok(Self { model })
    }

    /// The outputs of that name, in that order.
    pub fn run(
        &self,
        images: &CheckImages,
        prompt_weights: Option<&OutputValues>,
        outputs: &[String],
    ) -> Result<Vec<OutputValues>, OnnxError> {
        let failed = |error: String| OnnxError::Engine(error);
        let node = |name: &str| {
            let found = self.model.node_id(name);
            found.map_err(|error| failed(format!("no `{name}` in it: {error}")))
        };
        let value = |shape: &[usize], data: Vec<f32>| {
            Value::from_shape(shape, data).map_err(|error| failed(format!("{error:?}")))
        };
        let images: Value = match images {
            CheckImages::Bytes(data, shape) => Value::from_shape(shape.as_slice(), data.clone())
                .map_err(|error| failed(format!("{error:?}")))?,
            CheckImages::Floats(data, shape) => value(shape, data.clone())?,
        };
        let mut inputs: Vec<(_, ValueOrView)> = vec![(node("images")?, images.into())];
        if let Some(prompt_weights) = prompt_weights {
            let prompt_weights = value(&prompt_weights.shape, prompt_weights.data.clone())?;
            inputs.push((node("prompt_weights")?, prompt_weights.into()));
        }
        let nodes = outputs.iter().map(|name| node(name));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let results = self.model.run(inputs, &nodes, None);
        let results = results.map_err(|error| failed(format!("cannot run it: {error}")))?;
        results
            .iter()
            .zip(outputs)
            .map(|(result, name)| match result.as_view() {
                ValueView::FloatTensor(tensor) => Ok(OutputValues {
                    shape: tensor.shape().to_vec(),
                    data: tensor.iter().copied().collect(),
                }),
                other => Err(failed(format!("output `{name}` is {:?}", other.dtype()))),
            })
            .collect()
    }
}
