//! The checkpoint of a run: weights, their moving average, optimizer state, step.

use std::path::Path;

use clasp_model::clip::{Clip, ClipConfig};
use clasp_model::optim::{self, Optimizer, OptimizerConfig};
use clasp_weights::checkpoint;
use clasp_weights::state::{StateDict, load_state_dict, state_dict};

use super::batch::ClassPhrases;
use super::config::ClipTrainConfig;
use super::error::ClipTrainError;

/// Prefix of the optimizer's arrays in a checkpoint.
const OPTIMIZER: &str = "optimizer.";
/// Prefix of the averaged weights in a checkpoint.
const AVERAGE: &str = "average.";

/// The settings on which the result of a run depends, as text: a run resumes only with the same.
pub(super) fn identity(
    config: &ClipTrainConfig,
    model: &ClipConfig,
    words: &ClassPhrases,
) -> Result<String, ClipTrainError> {
    let mut config = config.clone();
    (
        config.log_every,
        config.evaluate_every,
        config.save_every,
        config.threads,
    ) = (1, 1, 1, 1);
    let text = serde_json::to_string(&(config, model, words)).map_err(std::io::Error::from)?;
    Ok(text)
}

pub(super) fn save(
    path: &Path,
    run: &str,
    [clip, average]: [&Clip; 2],
    optimizer: &Optimizer,
    step: usize,
) -> Result<(), ClipTrainError> {
    let mut state = state_dict(clip);
    for (name, array) in state_dict(average) {
        state.insert(format!("{AVERAGE}{name}"), array);
    }
    for (name, array) in optimizer.state() {
        state.insert(format!("{OPTIMIZER}{name}"), array);
    }
    let metadata = [
        ("kind".to_owned(), "clasp clip training".to_owned()),
        ("run".to_owned(), run.to_owned()),
        ("step".to_owned(), step.to_string()),
    ];
    Ok(checkpoint::write(path, &state, &metadata.into())?)
}

pub(super) fn resume(
    path: &Path,
    run: &str,
    config: &ClipTrainConfig,
    clip: Clip,
) -> Result<(Clip, Clip, Optimizer, usize), ClipTrainError> {
    let other = |problem: String| ClipTrainError::OtherRun {
        path: path.to_owned(),
        problem,
    };
    let (mut state, metadata) = checkpoint::read(path)?;
    if metadata.get("run").map(String::as_str) != Some(run) {
        return Err(other("its settings or its model's sizes differ".to_owned()));
    }
    let step = metadata
        .get("step")
        .and_then(|step| step.parse::<usize>().ok())
        .filter(|step| *step <= config.steps())
        .ok_or_else(|| other("it names no step of this run".to_owned()))?;
    let mut taken = |prefix: &str| {
        let mut found = StateDict::new();
        state.retain(|name, array| match name.strip_prefix(prefix) {
            Some(name) => {
                found.insert(name.to_owned(), std::mem::take(array));
                false
            }
            None => true,
        });
        found
    };
    let (moments, averaged) = (taken(OPTIMIZER), taken(AVERAGE));
    let device = clip.logit_scale.val().device();
    let optimizer = Optimizer::from_state(optimizer_config(config), &moments, &device)?;
    optimizer.check("", &clip)?;
    let average = clip.clone();
    let load = |clip: Clip, state: &StateDict| {
        let (clip, report) = load_state_dict(clip, state);
        if report.is_complete() {
            Ok(clip)
        } else {
            Err(other(report.to_string()))
        }
    };
    Ok((
        load(clip, &state)?,
        load(average, &averaged)?,
        optimizer,
        step,
    ))
}

pub(super) fn optimizer_config(config: &ClipTrainConfig) -> OptimizerConfig {
    OptimizerConfig {
        beta2: 0.98,
        epsilon: 1e-6,
        clip: optim::GradientClip::Global(config.clip_grad),
        ..OptimizerConfig::default()
    }
}
