//! Evaluation and use of models: `eval`, `score`, `predict`, `search`, `embed`.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use clasp_tasks::TaskKind;

use super::values::{MatrixPrecision, cosine, count, fraction, shard, size};

/// A task with a published metric; the list is [`TaskKind`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskName(pub TaskKind);

impl ValueEnum for TaskName {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<TaskName>> =
            LazyLock::new(|| TaskKind::ALL.iter().copied().map(TaskName).collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let task = self.0.describe();
        Some(PossibleValue::new(task.name).help(task.about))
    }
}

/// `clasp eval`
#[derive(Args, Debug)]
pub struct EvalArguments {
    /// Task
    pub task: TaskName,
    /// Folder of the dataset
    #[arg(long)]
    pub data: PathBuf,
    /// Fine-tuned model or its run folder; with --frozen a backbone file, run folder or published
    /// checkpoint
    #[arg(long)]
    pub model: PathBuf,
    /// Evaluate a frozen backbone: by retrieval for re-identification, by a linear probe for the
    /// other tasks
    #[arg(long)]
    pub frozen: bool,
    /// Prompt of the frozen backbone: identity, part, attribute, prompt weights
    /// (identity=0.8,part=0.2), or `all` to compare them [default: that of fine-tuning]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Split of a fine-tuned model's evaluation [default: test, else val]
    #[arg(long)]
    pub split: Option<String>,
    /// Set a key of `[task]` in a fine-tuned model's recipe, such as test_scales=[0.75,1.0]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Write the predictions of a fine-tuned model in the file format of the task's benchmark
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Run a fine-tuned model over part I of N of the test set, counted from 0, and write its results
    /// to --out
    #[arg(long, value_name = "I/N", value_parser = shard, requires = "out", conflicts_with_all = ["shards", "predictions", "calibrate", "rerank"])]
    pub shard: Option<(usize, usize)>,
    /// File for the results of --shard
    #[arg(long, value_name = "FILE", requires = "shard")]
    pub out: Option<PathBuf>,
    /// Compute the metrics from the results of all parts, the files that --shard wrote, instead of
    /// running the model
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub shards: Vec<PathBuf>,
    /// Height x width [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Re-rank with k-reciprocal neighbors (re-identification)
    #[arg(long)]
    pub rerank: bool,
    /// Store in a fine-tuned re-identification model the same-person threshold with this false
    /// positive rate, for `clasp search`; use data of other people than the test set
    #[arg(long, value_name = "RATE")]
    pub calibrate: Option<f64>,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}

/// `clasp score`
#[derive(Args, Debug)]
pub struct ScoreArguments {
    /// Task
    pub task: TaskName,
    /// Folder of the dataset
    #[arg(long)]
    pub data: PathBuf,
    /// Predictions in the file format of the task's benchmark, as `clasp eval --predictions` writes
    /// them
    #[arg(long, value_name = "FILE")]
    pub predictions: PathBuf,
    /// Split [default: test, else val]
    #[arg(long)]
    pub split: Option<String>,
    /// Probability above which an attribute counts as predicted
    #[arg(long, default_value_t = 0.5, value_parser = fraction)]
    pub threshold: f32,
    /// Set a key of `[task]` that the predictions depend on, such as task.classes=ccp_parts
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `clasp predict`
#[derive(Args, Debug)]
pub struct PredictArguments {
    /// Task of the model
    pub task: TaskName,
    /// Files, folders, list files, tar shards or Parquet files; `-` reads a list from standard
    /// input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Fine-tuned model or its run folder
    #[arg(long)]
    pub model: PathBuf,
    /// File of JSON lines to write
    #[arg(long)]
    pub out: PathBuf,
    /// Folder to draw pictures of the predictions in
    #[arg(long, value_name = "DIR")]
    pub draw: Option<PathBuf>,
    /// Fine-tuned model of detection or search that finds the people in photos of several people
    /// first
    #[arg(long, value_name = "MODEL")]
    pub detector: Option<PathBuf>,
    /// Set a key of `[task]` in the model's recipe, such as flip_test=false
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Height x width [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Predict part I of N of the images, counted from 0; `clasp merge` joins the files of the parts
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Continue when more than 5 % of the images cannot be read, and use the intact images of
    /// damaged tar and Parquet files
    #[arg(long)]
    pub keep_going: bool,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}

/// `clasp search`
#[derive(Args, Debug)]
pub struct SearchArguments {
    /// Query images: a file, a folder, a list file, tar shards or Parquet files
    #[arg(long)]
    pub query: String,
    /// Gallery images: a file, a folder, a list file, tar shards or Parquet files
    #[arg(long)]
    pub gallery: String,
    /// Features of the gallery's images by `clasp embed --out F.parquet` with the same model and
    /// size, instead of computing them; of all images, unless --keep-going
    #[arg(long, value_name = "FILE")]
    pub gallery_features: Option<PathBuf>,
    /// Fine-tuned re-identification model, or a backbone
    #[arg(long)]
    pub model: PathBuf,
    /// Matches per query; the contact sheet shows at most 20
    #[arg(long, default_value_t = 10, value_parser = count(1, usize::MAX))]
    pub top: usize,
    /// JSON lines to write: each query with its matches and their cosine similarities
    #[arg(long, default_value = "matches.jsonl")]
    pub out: PathBuf,
    /// Contact sheet to draw
    #[arg(long, default_value = "matches.png")]
    pub sheet: PathBuf,
    /// Queries on the contact sheet
    #[arg(long, default_value_t = 20, value_parser = count(0, 200))]
    pub rows: usize,
    /// Lowest cosine similarity of a match. Matches above the threshold of `clasp eval reid
    /// --calibrate` are marked as the same person
    #[arg(long, default_value_t = -1.0, allow_negative_numbers = true, value_parser = cosine)]
    pub threshold: f32,
    /// Height x width [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Continue when more than 5 % of the images cannot be read, and use the intact images of
    /// damaged tar and Parquet files
    #[arg(long)]
    pub keep_going: bool,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}

/// `clasp embed`
#[derive(Args, Debug)]
pub struct EmbedArguments {
    /// Files, folders, list files, tar shards or Parquet files; `-` reads a list from standard
    /// input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Backbone file, run folder or published checkpoint; or a fine-tuned model: its backbone, and of
    /// re-identification without --prompt the features that it compares
    #[arg(long)]
    pub model: PathBuf,
    /// File to write: F.npy (with the keys in F.npy.keys.txt), or F.parquet
    #[arg(long)]
    pub out: PathBuf,
    /// Prompt of a backbone: identity, part, attribute, or prompt weights
    /// (identity=0.8,part=0.2) [default: identity]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Height x width [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Embed part I of N of the images, counted from 0; `clasp merge` joins the files of the parts
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Continue when more than 5 % of the images cannot be read, and use the intact images of
    /// damaged tar and Parquet files
    #[arg(long)]
    pub keep_going: bool,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}

/// `clasp merge`
#[derive(Args, Debug)]
pub struct MergeArguments {
    /// Files that `embed --shard` (.npy, .parquet) or `predict --shard` (.jsonl) wrote, in the order
    /// of the parts
    #[arg(required = true, num_args = 1..)]
    pub parts: Vec<PathBuf>,
    /// File to write, of the same format
    #[arg(long)]
    pub out: PathBuf,
}
