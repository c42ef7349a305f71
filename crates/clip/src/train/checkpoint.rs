//! Checkpoints of CLIP training: everything that is needed to resume a run exactly.
//!
//! `checkpoints/step-00000100.safetensors` holds the tensors `clip.…`, `average.…` (the moving
//! average) and `optimizer.…`; its metadata are `format` (`clasp-clip-train/1`), `clasp` (version),
//! `step`, `recipe` (TOML), `model` (sizes, JSON) and `phrases` (JSON). The pairs are a function of
//! their index, so that the step says which comes next.

use std::path::{Path, PathBuf};

use clasp_model::clip::{Clip, ClipConfig};
use clasp_model::optim::Optimizer;
use clasp_run::recipe::{self, to_toml};
use clasp_run::{CheckpointMetadata, CheckpointSchedule, checkpoints};
use clasp_weights::checkpoint::{self, Metadata};
use clasp_weights::state::{
    StateDict, extend_prefixed, first_non_finite, load_state_dict, state_dict, with_prefix,
};

use super::config::{ClipTrainConfig, FIXED};
use super::error::ClipTrainError;
use super::trainer::{ClipTrainer, optimizer_config};

/// Value of `format` in the metadata.
const FORMAT: &str = "clasp-clip-train/1";

/// Fields of the model's configuration that must not change when a run is resumed: all.
const MODEL_FIELDS: [&str; 5] = ["embed", "activation", "epsilon", "vision", "text"];

/// Writes a checkpoint of `trainer`, unless there is one of this step, and removes older ones as
/// `schedule` says. Returns its path.
///
/// # Errors
///
/// The file cannot be written, or a weight is not finite; earlier checkpoints stay.
pub(super) fn save(
    schedule: &mut CheckpointSchedule,
    folder: &Path,
    trainer: &ClipTrainer,
) -> Result<PathBuf, ClipTrainError> {
    let mut state = StateDict::new();
    extend_prefixed(&mut state, "clip.", state_dict(&trainer.clip));
    extend_prefixed(&mut state, "average.", state_dict(&trainer.average));
    extend_prefixed(&mut state, "optimizer.", trainer.optimizer.state());
    if let Some(name) = first_non_finite(&state) {
        return Err(checkpoints::diverged(&checkpoints::path(folder, trainer.step), name).into());
    }
    let json = |value: serde_json::Result<String>| value.map_err(std::io::Error::from);
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("clasp".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        ("recipe".to_owned(), to_toml(&trainer.config)),
        (
            "model".to_owned(),
            json(serde_json::to_string(&trainer.model))?,
        ),
        (
            "phrases".to_owned(),
            json(serde_json::to_string(&trainer.phrases))?,
        ),
    ]);
    let write = |path: &Path| checkpoint::write(path, &state, &metadata);
    Ok(schedule.save(trainer.step, write)?)
}

/// Restores the checkpoint `path` into `trainer`, made from the same recipe.
///
/// # Errors
///
/// The file is damaged or no checkpoint, or is of another recipe, model or phrases.
pub(super) fn restore(path: &Path, trainer: &mut ClipTrainer) -> Result<(), ClipTrainError> {
    let (state, fields) =
        checkpoint::read(path).map_err(|error| checkpoints::damaged(path, &error))?;
    let metadata = CheckpointMetadata::new(path, &fields);
    let hint = "expected a checkpoint that this version of `clasp clip train` wrote";
    metadata.expect("format", FORMAT, hint)?;
    let place = path.display().to_string();
    let saved: ClipTrainConfig = recipe::parse(metadata.get("recipe"), &place, &[])?;
    metadata.expect_recipe(&trainer.config, &saved, &FIXED)?;
    let model: ClipConfig = metadata.json("model", "the sizes of a CLIP")?;
    metadata.expect_recipe(&trainer.model, &model, &MODEL_FIELDS)?;
    let phrases = serde_json::to_string(&trainer.phrases).map_err(std::io::Error::from)?;
    if metadata.get("phrases") != phrases {
        let expected = "those of this version's vocabulary";
        let hint = "start a new run";
        return Err(metadata
            .mismatch("phrases", expected, "others", hint)
            .into());
    }
    let step = metadata.number("step")?;

    let load = |what: &str, clip: Clip| {
        let (clip, report) = load_state_dict(clip, &with_prefix(&state, &format!("{what}.")));
        match report.is_complete() {
            true => Ok(clip),
            false => {
                let expected = "the tensors of the model";
                Err(metadata.mismatch(what, expected, &report.to_string(), ""))
            }
        }
    };
    let clip = load("clip", trainer.clip.clone())?;
    let average = load("average", trainer.average.clone())?;
    let optimizer = Optimizer::from_state(
        optimizer_config(&trainer.config),
        &with_prefix(&state, "optimizer."),
        &trainer.device,
    )?;
    optimizer.check("", &clip)?;
    trainer.optimizer = optimizer;
    trainer.clip = clip;
    trainer.average = average;
    trainer.step = step;
    Ok(())
}
