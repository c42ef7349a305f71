//! Burn's operations as ONNX's (opset 17): one row an operation, whatever network it comes from.

use std::collections::{BTreeMap, BTreeSet};

use burn::backend::ir::{
    ActivationOperationIr, AttentionOpIr, BaseOperationIr, BoolOperationIr, FloatOperationIr,
    IntOperationIr, InterpolateModeIr, InterpolateOpIr, ModuleOperationIr, NumericOperationIr,
    OperationIr, PadModeIr, ScalarIr, SliceOpIr, TensorId, TensorIr,
};
use burn::tensor::{DType, TensorData};

use super::error::OnnxError;
use super::proto::{self, AttributeMessage, Constant, NodeMessage, float, int, ints, text};
use super::trace::{Graph, Size, is_all, kind};

/// Nodes and constants of a graph.
pub(super) struct Lowered {
    /// In the order of execution.
    pub nodes: Vec<NodeMessage>,
    /// Weights and other constants.
    pub constants: Vec<Constant>,
}

/// Lowers `graph`, whose inputs are called `inputs`; with `fp16` all floats have 16 bits.
pub(super) fn lower(graph: &Graph, inputs: [&str; 2], fp16: bool) -> Result<Lowered, OnnxError> {
    let mut names: BTreeMap<TensorId, String> = BTreeMap::new();
    names.insert(graph.inputs[0], inputs[0].to_owned());
    names.insert(graph.inputs[1], inputs[1].to_owned());
    let mut lowering = Lowering {
        graph,
        fp16,
        names,
        matrices: BTreeMap::new(),
        batch: None,
        nodes: Vec::new(),
        constants: Vec::new(),
    };
    // A name from several modules, or one module used twice, is numbered.
    let mut taken = BTreeSet::new();
    for operation in &graph.operations {
        for tensor in operation.inputs() {
            if let Some(data) = graph.values.get(&tensor.id)
                && !lowering.names.contains_key(&tensor.id)
            {
                let name = graph.names.get(&tensor.id).cloned();
                let name = name
                    .filter(|name| taken.insert(name.clone()))
                    .unwrap_or_else(|| format!("constant.{}", lowering.names.len()));
                lowering.constants.push(proto::constant(&name, data, fp16)?);
                lowering.names.insert(tensor.id, name);
            }
        }
        lowering.operation(operation)?;
    }
    for (name, id) in &graph.outputs {
        let from = lowering.names.get(id).cloned();
        let from = from.ok_or_else(|| OnnxError::Operation(format!("output `{name}` alone")))?;
        let node = if fp16 {
            proto::node(
                "Cast",
                vec![from],
                vec![name.clone()],
                vec![int("to", proto::ElementType::F32 as i64)],
            )
        } else {
            proto::node("Identity", vec![from], vec![name.clone()], Vec::new())
        };
        lowering.nodes.push(node);
    }
    let mut lowered = Lowered {
        nodes: lowering.nodes,
        constants: lowering.constants,
    };
    let outputs = graph.outputs.iter().map(|(name, _)| name.clone());
    lowered.keep_what_is_needed(outputs.collect());
    Ok(lowered)
}

impl Lowered {
    /// Drops nodes and constants that do not lead to an output.
    fn keep_what_is_needed(&mut self, mut needed: BTreeSet<String>) {
        let mut kept = Vec::with_capacity(self.nodes.len());
        while let Some(node) = self.nodes.pop() {
            if node.output.iter().any(|name| needed.contains(name)) {
                needed.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.constants
            .retain(|constant| needed.contains(&constant.name));
    }
}

struct Lowering<'a> {
    graph: &'a Graph,
    fp16: bool,
    names: BTreeMap<TensorId, String>,
    /// Names of matrices by those reshaped to [1, …, rows, columns]: engines multiply by a
    /// plain matrix in one go.
    matrices: BTreeMap<TensorId, String>,
    /// Name of a tensor [1] that holds the batch, once something has asked for it.
    batch: Option<String>,
    nodes: Vec<NodeMessage>,
    constants: Vec<Constant>,
}

impl Lowering<'_> {
    fn name(&mut self, tensor: &TensorIr) -> String {
        let next = format!("t{}", self.names.len());
        self.names.entry(tensor.id).or_insert(next).clone()
    }

    /// A name for something between the operations of Burn.
    fn fresh(&self) -> String {
        format!("n{}", self.nodes.len())
    }

    /// Adds a node that makes `output`.
    fn add(
        &mut self,
        operator: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeMessage>,
        output: &TensorIr,
    ) {
        let output = self.name(output);
        let node = proto::node(operator, inputs, vec![output], attributes);
        self.nodes.push(node);
    }

    /// Adds a node whose output only the next ones need, and returns its name.
    fn between(
        &mut self,
        operator: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeMessage>,
    ) -> String {
        let output = self.fresh();
        let node = proto::node(operator, inputs, vec![output.clone()], attributes);
        self.nodes.push(node);
        output
    }

    fn constant(&mut self, data: TensorData) -> Result<String, OnnxError> {
        let name = format!("k{}", self.constants.len());
        self.constants
            .push(proto::constant(&name, &data, self.fp16)?);
        Ok(name)
    }

    fn integers(&mut self, values: Vec<i64>) -> Result<String, OnnxError> {
        let count = values.len();
        self.constant(TensorData::new(values, [count]))
    }

    /// A scalar as a constant that a tensor of `dtype` can be combined with.
    fn scalar(&mut self, value: ScalarIr, dtype: DType) -> Result<String, OnnxError> {
        let number = number(value);
        let none: [usize; 0] = [];
        self.constant(match dtype {
            DType::I64 => TensorData::new(vec![number as i64], none),
            DType::I32 => TensorData::new(vec![number as i32], none),
            DType::Bool(_) => TensorData::new(vec![number != 0.0], none),
            _ => TensorData::new(vec![number as f32], none),
        })
    }

    /// The batch as a tensor [1].
    fn batch(&mut self) -> String {
        if let Some(name) = &self.batch {
            return name.clone();
        }
        let images = self.names[&self.graph.inputs[0]].clone();
        let name = self.between("Shape", vec![images], vec![int("start", 0), int("end", 1)]);
        self.batch = Some(name.clone());
        name
    }

    /// A shape as a tensor, computed where it depends on the batch.
    fn shape(&mut self, sizes: &[Size]) -> Result<String, OnnxError> {
        let mut parts = Vec::new();
        let mut fixed = Vec::new();
        for size in sizes {
            match *size {
                Size::Fixed(size) => fixed.push(size as i64),
                Size::Batch(times) => {
                    if !fixed.is_empty() {
                        parts.push(self.integers(std::mem::take(&mut fixed))?);
                    }
                    let batch = self.batch();
                    parts.push(if times == 1 {
                        batch
                    } else {
                        let times = self.integers(vec![times as i64])?;
                        self.between("Mul", vec![batch, times], Vec::new())
                    });
                }
            }
        }
        if !fixed.is_empty() || parts.is_empty() {
            parts.push(self.integers(fixed)?);
        }
        Ok(match <[String; 1]>::try_from(parts) {
            Ok([part]) => part,
            Err(parts) => self.between("Concat", parts, vec![int("axis", 0)]),
        })
    }

    /// The shape of a `Reshape`: ONNX works out one size itself.
    fn reshape(&mut self, input: String, output: &TensorIr) -> Result<(), OnnxError> {
        let sizes = self.graph.sizes(output);
        let batches = sizes.iter().filter(|size| matches!(size, Size::Batch(_)));
        let shape = if batches.count() == 1 {
            let sizes = sizes.iter().map(|size| match *size {
                Size::Fixed(size) => size as i64,
                Size::Batch(_) => -1,
            });
            self.integers(sizes.collect())?
        } else {
            self.shape(&sizes)?
        };
        self.add("Reshape", vec![input, shape], Vec::new(), output);
        Ok(())
    }

    fn expand(&mut self, input: &TensorIr, output: &TensorIr) -> Result<(), OnnxError> {
        let (from, to) = (self.graph.sizes(input), self.graph.sizes(output));
        // A size that stays may be called 1, so that only sizes that grow are asked for.
        let offset = to.len() - from.len().min(to.len());
        let target: Vec<Size> = to
            .iter()
            .enumerate()
            .map(|(axis, size)| {
                let before = axis.checked_sub(offset).and_then(|axis| from.get(axis));
                if before == Some(size) {
                    Size::Fixed(1)
                } else {
                    *size
                }
            })
            .collect();
        let shape = self.shape(&target)?;
        let input = self.name(input);
        self.add("Expand", vec![input, shape], Vec::new(), output);
        Ok(())
    }

    /// A tensor of one value.
    fn full(&mut self, value: ScalarIr, output: &TensorIr) -> Result<(), OnnxError> {
        let value = self.scalar(value, output.dtype)?;
        let sizes = self.graph.sizes(output);
        let shape = self.shape(&sizes)?;
        self.add("Expand", vec![value, shape], Vec::new(), output);
        Ok(())
    }

    fn cast(&mut self, input: &TensorIr, output: &TensorIr) -> Result<(), OnnxError> {
        let to = proto::element(output.dtype, self.fp16)?;
        let input = self.name(input);
        self.add("Cast", vec![input], vec![int("to", to as i64)], output);
        Ok(())
    }

    fn unary(&mut self, operator: &str, input: &TensorIr, output: &TensorIr) {
        let input = self.name(input);
        self.add(operator, vec![input], Vec::new(), output);
    }

    fn binary(&mut self, operator: &str, lhs: &TensorIr, rhs: &TensorIr, output: &TensorIr) {
        let inputs = vec![self.name(lhs), self.name(rhs)];
        self.add(operator, inputs, Vec::new(), output);
    }

    fn with_scalar(
        &mut self,
        operator: &str,
        lhs: &TensorIr,
        rhs: ScalarIr,
        output: &TensorIr,
    ) -> Result<(), OnnxError> {
        let rhs = self.scalar(rhs, lhs.dtype)?;
        let lhs = self.name(lhs);
        self.add(operator, vec![lhs, rhs], Vec::new(), output);
        Ok(())
    }

    /// Over one axis, which stays with size 1; before opset 18 the axis is an attribute, but of
    /// sums.
    fn reduce(
        &mut self,
        operator: &str,
        input: &TensorIr,
        axes: Vec<usize>,
        output: &TensorIr,
    ) -> Result<(), OnnxError> {
        let name = self.name(input);
        if operator == "ReduceSum" {
            let axes = self.integers(axes.into_iter().map(|axis| axis as i64).collect())?;
            self.add(operator, vec![name, axes], vec![int("keepdims", 1)], output);
        } else {
            let attributes = vec![ints("axes", axes), int("keepdims", 1)];
            self.add(operator, vec![name], attributes, output);
        }
        Ok(())
    }

    /// Over everything: Burn gives [1].
    fn reduce_all(
        &mut self,
        operator: &str,
        input: &TensorIr,
        output: &TensorIr,
    ) -> Result<(), OnnxError> {
        let name = self.name(input);
        let scalar = self.between(operator, vec![name], vec![int("keepdims", 0)]);
        self.reshape(scalar, output)
    }

    fn operation(&mut self, operation: &OperationIr) -> Result<(), OnnxError> {
        let unknown = || OnnxError::Operation(kind(operation));
        match operation {
            OperationIr::Init(_) | OperationIr::Drop(_) => Ok(()),
            OperationIr::BaseFloat(base)
            | OperationIr::BaseInt(base)
            | OperationIr::BaseBool(base) => self.base(base, unknown),
            OperationIr::NumericFloat(_, numeric) | OperationIr::NumericInt(_, numeric) => {
                self.numeric(numeric, unknown)
            }
            OperationIr::Float(_, float) => self.float(float, unknown),
            OperationIr::Int(IntOperationIr::IntoFloat(cast)) => self.cast(&cast.input, &cast.out),
            OperationIr::Int(IntOperationIr::Matmul(matmul)) => {
                self.binary("MatMul", &matmul.lhs, &matmul.rhs, &matmul.out);
                Ok(())
            }
            OperationIr::Bool(bool) => self.boolean(bool),
            OperationIr::Module(module) => self.module(module, unknown),
            OperationIr::Activation(activation) => self.activation(activation, unknown),
            _ => Err(unknown()),
        }
    }

    fn base(
        &mut self,
        operation: &BaseOperationIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        use BaseOperationIr as Op;
        match operation {
            Op::Reshape(op) => {
                let input = self.name(&op.input);
                let (from, to) = (&op.input.shape, &op.out.shape);
                if from.num_dims() == 2
                    && to.ends_with(from)
                    && to.num_elements() == from.num_elements()
                {
                    self.matrices.insert(op.out.id, input.clone());
                }
                self.reshape(input, &op.out)?;
            }
            Op::Expand(op) => self.expand(&op.input, &op.out)?,
            Op::SwapDims(op) => {
                let mut axes: Vec<usize> = (0..op.input.shape.num_dims()).collect();
                axes.swap(op.dim1, op.dim2);
                let input = self.name(&op.input);
                self.add("Transpose", vec![input], vec![ints("perm", axes)], &op.out);
            }
            Op::Permute(op) => {
                let input = self.name(&op.input);
                let axes = ints("perm", op.axes.iter().copied());
                self.add("Transpose", vec![input], vec![axes], &op.out);
            }
            Op::Slice(op) => self.slice(op)?,
            Op::Flip(op) => {
                let count = op.axes.len();
                let starts = self.integers(vec![-1; count])?;
                let ends = self.integers(vec![i64::MIN + 1; count])?;
                let axes = self.integers(op.axes.iter().map(|axis| *axis as i64).collect())?;
                let steps = self.integers(vec![-1; count])?;
                let input = self.name(&op.input);
                self.add(
                    "Slice",
                    vec![input, starts, ends, axes, steps],
                    Vec::new(),
                    &op.out,
                );
            }
            Op::Select(op) => {
                let inputs = vec![self.name(&op.tensor), self.name(&op.indices)];
                self.add("Gather", inputs, vec![int("axis", op.dim as i64)], &op.out);
            }
            Op::Gather(op) => {
                let inputs = vec![self.name(&op.tensor), self.name(&op.indices)];
                self.add(
                    "GatherElements",
                    inputs,
                    vec![int("axis", op.dim as i64)],
                    &op.out,
                );
            }
            Op::MaskWhere(op) => {
                let inputs = vec![
                    self.name(&op.mask),
                    self.name(&op.value),
                    self.name(&op.tensor),
                ];
                self.add("Where", inputs, Vec::new(), &op.out);
            }
            Op::MaskFill(op) => {
                let value = self.scalar(op.value, op.tensor.dtype)?;
                let inputs = vec![self.name(&op.mask), value, self.name(&op.tensor)];
                self.add("Where", inputs, Vec::new(), &op.out);
            }
            Op::Equal(op) => self.binary("Equal", &op.lhs, &op.rhs, &op.out),
            Op::EqualElem(op) => self.with_scalar("Equal", &op.lhs, op.rhs, &op.out)?,
            Op::NotEqual(op) => {
                let inputs = vec![self.name(&op.lhs), self.name(&op.rhs)];
                let equal = self.between("Equal", inputs, Vec::new());
                self.add("Not", vec![equal], Vec::new(), &op.out);
            }
            Op::NotEqualElem(op) => {
                let value = self.scalar(op.rhs, op.lhs.dtype)?;
                let inputs = vec![self.name(&op.lhs), value];
                let equal = self.between("Equal", inputs, Vec::new());
                self.add("Not", vec![equal], Vec::new(), &op.out);
            }
            Op::RepeatDim(op) => {
                let mut times = vec![1; op.tensor.shape.num_dims()];
                times[op.dim] = op.times as i64;
                let times = self.integers(times)?;
                let input = self.name(&op.tensor);
                self.add("Tile", vec![input, times], Vec::new(), &op.out);
            }
            Op::Cat(op) => {
                let inputs = op.tensors.iter().map(|tensor| self.name(tensor)).collect();
                self.add("Concat", inputs, vec![int("axis", op.dim as i64)], &op.out);
            }
            Op::Cast(op) => self.cast(&op.input, &op.out)?,
            Op::Ones(op) => self.full(ScalarIr::Int(1), &op.out)?,
            Op::Zeros(op) | Op::Empty(op) => self.full(ScalarIr::Int(0), &op.out)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// Only axes that are cut: a range that is all of an axis may be as long as the batch.
    fn slice(&mut self, op: &SliceOpIr) -> Result<(), OnnxError> {
        let [mut starts, mut ends, mut axes, mut steps] = [const { Vec::new() }; 4];
        for (axis, (range, size)) in op.ranges.iter().zip(op.tensor.shape.iter()).enumerate() {
            if is_all(range, *size) {
                continue;
            }
            let end = range.end.unwrap_or(*size as isize);
            if let Size::Batch(_) = self.graph.sizes(&op.tensor)[axis] {
                return Err(OnnxError::Batch("a slice of the batch".to_owned()));
            }
            // A negative step walks the same range from its end.
            let (start, end) = if range.step < 0 {
                (
                    end - 1,
                    if range.start == 0 {
                        i64::MIN as isize + 1
                    } else {
                        range.start - 1
                    },
                )
            } else {
                (range.start, end)
            };
            starts.push(start as i64);
            ends.push(end as i64);
            axes.push(axis as i64);
            steps.push(range.step as i64);
        }
        let input = self.name(&op.tensor);
        if axes.is_empty() {
            self.add("Identity", vec![input], Vec::new(), &op.out);
            return Ok(());
        }
        let mut inputs = vec![input];
        for values in [starts, ends, axes, steps] {
            inputs.push(self.integers(values)?);
        }
        self.add("Slice", inputs, Vec::new(), &op.out);
        Ok(())
    }

    fn numeric(
        &mut self,
        operation: &NumericOperationIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        use NumericOperationIr as Op;
        match operation {
            Op::Add(op) => self.binary("Add", &op.lhs, &op.rhs, &op.out),
            Op::Sub(op) => self.binary("Sub", &op.lhs, &op.rhs, &op.out),
            Op::Mul(op) => self.binary("Mul", &op.lhs, &op.rhs, &op.out),
            Op::Div(op) => self.binary("Div", &op.lhs, &op.rhs, &op.out),
            Op::Powi(op) => self.binary("Pow", &op.lhs, &op.rhs, &op.out),
            Op::AddScalar(op) => self.with_scalar("Add", &op.lhs, op.rhs, &op.out)?,
            Op::SubScalar(op) => self.with_scalar("Sub", &op.lhs, op.rhs, &op.out)?,
            Op::MulScalar(op) => self.with_scalar("Mul", &op.lhs, op.rhs, &op.out)?,
            Op::DivScalar(op) => self.with_scalar("Div", &op.lhs, op.rhs, &op.out)?,
            Op::PowiScalar(op) => self.with_scalar("Pow", &op.lhs, op.rhs, &op.out)?,
            Op::ClampMin(op) => self.with_scalar("Max", &op.lhs, op.rhs, &op.out)?,
            Op::ClampMax(op) => self.with_scalar("Min", &op.lhs, op.rhs, &op.out)?,
            Op::Clamp(op) => {
                let [low, high] = [op.min, op.max].map(|bound| self.scalar(bound, op.tensor.dtype));
                let inputs = vec![self.name(&op.tensor), low?, high?];
                self.add("Clip", inputs, Vec::new(), &op.out);
            }
            Op::Abs(op) => self.unary("Abs", &op.input, &op.out),
            Op::Neg(op) => self.unary("Neg", &op.input, &op.out),
            Op::Sign(op) => self.unary("Sign", &op.input, &op.out),
            Op::Full(op) => self.full(op.value, &op.out)?,
            Op::Mean(op) => self.reduce_all("ReduceMean", &op.input, &op.out)?,
            Op::Sum(op) => self.reduce_all("ReduceSum", &op.input, &op.out)?,
            Op::Max(op) => self.reduce_all("ReduceMax", &op.input, &op.out)?,
            Op::Min(op) => self.reduce_all("ReduceMin", &op.input, &op.out)?,
            Op::MeanDim(op) => self.reduce("ReduceMean", &op.input, vec![op.axis], &op.out)?,
            Op::SumDim(op) => self.reduce("ReduceSum", &op.input, vec![op.axis], &op.out)?,
            Op::SumDims(op) => self.reduce("ReduceSum", &op.input, op.axes.clone(), &op.out)?,
            Op::MaxDim(op) => self.reduce("ReduceMax", &op.input, vec![op.axis], &op.out)?,
            Op::MinDim(op) => self.reduce("ReduceMin", &op.input, vec![op.axis], &op.out)?,
            Op::ArgMax(op) | Op::ArgMin(op) => {
                let operator = match operation {
                    Op::ArgMax(_) => "ArgMax",
                    _ => "ArgMin",
                };
                let input = self.name(&op.input);
                let attributes = vec![int("axis", op.axis as i64), int("keepdims", 1)];
                self.add(operator, vec![input], attributes, &op.out);
            }
            Op::TopKWithIndices(op) => {
                let count = self.integers(vec![op.k as i64])?;
                let inputs = vec![self.name(&op.tensor), count];
                let outputs = vec![self.name(&op.out), self.name(&op.out_indices)];
                let node = proto::node("TopK", inputs, outputs, vec![int("axis", op.dim as i64)]);
                self.nodes.push(node);
            }
            Op::Greater(op) => self.binary("Greater", &op.lhs, &op.rhs, &op.out),
            Op::GreaterEqual(op) => self.binary("GreaterOrEqual", &op.lhs, &op.rhs, &op.out),
            Op::Lower(op) => self.binary("Less", &op.lhs, &op.rhs, &op.out),
            Op::LowerEqual(op) => self.binary("LessOrEqual", &op.lhs, &op.rhs, &op.out),
            Op::GreaterElem(op) => self.with_scalar("Greater", &op.lhs, op.rhs, &op.out)?,
            Op::GreaterEqualElem(op) => {
                self.with_scalar("GreaterOrEqual", &op.lhs, op.rhs, &op.out)?
            }
            Op::LowerElem(op) => self.with_scalar("Less", &op.lhs, op.rhs, &op.out)?,
            Op::LowerEqualElem(op) => self.with_scalar("LessOrEqual", &op.lhs, op.rhs, &op.out)?,
            Op::Pad(op) => {
                let PadModeIr::Constant(value) = op.mode else {
                    return Err(unknown());
                };
                let before = op.padding.iter().map(|(before, _)| *before as i64);
                let after = op.padding.iter().map(|(_, after)| *after as i64);
                let widths = self.integers(before.chain(after).collect())?;
                let value = self.scalar(value, op.input.dtype)?;
                let inputs = vec![self.name(&op.input), widths, value];
                self.add("Pad", inputs, vec![text("mode", "constant")], &op.out);
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn float(
        &mut self,
        operation: &FloatOperationIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        use FloatOperationIr as Op;
        match operation {
            Op::Exp(op) => self.unary("Exp", &op.input, &op.out),
            Op::Log(op) => self.unary("Log", &op.input, &op.out),
            Op::Log1p(op) => {
                let input = self.name(&op.input);
                let one = self.scalar(ScalarIr::Float(1.0), op.input.dtype)?;
                let sum = self.between("Add", vec![input, one], Vec::new());
                self.add("Log", vec![sum], Vec::new(), &op.out);
            }
            Op::Erf(op) => self.unary("Erf", &op.input, &op.out),
            Op::Sqrt(op) => self.unary("Sqrt", &op.input, &op.out),
            Op::Cos(op) => self.unary("Cos", &op.input, &op.out),
            Op::Sin(op) => self.unary("Sin", &op.input, &op.out),
            Op::Tanh(op) => self.unary("Tanh", &op.input, &op.out),
            Op::Round(op) => self.unary("Round", &op.input, &op.out),
            Op::Floor(op) => self.unary("Floor", &op.input, &op.out),
            Op::Ceil(op) => self.unary("Ceil", &op.input, &op.out),
            Op::Recip(op) => self.unary("Reciprocal", &op.input, &op.out),
            Op::Powf(op) => self.binary("Pow", &op.lhs, &op.rhs, &op.out),
            Op::PowfScalar(op) => self.with_scalar("Pow", &op.lhs, op.rhs, &op.out)?,
            Op::Matmul(op) => {
                let matrix = self.matrices.get(&op.rhs.id).cloned();
                let rhs = matrix.unwrap_or_else(|| self.name(&op.rhs));
                let inputs = vec![self.name(&op.lhs), rhs];
                self.add("MatMul", inputs, Vec::new(), &op.out);
            }
            Op::IntoInt(op) => self.cast(&op.input, &op.out)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn boolean(&mut self, operation: &BoolOperationIr) -> Result<(), OnnxError> {
        use BoolOperationIr as Op;
        match operation {
            Op::IntoFloat(op) | Op::IntoInt(op) => self.cast(&op.input, &op.out)?,
            Op::Not(op) => self.unary("Not", &op.input, &op.out),
            Op::And(op) => self.binary("And", &op.lhs, &op.rhs, &op.out),
            Op::Or(op) => self.binary("Or", &op.lhs, &op.rhs, &op.out),
            Op::Xor(op) => self.binary("Xor", &op.lhs, &op.rhs, &op.out),
        }
        Ok(())
    }

    fn activation(
        &mut self,
        operation: &ActivationOperationIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        use ActivationOperationIr as Op;
        match operation {
            Op::Relu(op) => self.unary("Relu", &op.input, &op.out),
            Op::Sigmoid(op) => self.unary("Sigmoid", &op.input, &op.out),
            Op::LeakyRelu(op) => {
                let input = self.name(&op.lhs);
                let slope = float("alpha", number(op.rhs));
                self.add("LeakyRelu", vec![input], vec![slope], &op.out);
            }
            Op::Softmax(op) | Op::LogSoftmax(op) => {
                let operator = match operation {
                    Op::Softmax(_) => "Softmax",
                    _ => "LogSoftmax",
                };
                let input = self.name(&op.input);
                let axis = int("axis", op.axis as i64);
                self.add(operator, vec![input], vec![axis], &op.out);
            }
            // x/2 · (1 + erf(x/√2)): ONNX has GELU itself from opset 20 on only.
            Op::Gelu(op) => {
                let input = self.name(&op.input);
                let scalar = |value: f64| ScalarIr::Float(value);
                let root = self.scalar(scalar(std::f64::consts::FRAC_1_SQRT_2), op.input.dtype)?;
                let scaled = self.between("Mul", vec![input.clone(), root], Vec::new());
                let erf = self.between("Erf", vec![scaled], Vec::new());
                let one = self.scalar(scalar(1.0), op.input.dtype)?;
                let sum = self.between("Add", vec![erf, one], Vec::new());
                let product = self.between("Mul", vec![input, sum], Vec::new());
                let half = self.scalar(scalar(0.5), op.input.dtype)?;
                self.add("Mul", vec![product, half], Vec::new(), &op.out);
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn module(
        &mut self,
        operation: &ModuleOperationIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        use ModuleOperationIr as Op;
        match operation {
            Op::Linear(op) => {
                let inputs = vec![self.name(&op.x), self.name(&op.weight)];
                match &op.bias {
                    None => self.add("MatMul", inputs, Vec::new(), &op.out),
                    Some(bias) => {
                        let product = self.between("MatMul", inputs, Vec::new());
                        let bias = self.name(bias);
                        self.add("Add", vec![product, bias], Vec::new(), &op.out);
                    }
                }
            }
            Op::Attention(op) => self.attention(op, unknown)?,
            Op::LayerNorm(op) => {
                let mut inputs = vec![self.name(&op.input), self.name(&op.gamma)];
                if let Some(beta) = &op.beta {
                    inputs.push(self.name(beta));
                }
                let attributes = vec![int("axis", -1), float("epsilon", number(op.epsilon))];
                self.add("LayerNormalization", inputs, attributes, &op.out);
            }
            Op::BatchNorm(op) => {
                let inputs = [&op.x, &op.gamma, &op.beta, &op.mean, &op.variance];
                let inputs = inputs.map(|tensor| self.name(tensor)).to_vec();
                let epsilon = float("epsilon", number(op.epsilon));
                self.add("BatchNormalization", inputs, vec![epsilon], &op.out);
            }
            Op::Embedding(op) => {
                let inputs = vec![self.name(&op.weights), self.name(&op.indices)];
                self.add("Gather", inputs, vec![int("axis", 0)], &op.out);
            }
            Op::Conv2d(op) => {
                let mut inputs = vec![self.name(&op.x), self.name(&op.weight)];
                inputs.extend(op.bias.as_ref().map(|bias| self.name(bias)));
                let [(top, bottom), (left, right)] = op.options.padding;
                let attributes = vec![
                    ints("strides", op.options.stride),
                    ints("pads", [top, left, bottom, right]),
                    ints("dilations", op.options.dilation),
                    int("group", op.options.groups as i64),
                ];
                self.add("Conv", inputs, attributes, &op.out);
            }
            Op::ConvTranspose2d(op) => {
                let mut inputs = vec![self.name(&op.x), self.name(&op.weight)];
                inputs.extend(op.bias.as_ref().map(|bias| self.name(bias)));
                let [vertical, horizontal] = op.options.padding;
                let attributes = vec![
                    ints("strides", op.options.stride),
                    ints("pads", [vertical, horizontal, vertical, horizontal]),
                    ints("output_padding", op.options.padding_out),
                    ints("dilations", op.options.dilation),
                    int("group", op.options.groups as i64),
                ];
                self.add("ConvTranspose", inputs, attributes, &op.out);
            }
            Op::MaxPool2d(op) => {
                let [vertical, horizontal] = op.padding;
                let attributes = vec![
                    ints("kernel_shape", op.kernel_size),
                    ints("strides", op.stride),
                    ints("pads", [vertical, horizontal, vertical, horizontal]),
                    ints("dilations", op.dilation),
                    int("ceil_mode", op.ceil_mode.into()),
                ];
                let input = self.name(&op.x);
                self.add("MaxPool", vec![input], attributes, &op.out);
            }
            Op::AvgPool2d(op) => {
                let [vertical, horizontal] = op.padding;
                let attributes = vec![
                    ints("kernel_shape", op.kernel_size),
                    ints("strides", op.stride),
                    ints("pads", [vertical, horizontal, vertical, horizontal]),
                    int("count_include_pad", op.count_include_pad.into()),
                    int("ceil_mode", op.ceil_mode.into()),
                ];
                let input = self.name(&op.x);
                self.add("AveragePool", vec![input], attributes, &op.out);
            }
            Op::AdaptiveAvgPool2d(op) => {
                let bins: Vec<usize> = op.x.shape.iter().copied().skip(2).collect();
                let Ok([height, width]) = <[usize; 2]>::try_from(bins) else {
                    return Err(unknown());
                };
                let [rows, columns] = op.output_size;
                if height % rows == 0 && width % columns == 0 {
                    let kernel = [height / rows, width / columns];
                    let attributes = vec![ints("kernel_shape", kernel), ints("strides", kernel)];
                    let input = self.name(&op.x);
                    self.add("AveragePool", vec![input], attributes, &op.out);
                } else {
                    self.uneven_bins(&op.x, [height, width], op.output_size, &op.out)?;
                }
            }
            Op::Interpolate(op) => self.interpolate(op, unknown)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// Means over bins ⌊i·size/bins⌋ to ⌈(i+1)·size/bins⌉, as PyTorch has them: P · x · Qᵀ.
    fn uneven_bins(
        &mut self,
        input: &TensorIr,
        sizes: [usize; 2],
        bins: [usize; 2],
        output: &TensorIr,
    ) -> Result<(), OnnxError> {
        let weights = |size: usize, bins: usize| -> Vec<f32> {
            let mut weights = vec![0.0; bins * size];
            for (bin, row) in weights.chunks_exact_mut(size).enumerate() {
                let (start, end) = (bin * size / bins, ((bin + 1) * size).div_ceil(bins));
                row[start..end].fill(1.0 / (end - start) as f32);
            }
            weights
        };
        let rows = weights(sizes[0], bins[0]);
        let rows = self.constant(TensorData::new(rows, [bins[0], sizes[0]]))?;
        let columns = weights(sizes[1], bins[1]);
        let columns = self.constant(TensorData::new(columns, [bins[1], sizes[1]]))?;
        let columns = self.between("Transpose", vec![columns], vec![ints("perm", [1, 0])]);
        let input = self.name(input);
        let product = self.between("MatMul", vec![rows, input], Vec::new());
        self.add("MatMul", vec![product, columns], Vec::new(), output);
        Ok(())
    }

    /// softmax(q kᵀ · scale + bias) v.
    fn attention(
        &mut self,
        op: &AttentionOpIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        if op.mask.is_some() || op.options.softcap.is_some() || op.options.is_causal {
            return Err(unknown());
        }
        let rank = op.key.shape.num_dims();
        let width = op.query.shape.iter().last().copied().unwrap_or(1);
        let scale = op.options.scale.map_or((width as f64).powf(-0.5), number);
        let scale = self.scalar(ScalarIr::Float(scale), op.query.dtype)?;
        let query = self.name(&op.query);
        let query = self.between("Mul", vec![query, scale], Vec::new());
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(rank - 2, rank - 1);
        let key = self.name(&op.key);
        let key = self.between("Transpose", vec![key], vec![ints("perm", axes)]);
        let mut scores = self.between("MatMul", vec![query, key], Vec::new());
        if let Some(bias) = &op.attn_bias {
            let bias = self.name(bias);
            scores = self.between("Add", vec![scores, bias], Vec::new());
        }
        let weights = self.between("Softmax", vec![scores], vec![int("axis", -1)]);
        let value = self.name(&op.value);
        self.add("MatMul", vec![weights, value], Vec::new(), &op.out);
        Ok(())
    }

    fn interpolate(
        &mut self,
        op: &InterpolateOpIr,
        unknown: impl Fn() -> OnnxError,
    ) -> Result<(), OnnxError> {
        let corners = if op.options.align_corners {
            "align_corners"
        } else {
            "half_pixel"
        };
        let attributes = match op.options.mode {
            InterpolateModeIr::Nearest => vec![
                text("mode", "nearest"),
                text("nearest_mode", "floor"),
                text("coordinate_transformation_mode", "asymmetric"),
            ],
            InterpolateModeIr::Bilinear => vec![
                text("mode", "linear"),
                text("coordinate_transformation_mode", corners),
            ],
            _ => return Err(unknown()),
        };
        let sizes = self.graph.sizes(&op.out);
        let shape = self.shape(&sizes)?;
        let inputs = vec![self.name(&op.x), String::new(), String::new(), shape];
        self.add("Resize", inputs, attributes, &op.out);
        Ok(())
    }
}

fn number(scalar: ScalarIr) -> f64 {
    match scalar {
        ScalarIr::Float(value) => value,
        ScalarIr::Int(value) => value as f64,
        ScalarIr::UInt(value) => value as f64,
        ScalarIr::Bool(value) => f64::from(u8::from(value)),
    }
}
