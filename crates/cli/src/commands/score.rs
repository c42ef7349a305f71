//! `clasp score TASK`: metrics of the predictions of any program.

use std::fmt::Write;

use anyhow::{Result, bail};
use clasp_tasks::finetune::Split;
use clasp_tasks::score;
use serde_json::{Map, Value, json};

use super::eval::name;
use super::{check_data, print_result};
use crate::Outcome;
use crate::args::{Common, Score, Task};
use crate::progress::warn;

/// Runs the command.
pub fn run(common: &Common, arguments: &Score) -> Result<Outcome> {
    check_data(&arguments.data)?;
    if !arguments.predictions.exists() {
        bail!(
            "--predictions {}: no such file",
            arguments.predictions.display()
        );
    }
    if arguments.split.is_some() && matches!(arguments.task, Task::Reid | Task::Search) {
        bail!("--split: {} has one test set", name(arguments.task));
    }
    let split = Split::named(arguments.split.as_deref().unwrap_or("test"));
    let (data, predictions) = (&arguments.data, &arguments.predictions);
    let score = match arguments.task {
        Task::Reid => score::reid(data, predictions)?,
        Task::Attributes => score::attributes(data, &split, predictions, arguments.threshold)?,
        Task::Parsing => score::parsing(data, &split, predictions)?,
        Task::Pose => score::pose(data, &split, predictions)?,
        Task::Detection => score::detection(data, &split, predictions)?,
        Task::Search => score::search(data, predictions)?,
    };
    score.notes.iter().for_each(|note| warn(note));
    let judged = score.judged;
    let mut text = format!(
        "{} by {}\n{}",
        predictions.display(),
        score.data,
        judged.table
    );
    for (figure, value) in &judged.figures {
        let _ = write!(text, "{figure} {:.2}  ", 100.0 * value);
    }
    let figures: Map<String, Value> = { judged.figures.into_iter() }
        .map(|(figure, value)| (figure, json!(value)))
        .collect();
    let value = json!({
        "task": name(arguments.task),
        "data": score.data,
        "notes": score.notes,
        "figures": figures,
        "details": judged.details,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}
