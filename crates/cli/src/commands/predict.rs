//! `clasp predict TASK IMAGES`: JSON lines, and pictures.

use std::io::Write as _;
use std::sync::Mutex;

use anyhow::Result;
use clasp_data::image::{Limits, decode, encode_png};
use clasp_data::source::{Source, Unreadable};
use clasp_data::{atomic_write, atomic_write_unsynced};
use clasp_tasks::finetune::{Running, Task};
use fs_err as fs;
use serde_json::{Value, json};

use super::tuned::{load, with_task};
use super::{check_writable, print_result};
use crate::args::{Common, Predict};
use crate::progress::{Meter, say};
use crate::{Outcome, device, interrupt};

/// Images that are predicted before their lines are written.
const CHUNK: usize = 256;

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
    if let Some(folder) = &arguments.draw {
        fs::create_dir_all(folder)?;
    }
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, "predict", "images"));
    let mut unreadable = Unreadable::default();
    let mut lines = Vec::new();
    let mut start = 0;
    while start < source.len() {
        let count = CHUNK.min(source.len() - start);
        let progress = |progress: clasp_tasks::Progress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set((start + progress.done) as u64, source.len() as u64, "");
            }
            interrupt::flow(&stop)
        };
        let running = Running {
            batch: 4,
            threads: device::threads(common.threads),
            predictions: false,
            progress: &progress,
        };
        let found = model.batches("images", count, &running, |model, items| {
            items
                .map(|item| one(model, &source, start + item, arguments))
                .collect()
        })?;
        for (item, outcome) in (start..).zip(found) {
            let key = source.key(item);
            match outcome {
                Ok(prediction) => {
                    unreadable.ok();
                    let line = json!({"image": key, "prediction": prediction});
                    writeln!(lines, "{line}")?;
                }
                Err(reason) => unreadable.fail(key, reason),
            }
        }
        start += count;
    }
    drop(meter);
    for (key, reason) in unreadable.failed.iter().take(TOLD) {
        say(common, &format!("skipped {key}: {reason}"));
    }
    if !arguments.keep_going {
        unreadable.check()?;
    }
    atomic_write(&arguments.out, |file| file.write_all(&lines))?;
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

/// The prediction for an image of the source, or why it cannot be read.
fn one<T: Task>(
    model: &clasp_tasks::finetune::Model<T>,
    source: &Source,
    item: usize,
    arguments: &Predict,
) -> Result<Result<Value, String>, clasp_tasks::TaskError> {
    let read = source.read(item).map_err(|error| error.to_string());
    let image = read
        .and_then(|bytes| decode(&bytes, &Limits::default()).map_err(|error| error.to_string()));
    let image = match image {
        Ok(image) => image,
        Err(reason) => return Ok(Err(reason)),
    };
    let prediction = model.task.predict(model, &image)?;
    if let Some(folder) = &arguments.draw {
        // The key is a path inside the source; the picture's name is all of it.
        let name = source.key(item).replace(['/', '\\'], "_");
        let bytes = encode_png(&model.task.draw(&image, &prediction));
        let path = folder.join(format!("{name}.png"));
        atomic_write_unsynced(&path, |file| file.write_all(&bytes))?;
    }
    Ok(Ok(prediction))
}
