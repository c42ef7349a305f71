//! `clasp eval TASK`: a task's metric beside chance, then its protocol, of a fine-tuned model or a
//! frozen backbone.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clasp_data::missing::require;
use clasp_metrics::Metric;
use clasp_metrics::metric::line_of;
use clasp_model::Precision;
use clasp_model::backbone::Backbone;
use clasp_model::prompt::{PROMPTS, PromptWeights};
use clasp_tasks::features::Batching;
use clasp_tasks::probe::{FrozenRequest, FrozenResult, ProbeConfig};
use clasp_tasks::task::{Evaluate, Inference, SplitChoice, shard};
use clasp_tasks::{BackboneExtractor, PassProgress, Preprocess, TaskKind, with_task};
use clasp_weights::import::load_backbone;
use serde::Serialize;
use serde_json::json;

use super::{Input, calibrate, check_data, check_writable, claim_outputs, print_result};
use crate::args::{EvalArguments, GlobalOptions};
use crate::progress::{Meter, warn, warning};
use crate::{Outcome, device, interrupt};

/// The evaluation of a frozen backbone on a task with one mix.
#[derive(Serialize)]
pub struct FrozenEval {
    /// The task.
    pub task: &'static str,
    /// The mix, in words.
    pub mix: String,
    /// Metrics, chance and protocol.
    #[serde(flatten)]
    pub result: FrozenResult,
}

/// A backbone that is ready to be evaluated.
pub struct Model {
    /// The network.
    pub backbone: Backbone,
    /// Its preprocessing.
    pub preprocess: Preprocess,
    /// Where it is.
    pub device: Device,
    /// Precision of the network.
    pub precision: Precision,
}

impl Model {
    /// Loads a backbone file or that of a run's folder.
    pub fn load(path: &Path, size: Option<[usize; 2]>, device: &Device) -> Result<Self> {
        let (backbone, meta) = load_backbone(path, device)?;
        let mut preprocess = Preprocess::of(&meta);
        preprocess.resize(size);
        Ok(Self {
            backbone,
            preprocess,
            device: device.clone(),
            precision: Precision::F32,
        })
    }
}

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &EvalArguments) -> Result<Outcome> {
    check_data(&arguments.data)?;
    let task = arguments.task.0;
    let written = [
        ("--predictions", &arguments.predictions),
        ("--out", &arguments.out),
    ];
    let written: Vec<(&str, &Path)> = { written.iter() }
        .filter_map(|(option, path)| Some((*option, path.as_deref()?)))
        .collect();
    for (_, path) in &written {
        check_writable(path)?;
    }
    let mut read = vec![
        Input::Files(&arguments.data),
        Input::Model(&arguments.model),
    ];
    read.extend(arguments.shards.iter().map(|shard| Input::Files(shard)));
    claim_outputs(&written, &read)?;
    for path in &arguments.shards {
        require(path, "results of `clasp eval --shard`")?;
    }
    let of_reid = [
        ("--rerank", arguments.rerank),
        ("--calibrate", arguments.calibrate.is_some()),
    ];
    if let Some((option, _)) =
        { of_reid.iter() }.find(|(_, given)| *given && task != TaskKind::Reid)
    {
        bail!("{option} is for reid, not for {}", task.name());
    }
    if !arguments.frozen {
        if arguments.prompt.is_some() {
            bail!(
                "--prompt is for --frozen: a fine-tuned model has the prompt that it was trained with"
            );
        }
        return with_task!(task, T => tuned::<T>(common, arguments));
    }
    // Before a model is loaded.
    check_frozen(task)?;
    let fine_tuned = [
        ("--split", arguments.split.is_some()),
        ("--set", !arguments.set.is_empty()),
        ("--predictions", arguments.predictions.is_some()),
        ("--calibrate", arguments.calibrate.is_some()),
        ("--shard", arguments.shard.is_some()),
        ("--shards", !arguments.shards.is_empty()),
    ];
    if let Some((what, _)) = fine_tuned.iter().find(|(_, given)| *given) {
        bail!("{what} is for fine-tuned models; leave it out, or leave out --frozen");
    }
    let device = device::pick(common.device.as_deref())?;
    let mut model = Model::load(&arguments.model, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.precision, &device)?;
    if let Some(prompt) = &arguments.prompt
        && !model.backbone.has_prompts()
    {
        warn(&format!(
            "--prompt {prompt}: the model has no prompts, so it changes nothing"
        ));
    }
    let mixes = match arguments.prompt.as_deref() {
        None => vec![default_mix(task)],
        Some("all") => {
            let single = (0..PROMPTS.len())
                .map(|task| (PROMPTS[task].to_owned(), PromptWeights::single(task)));
            std::iter::once(default_mix(task)).chain(single).collect()
        }
        Some(text) => vec![(text.to_owned(), text.parse::<PromptWeights>()?)],
    };
    let mut results = Vec::new();
    let mut text = String::new();
    for (mix_name, mix) in mixes {
        let eval = evaluate(
            common,
            task,
            &model,
            (&mix_name, mix),
            &arguments.data,
            arguments.rerank,
            0,
        )?;
        let _ = write!(text, "{:<44}", format!("prompt {mix_name}"));
        let line = beside_chance(&eval.result.metrics, Some(eval.result.chance));
        let _ = writeln!(text, "  {line}");
        if !eval.result.counted.is_empty() {
            let _ = writeln!(text, "{}", eval.result.counted);
        }
        results.push(eval);
    }
    if let Some(first) = results.first() {
        let _ = write!(text, "\n{}", first.result.protocol);
    }
    print_result(common.json, &results, &text)?;
    Ok(Outcome::Done)
}

/// Evaluates a fine-tuned model.
fn tuned<T: Evaluate>(common: &GlobalOptions, arguments: &EvalArguments) -> Result<Outcome> {
    if arguments.calibrate.is_some() {
        calibrate::check(arguments)?;
    }
    let device = device::pick(common.device.as_deref())?;
    let mut set = arguments.set.clone();
    if arguments.rerank {
        set.push("rerank=true".to_owned());
    }
    if let Some(rate) = arguments.calibrate {
        set.push(format!("false_positive_rate={rate:e}"));
    }
    let mut model = super::load_model::load::<T>(&arguments.model, &set, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.precision, &device)?;
    let split = arguments.split.as_deref().unwrap_or("test");
    let data = model
        .task
        .open_test(&arguments.data, &SplitChoice::named(split))?;
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, &format!("eval {}", T::NAME), "images"));
    let progress = |progress: PassProgress| {
        if let Ok(mut meter) = meter.lock() {
            meter.set(progress.done as u64, progress.total as u64, progress.stage);
        }
        interrupt::flow(&stop)
    };
    let inference = Inference {
        batch: 16,
        threads: device::threads(common.threads),
        // Those of a shard may be asked for when the shards are joined.
        predictions: arguments.predictions.is_some() || arguments.shard.is_some(),
        progress: &progress,
    };
    if let (Some((index, of)), Some(out)) = (arguments.shard, &arguments.out) {
        let units = shard::units_of::<T>(&data, inference.batch, [index, of]);
        let results = model
            .task
            .results(&model, &data, units.clone(), &inference)?;
        shard::write(out, &model, &data, split, &units, &results)?;
        drop(meter);
        return print_shard::<T>(common, (index, of), &units, T::units(&data), out);
    }
    let mut evaluation = match arguments.shards.is_empty() {
        true => model.task.evaluate(&model, &data, &inference)?,
        false => {
            let results = shard::read(&arguments.shards, &model, &data, split)?;
            model
                .task
                .summarize(&model, &data, results, inference.predictions)?
        }
    };
    evaluation.protocol = with_precision(evaluation.protocol, model.precision);
    drop(meter);
    for note in &evaluation.notes {
        warn(note);
    }
    if let Some(path) = &arguments.predictions {
        clasp_data::atomic_write(path, |file| file.write_all(&evaluation.predictions))?;
    }
    let stored = match arguments.calibrate {
        Some(rate) => {
            let calibrated = calibrate::calibrate(arguments, &evaluation, rate)?;
            for warned in &calibrated.warnings {
                warning(warned);
            }
            evaluation.notes.extend(calibrated.warnings);
            Some(calibrated.stored)
        }
        None => None,
    };
    let scores = &evaluation.scores;
    let mut text = beside_chance(&scores.metrics, scores.chance);
    if let Some(Some(stored)) = &stored {
        let _ = write!(text, "\n{stored}");
    }
    if !scores.table.is_empty() {
        let _ = write!(text, "\n\n{}", scores.table.trim_end());
    }
    let _ = write!(text, "\n\n{}", evaluation.protocol);
    print_result(common.json, &evaluation, &text)?;
    Ok(match stored {
        Some(None) => Outcome::CheckFailed,
        _ => Outcome::Done,
    })
}

/// Says what a shard of an evaluation computed.
fn print_shard<T: Evaluate>(
    common: &GlobalOptions,
    (index, of): (usize, usize),
    units: &Range<usize>,
    all: usize,
    out: &Path,
) -> Result<Outcome> {
    let text = format!(
        "shard {index}/{of}: {} of {all} {} in {}",
        units.len(),
        T::UNITS,
        out.display()
    );
    let value = json!({
        "task": T::NAME,
        "shard": [index, of],
        "first": units.start,
        "count": units.len(),
        "of": all,
        "file": out,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Metrics on one line, with chance beside the first.
pub fn beside_chance(metrics: &[Metric], chance: Option<f64>) -> String {
    let (Some(chance), Some((first, others))) = (chance, metrics.split_first()) else {
        return line_of(metrics);
    };
    let chance = Metric {
        value: chance,
        ..first.clone()
    };
    let line = format!("{first} (chance {})", chance.printed());
    match others {
        [] => line,
        _ => format!("{line}  {}", line_of(others)),
    }
}

/// The protocol, with the precision where it is not f32.
fn with_precision(protocol: String, precision: Precision) -> String {
    match precision {
        Precision::F32 => protocol,
        Precision::Bf16 => format!("{protocol} · {precision}"),
    }
}

/// The mix that a task is evaluated with unless another is asked for, as fine-tuning has it, and
/// its name.
pub fn default_mix(task: TaskKind) -> (String, PromptWeights) {
    let mix = with_task!(task, T => <T as clasp_tasks::task::Task>::default_prompt());
    let weights = PROMPTS.iter().zip(mix.weights());
    let most = weights.max_by(|(_, one), (_, other)| one.total_cmp(other));
    let (own, weight) = most.unwrap_or((&"", 0.0));
    let name = match weight {
        1.0 => format!("default ({own})"),
        _ => format!("default ({own} {weight})"),
    };
    (name, mix)
}

/// Checks that a task can be evaluated with a frozen backbone.
///
/// # Errors
///
/// It cannot: some tasks need a head of their own.
fn check_frozen(task: TaskKind) -> Result<()> {
    if !task.describe().frozen {
        bail!(
            "{} has no frozen evaluation\nhint: fine-tune a model with `clasp finetune {0}` and leave out --frozen",
            task.name()
        );
    }
    Ok(())
}

/// Evaluates a frozen backbone on a task, with so many `examples` of queries and their matches
/// (re-identification).
pub fn evaluate(
    common: &GlobalOptions,
    task: TaskKind,
    model: &Model,
    (mix_name, mix): (&str, PromptWeights),
    data: &Path,
    rerank: bool,
    examples: usize,
) -> Result<FrozenEval> {
    check_frozen(task)?;
    let extractor = BackboneExtractor::new(model.backbone.clone(), mix, model.device.clone())
        .with_precision(model.precision);
    let config = ProbeConfig {
        batching: Batching {
            threads: device::threads(common.threads),
            ..Batching::default()
        },
        ..ProbeConfig::default()
    };
    let stop = interrupt::flag()?;
    let title = format!("eval {} ({mix_name})", task.name());
    let meter = Mutex::new(Meter::new(common, &title, "images"));
    let progress = |progress: PassProgress| {
        if let Ok(mut meter) = meter.lock() {
            meter.set(progress.done as u64, progress.total as u64, progress.stage);
        }
        interrupt::flow(&stop)
    };
    let request = FrozenRequest {
        extractor: &extractor,
        preprocess: &model.preprocess,
        data,
        rerank,
        examples,
        config: &config,
        progress: &progress,
    };
    let result = with_task!(task, T => <T as Evaluate>::FROZEN.map(|frozen| frozen(&request)));
    let mut result = result.context("a task without a frozen evaluation")??;
    result.protocol = with_precision(result.protocol, model.precision);
    Ok(FrozenEval {
        task: task.name(),
        mix: mix_name.to_owned(),
        result,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_stands_beside_the_first_metric() {
        let metrics = [Metric::score("mAP", 0.35304), Metric::score("rank-1", 0.5)];
        let line = beside_chance(&metrics, Some(0.0512));
        assert_eq!(line, "mAP 35.30 (chance 5.12)  rank-1 50.00");
        assert_eq!(beside_chance(&metrics[..1], None), "mAP 35.30");
    }

    #[test]
    fn a_default_mix_is_that_of_fine_tuning_and_says_what_it_is_mostly() {
        let (name, mix) = default_mix(TaskKind::Reid);
        assert_eq!(name, "default (attribute)");
        assert_eq!(mix, PromptWeights::single(clasp_model::prompt::ATTRIBUTE));
        assert_eq!(
            default_mix(TaskKind::Search).1,
            <clasp_tasks::search::SearchTask as clasp_tasks::task::Task>::default_prompt()
        );
    }
}
