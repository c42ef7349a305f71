//! A network's operations, recorded by running it once on Burn's capture device.
//!
//! A recording knows concrete sizes only. A network of any batch is recorded twice, with two
//! batches: a size that differs is a multiple of the batch, all else must agree.

use std::collections::{BTreeMap, BTreeSet};

use burn::backend::Capture;
use burn::backend::Slice;
use burn::backend::ir::{BaseOperationIr, OperationIr, TensorId, TensorIr};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::named::NamePath;

use super::error::OnnxError;

/// The batches of the two recordings of a network of any batch. Nothing of that size is ever
/// computed or held. They are large because Burn merges the batch into the rows of a product where
/// that makes a better shape, which it never is with so many.
const BATCHES: [usize; 2] = [1 << 24, (1 << 24) + 1];

/// A size of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Always the same.
    Fixed(usize),
    /// That many times the batch.
    Batch(usize),
}

/// A tensor that a network returns: of as many axes as a variant says.
#[derive(Debug, Clone)]
pub enum Output {
    /// [a, b].
    Two(Tensor<2>),
    /// [a, b, c].
    Three(Tensor<3>),
    /// [a, b, c, d].
    Four(Tensor<4>),
}

impl From<Tensor<2>> for Output {
    fn from(tensor: Tensor<2>) -> Self {
        Self::Two(tensor)
    }
}

impl From<Tensor<3>> for Output {
    fn from(tensor: Tensor<3>) -> Self {
        Self::Three(tensor)
    }
}

impl From<Tensor<4>> for Output {
    fn from(tensor: Tensor<4>) -> Self {
        Self::Four(tensor)
    }
}

impl Output {
    /// The values of a tensor that was computed.
    pub fn into_data(self) -> TensorData {
        match self {
            Self::Two(tensor) => tensor.into_data(),
            Self::Three(tensor) => tensor.into_data(),
            Self::Four(tensor) => tensor.into_data(),
        }
    }

    fn id(&self) -> Option<TensorId> {
        match self {
            Self::Two(tensor) => id(tensor),
            Self::Three(tensor) => id(tensor),
            Self::Four(tensor) => id(tensor),
        }
    }
}

/// The identity of a recorded tensor.
fn id<const D: usize>(tensor: &Tensor<D>) -> Option<TensorId> {
    let primitive = tensor.clone().try_into_primitive::<Capture>().ok()?;
    Some(primitive.id())
}

/// A network's operations with sizes that may depend on the batch.
pub(super) struct Graph {
    /// In the order of execution.
    pub operations: Vec<OperationIr>,
    /// Weights and other constants.
    pub values: BTreeMap<TensorId, TensorData>,
    /// Names of weights.
    pub names: BTreeMap<TensorId, String>,
    /// Images and prompt weights.
    pub inputs: [TensorId; 2],
    /// Name and tensor of each output.
    pub outputs: Vec<(String, TensorId)>,
    sizes: BTreeMap<TensorId, Vec<Size>>,
}

impl Graph {
    /// The sizes of a tensor.
    pub fn sizes(&self, tensor: &TensorIr) -> Vec<Size> {
        self.sizes
            .get(&tensor.id)
            .cloned()
            .unwrap_or_else(|| tensor.shape.iter().copied().map(Size::Fixed).collect())
    }

    /// The sizes of an output.
    pub fn output_sizes(&self, id: TensorId) -> Vec<Size> {
        let tensors = self.operations.iter().flat_map(OperationIr::nodes);
        tensors
            .filter(|tensor| tensor.id == id)
            .map(|tensor| self.sizes(tensor))
            .next()
            .unwrap_or_default()
    }
}

/// Records `network` on images [batch, 3, height, width] and prompt weights [1, prompts]; without a
/// batch for any.
pub(super) fn trace<M: Module>(
    network: &M,
    forward: &dyn Fn(&M, Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
    batch: Option<usize>,
    [height, width]: [usize; 2],
    prompts: usize,
) -> Result<Graph, OnnxError> {
    let record = |batch: usize| {
        let device = Device::capture();
        let mut boundary = None;
        let captured = device.capture_scope(|scope| {
            let network = network.clone().to_device(&device);
            // As operations, which are left out, and not as data, which would be as large as the
            // batch.
            let images = Tensor::<4>::zeros([batch, 3, height, width], &device);
            let prompt_weights = Tensor::<2>::zeros([1, prompts], &device);
            let names = parameter_names(&network);
            let inputs = [id(&images), id(&prompt_weights)];
            let outputs = forward(&network, images, prompt_weights);
            let ids: Vec<Option<TensorId>> =
                outputs.iter().map(|(_, output)| output.id()).collect();
            // One tensor may be two outputs, as the last map of a pyramid is the map.
            let unique: BTreeSet<TensorId> = ids.iter().flatten().copied().collect();
            let completed = scope.complete([], unique);
            let named = outputs
                .iter()
                .map(|(name, _)| name.clone())
                .zip(ids)
                .collect();
            boundary = Some((names, inputs, named, outputs));
            completed
        });
        let captured = captured.map_err(|error| OnnxError::Capture(format!("{error:?}")))?;
        let lost = || OnnxError::Capture("a tensor is not on the recording device".to_owned());
        let (names, inputs, named, _alive) = boundary.ok_or_else(lost)?;
        let named: Vec<(String, Option<TensorId>)> = named;
        let [Some(images), Some(prompt_weights)] = inputs else {
            return Err(lost());
        };
        let outputs = named
            .into_iter()
            .map(|(name, id)| Some((name, id?)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(lost)?;
        let mut operations = captured.graph.operations;
        operations.retain(|operation| {
            let makes = |id: TensorId| operation.outputs().any(|output| output.id == id);
            !makes(images) && !makes(prompt_weights)
        });
        Ok(Graph {
            operations,
            values: captured.values,
            names,
            inputs: [images, prompt_weights],
            outputs,
            sizes: BTreeMap::new(),
        })
    };
    match batch {
        Some(batch) => record(batch),
        None => {
            let [first, second] = [record(BATCHES[0])?, record(BATCHES[1])?];
            any_batch(first, &second)
        }
    }
}

/// The first recording with sizes that follow the batch, as the second shows.
fn any_batch(mut first: Graph, second: &Graph) -> Result<Graph, OnnxError> {
    let fixed = |what: String| OnnxError::Batch(what);
    if first.operations.len() != second.operations.len() {
        return Err(fixed("the number of operations".to_owned()));
    }
    let mut sizes = BTreeMap::new();
    let mut twins = BTreeMap::new();
    for (one, other) in first.operations.iter().zip(&second.operations) {
        if settings(one) != settings(other) {
            return Err(fixed(format!("a setting of {}", kind(one))));
        }
        let tensors = |operation: &OperationIr| -> Vec<TensorIr> {
            let (inputs, outputs) = (operation.inputs(), operation.outputs());
            inputs.chain(outputs).cloned().collect()
        };
        let (one_tensors, other_tensors) = (tensors(one), tensors(other));
        if one_tensors.len() != other_tensors.len() {
            return Err(fixed(format!("the tensors of {}", kind(one))));
        }
        for (a, b) in one_tensors.iter().zip(&other_tensors) {
            if *twins.entry(a.id).or_insert(b.id) != b.id {
                return Err(fixed(format!("which tensors {} uses", kind(one))));
            }
            let both = a.shape.iter().zip(b.shape.iter());
            let shape: Option<Vec<Size>> = both.map(|(a, b)| size(*a, *b)).collect();
            let shape = shape.ok_or_else(|| fixed(format!("a shape of {}", kind(one))))?;
            sizes.insert(a.id, shape);
        }
    }
    for (id, twin) in &twins {
        if first.values.get(id) != second.values.get(twin) {
            return Err(fixed("a constant".to_owned()));
        }
    }
    first.sizes = sizes;
    Ok(first)
}

fn size(one: usize, other: usize) -> Option<Size> {
    if one == other {
        return Some(Size::Fixed(one));
    }
    let times = one / BATCHES[0];
    (times * BATCHES[0] == one && times * BATCHES[1] == other).then_some(Size::Batch(times))
}

/// The kind of an operation, as it is named in messages.
pub(super) fn kind(operation: &OperationIr) -> String {
    let text = format!("{operation:?}");
    let names: Vec<&str> = text
        .split(['(', '{', ' ', ','])
        .filter(|word| !word.is_empty())
        .take(3)
        .filter(|word| word.chars().all(char::is_alphanumeric) && !word.ends_with("Ir"))
        .collect();
    names.join(" ")
}

/// What an operation says beside its tensors' identities, states and shapes.
fn settings(operation: &OperationIr) -> serde_json::Value {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                for key in ["id", "shape", "status"] {
                    fields.remove(key);
                }
                fields.values_mut().for_each(strip);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut operation = operation.clone();
    // A range that is all of an axis may be as long as the batch.
    if let OperationIr::BaseFloat(base) | OperationIr::BaseInt(base) | OperationIr::BaseBool(base) =
        &mut operation
        && let BaseOperationIr::Slice(slice) = base
    {
        for (range, size) in slice.ranges.iter_mut().zip(slice.tensor.shape.iter()) {
            if is_all(range, *size) {
                *range = Slice::full();
            }
        }
    }
    let mut value = serde_json::to_value(operation).unwrap_or_default();
    strip(&mut value);
    value
}

/// Whether a range is all of an axis.
pub(super) fn is_all(range: &Slice, size: usize) -> bool {
    let end = range.end.unwrap_or(size as isize);
    range.start == 0 && end == size as isize && range.step == 1
}

/// The names of a network's weights.
fn parameter_names<M: Module>(network: &M) -> BTreeMap<TensorId, String> {
    #[derive(Default)]
    struct NameVisitor {
        path: NamePath,
        names: BTreeMap<TensorId, String>,
    }
    impl ModuleVisitor for NameVisitor {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(id) = id(&param.val()) {
                self.names.insert(id, self.path.name());
            }
        }
    }
    let mut names = NameVisitor::default();
    network.visit(&mut names);
    names.names
}
