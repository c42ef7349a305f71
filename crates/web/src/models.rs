//! The models that are served: at most one backbone, and at most one fine-tuned model of each task.

use std::any::Any;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use burn::tensor::Device;
use bytes::Bytes;
use clasp_data::image::{ImageError, Limits, Rgb, decode, encode_png};
use clasp_data::source::Source;
use clasp_model::Precision;
use clasp_model::backbone::Backbone;
use clasp_model::prompt::PromptWeights;
use clasp_tasks::embed::{Embeddings, FeatureOrigin, embed, pooled};
use clasp_tasks::features::Preprocess;
use clasp_tasks::people::{Finder, finder_of, of_image, of_people};
use clasp_tasks::reid::{ReidTask, SamePersonThreshold};
use clasp_tasks::searcher::Searcher;
use clasp_tasks::task::{FinetunedModel, Inference, InputKind, Predictor, Task};
use clasp_tasks::{
    BackboneExtractor, Batching, Extractor, PassProgress, TaskError, TaskKind, with_task,
};
use clasp_weights::import::load_backbone;
use clasp_weights::{backbone, finetuned};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ServeError;
use crate::problem::Problem;

/// What is to be computed for an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ImageWork {
    /// The feature of the backbone under a prompt, as `clasp embed`.
    Embed(PromptWeights),
    /// The feature that the gallery is searched by, as `clasp search`.
    Search,
    /// The prediction of a fine-tuned model, as `clasp predict`.
    Predict {
        /// Its task.
        task: TaskKind,
        /// Of each person that the detector finds, as with `--detector`.
        people: bool,
        /// A picture of it, as with `--draw`, instead of numbers.
        draw: bool,
    },
}

/// What was computed for an image.
#[derive(Clone, Debug)]
pub enum ImageOutput {
    /// A feature, not normalized.
    Feature(Vec<f32>),
    /// The fields of a prediction.
    Fields(Map<String, Value>),
    /// A PNG.
    Picture(Vec<u8>),
}

/// The features of images, with their keys.
///
/// # Errors
/// 500: an output is none.
pub fn features(outputs: Vec<(String, ImageOutput)>) -> Result<Vec<(String, Vec<f32>)>, Problem> {
    let feature = |(key, output)| match output {
        ImageOutput::Feature(feature) => Ok((key, feature)),
        ImageOutput::Fields(_) | ImageOutput::Picture(_) => {
            Err(Problem::internal("the model gave no feature"))
        }
    };
    outputs.into_iter().map(feature).collect()
}

/// The output for each image of a batch, or why the image cannot be used.
pub type ImageOutputs = Vec<Result<ImageOutput, ImageError>>;

/// A served model, as `GET /v1/models` lists it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// `backbone`, or the task that the model was fine-tuned for.
    pub task: String,
    /// Name of the file or of the run's folder.
    pub name: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Name of the network.
    pub network: String,
    /// Height of its input in pixels.
    pub height: usize,
    /// Width of its input in pixels.
    pub width: usize,
    /// Number format of matrix products.
    pub precision: String,
    /// Whether the gallery is searched by its features.
    pub searches: bool,
    /// Whether it finds the people in photos, for `people=detector`.
    pub detects: bool,
    /// Cosine from which two images show the same person, if it was calibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_person: Option<f64>,
}

/// Where and how models compute.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where.
    pub device: Device,
    /// Number format of matrix products.
    pub precision: Precision,
    /// Threads.
    pub threads: usize,
}

/// The models that are served.
pub struct Models {
    compute: Compute,
    limits: Limits,
    backbone: Option<(Backbone, Preprocess)>,
    search: Option<Searcher>,
    tasks: Vec<(TaskKind, Arc<dyn TaskModel>)>,
    people: Option<Finder>,
    served: ServedModels,
}

/// What models are served, without the networks.
#[derive(Clone, Debug, Default)]
pub struct ServedModels {
    /// Each of them.
    pub infos: Vec<ModelInfo>,
    /// The same-person threshold of the searching model.
    pub same: Option<SamePersonThreshold>,
}

/// A fine-tuned model of a task that is known at run time.
trait TaskModel: Send + Sync {
    fn predict(&self, images: &[Bytes], how: Prediction<'_>) -> Result<ImageOutputs, TaskError>;
}

/// How images are predicted.
#[derive(Clone, Copy)]
struct Prediction<'a> {
    people: Option<&'a Finder>,
    draw: bool,
    threads: usize,
    limits: Limits,
}

impl Models {
    /// Loads models: backbones (files, run folders, published checkpoints) and fine-tuned ones.
    ///
    /// # Errors
    /// One cannot be loaded, or two are for the same purpose.
    pub fn load(paths: &[PathBuf], compute: Compute, limits: Limits) -> Result<Self, ServeError> {
        let mut models = Self {
            compute,
            limits,
            backbone: None,
            search: None,
            tasks: Vec::new(),
            people: None,
            served: ServedModels::default(),
        };
        let mut taken: Vec<(String, &Path)> = Vec::new();
        for path in paths {
            let meta = finetuned::read_meta(path)?;
            let kind = meta.as_ref().and_then(|meta| TaskKind::named(&meta.task));
            let what = match kind {
                Some(kind) => format!("model of task {}", kind.name()),
                None => "backbone".to_owned(),
            };
            if let Some((_, first)) = taken.iter().find(|(of, _)| *of == what) {
                return Err(ServeError::TwoModels {
                    what,
                    first: first.to_path_buf(),
                    second: path.clone(),
                });
            }
            taken.push((what, path));
            match kind {
                Some(kind) => with_task!(kind, T => models.add::<T>(kind, path)?),
                None => models.add_backbone(path)?,
            }
        }
        models.choose_searcher();
        Ok(models)
    }

    fn add<T: Predictor>(&mut self, kind: TaskKind, path: &Path) -> Result<(), ServeError> {
        let mut model = FinetunedModel::<T>::load(path, &self.compute.device)?;
        model.precision = self.compute.precision;
        let model = Arc::new(model);
        let detects = T::INPUT == InputKind::Scene;
        // Detection alone, where there is one, is faster than person search.
        if detects && (self.people.is_none() || kind == TaskKind::Detection) {
            self.people = Some(finder_of(Arc::clone(&model)));
        }
        self.served.infos.push(ModelInfo {
            task: T::NAME.to_owned(),
            name: name_of(path),
            sha256: finetuned::digest(path)?,
            network: model.meta.config.name.to_string(),
            height: model.preprocess.height,
            width: model.preprocess.width,
            precision: self.compute.precision.to_string(),
            searches: false,
            detects,
            same_person: None,
        });
        let any: Arc<dyn Any + Send + Sync> = Arc::<FinetunedModel<T>>::clone(&model);
        if let Ok(reid) = any.downcast::<FinetunedModel<ReidTask>>() {
            self.search = Some(Searcher::Reid(reid));
        }
        self.tasks.push((kind, model));
        Ok(())
    }

    fn add_backbone(&mut self, path: &Path) -> Result<(), ServeError> {
        let (backbone, meta) = load_backbone(path, &self.compute.device)?;
        let preprocess = Preprocess::of(&meta);
        self.served.infos.push(ModelInfo {
            task: "backbone".to_owned(),
            name: name_of(path),
            sha256: backbone::digest(path)?,
            network: meta.config.name.to_string(),
            height: preprocess.height,
            width: preprocess.width,
            precision: self.compute.precision.to_string(),
            searches: false,
            detects: false,
            same_person: None,
        });
        self.backbone = Some((backbone, preprocess));
        Ok(())
    }

    /// As `clasp search`: a re-identification model, else the backbone under that task's prompt.
    fn choose_searcher(&mut self) {
        if self.search.is_none()
            && let Some((_, preprocess)) = &self.backbone
            && let Some(extractor) = self.extractor(ReidTask::default_prompt())
        {
            let preprocess = preprocess.clone();
            self.search = Some(Searcher::Backbone(Arc::new(extractor), preprocess));
        }
        let Some(searcher) = &self.search else {
            return;
        };
        self.served.same = searcher.same_person().cloned();
        let task = match searcher {
            Searcher::Reid(_) => ReidTask::NAME,
            Searcher::Backbone(..) => "backbone",
        };
        let same = self.served.same.as_ref().map(|same| same.cosine);
        for info in self
            .served
            .infos
            .iter_mut()
            .filter(|info| info.task == task)
        {
            info.searches = true;
            info.same_person = same;
        }
    }

    fn extractor(&self, prompt: PromptWeights) -> Option<BackboneExtractor> {
        let (backbone, _) = self.backbone.as_ref()?;
        let extractor =
            BackboneExtractor::new(backbone.clone(), prompt, self.compute.device.clone());
        Some(extractor.with_precision(self.compute.precision))
    }

    /// What is served.
    pub fn served(&self) -> &ServedModels {
        &self.served
    }

    /// Features of the images of a source that the gallery is searched by, as `clasp search`
    /// computes them.
    ///
    /// # Errors
    /// Too many unreadable images, unless `keep_going`; a stop through `progress`.
    pub fn embed_gallery(
        &self,
        source: &Source,
        keep_going: bool,
        progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
    ) -> Result<Embeddings, TaskError> {
        let batching = Batching {
            threads: self.compute.threads,
            ..Batching::default()
        };
        let Some(searcher) = &self.search else {
            return Ok(Embeddings::default());
        };
        let preprocess = searcher.preprocess();
        embed(
            searcher,
            &preprocess,
            source,
            keep_going,
            &batching,
            progress,
        )
    }

    /// What the features that the gallery is searched by come from; none without a searching model.
    pub fn search_origin(&self) -> Option<FeatureOrigin> {
        self.search.as_ref().map(Searcher::origin)
    }

    /// Length of the features that the gallery is searched by; none without a searching model.
    ///
    /// # Errors
    /// The model fails.
    pub fn search_channels(&self) -> Result<Option<usize>, TaskError> {
        if self.search.is_none() {
            return Ok(None);
        }
        let image = encode_png(&Rgb::filled(8, 16, [127; 3]));
        let outputs = self.run(&ImageWork::Search, &[image.into()])?;
        Ok(outputs.into_iter().find_map(|output| match output {
            Ok(ImageOutput::Feature(feature)) => Some(feature.len()),
            _ => None,
        }))
    }

    /// Computes a batch of encoded images.
    ///
    /// # Errors
    /// A model that gives values that are not finite, or the device fails; the images are not at
    /// fault.
    pub fn run(&self, work: &ImageWork, images: &[Bytes]) -> Result<ImageOutputs, TaskError> {
        let missing = || TaskError::Device("no model for this work".to_owned());
        match work {
            ImageWork::Embed(prompt) => {
                let (_, preprocess) = self.backbone.as_ref().ok_or_else(missing)?;
                let extractor = self.extractor(*prompt).ok_or_else(missing)?;
                self.features(&extractor, preprocess, images)
            }
            ImageWork::Search => {
                let searcher = self.search.as_ref().ok_or_else(missing)?;
                self.features(searcher, &searcher.preprocess(), images)
            }
            ImageWork::Predict { task, people, draw } => {
                let model = self.tasks.iter().find(|(kind, _)| kind == task);
                let (_, model) = model.ok_or_else(missing)?;
                let how = Prediction {
                    people: self.people.as_ref().filter(|_| *people),
                    draw: *draw,
                    threads: self.compute.threads,
                    limits: self.limits,
                };
                model.predict(images, how)
            }
        }
    }

    fn features<E: Extractor>(
        &self,
        extractor: &E,
        preprocess: &Preprocess,
        images: &[Bytes],
    ) -> Result<ImageOutputs, TaskError> {
        let failed: Vec<OnceLock<ImageError>> = images.iter().map(|_| OnceLock::new()).collect();
        let load = |at: usize| match decode(&images[at], &self.limits) {
            Ok(image) => Ok(Some(preprocess.apply(&image))),
            Err(error) => {
                failed[at].get_or_init(|| error);
                Ok(None)
            }
        };
        let batching = Batching {
            // A part for each thread, and no more in memory at a time than `clasp embed` has.
            batch: images
                .len()
                .div_ceil(self.compute.threads.max(1))
                .clamp(1, 16),
            threads: self.compute.threads,
        };
        let name = |at: usize| format!("image {at}");
        let size = [preprocess.height, preprocess.width];
        let names = (images.len(), &name as _);
        let rows = pooled(extractor, size, names, &batching, load, &|_| {
            ControlFlow::Continue(())
        })?;
        let outputs = rows.into_iter().zip(failed);
        Ok(outputs
            .map(|(row, failed)| match (row, failed.into_inner()) {
                (Some(row), _) => Ok(ImageOutput::Feature(row)),
                (None, Some(error)) => Err(error),
                (None, None) => Ok(ImageOutput::Feature(Vec::new())),
            })
            .collect())
    }
}

impl<T: Predictor> TaskModel for FinetunedModel<T> {
    fn predict(&self, images: &[Bytes], how: Prediction<'_>) -> Result<ImageOutputs, TaskError> {
        let inference = Inference {
            batch: 1,
            threads: how.threads,
            predictions: false,
            progress: &|_| ControlFlow::Continue(()),
        };
        let one = |model: &Self, at: usize| -> Result<Result<ImageOutput, ImageError>, TaskError> {
            let image: Rgb = match decode(&images[at], &how.limits) {
                Ok(image) => image,
                Err(error) => return Ok(Err(error)),
            };
            let (fields, picture) = match how.people {
                None => of_image(model, &image, how.draw)?,
                Some(people) => of_people(model, people, &image, how.draw)?,
            };
            Ok(Ok(match picture {
                Some(picture) => ImageOutput::Picture(encode_png(&picture)),
                None => ImageOutput::Fields(fields),
            }))
        };
        self.batches("images", images.len(), &inference, |model, items| {
            items.map(|at| one(model, at)).collect()
        })
    }
}

impl ServedModels {
    /// Whether some model can do that.
    ///
    /// # Errors
    /// Not found: no model for it is served. Bad request: no model could do it.
    pub fn check(&self, work: &ImageWork) -> Result<(), Problem> {
        let served = |task: &str| self.infos.iter().any(|info| info.task == task);
        let some = |of: fn(&ModelInfo) -> bool| self.infos.iter().any(of);
        match *work {
            ImageWork::Embed(_) if !served("backbone") => Err(Problem::not_found(
                "embed: expected a backbone, and none is served\nhint: start with --model BACKBONE",
            )),
            ImageWork::Search if !some(|info| info.searches) => Err(Problem::not_found(
                "search: expected a re-identification model or a backbone, and none is served\n\
                 hint: start with --model RUN of `clasp finetune reid` or `clasp pretrain`",
            )),
            ImageWork::Predict { task, people, draw } => self.check_prediction(task, people, draw),
            _ => Ok(()),
        }
    }

    fn check_prediction(&self, task: TaskKind, people: bool, draw: bool) -> Result<(), Problem> {
        let name = task.name();
        let (input, is_drawn) =
            with_task!(task, T => (<T as Task>::INPUT, <T as Predictor>::IS_DRAWN));
        if !self.infos.iter().any(|info| info.task == name) {
            return Err(Problem::not_found(format!(
                "{name}: expected a model of task {name}, and none is served\n\
                 hint: start with --model RUN of `clasp finetune {name}`",
            )));
        }
        if people && input == InputKind::Scene {
            return Err(Problem::bad_request(format!(
                "people: {name} detects people itself; leave it out"
            )));
        }
        if people && !self.infos.iter().any(|info| info.detects) {
            return Err(Problem::not_found(
                "people: expected a model of detection or search, and none is served\n\
                 hint: start with --model RUN of `clasp finetune detection`",
            ));
        }
        if draw && !people && !is_drawn {
            return Err(Problem::bad_request(format!(
                "Accept: a prediction of {name} for a whole image is a feature, which cannot be drawn\n\
                 hint: ask for JSON, or with people=detector for the boxes of people",
            )));
        }
        Ok(())
    }
}

/// The last part of a path: other parts are nobody else's business.
fn name_of(path: &Path) -> String {
    let path = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
