//! Checkpoints of a run: all that is needed to continue as if it had never stopped.
//!
//! `checkpoints/step-00000100.safetensors` in the run folder holds the tensors
//!
//! | name | content |
//! |---|---|
//! | `student.…` | backbone (`student.trunk.backbone.…`), projection head, label heads, projections of distillation |
//! | `teacher.…` | backbone and projection head of the moving average |
//! | `center` | moving average of the teacher's logits: [1, prototypes] |
//! | `patch_center` | the same of its logits at masked patches, with `loss.ibot_weight`: [1, prototypes] |
//! | `target_sum` | moving sum of the mean teacher targets: [1, prototypes] |
//! | `optimizer.…` | moments and step count of AdamW, by parameter |
//!
//! and the metadata `format` (`clasp-pretrain/3`), `clasp` (version), `step`, `position` (of the
//! loader, JSON), `images` (of the dataset), `vocabulary` (digest, empty without labels),
//! `frozen_teacher` (SHA-256 of the file, empty without distillation) and `recipe` (resolved,
//! TOML). The frozen teacher itself is not kept, as it does not change. There is no state of a
//! random generator: every draw follows from the recipe's seed, the step or epoch, and its purpose.
//! Schedules are functions of the step.
//!
//! A checkpoint is written as a whole or not at all, and older ones are removed only after that.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::loader::LoaderPosition;
use clasp_model::backbone::{Backbone, BackboneConfig};
use clasp_model::heads::{AttributeHead, AttributeHeadConfig, PartHead, PartHeadConfig};
use clasp_model::layers::Rng;
use clasp_model::optim::Optimizer;
use clasp_run::checkpoints::{self, latest};
use clasp_run::ranks::Digest;
use clasp_run::{CheckpointMetadata, CheckpointSchedule, Machine};
use clasp_weights::WeightsError;
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{
    HostTensor, LoadReport, StateDict, extend_prefixed, first_non_finite, held_values,
    load_state_dict, state_dict, with_prefix,
};
use rand::SeedableRng;

use crate::distillation::FrozenTeacher;
use crate::error::{PretrainError, Result};
use crate::recipe::{Auto, PretrainRecipe};
use crate::step::{Pretrainer, adamw};

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-pretrain/3";

/// Recipe keys that must not change when a run is resumed: they shape tensors or the order of
/// images.
const FIXED: [&str; 10] = [
    "method",
    "seed",
    "run.batch",
    "model.backbone",
    "model.windows",
    "model.adapter",
    "model.conditional_blocks",
    "model.experts",
    "model.prompts",
    "projection_head",
];

/// Writes a checkpoint of `trainer`, unless there is one of this step, and removes older ones as
/// `schedule` says. Returns its path.
///
/// # Errors
///
/// The file cannot be written (a full disk): the message names the newest checkpoint, which stays.
/// A parameter is not finite: nothing is written.
pub fn save(
    schedule: &mut CheckpointSchedule,
    folder: &Path,
    trainer: &Pretrainer,
    position: LoaderPosition,
    images: usize,
) -> Result<PathBuf> {
    let state = state(trainer);
    if let Some(name) = first_non_finite(&state) {
        return Err(checkpoints::diverged(&checkpoints::path(folder, trainer.step), name).into());
    }
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("clasp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        (
            "position".to_owned(),
            serde_json::to_string(&position).unwrap_or_default(),
        ),
        ("images".to_owned(), images.to_string()),
        ("vocabulary".to_owned(), vocabulary_digest(trainer)),
        (
            "frozen_teacher".to_owned(),
            teacher_digest(trainer).to_owned(),
        ),
        ("recipe".to_owned(), trainer.plan.recipe.to_toml()),
    ]);
    let write = |path: &Path| checkpoint::write(path, &state, &metadata);
    Ok(schedule.save(trainer.step, write)?)
}

/// Digest of the vocabulary of the labels; empty without labels.
fn vocabulary_digest(trainer: &Pretrainer) -> String {
    let vocabulary = trainer.vocabulary();
    vocabulary
        .map(|vocabulary| vocabulary.digest())
        .unwrap_or_default()
}

/// SHA-256 of the frozen teacher's file; empty without one.
fn teacher_digest(trainer: &Pretrainer) -> &str {
    let teacher = trainer.frozen_teacher.as_ref();
    teacher.map_or("", FrozenTeacher::sha256)
}

/// Puts `trainer`, made from the same recipe, into the state of the checkpoint `path`, and returns
/// the position of the loader.
///
/// # Errors
///
/// The file is damaged or not a checkpoint, or is of another recipe, dataset, vocabulary or frozen
/// teacher.
pub fn restore(path: &Path, trainer: &mut Pretrainer, images: usize) -> Result<LoaderPosition> {
    let (state, fields) =
        checkpoint::read(path).map_err(|error| checkpoints::damaged(path, &error))?;
    let metadata = CheckpointMetadata::new(path, &fields);
    let hint = "expected a checkpoint that this version of `clasp pretrain` wrote";
    metadata.expect("format", FORMAT, hint)?;
    let place = path.display().to_string();
    let saved = PretrainRecipe::parse(metadata.get("recipe"), &place, &[])?.with_windows_of_run();
    metadata.expect_recipe(&trainer.plan.recipe, &saved, &FIXED)?;
    let hint = "the images in `data.images` have changed since the run began";
    metadata.expect("images", &images.to_string(), hint)?;
    let digest = vocabulary_digest(trainer);
    if metadata.get("vocabulary") != digest {
        return Err(PretrainError::OtherVocabulary {
            labels: trainer.plan.recipe.data.labels.clone(),
            expected: metadata.get("vocabulary").to_owned(),
            expected_from: place,
            found: digest,
        });
    }
    let [expected, found] = [metadata.get("frozen_teacher"), teacher_digest(trainer)];
    if expected != found {
        let named = |digest: &str| if digest.is_empty() { "none" } else { digest }.to_owned();
        return Err(PretrainError::OtherTeacher {
            checkpoint: path.to_owned(),
            teacher: trainer.plan.recipe.distillation.teacher.clone(),
            expected: named(expected),
            found: named(found),
        });
    }
    let step = metadata.number("step")?;
    let position = metadata.json("position", "epoch and step of the loader")?;

    let complete = |what: &str, report: &LoadReport| match report.is_complete() {
        true => Ok(()),
        false => Err(metadata.mismatch(what, "the tensors of the recipe", &report.to_string(), "")),
    };
    let (student, report) =
        load_state_dict(trainer.student.clone(), &with_prefix(&state, "student."));
    complete("student", &report)?;
    let (teacher, report) =
        load_state_dict(trainer.teacher.clone(), &with_prefix(&state, "teacher."));
    complete("teacher", &report)?;
    let row = |name: &str, like: &Tensor<2>| {
        let array = state.get(name);
        match array.filter(|array| array.shape == like.dims()) {
            Some(array) => Ok(Tensor::from_data(
                TensorData::new(array.data.clone(), array.shape.clone()),
                &like.device(),
            )),
            None => {
                let found = array.map_or(String::new(), |array| format!("{:?}", array.shape));
                Err(metadata.mismatch(name, &format!("{:?}", like.dims()), &found, ""))
            }
        }
    };
    let center = row("center", &trainer.center)?;
    let patch_center = match trainer.plan.recipe.loss.masks_patches() {
        true => row("patch_center", &trainer.patch_center)?,
        false => trainer.patch_center.clone(),
    };
    let target_sum = row("target_sum", &trainer.target_sum)?;
    let optimizer = Optimizer::from_state(
        adamw(&trainer.plan),
        &with_prefix(&state, "optimizer."),
        &trainer.center.device(),
    )?;
    optimizer.check("", &student)?;
    trainer.center = center;
    trainer.patch_center = patch_center;
    trainer.target_sum = target_sum;
    trainer.optimizer = optimizer;
    trainer.student = student;
    trainer.teacher = teacher;
    trainer.step = step;
    Ok(position)
}

/// A number of all that a checkpoint holds, to compare ranks by.
pub(crate) fn digest(trainer: &Pretrainer) -> String {
    let state = state(trainer);
    Digest::of_tensors(state.iter().map(|(name, tensor)| (&**name, &*tensor.data)))
}

fn state(trainer: &Pretrainer) -> StateDict {
    let mut state = StateDict::new();
    let mut put = |prefix: &str, part| extend_prefixed(&mut state, prefix, part);
    put("student.", state_dict(&trainer.student));
    put("teacher.", state_dict(&trainer.teacher));
    put("optimizer.", trainer.optimizer.state());
    let row = |tensor: &Tensor<2>| HostTensor {
        shape: tensor.dims().to_vec(),
        data: tensor.clone().into_data().iter::<f32>().collect(),
    };
    put(
        "",
        StateDict::from([
            ("center".to_owned(), row(&trainer.center)),
            ("target_sum".to_owned(), row(&trainer.target_sum)),
        ]),
    );
    if trainer.plan.recipe.loss.masks_patches() {
        let patch_center = ("patch_center".to_owned(), row(&trainer.patch_center));
        put("", StateDict::from([patch_center]));
    }
    state
}

/// The student of a checkpoint, for use rather than for training: the backbone with the label heads
/// that it was trained with.
pub struct StudentNetworks {
    /// The student's backbone.
    pub backbone: Backbone,
    /// Its configuration.
    pub config: BackboneConfig,
    /// Its head of parts, if parts were learned.
    pub part: Option<PartHead>,
    /// Its head of attributes, if attributes were learned.
    pub attribute: Option<AttributeHead>,
    /// The recipe.
    pub recipe: PretrainRecipe,
    /// The file.
    pub path: PathBuf,
}

/// Reads the student of a checkpoint, or of the newest one in a run folder, onto `device`.
///
/// # Errors
///
/// There is none, it is damaged, or it is another kind of file.
pub fn read_student(path: &Path, device: &Device) -> Result<StudentNetworks> {
    const HINT: &str = "label heads are in checkpoints/step-….safetensors of a run folder";
    let path = if path.is_dir() {
        latest(path)?.ok_or_else(|| {
            let none = Metadata::new();
            CheckpointMetadata::new(path, &none).mismatch(
                "checkpoints",
                "the folder of a run with a checkpoint",
                "",
                HINT,
            )
        })?
    } else {
        path.to_owned()
    };
    let read = checkpoint::read(&path);
    let (state, fields) = read.map_err(|error| match error {
        WeightsError::Format { problem, .. } => {
            let none = Metadata::new();
            let expected = "a checkpoint of `clasp pretrain`";
            CheckpointMetadata::new(&path, &none)
                .mismatch("content", expected, &problem, HINT)
                .into()
        }
        other => PretrainError::from(other),
    })?;
    let metadata = CheckpointMetadata::new(&path, &fields);
    metadata.expect("format", FORMAT, HINT)?;
    let images = metadata.number("images")? as usize;
    let mut recipe =
        PretrainRecipe::parse(metadata.get("recipe"), &path.display().to_string(), &[])?;
    // Only the networks are needed, whatever machines trained them.
    recipe.run.replicas = Auto::Value(1);
    let any_machine = Machine {
        bf16: true,
        ..Machine::alone(1, false)
    };
    let plan = recipe.plan(images, any_machine)?;

    let complete = |what: &str, report: LoadReport| match report.is_complete() {
        true => Ok(()),
        false => {
            Err(metadata.mismatch(what, "the tensors of its recipe", &report.to_string(), HINT))
        }
    };
    let mut backbone_state = with_prefix(&state, "student.trunk.backbone.");
    // A recipe that claims more than the file holds would fill the memory first.
    let held = held_values(&backbone_state);
    let needed = plan.backbone.parameters()?;
    if needed > held {
        let expected = format!("the {needed} values of its recipe's backbone");
        let found = held.to_string();
        return Err(metadata
            .mismatch("student.trunk.backbone", &expected, &found, HINT)
            .into());
    }
    // All initial values are overwritten.
    let rng = &mut Rng::seed_from_u64(0);
    let backbone = plan.backbone.init(rng, device);
    let channels = backbone.channels();
    // Of use in pre-training alone.
    backbone_state.remove("mask_token");
    let (backbone, report) = load_state_dict(backbone, &backbone_state);
    complete("student.trunk.backbone", report)?;
    // The recipe leaves the number of a head's outputs open; the shape in the file limits it.
    let outputs = |name: &str| match state.get(name)?.shape[..] {
        [outputs, inputs] if inputs == channels => Some(outputs),
        _ => Some(0),
    };
    let part_head = outputs("student.part.layers.2.weight").map(|classes| {
        let head = PartHeadConfig::new(channels, classes).init(rng, device);
        let (head, report) = load_state_dict(head, &with_prefix(&state, "student.part."));
        complete("student.part", report).map(|()| head)
    });
    let attribute_head = outputs("student.attribute.fc2.weight").map(|values| {
        let head = AttributeHeadConfig::new(channels, values).init(rng, device);
        let (head, report) = load_state_dict(head, &with_prefix(&state, "student.attribute."));
        complete("student.attribute", report).map(|()| head)
    });
    Ok(StudentNetworks {
        backbone,
        config: plan.backbone,
        part: part_head.transpose()?,
        attribute: attribute_head.transpose()?,
        recipe: plan.recipe,
        path,
    })
}
