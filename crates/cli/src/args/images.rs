//! Images, synthetic people and pseudo-labels: `synth`, `data`, `label`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clasp_data::labels::PartCorrection;
use clasp_label::show::MOST_SHOWN;

use super::values::{MatrixPrecision, attribute_value, count, part_class, shard, size};

/// `clasp synth`
#[derive(Args, Debug)]
pub struct SynthArguments {
    /// Folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// Training identities
    #[arg(long, default_value_t = 200)]
    pub train_identities: usize,
    /// Test identities, different people
    #[arg(long, default_value_t = 100)]
    pub test_identities: usize,
    /// Cameras; each sees every person
    #[arg(long, default_value_t = 3)]
    pub cameras: usize,
    /// Images of each person by each camera
    #[arg(long, default_value_t = 2)]
    pub shots: usize,
    /// Unlabeled images of further people, for pre-training
    #[arg(long, default_value_t = 0)]
    pub unlabeled: usize,
    /// Street scenes with several people, for detection and person search
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
pub enum DataCommand {
    /// Recognize the layout of a dataset, count its images and compare with the official counts
    Check {
        /// Folder of the dataset
        path: PathBuf,
    },
    /// Pack images into tar shards
    Pack {
        /// Files, folders, list files, tar shards (people-{000..099}.tar) or Parquet files; `-` reads a
        /// list from standard input
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
        /// Folder for the shards
        #[arg(long)]
        out: PathBuf,
        /// Images per shard
        #[arg(long, default_value_t = 4096, value_parser = count(1, 1_000_000))]
        per_shard: usize,
        /// Downscale taller images to this height and encode them again as JPEG
        #[arg(long, value_parser = count(1, 65_536))]
        max_height: Option<usize>,
        /// Continue when more than 5 % of the images cannot be read, and use the intact images of
        /// damaged tar and Parquet files
        #[arg(long)]
        keep_going: bool,
    },
    /// Count images, sizes and unreadable files
    Stats {
        /// Files, folders, list files, tar shards or Parquet files; `-` reads a list from standard
        /// input
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
        /// Continue when more than 5 % of the images cannot be read, and use the intact images of
        /// damaged tar and Parquet files
        #[arg(long)]
        keep_going: bool,
    },
}

/// `clasp label`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LabelArguments {
    /// Work on existing labels
    #[command(subcommand)]
    pub action: Option<LabelAction>,
    /// Label images
    #[command(flatten)]
    pub run: LabelRunArguments,
}

/// Commands on existing labels.
#[derive(Subcommand, Debug)]
pub enum LabelAction {
    /// Compute the calibration again from the stored attribute logits, without CLIP
    Calibrate {
        /// Folder of labels
        labels: PathBuf,
    },
    /// Check that labels, also edited ones and those of other programs, match their images
    Check {
        /// Folder of labels
        labels: PathBuf,
        /// The labeled images
        #[arg(required = true, num_args = 1..)]
        images: Vec<String>,
    },
    /// Correct labels of an image by hand; pre-training learns the corrected values
    Correct {
        /// Folder of labels
        labels: PathBuf,
        /// Key of the image, as `clasp label show` prints it
        key: String,
        /// Value of an attribute; without a VALUE, as in `gender=`, for one that nobody can tell
        #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute_value)]
        attributes: Vec<(String, Option<String>)>,
        /// Class of a position of the part map, counted from 0 at the top left; without a CLASS for
        /// one that nobody can tell
        #[arg(long = "part", value_name = "ROW,COLUMN=CLASS", value_parser = part_class)]
        parts: Vec<PartCorrection>,
        /// Remove earlier corrections of the image first
        #[arg(long)]
        clear: bool,
    },
    /// Measure how far two label folders of the same images agree, or how accurate one is against
    /// ground truth (OUT/truth of `clasp synth`)
    Compare {
        /// Folder of labels
        one: PathBuf,
        /// Another folder with the same vocabulary and grid
        other: PathBuf,
    },
    /// Draw a contact sheet of images with their part maps and attributes
    Show {
        /// Folder of labels
        labels: PathBuf,
        /// The labeled images
        images: String,
        /// Picture to write
        #[arg(long, default_value = "labels.png")]
        out: PathBuf,
        /// Images on the sheet
        #[arg(long, default_value_t = 16, value_parser = count(1, MOST_SHOWN))]
        count: usize,
        /// Seed of the selection
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Print class shares, confidence, value frequencies and warnings
    Stats {
        /// Folder of labels
        labels: PathBuf,
    },
}

/// `clasp label IMAGES`
#[derive(Args, Debug)]
pub struct LabelRunArguments {
    /// Files, folders, list files, tar shards (people-{000..099}.tar) or Parquet files; `-` reads a
    /// list from standard input
    #[arg(required = true, num_args = 1..)]
    pub images: Vec<String>,
    /// Folder to write the labels to
    #[arg(long, required = true)]
    pub out: Option<PathBuf>,
    /// A CLIP folder or name (openai/clip-vit-base-patch16); `mini` is clasp-mini, the tiny bundled
    /// CLIP
    #[arg(long, default_value = "mini")]
    pub clip: String,
    /// Label without CLIP, by k-means on the features of this backbone as in SOLIDER
    #[arg(long, value_name = "BACKBONE", conflicts_with = "clip")]
    pub kmeans: Option<PathBuf>,
    /// File with part classes, attributes and the texts that describe them [default: the built-in
    /// vocabulary]
    #[arg(long)]
    pub vocabulary: Option<PathBuf>,
    /// Method of CLIP's dense features: clear, mask or self
    #[arg(long, default_value = "clear")]
    pub dense: String,
    /// Rows x columns of the stored part map
    #[arg(long, default_value = "16x8", value_parser = size)]
    pub grid: [usize; 2],
    /// Height x width of CLIP's input [default: that of the model]
    #[arg(long, value_parser = size)]
    pub size: Option<[usize; 2]>,
    /// Patch positions below this probability get the ignore index 255
    #[arg(long, default_value_t = 0.5)]
    pub confidence: f32,
    /// Label part I of N of the images, counted from 0
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_parser = count(1, 65_536))]
    pub batch: usize,
    /// Continue when more than 5 % of the images cannot be read, and use the intact images of
    /// damaged tar and Parquet files
    #[arg(long)]
    pub keep_going: bool,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}
