//! Files of networks: `import`, `export`, `inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clasp_weights::export::NamingScheme;
use clasp_weights::import::CheckpointSource;

use super::values::{colors, parse, size};

/// `clasp import`
#[derive(Args, Debug)]
pub struct ImportArguments {
    /// A .safetensors, .pth, .pt or .bin file, the index or a part of a checkpoint in several files,
    /// a folder of the hub, or the name of a model there (OWNER/MODEL); no code in it is executed
    pub file: PathBuf,
    /// Backbone file to write
    #[arg(long, short)]
    pub out: PathBuf,
    // The list of the error of an unknown name.
    #[arg(
        long = "as",
        value_name = "NAME",
        value_parser = parse::<CheckpointSource>,
        help = format!("Publisher, instead of recognizing it: {}", CheckpointSource::ALL.map(CheckpointSource::name).join(", "))
    )]
    pub source: Option<CheckpointSource>,
    /// Take the student of a training checkpoint instead of the teacher
    #[arg(long)]
    pub student: bool,
    /// Height x width of its images; a ViT's position embeddings are resampled to it
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Attention heads of a ViT whose embedding dimension is not a published one
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Mean of red, green and blue for normalization [default: that of the source's recipes]
    #[arg(long, value_name = "R,G,B", value_parser = colors)]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue for normalization [default: that of the source's
    /// recipes]
    #[arg(long, value_name = "R,G,B", value_parser = colors)]
    pub std: Option<[f32; 3]>,
    /// Load the matched keys and initialize the missing ones randomly
    #[arg(long)]
    pub lenient: bool,
}

/// `clasp export`
#[derive(Subcommand, Debug)]
pub enum ExportCommand {
    /// A safetensors file with the tensor names of another program
    Safetensors(ExportSafetensorsArguments),
    /// An ONNX file, whose outputs are verified before it is saved
    Onnx(ExportOnnxArguments),
    /// A folder with weights, configuration and model card that timm and transformers load
    #[command(
        after_help = "Examples:\n  clasp export hub runs/a -o person-backbone\n  clasp export hub runs/a -o person-backbone --metrics eval.json"
    )]
    Hub(ExportHubArguments),
}

/// `clasp export safetensors`
#[derive(Args, Debug)]
pub struct ExportSafetensorsArguments {
    /// Backbone file, run folder or published checkpoint
    pub model: PathBuf,
    /// File to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// Tensor names of timm or solider
    #[arg(long, default_value = "timm", value_parser = parse::<NamingScheme>)]
    pub names: NamingScheme,
    /// Prompt to fold into the weights: identity, part, attribute, or prompt weights
    /// (identity=0.8,part=0.2)
    #[arg(long)]
    pub prompt: Option<String>,
    /// Drop an adapter that these names cannot express
    #[arg(long)]
    pub drop_adapter: bool,
    /// Height x width of the images it is for, on which windows of a Swin in timm depend [default:
    /// that of the backbone]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Number format of weights and arithmetic
    #[arg(long, value_enum, default_value_t = ExportPrecision::F32)]
    pub precision: ExportPrecision,
}

/// `clasp export hub`
#[derive(Args, Debug)]
pub struct ExportHubArguments {
    /// Backbone file, run folder, published checkpoint or fine-tuned model, of which the backbone is
    /// exported
    pub model: PathBuf,
    /// Folder to write model.safetensors, config.json and README.md into
    #[arg(long, short)]
    pub out: PathBuf,
    /// Whose folder: timm's, which transformers loads too, or transformers' own Swin or DINOv3
    #[arg(long, value_enum, default_value_t = HubFolder::Timm)]
    pub library: HubFolder,
    /// Prompt to fold into the weights: identity, part, attribute, or prompt weights
    /// (identity=0.8,part=0.2) [default: identity, or that of the fine-tuned model]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Height x width of the images it is for [default: that of the backbone]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Metrics and protocol for the model card: a file with the output of `clasp eval TASK --json`;
    /// may be repeated
    #[arg(long, value_name = "FILE")]
    pub metrics: Vec<PathBuf>,
    /// Drop an adapter that the library cannot express
    #[arg(long)]
    pub drop_adapter: bool,
}

/// Whose folder `clasp export hub` writes.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubFolder {
    /// timm's, which transformers loads too
    Timm,
    /// transformers' own Swin or DINOv3
    Transformers,
}

/// `clasp export onnx`
#[derive(Args, Debug)]
pub struct ExportOnnxArguments {
    /// Backbone file, run folder, published checkpoint or fine-tuned model; for heads of
    /// pre-training a run folder or one of its checkpoints
    pub model: PathBuf,
    /// File to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// Outputs, separated by commas: pooled, tokens, map, pyramid; part, attribute (heads of
    /// pre-training) [default: pooled; the outputs of the head of a fine-tuned model]
    #[arg(long, value_delimiter = ',')]
    pub outputs: Vec<OnnxOutput>,
    /// Prompt to fold into the weights: identity, part, attribute, or prompt weights
    /// (identity=0.8,part=0.2); `input` keeps the prompt weights as an input [default: identity, or
    /// that of the fine-tuned model]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Fixed batch size [default: any]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
    /// Height x width [default: that of the backbone]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Take bytes [batch, height, width, 3] as input and normalize them in the graph
    #[arg(long)]
    pub bytes: bool,
    /// Number format of weights and arithmetic
    #[arg(long, value_enum, default_value_t = ExportPrecision::F32)]
    pub precision: ExportPrecision,
    /// Write the weights to a second file, FILE.data, as is always done above 1.9 GB
    #[arg(long)]
    pub external_data: bool,
    /// Images to verify the outputs with: a file, a folder, a list file, tar shards or Parquet
    /// files [default: synthetic people]
    #[arg(long, value_name = "IMAGES")]
    pub check: Option<String>,
}

/// Outputs of an ONNX file.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxOutput {
    /// Pooled features: [batch, channels]
    Pooled,
    /// Features of each patch position: [batch, tokens, channels]
    Tokens,
    /// The same as a feature map: [batch, channels, height, width]
    Map,
    /// The feature map of each stage, stage1 first
    Pyramid,
    /// Logits of body parts: [batch, parts, height, width]
    Part,
    /// Logits of attribute values: [batch, values]
    Attribute,
}

/// `clasp inspect`
#[derive(Args, Debug)]
pub struct InspectArguments {
    /// A backbone file, run folder, published checkpoint, ONNX file, CLIP folder or folder of
    /// labels
    pub file: PathBuf,
}

/// Number format of an exported file.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportPrecision {
    /// 32 bits
    F32,
    /// 16 bits
    Fp16,
}
