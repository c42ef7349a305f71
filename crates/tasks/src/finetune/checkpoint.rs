//! Checkpoints of fine-tuning: everything that is needed to resume a run exactly.
//!
//! `checkpoints/step-00000100.safetensors` holds the tensors `backbone.…` and `head.…`, with a
//! moving average `average.backbone.…` and `average.head.…`, with self-correction
//! `cycles.backbone.…` and `cycles.head.…`, and `optimizer.…`; its metadata are `format`
//! (`clasp-finetune/2`), `clasp` (version), `task`, `step`, `examples`, `recipe` (TOML) and `state`
//! (JSON: position of the loader, plateaus, the best metric). Random numbers follow from seed, step
//! and purpose, so there is no generator state.

use std::path::{Path, PathBuf};

use burn::module::Module;
use clasp_data::loader::LoaderPosition;
use clasp_metrics::Metric;
use clasp_model::backbone::Backbone;
use clasp_model::optim::Optimizer;
use clasp_run::recipe::to_toml;
use clasp_run::{CheckpointMetadata, CheckpointSchedule, checkpoints};
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{
    LoadReport, StateDict, extend_prefixed, first_non_finite, load_state_dict, state_dict,
    with_prefix,
};
use serde::{Deserialize, Serialize};

use super::recipe::{FIXED, FinetuneRecipe};
use super::self_correction::CycleAverage;
use super::trainer::{FinetuneTrainer, optimizer_config};
use crate::TaskError;
use crate::task::Objective;

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-finetune/2";

/// The state of the training loop besides weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoopState {
    /// The position of the loader.
    pub position: LoaderPosition,
    /// Factor of the learning rate by plateaus.
    pub plateau_factor: f64,
    /// Evaluations since the last improvement.
    pub since_improvement: u32,
    /// The lowest loss of an evaluation.
    pub lowest_loss: Option<f64>,
    /// Finished cycles of self-correction.
    pub cycles: u64,
    /// Step of the last evaluation.
    pub last_evaluation: u64,
    /// The best evaluation so far.
    pub best: Option<BestCheckpoint>,
}

/// The best evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestCheckpoint {
    /// The first metric of the evaluation.
    pub metric: Metric,
    /// Steps that were done.
    pub step: u64,
    /// What it was evaluated on.
    pub data: String,
}

impl Default for LoopState {
    fn default() -> Self {
        Self {
            position: LoaderPosition::default(),
            plateau_factor: 1.0,
            since_improvement: 0,
            lowest_loss: None,
            cycles: 0,
            last_evaluation: 0,
            best: None,
        }
    }
}

/// Writes a checkpoint of `trainer`, unless there is one of this step, and removes older ones as
/// `schedule` says. Returns its path.
///
/// # Errors
///
/// The file cannot be written, or a weight is not finite; earlier checkpoints stay.
pub fn save<T: Objective>(
    schedule: &mut CheckpointSchedule,
    folder: &Path,
    trainer: &FinetuneTrainer<T>,
    loop_state: &LoopState,
    examples: usize,
) -> Result<PathBuf, TaskError> {
    let state = state(trainer);
    if let Some(name) = first_non_finite(&state) {
        return Err(checkpoints::diverged(&checkpoints::path(folder, trainer.step), name).into());
    }
    let json = serde_json::to_string(loop_state).unwrap_or_default();
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("clasp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("task".to_owned(), T::NAME.to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        ("examples".to_owned(), examples.to_string()),
        ("state".to_owned(), json),
        ("recipe".to_owned(), to_toml(&trainer.plan.recipe)),
    ]);
    let write = |path: &Path| checkpoint::write(path, &state, &metadata);
    Ok(schedule.save(trainer.step, write)?)
}

/// The tensors of a checkpoint: everything that training changes.
pub(super) fn state<T: Objective>(trainer: &FinetuneTrainer<T>) -> StateDict {
    let mut state = StateDict::new();
    let mut put = |prefix: &str, part| extend_prefixed(&mut state, prefix, part);
    put("backbone.", state_dict(&trainer.backbone));
    put("head.", state_dict(&trainer.head));
    if let Some((backbone, head)) = &trainer.average {
        put("average.backbone.", state_dict(backbone));
        put("average.head.", state_dict(head));
    }
    if let Some(average) = &trainer.cycle_average {
        put("cycles.backbone.", state_dict(&average.backbone));
        put("cycles.head.", state_dict(&average.head));
    }
    put("optimizer.", trainer.optimizer.state());
    state
}

/// Restores the checkpoint `path` into `trainer`, made from the same recipe.
///
/// # Errors
///
/// The file is damaged, of another task, recipe, architecture or data, or no checkpoint.
pub fn restore<T: Objective>(
    path: &Path,
    trainer: &mut FinetuneTrainer<T>,
    examples: usize,
) -> Result<LoopState, TaskError> {
    let (state, fields) =
        checkpoint::read(path).map_err(|error| checkpoints::damaged(path, &error))?;
    let metadata = CheckpointMetadata::new(path, &fields);
    let hint = "expected a checkpoint that this version of `clasp finetune` wrote";
    metadata.expect("format", FORMAT, hint)?;
    metadata.expect("task", T::NAME, "use the task of the run")?;
    let place = path.display().to_string();
    let saved = FinetuneRecipe::<T::Config>::parse(metadata.get("recipe"), &place, &[])?;
    // Before the data, of which some keys leave examples out.
    metadata.expect_recipe(&trainer.plan.recipe, &saved, &FIXED)?;
    let hint = "the data have changed since the run began";
    metadata.expect("examples", &examples.to_string(), hint)?;
    let step = metadata.number("step")?;
    let loop_state: LoopState = metadata.json("state", "the state of the training loop")?;

    let complete = |what: &str, report: &LoadReport| match report.is_complete() {
        true => Ok(()),
        false => Err(metadata.mismatch(what, "the tensors of the recipe", &report.to_string(), "")),
    };
    let networks = |prefix: &str, backbone: Backbone, head: T::Head| {
        let part = |name: &str| with_prefix(&state, &format!("{prefix}{name}."));
        let (backbone, report) = load_state_dict(backbone, &part("backbone"));
        complete(&format!("{prefix}backbone"), &report)?;
        let (head, report) = load_state_dict(head, &part("head"));
        complete(&format!("{prefix}head"), &report)?;
        Ok::<_, TaskError>((backbone, head))
    };
    let (backbone, head) = networks("", trainer.backbone.clone(), trainer.head.clone())?;
    let average = { trainer.average.clone() }
        .map(|(backbone, head)| networks("average.", backbone, head))
        .transpose()?;
    let cycle_average = match loop_state.cycles {
        0 => None,
        cycles => {
            let (backbone, head) = (trainer.backbone.valid(), trainer.head.valid());
            let (backbone, head) = networks("cycles.", backbone, head)?;
            Some(CycleAverage {
                backbone,
                head,
                cycles,
            })
        }
    };
    let optimizer = Optimizer::from_state(
        optimizer_config(&trainer.plan),
        &with_prefix(&state, "optimizer."),
        trainer.device(),
    )?;
    optimizer.check("backbone.", &backbone)?;
    optimizer.check("head.", &head)?;
    trainer.optimizer = optimizer;
    trainer.average = average;
    trainer.cycle_average = cycle_average;
    (trainer.backbone, trainer.head) = (backbone, head);
    trainer.step = step;
    trainer.plateau_factor = loop_state.plateau_factor;
    Ok(loop_state)
}
