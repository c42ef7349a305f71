//! `clasp demo`: the whole pipeline on synthetic people, and a report.
//!
//! The libraries of the other commands write everything into the folder `--out`: `people/` (synth),
//! `labels/` (label), `run/`, `dino/` and `init/` (pretrain: CLASP, DINO with as many steps, and no
//! step at all), `results.json` (eval --frozen) and `report.html`. Run again after a stop or kill,
//! it resumes: no label and no step is computed twice. Both pre-trainings take `run.steps` of the
//! recipe `demo`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clasp_data::atomic_write;
use clasp_data::augment::views;
use clasp_data::image::{Filter, Limits, Rgb, decode, resize};
use clasp_data::labels::{AttributeConfig, AttributeRule, Calibration, LabelRef, Store};
use clasp_data::layouts::reid::ReidDataset;
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::text::shell_path;
use clasp_data::vocabulary::Vocabulary;
use clasp_label::accuracy::accuracy;
use clasp_label::show::{color, overlay};
use clasp_label::{ClipLabeler, LabelConfig, LabelRunConfig, calibrate};
use clasp_model::prompt::{ATTRIBUTE, IDENTITY, PART, PROMPTS, PromptWeights};
use clasp_pretrain::recipe::Auto;
use clasp_pretrain::{PretrainRecipe, PretrainSummary};
use clasp_run::folder::warnings;
use clasp_synth::{SynthConfig, write_dataset};
use clasp_tasks::probe::{FrozenResult, RetrievalExample};
use clasp_tasks::{TaskError, TaskKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::eval::{self, FrozenEval, Model};
use super::label::label_images;
use super::pretrain::pretrain;
use crate::args::{DemoArguments, GlobalOptions};
use crate::progress::{Meter, duration, say};
use crate::report::{
    Cell, DemoReport, FeaturePicture, LabeledSample, LegendEntry, MatchPicture, QueryStrip,
    ResultTable, Retrieved, ViewPicture, map_url, photo_url,
};
use crate::{Outcome, device, feature_map, mini, plot};

/// Height and width of the synthetic crops.
const SIZE: [usize; 2] = [128, 64];
const TASKS_SHOWN: [TaskKind; 4] = [
    TaskKind::Reid,
    TaskKind::Attributes,
    TaskKind::Parsing,
    TaskKind::Pose,
];
/// Queries, samples and feature pictures in the report.
const STRIPS: usize = 6;
const SAMPLES: usize = 8;
const FEATURES: usize = 4;
/// Names of rows of the table.
const INITIALIZATION: &str = "initialization";
const DINO: &str = "DINO";
const CLASP: &str = "CLASP";
/// What changes the demo's recipe into that of DINO, whatever else was set.
const AS_DINO: [&str; 3] = [
    "method=\"dino\"",
    "model.adapter=\"none\"",
    "data.labels=\"\"",
];
/// Metrics of several seeds, as `runs/evidence.py --tables demo --write docs/results.md` writes
/// them.
const RANGES: &str = include_str!("../../../../docs/demo-ranges.json");

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &DemoArguments) -> Result<Outcome> {
    let finished = match demo(common, arguments) {
        Err(error) if matches!(error.downcast_ref(), Some(TaskError::Stopped)) => false,
        other => other?,
    };
    if !finished {
        say(common, "stopped; run the same command to resume");
        return Ok(Outcome::Stopped);
    }
    Ok(Outcome::Done)
}

/// The whole pipeline; false where Ctrl-C stopped it.
fn demo(common: &GlobalOptions, arguments: &DemoArguments) -> Result<bool> {
    let begun = Instant::now();
    let out = &arguments.out;
    let device = device::pick(common.device.as_deref())?;
    fs_err::create_dir_all(out)?;
    let people = out.join("people");
    let images = people.join("unlabeled");

    say(common, "1/5 rendering synthetic people");
    draw(common, &people, arguments)?;

    say(common, "2/5 labeling them with clasp-mini");
    let labels = out.join("labels");
    let source = Source::open(&images.to_string_lossy())?;
    if !label(common, &source, &labels, &device)? {
        return Ok(false);
    }

    say(common, "3/5 pre-training");
    let quoted = |path: &Path| toml::Value::from(&*path.to_string_lossy());
    let mut overrides = vec![
        format!("data.images={}", quoted(&images)),
        format!("data.labels={}", quoted(&labels)),
        format!("seed={}", arguments.seed),
    ];
    overrides.extend(arguments.set.iter().cloned());
    let recipe = PretrainRecipe::load("demo", &overrides)?;
    let run = out.join("run");
    let trained = start_or_resume(common, &recipe, &run, &device)?;
    if !trained.run.finished {
        return Ok(false);
    }
    say(common, "    and DINO for comparison, with as many steps");
    let mut plain = overrides.clone();
    plain.extend(AS_DINO.map(str::to_owned));
    let plain = start_or_resume(
        common,
        &PretrainRecipe::load("demo", &plain)?,
        &out.join("dino"),
        &device,
    )?;
    if !plain.run.finished {
        return Ok(false);
    }
    if trained.run.metrics.is_empty() && plain.run.metrics.is_empty() {
        say(
            common,
            "training is finished: only results and report are written again",
        );
    }

    say(common, "4/5 evaluating on held-out people");
    let mut start = overrides.clone();
    start.push("run.steps=0".to_owned());
    let init = start_or_resume(
        common,
        &PretrainRecipe::load("demo", &start)?,
        &out.join("init"),
        &device,
    )?;
    let networks = ComparedNetworks {
        before: Model::load(&init.backbone, None, &device)?,
        dino: Model::load(&plain.backbone, None, &device)?,
        after: Model::load(&trained.backbone, None, &device)?,
    };
    let results = evaluate(common, &networks, &people)?;
    let metrics: Vec<Value> = results.iter().map(NetworkMetrics::to_json).collect();
    let text = serde_json::to_string_pretty(&metrics)?;
    atomic_write(&out.join("results.json"), |file| {
        file.write_all(text.as_bytes())
    })?;

    say(common, "5/5 writing the report");
    let seconds = begun.elapsed().as_secs_f64();
    let page = report(
        arguments, &results, &source, &labels, out, &people, &networks, &recipe, seconds,
    )?;
    let path = out.join("report.html");
    atomic_write(&path, |file| file.write_all(page.as_bytes()))?;

    let text = format!(
        "{}\n\nreport: {}\n\nsearch these people, correct labels and see the curves in a browser:\n  \
         clasp serve --model {run} --gallery {gallery} --labels {labels} --runs {out}\n\n\
         with your own photos of people, one person a picture:\n  \
         clasp label PHOTOS --clip openai/clip-vit-base-patch16 --out labels\n  \
         clasp label show labels PHOTOS\n  \
         clasp pretrain mini --set data.images='\"PHOTOS\"' --set data.labels='\"labels\"'",
        table_text(&results),
        path.display(),
        run = shell_path(&run),
        gallery = shell_path(&people.join("unlabeled")),
        labels = shell_path(&labels),
        out = shell_path(out),
    );
    super::print_result(common.json, &metrics, &text)?;
    say(
        common,
        &format!("done in {}", duration(begun.elapsed().as_secs_f64())),
    );
    Ok(true)
}

/// Runs a recipe in a folder: from the start, or on from where an earlier demo left it, however it
/// ended.
fn start_or_resume(
    common: &GlobalOptions,
    recipe: &PretrainRecipe,
    folder: &Path,
    device: &Device,
) -> Result<PretrainSummary> {
    let begun = folder.join("run.toml").is_file();
    pretrain(common, recipe, folder, begun, device)
}

fn draw(common: &GlobalOptions, folder: &Path, arguments: &DemoArguments) -> Result<()> {
    let config = SynthConfig {
        train_identities: arguments.people / 16,
        test_identities: arguments.people / 32,
        cameras: 4,
        shots: 1,
        unlabeled: arguments.people,
        scenes: 1,
        height: SIZE[0],
        width: SIZE[1],
        seed: arguments.seed,
        ..SynthConfig::default()
    };
    let mut meter = Meter::new(common, "draw", "images");
    write_dataset(folder, &config, &mut |done, total| {
        meter.set(done as u64, total as u64, "")
    })?;
    Ok(())
}

/// Labels the synthetic people; false where Ctrl-C stopped it.
fn label(common: &GlobalOptions, source: &Source, folder: &Path, device: &Device) -> Result<bool> {
    let (clip, info) = mini::load("mini", device)?;
    let config = LabelConfig::default();
    let labeler = ClipLabeler::new(clip, &info, &Vocabulary::standard()?, &config, device)?;
    let options = LabelRunConfig::new(folder, device::threads(common.threads));
    if label_images(common, source, &labeler, &options)?.stopped {
        return Ok(false);
    }
    calibrate::calibrate(folder)?;
    Ok(true)
}

/// Metrics of one network with one prompt on all tasks.
struct NetworkMetrics {
    name: String,
    evals: Vec<FrozenEval>,
}

impl NetworkMetrics {
    fn to_json(&self) -> Value {
        let tasks: BTreeMap<&str, Value> = self
            .evals
            .iter()
            .map(|eval| {
                let FrozenResult {
                    metrics, chance, ..
                } = &eval.result;
                (
                    eval.task,
                    json!({ "mix": eval.mix, "chance": chance, "metrics": metrics }),
                )
            })
            .collect();
        json!({ "name": self.name, "tasks": tasks })
    }
}

/// The networks that are compared.
struct ComparedNetworks {
    /// CLASP's, before the first step.
    before: Model,
    /// After as many steps of DINO.
    dino: Model,
    /// After pre-training.
    after: Model,
}

fn evaluate(
    common: &GlobalOptions,
    networks: &ComparedNetworks,
    people: &Path,
) -> Result<Vec<NetworkMetrics>> {
    let row = |name: &str, model: &Model, mix: Option<usize>| -> Result<NetworkMetrics> {
        let evals = TASKS_SHOWN.iter().map(|&task| {
            let (mix_name, mix) = match mix {
                Some(task) => (PROMPTS[task].to_owned(), PromptWeights::single(task)),
                None => eval::default_mix(task),
            };
            eval::evaluate(common, task, model, (&mix_name, mix), people, false, STRIPS)
        });
        Ok(NetworkMetrics {
            name: name.to_owned(),
            evals: evals.collect::<Result<_>>()?,
        })
    };
    let ComparedNetworks {
        before,
        dino,
        after,
    } = networks;
    let mut rows = vec![
        row(INITIALIZATION, before, None)?,
        row(DINO, dino, None)?,
        row(CLASP, after, None)?,
    ];
    for task in [IDENTITY, PART, ATTRIBUTE] {
        let name = format!("{CLASP}, {} prompt", PROMPTS[task]);
        rows.push(row(&name, after, Some(task))?);
    }
    Ok(rows)
}

/// Task and name of the metric of each column.
fn header(results: &[NetworkMetrics]) -> Vec<String> {
    let mut names = vec![String::new()];
    names.extend(
        results
            .first()
            .into_iter()
            .flat_map(|row| &row.evals)
            .map(|eval| {
                let metric = eval.result.metrics.first();
                let name = metric.map_or("", |metric| metric.name.as_str());
                format!("{} {name}", eval.task)
            }),
    );
    names
}

/// The value of the main metric.
fn first(eval: &FrozenEval) -> f64 {
    let metric = eval.result.metrics.first();
    metric.map_or(f64::NAN, |metric| metric.value)
}

fn table_text(results: &[NetworkMetrics]) -> String {
    let line = |name: &str, values: &mut dyn Iterator<Item = String>| {
        let values: String = values.map(|value| format!("{value:>16}")).collect();
        format!("{name:<24}{values}")
    };
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let mut lines = vec![line("", &mut header(results).into_iter().skip(1))];
    if let Some(row) = results.first() {
        let chance = &mut row.evals.iter().map(|eval| percent(eval.result.chance));
        lines.push(line("chance", chance));
    }
    for row in results {
        let values = &mut row.evals.iter().map(|eval| percent(first(eval)));
        lines.push(line(&row.name, values));
    }
    lines.join("\n")
}

/// What docs/results.md has: for each row and task the mean, least and largest first figure over
/// several seeds, in percent.
#[derive(Debug, Deserialize)]
struct Ranges {
    /// Unlabeled people of each run.
    people: usize,
    /// Steps of each run.
    steps: u64,
    /// Runs.
    seeds: usize,
    /// Commit of the program that made them.
    made: String,
    /// Row, task, metrics.
    rows: BTreeMap<String, BTreeMap<String, [f64; 3]>>,
}

impl Ranges {
    fn read() -> Result<Self> {
        serde_json::from_str(RANGES).context("docs/demo-ranges.json")
    }

    /// What stands beside a figure; nothing where that row and task were not measured.
    fn beside(&self, row: &str, task: &str) -> String {
        let found = self.rows.get(row).and_then(|tasks| tasks.get(task));
        found.map_or_else(String::new, |[mean, low, high]| {
            format!("{mean:.1} ({low:.1}–{high:.1})")
        })
    }
}

fn table(results: &[NetworkMetrics], people: usize, steps: u64) -> Result<ResultTable> {
    let ranges = Ranges::read()?;
    let same = ranges.people == people && ranges.steps == steps;
    let beside = |row: &str, task: &str| {
        let text = same.then(|| ranges.beside(row, task));
        text.unwrap_or_default()
    };
    let columns = results.first().map_or(0, |row| row.evals.len());
    let best: Vec<f64> = (0..columns)
        .map(|c| {
            results
                .iter()
                .map(|row| first(&row.evals[c]))
                .fold(f64::NEG_INFINITY, f64::max)
        })
        .collect();
    let mut rows = Vec::new();
    if let Some(row) = results.first() {
        let mut cells = vec![Cell::plain("chance")];
        cells.extend(row.evals.iter().map(|eval| Cell {
            text: format!("{:.2}", 100.0 * eval.result.chance),
            range: beside("chance", eval.task),
            best: false,
        }));
        rows.push(cells);
    }
    rows.extend(results.iter().map(|row| {
        let mut cells = vec![Cell::plain(&*row.name)];
        cells.extend(row.evals.iter().zip(&best).map(|(eval, best)| Cell {
            text: format!("{:.2}", 100.0 * first(eval)),
            range: beside(&row.name, eval.task),
            best: first(eval) >= *best,
        }));
        cells
    }));
    let mut note = format!(
        "In percent; the best of each column is bold. The backbone is frozen and a linear probe is trained on it (none \
         for re-identification); the test people are in no training set. Chance: guessing, or the best constant answer; for \
         pose the mean pose. {DINO} took as many steps as {CLASP} from the same images, without labels. Rows without a named \
         prompt use each task's default prompt; the last three rows use one prompt for every task. "
    );
    if same {
        note.push_str(&format!(
            "In small: mean and range over {} seeds, as in docs/results.md (clasp {}); one run differs from another by that much.",
            ranges.seeds, ranges.made
        ));
    } else {
        note.push_str(&format!(
            "One run says little about small differences: docs/results.md has ranges over {} seeds, for {} people and {} \
             steps.",
            ranges.seeds, ranges.people, ranges.steps
        ));
    }
    Ok(ResultTable {
        header: header(results),
        rows,
        note,
    })
}

/// How often the labels are right: `labels` beside what is true of the synthetic people, which
/// `clasp synth` writes as another store of labels. `None` where the folder of people has none.
///
/// This is the one place that says how the accuracy of labels is measured.
fn label_accuracy(labels: &Path, people: &Path) -> Result<Option<ResultTable>> {
    let truth = people.join("truth");
    if !truth.is_dir() {
        return Ok(None);
    }
    let (store, truth) = (Store::open(labels)?, Store::open(&truth)?);
    let calibration = Calibration::read(labels, &store.meta.vocabulary)?;
    let config = AttributeConfig::default();
    let found = accuracy(&store, &truth, Some(&calibration), &config)?;
    let percent = |share: f64| Cell::plain(format!("{:.1} %", 100.0 * share));
    let mut rows = vec![vec![
        Cell::plain("body parts (patch positions)"),
        percent(found.parts.right.unwrap_or(0.0)),
        percent(found.parts.labeled),
        percent(commonest_part(&truth)),
    ]];
    rows.extend(found.attributes.iter().map(|one| {
        let learned = match one.off {
            true => Cell::plain("not used".to_owned()),
            false => percent(1.0 - one.masked),
        };
        // Where every image is masked there is no accuracy.
        let right = match one.masked < 1.0 {
            true => percent(one.right),
            false => Cell::plain("–".to_owned()),
        };
        vec![
            Cell::plain(one.name.replace('_', " ")),
            right,
            learned,
            percent(one.commonest),
        ]
    }));
    Ok(Some(ResultTable {
        header: ["label", "correct", "share learned", "most frequent value"]
            .map(str::to_owned)
            .to_vec(),
        rows,
        note: "Accuracy of the labels that are learned, against the truth of the synthetic people. The others are too \
               uncertain and masked, or their attribute is disabled because it hardly varies. “Most frequent value”: \
               accuracy of always giving the most frequent true value. Labels are calibrated to use rare values too, \
               so an accuracy below that one can still carry information."
            .to_owned(),
    }))
}

/// Share of the patch positions that the most frequent class has.
fn commonest_part(truth: &Store) -> f64 {
    let mut counts = BTreeMap::<u8, usize>::new();
    for label in truth.iter() {
        for part in label.values.parts {
            *counts.entry(*part).or_default() += 1;
        }
    }
    share_of_most(counts.values().copied())
}

/// The largest of some counts over their sum; 0 of nothing.
fn share_of_most(counts: impl Iterator<Item = usize> + Clone) -> f64 {
    let most = counts.clone().max().unwrap_or(0);
    most as f64 / counts.sum::<usize>().max(1) as f64
}

#[allow(clippy::too_many_arguments)]
fn report(
    arguments: &DemoArguments,
    results: &[NetworkMetrics],
    source: &Source,
    labels: &Path,
    out: &Path,
    people: &Path,
    networks: &ComparedNetworks,
    recipe: &PretrainRecipe,
    seconds: f64,
) -> Result<String> {
    let store = Store::open(labels)?;
    let calibration = Calibration::read(labels, &store.meta.vocabulary)?;
    let rule = AttributeRule::new(&calibration, &recipe.attributes.config()?);
    let shown: Vec<usize> = (0..SAMPLES).map(|i| i * source.len() / SAMPLES).collect();
    let samples = shown
        .iter()
        .map(|&i| sample(source, i, &store, &rule))
        .collect::<Result<Vec<_>>>()?;
    let parts = &store.meta.vocabulary.parts;
    let legend = parts.iter().enumerate().map(|(class, part)| {
        let [r, g, b] = color(class as u8);
        LegendEntry {
            color: format!("rgb({r},{g},{b})"),
            name: part.name.clone(),
        }
    });
    let runs = [(CLASP, out.join("run")), (DINO, out.join("dino"))];
    let mut printed = Vec::new();
    for (name, run) in &runs {
        let found = warnings(run)?.into_iter();
        printed.extend(found.map(|text| format!("{name}, {text}")));
    }
    let [(_, run), (_, dino)] = &runs;
    let steps = steps_of(run)?;
    let page = DemoReport {
        title: "clasp demo".to_owned(),
        subtitle: format!(
            "synthetic people, seed {}, {steps} steps; this call took {}",
            arguments.seed,
            duration(seconds)
        ),
        introduction: vec![
            format!(
                "{} synthetic people were rendered. A small CLIP labeled the body parts and the attributes of each picture, and \
                 a small Swin transformer was pre-trained on these labels and by self-distillation. Then it was frozen and \
                 evaluated on other people, beside the same network before training and beside DINO, which is \
                 self-distillation alone.",
                arguments.people
            ),
            "The people are synthetic, and the CLIP was trained on other synthetic people with known attributes and parts: \
             these results say nothing about photos; docs/results.md has results on photos."
                .to_owned(),
        ],
        warnings: printed,
        results: table(results, arguments.people, steps)?,
        label_note: "Pre-training sees no ground truth, only the labels that clasp-mini, the bundled CLIP, gives each picture."
            .to_owned(),
        label_accuracy: label_accuracy(labels, people)?,
        sample_note: "Eight of the pictures with their labels, right or wrong. A question mark: too uncertain to learn \
                      from. Dark patch positions have no part label for the same reason."
            .to_owned(),
        legend: legend.collect(),
        samples,
        views: example_views(source, recipe)?,
        chart_note: "Self-distillation learns while its loss is below ln K, the loss of a student that gives each of the \
                     K outputs the same probability (dashed line)."
            .to_owned(),
        charts: charts(run, dino)?,
        retrieval_note: format!(
            "A query (left) and the nearest pictures from other cameras, nearest first, before training and after {CLASP}. \
             Green with ✓: the same person. Red with ✗: another person. AP: average precision of this query, 1 at best."
        ),
        strips: retrieval(results)?,
        feature_note: "The three directions in which the features vary most over these pictures, shown as red, green and \
                       blue; colors can be compared within a column only."
            .to_owned(),
        feature_names: ["picture", "before training", "identity prompt", "part prompt"]
            .map(str::to_owned)
            .to_vec(),
        features: features(people, networks)?,
        made: format!(
            "clasp demo --seed {} --people {}{}\n\n{}",
            arguments.seed,
            arguments.people,
            arguments.set.iter().map(|set| format!(" --set '{set}'")).collect::<String>(),
            recipe.to_toml()
        ),
    };
    askama::Template::render(&page).context("filling the report's template")
}

/// Steps that a run took, by its recipe.
fn steps_of(run: &Path) -> Result<u64> {
    match PretrainRecipe::of_run(run, &[])?.run.steps {
        Auto::Value(steps) => Ok(steps),
        Auto::Auto => anyhow::bail!(
            "{}: expected a number of steps in run.toml, found \"auto\"",
            run.display()
        ),
    }
}

fn sample(source: &Source, i: usize, store: &Store, rule: &AttributeRule) -> Result<LabeledSample> {
    let image = decode(&source.read(i)?, &Limits::default())?;
    let key = source.key(i);
    let labels = store
        .get(key)
        .with_context(|| format!("no labels of {key}"))?;
    let grid = [store.meta.rows, store.meta.columns];
    Ok(LabeledSample {
        image: photo_url(&image),
        parts: map_url(&overlay(&image, labels.values.parts, grid)),
        attributes: vec![attribute_line(&labels, store, rule)],
    })
}

/// The most probable value of each attribute; unsure ones with a question mark.
fn attribute_line(labels: &LabelRef, store: &Store, rule: &AttributeRule) -> String {
    let vocabulary = &store.meta.vocabulary;
    let targets = rule.targets(labels, vocabulary);
    let words = vocabulary
        .attributes
        .iter()
        .zip(vocabulary.ranges())
        .zip(&targets.mask)
        .map(|((attribute, range), sure)| {
            let best = range
                .clone()
                .max_by(|&a, &b| targets.target[a].total_cmp(&targets.target[b]))
                .map_or("", |i| attribute.values[i - range.start].name.as_str());
            let name = attribute.name.replace('_', " ");
            format!(
                "{name}: {}{}",
                best.replace('_', " "),
                if *sure { "" } else { "?" }
            )
        });
    words.collect::<Vec<_>>().join(", ")
}

fn example_views(source: &Source, recipe: &PretrainRecipe) -> Result<Vec<ViewPicture>> {
    let image = decode(&source.read(0)?, &Limits::default())?;
    let config = &recipe.views;
    let made = views(
        &image,
        None,
        config,
        [1, 1],
        &mut rng_for(recipe.seed, 0, source.key(0)),
    );
    let picture = |view: &clasp_data::augment::View, small: bool| {
        let area = view.height * view.width;
        let pixels = (0..area)
            .flat_map(|at| {
                [0, 1, 2].map(|c| {
                    let value = view.pixels[c * area + at] * config.std[c] + config.mean[c];
                    (255.0 * value).round().clamp(0.0, 255.0) as u8
                })
            })
            .collect();
        ViewPicture {
            image: photo_url(&Rgb::new(view.width, view.height, pixels)),
            small,
        }
    };
    let global = made.global.iter().map(|view| picture(view, false));
    Ok(global
        .chain(made.local.iter().map(|view| picture(view, true)))
        .collect())
}

/// The lines of a run's log; none where there is no such log.
fn log_lines(path: &Path) -> Result<Vec<Value>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs_err::read_to_string(path)?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn charts(run: &Path, dino: &Path) -> Result<Vec<String>> {
    let log = log_lines(&run.join("metrics.jsonl"))?;
    let dino = log_lines(&dino.join("metrics.jsonl"))?;
    let uniform = match PretrainRecipe::of_run(run, &[])?.projection_head.prototypes {
        Auto::Value(outputs) => Some(plot::ReferenceLine {
            name: format!("ln K = ln {outputs} = {:.2}", (outputs as f64).ln()),
            at: (outputs as f64).ln(),
        }),
        Auto::Auto => None,
    };
    let series = |log: &[Value], key: &str| -> Vec<(f64, f64)> {
        log.iter()
            .filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?)))
            .collect()
    };
    let chart = |title, y, curves: &[(&str, &[Value], &str)], reference| {
        let series: Vec<(&str, Vec<(f64, f64)>)> = curves
            .iter()
            .map(|(name, log, key)| (*name, series(log, key)))
            .collect();
        let kept: Vec<plot::ChartLine> = series
            .iter()
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| plot::ChartLine { name, points })
            .collect();
        let axes = plot::Axes {
            title,
            x: "training step",
            y,
        };
        (!kept.is_empty()).then(|| plot::lines(axes, &kept, reference))
    };
    let charts = [
        chart(
            "Self-distillation loss",
            "cross-entropy (nats)",
            &[(CLASP, &log, "loss/dino"), (DINO, &dino, "loss/dino")],
            uniform.as_ref(),
        ),
        chart(
            "Entropy of the teacher's answer to an image",
            "entropy (nats)",
            &[
                (CLASP, &log, "teacher/entropy"),
                (DINO, &dino, "teacher/entropy"),
            ],
            uniform.as_ref(),
        ),
        chart(
            "Loss on the labels, CLASP",
            "cross-entropy (nats)",
            &[
                ("body parts", &log, "loss/part"),
                ("attributes", &log, "loss/attribute"),
            ],
            None,
        ),
        chart(
            "Agreement with the labels, CLASP",
            "share correct",
            &[
                ("body parts", &log, "accuracy/part"),
                ("attributes", &log, "accuracy/attribute"),
            ],
            None,
        ),
        chart(
            "Distance between features, CLASP",
            "1 − cosine",
            &[
                ("one image, two prompts", &log, "features/prompt_distance"),
                ("two images, one prompt", &log, "features/image_distance"),
            ],
            None,
        ),
    ]
    .into_iter()
    .flatten();
    Ok(charts.collect())
}

/// The same queries before training and after it.
fn retrieval(results: &[NetworkMetrics]) -> Result<Vec<QueryStrip>> {
    let of = |name: &str| {
        let row = results.iter().find(|row| row.name == name);
        row.and_then(|row| row.evals.first())
            .map_or(&[][..], |eval| &eval.result.examples)
    };
    let url = |path: &Path| -> Result<String> {
        Ok(photo_url(&decode(
            &fs_err::read(path)?,
            &Limits::default(),
        )?))
    };
    let retrieved = |name: &str, strip: &RetrievalExample| -> Result<Retrieved> {
        let found = strip.matches.iter().map(|(path, right)| {
            Ok(MatchPicture {
                image: url(path)?,
                right: *right,
            })
        });
        Ok(Retrieved {
            name: format!("{name}, AP {:.2}", strip.average_precision),
            found: found.collect::<Result<_>>()?,
        })
    };
    let (before, after) = (of(INITIALIZATION), of(CLASP));
    let strips = after.iter().map(|after| {
        let before = before.iter().find(|before| before.query == after.query);
        let mut rows = Vec::new();
        if let Some(before) = before {
            rows.push(retrieved("before training", before)?);
        }
        rows.push(retrieved(CLASP, after)?);
        Ok(QueryStrip {
            query: url(&after.query)?,
            rows,
        })
    });
    strips.collect()
}

fn features(people: &Path, networks: &ComparedNetworks) -> Result<Vec<FeaturePicture>> {
    let ComparedNetworks { before, after, .. } = networks;
    let market = ReidDataset::open(people)?;
    let count = FEATURES.min(market.query.len());
    let images = (0..count)
        .map(|i| {
            let path = &market.query[i * market.query.len() / count].path;
            Ok(decode(&fs_err::read(path)?, &Limits::default())?)
        })
        .collect::<Result<Vec<Rgb>>>()?;
    let size = [3 * SIZE[0], 3 * SIZE[1]];
    let columns = [
        feature_map::pictures(before, &PromptWeights::mean(), &images, size)?,
        feature_map::pictures(after, &PromptWeights::single(IDENTITY), &images, size)?,
        feature_map::pictures(after, &PromptWeights::single(PART), &images, size)?,
    ];
    Ok(images
        .iter()
        .enumerate()
        .map(|(i, image)| {
            let mut urls = vec![photo_url(&resize(
                image,
                size[0],
                size[1],
                Filter::Bilinear,
            ))];
            urls.extend(columns.iter().map(|column| map_url(&column[i])));
            FeaturePicture { images: urls }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_the_results_are_read_and_their_rows_are_those_of_the_demo() {
        let ranges = Ranges::read().unwrap();
        assert!(ranges.seeds >= 3 && !ranges.made.is_empty());
        for name in ["chance", INITIALIZATION, CLASP] {
            for task in TASKS_SHOWN {
                let task = task.name();
                let [mean, low, high] = ranges.rows[name][task];
                assert!(
                    low <= mean && mean <= high && high <= 100.0,
                    "{name} {task}"
                );
                assert!(!ranges.beside(name, task).is_empty());
            }
        }
        assert_eq!(ranges.beside("CLASP, no prompt", "reid"), "");
    }

    #[test]
    fn the_share_of_the_commonest_is_that_of_all() {
        assert!((share_of_most([1, 3, 0].into_iter()) - 0.75).abs() < 1e-12);
        assert!(share_of_most([].into_iter()).abs() < 1e-12);
    }
}
