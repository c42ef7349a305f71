//! `clasp search`: the gallery images most similar to each query.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use clasp_data::atomic_write;
use clasp_data::image::{Limits, decode, encode_png};
use clasp_data::source::Source;
use clasp_tasks::embed::{Embeddings, FeatureOrigin, embed, read_features};
use clasp_tasks::features::{Batching, PassProgress};
use clasp_tasks::retrieve::{
    GalleryMatch, MOST_SHOWN, SearchAnswer, SheetMatch, SheetPicture, SheetRow, nearest, sheet,
    tile,
};
use clasp_tasks::searcher::Searcher;
use serde_json::json;

use super::{Input, check_writable, claim_outputs, open_images, print_result};
use crate::args::{GlobalOptions, SearchArguments};
use crate::progress::{Meter, counted, warn};
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
    let searcher = Searcher::load(&arguments.model, arguments.size, precision, &device)?;
    let preprocess = searcher.preprocess();
    let same = same_person(&searcher);
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
            &searcher,
            &preprocess,
            source,
            keep_going,
            &batching,
            &progress,
        )?)
    };
    let (queries, others) = (
        open_images(&[&arguments.query], arguments.keep_going)?,
        open_images(&[&arguments.gallery], arguments.keep_going)?,
    );
    check_outputs(arguments, [&queries, &others])?;
    // What may be wrong with a file is said before anything is computed.
    let from_file = { arguments.gallery_features.as_ref() }
        .map(|file| features_of(file, &searcher.origin(), &others, arguments.keep_going))
        .transpose()?;
    let query = features("search: queries", &queries)?;
    let gallery = match from_file {
        Some(gallery) => gallery,
        None => features("search: gallery", &others)?,
    };
    if query.keys.is_empty() || gallery.keys.is_empty() {
        bail!(
            "search: expected images on both sides, found {} queries and {} others",
            query.keys.len(),
            gallery.keys.len()
        );
    }
    if let Some(file) = &arguments.gallery_features {
        ensure!(
            gallery.channels == query.channels,
            "{}: expected features of {} numbers, as those of --model, found {}",
            file.display(),
            query.channels,
            gallery.channels
        );
    }
    let found = nearest(&query, &gallery, arguments.top, arguments.threshold, same);
    write(arguments, [&queries, &others], &query, &found, same)?;
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

/// From which cosine on two images show the same person. A threshold is of the size that it was measured at.
fn same_person(searcher: &Searcher) -> Option<f64> {
    let same = searcher.same_person()?;
    if searcher.is_resized() {
        warn(
            "--size: the same-person threshold of the model was measured at its own size, so no match is marked as \
             the same person",
        );
        return None;
    }
    Some(same.cosine)
}

/// Writes the matches and the contact sheet of the first queries.
fn write(
    arguments: &SearchArguments,
    [queries, others]: [&Source; 2],
    query: &Embeddings,
    found: &[Vec<GalleryMatch>],
    same: Option<f64>,
) -> Result<()> {
    let mut lines = Vec::new();
    for (key, matches) in query.keys.iter().zip(found) {
        let answer = SearchAnswer::new(key.clone(), matches.clone(), same.is_some());
        writeln!(lines, "{}", serde_json::to_string(&answer)?)?;
    }
    atomic_write(&arguments.out, |file| file.write_all(&lines))?;
    let rows = { query.items.iter().zip(found).take(arguments.rows) }
        .map(|(item, matches)| row(queries, *item, others, matches))
        .collect::<Result<Vec<_>>>()?;
    let picture = encode_png(&sheet(&rows, same));
    atomic_write(&arguments.sheet, |file| file.write_all(&picture))?;
    Ok(())
}

/// Checks what is written, before long work.
fn check_outputs(arguments: &SearchArguments, images: [&Source; 2]) -> Result<()> {
    let written: [(&str, &Path); 2] = [("--out", &arguments.out), ("--sheet", &arguments.sheet)];
    let mut read = images.map(Input::Images).to_vec();
    read.push(Input::Model(&arguments.model));
    read.extend(arguments.gallery_features.as_deref().map(Input::Files));
    claim_outputs(&written, &read)
}

/// Features from a file of `clasp embed`, with the places of their images in the gallery.
fn features_of(
    file: &Path,
    origin: &FeatureOrigin,
    gallery: &Source,
    keep_going: bool,
) -> Result<Embeddings> {
    let mut features = read_features(file)?;
    features.check_origin(file, origin)?;
    let places: HashMap<&str, usize> = gallery.keys().zip(0..).collect();
    features.items = { features.keys.iter() }
        .map(|key| {
            let place = places.get(key.as_str()).copied();
            place.with_context(|| {
                format!(
                    "{}: expected features of the images of --gallery, found those of `{key}`, which is not among them",
                    file.display()
                )
            })
        })
        .collect::<Result<_>>()?;
    let known: HashSet<usize> = features.items.iter().copied().collect();
    let missing = (0..gallery.len()).find(|place| !known.contains(place));
    if let Some(missing) = missing.filter(|_| !keep_going) {
        bail!(
            "{}: expected features of the {} of --gallery, found {}; the first one missing is `{}`\n  hint: merge \
             the features of all parts, or give --keep-going to search those that there are",
            file.display(),
            counted(gallery.len(), "image"),
            known.len(),
            gallery.key(missing)
        );
    }
    Ok(features)
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
