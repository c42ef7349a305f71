//! `clasp search`: the gallery images most similar to each query.

use std::io::Write as _;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use clasp_data::atomic_write;
use clasp_data::image::{Limits, decode, encode_png};
use clasp_data::source::Source;
use clasp_tasks::BackboneExtractor;
use clasp_tasks::embed::{Embeddings, embed};
use clasp_tasks::features::{Batching, Extractor, PassProgress, Preprocess};
use clasp_tasks::reid::ReidTask;
use clasp_tasks::retrieve::{
    GalleryMatch, MOST_SHOWN, SearchAnswer, SheetMatch, SheetPicture, SheetRow, nearest, sheet,
    tile,
};
use clasp_tasks::task::{FinetunedModel, Task as _};
use clasp_weights::finetuned::read_meta;
use serde_json::json;

use super::{check_writable, eval, open_images, print_result};
use crate::args::{GlobalOptions, SearchArguments};
use crate::progress::{Meter, counted};
use crate::{Outcome, device, interrupt};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &SearchArguments) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    check_writable(&arguments.sheet)?;
    if arguments.out == arguments.sheet {
        bail!(
            "--out and --sheet: expected two files, found {} twice",
            arguments.out.display()
        );
    }
    if !(-1.0..=1.0).contains(&arguments.threshold) {
        bail!(
            "--threshold: expected a cosine from -1 to 1, found {}",
            arguments.threshold
        );
    }
    let device = device::pick(common.device.as_deref())?;
    let precision = device::precision(common, arguments.precision, &device)?;
    match read_meta(&arguments.model)? {
        Some(meta) if meta.task == ReidTask::NAME => {
            let mut model = FinetunedModel::<ReidTask>::load(&arguments.model, &device)?;
            model.precision = precision;
            if let Some([height, width]) = arguments.size {
                (model.preprocess.height, model.preprocess.width) = (height, width);
            }
            let preprocess = model.task.test_preprocess(&model.preprocess);
            let same = model.task.same_person.as_ref().map(|same| same.cosine);
            search(common, arguments, &model, &preprocess, same)
        }
        Some(meta) => bail!(
            "{}: expected a model of task reid or a backbone, found one of task {}",
            arguments.model.display(),
            meta.task
        ),
        None => {
            let model = eval::Model::load(&arguments.model, arguments.size, &device)?;
            let mix = ReidTask::default_prompt();
            let extractor =
                BackboneExtractor::new(model.backbone, mix, device).with_precision(precision);
            search(common, arguments, &extractor, &model.preprocess, None)
        }
    }
}

fn search<E: Extractor>(
    common: &GlobalOptions,
    arguments: &SearchArguments,
    extractor: &E,
    preprocess: &Preprocess,
    same: Option<f64>,
) -> Result<Outcome> {
    let batching = Batching {
        threads: device::threads(common.threads),
        ..Batching::default()
    };
    let stop = interrupt::flag()?;
    let features = |what: &str, source: &Source| -> Result<Embeddings> {
        let meter = Mutex::new(Meter::new(common, what, "images"));
        let progress = |progress: PassProgress| {
            if let Ok(mut meter) = meter.lock() {
                meter.set(progress.done as u64, progress.total as u64, "");
            }
            interrupt::flow(&stop)
        };
        let keep_going = arguments.keep_going;
        Ok(embed(
            extractor, preprocess, source, keep_going, &batching, &progress,
        )?)
    };
    let (queries, others) = (
        open_images(&[&arguments.query], arguments.keep_going)?,
        open_images(&[&arguments.gallery], arguments.keep_going)?,
    );
    let query = features("search: queries", &queries)?;
    let gallery = features("search: gallery", &others)?;
    if query.keys.is_empty() || gallery.keys.is_empty() {
        bail!(
            "search: expected images on both sides, found {} queries and {} others",
            query.keys.len(),
            gallery.keys.len()
        );
    }
    let found = nearest(&query, &gallery, arguments.top, arguments.threshold, same);
    let mut lines = Vec::new();
    for (key, matches) in query.keys.iter().zip(&found) {
        let answer = SearchAnswer::new(key.clone(), matches.clone(), same.is_some());
        writeln!(lines, "{}", serde_json::to_string(&answer)?)?;
    }
    atomic_write(&arguments.out, |file| file.write_all(&lines))?;

    let rows = { query.items.iter().zip(&found).take(arguments.rows) }
        .map(|(item, matches)| row(&queries, *item, &others, matches))
        .collect::<Result<Vec<_>>>()?;
    let picture = encode_png(&sheet(&rows, same));
    atomic_write(&arguments.sheet, |file| file.write_all(&picture))?;
    let without = found.iter().filter(|matches| matches.is_empty()).count();
    let told = same.map_or(String::new(), |same| {
        let known = found.iter().flatten().filter(|one| one.same == Some(true));
        format!(
            "; {} matches are above the threshold for the same person (cosine {same:.3})",
            known.count()
        )
    });
    let text = format!(
        "{} against {}: matches in {}, pictures in {}; {} without a match{told}",
        counted(query.keys.len(), "query"),
        counted(gallery.keys.len(), "image"),
        arguments.out.display(),
        arguments.sheet.display(),
        counted(without, "query"),
    );
    let value = json!({
        "queries": query.keys.len(),
        "gallery": gallery.keys.len(),
        "without_match": without,
        "file": arguments.out,
        "sheet": arguments.sheet,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// A query and the first of its matches as pictures.
fn row(
    queries: &Source,
    item: usize,
    gallery: &Source,
    matches: &[GalleryMatch],
) -> Result<SheetRow> {
    Ok(SheetRow {
        query: picture(queries, item)?,
        matches: { matches.iter().take(MOST_SHOWN) }
            .map(|one| {
                Ok(SheetMatch {
                    picture: picture(gallery, one.item)?,
                    cosine: one.cosine,
                    same: one.same,
                })
            })
            .collect::<Result<_>>()?,
    })
}

/// An image of the source at the size of the contact sheet.
fn picture(source: &Source, item: usize) -> Result<SheetPicture> {
    let image = decode(&source.read(item)?, &Limits::default())
        .with_context(|| format!("{}: expected an image", source.place(item)))?;
    Ok(SheetPicture {
        image: tile(&image),
        key: source.key(item).to_owned(),
    })
}
