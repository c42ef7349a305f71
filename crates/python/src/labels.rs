//! Label stores.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clasp_data::labels::{Correction, LabelRef, PartCorrection, Store};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::to_python;
use crate::error::failed;
use crate::images::position;

/// The labels of many images, in memory.
#[pyclass(frozen, module = "clasp._clasp")]
pub struct LabelStore {
    folder: PathBuf,
    store: Mutex<Store>,
}

#[pymethods]
impl LabelStore {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        let store = py.detach(|| Store::open(&folder)).map_err(failed)?;
        let store = Mutex::new(store);
        Ok(Self { folder, store })
    }

    fn __len__(&self) -> usize {
        self.store().len()
    }

    /// Keys of the images, in the order of the rows.
    #[getter]
    fn keys(&self) -> Vec<String> {
        self.store().iter().map(|row| row.key.to_owned()).collect()
    }

    /// What all labels share.
    #[getter]
    fn meta<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.store();
        let meta = &store.meta;
        let dict = PyDict::new(py);
        dict.set_item("vocabulary", to_python(py, &meta.vocabulary)?)?;
        dict.set_item("model", &meta.model)?;
        dict.set_item("model_sha256", &meta.model_sha256)?;
        dict.set_item("grid", (meta.rows, meta.columns))?;
        dict.set_item("method", &meta.method)?;
        dict.set_item("dense", &meta.dense)?;
        dict.set_item("confidence", meta.confidence)?;
        Ok(dict)
    }

    /// Input shards whose labels another program wrote or changed.
    #[getter]
    fn edited(&self) -> Vec<String> {
        self.store().edited.clone()
    }

    /// The labels at a position.
    fn at<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Bound<'py, PyDict>> {
        let store = self.store();
        let index = position(index, store.len())?;
        fields(py, &store, store.row(index))
    }

    /// Whether there are labels of a key.
    fn has(&self, key: &str) -> bool {
        self.store().get(key).is_some()
    }

    /// The labels of a key.
    fn of<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Bound<'py, PyDict>> {
        let store = self.store();
        let row = store.get(key);
        let row = row.ok_or_else(|| PyKeyError::new_err(format!("no labels of image {key:?}")))?;
        fields(py, &store, row)
    }

    /// Adds to the corrections of an image, here and in the folder; `clear` removes earlier ones
    /// first. `parts`: row, column and class.
    fn correct(
        &self,
        py: Python<'_>,
        key: &str,
        attributes: BTreeMap<String, Option<String>>,
        parts: Vec<(usize, usize, Option<String>)>,
        clear: bool,
    ) -> PyResult<()> {
        let parts = parts
            .into_iter()
            .map(|(row, column, class)| PartCorrection { row, column, class });
        let newer = Correction {
            key: key.to_owned(),
            image_sha256: String::new(),
            attributes,
            parts: parts.collect(),
        };
        py.detach(|| {
            let mut store = self.store();
            store.add_correction(&self.folder, newer, clear)
        })
        .map_err(failed)?;
        Ok(())
    }
}

impl LabelStore {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fields<'py>(py: Python<'py>, store: &Store, row: LabelRef<'_>) -> PyResult<Bound<'py, PyDict>> {
    let grid = [store.meta.rows, store.meta.columns];
    let map = |values: &[u8]| PyArray1::from_slice(py, values).reshape(grid);
    let dict = PyDict::new(py);
    dict.set_item("key", row.key)?;
    dict.set_item("width", row.width)?;
    dict.set_item("height", row.height)?;
    dict.set_item("parts", map(row.values.parts)?)?;
    dict.set_item("part_confidence", map(row.values.part_confidence)?)?;
    dict.set_item(
        "attributes",
        PyArray1::from_slice(py, row.values.attributes),
    )?;
    dict.set_item("image_sha256", row.image_sha256)?;
    let correction = store.correction(row.key);
    let corrected = correction.map(|correction| correction.attributes.clone());
    dict.set_item("corrected", corrected.unwrap_or_default())?;
    Ok(dict)
}
