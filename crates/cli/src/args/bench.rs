//! Measurements: `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use clasp_run::ExchangeFormat;

use super::training::RankArguments;
use super::values::{MatrixPrecision, count, size};

/// `clasp bench`
#[derive(Args, Debug)]
pub struct BenchArguments {
    /// What to measure
    #[command(subcommand)]
    pub work: BenchWork,
    /// Fail when a result is more than 15 % below its record in this file, as runs/speed.py
    /// --record writes it
    #[arg(long, global = true, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

/// What to measure.
#[derive(Subcommand, Debug)]
pub enum BenchWork {
    /// Decoding JPEG into 2 global and 8 local views
    Data(BenchData),
    /// Labeling with CLIP ViT-B/16: part maps and attributes
    Label(BenchOptions),
    /// One pre-training step of DINO, as its peer takes it; of CLASP with --set method=clasp
    Pretrain(BenchPretrain),
    /// Feature extraction at 384x128
    Embed(BenchOptions),
    /// Re-identification ranking at the size of Market-1501
    Rank(BenchRank),
    /// Exact search of `clasp serve` in a gallery of a million features
    Index(BenchIndex),
    /// COCO keypoint evaluation
    Coco(BenchCoco),
    /// Confusion matrix of LIP's validation masks
    Parsing(BenchParsing),
    /// Miss rates of ten subsets at the size of CityPersons' validation set
    Detection(BenchDetection),
    /// Person search with the largest galleries of CUHK-SYSU
    Search(BenchSearch),
    /// The sum of gradients over several ranks: processes, each started with its --rank, or the devices
    /// of one
    Exchange(BenchExchange),
    /// Compare forward outputs, gradients and an optimizer step on --device with those of the CPU
    Compare(BenchCompare),
}

/// Options of the benchmarks.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Images per batch
    #[arg(long, default_value_t = 8, value_parser = count(1, 4096))]
    pub batch: usize,
    /// Timed runs after one warm-up; the median is reported
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}

/// Options of `clasp bench data`.
#[derive(Args, Debug)]
pub struct BenchData {
    /// A file, a folder, a list file, tar shards or Parquet files
    pub images: String,
    /// At most this many images
    #[arg(long, default_value_t = 500, value_parser = count(1, 1_000_000))]
    pub limit: usize,
}

/// Options of `clasp bench pretrain`.
#[derive(Args, Debug)]
pub struct BenchPretrain {
    /// Backbone
    #[arg(long, default_value = "swin-tiny")]
    pub model: String,
    /// Images per batch
    #[arg(long, default_value_t = 4, value_parser = count(1, 4096))]
    pub batch: usize,
    /// Timed steps after one warm-up; the median is reported
    #[arg(long, default_value_t = 3, value_parser = count(1, 10_000))]
    pub iters: usize,
    /// Prototypes of the projection head
    #[arg(long, default_value_t = 65536, value_parser = count(2, 1 << 20))]
    pub prototypes: usize,
    /// Local views
    #[arg(long, default_value_t = 8, value_parser = count(0, 64))]
    pub local: usize,
    /// Set a value of the recipe, such as `views.global_size=[384, 128]`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Compute by Burn's graph alone, without clasp's kernels for GPUs and fused operations
    #[arg(long)]
    pub graph: bool,
}

/// Options of `clasp bench exchange`.
#[derive(Args, Debug)]
pub struct BenchExchange {
    /// Values, as many as a network has gradients
    #[arg(long, default_value_t = 28_000_000, value_parser = count(1, 1 << 30))]
    pub values: usize,
    /// Format in which processes send them: f32 or bf16
    #[arg(long, default_value = "f32")]
    pub format: ExchangeFormat,
    /// Timed sums after one warm-up; the median is reported
    #[arg(long, default_value_t = 10, value_parser = count(1, 10_000))]
    pub iters: usize,
    /// The processes
    #[command(flatten)]
    pub ranks: RankArguments,
}

/// Options of `clasp bench compare`.
#[derive(Args, Debug, Clone)]
pub struct BenchCompare {
    /// Backbone
    #[arg(long, default_value = "swin-pico")]
    pub model: String,
    /// Set a value of the recipe, such as `views.global_size=[256, 128]`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Compare single operations with their gradients instead: matrix products, norms, softmaxes
    #[arg(long, conflicts_with = "graph")]
    pub operations: bool,
    /// Compute by Burn's graph alone, without clasp's kernels for GPUs and fused operations
    #[arg(long)]
    pub graph: bool,
}

/// Options of `clasp bench coco`.
#[derive(Args, Debug)]
pub struct BenchCoco {
    /// Images
    #[arg(long, default_value_t = 2000, value_parser = count(1, 1_000_000))]
    pub images: usize,
    /// Predicted poses for each of the 1 to 5 people of an image
    #[arg(long, default_value_t = 2, value_parser = count(1, 100))]
    pub predictions: usize,
    /// Timed runs after one warm-up; the median is reported
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
}

/// Options of `clasp bench parsing`.
#[derive(Args, Debug)]
pub struct BenchParsing {
    /// Masks
    #[arg(long, default_value_t = 10_000, value_parser = count(1, 10_000_000))]
    pub images: usize,
    /// Height x width of a mask
    #[arg(long, value_parser = size, default_value = "572x384")]
    pub size: [usize; 2],
    /// Classes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=255))]
    pub classes: u8,
}

/// Options of `clasp bench detection`.
#[derive(Args, Debug)]
pub struct BenchDetection {
    /// Images
    #[arg(long, default_value_t = 500, value_parser = count(1, 1_000_000))]
    pub images: usize,
    /// Predicted boxes per image, of which one is near each of its 0 to 12 pedestrians
    #[arg(long, default_value_t = 200, value_parser = count(12, 1000))]
    pub predictions: usize,
    /// Timed runs after one warm-up; the median is reported
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
}

/// Options of `clasp bench search`.
#[derive(Args, Debug)]
pub struct BenchSearch {
    /// Queries, each of a different person
    #[arg(long, default_value_t = 2900, value_parser = count(1, 100_000))]
    pub queries: usize,
    /// Frames
    #[arg(long, default_value_t = 6978, value_parser = count(1, 1_000_000))]
    pub frames: usize,
    /// Gallery frames per query
    #[arg(long, default_value_t = 4000, value_parser = count(1, 1_000_000))]
    pub gallery: usize,
    /// Predicted people per frame
    #[arg(long, default_value_t = 8, value_parser = count(1, 1000))]
    pub people: usize,
    /// Dimension of the features
    #[arg(long, default_value_t = 256, value_parser = count(1, 8192))]
    pub dim: usize,
}

/// Options of `clasp bench index`.
#[derive(Args, Debug)]
pub struct BenchIndex {
    /// Features in the gallery
    #[arg(long, default_value_t = 1_000_000, value_parser = count(1, 10_000_000))]
    pub gallery: usize,
    /// Dimension of the features
    #[arg(long, default_value_t = 768, value_parser = count(1, 8192))]
    pub dim: usize,
    /// Queries of a search
    #[arg(long, default_value_t = 1, value_parser = count(1, 4096))]
    pub queries: usize,
    /// Matches of a query
    #[arg(long, default_value_t = 24, value_parser = count(1, 1000))]
    pub top: usize,
    /// Timed searches after one warm-up; the median is reported
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
}

/// Options of `clasp bench rank`.
#[derive(Args, Debug)]
pub struct BenchRank {
    /// Queries
    #[arg(long, default_value_t = 3368, value_parser = count(1, 1_000_000))]
    pub queries: usize,
    /// Gallery images
    #[arg(long, default_value_t = 15913, value_parser = count(1, 1_000_000))]
    pub gallery: usize,
    /// Dimension of the features
    #[arg(long, default_value_t = 768, value_parser = count(1, 8192))]
    pub dim: usize,
    /// Identities
    #[arg(long, default_value_t = 750, value_parser = count(1, 100_000))]
    pub identities: usize,
    /// Re-rank as well
    #[arg(long)]
    pub rerank: bool,
}
