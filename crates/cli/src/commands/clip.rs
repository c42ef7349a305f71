//! `clasp clip train|score`.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};
use clasp_clip::pairs::{PairDataset, PhotoDataset, class_phrases};
use clasp_clip::train::{ClipTrainConfig, ClipTrainProgress, ResolutionStage, train};
use clasp_clip::zero_shot::{ZeroShotScores, score_photos, score_synthetic};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_label::{ClipLabeler, LabelConfig};
use clasp_model::clip::{ClipConfig, Dense};
use clasp_synth::Style;
use clasp_weights::clip::save_clip;

use super::{beside, print_result};
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
    let device = device::pick(common.device.as_deref())?;
    let photos = { arguments.photos.as_deref() }
        .map(PhotoDataset::open)
        .transpose()?;
    if let Some(photos) = &photos {
        say(common, &format!("{} photos", photos.len()));
    }
    let run = beside(out, ".run")?;
    if run.join("checkpoint.safetensors").exists() && !arguments.resume {
        bail!(
            "{}: holds the checkpoint of an earlier run\nhint: resume it with --resume, or remove the folder",
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
        batch: arguments.batch,
        stages: vec![ResolutionStage {
            size,
            steps: (arguments.pairs / arguments.batch.max(1)).max(1),
            patches: 1.0,
        }],
        lr: arguments.lr,
        part_weight: arguments.part_weight,
        attribute_weight: arguments.value_weight,
        evaluate_every: 500,
        threads: device::threads(common.threads),
        ..ClipTrainConfig::default()
    };
    let data = PairDataset::new(seed, POOL.min(arguments.pairs.max(1)), photos)?;
    let held_out = data.held_out(HELD_OUT, size);
    let stop = interrupt::flag()?;
    let mut meter = Meter::new(common, "clip train", "steps");
    let trained = train(
        &config,
        start,
        &|index, size| data.pair(index, size),
        &class_phrases()?,
        &held_out,
        &run,
        &mut |progress| {
            tell(&mut meter, progress);
            interrupt::flow(&stop)
        },
    )?;
    drop(meter);
    save_clip(out, &trained.clip, true)?;
    let text = if trained.finished {
        format!(
            "wrote {}; score it: clasp clip score --clip {0}",
            out.display()
        )
    } else {
        let step = trained.step;
        format!(
            "stopped after step {step}; wrote {} as it is so far; run the same command with --resume to continue",
            out.display()
        )
    };
    say(common, &text);
    Ok(match trained.finished {
        true => Outcome::Done,
        false => Outcome::Stopped,
    })
}

fn tell(meter: &mut Meter, progress: &ClipTrainProgress) {
    if let Some(found) = progress.held_out {
        meter.line(&format!(
            "step {}: held-out image to caption {:.3}, caption to image {:.3} (chance {:.3})",
            progress.step, found.image_to_text, found.text_to_image, found.chance
        ));
    }
    let note = format!(
        "loss {:.3} of {:.3}, dense {:.3}, values {:.3}, {:.0} pairs/s",
        progress.loss, progress.floor, progress.dense, progress.values, progress.pairs_per_second
    );
    meter.set(progress.step as u64, progress.steps as u64, &note);
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
