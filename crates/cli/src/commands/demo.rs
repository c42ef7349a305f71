//! `clasp demo`: the whole flow on drawn people, and a report.
//!
//! Everything is made by the libraries that the other verbs use, in the folder `--out`: `people/` (synth), `labels/`
//! (label), `run/` and `init/` (pretrain, to the end and not at all), `results.json` (eval --frozen) and `report.html`. Run
//! again, it goes on where it was stopped or killed, and makes no label and takes no step twice.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clasp_data::atomic_write;
use clasp_data::augment::views;
use clasp_data::image::{Filter, Limits, Rgb, decode, resize};
use clasp_data::labels::{Calibration, LabelRef, Store, attribute_targets};
use clasp_data::layouts::market1501::Market1501;
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::synth::{SynthConfig, write_dataset};
use clasp_data::vocabulary::Vocabulary;
use clasp_label::show::{colour, overlay};
use clasp_label::{ClipLabeller, LabelConfig, RunOptions, calibrate};
use clasp_model::mix::{ATTRIBUTE, IDENTITY, Mix, PART, TASKS};
use clasp_pretrain::{Recipe, Summary};
use clasp_tasks::TaskError;
use serde_json::{Value, json};

use super::eval::{self, Figures, Model};
use super::label::{CLOSE_CALL, label_images};
use super::pretrain::pretrain;
use crate::args::{Common, Demo, Task};
use crate::progress::{Meter, duration, say};
use crate::report::{
    Cell, FeaturePicture, Found, LegendEntry, Report, Sample, Strip, Table, ViewPicture, map_url,
    photo_url,
};
use crate::{Outcome, device, feature_map, mini, plot};

/// Height and width of the drawn crops.
const SIZE: [usize; 2] = [128, 64];
const TASKS_SHOWN: [Task; 4] = [Task::Reid, Task::Attributes, Task::Parsing, Task::Pose];
/// Queries, samples and feature pictures in the report.
const STRIPS: usize = 6;
const SAMPLES: usize = 8;
const FEATURES: usize = 4;

/// Runs the verb.
pub fn run(common: &Common, arguments: &Demo) -> Result<Outcome> {
    let finished = match demo(common, arguments) {
        Err(error) if matches!(error.downcast_ref(), Some(TaskError::Stopped)) => false,
        other => other?,
    };
    if !finished {
        say(common, "stopped; the same command goes on");
        return Ok(Outcome::Stopped);
    }
    Ok(Outcome::Done)
}

/// The whole flow; false where Ctrl-C stopped it.
fn demo(common: &Common, arguments: &Demo) -> Result<bool> {
    let begun = Instant::now();
    let out = &arguments.out;
    let device = device::pick(common.device.as_deref())?;
    fs_err::create_dir_all(out)?;
    let people = out.join("people");
    let images = people.join("unlabelled");

    say(common, "1/5 drawing people");
    draw(common, &people, arguments)?;

    say(common, "2/5 labelling them with the small CLIP");
    let labels = out.join("labels");
    let source = Source::open(&images.to_string_lossy())?;
    if !label(common, &source, &labels, &device)? {
        return Ok(false);
    }

    say(common, "3/5 pre-training");
    let mut overrides = vec![
        format!("data.images={:?}", images.to_string_lossy()),
        format!("data.labels={:?}", labels.to_string_lossy()),
        format!("seed={}", arguments.seed),
    ];
    overrides.extend(arguments.set.iter().cloned());
    let recipe = Recipe::load("demo", &overrides)?;
    let run = out.join("run");
    let trained = begin_or_go_on(common, &recipe, &run)?;
    if !trained.finished {
        return Ok(false);
    }
    if trained.metrics.is_empty() {
        say(
            common,
            "all steps were taken before: only results and report are made again",
        );
    }

    say(common, "4/5 evaluating on people it never saw");
    let mut start = overrides.clone();
    start.push("run.steps=0".to_owned());
    let init = begin_or_go_on(common, &Recipe::load("demo", &start)?, &out.join("init"))?;
    let before = Model::load(&init.backbone, None, &device)?;
    let after = Model::load(&trained.backbone, None, &device)?;
    let results = evaluate(common, &before, &after, &people)?;
    let figures: Vec<Value> = results.iter().map(Row::to_json).collect();
    let text = serde_json::to_string_pretty(&figures)?;
    atomic_write(&out.join("results.json"), |file| {
        file.write_all(text.as_bytes())
    })?;

    say(common, "5/5 writing the report");
    let seconds = begun.elapsed().as_secs_f64();
    let page = report(
        arguments, &results, &source, &labels, &run, &people, &before, &after, &recipe, seconds,
    )?;
    let path = out.join("report.html");
    atomic_write(&path, |file| file.write_all(page.as_bytes()))?;

    let text = format!(
        "{}\n\nreport: {}\n\nwith your own photos of people, one person a picture:\n  \
         clasp label PHOTOS --clip openai/clip-vit-base-patch16 --out labels\n  \
         clasp label show labels PHOTOS\n  \
         clasp pretrain mini --set data.images='\"PHOTOS\"' --set data.labels='\"labels\"'",
        table_text(&results),
        path.display()
    );
    super::print_result(common.json, &figures, &text)?;
    say(
        common,
        &format!("done in {}", duration(begun.elapsed().as_secs_f64())),
    );
    Ok(true)
}

/// Runs a recipe in a folder: from the start, or on from where an earlier demo left it, however it ended.
fn begin_or_go_on(common: &Common, recipe: &Recipe, folder: &Path) -> Result<Summary> {
    let begun = folder.join("run.toml").is_file();
    pretrain(common, recipe, folder, begun)
}

fn draw(common: &Common, folder: &Path, arguments: &Demo) -> Result<()> {
    let config = SynthConfig {
        train_identities: arguments.people / 16,
        test_identities: arguments.people / 32,
        cameras: 4,
        shots: 1,
        unlabelled: arguments.people,
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

/// Labels the drawn people; false where Ctrl-C stopped it.
fn label(common: &Common, source: &Source, folder: &Path, device: &Device) -> Result<bool> {
    let (clip, info) = mini::load("mini", device)?;
    let config = LabelConfig::default();
    let labeller = ClipLabeller::new(clip, &info, &Vocabulary::standard()?, &config, device)?;
    let options = RunOptions::new(folder, device::threads(common.threads));
    if label_images(common, source, &labeller, &options)?.stopped {
        return Ok(false);
    }
    calibrate::calibrate(folder)?;
    Ok(true)
}

/// Figures of one network with one mix on all tasks.
struct Row {
    name: String,
    figures: Vec<Figures>,
}

impl Row {
    fn to_json(&self) -> Value {
        let tasks: BTreeMap<&str, Value> = self
            .figures
            .iter()
            .map(|figures| {
                let values: BTreeMap<&str, f64> = figures.figures.iter().copied().collect();
                (
                    figures.task,
                    json!({ "mix": figures.mix, "chance": figures.chance, "figures": values }),
                )
            })
            .collect();
        json!({ "name": self.name, "tasks": tasks })
    }
}

fn evaluate(common: &Common, before: &Model, after: &Model, people: &Path) -> Result<Vec<Row>> {
    let row = |name: &str, model: &Model, mix: Option<usize>| -> Result<Row> {
        let figures = TASKS_SHOWN.iter().map(|&task| {
            let (mix_name, mix) = match mix {
                Some(task) => (TASKS[task].to_owned(), Mix::single(task)),
                None => eval::default_mix(task),
            };
            eval::evaluate(common, task, model, (&mix_name, mix), people, false, STRIPS)
        });
        Ok(Row {
            name: name.to_owned(),
            figures: figures.collect::<Result<_>>()?,
        })
    };
    Ok(vec![
        row("initialisation", before, None)?,
        row("pre-trained", after, None)?,
        row("  identity prompt", after, Some(IDENTITY))?,
        row("  part prompt", after, Some(PART))?,
        row("  attribute prompt", after, Some(ATTRIBUTE))?,
    ])
}

/// The figures to quote: name and place among those of a task.
fn header(results: &[Row]) -> Vec<String> {
    let mut names = vec![String::new()];
    names.extend(
        results
            .first()
            .into_iter()
            .flat_map(|row| &row.figures)
            .map(|figures| {
                let metric = figures.figures.first().map_or("", |(name, _)| name);
                format!("{} {metric}", figures.task)
            }),
    );
    names
}

fn first(figures: &Figures) -> f64 {
    figures
        .figures
        .first()
        .map_or(f64::NAN, |(_, value)| *value)
}

fn table_text(results: &[Row]) -> String {
    let mut lines = vec![
        header(results)
            .iter()
            .map(|name| format!("{name:>18}"))
            .collect::<String>(),
    ];
    for row in results {
        let values: String = row
            .figures
            .iter()
            .map(|figures| format!("{:>18.2}", 100.0 * first(figures)))
            .collect();
        lines.push(format!("{:>18}{values}", row.name));
    }
    if let Some(row) = results.first() {
        let chance: String = row
            .figures
            .iter()
            .map(|figures| format!("{:>18.2}", 100.0 * figures.chance))
            .collect();
        lines.push(format!("{:>18}{chance}", "chance"));
    }
    lines.join("\n")
}

fn table(results: &[Row]) -> Table {
    let columns = results.first().map_or(0, |row| row.figures.len());
    let best: Vec<f64> = (0..columns)
        .map(|c| {
            results
                .iter()
                .map(|row| first(&row.figures[c]))
                .fold(f64::NEG_INFINITY, f64::max)
        })
        .collect();
    let mut rows: Vec<Vec<Cell>> = results
        .iter()
        .map(|row| {
            let mut cells = vec![Cell::plain(&*row.name)];
            cells.extend(row.figures.iter().zip(&best).map(|(figures, best)| Cell {
                text: format!("{:.2}", 100.0 * first(figures)),
                best: first(figures) >= *best,
            }));
            cells
        })
        .collect();
    if let Some(row) = results.first() {
        let mut cells = vec![Cell::plain("chance")];
        let chances = row.figures.iter().map(|figures| 100.0 * figures.chance);
        cells.extend(chances.map(|chance| Cell::plain(format!("{chance:.2}"))));
        rows.push(cells);
    }
    Table {
        header: header(results),
        rows,
        note: "Frozen backbone, linear read-out (none for re-identification), test people unlike those of any training. \
               The two upper rows use each task's default mix of prompts; the others one prompt for every task."
            .to_owned(),
    }
}

#[allow(clippy::too_many_arguments)]
fn report(
    arguments: &Demo,
    results: &[Row],
    source: &Source,
    labels: &Path,
    run: &Path,
    people: &Path,
    before: &Model,
    after: &Model,
    recipe: &Recipe,
    seconds: f64,
) -> Result<String> {
    let store = Store::open(labels)?;
    let calibration = Calibration::read(labels, &store.meta.vocabulary)?;
    let shown: Vec<usize> = (0..SAMPLES).map(|i| i * source.len() / SAMPLES).collect();
    let samples = shown
        .iter()
        .map(|&i| sample(source, i, &store, &calibration))
        .collect::<Result<Vec<_>>>()?;
    let parts = &store.meta.vocabulary.parts;
    let legend = parts.iter().enumerate().map(|(class, part)| {
        let [r, g, b] = colour(class as u8);
        LegendEntry {
            colour: format!("rgb({r},{g},{b})"),
            name: part.name.clone(),
        }
    });
    let strips = results
        .get(1)
        .and_then(|row| row.figures.first())
        .map_or(&[][..], |figures| &figures.strips);
    let page = Report {
        title: "clasp demo".to_owned(),
        subtitle: format!("drawn people, seed {}, {} in all", arguments.seed, duration(seconds)),
        introduction: vec![
            "People were drawn, a small CLIP gave each picture a map of body parts and attributes, and a small Swin \
             with a prompt-controlled mixture of experts was pre-trained on them. Then it was frozen and evaluated on other \
             people, beside the same network before training."
                .to_owned(),
            "The people are drawn and the CLIP is a stand-in: this page shows that the flow works, not how good clasp is \
             on photos."
                .to_owned(),
        ],
        tables: vec![table(results)],
        label_note: "Part maps and calibrated attributes as clasp-mini gives them, right or wrong; nothing was corrected. A \
                     question mark stands at a call too close to learn from, dark cells are left out."
            .to_owned(),
        legend: legend.collect(),
        samples,
        views: example_views(source, recipe)?,
        charts: charts(run)?,
        retrieval_note: "Queries (left) and the nearest pictures from other cameras, by the pre-trained features with the \
                         default mix; green frames show the same person."
            .to_owned(),
        strips: strips.iter().map(strip).collect::<Result<_>>()?,
        feature_note: "Left to right: the picture, the features before training, after it with the identity prompt, and \
                       with the part prompt. The three directions of largest spread over the pictures are red, green and blue."
            .to_owned(),
        features: features(people, before, after)?,
        made: format!(
            "clasp demo --seed {} --people {}\n\n{}",
            arguments.seed,
            arguments.people,
            recipe.to_toml()
        ),
    };
    askama::Template::render(&page).context("filling the report's template")
}

fn sample(source: &Source, i: usize, store: &Store, calibration: &Calibration) -> Result<Sample> {
    let image = decode(&source.read(i)?, &Limits::default())?;
    let key = source.key(i);
    let labels = store
        .get(key)
        .with_context(|| format!("no labels of {key}"))?;
    let grid = [store.meta.rows, store.meta.columns];
    Ok(Sample {
        image: photo_url(&image),
        parts: map_url(&overlay(&image, labels.parts, grid)),
        attributes: vec![attribute_line(&labels, store, calibration)],
    })
}

/// The most probable value of each attribute; unsure ones with a question mark.
fn attribute_line(labels: &LabelRef, store: &Store, calibration: &Calibration) -> String {
    let vocabulary = &store.meta.vocabulary;
    let targets = attribute_targets(
        labels.attributes,
        vocabulary,
        calibration,
        CLOSE_CALL.0,
        CLOSE_CALL.1,
    );
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

fn example_views(source: &Source, recipe: &Recipe) -> Result<Vec<ViewPicture>> {
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

fn charts(run: &Path) -> Result<Vec<String>> {
    let lines = |name: &str| -> Result<Vec<Value>> {
        let text = fs_err::read_to_string(run.join(name))?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    };
    let log = lines("metrics.jsonl")?;
    let series = |key: &str| -> Vec<(f64, f64)> {
        log.iter()
            .filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?)))
            .collect()
    };
    let chart = |title: &str, keys: &[(&str, &str)]| {
        let series: Vec<(&str, Vec<(f64, f64)>)> = keys
            .iter()
            .map(|(name, key)| (*name, series(key)))
            .collect();
        let kept: Vec<plot::Line> = series
            .iter()
            .filter(|(_, points)| !points.is_empty())
            .map(|(name, points)| plot::Line { name, points })
            .collect();
        (!kept.is_empty()).then(|| plot::lines(title, "step", &kept))
    };
    let mut charts: Vec<String> = [
        chart("Self-distillation loss", &[("DINO", "loss/dino")]),
        chart(
            "Part and attribute loss",
            &[("part", "loss/part"), ("attribute", "loss/attribute")],
        ),
        chart(
            "Accuracy of the heads on the labels",
            &[
                ("part", "accuracy/part"),
                ("attribute", "accuracy/attribute"),
            ],
        ),
        chart("Teacher entropy", &[("entropy", "teacher/entropy")]),
    ]
    .into_iter()
    .flatten()
    .collect();

    let usage = lines("experts.jsonl")?;
    let step = usage.iter().filter_map(|line| line["step"].as_u64()).max();
    let last: Vec<&Value> = usage
        .iter()
        .filter(|line| line["step"].as_u64() == step)
        .collect();
    let block = last.iter().filter_map(|line| line["block"].as_u64()).max();
    let frequency = |task: &str| -> Option<Vec<f64>> {
        let line = last
            .iter()
            .find(|line| line["task"] == task && line["block"].as_u64() == block)?;
        line["frequency"]
            .as_array()
            .map(|values| values.iter().filter_map(Value::as_f64).collect())
    };
    let used: Vec<(&str, Vec<f64>)> = TASKS
        .iter()
        .filter_map(|task| Some((*task, frequency(task)?)))
        .collect();
    if let Some((_, experts)) = used.first() {
        let columns: Vec<String> = (1..=experts.len())
            .map(|expert| format!("expert {expert}"))
            .collect();
        let rows: Vec<&str> = used.iter().map(|(task, _)| *task).collect();
        let values: Vec<Vec<f64>> = used.iter().map(|(_, values)| values.clone()).collect();
        charts.push(plot::bars("Last block's experts", &rows, &columns, &values));
    }
    Ok(charts)
}

fn strip(strip: &clasp_tasks::reid::Strip) -> Result<Strip> {
    let url = |path: &Path| -> Result<String> {
        Ok(photo_url(&decode(
            &fs_err::read(path)?,
            &Limits::default(),
        )?))
    };
    Ok(Strip {
        query: url(&strip.query)?,
        name: format!("AP {:.2}", strip.average_precision),
        found: strip
            .matches
            .iter()
            .map(|(path, right)| {
                Ok(Found {
                    image: url(path)?,
                    right: *right,
                })
            })
            .collect::<Result<_>>()?,
    })
}

fn features(people: &Path, before: &Model, after: &Model) -> Result<Vec<FeaturePicture>> {
    let market = Market1501::open(people)?;
    let count = FEATURES.min(market.query.len());
    let images = (0..count)
        .map(|i| {
            let path = &market.query[i * market.query.len() / count].path;
            Ok(decode(&fs_err::read(path)?, &Limits::default())?)
        })
        .collect::<Result<Vec<Rgb>>>()?;
    let size = [3 * SIZE[0], 3 * SIZE[1]];
    let columns = [
        feature_map::pictures(before, &Mix::mean(), &images, size)?,
        feature_map::pictures(after, &Mix::single(IDENTITY), &images, size)?,
        feature_map::pictures(after, &Mix::single(PART), &images, size)?,
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
            FeaturePicture {
                name: format!("features {i}"),
                images: urls,
            }
        })
        .collect())
}
