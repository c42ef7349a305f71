//! Training: `clip`, `pretrain`, `finetune`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clasp_run::collective::MOST_RANKS;
use clasp_synth::Style;

use super::evaluation::TaskName;
use super::values::{count, size};

/// `clasp clip`
#[derive(Subcommand, Debug)]
pub enum ClipCommand {
    /// Train a small CLIP on synthetic people and optionally on tagged photos
    Train(ClipTrainArguments),
    /// Measure zero-shot attribute accuracy and part-map mIoU, and chance
    Score(ClipScoreArguments),
}

/// `clasp clip train`
#[derive(Args, Debug)]
pub struct ClipTrainArguments {
    /// Folder to write, in OpenCLIP's layout
    #[arg(long)]
    pub out: PathBuf,
    /// A folder with attributes.csv and parsing.csv (docs/data.md, Your own data) that have CCP's tags
    /// and labels; its train split is added
    #[arg(long)]
    pub photos: Option<PathBuf>,
    /// CLIP to start from, a folder or name [default: a new small one]
    #[arg(long)]
    pub from: Option<String>,
    /// Height x width of its images; the position embeddings of the CLIP given by --from are
    /// resampled to it [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Weight of the attribute loss, relative to the contrastive loss
    #[arg(long, default_value_t = 10.0)]
    pub value_weight: f64,
    /// Weight of the part loss, relative to the contrastive loss
    #[arg(long, default_value_t = 2.0)]
    pub part_weight: f64,
    /// Image-caption pairs to train on
    #[arg(long, default_value_t = 200_000)]
    pub pairs: usize,
    /// Pairs per batch
    #[arg(long, default_value_t = 64, value_parser = count(2, 65_536))]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-4)]
    pub lr: f64,
    /// Resume from the last checkpoint, in OUT.run
    #[arg(long)]
    pub resume: bool,
    /// Seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `clasp clip score`
#[derive(Args, Debug)]
pub struct ClipScoreArguments {
    /// A CLIP folder or name
    #[arg(long, default_value = "mini")]
    pub clip: String,
    /// A folder with attributes.csv and parsing.csv (docs/data.md, Your own data) that have CCP's tags
    /// and labels; its val split is measured too
    #[arg(long)]
    pub photos: Option<PathBuf>,
    /// Synthetic people to measure on
    #[arg(long, default_value_t = 1000)]
    pub people: usize,
    /// Style of the synthetic people: standard, or held-out with garment shades, cuts, patterns,
    /// scenery and rendering that `clasp clip train` never uses
    #[arg(long, default_value = "standard")]
    pub style: Style,
    /// Method of CLIP's dense features: clear, mask or self
    #[arg(long, default_value = "clear")]
    pub dense: String,
}

/// `clasp pretrain`
#[derive(Args, Debug)]
pub struct PretrainArguments {
    /// Recipe (TOML), or the name of a built-in one: demo, mini, swin-tiny, swin-small, swin-base,
    /// vit-small, two-stage, distill-mini
    #[arg(required_unless_present = "resume")]
    pub recipe: Option<String>,
    /// Set a value of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Run folder [default: runs/NAME-METHOD-SEED]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Resume this run from its last checkpoint
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    /// Several processes
    #[command(flatten)]
    pub ranks: RankArguments,
}

/// The processes that work together (docs/scale.md).
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Several processes")]
pub struct RankArguments {
    /// Number of processes that work together; each is started with its --rank
    #[arg(long, value_name = "N", requires_all = ["rank", "master"], value_parser = count(1, MOST_RANKS))]
    pub ranks: Option<usize>,
    /// Which of them this is, from 0 to N-1; in a training rank 0 writes the run folder
    #[arg(long, value_name = "I", requires = "ranks")]
    pub rank: Option<usize>,
    /// Address on which rank 0 listens and to which the others connect
    #[arg(long, value_name = "HOST:PORT", requires = "ranks")]
    pub master: Option<String>,
    /// The processes are those of mpiexec (in builds with the Cargo feature mpi)
    #[arg(long, conflicts_with = "ranks")]
    pub mpi: bool,
}

/// `clasp finetune`
#[derive(Args, Debug)]
pub struct FinetuneArguments {
    /// Task
    pub task: TaskName,
    /// Recipe (TOML), or the name of a built-in one: TASK (as published), TASK-mini (small),
    /// search-one-stage [default: TASK]
    pub recipe: Option<String>,
    /// Folder of the dataset
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Backbone to start from: a backbone file, run folder or published checkpoint [default: random
    /// initialization]
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Set a value of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Run folder [default: runs/TASK-SEED]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Resume this run from its last checkpoint
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    /// Several processes
    #[command(flatten)]
    pub ranks: RankArguments,
}
