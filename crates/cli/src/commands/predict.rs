//! `clasp predict TASK IMAGES`: JSON lines, and pictures. A line is `{"image": KEY, "prediction":
//! …}`, or with `--detector` `{"image": KEY, "people": [{"bbox": …, "score": …, "crop": …,
//! "prediction": …}, …]}`.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_data::atomic::remove_abandoned;
use clasp_data::image::{Limits, Rgb, encode_png};
use clasp_data::source::Source;
use clasp_data::{atomic_write, atomic_write_unsynced};
use clasp_model::Precision;
use clasp_tasks::task::{DownstreamTask, FinetunedModel, Inference, InputKind, Predictor};
use clasp_tasks::{Batching, PassProgress, TaskError, TaskKind, with_task};
use clasp_weights::finetuned;
use fs_err as fs;
use serde_json::{Map, Value, json};

use super::load_model::load;
use super::partial::{self, Partial, remove_abandoned_of};
use super::{check_writable, one_or_all, open_images, print_result};
use crate::args::{GlobalOptions, PredictArguments};
use crate::progress::{Meter, say};
use crate::{Outcome, device, interrupt};

/// Images in a batch.
const BATCH: usize = 4;

/// Unreadable images that are named one by one; all are in the JSON.
const TOLD: usize = 20;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &PredictArguments) -> Result<Outcome> {
    with_task!(arguments.task.0, T => predict::<T>(common, arguments))
}

fn predict<T: DownstreamTask>(
    common: &GlobalOptions,
    arguments: &PredictArguments,
) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    let device = device::pick(common.device.as_deref())?;
    let mut model = load::<T>(&arguments.model, &arguments.set, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.precision, &device)?;
    let people = match &arguments.detector {
        Some(_) if T::INPUT == InputKind::Scene => {
            bail!(
                "--detector: {} detects people itself; leave it out",
                T::NAME
            )
        }
        Some(path) => Some(finder(path, &device, model.precision)?),
        None => None,
    };
    remove_abandoned_of(&arguments.out)?;
    let source = open_images(&arguments.images, arguments.keep_going)?;
    if let Some(folder) = &arguments.draw {
        remove_half_drawn(folder, &source)?;
    }
    let asked = json!({
        "clasp": env!("CARGO_PKG_VERSION"),
        "predict": T::NAME,
        "images": one_or_all(&arguments.images),
        "model": finetuned::digest(&arguments.model)?,
        "detector": arguments.detector.as_deref().map(finetuned::digest).transpose()?,
        "set": arguments.set,
        "size": arguments.size,
        "precision": arguments.precision.format.to_string(),
        "draw": arguments.draw.as_ref().map(|folder| folder.display().to_string()),
    });
    let mut partial = Partial::open(&arguments.out, &asked, &source)?;
    if partial.done > 0 {
        say(common, &format!("resuming after {} images", partial.done));
    }
    if !all(
        common,
        arguments,
        &model,
        people.as_ref(),
        &source,
        &mut partial,
    )? {
        say(common, &partial.stopped(source.len()));
        return Ok(Outcome::Stopped);
    }
    let unreadable = partial.unreadable();
    for (key, reason) in unreadable.failed.iter().take(TOLD) {
        say(common, &format!("skipped {key}: {reason}"));
    }
    if !arguments.keep_going {
        unreadable.check()?;
    }
    atomic_write(&arguments.out, |file| {
        // As it was written: to read numbers and write them again may change their last digit.
        let line = |text: &[u8], _: &Value| Ok(file.write_all(text)?);
        partial.each(line).map_err(std::io::Error::other)
    })?;
    partial.remove()?;
    let done = source.len() - unreadable.failed.len();
    let drawn = { arguments.draw.as_ref() }.map_or(String::new(), |folder| {
        format!(", pictures in {}", folder.display())
    });
    let text = format!(
        "{done} predictions in {}{drawn}; {} images unreadable",
        arguments.out.display(),
        unreadable.failed.len()
    );
    let value = json!({"images": done, "file": arguments.out, "unreadable": unreadable});
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Predicts all images that are still to do, putting lines away after each chunk; false where
/// Ctrl-C stopped it.
fn all<T: Predictor>(
    common: &GlobalOptions,
    arguments: &PredictArguments,
    model: &FinetunedModel<T>,
    people: Option<&Finder>,
    source: &Source,
    partial: &mut Partial,
) -> Result<bool> {
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, "predict", "images"));
    let threads = device::threads(common.threads);
    let chunk = Batching {
        batch: BATCH,
        threads,
    }
    .chunk();
    let some = |items: Range<usize>| -> Result<Option<Vec<partial::ImageResult>>> {
        let start = items.start;
        let progress = |progress: PassProgress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set((start + progress.done) as u64, source.len() as u64, "");
            }
            interrupt::flow(&stop)
        };
        let inference = Inference {
            batch: BATCH,
            threads,
            predictions: false,
            progress: &progress,
        };
        let draw = arguments.draw.as_deref();
        let found = model.batches("images", items.len(), &inference, |model, items| {
            items
                .map(|item| one(model, people, source, start + item, draw))
                .collect()
        });
        match found {
            Err(TaskError::Stopped) => Ok(None),
            found => Ok(Some(found?)),
        }
    };
    partial.work(source, chunk, arguments.keep_going, some)
}

/// Removes temporary files of pictures that a killed process left.
fn remove_half_drawn(folder: &Path, source: &Source) -> Result<()> {
    let pictures = source.keys().map(|key| folder.join(format!("{key}.png")));
    let folders: BTreeSet<PathBuf> = pictures
        .filter_map(|picture| picture.parent().map(Path::to_owned))
        .collect();
    for folder in folders {
        remove_abandoned(&folder)?;
    }
    Ok(())
}

/// The prediction for an image of the source, or why it cannot be read.
fn one<T: Predictor>(
    model: &FinetunedModel<T>,
    people: Option<&Finder>,
    source: &Source,
    item: usize,
    draw: Option<&Path>,
) -> Result<partial::ImageResult, TaskError> {
    let image = match source.load(item, &Limits::default()) {
        Ok(image) => image,
        Err(failure) => return Ok(Err(failure)),
    };
    let (fields, picture) = match people {
        None => of_image(model, &image, draw.is_some()),
        Some(people) => of_people(model, people, &image, draw.is_some()),
    }
    .map_err(|error| match error {
        TaskError::NotFinite { found, .. } => TaskError::NotFinite {
            image: source.key(item).to_owned(),
            found,
        },
        other => other,
    })?;
    if let (Some(folder), Some(picture)) = (draw, picture) {
        // The key is a path inside the source, of plain names: as many folders here keep every
        // picture its own file.
        let path = folder.join(picture_name(source.key(item)));
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let bytes = encode_png(&picture);
        atomic_write_unsynced(&path, |file| file.write_all(&bytes))?;
    }
    Ok(Ok(fields))
}

/// Bytes that a file's name may have on most file systems.
const MOST_OF_A_NAME: usize = 255;

/// The path of the picture for an image, below the folder of pictures. Where the name would be
/// longer than file systems take, as that of `KEY.jpg` with 252 bytes before its ending, a digest
/// replaces its end.
fn picture_name(key: &str) -> PathBuf {
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
    let mut name = format!("{name}.png");
    if name.len() > MOST_OF_A_NAME {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let mut end = MOST_OF_A_NAME - 21;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name = format!("{}-{:016x}.png", &name[..end], hasher.finish());
    }
    Path::new(folder).join(name)
}

/// The fields of a line, and the picture if it is wanted.
type Told = (Map<String, Value>, Option<Rgb>);

/// The prediction for the image as a whole.
fn of_image<T: Predictor>(
    model: &FinetunedModel<T>,
    image: &Rgb,
    draw: bool,
) -> Result<Told, TaskError> {
    let prediction = model.task.predict(model, image)?;
    let picture = draw.then(|| model.task.draw(image, &prediction));
    let fields = [("prediction".to_owned(), prediction)];
    Ok((Map::from_iter(fields), picture))
}

/// A prediction for each person that is found in a photo.
fn of_people<T: Predictor>(
    model: &FinetunedModel<T>,
    people: &Finder,
    photo: &Rgb,
    draw: bool,
) -> Result<Told, TaskError> {
    let found = people(photo)?;
    let mut picture = draw.then(|| photo.clone());
    let mut told = Vec::new();
    for one in found["boxes"].as_array().into_iter().flatten() {
        let Some(crop) = cut(&one["bbox"], T::CROP_MARGIN, photo) else {
            continue;
        };
        let prediction = model
            .task
            .predict(model, &clasp_data::image::crop(photo, crop))?;
        let at = [crop[0] as f64, crop[1] as f64];
        let prediction = model.task.in_photo(prediction, at);
        if let Some(picture) = &mut picture {
            model.task.draw_person(picture, crop, &prediction);
        }
        told.push(json!({
            "bbox": one["bbox"],
            "score": one["score"],
            "crop": crop,
            "prediction": prediction,
        }));
    }
    Ok((
        Map::from_iter([("people".to_owned(), told.into())]),
        picture,
    ))
}

/// The pixels x, y, width, height of a box enlarged by `margin`, as far as they lie in the photo.
fn cut(bbox: &Value, margin: f64, photo: &Rgb) -> Option<[usize; 4]> {
    let number = |at: usize| bbox[at].as_f64();
    let span = |start: f64, length: f64, size: usize| {
        let more = length * (margin - 1.0) / 2.0;
        let from = (start - more).floor().clamp(0.0, size as f64) as usize;
        let to = (start + length + more).ceil().clamp(0.0, size as f64) as usize;
        (to > from).then_some((from, to - from))
    };
    let (x, width) = span(number(0)?, number(2)?, photo.width)?;
    let (y, height) = span(number(1)?, number(3)?, photo.height)?;
    Some([x, y, width, height])
}

/// Finds people in a photo: `{"boxes": [{"bbox": [x, y, width, height], "score": …}, …]}`.
type Finder = Box<dyn Fn(&Rgb) -> Result<Value, TaskError> + Sync>;

fn finder(path: &Path, device: &Device, precision: Precision) -> Result<Finder> {
    let task = finetuned::read_meta(path)?.map(|meta| meta.task);
    let kind = task.as_deref().and_then(TaskKind::named);
    let finder = kind.and_then(|kind| {
        with_task!(kind, T => {
            let finds_people = <T as clasp_tasks::task::Task>::INPUT == InputKind::Scene;
            finds_people.then(|| finder_of::<T>(path, device, precision))
        })
    });
    finder.unwrap_or_else(|| {
        bail!(
            "--detector {}: expected a fine-tuned model of detection or search, found {}",
            path.display(),
            task.map_or("no fine-tuned model".to_owned(), |task| format!(
                "one of {task}"
            ))
        )
    })
}

fn finder_of<T: Predictor>(path: &Path, device: &Device, precision: Precision) -> Result<Finder> {
    let mut model = FinetunedModel::<T>::load(path, device)?;
    model.precision = precision;
    Ok(Box::new(move |photo| model.task.predict(&model, photo)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_long_names_have_names_of_their_own() {
        assert_eq!(picture_name("a/b"), Path::new("a/b.png"));
        for letter in ["x", "é"] {
            let long = format!("a/{}", letter.repeat(251 / letter.len()));
            let (one, other) = (
                picture_name(&format!("{long}1")),
                picture_name(&format!("{long}2")),
            );
            assert_ne!(one, other);
            for path in [one, other] {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                assert!(name.len() <= 255 && name.ends_with(".png"), "{name}");
            }
        }
    }
}
