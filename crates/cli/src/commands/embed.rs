//! `clasp embed IMAGES`.

use std::sync::Mutex;

use anyhow::Result;
use clasp_data::source::Source;
use clasp_model::mix::Mix;
use clasp_tasks::embed::embed;
use clasp_tasks::{BackboneExtractor, Options};
use serde_json::json;

use super::eval::Model;
use super::{check_writable, print_result};
use crate::args::{Common, Embed};
use crate::progress::Meter;
use crate::{Outcome, device, interrupt};

/// Runs the verb.
pub fn run(common: &Common, arguments: &Embed) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    let source = Source::open(&arguments.images)?;
    let mix: Mix = arguments.mix.parse()?;
    let device = device::pick(common.device.as_deref())?;
    let model = Model::load(&arguments.model, arguments.size, &device)?;
    let precision = device::precision(common, arguments.products, &device)?;
    let extractor = BackboneExtractor::new(model.backbone, mix, device).with_precision(precision);
    let options = Options {
        threads: device::threads(common.threads),
        ..Options::default()
    };
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, "embed", "images"));
    let embeddings = embed(
        &extractor,
        &model.preprocess,
        &source,
        arguments.keep_going,
        &options,
        &|progress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set(progress.done as u64, progress.total as u64, "");
            }
            interrupt::flow(&stop)
        },
    )?;
    drop(meter);
    let files = embeddings.write(&arguments.out)?;
    let text = format!(
        "{} features of length {} in {}; {} images unreadable",
        embeddings.keys.len(),
        embeddings.channels,
        files
            .iter()
            .map(|file| file.display().to_string())
            .collect::<Vec<_>>()
            .join(" and "),
        embeddings.unreadable.failed.len()
    );
    let value = json!({
        "images": embeddings.keys.len(),
        "channels": embeddings.channels,
        "files": files,
        "unreadable": embeddings.unreadable,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}
