//! The views that pre-training makes of images, with their labels.

use std::sync::{Arc, Mutex, PoisonError};

use clasp_data::augment::{View, views};
use clasp_data::rng_for;
use clasp_pretrain::dataset::{ImageReads, PretrainDataset, ViewGenerator};
use clasp_pretrain::recipe::PretrainRecipe;
use numpy::{PyArray1, PyArray4, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rand::RngExt;

use crate::error::failed;
use crate::images::{pixels, position};

/// Makes the views of a recipe: of an image that is handed over, or of the images and labels that
/// the recipe names.
#[pyclass(frozen, module = "clasp._clasp")]
pub struct ViewMaker {
    recipe: PretrainRecipe,
    /// Images and labels, where they were opened.
    images: Option<OpenImages>,
}

struct OpenImages {
    generator: ViewGenerator,
    unreadable: Arc<Mutex<ImageReads>>,
    length: usize,
    /// Rows and columns of the backbone's map of a global view.
    grid: [usize; 2],
}

#[pymethods]
impl ViewMaker {
    /// `with_images`: opens the images and labels of the recipe.
    #[new]
    fn new(
        py: Python<'_>,
        recipe: &str,
        overrides: Vec<String>,
        with_images: bool,
    ) -> PyResult<Self> {
        let recipe = PretrainRecipe::load(recipe, &overrides).map_err(failed)?;
        recipe.check().map_err(failed)?;
        if !with_images {
            return Ok(Self {
                recipe,
                images: None,
            });
        }
        let dataset = py
            .detach(|| PretrainDataset::open(&recipe))
            .map_err(failed)?;
        let length = dataset.len();
        let unreadable = Arc::default();
        let grid = recipe.grid().map_err(failed)?;
        let generator =
            ViewGenerator::new(Arc::new(dataset), &recipe, grid, Arc::clone(&unreadable));
        Ok(Self {
            images: Some(OpenImages {
                generator,
                unreadable,
                length,
                grid,
            }),
            recipe,
        })
    }

    fn __len__(&self) -> usize {
        self.images.as_ref().map_or(0, |images| images.length)
    }

    /// Global and local views of an image `[height, width, 3]`, each `[views, 3, height, width]`.
    fn views<'py>(
        &self,
        py: Python<'py>,
        image: &Bound<'py, PyAny>,
        key: &str,
        epoch: u64,
    ) -> PyResult<[Bound<'py, PyArray4<f32>>; 2]> {
        let image = pixels("image", image)?;
        let config = &self.recipe.views;
        let mut rng = rng_for(self.recipe.seed, epoch, key);
        // Pre-training draws SOLIDER's λ first.
        let _: bool = rng.random_bool(0.5);
        let made = py.detach(|| views(&image, None, config, [1, 1], &mut rng));
        Ok([
            stacked(py, &made.global, config.global_size)?,
            stacked(py, &made.local, config.local_size)?,
        ])
    }

    /// Views and labels of the image at a position, as pre-training makes them in this epoch.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        index: isize,
        epoch: u64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let images = (self.images.as_ref()).ok_or_else(|| failed("no images were opened"))?;
        let index = position(index, images.length)?;
        let sample = py.detach(|| images.generator.sample(index, epoch));
        let Some(sample) = sample else {
            let reads = images.unreadable.lock();
            let reads = reads.unwrap_or_else(PoisonError::into_inner);
            let key = images.generator.key(index);
            let reason = reads.failed.get(key).map_or("", String::as_str);
            return Err(failed(format!("{key}: {reason}")));
        };
        let config = &self.recipe.views;
        let dict = PyDict::new(py);
        dict.set_item("key", &sample.key)?;
        dict.set_item(
            "global",
            stacked(py, &sample.views.global, config.global_size)?,
        )?;
        dict.set_item(
            "local",
            stacked(py, &sample.views.local, config.local_size)?,
        )?;
        let maps: Vec<u8> = { sample.views.global.iter() }
            .filter_map(|view| view.labels.as_ref())
            .flat_map(|labels| labels.parts.iter().copied())
            .collect();
        if !maps.is_empty() {
            let [rows, columns] = images.grid;
            let shape = [sample.views.global.len(), rows, columns];
            dict.set_item("parts", PyArray1::from_vec(py, maps).reshape(shape)?)?;
        }
        if let Some(targets) = sample.attributes {
            dict.set_item("attributes", PyArray1::from_vec(py, targets.target))?;
            dict.set_item("attribute_weights", PyArray1::from_vec(py, targets.weight))?;
        }
        Ok(dict)
    }
}

/// Views of one size as an array `[views, 3, height, width]`.
fn stacked<'py>(
    py: Python<'py>,
    views: &[View],
    [height, width]: [usize; 2],
) -> PyResult<Bound<'py, PyArray4<f32>>> {
    let pixels = views.iter().flat_map(|view| view.pixels.iter().copied());
    PyArray1::from_iter(py, pixels).reshape([views.len(), 3, height, width])
}
