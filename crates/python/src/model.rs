//! Backbones and fine-tuned models: features, predictions, tensors.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clasp_model::backbone::Backbone;
use clasp_model::prompt::{IDENTITY, PromptWeights};
use clasp_tasks::embed;
use clasp_tasks::task::{DownstreamTask, FinetunedModel, Inference, InputKind};
use clasp_tasks::{
    BackboneExtractor, Batching, PassProgress, Preprocess, TaskError, TaskKind, with_task,
};
use clasp_weights::backbone::{BackboneMeta, backbone_state};
use clasp_weights::checkpoint::StorageFormat;
use clasp_weights::export::{ExportOptions, NamingScheme, folded, named};
use clasp_weights::finetuned::{self, FinetunedMeta};
use clasp_weights::hub::{self, HubOptions};
use clasp_weights::import::load_backbone;
use numpy::{PyArray1, PyArray2, PyArrayDyn, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;

use crate::arrays::to_python;
use crate::error::failed;
use crate::images::Given;
use crate::threads::{count, interruptible};

type GoOn<'a> = &'a (dyn Fn(PassProgress) -> ControlFlow<()> + Sync);

/// The part of a fine-tuned model that does not depend on its task.
trait Predictions: Send + Sync {
    /// The backbone and its metadata.
    fn backbone(&self) -> (&Backbone, &BackboneMeta);

    /// Whether images are resized to a size that may be given.
    fn takes_size(&self) -> bool;

    /// A prediction for each image, in order; `go_on` is asked after each batch.
    fn predict(
        &self,
        images: &Given,
        size: Option<[usize; 2]>,
        batching: Batching,
        go_on: GoOn<'_>,
    ) -> Result<Vec<Value>, String>;
}

impl<T: DownstreamTask> Predictions for FinetunedModel<T> {
    fn backbone(&self) -> (&Backbone, &BackboneMeta) {
        (&self.backbone, &self.meta)
    }

    fn takes_size(&self) -> bool {
        T::INPUT == InputKind::Person
    }

    fn predict(
        &self,
        images: &Given,
        size: Option<[usize; 2]>,
        batching: Batching,
        go_on: GoOn<'_>,
    ) -> Result<Vec<Value>, String> {
        let words = |error: TaskError| error.to_string();
        let mut model = self.clone();
        if let Some(size) = size {
            [model.preprocess.height, model.preprocess.width] = size;
            model.check().map_err(words)?;
        }
        let inference = Inference {
            batch: batching.batch,
            threads: batching.threads,
            predictions: false,
            progress: go_on,
        };
        let one = |model: &Self, item: usize| -> Result<Result<Value, String>, TaskError> {
            match images.load(item) {
                Ok(image) => model.task.predict(model, &image).map(Ok),
                Err(problem) => Ok(Err(problem)),
            }
        };
        let found = model.batches("images", images.len(), &inference, |model, items| {
            items.map(|item| one(model, item)).collect()
        });
        found.map_err(words)?.into_iter().collect()
    }
}

/// A backbone, with the head of a task where it was fine-tuned.
#[pyclass(frozen, module = "clasp._clasp")]
pub struct Model {
    /// Where it lies, also when it came from a hub.
    path: PathBuf,
    backbone: Backbone,
    preprocess: Preprocess,
    prompt: PromptWeights,
    meta: BackboneMeta,
    device: Device,
    head: Option<Head>,
}

/// A head and what its file says of it.
struct Head {
    task: &'static str,
    state: Value,
    predictions: Box<dyn Predictions>,
}

fn load_head(path: &Path, found: FinetunedMeta, device: &Device) -> Result<Head, String> {
    let kind = TaskKind::named(&found.task).ok_or_else(|| {
        format!(
            "{}: fine-tuned for `{}`, an unknown task",
            path.display(),
            found.task
        )
    })?;
    let predictions = with_task!(kind, T => load_predictions::<T>(path, device));
    Ok(Head {
        task: kind.name(),
        state: found.task_state,
        predictions: predictions.map_err(|error| error.to_string())?,
    })
}

fn load_predictions<T: DownstreamTask>(
    path: &Path,
    device: &Device,
) -> Result<Box<dyn Predictions>, TaskError> {
    Ok(Box::new(FinetunedModel::<T>::load(path, device)?))
}

fn load(path: &Path, go_on: &dyn Fn() -> bool) -> Result<Model, String> {
    let device = Device::flex();
    let path = &hub::existing_or_fetched_while(path, &HubOptions::from_env(), go_on)
        .map_err(|error| error.to_string())?;
    let fine_tuned = finetuned::read_meta(path).map_err(|error| error.to_string())?;
    let prompt = (fine_tuned.as_ref()).map_or(PromptWeights::single(IDENTITY), |fine_tuned| {
        fine_tuned.prompt_weights
    });
    let head = fine_tuned
        .map(|found| load_head(path, found, &device))
        .transpose()?;
    let (backbone, meta) = match &head {
        None => load_backbone(path, &device).map_err(|error| error.to_string())?,
        Some(head) => {
            let (backbone, meta) = head.predictions.backbone();
            (backbone.clone(), meta.clone())
        }
    };
    Ok(Model {
        path: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        preprocess: Preprocess::of(&meta),
        backbone,
        prompt,
        meta,
        device,
        head,
    })
}

#[pymethods]
impl Model {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let loaded = interruptible(py, count(None)?, None, |go_on| {
            let nothing = PassProgress {
                stage: "download",
                done: 0,
                total: 0,
            };
            load(&path, &|| go_on(nothing).is_continue())
        })?;
        loaded.map_err(failed)
    }

    /// Where it lies.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Name of the task that it was fine-tuned for, if any.
    #[getter]
    fn task(&self) -> Option<&'static str> {
        self.head.as_ref().map(|head| head.task)
    }

    /// Height and width of its inputs.
    #[getter]
    fn size(&self) -> (usize, usize) {
        (self.preprocess.height, self.preprocess.width)
    }

    /// Length of a feature.
    #[getter]
    fn channels(&self) -> usize {
        self.backbone.channels()
    }

    /// Default prompt weights.
    #[getter]
    fn prompt(&self) -> String {
        self.prompt.to_string()
    }

    /// The metadata of its file.
    #[getter]
    fn meta<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.meta)
    }

    /// What the task stored with its head.
    #[getter]
    fn task_state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.head.as_ref().map(|head| &head.state))
    }

    /// Pooled features, not normalized: `[images, channels]`. `batching`: images in a batch, threads.
    #[pyo3(signature = (images, prompt, size, batching, progress))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        prompt: Option<&str>,
        size: Option<[usize; 2]>,
        batching: (usize, Option<usize>),
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let images = Given::of(images)?;
        let prompt = self.prompt_or(prompt)?;
        let preprocess = self.preprocess_at(size)?;
        let extractor = BackboneExtractor::new(self.backbone.clone(), prompt, self.device.clone());
        let batching = batching_of(batching)?;
        let rows = interruptible(py, batching.threads, progress, |go_on| {
            pooled(&extractor, &preprocess, &images, &batching, go_on)
        })?;
        let rows = rows.map_err(failed)?;
        let shape = [images.len(), self.backbone.channels()];
        PyArray1::from_vec(py, rows).reshape(shape)
    }

    /// A dictionary for each image, as `clasp predict` writes it.
    #[pyo3(signature = (images, size, batching, progress))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        images: &Bound<'py, PyAny>,
        size: Option<[usize; 2]>,
        batching: (usize, Option<usize>),
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let head = self.head.as_ref().ok_or_else(|| {
            PyValueError::new_err("a backbone predicts nothing; fine-tune it with clasp.finetune")
        })?;
        self.preprocess_at(size)?;
        if size.is_some() && !head.predictions.takes_size() {
            let task = head.task;
            return Err(PyValueError::new_err(format!(
                "size: inputs of {task} are whole scenes, which keep their size"
            )));
        }
        let images = Given::of(images)?;
        let batching = batching_of(batching)?;
        let found = interruptible(py, batching.threads, progress, |go_on| {
            head.predictions.predict(&images, size, batching, go_on)
        })?;
        let found = found.map_err(failed)?;
        let list = PyList::empty(py);
        for prediction in &found {
            list.append(to_python(py, prediction)?)?;
        }
        Ok(list)
    }

    /// The tensors of the backbone by name. `names`: `clasp`, `timm` or `solider`; for the latter
    /// two a mixture of experts is folded at `prompt`.
    #[pyo3(signature = (names, prompt))]
    fn state_dict<'py>(
        &self,
        py: Python<'py>,
        names: &str,
        prompt: Option<&str>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let state = if names == "clasp" {
            backbone_state(&self.backbone)
        } else {
            let names: NamingScheme = { names.parse() }.map_err(|_| {
                PyValueError::new_err(format!(
                    "names: expected clasp, timm or solider, found {names:?}"
                ))
            })?;
            let prompt = self.prompt_or(prompt)?;
            let (backbone, meta) = folded(&self.backbone, &self.meta, prompt)
                .unwrap_or_else(|| (self.backbone.clone(), self.meta.clone()));
            let options = ExportOptions {
                names,
                drop_adapter: false,
                precision: StorageFormat::F32,
            };
            named(&backbone, &meta, options).map_err(failed)?.state
        };
        let dict = PyDict::new(py);
        for (name, tensor) in state {
            let array: Bound<'py, PyArrayDyn<f32>> =
                PyArray1::from_vec(py, tensor.data).reshape(tensor.shape)?;
            dict.set_item(name, array)?;
        }
        Ok(dict)
    }
}

impl Model {
    /// The prompt that was asked for, or the model's own.
    fn prompt_or(&self, asked: Option<&str>) -> PyResult<PromptWeights> {
        asked.map_or(Ok(self.prompt), |text| {
            text.parse().map_err(|error: clasp_model::ModelError| {
                PyValueError::new_err(format!("prompt: {error}"))
            })
        })
    }

    fn preprocess_at(&self, size: Option<[usize; 2]>) -> PyResult<Preprocess> {
        let mut preprocess = self.preprocess.clone();
        if let Some([height, width]) = size {
            if height == 0 || width == 0 || height.max(width) > 4096 {
                return Err(PyValueError::new_err(format!(
                    "size: expected height and width of 1 to 4096, found {height} and {width}"
                )));
            }
            [preprocess.height, preprocess.width] = [height, width];
        }
        Ok(preprocess)
    }
}

fn batching_of((batch, threads): (usize, Option<usize>)) -> PyResult<Batching> {
    if batch == 0 {
        return Err(PyValueError::new_err("batch: expected at least 1, found 0"));
    }
    let threads = count(threads)?;
    Ok(Batching { batch, threads })
}

/// Pooled features of images, row by row.
fn pooled(
    extractor: &BackboneExtractor,
    preprocess: &Preprocess,
    images: &Given,
    batching: &Batching,
    go_on: GoOn<'_>,
) -> Result<Vec<f32>, String> {
    let load = |index: usize| match images.load(index) {
        Ok(image) => Ok(Some(preprocess.apply(&image))),
        Err(problem) => Err(TaskError::Io(std::io::Error::other(problem))),
    };
    let size = [preprocess.height, preprocess.width];
    let name = |index: usize| images.name(index);
    let of_all = (images.len(), &name as _);
    let rows = embed::pooled(extractor, size, of_all, batching, load, go_on);
    let rows = rows.map_err(|error| error.to_string())?;
    Ok(rows.into_iter().flatten().flatten().collect())
}
