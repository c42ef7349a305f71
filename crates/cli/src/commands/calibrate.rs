//! `clasp eval reid --calibrate RATE`: the same-person threshold of an evaluation, stored with the
//! model.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_metrics::verify::Roc;
use clasp_model::Precision;
use clasp_tasks::finetune::FinetuneRecipe;
use clasp_tasks::reid::{ReidConfig, ReidTask, SamePersonThreshold};
use clasp_tasks::task::Task as _;
use clasp_tasks::task::{Evaluate, Evaluation, FinetunedModel};
use clasp_weights::finetuned;

use crate::args::EvalArguments;

/// Pairs of different people above a threshold from which on their rate is more than a guess.
const LEAST_FALSE: f64 = 10.0;
/// Share of the pairs of the same person that a threshold should find.
const LEAST_FOUND: f64 = 0.05;

/// What a calibration did.
pub struct Calibrated {
    /// The threshold that was stored, in words; none where there is none.
    pub stored: Option<String>,
    /// What the user should know before the threshold is relied on.
    pub warnings: Vec<String>,
}

/// Checks that a calibration compares the features that the model compares as it is stored: the file
/// gets the threshold alone, not what it was measured with.
///
/// # Errors
/// An option or a key of `--set` changes features, or what they are measured on.
pub fn check(arguments: &EvalArguments) -> Result<()> {
    let options = [
        ("--size", arguments.size.is_some()),
        ("--precision", arguments.precision.format != Precision::F32),
    ];
    let option = options.iter().find(|(_, given)| *given);
    let set = { arguments.set.iter() }.find(|set| !is_only_summarized(set));
    let what = match (option, set) {
        (Some((option, _)), _) => (*option).to_owned(),
        (None, Some(set)) => format!("--set {set}"),
        (None, None) => return Ok(()),
    };
    bail!(
        "--calibrate: expected the features that the model compares as it is stored, found {what}, which is not \
         stored with the threshold\n\
         hint: leave it out, or train a model with this setting and calibrate that"
    )
}

/// Whether `key=value` of `--set` leaves the features as they are.
fn is_only_summarized(set: &str) -> bool {
    let key = set.split_once('=').map_or(set, |(key, _)| key).trim();
    let key = key.strip_prefix("task.").unwrap_or(key);
    let places = ReidTask::ONLY_SUMMARIZED.iter();
    { places.filter_map(|place| place.strip_prefix("/config/")) }.any(|place| place == key)
}

/// Writes the same-person threshold of an evaluation into the file of the model.
pub fn calibrate(
    arguments: &EvalArguments,
    evaluation: &Evaluation,
    rate: f64,
) -> Result<Calibrated> {
    let details = &evaluation.scores.details;
    let same: Option<SamePersonThreshold> = serde_json::from_value(details["same_person"].clone())?;
    let roc: Option<Roc> = serde_json::from_value(details["verification"].clone())?;
    let mut warnings = Vec::new();
    let Some(same) = same else {
        warnings.push(nothing_found(&evaluation.data, rate, roc.as_ref()));
        return Ok(Calibrated {
            stored: None,
            warnings,
        });
    };
    let file = finetuned::existing(&arguments.model)?;
    if arguments.split.as_deref().unwrap_or("test") == "test"
        && training_data(&file).is_some_and(|trained| is_same(&trained, &arguments.data))
    {
        warnings.push(format!(
            "the threshold is chosen on the test images of the data that the model was trained for: the rates printed \
             for it are those of the images that it was chosen on, and no result on this test set is fair any more\n\
             hint: calibrate on other people, {} has none held out: --data OTHERS, or train with --set task.holdout=0.1 \
             and calibrate with --split val",
            arguments.data.display()
        ));
    }
    if same.true_positive_rate < LEAST_FOUND {
        warnings.push(format!(
            "the threshold finds only {:.2} % of the pairs of the same person\n\
             hint: allow more pairs of different people than {rate}, or train the model longer",
            100.0 * same.true_positive_rate
        ));
    }
    let pairs = roc.map_or(0, |roc| roc.different.pairs);
    if rate * (pairs as f64) < LEAST_FALSE {
        warnings.push(format!(
            "{pairs} pairs of different people are too few to measure a false positive rate of {rate}\n\
             hint: calibrate on more images, or with a rate of {:.0e} or more",
            LEAST_FALSE / pairs.max(1) as f64
        ));
    }
    let chosen_by = finetuned::read_meta(&file)?.and_then(|meta| meta.chosen_by);
    let mut model = FinetunedModel::<ReidTask>::load(&file, &Device::flex())?;
    let mut stored = format!(
        "same-person threshold {:.4} written to {}; on these images: true positive rate {:.1} %, false positive rate {:.3} %",
        same.cosine,
        file.display(),
        100.0 * same.true_positive_rate,
        100.0 * same.false_positive_rate
    );
    if same.false_positive_rate < 0.9 * rate {
        let percent = 100.0 * rate;
        stored.push_str(&format!(
            "\nthe next lower threshold that finds more pairs of the same person accepts more than {percent} % of the \
             pairs of different people"
        ));
    }
    model.task.same_person = Some(same);
    model.save(&file, chosen_by)?;
    Ok(Calibrated {
        stored: Some(stored),
        warnings,
    })
}

/// Why there is no threshold.
fn nothing_found(data: &str, rate: f64, roc: Option<&Roc>) -> String {
    match roc {
        None => format!(
            "no threshold is stored: expected pairs of the same person under two cameras and of different people in \
             {data}, found none of one kind"
        ),
        Some(roc) => format!(
            "no threshold is stored: even the most similar pair of the same person, of {}, comes after more than {rate} \
             of the {} pairs of different people\n\
             hint: allow more of them, or train the model longer",
            roc.same.pairs, roc.different.pairs
        ),
    }
}

/// The data that the run of a model's file was trained on; none for a file outside its run.
fn training_data(file: &Path) -> Option<PathBuf> {
    let recipe = FinetuneRecipe::<ReidConfig>::of_run(file.parent()?, ReidTask::NAME, &[]).ok()?;
    Some(recipe.data.path)
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
