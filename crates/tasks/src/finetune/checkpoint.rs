//! Checkpoints of fine-tuning: everything that is needed to resume a run exactly.
//!
//! `checkpoints/step-00000100.safetensors` holds the tensors `backbone.…` and `head.…`, with a moving average
//! `average.backbone.…` and `average.head.…`, with self-correction `cycles.backbone.…` and `cycles.head.…`, and
//! `optimizer.…`; its metadata are `format` (`clasp-finetune/2`), `task`, `step`, `examples`, `recipe` (TOML) and `state`
//! (JSON: position of the loader, plateaus, the best metric). Random numbers follow from seed, step and purpose, so there is
//! no generator state.

use std::path::{Path, PathBuf};

use burn::module::Module;
use clasp_data::loader::LoaderPosition;
use clasp_metrics::Metric;
use clasp_model::backbone::Backbone;
use clasp_model::optim::Optimizer;
use clasp_run::checkpoints;
use clasp_run::recipe::{difference, to_toml};
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{StateDict, load_state_dict, state_dict};
use fs_err as fs;
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

/// Writes a checkpoint into the run's `folder` and removes all but the last `run.keep_checkpoints`.
///
/// # Errors
/// The file cannot be written, or a weight is not finite; earlier checkpoints stay.
pub fn save<T: Objective>(
    folder: &Path,
    trainer: &FinetuneTrainer<T>,
    loop_state: &LoopState,
    examples: usize,
) -> Result<PathBuf, TaskError> {
    let path = checkpoints::path(folder, trainer.step);
    let mut state = StateDict::new();
    let mut put = |prefix: &str, part: StateDict| {
        let named = |(name, array)| (format!("{prefix}{name}"), array);
        state.extend(part.into_iter().map(named));
    };
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
    if let Some((name, _)) =
        { state.iter() }.find(|(_, array)| array.data.iter().any(|value| !value.is_finite()))
    {
        return Err(TaskError::Checkpoint {
            path,
            what: name.clone(),
            expected: "finite numbers".to_owned(),
            found: "infinite ones or NaN; nothing was written".to_owned(),
            hint: "the run has diverged: resume it with a lower `optimizer.lr`",
        });
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
    fs::create_dir_all(folder.join("checkpoints"))?;
    checkpoint::write(&path, &state, &metadata)?;
    checkpoints::prune(folder, trainer.plan.recipe.run.keep_checkpoints)?;
    Ok(path)
}

/// Restores the checkpoint `path` into `trainer`, made from the same recipe.
///
/// # Errors
/// The file is damaged, of another task, recipe, architecture or data, or no checkpoint.
pub fn restore<T: Objective>(
    path: &Path,
    trainer: &mut FinetuneTrainer<T>,
    examples: usize,
) -> Result<LoopState, TaskError> {
    let (state, metadata) = checkpoint::read(path)?;
    let field = |name: &str| metadata.get(name).map_or("", String::as_str);
    let differs =
        |what: &str, expected: String, found: String, hint: &'static str| TaskError::Checkpoint {
            path: path.to_owned(),
            what: what.to_owned(),
            expected,
            found,
            hint,
        };
    for (name, expected, hint) in [
        (
            "format",
            FORMAT.to_owned(),
            "is this a checkpoint of this version's `clasp finetune`?",
        ),
        ("task", T::NAME.to_owned(), "use the task of the run"),
        (
            "examples",
            examples.to_string(),
            "the data have changed since the run started",
        ),
    ] {
        if field(name) != expected {
            return Err(differs(name, expected, field(name).to_owned(), hint));
        }
    }
    let place = path.display().to_string();
    let saved = FinetuneRecipe::<T::Config>::parse(field("recipe"), &place, &[])?;
    if let Some((key, expected, found)) = difference(&trainer.plan.recipe, &saved, &FIXED) {
        let hint = "a resumed run keeps this value; start a new run to change it";
        return Err(differs(&key, expected, found, hint));
    }
    let of = |prefix: &str| -> StateDict {
        let stripped = |(name, array): (&String, &_)| {
            Some((name.strip_prefix(prefix)?.to_owned(), Clone::clone(array)))
        };
        state.iter().filter_map(stripped).collect()
    };
    let wrong = |what: &str, report: String| {
        differs(
            what,
            "the recipe's tensors".to_owned(),
            report,
            "start a new run",
        )
    };
    let (backbone, report) = load_state_dict(trainer.backbone.clone(), &of("backbone."));
    if !report.is_complete() {
        return Err(wrong("backbone", report.to_string()));
    }
    let (head, report) = load_state_dict(trainer.head.clone(), &of("head."));
    if !report.is_complete() {
        return Err(wrong("head", report.to_string()));
    }
    let pair = |what: &str, backbone: Backbone, head: T::Head| {
        let (backbone, first) = load_state_dict(backbone, &of(&format!("{what}.backbone.")));
        let (head, second) = load_state_dict(head, &of(&format!("{what}.head.")));
        if first.is_complete() && second.is_complete() {
            Ok((backbone, head))
        } else {
            Err(wrong(what, format!("{first}; {second}")))
        }
    };
    if let Some((backbone, head)) = trainer.average.take() {
        trainer.average = Some(pair("average", backbone, head)?);
    }
    let loop_state: LoopState = serde_json::from_str(field("state")).map_err(|error| {
        let expected = "the state of the training loop".to_owned();
        differs("state", expected, error.to_string(), "")
    })?;
    if loop_state.cycles > 0 {
        let (backbone, head) = pair("cycles", trainer.backbone.valid(), trainer.head.valid())?;
        trainer.cycle_average = Some(CycleAverage {
            backbone,
            head,
            cycles: loop_state.cycles,
        });
    }
    let state = of("optimizer.");
    let optimizer =
        Optimizer::from_state(optimizer_config(&trainer.plan), &state, trainer.device())?;
    optimizer.check("backbone.", &backbone)?;
    optimizer.check("head.", &head)?;
    trainer.optimizer = optimizer;
    (trainer.backbone, trainer.head) = (backbone, head);
    trainer.step = field("step")
        .parse()
        .map_err(|_| differs("step", "a number".to_owned(), field("step").to_owned(), ""))?;
    trainer.plateau_factor = loop_state.plateau_factor;
    Ok(loop_state)
}
