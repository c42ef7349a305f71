//! ONNX: any network of this program for any program that runs ONNX.
//!
//! The network runs once on Burn's capture device (`trace`), and what it did is written operation
//! by operation (`lower`): no network has code of its own here. The file is then run by an
//! independent engine (`check`), and its outputs are verified against the network's before it is
//! saved under its name.
//!
//! | | name | type | shape |
//! |---|---|---|---|
//! | input | `images` | f32, normalized, or u8 | [batch, 3, height, width], or [batch, height, width, 3] |
//! | input, unless prompt weights are folded in | `prompt_weights` | f32 | [1, prompts]: identity, part, attribute |
//! | outputs | as the network calls them | f32 | |
//!
//! Opset 17, which every current engine reads. Metadata hold what the caller gives, preprocessing
//! and licenses above all.

mod check;
mod contents;
pub(crate) mod error;
mod lower;
mod proto;
mod trace;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::atomic::{TemporaryFolder, file_to_write};
use clasp_model::layers::Rng;
use clasp_model::prompt::{PROMPTS, PromptWeights};
use fs_err as fs;
use prost::Message;
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use serde::Serialize;

use crate::error::WeightsError;
use check::{CheckImages, Engine, OutputValues};
pub use contents::{Contents, Port};
pub use error::OnnxError;
use proto::{
    Constant, ElementType, EntryMessage, GraphMessage, ModelMessage, OperatorSet, entry, int, ints,
};
pub use trace::Output;
use trace::Size;

/// Version of ONNX's operators.
const OPSET: i64 = 17;
/// Version of the file format that came with it.
const IR_VERSION: i64 = 8;
/// Most bytes of constants within a file: protobuf ends at 2 GiB.
const MOST_INSIDE: usize = 1_900_000_000;
/// Least bytes of a constant that goes into the file beside.
const LEAST_OUTSIDE: usize = 1024;
/// Where such a constant begins: a multiple of a page, so that it can be mapped.
const ALIGNMENT: usize = 4096;
/// Largest difference to the network, relative to the largest value of an output where that is
/// above 1.
const TOLERANCE: f32 = 1e-4;
/// Of weights rounded to 16 bits: the length of the difference over that of the output.
const TOLERANCE_FP16: f32 = 2e-2;

impl From<OnnxError> for WeightsError {
    fn from(error: OnnxError) -> Self {
        match error {
            OnnxError::Io(error) => Self::Io(error),
            other => Self::Onnx(other),
        }
    }
}

/// How the prompt weights reach the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt {
    /// The network was folded for it.
    Folded(PromptWeights),
    /// As an input.
    Input,
}

/// What a file is to be.
#[derive(Debug, Clone)]
pub struct OnnxOptions {
    /// Height and width of the images, in pixels.
    pub size: [usize; 2],
    /// Images at a time; none for any number.
    pub batch: Option<usize>,
    /// How the prompt weights reach the network.
    pub prompt: Prompt,
    /// Whether it takes bytes of 0 to 255 and normalizes them itself.
    pub bytes: bool,
    /// Mean of each channel, subtracted from pixels of 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, divided by.
    pub std: [f32; 3],
    /// Weights and arithmetic in fp16; inputs and outputs stay f32.
    pub fp16: bool,
    /// Weights in a file beside, whatever their size; above 1.9 GB they always are.
    pub external: bool,
    /// Text for the file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Images to check the file with beside random ones: what they are, and bytes, [n, height,
    /// width, 3].
    pub samples: (String, Vec<u8>),
}

/// A run of the file beside the network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnnxCheck {
    /// What on: `random images`, or what [`OnnxOptions::samples`] are.
    pub on: String,
    /// How many at a time.
    pub batch: usize,
    /// Difference of each output, as [`OnnxExport::tolerance`] counts it.
    pub differences: BTreeMap<String, f32>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnnxExport {
    /// Version of the operators.
    pub opset: i64,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Bytes of the file.
    pub bytes: u64,
    /// The file of weights beside it, if there is one.
    pub external: Option<PathBuf>,
    /// Name and shape of each input and output, for people.
    pub signature: Vec<String>,
    /// The runs that it passed.
    pub checks: Vec<OnnxCheck>,
    /// Largest difference that would have passed: relative to the largest value of an output where
    /// that is above 1, or of lengths in fp16.
    pub tolerance: f32,
}

/// Writes `network` as ONNX, whole and checked or not at all.
///
/// `forward` is the network on normalized images [batch, 3, height, width] and prompt weights [1,
/// prompts]; it names its outputs. `reference` is what the file has to agree with: the same, or the
/// network before prompt weights were folded in.
///
/// # Errors
///
/// The network does something that has no lowering; the file differs from the network; it cannot be
/// written.
pub fn export<M: Module>(
    path: &Path,
    network: &M,
    forward: &dyn Fn(&M, Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
    reference: &dyn Fn(Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
    options: &OnnxOptions,
) -> Result<OnnxExport, OnnxError> {
    // A device or pipe is refused before the work; data lies beside the file, not beside a link to it.
    let path = &*file_to_write(path)?;
    let graph = trace::trace(network, forward, options.batch, options.size, PROMPTS.len())?;
    let mut model = model(&graph, options)?;
    drop(graph);
    let name = path.file_name().ok_or_else(|| {
        let message = format!("`{}` names no file", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let beside = format!("{}.data", name.to_string_lossy());
    let data = move_outside(&mut model, options.external, &beside);

    let folder = TemporaryFolder::beside(path)?;
    let (file, data_file) = (
        folder.path().join("model.onnx"),
        folder.path().join(&beside),
    );
    if let Some(data) = &data {
        write(&data_file, data)?;
    }
    let encoded = model.encode_to_vec();
    write(&file, &encoded)?;
    let external = data.map(|_| path.with_file_name(&beside));
    let exported = OnnxExport {
        opset: OPSET,
        operators: operators(&model),
        bytes: encoded.len() as u64,
        signature: signature(&model),
        external,
        checks: Vec::new(),
        tolerance: if options.fp16 {
            TOLERANCE_FP16
        } else {
            TOLERANCE
        },
    };
    drop((model, encoded));

    let checks = checks(
        &Engine::load(&file)?,
        reference,
        options,
        exported.tolerance,
    )?;
    if let Some(external) = &exported.external {
        // An old model must not meet new weights, not even when this ends here.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => fs::rename(&data_file, external)?,
        }
    }
    fs::rename(&file, path)?;
    Ok(OnnxExport { checks, ..exported })
}

/// The whole file, weights inside.
fn model(graph: &trace::Graph, options: &OnnxOptions) -> Result<ModelMessage, OnnxError> {
    let [height, width] = options.size;
    let batch = options.batch.map_or(Size::Batch(1), Size::Fixed);
    let mut nodes = Vec::new();
    let mut constants = Vec::new();
    let mut step = |operator: &str, inputs: &[&str], output: &str, attribute| {
        let inputs = inputs.iter().map(|name| (*name).to_owned()).collect();
        nodes.push(proto::node(
            operator,
            inputs,
            vec![output.to_owned()],
            attribute,
        ));
    };
    let mut images = "images";
    if options.bytes {
        // (x/255 − mean) / std = (x − 255·mean) / (255·std)
        for (name, values) in [("pixel_mean", options.mean), ("pixel_std", options.std)] {
            let values = TensorData::new(values.map(|value| 255.0 * value).to_vec(), [3]);
            constants.push(proto::constant(name, &values, false)?);
        }
        let float = vec![int("to", ElementType::F32 as i64)];
        step("Cast", &["images"], "pixels", float);
        step("Sub", &["pixels", "pixel_mean"], "centered", Vec::new());
        step("Div", &["centered", "pixel_std"], "scaled", Vec::new());
        let order = vec![ints("perm", [0, 3, 1, 2])];
        step("Transpose", &["scaled"], "normalized", order);
        images = "normalized";
    }
    let mut prompt_weights = "prompt_weights";
    if options.fp16 {
        let short = || vec![int("to", ElementType::F16 as i64)];
        step("Cast", &[images], "images_fp16", short());
        images = "images_fp16";
        if options.prompt == Prompt::Input {
            step("Cast", &["prompt_weights"], "prompt_weights_fp16", short());
            prompt_weights = "prompt_weights_fp16";
        }
    }
    let lowered = lower::lower(graph, [images, prompt_weights], options.fp16)?;
    nodes.extend(lowered.nodes);
    constants.extend(lowered.constants);

    let sized = |[a, b, c]: [usize; 3]| [batch, Size::Fixed(a), Size::Fixed(b), Size::Fixed(c)];
    let mut inputs = vec![if options.bytes {
        proto::value("images", ElementType::U8, &sized([height, width, 3]))
    } else {
        proto::value("images", ElementType::F32, &sized([3, height, width]))
    }];
    if options.prompt == Prompt::Input {
        let sizes = [Size::Fixed(1), Size::Fixed(PROMPTS.len())];
        inputs.push(proto::value("prompt_weights", ElementType::F32, &sizes));
    } else if nodes
        .iter()
        .any(|node| node.input.iter().any(|name| name == prompt_weights))
    {
        return Err(OnnxError::Capture(
            "the prompt weights are not folded in".to_owned(),
        ));
    }
    let outputs = graph.outputs.iter().map(|(name, id)| {
        let sizes = graph.output_sizes(*id);
        proto::value(name, ElementType::F32, &sizes)
    });
    let outputs = outputs.collect();
    let mut metadata: Vec<EntryMessage> = Vec::new();
    metadata.extend(
        options
            .metadata
            .iter()
            .map(|(key, value)| entry(key, value)),
    );
    Ok(ModelMessage {
        ir_version: IR_VERSION,
        producer_name: "clasp".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(GraphMessage {
            node: nodes,
            name: "clasp".to_owned(),
            initializer: constants,
            input: inputs,
            output: outputs,
        }),
        opset_import: vec![OperatorSet {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: metadata,
    })
}

/// Takes large constants out of a model that protobuf would not hold, or when asked to: the bytes
/// of the file beside.
fn move_outside(model: &mut ModelMessage, asked: bool, location: &str) -> Option<Vec<u8>> {
    let constants = &mut model.graph.as_mut()?.initializer;
    let total: usize = constants
        .iter()
        .map(|constant| constant.raw_data.len())
        .sum();
    if !asked && total <= MOST_INSIDE {
        return None;
    }
    let mut data = Vec::with_capacity(total);
    let large = |constant: &&mut Constant| constant.raw_data.len() >= LEAST_OUTSIDE;
    for constant in constants.iter_mut().filter(large) {
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        let bytes = std::mem::take(&mut constant.raw_data);
        constant.external_data = vec![
            entry("location", location),
            entry("offset", data.len()),
            entry("length", bytes.len()),
        ];
        constant.data_location = 1;
        data.extend(bytes);
    }
    Some(data)
}

fn operators(model: &ModelMessage) -> BTreeMap<String, usize> {
    let mut operators = BTreeMap::new();
    for node in model.graph.iter().flat_map(|graph| &graph.node) {
        *operators.entry(node.op_type.clone()).or_default() += 1;
    }
    operators
}

fn signature(model: &ModelMessage) -> Vec<String> {
    let Some(graph) = &model.graph else {
        return Vec::new();
    };
    let say = |kind: &str, value: &proto::ValueMessage| format!("{kind} {value}");
    let inputs = graph.input.iter().map(|value| say("input", value));
    let outputs = graph.output.iter().map(|value| say("output", value));
    inputs.chain(outputs).collect()
}

/// Runs the file beside the network, on random images and on the samples.
fn checks(
    engine: &Engine,
    reference: &dyn Fn(Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
    options: &OnnxOptions,
    tolerance: f32,
) -> Result<Vec<OnnxCheck>, OnnxError> {
    let [height, width] = options.size;
    let pixels = 3 * height * width;
    let mut rng = Rng::seed_from_u64(0);
    let batches = options.batch.map_or(vec![1, 3], |batch| vec![batch]);
    let mut runs = Vec::new();
    for batch in batches {
        let mut bytes = vec![0; batch * pixels];
        rng.fill_bytes(&mut bytes);
        runs.push(("random images", batch, bytes));
    }
    let (samples_are, samples) = &options.samples;
    let count = samples.len() / pixels;
    if count > 0 {
        // A fixed batch is filled by going round.
        let batch = options.batch.unwrap_or(count);
        let round = samples[..count * pixels].iter().copied().cycle();
        runs.push((
            samples_are.as_str(),
            batch,
            round.take(batch * pixels).collect(),
        ));
    }
    let mut checks = Vec::new();
    for (run, (on, batch, bytes)) in runs.into_iter().enumerate() {
        let prompt_weights = prompt_weights_of_run(options.prompt, run);
        let normalized = normalize(&bytes, options);
        let shape = [batch, 3, height, width];
        let device = Device::flex();
        let images = Tensor::from_data(TensorData::new(normalized.clone(), shape), &device);
        let values = TensorData::new(prompt_weights.data.clone(), prompt_weights.shape.clone());
        let expected = reference(images, Tensor::from_data(values, &device));
        let names: Vec<String> = expected.iter().map(|(name, _)| name.clone()).collect();
        let images = if options.bytes {
            CheckImages::Bytes(bytes, [batch, height, width, 3])
        } else {
            CheckImages::Floats(normalized, shape)
        };
        let input = (options.prompt == Prompt::Input).then_some(&prompt_weights);
        let found = engine.run(&images, input, &names)?;
        let mut differences = BTreeMap::new();
        for ((name, expected), found) in expected.into_iter().zip(&found) {
            let difference = difference(&expected.into_data(), found, options.fp16);
            if difference.is_nan() || difference > tolerance {
                return Err(OnnxError::Differs {
                    on: format!("{batch} {on}"),
                    output: name,
                    difference,
                    tolerance,
                });
            }
            differences.insert(name, difference);
        }
        checks.push(OnnxCheck {
            on: on.to_owned(),
            batch,
            differences,
        });
    }
    Ok(checks)
}

/// Prompt weights of each image: those that were folded in, or each prompt and their mean in turn.
fn prompt_weights_of_run(prompt: Prompt, run: usize) -> OutputValues {
    let prompt_weights = match prompt {
        Prompt::Folded(prompt_weights) => prompt_weights,
        Prompt::Input if run.is_multiple_of(4) => PromptWeights::mean(),
        Prompt::Input => PromptWeights::single(run % 4 - 1),
    };
    OutputValues {
        shape: vec![1, PROMPTS.len()],
        data: prompt_weights.weights().to_vec(),
    }
}

/// [n, height, width, 3] of 0 to 255 → [n, 3, height, width], normalized.
fn normalize(bytes: &[u8], options: &OnnxOptions) -> Vec<f32> {
    let [height, width] = options.size;
    let mut values = Vec::with_capacity(bytes.len());
    for image in bytes.chunks_exact(3 * height * width) {
        for channel in 0..3 {
            let (mean, std) = (options.mean[channel], options.std[channel]);
            let pixels = image.iter().skip(channel).step_by(3);
            values.extend(pixels.map(|pixel| (f32::from(*pixel) / 255.0 - mean) / std));
        }
    }
    values
}

/// Largest difference over the largest expected value, or over 1 where that is less; in fp16 the
/// length of the difference over the expected length. NaN where shapes differ or a value is none.
fn difference(expected: &TensorData, found: &OutputValues, half: bool) -> f32 {
    if expected.shape().to_vec() != found.shape {
        return f32::NAN;
    }
    let (mut worst, mut largest, mut squares, mut all) = (0.0f32, 1.0f32, 0.0f64, 1e-12f64);
    for (one, other) in expected.iter::<f32>().zip(&found.data) {
        let difference = (one - other).abs();
        if difference.is_nan() {
            return f32::NAN;
        }
        worst = worst.max(difference);
        largest = largest.max(one.abs());
        squares += f64::from(difference).powi(2);
        all += f64::from(one).powi(2);
    }
    if half {
        (squares / all).sqrt() as f32
    } else {
        worst / largest
    }
}

/// Writes and syncs a file.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
