//! `clasp score TASK`: metrics of the predictions of any program.

use anyhow::{Result, bail};
use clasp_data::missing::require;
use clasp_tasks::finetune::FinetuneRecipe;
use clasp_tasks::task::{Evaluate, ScoreRequest, SplitChoice, Task};
use clasp_tasks::with_task;
use serde_json::json;

use super::eval::beside_chance;
use super::load_model::changed;
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
    let scored = with_task!(task, T => {
        let recipe = FinetuneRecipe::<<T as Task>::Config>::load(T::NAME, &[])?;
        let config = changed(&recipe.task, T::NAME, &arguments.set)?;
        T::score(&request, &config)
    })?;
    scored.notes.iter().for_each(|note| warn(note));
    let text = format!(
        "{}\n\n{}{} on {}",
        beside_chance(&scored.scores.metrics, scored.scores.chance),
        scored.scores.table,
        arguments.predictions.display(),
        scored.data,
    );
    let value = json!({
        "task": task.name(),
        "data": scored.data,
        "notes": scored.notes,
        "metrics": scored.scores.metrics,
        "chance": scored.scores.chance,
        "details": scored.scores.details,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}
