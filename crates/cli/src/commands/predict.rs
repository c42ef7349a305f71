//! `clasp predict TASK IMAGES`: JSON lines, and pictures.

use std::path::Path;
use std::sync::Mutex;

use anyhow::Result;
use clasp_data::image::{Limits, decode, encode_png};
use clasp_data::source::Source;
use clasp_data::{atomic_write, atomic_write_unsynced};
use clasp_tasks::TaskError;
use clasp_tasks::finetune::{Model, Running, Task};
use clasp_weights::tuned;
use fs_err as fs;
use serde_json::{Map, Value, json};

use super::partial::{self, Partial};
use super::tuned::{load, with_task};
use super::{check_writable, print_result};
use crate::args::{Common, Predict};
use crate::progress::{Meter, say};
use crate::{Outcome, device, interrupt};

/// Images in a batch.
const BATCH: usize = 4;

/// Unreadable images that are named one by one; all are in the JSON.
const TOLD: usize = 20;

/// Runs the verb.
pub fn run(common: &Common, arguments: &Predict) -> Result<Outcome> {
    with_task!(arguments.task, T => predict::<T>(common, arguments))
}

fn predict<T: Task>(common: &Common, arguments: &Predict) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    let device = device::pick(common.device.as_deref())?;
    let mut model = load::<T>(&arguments.model, &arguments.set, arguments.size, &device)?;
    model.precision = device::precision(common, arguments.products, &device)?;
    let source = Source::open(&arguments.images)?;
    let asked = json!({
        "clasp": env!("CARGO_PKG_VERSION"),
        "predict": T::NAME,
        "images": arguments.images,
        "model": tuned::digest(&arguments.model)?,
        "set": arguments.set,
        "size": arguments.size,
        "precision": arguments.products.precision.to_string(),
        "draw": arguments.draw.as_ref().map(|folder| folder.display().to_string()),
    });
    let mut partial = Partial::open(&arguments.out, &asked, &source)?;
    if partial.done > 0 {
        say(common, &format!("going on after {} images", partial.done));
    }
    if !all(common, arguments, &model, &source, &mut partial)? {
        say(common, &partial.stopped(source.len()));
        return Ok(Outcome::Done);
    }
    for (key, reason) in partial.unreadable.failed.iter().take(TOLD) {
        say(common, &format!("skipped {key}: {reason}"));
    }
    if !arguments.keep_going {
        partial.unreadable.check()?;
    }
    atomic_write(&arguments.out, |file| {
        // As it was written: to read numbers and write them again may change their last digit.
        let line = |text: &[u8], _: &Value| Ok(file.write_all(text)?);
        partial.each(line).map_err(std::io::Error::other)
    })?;
    let unreadable = partial.unreadable.clone();
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

/// Predicts all images that are still to do, putting lines away after each chunk; false where Ctrl-C stopped it.
fn all<T: Task>(
    common: &Common,
    arguments: &Predict,
    model: &Model<T>,
    source: &Source,
    partial: &mut Partial,
) -> Result<bool> {
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, "predict", "images"));
    let threads = device::threads(common.threads);
    while partial.done < source.len() {
        let start = partial.done;
        let count = (16 * BATCH * threads).min(source.len() - start);
        let progress = |progress: clasp_tasks::Progress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set((start + progress.done) as u64, source.len() as u64, "");
            }
            interrupt::flow(&stop)
        };
        let running = Running {
            batch: BATCH,
            threads,
            predictions: false,
            progress: &progress,
        };
        let found = model.batches("images", count, &running, |model, items| {
            items
                .map(|item| one(model, source, start + item, arguments.draw.as_deref()))
                .collect()
        });
        match found {
            Err(TaskError::Stopped) => return Ok(false),
            found => partial.put(source, found?)?,
        }
        if !arguments.keep_going {
            partial.unreadable.check_early()?;
        }
    }
    Ok(true)
}

/// The prediction for an image of the source, or why it cannot be read.
fn one<T: Task>(
    model: &Model<T>,
    source: &Source,
    item: usize,
    draw: Option<&Path>,
) -> Result<partial::Outcome, TaskError> {
    let read = source.read(item).map_err(|error| error.to_string());
    let image = read
        .and_then(|bytes| decode(&bytes, &Limits::default()).map_err(|error| error.to_string()));
    let image = match image {
        Ok(image) => image,
        Err(reason) => return Ok(Err(reason)),
    };
    let prediction = (model.task.predict(model, &image)).map_err(|error| match error {
        TaskError::NotFinite { found, .. } => TaskError::NotFinite {
            image: source.key(item).to_owned(),
            found,
        },
        other => other,
    })?;
    if let Some(folder) = draw {
        // The key is a path inside the source, of plain names: as many folders here keep every picture its own file.
        let path = folder.join(format!("{}.png", source.key(item)));
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let bytes = encode_png(&model.task.draw(&image, &prediction));
        atomic_write_unsynced(&path, |file| file.write_all(&bytes))?;
    }
    let fields = [("prediction".to_owned(), prediction)];
    Ok(Ok(Map::from_iter(fields)))
}
