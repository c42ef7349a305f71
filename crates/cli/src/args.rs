//! The command line: what each verb takes, and nothing else. The work is in `commands/<verb>.rs`.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

use clap::builder::{PossibleValue, RangedU64ValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use clasp_data::synth::Style;
use clasp_label::show::MOST_SHOWN;
use clasp_model::Precision;
use clasp_run::check::MOST_THREADS;
use clasp_tasks::TaskKind;
use clasp_weights::export::Names;
use clasp_weights::import::Source;

/// Human-centric visual pre-training: label, pre-train, evaluate.
#[derive(Parser, Debug)]
#[command(name = "clasp", version, max_term_width = 100)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Where to compute: cpu, cuda[:i], rocm[:i], metal[:i] or vulkan[:i] [default: the best that this build and this machine have]
    #[arg(
        long,
        global = true,
        value_name = "DEVICE",
        help_heading = "Options of every verb"
    )]
    pub device: Option<String>,
    /// Threads to compute and load with [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = count(1, MOST_THREADS), help_heading = "Options of every verb")]
    pub threads: Option<usize>,
    /// Print results as JSON on standard output
    #[arg(long, global = true, help_heading = "Options of every verb")]
    pub json: bool,
    /// No progress lines
    #[arg(long, short, global = true, help_heading = "Options of every verb")]
    pub quiet: bool,
}

/// How precisely a verb that trains nothing computes.
#[derive(Args, Debug, Clone, Copy)]
pub struct Products {
    /// Numbers that tokens are multiplied with weights in: f32, or bf16, which is faster on processors with AMX and on GPUs that have it
    #[arg(long, value_name = "F32|BF16", default_value_t = Precision::F32)]
    pub precision: Precision,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// The whole flow on drawn people, with a report to look at
    #[command(after_help = "Examples:\n  clasp demo --out clasp-demo")]
    Demo(Demo),
    /// Draw people with ground truth for every task
    #[command(after_help = "Examples:\n  clasp synth --out drawn --unlabelled 2000")]
    Synth(Synth),
    /// Look at, pack and count images and data sets
    #[command(subcommand)]
    Data(Data),
    /// Train a small CLIP, or score any CLIP without training
    #[command(subcommand)]
    Clip(Clip),
    /// Turn what CLIP knows into part maps and attributes
    #[command(
        after_help = "Examples:\n  clasp label photos/ --clip openai/clip-vit-base-patch16 --out labels\n  clasp label photos/*.jpg --out labels\n  clasp label show labels photos/ --out labels.png"
    )]
    Label(Label),
    /// Pre-train a backbone: dino, solider or clasp
    #[command(
        after_help = "Examples:\n  clasp pretrain mini --set data.images=photos/ --set data.labels=labels --out runs/a\n  clasp pretrain --resume runs/a"
    )]
    Pretrain(Pretrain),
    /// Train a backbone and a head for a task on labelled images
    #[command(
        after_help = "Examples:\n  clasp finetune reid reid-mini --data market/ --init runs/a --out runs/reid\n  clasp finetune reid --resume runs/reid"
    )]
    Finetune(Finetune),
    /// Evaluate a fine-tuned model, or a frozen backbone, with the published metric of a task
    #[command(
        after_help = "Examples:\n  clasp eval reid --data market/ --model runs/reid\n  clasp eval reid --data market/ --model runs/a --frozen"
    )]
    Eval(Eval),
    /// What a fine-tuned model makes of images, as JSON lines and pictures
    #[command(
        after_help = "Examples:\n  clasp predict pose photos/ --model runs/pose --out poses.jsonl --draw drawn/"
    )]
    Predict(Predict),
    /// The gallery images nearest to each query, as JSON and a contact sheet
    #[command(
        after_help = "Examples:\n  clasp search --query wanted.jpg --gallery photos/ --model runs/reid"
    )]
    Search(Search),
    /// Features of images, as .npy or .parquet
    #[command(
        after_help = "Examples:\n  clasp embed photos/ --model runs/a --out features.npy\n  find photos -name '*.jpg' | clasp embed - --model runs/a --out features.parquet"
    )]
    Embed(Embed),
    /// Make a backbone file of a published checkpoint, with a table of what fitted
    #[command(after_help = "Examples:\n  clasp import swin_tiny.pth -o backbone.safetensors")]
    Import(Import),
    /// Write a backbone for other programs
    #[command(subcommand)]
    Export(Export),
    /// Show what a clasp file, a published checkpoint, an ONNX file or a CLIP folder holds
    #[command(after_help = "Examples:\n  clasp inspect runs/a")]
    Inspect(Inspect),
    /// Judge predictions of any program by a data set, with the metric of `eval`
    #[command(
        after_help = "Examples:\n  clasp score detection --data city/ --predictions boxes.json"
    )]
    Score(Score),
    /// List the built-in recipes, print one with its comments, or its keys
    #[command(after_help = "Examples:\n  clasp recipes\n  clasp recipes reid-mini --keys")]
    Recipes(Recipes),
    /// List the runs below a folder with their state and best metric
    #[command(after_help = "Examples:\n  clasp runs runs/")]
    Runs(Runs),
    /// Measure this machine: images per second, seconds, memory
    #[command(after_help = "Examples:\n  clasp bench embed --batch 8")]
    Bench(Bench),
    /// Completions for a shell, on standard output: bash, zsh, fish, elvish, powershell
    Completions {
        /// Shell
        shell: Shell,
    },
}

/// `clasp score`
#[derive(Args, Debug)]
pub struct Score {
    /// Task
    pub task: Task,
    /// Folder of the data set
    #[arg(long)]
    pub data: PathBuf,
    /// Predictions in the form that the task's benchmark takes, as `clasp eval --predictions` writes them
    #[arg(long, value_name = "FILE")]
    pub predictions: PathBuf,
    /// Split [default: test, or val where there is no other]
    #[arg(long)]
    pub split: Option<String>,
    /// Probability above which an attribute is predicted
    #[arg(long, default_value_t = 0.5)]
    pub threshold: f32,
}

/// `clasp recipes`
#[derive(Args, Debug)]
pub struct Recipes {
    /// A built-in recipe to print, as it is written [default: list all]
    pub name: Option<String>,
    /// Print its keys with their values, those that the file does not set included
    #[arg(long, requires = "name")]
    pub keys: bool,
}

/// `clasp runs`
#[derive(Args, Debug)]
pub struct Runs {
    /// Folder of runs
    #[arg(default_value = "runs")]
    pub folder: PathBuf,
}

/// `clasp demo`
#[derive(Args, Debug)]
pub struct Demo {
    /// Folder for everything that the demo makes
    #[arg(long, default_value = "clasp-demo")]
    pub out: PathBuf,
    /// People to pre-train on; a 16th as many more, by 4 cameras, train the read-outs, and a 32nd test them
    #[arg(long, default_value_t = 2400, value_parser = count(64, 1_000_000))]
    pub people: usize,
    /// Seed of the drawn people and of the training
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Change a value of the demo's recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `clasp synth`
#[derive(Args, Debug)]
pub struct Synth {
    /// Folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// People with identities to train on
    #[arg(long, default_value_t = 200)]
    pub train_identities: usize,
    /// Other people, to test on
    #[arg(long, default_value_t = 100)]
    pub test_identities: usize,
    /// Cameras; every person is seen by each of them
    #[arg(long, default_value_t = 3)]
    pub cameras: usize,
    /// Images of a person by a camera
    #[arg(long, default_value_t = 2)]
    pub shots: usize,
    /// Further people without labels, for pre-training
    #[arg(long, default_value_t = 0)]
    pub unlabelled: usize,
    /// Street scenes with several people
    #[arg(long, default_value_t = 20)]
    pub scenes: usize,
    /// Height x width of a crop
    #[arg(long, default_value = "256x128", value_parser = size)]
    pub size: [usize; 2],
    /// Seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `clasp data`
#[derive(Subcommand, Debug)]
pub enum Data {
    /// Find the layout of a data set, count it and compare with the official counts
    Check {
        /// Folder of the data set
        path: PathBuf,
    },
    /// Write images as tar shards
    Pack {
        /// Files, folders, list files or tar shards (people-{000..099}.tar); `-` reads a list from standard input
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
        /// Folder for the shards
        #[arg(long)]
        out: PathBuf,
        /// Images in a shard
        #[arg(long, default_value_t = 4096, value_parser = count(1, 1_000_000))]
        per_shard: usize,
        /// Shrink higher images to this height (re-encodes them as JPEG)
        #[arg(long, value_parser = count(1, 65_536))]
        max_height: Option<usize>,
        /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
        #[arg(long)]
        keep_going: bool,
    },
    /// Count images, sizes and unreadable files
    Stats {
        /// Files, folders, list files or tar shards; `-` reads a list from standard input
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
        /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
        #[arg(long)]
        keep_going: bool,
    },
}

/// `clasp clip`
#[derive(Subcommand, Debug)]
pub enum Clip {
    /// Train a small CLIP on drawn people (and photos with tags)
    Train(ClipTrain),
    /// Zero-shot accuracy per attribute and part-map mIoU, beside chance
    Score(ClipScore),
}

/// `clasp clip train`
#[derive(Args, Debug)]
pub struct ClipTrain {
    /// Folder to write, in the layout of OpenCLIP
    #[arg(long)]
    pub out: PathBuf,
    /// A folder in the layout of CCP (images/, attributes.csv, masks/, parsing.csv); train split only
    #[arg(long)]
    pub photos: Option<PathBuf>,
    /// A CLIP to adapt, a folder or name; without it, a new small one
    #[arg(long)]
    pub from: Option<String>,
    /// Height and width of the images that it is for; the model's own if absent. Another size resamples the position
    /// embeddings of the CLIP given by --from
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Weight of the loss on known attribute values beside the contrastive one
    #[arg(long, default_value_t = 10.0)]
    pub value_weight: f64,
    /// Weight of the loss on known parts beside the contrastive one
    #[arg(long, default_value_t = 2.0)]
    pub part_weight: f64,
    /// Image-caption pairs to see
    #[arg(long, default_value_t = 200_000)]
    pub pairs: usize,
    /// Pairs in a batch
    #[arg(long, default_value_t = 64, value_parser = count(2, 65_536))]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-4)]
    pub lr: f64,
    /// Go on from the last checkpoint, in OUT.run
    #[arg(long)]
    pub resume: bool,
    /// Seed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `clasp clip score`
#[derive(Args, Debug)]
pub struct ClipScore {
    /// A CLIP folder or name
    #[arg(long, default_value = "mini")]
    pub clip: String,
    /// A folder in the layout of CCP; its val split is scored too
    #[arg(long)]
    pub photos: Option<PathBuf>,
    /// Drawn people to score
    #[arg(long, default_value_t = 1000)]
    pub people: usize,
    /// Drawing style of the people: standard, or held-out with garment shades, cuts, patterns, scenery and rendering
    /// that `clasp clip train` never draws
    #[arg(long, default_value = "standard")]
    pub style: Style,
    /// Dense features: clear, mask or self
    #[arg(long, default_value = "clear")]
    pub dense: String,
}

/// `clasp label`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Label {
    /// Work on labels that exist
    #[command(subcommand)]
    pub action: Option<LabelAction>,
    /// Label images
    #[command(flatten)]
    pub run: LabelRun,
}

/// What can be done with labels that exist.
#[derive(Subcommand, Debug)]
pub enum LabelAction {
    /// Statistics of the attribute logits over the corpus (never runs CLIP again)
    Calibrate {
        /// Folder of labels
        labels: PathBuf,
    },
    /// Whether labels, also those that other programs wrote or corrected, fit their images
    Check {
        /// Folder of labels
        labels: PathBuf,
        /// The images that were labelled
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
    },
    /// How far two folders of labels of the same images agree; if one is the truth (`clasp synth`, OUT/truth), how right
    /// the other is
    Compare {
        /// Folder of labels
        one: PathBuf,
        /// Another, with the same vocabulary and grid
        other: PathBuf,
    },
    /// A contact sheet of images with their part maps and attributes
    Show {
        /// Folder of labels
        labels: PathBuf,
        /// The images that were labelled
        images: String,
        /// Picture to write
        #[arg(long, default_value = "labels.png")]
        out: PathBuf,
        /// Images on the sheet
        #[arg(long, default_value_t = 16, value_parser = count(1, MOST_SHOWN))]
        count: usize,
        /// Seed of the choice
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Class shares, confidence, value frequencies, and warnings
    Stats {
        /// Folder of labels
        labels: PathBuf,
    },
}

/// `clasp label IMAGES`
#[derive(Args, Debug)]
pub struct LabelRun {
    /// Files, folders, list files or tar shards (people-{000..099}.tar); `-` reads a list from standard input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Folder for the labels
    #[arg(long, required = true)]
    pub out: Option<PathBuf>,
    /// A CLIP folder or name (openai/clip-vit-base-patch16); `mini` is the small stand-in that clasp carries
    #[arg(long, default_value = "mini")]
    pub clip: String,
    /// Labels without CLIP: k-means on the features of this backbone, as SOLIDER does
    #[arg(long, value_name = "BACKBONE", conflicts_with = "clip")]
    pub kmeans: Option<PathBuf>,
    /// Part classes, attributes and prompts [default: the built-in vocabulary]
    #[arg(long)]
    pub vocabulary: Option<PathBuf>,
    /// Dense features: clear, mask or self
    #[arg(long, default_value = "clear")]
    pub dense: String,
    /// Rows x columns of the stored part map
    #[arg(long, default_value = "16x8", value_parser = size)]
    pub grid: [usize; 2],
    /// Height x width at which CLIP sees an image [default: the model's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Below this probability a cell is left out (255)
    #[arg(long, default_value_t = 0.5)]
    pub confidence: f32,
    /// Work on part i of n of the corpus, counted from 0
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Images in a batch
    #[arg(long, default_value_t = 16, value_parser = count(1, 65_536))]
    pub batch: usize,
    /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
    #[arg(long)]
    pub keep_going: bool,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// `clasp pretrain`
#[derive(Args, Debug)]
pub struct Pretrain {
    /// Recipe (TOML), or the name of a built-in one: demo, mini, swin-tiny, swin-small, swin-base, vit-small, two-stage
    #[arg(required_unless_present = "resume")]
    pub recipe: Option<String>,
    /// Change a value of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the run [default: runs/NAME-METHOD-SEED]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on with a run, from its last checkpoint
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
}

/// A task with a published metric; the list is [`TaskKind`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task(pub TaskKind);

impl ValueEnum for Task {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<Task>> =
            LazyLock::new(|| TaskKind::ALL.iter().copied().map(Task).collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let task = self.0.describe();
        Some(PossibleValue::new(task.name).help(task.about))
    }
}

/// `clasp finetune`
#[derive(Args, Debug)]
pub struct Finetune {
    /// Task
    pub task: Task,
    /// Recipe (TOML), or the name of a built-in one: TASK (as published), TASK-mini (small), search-one-stage [default: TASK]
    pub recipe: Option<String>,
    /// Folder of the data set
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Backbone to start from: a backbone file, run folder or published checkpoint [default: fresh weights]
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Change a value of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the run [default: runs/TASK-SEED]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on with a run, from its last checkpoint
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
}

/// `clasp predict`
#[derive(Args, Debug)]
pub struct Predict {
    /// Task of the model
    pub task: Task,
    /// Files, folders, list files or tar shards; `-` reads a list from standard input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Fine-tuned model or the folder of its run
    #[arg(long)]
    pub model: PathBuf,
    /// File of JSON lines to write
    #[arg(long)]
    pub out: PathBuf,
    /// Folder for pictures of the predictions
    #[arg(long, value_name = "DIR")]
    pub draw: Option<PathBuf>,
    /// Images are photos of several people, whom this fine-tuned model of detection or search finds first
    #[arg(long, value_name = "MODEL")]
    pub people: Option<PathBuf>,
    /// Change how the model is used: a key of `[task]` in its recipe, such as flip_test=false
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Height x width [default: the model's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
    #[arg(long)]
    pub keep_going: bool,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// `clasp search`
#[derive(Args, Debug)]
pub struct Search {
    /// Pictures of the people to look for: a file, a folder, a list file or tar shards
    #[arg(long)]
    pub query: String,
    /// Pictures to look through
    #[arg(long)]
    pub gallery: String,
    /// Fine-tuned re-identification model, or a backbone
    #[arg(long)]
    pub model: PathBuf,
    /// Matches of a query; the contact sheet shows 20 of them at most
    #[arg(long, default_value_t = 10, value_parser = count(1, usize::MAX))]
    pub top: usize,
    /// JSON lines to write: a query and its matches with their cosines
    #[arg(long, default_value = "matches.jsonl")]
    pub out: PathBuf,
    /// Contact sheet to write
    #[arg(long, default_value = "matches.png")]
    pub sheet: PathBuf,
    /// Queries on the sheet
    #[arg(long, default_value_t = 20, value_parser = count(0, 200))]
    pub rows: usize,
    /// Below this cosine a match is left out. From the threshold of `clasp eval reid --calibrate` on matches are marked as the same
    /// person
    #[arg(long, default_value_t = -1.0, allow_negative_numbers = true)]
    pub threshold: f32,
    /// Height x width [default: the model's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
    #[arg(long)]
    pub keep_going: bool,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// `clasp eval`
#[derive(Args, Debug)]
pub struct Eval {
    /// Task
    pub task: Task,
    /// Folder of the data set
    #[arg(long)]
    pub data: PathBuf,
    /// Fine-tuned model or the folder of its run; with --frozen a backbone file, run folder or published checkpoint
    #[arg(long)]
    pub model: PathBuf,
    /// Not a fine-tuned model: the backbone stays as it is, and only a linear read-out is trained (none for
    /// re-identification)
    #[arg(long)]
    pub frozen: bool,
    /// Prompts (--frozen): a task (identity, part, attribute), weights (identity=0.8,part=0.2) or `all` for every one
    #[arg(long)]
    pub mix: Option<String>,
    /// Split to evaluate on (fine-tuned) [default: test, or val where there is no other]
    #[arg(long)]
    pub split: Option<String>,
    /// Change how a fine-tuned model is tested: a key of `[task]` in its recipe, such as test_scales=[0.75,1.0]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Write predictions in the form that the task's benchmark takes (fine-tuned)
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Height x width [default: the model's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// k-reciprocal re-ranking (re-identification only)
    #[arg(long)]
    pub rerank: bool,
    /// Keep with the model the threshold at which this share of pairs of two people pass for one, for `clasp search`
    /// (re-identification, fine-tuned); take data of other people than those that the model is tested on
    #[arg(long, value_name = "RATE")]
    pub calibrate: Option<f64>,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// `clasp embed`
#[derive(Args, Debug)]
pub struct Embed {
    /// Files, folders, list files or tar shards; `-` reads a list from standard input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Backbone file, run folder or published checkpoint
    #[arg(long)]
    pub model: PathBuf,
    /// File to write: F.npy (with the keys in F.npy.keys.txt), or F.parquet
    #[arg(long)]
    pub out: PathBuf,
    /// Prompts: a task or weights
    #[arg(long, default_value = "identity")]
    pub mix: String,
    /// Height x width [default: the backbone's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Go on when more than 5 % of the images cannot be read, and with the whole images of damaged tars
    #[arg(long)]
    pub keep_going: bool,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// `clasp import`
#[derive(Args, Debug)]
pub struct Import {
    /// A .safetensors, .pth, .pt or .bin file; nothing in it is executed
    pub file: PathBuf,
    /// Backbone file to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// Who published it, instead of recognising it: solider-full, solider, solider-task, openmmlab-swin,
    /// microsoft-swin, timm-swin, dino, dinov2, transreid-ssl, pass, hap, mae, timm-vit, clip-openai, clip-open
    #[arg(long = "as", value_name = "NAME", value_parser = parse::<Source>)]
    pub source: Option<Source>,
    /// The student of a training checkpoint, not the teacher
    #[arg(long)]
    pub student: bool,
    /// Height x width of the images it is for; a ViT's position embeddings are resampled to it
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Attention heads of a ViT whose width is none of the published ones
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Mean of red, green and blue to normalise with [default: that of the source's recipes]
    #[arg(long, value_name = "R,G,B", value_parser = colours)]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue to normalise with [default: that of the source's recipes]
    #[arg(long, value_name = "R,G,B", value_parser = colours)]
    pub std: Option<[f32; 3]>,
    /// Take what fits, and start afresh what is missing
    #[arg(long)]
    pub lenient: bool,
}

/// `clasp export`
#[derive(Subcommand, Debug)]
pub enum Export {
    /// Tensors under the names of another program
    Safetensors(ExportSafetensors),
    /// A file for any engine that runs ONNX, checked by one before it gets its name
    Onnx(ExportOnnx),
}

/// `clasp export onnx`
#[derive(Args, Debug)]
pub struct ExportOnnx {
    /// Backbone file, run folder or published checkpoint; for heads of pre-training a run folder or one of its checkpoints;
    /// a fine-tuned model
    pub model: PathBuf,
    /// File to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// What it gives, separated by commas: pooled, tokens, map, pyramid; part, attribute (heads of pre-training)
    /// [default: pooled; of a fine-tuned model what its head gives]
    #[arg(long, value_delimiter = ',')]
    pub outputs: Vec<OnnxOutput>,
    /// Prompts to fold in, a task or weights; `input` to leave them as an input [default: identity, or the fine-tuned
    /// model's own]
    #[arg(long)]
    pub mix: Option<String>,
    /// Images at a time [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: Option<u32>,
    /// Height x width [default: the backbone's own]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Take bytes [batch, height, width, 3] and normalise them inside
    #[arg(long)]
    pub bytes: bool,
    /// 16 bits a number instead of 32
    #[arg(long)]
    pub half: bool,
    /// Weights in a file beside, FILE.data, as always above 1.9 GB
    #[arg(long)]
    pub external_data: bool,
    /// Images to check the file with: a file, a folder, a list file or tar shards [default: drawn people]
    #[arg(long, value_name = "IMAGES")]
    pub check: Option<String>,
}

/// What an ONNX file gives.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnnxOutput {
    /// A feature of the image: [batch, channels]
    Pooled,
    /// A feature of each position: [batch, positions, channels]
    Tokens,
    /// The same as a map: [batch, channels, height, width]
    Map,
    /// The map of each stage, stage1 first
    Pyramid,
    /// Logits of body parts: [batch, parts, height, width]
    Part,
    /// Logits of attribute values: [batch, values]
    Attribute,
}

/// `clasp export safetensors`
#[derive(Args, Debug)]
pub struct ExportSafetensors {
    /// Backbone file, run folder or published checkpoint
    pub model: PathBuf,
    /// File to write
    #[arg(long, short)]
    pub out: PathBuf,
    /// Whose names: timm or solider
    #[arg(long, default_value = "timm", value_parser = parse::<Names>)]
    pub names: Names,
    /// Fold prompts into the plain network: identity, part, attribute, or weights (identity=0.8,part=0.2)
    #[arg(long)]
    pub mix: Option<String>,
    /// Leave out an adapter that has no place there
    #[arg(long)]
    pub drop_adapter: bool,
    /// 16 bits a number instead of 32
    #[arg(long)]
    pub half: bool,
}

/// `clasp inspect`
#[derive(Args, Debug)]
pub struct Inspect {
    /// A backbone file or run folder, a published checkpoint, an ONNX file, a CLIP folder or a folder of labels
    pub file: PathBuf,
}

/// `clasp bench`
#[derive(Args, Debug)]
pub struct Bench {
    /// What to measure
    #[command(subcommand)]
    pub work: BenchWork,
    /// Fail when a figure is more than 15 % below its record in this file, as runs/speed.py --record writes it
    #[arg(long, global = true, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

/// What `clasp bench` measures.
#[derive(Subcommand, Debug)]
pub enum BenchWork {
    /// JPEG to 2 global and 8 local views
    Data(BenchData),
    /// CLIP ViT-B/16: parts and attributes
    Label(BenchOptions),
    /// One pre-training step
    Pretrain(BenchPretrain),
    /// Forward at 384x128
    Embed(BenchOptions),
    /// Market-1501-sized ranking
    Rank(BenchRank),
    /// COCO keypoint evaluation
    Coco(BenchCoco),
    /// Confusion matrix of LIP's validation masks
    Parsing(BenchParsing),
    /// Miss rates of ten subsets at the size of CityPersons' validation images
    Detection(BenchDetection),
    /// Person search with the largest galleries of CUHK-SYSU
    Search(BenchSearch),
    /// A pass, its gradients and a step on --device beside the CPU's, which must be alike: before anything is timed there
    Compare(BenchCompare),
}

/// Options of the benchmarks.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Images in a batch
    #[arg(long, default_value_t = 8, value_parser = count(1, 4096))]
    pub batch: usize,
    /// Timed runs after one warm-up; the median counts
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
    /// How precisely to compute
    #[command(flatten)]
    pub products: Products,
}

/// Options of `clasp bench data`.
#[derive(Args, Debug)]
pub struct BenchData {
    /// A file, a folder, a list file or tar shards
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
    /// Images in a batch
    #[arg(long, default_value_t = 4, value_parser = count(1, 4096))]
    pub batch: usize,
    /// Timed steps after one warm-up; the median counts
    #[arg(long, default_value_t = 3, value_parser = count(1, 10_000))]
    pub iters: usize,
    /// Outputs of the projection head
    #[arg(long, default_value_t = 65536, value_parser = count(2, 1 << 20))]
    pub out_dim: usize,
    /// Local views
    #[arg(long, default_value_t = 8, value_parser = count(0, 64))]
    pub local: usize,
    /// A key of the recipe and its value, as in `views.global_size=[384, 128]`; any number of times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Options of `clasp bench compare`.
#[derive(Args, Debug, Clone)]
pub struct BenchCompare {
    /// Backbone
    #[arg(long, default_value = "swin-pico")]
    pub model: String,
    /// A key of the recipe and its value, as in `views.global_size=[256, 128]`; any number of times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Options of `clasp bench coco`.
#[derive(Args, Debug)]
pub struct BenchCoco {
    /// Images
    #[arg(long, default_value_t = 2000, value_parser = count(1, 1_000_000))]
    pub images: usize,
    /// Poses found for each of an image's 1 to 5 people
    #[arg(long, default_value_t = 2, value_parser = count(1, 100))]
    pub found: usize,
    /// Timed runs after one warm-up; the median counts
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
    /// Boxes found in each, of which one is near each of its 0 to 12 pedestrians
    #[arg(long, default_value_t = 200, value_parser = count(12, 1000))]
    pub found: usize,
    /// Timed runs after one warm-up; the median counts
    #[arg(long, default_value_t = 5, value_parser = count(1, 10_000))]
    pub iters: usize,
}

/// Options of `clasp bench search`.
#[derive(Args, Debug)]
pub struct BenchSearch {
    /// Queries, each a person of their own
    #[arg(long, default_value_t = 2900, value_parser = count(1, 100_000))]
    pub queries: usize,
    /// Frames
    #[arg(long, default_value_t = 6978, value_parser = count(1, 1_000_000))]
    pub frames: usize,
    /// Frames that a query is searched in
    #[arg(long, default_value_t = 4000, value_parser = count(1, 1_000_000))]
    pub gallery: usize,
    /// People found in a frame
    #[arg(long, default_value_t = 8, value_parser = count(1, 1000))]
    pub people: usize,
    /// Length of a feature
    #[arg(long, default_value_t = 256, value_parser = count(1, 8192))]
    pub dim: usize,
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
    /// Length of a feature
    #[arg(long, default_value_t = 768, value_parser = count(1, 8192))]
    pub dim: usize,
    /// Identities
    #[arg(long, default_value_t = 750, value_parser = count(1, 100_000))]
    pub identities: usize,
    /// Re-rank too
    #[arg(long)]
    pub rerank: bool,
}

/// A number from `from` to `to`.
fn count(from: usize, to: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(from as u64..=to as u64)
}

/// `HEIGHTxWIDTH`.
fn size(text: &str) -> Result<[usize; 2], String> {
    let expected = || format!("expected HEIGHTxWIDTH such as 256x128, found `{text}`");
    let (height, width) = text.split_once('x').ok_or_else(expected)?;
    let side = |text: &str| match text.parse::<usize>() {
        Ok(side) if (1..=4096).contains(&side) => Ok(side),
        _ => Err(expected()),
    };
    Ok([side(height)?, side(width)?])
}

/// A name of one of several things.
fn parse<T: FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

/// `R,G,B`, finite.
fn colours(text: &str) -> Result<[f32; 3], String> {
    let expected = || format!("expected three numbers such as 0.485,0.456,0.406, found `{text}`");
    let values: Vec<f32> = text
        .split(',')
        .map(|part| part.trim().parse().ok().filter(|v: &f32| v.is_finite()))
        .collect::<Option<_>>()
        .ok_or_else(expected)?;
    values.try_into().map_err(|_| expected())
}

/// `I/N` with `I < N`.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once('/')
        .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    match parsed {
        Some((index, count)) if index < count => Ok((index, count)),
        _ => Err(format!("expected I/N with I from 0 to N-1, found `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_shards() {
        assert_eq!(size("256x128"), Ok([256, 128]));
        assert!(size("256").is_err() && size("0x5").is_err() && size("99999x1").is_err());
        let threads = |text: &str| Cli::try_parse_from(["clasp", "demo", "--threads", text]);
        assert_eq!(threads("2").unwrap().common.threads, Some(2));
        for text in ["0", "300000", "many"] {
            let message = threads(text).unwrap_err().to_string();
            assert!(message.contains("--threads"), "{message}");
        }
        assert_eq!(shard("2/8"), Ok((2, 8)));
        assert!(shard("8/8").is_err() && shard("1").is_err());
        assert_eq!(colours("0.5, 1,0"), Ok([0.5, 1.0, 0.0]));
        assert!(
            colours("1,2").is_err() && colours("1,2,x").is_err() && colours("1,2,inf").is_err()
        );
    }
}
