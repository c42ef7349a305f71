//! `clasp predict TASK IMAGES`: JSON lines, and pictures. A line is `{"image": KEY, "prediction":
//! …}`, or with `--detector` `{"image": KEY, "people": [{"bbox": …, "score": …, "crop": …,
//! "prediction": …}, …]}`.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow, bail};
use burn::tensor::Device;
use clasp_data::atomic::remove_abandoned;
use clasp_data::image::{Limits, encode_png};
use clasp_data::source::Source;
use clasp_data::{atomic_write, atomic_write_unsynced};
use clasp_model::Precision;
use clasp_tasks::people::{Finder, of_image, of_people};
use clasp_tasks::registry::finder;
use clasp_tasks::task::{DownstreamTask, FinetunedModel, Inference, InputKind, Predictor};
use clasp_tasks::{Batching, PassProgress, TaskError, with_task};
use clasp_weights::finetuned;
use fs_err as fs;
use serde_json::{Value, json};

use super::load_model::load;
use super::partial::{self, Partial};
use super::{
    Input, check_writable, claim_outputs, first_replaced, one_or_all, open_images, part_of,
    print_result,
};
use crate::args::{GlobalOptions, PredictArguments};
use crate::progress::{Meter, counted, say};
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
        Some(path) => Some(detector(path, &device, model.precision)?),
        None => None,
    };
    if arguments.draw.is_some() && people.is_none() && !T::IS_DRAWN {
        bail!(
            "--draw: a prediction of {} is a feature, which cannot be drawn\n\
             hint: `clasp search` draws the nearest images; with --detector the boxes of people are drawn",
            T::NAME
        );
    }
    let all_images = open_images(&arguments.images, arguments.keep_going)?;
    let source = part_of(&all_images, arguments.shard);
    let mut read = vec![Input::Images(&all_images), Input::Model(&arguments.model)];
    read.extend(arguments.detector.as_deref().map(Input::Model));
    claim_outputs(&[("--out", &arguments.out)], &read)?;
    if let Some(folder) = &arguments.draw {
        check_drawn_elsewhere(folder, &source, &all_images)?;
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "--draw {}: expected a folder for pictures",
                folder.display()
            )
        })?;
        remove_half_drawn(folder, &source)?;
    }
    let mut asked = json!({
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
    if let Some(part) = arguments.shard {
        asked["shard"] = json!(part);
    }
    let mut partial = Partial::open(&arguments.out, &asked, &source)?;
    if partial.done > 0 {
        say(
            common,
            &format!("resuming after {}", counted(partial.done, "image")),
        );
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
        "{} in {}{drawn}; {} unreadable",
        counted(done, "prediction"),
        arguments.out.display(),
        counted(unreadable.failed.len(), "image")
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

/// Checks that no picture of `source` would take the place of one of the images: those of the other
/// parts too.
fn check_drawn_elsewhere(folder: &Path, source: &Source, images: &Source) -> Result<()> {
    let pictures = { source.keys() }.map(|key| (key, folder.join(picture_name(key))));
    match first_replaced(pictures, &[Input::Images(images)]) {
        None => Ok(()),
        Some((key, picture, _)) => bail!(
            "--draw {}: expected a folder for pictures, found one of images: the picture of `{key}` \
             would replace {}, which is to be read\nhint: choose a folder without images, as a new one",
            folder.display(),
            picture.display()
        ),
    }
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

/// The finder of people that `--detector` names.
fn detector(path: &Path, device: &Device, precision: Precision) -> Result<Finder> {
    finder(path, device, precision).map_err(|error| match error {
        TaskError::Mismatch {
            file,
            expected,
            found,
        } => anyhow!("--detector {file}: expected {expected}, found {found}"),
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `--draw` with the folder of the images used to replace the photos.
    #[test]
    fn pictures_take_the_place_of_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let photo = encode_png(&clasp_data::image::Rgb::filled(2, 2, [0; 3]));
        fs::create_dir(at("below")).unwrap();
        for name in ["a.png", "b.jpg", "below/b.png"] {
            fs::write(at(name), &photo).unwrap();
        }
        let images = Source::open(folder.path().to_str().unwrap()).unwrap();
        let check = |draw: &str, part| check_drawn_elsewhere(&at(draw), &part, &images);
        let error = check("", images.clone()).unwrap_err().to_string();
        assert!(
            error.contains("the picture of `a` would replace") && error.contains("hint: "),
            "{error}"
        );
        // The image of another part, by another way, and through a link.
        let part = |key| images.part(images.keys().position(|k| k == key).unwrap(), 3);
        assert!(check("below/../below", part("b")).is_err());
        check("below", part("a")).unwrap();
        check("new", images.clone()).unwrap();
        // Pictures of an earlier process are no images.
        fs::create_dir(at("new")).unwrap();
        fs::write(at("new/a.png"), &photo).unwrap();
        check("new", images.clone()).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path(), at("new/link")).unwrap();
            assert!(check("new/link", images.clone()).is_err());
        }
    }

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
