//! What can go wrong on the way to ONNX.

use std::io;

/// Why a network cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Burn could not record it.
    #[error("the network cannot be recorded: {0}")]
    Capture(String),
    /// It does something that has no row in the table.
    #[error(
        "the network uses {0}, which this program cannot write as ONNX\nhint: export the backbone without this head, or \
         report it as a bug"
    )]
    Operation(String),
    /// Something in it is not a multiple of the batch.
    #[error("{0} depends on the batch\nhint: give the batch, `--batch 1`")]
    Batch(String),
    /// A value beyond the range of fp16.
    #[error("{0} is beyond 65504, the largest number of fp16\nhint: export with --precision f32")]
    Fp16(String),
    /// The file was written and something is wrong with it.
    #[error("the file was written, but the engine that checks it {0}; nothing was kept")]
    Engine(String),
    /// The file does not compute what the network computes.
    #[error(
        "the file was written, but on {on} its `{output}` differs from the network's by {difference:.1e}, more than \
         {tolerance:.0e}; nothing was kept"
    )]
    Differs {
        /// What it was run on.
        on: String,
        /// The output.
        output: String,
        /// Largest difference.
        difference: f32,
        /// Largest that is accepted.
        tolerance: f32,
    },
    /// A file that is no ONNX.
    #[error("{file}: expected an ONNX file, found none: {cause}")]
    Format {
        /// The file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The file system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
}
