//! `clasp label`: part maps and attributes of images, and commands on existing labels.

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use clasp_data::image::{Limits, encode_jpeg, encode_png};
use clasp_data::labels::{
    AttributeConfig, Calibration, Correction, LabelError, METHOD_TRUTH, Store,
};
use clasp_data::source::Source;
use clasp_data::text::{shell_path, shell_word};
use clasp_data::vocabulary::Vocabulary;
use clasp_label::accuracy::accuracy;
use clasp_label::check::check;
use clasp_label::kmeans::FOREGROUND;
use clasp_label::show::{ContactSheetConfig, contact_sheet};
use clasp_label::{
    ClipLabeler, KMeansLabeler, LabelConfig, LabelProgress, LabelRunConfig, LabelRunReport,
    Labeler, calibrate, compare, stats,
};
use clasp_model::clip::Dense;
use clasp_model::prompt::{PART, PromptWeights};
use clasp_weights::import::load_backbone;

use super::{Input, check_writable, claim_outputs, open_images, print_result};
use crate::args::{GlobalOptions, LabelAction, LabelArguments, LabelRunArguments};
use crate::progress::{Meter, counted, duration, rate, say, warn};
use crate::{Outcome, device, interrupt, mini};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &LabelArguments) -> Result<Outcome> {
    match &arguments.action {
        None => label(common, &arguments.run),
        Some(LabelAction::Calibrate { labels }) => {
            let calibration = calibrate::calibrate(labels)?;
            let text = format!("calibrated over {} images", calibration.count);
            print_result(common.json, &calibration, &text)?;
            Ok(Outcome::Done)
        }
        Some(LabelAction::Show {
            labels,
            images,
            out,
            count,
            seed,
        }) => {
            check_writable(out)?;
            let store = Store::open(labels)?;
            let calibration = calibration(labels, &store)?;
            let options = ContactSheetConfig {
                count: *count,
                seed: *seed,
                ..ContactSheetConfig::default()
            };
            let images = open_images(&[images], false)?;
            claim_outputs(
                &[("--out", out)],
                &[Input::Images(&images), Input::Files(labels)],
            )?;
            let sheet = contact_sheet(&images, &store, calibration.as_ref(), &options)?;
            let ending = out
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase();
            let bytes = match ending.as_str() {
                "jpg" | "jpeg" => encode_jpeg(&sheet, 92),
                _ => encode_png(&sheet),
            };
            clasp_data::atomic_write(out, |file| file.write_all(&bytes))
                .with_context(|| format!("writing {}", out.display()))?;
            match common.json {
                true => print_result(true, &serde_json::json!({ "file": out }), "")?,
                false => say(common, &format!("wrote {}", out.display())),
            }
            Ok(Outcome::Done)
        }
        Some(LabelAction::Check { labels, images }) => {
            let store = Store::open(labels)?;
            let source = open_images(images, false)?;
            let meter = Mutex::new(Meter::new(common, "label check", "images"));
            let found = check(&store, &source, &Limits::default(), &|done, total| {
                if let Ok(mut meter) = meter.lock() {
                    meter.set(done as u64, total as u64, "");
                }
            });
            drop(meter);
            print_result(common.json, &found, &found.to_string())?;
            Ok(match found.is_ok() {
                true => Outcome::Done,
                false => Outcome::CheckFailed,
            })
        }
        Some(LabelAction::Correct {
            labels,
            key,
            attributes,
            parts,
            clear,
        }) => {
            let newer = Correction {
                key: key.clone(),
                attributes: attributes.iter().cloned().collect(),
                parts: parts.clone(),
                ..Correction::default()
            };
            correct(common, labels, newer, *clear)
        }
        Some(LabelAction::Compare { one, other }) => {
            let (first, second) = (Store::open(one)?, Store::open(other)?);
            let config = AttributeConfig::default();
            let true_one = |store: &Store| store.meta.method == METHOD_TRUTH;
            let against = match (true_one(&first), true_one(&second)) {
                (_, true) => Some((one, &first, &second)),
                (true, false) => Some((other, &second, &first)),
                _ => None,
            };
            match against {
                Some((folder, labels, truth)) => {
                    let own = calibration(folder, labels)?;
                    let found = accuracy(labels, truth, own.as_ref(), &config)?;
                    print_result(common.json, &found, &found.to_string())?;
                }
                None => {
                    let agreement = compare::compare(&first, &second, &config)?;
                    print_result(common.json, &agreement, &agreement.to_string())?;
                }
            }
            Ok(Outcome::Done)
        }
        Some(LabelAction::Stats { labels }) => {
            let store = Store::open(labels)?;
            let calibration = calibration(labels, &store)?;
            let config = AttributeConfig::default();
            let stats = stats::stats(&store, calibration.as_ref(), &config)?;
            print_result(common.json, &stats, &stats.to_string())?;
            // Warnings are for the eye: in a small set many values are rare.
            Ok(Outcome::Done)
        }
    }
}

/// Adds `newer` to the corrections of its image or, if `clear`, replaces them.
fn correct(
    common: &GlobalOptions,
    labels: &Path,
    newer: Correction,
    clear: bool,
) -> Result<Outcome> {
    if newer.is_empty() && !clear {
        anyhow::bail!(
            "nothing to correct: expected --attribute NAME=VALUE, --part ROW,COLUMN=CLASS or --clear"
        );
    }
    let correction = Store::open(labels)?.add_correction(labels, newer, clear)?;
    let text = format!(
        "{}: {} and {} corrected",
        correction.key,
        counted(correction.attributes.len(), "attribute"),
        counted(correction.parts.len(), "position")
    );
    print_result(common.json, &correction, &text)?;
    Ok(Outcome::Done)
}

/// The calibration beside the labels, if there is one.
fn calibration(labels: &Path, store: &Store) -> Result<Option<Calibration>> {
    match Calibration::read(labels, &store.meta.vocabulary) {
        Ok(calibration) => Ok(Some(calibration)),
        Err(LabelError::NoCalibration { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn label(common: &GlobalOptions, arguments: &LabelRunArguments) -> Result<Outcome> {
    let (false, Some(out)) = (arguments.images.is_empty(), &arguments.out) else {
        anyhow::bail!("clasp label needs IMAGES and --out");
    };
    let place = |path: &Path| fs_err::canonicalize(path).ok();
    if let Some(own) = place(out)
        && let Some(images) = { arguments.images.iter() }
            .find(|images| place(Path::new(images)).as_ref() == Some(&own))
    {
        anyhow::bail!(
            "--out {}: expected a folder for labels, found that of the images {images}\n\
             hint: choose another folder",
            out.display()
        );
    }
    let source = open_images(&arguments.images, arguments.keep_going)?;
    let device = device::pick(common.device.as_deref())?;
    let mut options = LabelRunConfig::new(out, device::threads(common.threads));
    options.shard = arguments.shard.unwrap_or((0, 1));
    options.skip_unreadable = arguments.keep_going;
    let precision = device::precision(common, arguments.precision, &device)?;

    let report = match &arguments.kmeans {
        Some(backbone) => {
            let config = LabelConfig {
                grid: arguments.grid,
                confidence: arguments.confidence,
                precision,
                batch: arguments.batch,
                ..LabelConfig::default()
            };
            let labeler = kmeans_labeler(backbone, arguments.size, &config, &device)?;
            label_images(common, &source, &labeler, &options)?
        }
        None => {
            let vocabulary = match &arguments.vocabulary {
                Some(path) => Vocabulary::read(path)?,
                None => Vocabulary::standard()?,
            };
            let config = LabelConfig {
                image_size: arguments.size,
                dense: arguments
                    .dense
                    .parse::<Dense>()
                    .map_err(anyhow::Error::msg)?,
                grid: arguments.grid,
                confidence: arguments.confidence,
                precision,
                batch: arguments.batch,
                ..LabelConfig::default()
            };
            let (clip, info) = mini::load(&arguments.clip, &device)?;
            if mini::is_mini(&arguments.clip) {
                say(common, mini::NOTE);
            }
            let labeler = ClipLabeler::new(clip, &info, &vocabulary, &config, &device)?;
            label_images(common, &source, &labeler, &options)?
        }
    };
    // The last part of the corpus to finish calibrates over all that is there.
    if !report.stopped && report.shards > 0 {
        calibrate::calibrate(out)?;
    }
    let text = describe(&report, arguments, out);
    print_result(common.json, &report, &text)?;
    Ok(match report.stopped {
        true => Outcome::Stopped,
        false => Outcome::Done,
    })
}

/// Labels `source` into `options.folder` with a progress line; Ctrl-C stops after the batch.
pub fn label_images(
    common: &GlobalOptions,
    source: &Source,
    labeler: &impl Labeler,
    options: &LabelRunConfig,
) -> Result<LabelRunReport> {
    let stop = interrupt::flag()?;
    let mut meter = Meter::new(common, "label", "images");
    let report = clasp_label::run(source, labeler, options, &mut |progress| {
        match progress {
            LabelProgress::Resumed { shards, images } => {
                meter.line(&format!(
                    "resuming after {}, {}",
                    counted(images, "image"),
                    counted(shards, "whole shard")
                ));
            }
            LabelProgress::Empty { shards, jobs } => warn(&format!(
                "this part has no image: the images are cut into {}, too few for {}\n\
                 hint: start at most {}",
                counted(shards, "shard"),
                counted(jobs, "job"),
                counted(shards, "job")
            )),
            LabelProgress::Edited { shard } => warn(&format!(
                "the labels of {shard} were changed by other programs, and are not labeled again"
            )),
            LabelProgress::Images { done, total, .. } => meter.set(done as u64, total as u64, ""),
            LabelProgress::Unreadable { key, reason } => {
                meter.line(&format!("skipped {key}: {reason}"))
            }
            LabelProgress::Written { .. } => {}
        }
        interrupt::flow(&stop)
    })?;
    Ok(report)
}

fn describe(report: &LabelRunReport, arguments: &LabelRunArguments, out: &Path) -> String {
    let mut text = format!(
        "{}: {} labeled in {} ({}), {} labeled before, {} unreadable; {} in {}",
        counted(report.images, "image"),
        report.labeled,
        duration(report.seconds),
        rate(report.per_second, "images"),
        report.kept,
        report.unreadable,
        counted(report.shards, "shard"),
        out.display()
    );
    if arguments.kmeans.is_some() {
        let share = 100.0 * report.without_parts as f64 / report.labeled.max(1) as f64;
        let [least, most] = FOREGROUND.map(|share| 100.0 * share);
        let _ = write!(
            text,
            "\n{} of {} images skipped ({share:.1} %): no foreground of {least:.0} to {most:.0} %",
            report.without_parts, report.labeled
        );
    } else if report.without_parts > 0 {
        let _ = write!(
            text,
            "\n{} images have no labeled patch position",
            report.without_parts
        );
    }
    if report.stopped {
        text.push_str("\nstopped; run the same command to resume");
    } else {
        let images = match &arguments.images[..] {
            [one] if one != "-" => shell_word(one),
            _ => "IMAGES".to_owned(),
        };
        let _ = write!(
            text,
            "\nlook at them: clasp label show {0} {images}; clasp label stats {0}",
            shell_path(out)
        );
    }
    text
}

/// A labeler by k-means on the features of the backbone in `path` under the part prompt, which
/// separates parts best.
pub fn kmeans_labeler(
    path: &Path,
    size: Option<[usize; 2]>,
    config: &LabelConfig,
    device: &Device,
) -> Result<impl Labeler + use<>> {
    let (backbone, meta) = load_backbone(path, device)?;
    let sha256 = clasp_weights::backbone::digest(path)?;
    let size = size.unwrap_or([meta.height, meta.width]);
    let features = {
        let device = device.clone();
        move |images: Tensor<4>| {
            let mix = PromptWeights::single(PART).tensor(&device);
            backbone.forward(images, mix, None).map
        }
    };
    let name = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(KMeansLabeler::new(
        features, size, &name, &sha256, config, 0, device,
    )?)
}
