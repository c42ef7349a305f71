//! A stop while the model is evaluated, and what a resume makes of it.

use std::sync::Arc;

use clasp_run::collective::Local;
use clasp_tasks::TaskError;
use clasp_tasks::finetune::FinetuneSummary;

use super::ranks::run as run_on_rank;
use super::*;

/// A run that is stopped in the evaluation after step `stop_at`, or else at the end of that step.
fn run(
    recipe: &FinetuneRecipe<<AttributeTask as Task>::Config>,
    folder: &Path,
    resume: bool,
    stop_at: Option<u64>,
) -> Result<FinetuneSummary, TaskError> {
    run_on_rank::<AttributeTask>(recipe, folder, resume, stop_at, || Arc::new(Local))
}

/// Steps of the evaluations that the log holds.
fn evaluated(folder: &Path) -> Vec<u64> {
    let log = fs_err::read_to_string(folder.join("metrics.jsonl")).unwrap();
    { log.lines() }
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line.get("eval/mA").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect()
}

/// Once such a run counted as finished, with the best model of an earlier evaluation or none, and a
/// resume left it at that.
#[test]
fn a_stop_in_the_last_evaluation_ends_without_a_model_and_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| folder.path().join(name));
    let mut recipe = recipe::<AttributeTask>(&drawn(), [64, 32], 4, 8, "");
    recipe.run.checkpoint_selection = "val".to_owned();
    recipe.run.eval_every = 0.5;
    let expected = run(&recipe, &whole, false, None).unwrap();
    assert!(expected.run.finished && evaluated(&whole).contains(&4));

    let summary = run(&recipe, &stopped, false, Some(4)).unwrap();
    assert_eq!((summary.run.steps, summary.run.finished), (4, false));
    assert_eq!((summary.model, summary.had_ended), (None, false));
    for file in ["model.safetensors", "last.safetensors"] {
        assert!(!stopped.join(file).exists(), "{file}");
    }
    // What an earlier end of the run left is not taken for its model.
    fs_err::write(stopped.join("model.safetensors"), "of an earlier end").unwrap();
    let resumed = run(&recipe, &stopped, true, None).unwrap();
    assert!(resumed.run.finished && !resumed.had_ended);
    assert_eq!(resumed.best, expected.best);
    assert_eq!(evaluated(&stopped), evaluated(&whole));
    for file in ["model.safetensors", "best.safetensors", "last.safetensors"] {
        let [one, other] = [&whole, &stopped].map(|run| fs_err::read(run.join(file)).unwrap());
        assert!(one == other, "{file}");
    }
    assert!(run(&recipe, &stopped, true, None).unwrap().had_ended);
}

/// Once the best metric on one split was compared with those on another, or the key was ignored.
#[test]
fn a_run_keeps_the_split_that_its_model_is_selected_by() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let mut recipe = recipe::<AttributeTask>(&drawn(), [64, 32], 4, 8, "");
    recipe.run.checkpoint_selection = "val".to_owned();
    recipe.run.eval_every = 0.5;
    run(&recipe, &folder, false, Some(2)).unwrap();
    for other in ["train", "last"] {
        recipe.run.checkpoint_selection = other.to_owned();
        let error = run(&recipe, &folder, true, None).unwrap_err().to_string();
        assert!(
            error.contains("run.checkpoint_selection") && error.contains("keeps its recipe"),
            "{error}"
        );
    }
}
