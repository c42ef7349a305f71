//! `clasp score TASK`: metrics of the predictions of any program.

use anyhow::{Result, bail};
use clasp_data::missing::require;
use clasp_metrics::metric::line_of;
use clasp_tasks::task::{Evaluate, ScoreRequest, SplitChoice};
use clasp_tasks::with_task;
use serde_json::json;

use super::{check_data, print_result};
use crate::Outcome;
use crate::args::{GlobalOptions, ScoreArguments};
use crate::progress::warn;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &ScoreArguments) -> Result<Outcome> {
    check_data(&arguments.data)?;
    require(
        &arguments.predictions,
        "predictions in the file format of the task's benchmark",
    )?;
    let task = arguments.task.0;
    if arguments.split.is_some() && !task.describe().has_splits {
        bail!("--split: {} has one test set", task.name());
    }
    let split = SplitChoice::named(arguments.split.as_deref().unwrap_or("test"));
    let request = ScoreRequest {
        data: &arguments.data,
        split: &split,
        predictions: &arguments.predictions,
        threshold: arguments.threshold,
    };
    let scored = with_task!(task, T => T::score(&request))?;
    scored.notes.iter().for_each(|note| warn(note));
    let text = format!(
        "{} on {}\n{}{}",
        arguments.predictions.display(),
        scored.data,
        scored.scores.table,
        line_of(&scored.scores.metrics)
    );
    let value = json!({
        "task": task.name(),
        "data": scored.data,
        "notes": scored.notes,
        "metrics": scored.scores.metrics,
        "details": scored.scores.details,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}
