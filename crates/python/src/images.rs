//! Images: of files and arrays that a caller lists, and of folders, archives and patterns.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use clasp_data::image::{Limits, Rgb};
use clasp_data::source::{Source, load_file};
use numpy::ndarray::Ix3;
use numpy::{PyArray3, PyArrayMethods, PyUntypedArray};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Borrowed;
use crate::error::failed;

/// Images of folders, tars and patterns, in the order of their keys.
#[pyclass(frozen, module = "clasp")]
pub struct Images {
    pub source: Arc<Source>,
}

#[pymethods]
impl Images {
    /// `places`: a path or pattern, or several.
    #[new]
    fn new(py: Python<'_>, places: &Bound<'_, PyAny>) -> PyResult<Self> {
        let places: Vec<PathBuf> = match places.extract::<PathBuf>() {
            Ok(place) => vec![place],
            Err(_) => places.extract().map_err(|_| {
                PyTypeError::new_err("places: expected a path or pattern, or a list of them")
            })?,
        };
        let text = |place: PathBuf| {
            place.into_os_string().into_string().map_err(|place| {
                PyValueError::new_err(format!("{}: expected a path in UTF-8", place.display()))
            })
        };
        let places: Vec<String> = places.into_iter().map(text).collect::<PyResult<_>>()?;
        let source = py.detach(|| Source::open_several(&places, false));
        let source = Arc::new(source.map_err(failed)?);
        Ok(Self { source })
    }

    fn __len__(&self) -> usize {
        self.source.len()
    }

    /// The image at a position, `[height, width, 3]`.
    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        index: isize,
    ) -> PyResult<Bound<'py, PyArray3<u8>>> {
        let index = position(index, self.source.len())?;
        let image = py.detach(|| self.source.load(index, &Limits::default()));
        let image =
            image.map_err(|failure| failed(format!("{}: {failure}", self.source.place(index))))?;
        to_array(py, image)
    }

    /// Keys: paths below the folder or inside the archive, without their ending.
    #[getter]
    fn keys(&self) -> Vec<String> {
        self.source.keys().map(str::to_owned).collect()
    }
}

/// A position from the start, or from the end where it is negative.
pub fn position(index: isize, length: usize) -> PyResult<usize> {
    let from_start = match index < 0 {
        true => length.checked_sub(index.unsigned_abs()),
        false => Some(index.unsigned_abs()),
    };
    from_start.filter(|index| *index < length).ok_or_else(|| {
        PyIndexError::new_err(format!("expected a position below {length}, found {index}"))
    })
}

/// The image in a file, `[height, width, 3]`.
#[pyfunction]
pub fn load_image(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyArray3<u8>>> {
    let image = py.detach(|| load_file(&path, &Limits::default()));
    to_array(py, image.map_err(failed)?)
}

fn to_array(py: Python<'_>, image: Rgb) -> PyResult<Bound<'_, PyArray3<u8>>> {
    let shape = [image.height, image.width, 3];
    numpy::PyArray1::from_vec(py, image.pixels).reshape(shape)
}

/// Images that a caller hands over.
pub enum Given {
    /// All of a source.
    Source(Arc<Source>),
    /// Files and arrays.
    List(Vec<GivenImage>),
}

/// A file or an array.
pub enum GivenImage {
    File(PathBuf),
    Pixels(Rgb),
}

impl Given {
    /// [`Images`], or a list of paths and of arrays `[height, width, 3]` of `uint8`.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(images) = object.cast::<Images>() {
            return Ok(Self::Source(Arc::clone(&images.get().source)));
        }
        let images = object.try_iter()?.enumerate();
        let image = |(index, item): (usize, PyResult<Bound<'_, PyAny>>)| -> PyResult<GivenImage> {
            let item = item?;
            if item.is_instance_of::<PyUntypedArray>() {
                return Ok(GivenImage::Pixels(pixels(
                    &format!("image {index}"),
                    &item,
                )?));
            }
            let path = item.extract::<PathBuf>().map_err(|_| {
                PyTypeError::new_err(format!("image {index}: expected a path or an array"))
            })?;
            Ok(GivenImage::File(path))
        };
        Ok(Self::List(images.map(image).collect::<PyResult<_>>()?))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Source(source) => source.len(),
            Self::List(images) => images.len(),
        }
    }

    /// What an image is called in messages.
    pub fn name(&self, index: usize) -> String {
        match self {
            Self::Source(source) => source.place(index),
            Self::List(images) => match &images[index] {
                GivenImage::File(path) => path.display().to_string(),
                GivenImage::Pixels(_) => format!("image {index}"),
            },
        }
    }

    /// The image at a position.
    ///
    /// # Errors
    /// It cannot be read; the message names it.
    pub fn load(&self, index: usize) -> Result<Cow<'_, Rgb>, String> {
        match self {
            Self::Source(source) => { source.load(index, &Limits::default()) }
                .map(Cow::Owned)
                .map_err(|failure| format!("{}: {failure}", source.place(index))),
            Self::List(images) => match &images[index] {
                GivenImage::File(path) => { load_file(path, &Limits::default()) }
                    .map(Cow::Owned)
                    .map_err(|error| error.to_string()),
                GivenImage::Pixels(image) => Ok(Cow::Borrowed(image)),
            },
        }
    }
}

/// An array `[height, width, 3]` of `uint8` as an image.
pub fn pixels(name: &str, array: &Bound<'_, PyAny>) -> PyResult<Rgb> {
    let array = Borrowed::<u8, Ix3>::new(name, array)?;
    match *array.shape() {
        [height, width, 3] if height > 0 && width > 0 => {
            Ok(Rgb::new(width, height, array.values()?.to_vec()))
        }
        ref shape => Err(PyValueError::new_err(format!(
            "{name}: expected [height, width, 3], found {shape:?}"
        ))),
    }
}
