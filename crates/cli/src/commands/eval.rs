//! `clasp eval TASK`: a task's metric with its protocol printed beside it, of a fine-tuned model or a frozen backbone.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_data::layouts::attributes::AttributeDataset;
use clasp_data::layouts::parsing::ParsingDataset;
use clasp_data::layouts::reid::ReidDataset;
use clasp_metrics::rerank::Rerank;
use clasp_model::Precision;
use clasp_model::backbone::Backbone;
use clasp_model::mix::{Mix, TASKS};
use clasp_tasks::reid::Strip;
use clasp_tasks::tuned::reid::{Reid, SamePerson};
use clasp_tasks::{
    BackboneExtractor, Options, Preprocess, Progress, attributes, finetune, parsing, pose, reid,
};
use clasp_weights::backbone::load_backbone;
use clasp_weights::tuned as weights_tuned;
use serde::Serialize;

use super::tuned::with_task;
use super::{check_data, check_writable, print_result};
use crate::args::{Common, Eval, Task};
use crate::progress::{Meter, warn};
use crate::{Outcome, device, interrupt};

/// The result of a task with one mix.
#[derive(Serialize)]
pub struct Figures {
    /// The task.
    pub task: &'static str,
    /// The mix, in words.
    pub mix: String,
    /// Names and values of the figures to quote, the first one first; larger is better.
    pub figures: Vec<(&'static str, f64)>,
    /// What the first figure is for guessing, or for the best constant answer.
    pub chance: f64,
    /// What was done, in words.
    pub protocol: String,
    /// Everything else that was measured.
    pub details: serde_json::Value,
    /// Queries and what was found (re-identification).
    #[serde(skip)]
    pub strips: Vec<Strip>,
    /// What the figures are means over, where something was left out.
    pub counted: String,
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
        let mut preprocess = Preprocess::of(&meta, path)?;
        if let Some([height, width]) = size {
            (preprocess.height, preprocess.width) = (height, width);
        }
        Ok(Self {
            backbone,
            preprocess,
            device: device.clone(),
            precision: Precision::F32,
        })
    }
}

/// Runs the verb.
pub fn run(common: &Common, arguments: &Eval) -> Result<Outcome> {
    check_data(&arguments.data)?;
    if let Some(path) = &arguments.predictions {
        check_writable(path)?;
    }
    let of_reid = [
        ("--rerank", arguments.rerank),
        ("--calibrate", arguments.calibrate.is_some()),
    ];
    if let Some((option, _)) =
        { of_reid.iter() }.find(|(_, given)| *given && arguments.task != Task::Reid)
    {
        bail!("{option} is for reid, not for {}", name(arguments.task));
    }
    if !arguments.frozen {
        if arguments.mix.is_some() {
            bail!("--mix is for --frozen: a fine-tuned model has the mix that it was trained with");
        }
        return with_task!(arguments.task, T => tuned::<T>(common, arguments));
    }
    // Before a model is loaded.
    frozen(arguments.task)?;
    let fine_tuned = [
        ("--split", arguments.split.is_some()),
        ("--set", !arguments.set.is_empty()),
        ("--predictions", arguments.predictions.is_some()),
        ("--calibrate", arguments.calibrate.is_some()),
    ];
    if let Some((what, _)) = fine_tuned.iter().find(|(_, given)| *given) {
        bail!("{what} is for fine-tuned models; leave it out, or leave out --frozen");
    }
    let device = device::pick(common.device.as_deref())?;
    let mut model = Model::load(&arguments.model, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.products, &device)?;
    let mixes = match arguments.mix.as_deref() {
        None => vec![default_mix(arguments.task)],
        Some("all") => {
            let single = (0..TASKS.len()).map(|task| (TASKS[task].to_owned(), Mix::single(task)));
            std::iter::once(default_mix(arguments.task))
                .chain(single)
                .collect()
        }
        Some(text) => vec![(text.to_owned(), text.parse::<Mix>()?)],
    };
    let mut results = Vec::new();
    let mut text = String::new();
    for (mix_name, mix) in mixes {
        let figures = evaluate(
            common,
            arguments.task,
            &model,
            (&mix_name, mix),
            &arguments.data,
            arguments.rerank,
            0,
        )?;
        if text.is_empty() {
            let _ = writeln!(text, "{}\n", figures.protocol);
        }
        let _ = write!(text, "{:<44}", format!("mix {mix_name}"));
        for (figure, value) in &figures.figures {
            let _ = write!(text, "  {figure} {:.2}", 100.0 * value);
        }
        let _ = writeln!(text, "  (chance {:.2})", 100.0 * figures.chance);
        if !figures.counted.is_empty() {
            let _ = writeln!(text, "{}", figures.counted);
        }
        results.push(figures);
    }
    print_result(common.json, &results, &text)?;
    Ok(Outcome::Done)
}

/// Evaluates a fine-tuned model.
fn tuned<T: finetune::Task>(common: &Common, arguments: &Eval) -> Result<Outcome> {
    let device = device::pick(common.device.as_deref())?;
    let mut set = arguments.set.clone();
    if arguments.rerank {
        set.push("rerank=true".to_owned());
    }
    if let Some(rate) = arguments.calibrate {
        set.push(format!("false_rate={rate:e}"));
    }
    let mut model = super::tuned::load::<T>(&arguments.model, &set, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.products, &device)?;
    let split = arguments.split.as_deref().unwrap_or("test");
    let data = model
        .task
        .open_eval(&arguments.data, &finetune::Split::named(split))?;
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, &format!("eval {}", T::NAME), "images"));
    let progress = |progress: Progress| {
        if let Ok(mut meter) = meter.lock() {
            meter.set(progress.done as u64, progress.total as u64, progress.stage);
        }
        interrupt::flow(&stop)
    };
    let running = finetune::Running {
        batch: 16,
        threads: device::threads(common.threads),
        predictions: arguments.predictions.is_some(),
        progress: &progress,
    };
    let mut report = model.task.evaluate(&model, &data, &running)?;
    report.protocol = with_precision(report.protocol, model.precision);
    drop(meter);
    for note in &report.notes {
        warn(note);
    }
    if let Some(path) = &arguments.predictions {
        clasp_data::atomic_write(path, |file| file.write_all(&report.predictions))?;
    }
    let mut text = format!("{}\n\n{}", report.protocol, report.table);
    for (figure, value) in &report.figures {
        let _ = write!(text, "{figure} {:.2}  ", 100.0 * value);
    }
    if arguments.calibrate.is_some() {
        text.push_str(&keep_threshold(&arguments.model, &report)?);
    }
    print_result(common.json, &report, &text)?;
    Ok(Outcome::Done)
}

/// Writes the threshold of a report into the file of its model; what was done, in words.
fn keep_threshold(model: &Path, report: &finetune::Report) -> Result<String> {
    let same = serde_json::from_value::<Option<SamePerson>>(report.details["same_person"].clone())?;
    let Some(same) = same else {
        bail!(
            "--calibrate: expected pairs of one person and of two in {}, found none that a threshold could be read off",
            report.data
        );
    };
    let file = weights_tuned::existing(model)?;
    let chosen_by = weights_tuned::read_meta(&file)?.and_then(|meta| meta.chosen_by);
    let mut model = finetune::Model::<Reid>::load(&file, &Device::flex())?;
    let text = format!(
        "\nkept in {}: the same person from cosine {:.4}, which {:.1} % of the pairs of one person and {:.3} % of those of two reach",
        file.display(),
        same.cosine,
        100.0 * same.true_rate,
        100.0 * same.false_rate
    );
    model.task.same_person = Some(same);
    model.save(&file, chosen_by)?;
    Ok(text)
}

/// A protocol that says what is not usual.
fn with_precision(protocol: String, precision: Precision) -> String {
    match precision {
        Precision::F32 => protocol,
        Precision::Bf16 => format!("{protocol} · {precision}"),
    }
}

/// The mix that a task is evaluated with unless another is asked for, as fine-tuning has it, and its name.
pub fn default_mix(task: Task) -> (String, Mix) {
    let mix = with_task!(task, T => <T as finetune::Task>::default_mix());
    let weights = TASKS.iter().zip(mix.weights());
    let most = weights.max_by(|(_, one), (_, other)| one.total_cmp(other));
    let (own, weight) = most.unwrap_or((&"", 0.0));
    let name = match weight {
        1.0 => format!("default ({own})"),
        _ => format!("default ({own} {weight})"),
    };
    (name, mix)
}

/// The task's name on the command line.
pub fn name(task: Task) -> &'static str {
    with_task!(task, T => <T as finetune::Task>::NAME)
}

/// A frozen evaluation under way.
struct Run<'a> {
    extractor: &'a BackboneExtractor,
    preprocess: &'a Preprocess,
    data: &'a Path,
    rerank: bool,
    strips: usize,
    options: &'a Options,
    progress: &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync),
}

/// What a frozen evaluation found, of any task.
struct Found {
    figures: Vec<(&'static str, f64)>,
    chance: f64,
    protocol: String,
    details: serde_json::Value,
    strips: Vec<Strip>,
    /// What the figures are means over, where something was left out.
    counted: String,
}

impl Found {
    fn new(
        figures: Vec<(&'static str, f64)>,
        chance: f64,
        protocol: &str,
        report: &impl Serialize,
    ) -> Result<Self> {
        Ok(Self {
            figures,
            chance,
            protocol: protocol.to_owned(),
            details: serde_json::to_value(report)?,
            strips: Vec::new(),
            counted: String::new(),
        })
    }
}

/// How a frozen backbone is evaluated on a task.
///
/// # Errors
///
/// It is not: some tasks need a head of their own.
fn frozen(task: Task) -> Result<fn(&Run<'_>) -> Result<Found>> {
    match task {
        Task::Reid => Ok(frozen_reid),
        Task::Attributes => Ok(frozen_attributes),
        Task::Parsing => Ok(frozen_parsing),
        Task::Pose => Ok(frozen_pose),
        Task::Detection | Task::Search => bail!(
            "{} has no frozen evaluation\n  hint: fine-tune a model with `clasp finetune {0}` and leave out --frozen",
            name(task)
        ),
    }
}

/// Evaluates a frozen backbone on a task, with `strips` queries to show (re-identification).
pub fn evaluate(
    common: &Common,
    task: Task,
    model: &Model,
    (mix_name, mix): (&str, Mix),
    data: &Path,
    rerank: bool,
    strips: usize,
) -> Result<Figures> {
    let evaluation = frozen(task)?;
    let extractor = BackboneExtractor::new(model.backbone.clone(), mix, model.device.clone())
        .with_precision(model.precision);
    let options = Options {
        threads: device::threads(common.threads),
        ..Options::default()
    };
    let stop = interrupt::flag()?;
    let title = format!("eval {} ({mix_name})", name(task));
    let meter = Mutex::new(Meter::new(common, &title, "images"));
    let progress = |progress: Progress| {
        if let Ok(mut meter) = meter.lock() {
            meter.set(progress.done as u64, progress.total as u64, progress.stage);
        }
        interrupt::flow(&stop)
    };
    let found = evaluation(&Run {
        extractor: &extractor,
        preprocess: &model.preprocess,
        data,
        rerank,
        strips,
        options: &options,
        progress: &progress,
    })?;
    Ok(Figures {
        task: name(task),
        mix: mix_name.to_owned(),
        figures: found.figures,
        chance: found.chance,
        protocol: with_precision(found.protocol, model.precision),
        details: found.details,
        strips: found.strips,
        counted: found.counted,
    })
}

fn frozen_reid(run: &Run<'_>) -> Result<Found> {
    let report = reid::evaluate(
        run.extractor,
        run.preprocess,
        &ReidDataset::open(run.data)?,
        run.rerank.then(Rerank::default),
        run.strips,
        run.options,
        run.progress,
    )?;
    let metrics = &report.metrics;
    let rank = |cmc: &[f64], k: usize| cmc.get(k - 1).copied().unwrap_or(1.0);
    let mut figures = vec![
        ("mAP", metrics.map),
        ("rank-1", rank(&metrics.cmc, 1)),
        ("rank-5", rank(&metrics.cmc, 5)),
        ("mINP", metrics.minp),
    ];
    if let Some(metrics) = &report.reranked {
        figures.push(("re-ranked mAP", metrics.map));
        figures.push(("re-ranked rank-1", rank(&metrics.cmc, 1)));
    }
    let found = Found::new(figures, metrics.chance_map, &report.protocol, &report)?;
    Ok(Found {
        strips: report.strips,
        counted: format!(
            "{} of {} queries count, {} skipped (no image of the person by another camera in the gallery)",
            metrics.queries - metrics.skipped,
            metrics.queries,
            metrics.skipped
        ),
        ..found
    })
}

fn frozen_attributes(run: &Run<'_>) -> Result<Found> {
    let data = AttributeDataset::open(run.data)?;
    let report = attributes::evaluate(
        run.extractor,
        run.preprocess,
        &data,
        run.options,
        run.progress,
    )?;
    let metrics = &report.metrics;
    let mut figures = vec![("mA", metrics.ma)];
    figures.extend(metrics.map.map(|map| ("mAP", map)));
    figures.extend([
        ("accuracy", metrics.accuracy),
        ("precision", metrics.precision),
        ("recall", metrics.recall),
        ("F1", metrics.f1),
    ]);
    Found::new(figures, report.chance_ma, &report.protocol, &report)
}

fn frozen_parsing(run: &Run<'_>) -> Result<Found> {
    let data = ParsingDataset::open(run.data)?;
    let report = parsing::evaluate(
        run.extractor,
        run.preprocess,
        &data,
        run.options,
        run.progress,
    )?;
    let metrics = &report.metrics;
    let figures = vec![
        ("mIoU", metrics.mean_iou_present.unwrap_or(metrics.mean_iou)),
        ("mean accuracy", metrics.mean_accuracy),
        ("pixel accuracy", metrics.pixel_accuracy.unwrap_or(0.0)),
    ];
    Found::new(figures, report.constant_mean_iou, &report.protocol, &report)
}

fn frozen_pose(run: &Run<'_>) -> Result<Found> {
    let (train, eval) = pose::open(run.data, run.options)?;
    let report = pose::evaluate(
        run.extractor,
        run.preprocess,
        &train,
        &eval,
        run.options,
        run.progress,
    )?;
    let pck =
        |scores: &pose::PoseScores| scores.pck_torso.mean.or(scores.pck_box.mean).unwrap_or(0.0);
    let mut figures = vec![("PCK@0.2", pck(&report.scores))];
    let ap = report.scores.oks.as_ref().and_then(|oks| oks.ap);
    figures.extend(ap.map(|ap| ("OKS AP", ap)));
    Found::new(figures, pck(&report.mean_pose), &report.protocol, &report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_mix_is_that_of_fine_tuning_and_says_what_it_is_mostly() {
        let (name, mix) = default_mix(Task::Reid);
        assert_eq!(name, "default (attribute)");
        assert_eq!(mix, Mix::single(clasp_model::mix::ATTRIBUTE));
        assert_eq!(
            default_mix(Task::Search).1,
            <clasp_tasks::tuned::search::SearchTask as finetune::Task>::default_mix()
        );
    }
}
