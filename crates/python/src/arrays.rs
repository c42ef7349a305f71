//! NumPy arrays in, NumPy arrays and plain Python objects out.

use numpy::{
    Element, PyArray, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;

/// A borrowed array of `D` axes, contiguous in C order.
pub struct Borrowed<'py, T: Element, D: numpy::ndarray::Dimension>(PyReadonlyArray<'py, T, D>);

/// A list of numbers.
pub type List<'py, T> = Borrowed<'py, T, numpy::Ix1>;
/// A table of numbers, `[rows, columns]`.
pub type Table<'py, T> = Borrowed<'py, T, numpy::Ix2>;

impl<'py, T: Element, D: numpy::ndarray::Dimension> Borrowed<'py, T, D> {
    /// The array behind a Python object; `name` is for messages.
    ///
    /// # Errors
    /// `ValueError` for another type of elements, number of axes or order in memory: a slice of an
    /// array in Fortran order would hold its elements in another order.
    pub fn new(name: &str, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let untyped = (object.cast::<PyUntypedArray>())
            .map_err(|_| PyTypeError::new_err(format!("{name}: expected a NumPy array")))?;
        let array = object.cast::<PyArray<T, D>>().map_err(|_| {
            PyValueError::new_err(format!(
                "{name}: expected {} of {} axes, found {} of shape {:?}",
                T::get_dtype(object.py()).typeobj(),
                D::NDIM.unwrap_or_default(),
                untyped.dtype().typeobj(),
                untyped.shape()
            ))
        })?;
        if !array.is_c_contiguous() {
            return Err(PyValueError::new_err(format!(
                "{name}: expected an array that is contiguous in C order"
            )));
        }
        { array.try_readonly() }
            .map(Self)
            .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The elements in C order.
    ///
    /// # Errors
    /// None after [`Self::new`].
    pub fn values(&self) -> PyResult<&[T]> {
        (self.0.as_slice()).map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

impl<'py, T: Element> List<'py, T> {
    /// A list with `count` elements, one for each of `of`.
    ///
    /// # Errors
    /// `ValueError`, as [`Borrowed::new`], or for another number of elements.
    pub fn of(name: &str, object: &Bound<'py, PyAny>, count: usize, of: &str) -> PyResult<Self> {
        let list = Self::new(name, object)?;
        as_many(name, list.shape()[0], count, of)?;
        Ok(list)
    }
}

/// Checks that a list has as many elements as what it belongs to.
pub fn as_many(name: &str, found: usize, expected: usize, of: &str) -> PyResult<()> {
    match found == expected {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "{name}: expected {expected} elements, one for each of {of}, found {found}"
        ))),
    }
}

/// Rows of four numbers, x, y, width and height.
pub fn boxes(name: &str, table: &Table<'_, f64>) -> PyResult<Vec<[f64; 4]>> {
    if table.shape()[1] != 4 {
        return Err(PyValueError::new_err(format!(
            "{name}: expected rows of x, y, width and height, found {} columns",
            table.shape()[1]
        )));
    }
    let (rows, _) = table.values()?.as_chunks::<4>();
    Ok(rows.to_vec())
}

/// What serializes, as dictionaries, lists, numbers and texts.
///
/// # Errors
/// Python is out of memory.
pub fn to_python<'py>(
    py: Python<'py>,
    value: &impl serde::Serialize,
) -> PyResult<Bound<'py, PyAny>> {
    of_json(
        py,
        &serde_json::to_value(value).map_err(crate::error::failed)?,
    )
}

fn of_json<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => value.into_pyobject(py)?.into_any(),
            (None, Some(value)) => value.into_pyobject(py)?.into_any(),
            (None, None) => number.as_f64().into_pyobject(py)?.into_any(),
        },
        Value::String(text) => text.into_pyobject(py)?.into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(of_json(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, value) in fields {
                dict.set_item(key, of_json(py, value)?)?;
            }
            dict.into_any()
        }
    })
}
