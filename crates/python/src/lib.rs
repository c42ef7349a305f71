//! The extension module `clasp._clasp`, which the Python package in `python/clasp` wraps: that is
//! where arguments get defaults, types and documentation.
//!
//! | module | holds |
//! |---|---|
//! | `error` | the exception of everything that is no mistake of the caller |
//! | `arrays` | checks of NumPy arrays, JSON values as Python objects |
//! | `threads` | work without the interpreter's lock, Ctrl-C, forked processes |
//! | `images` | folders, archives, files and arrays of images |
//! | `model` | features and predictions |
//! | `labels` | label stores |
//! | `views` | the views of pre-training |
//! | `metrics` | the metrics |
//!
//! NumPy arrays are borrowed where they are contiguous in C order and of the type that is needed;
//! the Python side makes others so. Mistakes of the caller are `ValueError`, everything else that
//! fails is `clasp.Error`, a `RuntimeError`.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod arrays;
mod error;
mod images;
mod labels;
mod metrics;
mod model;
mod threads;
mod views;

use std::ffi::OsString;

use error::Error;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: clasp_cli::allocator::MiMalloc = clasp_cli::allocator::MiMalloc;

/// Runs the program with these arguments, its own name first; its exit status.
#[pyfunction]
fn run(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    clasp_cli::allocator::keep_pages();
    py.detach(|| clasp_cli::run(arguments))
}

#[pymodule]
fn _clasp(module: &Bound<'_, PyModule>) -> PyResult<()> {
    clasp_data::contained::silence();
    module.add("Error", module.py().get_type::<Error>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(run, module)?)?;
    module.add_function(wrap_pyfunction!(images::load_image, module)?)?;
    module.add_class::<images::Images>()?;
    module.add_class::<labels::LabelStore>()?;
    module.add_class::<model::Model>()?;
    module.add_class::<views::ViewMaker>()?;
    metrics::add_to(module)
}
