//! Errors of the libraries as a Python exception.

use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::PyRuntimeError;

create_exception!(
    clasp,
    Error,
    PyRuntimeError,
    "What went wrong, in the words of the command line."
);

/// An error of the libraries as a Python exception.
pub fn failed(error: impl std::fmt::Display) -> PyErr {
    Error::new_err(error.to_string())
}
