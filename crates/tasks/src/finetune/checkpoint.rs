//! Checkpoints of fine-tuning: everything that is needed to go on as if it had never stopped.
//!
//! `checkpoints/step-00000100.safetensors` holds `backbone.…`, `head.…`, with a moving average `average.backbone.…` and
//! `average.head.…`, with self-correction `corrected.backbone.…` and `corrected.head.…`, and `optimiser.…`; its metadata `format` (`clasp-finetune/1`), `task`, `step`, `examples`,
//! `recipe` (TOML) and `progress` (JSON: the loader's place, plateaus, the best metric). Draws follow from seed, step and
//! purpose, so there is no state of a generator.

use std::path::{Path, PathBuf};

use burn::module::Module;
use clasp_data::loader::LoaderPosition;
use clasp_model::backbone::Backbone;
use clasp_model::optim::Optimiser;
use clasp_run::checkpoints;
use clasp_run::recipe::{difference, to_toml};
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{StateDict, load_state_dict, state_dict};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::Task;
use super::correct::Corrected;
use super::recipe::{FIXED, Recipe};
use super::trainer::{Trainer, optimiser_config};
use crate::TaskError;

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-finetune/1";

/// What the loop remembers besides weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The loader's place.
    pub position: LoaderPosition,
    /// What plateaus have multiplied the learning rate by.
    pub plateaus: f64,
    /// Evaluations without a gain.
    pub without_gain: u32,
    /// The lowest loss of an evaluation.
    pub lowest: Option<f64>,
    /// Cycles of self-correction that are done.
    pub cycles: u64,
    /// Step after which the model was evaluated last.
    pub evaluated: u64,
    /// The best evaluation so far.
    pub best: Option<Best>,
}

/// An evaluation that no other surpasses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Name of the metric.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Steps that were done.
    pub step: u64,
    /// What it was evaluated on.
    #[serde(default)]
    pub data: String,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            position: LoaderPosition::default(),
            plateaus: 1.0,
            without_gain: 0,
            lowest: None,
            cycles: 0,
            evaluated: 0,
            best: None,
        }
    }
}

/// Writes a checkpoint into the run's `folder` and removes all but the last `run.keep`.
///
/// # Errors
/// The file cannot be written, or a weight is not finite; earlier checkpoints stay.
pub fn save<T: Task>(
    folder: &Path,
    trainer: &Trainer<T>,
    progress: &Progress,
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
    if let Some(corrected) = &trainer.corrected {
        put("corrected.backbone.", state_dict(&corrected.backbone));
        put("corrected.head.", state_dict(&corrected.head));
    }
    put("optimiser.", trainer.optimiser.state());
    if let Some((name, _)) =
        { state.iter() }.find(|(_, array)| array.data.iter().any(|value| !value.is_finite()))
    {
        return Err(TaskError::Checkpoint {
            path,
            what: name.clone(),
            expected: "finite numbers".to_owned(),
            found: "infinite ones or NaN; nothing was written".to_owned(),
            hint: "the run has diverged: resume it with a lower `optimiser.lr`",
        });
    }
    let json = serde_json::to_string(progress).unwrap_or_default();
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("clasp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("task".to_owned(), T::NAME.to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        ("examples".to_owned(), examples.to_string()),
        ("progress".to_owned(), json),
        ("recipe".to_owned(), to_toml(&trainer.plan.recipe)),
    ]);
    fs::create_dir_all(folder.join("checkpoints"))?;
    checkpoint::write(&path, &state, &metadata)?;
    checkpoints::prune(folder, trainer.plan.recipe.run.keep)?;
    Ok(path)
}

/// Puts `trainer`, made from the same recipe, into the state of the checkpoint `path`.
///
/// # Errors
/// The file is damaged, of another task, recipe, architecture or data, or no checkpoint.
pub fn restore<T: Task>(
    path: &Path,
    trainer: &mut Trainer<T>,
    examples: usize,
) -> Result<Progress, TaskError> {
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
            "is this a checkpoint of `clasp finetune`?",
        ),
        (
            "task",
            T::NAME.to_owned(),
            "name the task that the run is of",
        ),
        (
            "examples",
            examples.to_string(),
            "the data have changed since the run began",
        ),
    ] {
        if field(name) != expected {
            return Err(differs(name, expected, field(name).to_owned(), hint));
        }
    }
    let place = path.display().to_string();
    let saved = Recipe::<T::Settings>::parse(field("recipe"), &place, &[])?;
    if let Some((key, expected, found)) = difference(&trainer.plan.recipe, &saved, &FIXED) {
        let hint = "a run goes on with its own recipe; start a new run to change this";
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
    let progress: Progress = serde_json::from_str(field("progress")).map_err(|error| {
        let expected = "the loop's state".to_owned();
        differs("progress", expected, error.to_string(), "")
    })?;
    if progress.cycles > 0 {
        let (backbone, head) = pair("corrected", trainer.backbone.valid(), trainer.head.valid())?;
        trainer.corrected = Some(Corrected {
            backbone,
            head,
            cycles: progress.cycles,
        });
    }
    let state = of("optimiser.");
    let optimiser =
        Optimiser::from_state(optimiser_config(&trainer.plan), &state, trainer.device())?;
    optimiser.check("backbone.", &backbone)?;
    optimiser.check("head.", &head)?;
    trainer.optimiser = optimiser;
    (trainer.backbone, trainer.head) = (backbone, head);
    trainer.step = field("step")
        .parse()
        .map_err(|_| differs("step", "a number".to_owned(), field("step").to_owned(), ""))?;
    trainer.plateaus = progress.plateaus;
    Ok(progress)
}
