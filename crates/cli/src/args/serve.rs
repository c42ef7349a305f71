//! `clasp serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::values::{MatrixPrecision, count};

/// `clasp serve`
#[derive(Args, Debug)]
pub struct ServeArguments {
    /// Fine-tuned model, backbone file, run folder or published checkpoint; one backbone, and one
    /// model of each task
    #[arg(long = "model", value_name = "RUN", required = true)]
    pub models: Vec<PathBuf>,
    /// Images to search in: a folder, a list file, tar shards or Parquet files; or the .parquet of
    /// `clasp embed`
    #[arg(long)]
    pub gallery: Option<String>,
    /// Folder that keeps what clients add to the gallery and remove; without it they cannot
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Labels of the gallery's images, to filter by attributes
    #[arg(long, value_name = "DIR")]
    pub labels: Option<PathBuf>,
    /// Folder of runs, to show their curves
    #[arg(long, value_name = "DIR")]
    pub runs: Option<PathBuf>,
    /// Address and port; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Secret that every request has to carry as `Authorization: Bearer`; needed where others than
    /// this machine reach the address
    #[arg(long, conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File with the secret, which other users cannot see as they see arguments
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve everybody who reaches the address
    #[arg(long)]
    pub insecure: bool,
    /// Name by which the server is reached, beside localhost and addresses
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// MiB of a request's body
    #[arg(long, default_value_t = 32, value_name = "MIB", value_parser = count(1, 1024))]
    pub max_body: usize,
    /// Million pixels of an image
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = count(1, 1000))]
    pub max_pixels: usize,
    /// Images of a request
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count(1, 4096))]
    pub max_images: usize,
    /// Seconds to the answer of a request, its body included
    #[arg(long, default_value_t = 30, value_name = "S", value_parser = count(1, 3600))]
    pub max_seconds: usize,
    /// Images that wait for the models; further ones are answered 503
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = count(1, 65_536))]
    pub max_queue: usize,
    /// Images that a model takes at a time
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = count(1, 4096))]
    pub max_batch: usize,
    /// Milliseconds that an image waits for others to be computed with it
    #[arg(long, default_value_t = 5, value_name = "MS", value_parser = count(0, 10_000))]
    pub max_wait: usize,
    /// Connections at a time
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = count(1, 65_536))]
    pub max_connections: usize,
    /// Images in the gallery
    #[arg(long, default_value_t = 2_000_000, value_name = "N", value_parser = count(1, 100_000_000))]
    pub max_gallery: usize,
    /// Continue when more than 5 % of the gallery's images cannot be read, and use the intact images
    /// of damaged tar and Parquet files
    #[arg(long)]
    pub keep_going: bool,
    /// Precision of matrix products
    #[command(flatten)]
    pub precision: MatrixPrecision,
}
