//! `clasp clip train|score`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, bail};
use clasp_clip::pairs::{PairDataset, PhotoDataset, class_phrases};
use clasp_clip::train::{
    ClipLossConfig, ClipOptimizerConfig, ClipRunConfig, ClipTrainConfig, ClipTrainData,
    ResolutionStage, train,
};
use clasp_clip::zero_shot::{ZeroShotScores, score_photos, score_synthetic};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_label::{ClipLabeler, LabelConfig};
use clasp_model::clip::{ClipConfig, Dense};
use clasp_run::Control;
use clasp_run::folder::RECIPE_FILE;
use clasp_synth::Style;
use clasp_weights::clip::{OPEN_CLIP, save_clip};

use super::{EventPrinter, Input, beside, check_data, claim_outputs, print_result};
use crate::args::{ClipCommand, ClipScoreArguments, ClipTrainArguments, GlobalOptions};
use crate::progress::{Meter, say};
use crate::{Outcome, device, interrupt, mini};

/// Held-out synthetic pairs that training is evaluated on.
const HELD_OUT: usize = 512;
/// Synthetic pairs that training crops.
const POOL: usize = 32_768;

/// Seed of the people of `clip score`, never used in training.
const SCORE_SEED: u64 = 0x5343_4f52;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &ClipCommand) -> Result<Outcome> {
    match arguments {
        ClipCommand::Train(arguments) => train_clip(common, arguments),
        ClipCommand::Score(arguments) => score(common, arguments),
    }
}

fn train_clip(common: &GlobalOptions, arguments: &ClipTrainArguments) -> Result<Outcome> {
    let (out, seed) = (&arguments.out, arguments.seed);
    if let Some(from) = &arguments.from {
        let written = out.join(OPEN_CLIP[0]);
        claim_outputs(&[("--out", &written)], &[Input::Files(Path::new(from))])?;
    }
    let device = device::pick(common.device.as_deref())?;
    if let Some(photos) = &arguments.photos {
        check_data(photos)?;
    }
    let photos = { arguments.photos.as_deref() }
        .map(PhotoDataset::open)
        .transpose()?;
    if let Some(photos) = &photos {
        say(common, &format!("{} photos", photos.len()));
    }
    let run = beside(out, ".run")?;
    if run.join(RECIPE_FILE).exists() && !arguments.resume {
        bail!(
            "{}: holds an earlier run\nhint: resume it with --resume, or remove the folder",
            run.display()
        );
    }
    let start = match &arguments.from {
        Some(name) => mini::load(name, &device)?.0,
        None => ClipConfig::mini().init(&mut rng_for(seed, 0, "clip"), &device),
    };
    let start = match arguments.size {
        Some(size) => start.resized(size)?,
        None => start,
    };
    let size = start.config().vision.image;
    let config = ClipTrainConfig {
        seed,
        stages: vec![ResolutionStage {
            size,
            steps: (arguments.pairs / arguments.batch.max(1)).max(1),
            patches: 1.0,
        }],
        optimizer: ClipOptimizerConfig {
            lr: arguments.lr,
            ..ClipOptimizerConfig::default()
        },
        loss: ClipLossConfig {
            part_weight: arguments.part_weight,
            attribute_weight: arguments.value_weight,
        },
        run: ClipRunConfig {
            batch: arguments.batch,
            evaluate_every: 500,
            ..ClipRunConfig::default()
        },
    };
    let pairs = PairDataset::new(seed, POOL.min(arguments.pairs.max(1)), photos)?;
    let data = ClipTrainData {
        pair: &|index, size| pairs.pair(index, size),
        phrases: &class_phrases()?,
        held_out: &pairs.held_out(HELD_OUT, size),
    };
    let stop = interrupt::flag()?;
    let title = format!("run folder {}", run.display());
    let shorter = "fewer pairs (--pairs N) or a GPU";
    let mut printer = EventPrinter::new(common, "clip train", title, "pairs", shorter);
    let mut control = Control {
        device_name: &device::name(&device),
        threads: device::threads(common.threads),
        stop: &stop,
        on_event: &mut |event| printer.print(event),
    };
    let trained = train(&config, start, &data, &run, arguments.resume, &mut control)?;
    drop(printer);
    save_clip(out, &trained.clip, true)?;
    let text = if trained.run.finished {
        format!(
            "wrote {}; score it: clasp clip score --clip {0}",
            out.display()
        )
    } else {
        let step = trained.run.steps;
        format!(
            "stopped after step {step}; wrote {} as it is so far; run the same command with --resume to continue",
            out.display()
        )
    };
    say(common, &text);
    Ok(match trained.run.finished {
        true => Outcome::Done,
        false => Outcome::Stopped,
    })
}

fn score(common: &GlobalOptions, arguments: &ClipScoreArguments) -> Result<Outcome> {
    let device = device::pick(common.device.as_deref())?;
    let (model, info) = mini::load(&arguments.clip, &device)?;
    let config = LabelConfig {
        dense: arguments
            .dense
            .parse::<Dense>()
            .map_err(anyhow::Error::msg)?,
        ..LabelConfig::default()
    };
    let labeler = ClipLabeler::new(model, &info, &Vocabulary::standard()?, &config, &device)?;
    let people = arguments.people;
    let mut meter = Meter::new(common, "score synthetic people", "images");
    let drawn = score_synthetic(&labeler, people, SCORE_SEED, arguments.style, &mut |done| {
        meter.set(done as u64, people as u64, "");
    })?;
    drop(meter);
    let drawn_people = match arguments.style {
        Style::Standard => "synthetic people",
        Style::HeldOut => "synthetic people, held-out style",
    };
    let mut scores = BTreeMap::from([(drawn_people, drawn)]);
    if let Some(folder) = &arguments.photos {
        check_data(folder)?;
        scores.insert("photos", score_photos(&labeler, folder, &mut |_| {})?);
    }
    print_result(common.json, &scores, &describe(&scores))?;
    Ok(Outcome::Done)
}

/// The scores as tables.
fn describe(scores: &BTreeMap<&str, ZeroShotScores>) -> String {
    let mut text = String::new();
    for (images, score) in scores {
        let _ = writeln!(
            text,
            "{images}\n  {:<16} {:>7} {:>7} {:>8} {:>11} {:>8} {:>8} {:>10}",
            "attribute", "images", "AUC", "raw", "calibrated", "recall", "chance", "majority"
        );
        for row in &score.attributes {
            let _ = writeln!(
                text,
                "  {:<16} {:>7} {:>7} {:>7.1}% {:>10.1}% {:>7.1}% {:>7.1}% {:>9.1}%",
                row.name,
                row.images,
                row.auc.map_or("-".to_owned(), |auc| format!("{auc:.3}")),
                100.0 * row.raw,
                100.0 * row.calibrated,
                100.0 * row.recall,
                100.0 * row.chance,
                100.0 * row.commonest
            );
        }
        if let Some(parts) = &score.parts {
            let _ = writeln!(
                text,
                "  part maps of {} images: mIoU {:.1}% (chance {:.1}%), correct patch positions {:.1}%",
                parts.images,
                100.0 * parts.mean_iou,
                100.0 * parts.chance,
                100.0 * parts.accuracy
            );
            for (part, iou) in &parts.iou {
                let _ = writeln!(text, "    {part:<14} {:>6.1}%", 100.0 * iou);
            }
        }
    }
    text
}
