//! Checkpoints of a run: everything that is needed to go on as if it had never stopped.
//!
//! `checkpoints/step-00000100.safetensors` in the run's folder holds the tensors
//!
//! | name | content |
//! |---|---|
//! | `student.…` | backbone (`student.trunk.backbone.…`) and all heads |
//! | `teacher.…` | backbone and projection head of the moving average |
//! | `centre` | centre of the teacher's projections: [1, outputs] |
//! | `usual_targets` | moving sum of the mean of the teacher's targets: [1, outputs] |
//! | `optimiser.…` | moments and step count of AdamW, by parameter |
//!
//! and the metadata `format` (`clasp-pretrain/2`), `clasp` (version), `step`, `position` (the
//! loader's place, JSON), `images` (of the corpus), `vocabulary` (digest, empty without labels) and
//! `recipe` (resolved, TOML). There is no state of a random generator: every draw follows from the
//! recipe's seed, the step or epoch, and what it is for, so seed and step are that state. Schedules
//! are functions of the step.
//!
//! A checkpoint appears whole or not at all, and older ones are removed only after that.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::loader::LoaderPosition;
use clasp_model::backbone::{Backbone, BackboneConfig};
use clasp_model::heads::{AttributeHead, AttributeHeadConfig, PartHead, PartHeadConfig};
use clasp_model::layers::Rng;
use clasp_model::optim::Optimiser;
use clasp_run::checkpoints::{self, latest, prune};
use clasp_run::recipe::difference;
use clasp_weights::WeightsError;
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{Array, LoadReport, StateDict, load_state_dict, state_dict};
use fs_err as fs;
use rand::SeedableRng;

use crate::error::{PretrainError, Result};
use crate::recipe::{Machine, Recipe};
use crate::step::{Trainer, adamw};

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-pretrain/2";

/// Recipe keys that must not change when a run goes on: they shape tensors or the order of images.
const FIXED: [&str; 11] = [
    "method",
    "seed",
    "run.batch",
    "model.backbone",
    "model.adapter",
    "model.conditional_blocks",
    "model.experts",
    "head.outputs",
    "head.hidden",
    "head.bottleneck",
    "mix.tasks",
];

/// Writes a checkpoint of `trainer` into the run's `folder` and removes all but the last `keep`.
///
/// # Errors
///
/// The file cannot be written (a full disk): the message names the last good checkpoint, which
/// stays. A parameter is not finite: nothing is written.
pub fn save(
    folder: &Path,
    trainer: &Trainer,
    position: LoaderPosition,
    images: usize,
) -> Result<PathBuf> {
    let path = checkpoints::path(folder, trainer.step);
    let state = state(trainer);
    if let Some((name, _)) = state
        .iter()
        .find(|(_, array)| array.data.iter().any(|value| !value.is_finite()))
    {
        return Err(PretrainError::Checkpoint {
            path,
            what: name.clone(),
            expected: "finite numbers".to_owned(),
            found: "infinite ones or NaN; nothing was written".to_owned(),
            hint: Some(
                "the run has diverged: resume from the last checkpoint with a lower `optimiser.lr`"
                    .to_owned(),
            ),
        });
    }
    let digest = trainer
        .vocabulary()
        .map(|vocabulary| vocabulary.digest())
        .unwrap_or_default();
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("clasp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        (
            "position".to_owned(),
            serde_json::to_string(&position).unwrap_or_default(),
        ),
        ("images".to_owned(), images.to_string()),
        ("vocabulary".to_owned(), digest),
        ("recipe".to_owned(), trainer.plan.recipe.to_toml()),
    ]);
    let written = fs::create_dir_all(folder.join("checkpoints"))
        .map_err(|error| error.to_string())
        .and_then(|()| {
            checkpoint::write(&path, &state, &metadata).map_err(|error| error.to_string())
        });
    if let Err(reason) = written {
        let kept = latest(folder).ok().flatten();
        return Err(PretrainError::Save {
            path,
            step: trainer.step,
            reason,
            kept,
        });
    }
    prune(folder, trainer.plan.recipe.run.keep)?;
    Ok(path)
}

/// The student of a checkpoint: the backbone with the heads that it was trained with, for use rather than for going on.
pub struct Networks {
    /// The student's backbone.
    pub backbone: Backbone,
    /// Its configuration.
    pub config: BackboneConfig,
    /// Its head of parts, where parts were learnt.
    pub part: Option<PartHead>,
    /// Its head of attributes, where attributes were learnt.
    pub attribute: Option<AttributeHead>,
    /// The recipe.
    pub recipe: Recipe,
    /// The file.
    pub path: PathBuf,
}

/// Reads the student of a checkpoint, or of the newest one of a run's folder, onto `device`.
///
/// # Errors
///
/// There is none, it is damaged, or it is another kind of file.
pub fn networks(path: &Path, device: &Device) -> Result<Networks> {
    let wrong =
        |path: &Path, what: &str, expected: &str, found: String| PretrainError::Checkpoint {
            path: path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            found,
            hint: Some("heads are in a run's checkpoints/step-….safetensors".to_owned()),
        };
    let path = if path.is_dir() {
        latest(path)?.ok_or_else(|| {
            wrong(
                path,
                "checkpoints",
                "the folder of a run",
                "none".to_owned(),
            )
        })?
    } else {
        path.to_owned()
    };
    let (state, metadata) = checkpoint::read(&path).map_err(|error| match error {
        WeightsError::Format { problem, .. } => wrong(
            &path,
            "content",
            "a checkpoint of `clasp pretrain`",
            problem,
        ),
        other => other.into(),
    })?;
    let field = |name: &str| metadata.get(name).map_or("", String::as_str);
    if field("format") != FORMAT {
        let found = field("format").to_owned();
        return Err(wrong(&path, "format", FORMAT, found));
    }
    let images = field("images").parse();
    let images =
        images.map_err(|_| wrong(&path, "images", "a number", field("images").to_owned()))?;
    let recipe = Recipe::parse(field("recipe"), &path.display().to_string(), &[])?;
    // For its networks alone, wherever it was trained.
    let anywhere = Machine {
        cores: 1,
        on_cpu: false,
        bf16: true,
    };
    let plan = recipe.plan(images, anywhere)?;

    let part = |prefix: &str| -> StateDict {
        let named = state.iter();
        named
            .filter_map(|(name, array)| {
                Some((name.strip_prefix(prefix)?.to_owned(), array.clone()))
            })
            .collect()
    };
    let fits = |what: &str, report: LoadReport| {
        if report.is_complete() {
            return Ok(());
        }
        Err(wrong(
            &path,
            what,
            "what its recipe describes",
            report.to_string(),
        ))
    };
    // The generator's values are overwritten.
    let rng = &mut Rng::seed_from_u64(0);
    let backbone = plan.backbone.init(rng, device);
    let channels = backbone.channels();
    let (backbone, report) = load_state_dict(backbone, &part("student.trunk.backbone."));
    fits("student.trunk.backbone", report)?;
    // What the recipe leaves open is the number of a head's outputs, bounded by what the file holds.
    let outputs = |name: &str| match state.get(name)?.shape[..] {
        [outputs, inputs] if inputs == channels => Some(outputs),
        _ => Some(0),
    };
    let part_head = outputs("student.part.layers.2.weight").map(|classes| {
        let head = PartHeadConfig::new(channels, classes).init(rng, device);
        let (head, report) = load_state_dict(head, &part("student.part."));
        fits("student.part", report).map(|()| head)
    });
    let attribute = outputs("student.attribute.fc2.weight").map(|values| {
        let head = AttributeHeadConfig::new(channels, values).init(rng, device);
        let (head, report) = load_state_dict(head, &part("student.attribute."));
        fits("student.attribute", report).map(|()| head)
    });
    Ok(Networks {
        backbone,
        config: plan.backbone,
        part: part_head.transpose()?,
        attribute: attribute.transpose()?,
        recipe: plan.recipe,
        path,
    })
}

/// Puts `trainer`, made from the same recipe, into the state of the checkpoint `path`, and returns
/// the loader's place.
///
/// # Errors
///
/// The file is damaged, of another architecture, corpus or vocabulary, or not a checkpoint.
pub fn restore(path: &Path, trainer: &mut Trainer, images: usize) -> Result<LoaderPosition> {
    let (state, metadata) = checkpoint::read(path)?;
    let field = |name: &str| metadata.get(name).map_or("", String::as_str);
    let differs =
        |what: &str, expected: String, found: &str, hint: &str| PretrainError::Checkpoint {
            path: path.to_owned(),
            what: what.to_owned(),
            expected,
            found: found.to_owned(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        };
    if field("format") != FORMAT {
        return Err(differs(
            "format",
            FORMAT.to_owned(),
            field("format"),
            "is this a checkpoint of `clasp pretrain`?",
        ));
    }
    let saved = Recipe::parse(field("recipe"), &path.display().to_string(), &[])?;
    if let Some((key, expected, found)) = difference(&trainer.plan.recipe, &saved, &FIXED) {
        return Err(differs(
            &key,
            expected,
            &found,
            "a run goes on with its own recipe; start a new run to change this",
        ));
    }
    if field("images") != images.to_string() {
        return Err(differs(
            "images",
            format!("{images}, as the corpus has now"),
            field("images"),
            "the corpus has changed since the run began",
        ));
    }
    let digest = trainer
        .vocabulary()
        .map(|vocabulary| vocabulary.digest())
        .unwrap_or_default();
    if field("vocabulary") != digest {
        return Err(PretrainError::OtherVocabulary {
            labels: trainer.plan.recipe.data.labels.clone(),
            expected: field("vocabulary").to_owned(),
            expected_from: path.display().to_string(),
            found: digest,
        });
    }
    let step = field("step").parse();
    let step = step.map_err(|_| differs("step", "a number".to_owned(), field("step"), ""))?;
    let position = serde_json::from_str(field("position")).map_err(|_| {
        differs(
            "position",
            "epoch and step".to_owned(),
            field("position"),
            "",
        )
    })?;

    let of = |prefix: &str| -> StateDict {
        state
            .iter()
            .filter_map(|(name, array)| {
                Some((name.strip_prefix(prefix)?.to_owned(), array.clone()))
            })
            .collect()
    };
    let whole = |part: &str, report: &LoadReport| {
        let complete = report.is_complete();
        if complete {
            Ok(())
        } else {
            Err(differs(
                part,
                "the recipe's tensors".to_owned(),
                &report.to_string(),
                "",
            ))
        }
    };
    let (student, report) = load_state_dict(trainer.student.clone(), &of("student."));
    whole("student", &report)?;
    let (teacher, report) = load_state_dict(trainer.teacher.clone(), &of("teacher."));
    whole("teacher", &report)?;
    let row = |name: &str, like: &Tensor<2>| {
        let array = state.get(name);
        match array.filter(|array| array.shape == like.dims()) {
            Some(array) => Ok(Tensor::from_data(
                TensorData::new(array.data.clone(), array.shape.clone()),
                &like.device(),
            )),
            None => {
                let found = array.map_or("none".to_owned(), |array| format!("{:?}", array.shape));
                Err(differs(name, format!("{:?}", like.dims()), &found, ""))
            }
        }
    };
    let centre = row("centre", &trainer.centre)?;
    let usual_targets = row("usual_targets", &trainer.usual_targets)?;
    let optimiser = Optimiser::from_state(
        adamw(&trainer.plan),
        &of("optimiser."),
        &trainer.centre.device(),
    )?;
    optimiser.check("", &student)?;
    trainer.centre = centre;
    trainer.usual_targets = usual_targets;
    trainer.optimiser = optimiser;
    trainer.student = student;
    trainer.teacher = teacher;
    trainer.step = step;
    Ok(position)
}

fn state(trainer: &Trainer) -> StateDict {
    let mut state = StateDict::new();
    let mut put = |prefix: &str, part: StateDict| {
        state.extend(
            part.into_iter()
                .map(|(name, array)| (format!("{prefix}{name}"), array)),
        );
    };
    put("student.", state_dict(&trainer.student));
    put("teacher.", state_dict(&trainer.teacher));
    put("optimiser.", trainer.optimiser.state());
    let row = |tensor: &Tensor<2>| Array {
        shape: tensor.dims().to_vec(),
        data: tensor.clone().into_data().iter::<f32>().collect(),
    };
    put(
        "",
        StateDict::from([
            ("centre".to_owned(), row(&trainer.centre)),
            ("usual_targets".to_owned(), row(&trainer.usual_targets)),
        ]),
    );
    state
}
