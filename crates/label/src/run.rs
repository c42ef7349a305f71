//! The labelling run: images in, a folder of label files out.
//!
//! The labels of a shard of the images are one file, written under a temporary name and renamed when whole. What is done
//! of a shard is put away every [`PIECE`] images and at the end of any stop, as pieces in `_pieces`, which the whole file
//! replaces. A run that was killed goes on after what is there. The unit of work is a batch of neighbouring images of one
//! shard, so every batch holds the same images whatever the threads, the interruptions and the part `i/n` of the corpus,
//! and the files are the same to the byte. `_label.toml` beside them holds the settings, and a run with others into the
//! same folder is refused.
//!
//! Nothing is remembered of an image that could not be read: a later run tries it again, and labels its shard again if
//! it can be read now. A file that another program changed is kept as it is.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clasp_data::atomic::{FolderLock, remove_abandoned_where};
use clasp_data::atomic_write;
use clasp_data::image::{self, Limits};
use clasp_data::labels::{self, Labels, StoreMeta, image_digest};
use clasp_data::source::{Shard, Source, UnreadableImages};
use rayon::prelude::*;
use serde::Serialize;

use crate::labeller::Labeller;
use crate::parts::IGNORE;
use crate::{Error, pool};

/// How a run works, as opposed to what the labels are.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Folder of the labels; made if it is missing.
    pub folder: PathBuf,
    /// Part `i` of `n` of the corpus, counted from 0.
    pub shard: (usize, usize),
    /// Threads, shared out as [`Labeller::shares`] says: each copy of the model decodes and labels whole batches.
    pub workers: usize,
    /// Go on when more than 5 % of the images cannot be read.
    pub keep_going: bool,
    /// What an image may be.
    pub limits: Limits,
}

impl RunOptions {
    /// All of the corpus into `folder`, with `workers` threads and the default limits.
    pub fn new(folder: &Path, workers: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            shard: (0, 1),
            workers,
            keep_going: false,
            limits: Limits::default(),
        }
    }
}

/// What a run tells while it works.
#[derive(Debug)]
pub enum Progress<'a> {
    /// An earlier run left whole shards, which are kept.
    Resumed {
        /// Shards that are kept.
        shards: usize,
        /// Images in them.
        images: usize,
    },
    /// This part of the corpus has no image, as there are fewer shards than parts.
    Empty {
        /// Shards of the corpus.
        shards: usize,
        /// Parts that were asked for.
        jobs: usize,
    },
    /// Labels that another program changed are kept.
    Edited {
        /// The shard.
        shard: &'a str,
    },
    /// A batch is done.
    Images {
        /// Images that are done, those of earlier runs included.
        done: usize,
        /// Images of this part of the corpus.
        total: usize,
        /// Images a second of this run.
        per_second: f64,
    },
    /// An image is skipped.
    Unreadable {
        /// Its key.
        key: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// A shard is whole and on disk.
    Written {
        /// Its name.
        shard: &'a str,
        /// Its labels.
        labels: usize,
    },
}

/// What a run did.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// Images of this part of the corpus.
    pub images: usize,
    /// Images that this run labelled.
    pub labelled: usize,
    /// Labels that were there before.
    pub kept: usize,
    /// Images that could not be read, those of earlier runs included.
    pub unreadable: usize,
    /// Key of each image that this run could not read, and why, in the order of the images.
    pub failures: Vec<(String, String)>,
    /// Images without a single labelled cell: not sure anywhere, or skipped by k-means.
    pub without_parts: usize,
    /// Shards of this part of the corpus that are whole now.
    pub shards: usize,
    /// Seconds of this run.
    pub seconds: f64,
    /// Images a second of this run.
    pub per_second: f64,
    /// True if `progress` asked to stop before all was done.
    pub stopped: bool,
}

/// Images after which what is done of a shard is put away.
pub const PIECE: usize = 256;

/// The folder of pieces in that of the labels. Readers of Parquet folders pass over names that begin with `_`.
const PIECES: &str = "_pieces";

/// A batch: which shard of the list of open ones, and which images of the source.
struct Job {
    shard: usize,
    images: Range<usize>,
}

/// What became of a job.
struct Done {
    job: usize,
    labels: Vec<Labels>,
    failures: Vec<(usize, String)>,
}

/// A shard that is not whole.
struct Open {
    shard: Shard,
    /// Batches that are still to come.
    waiting: usize,
    /// What is done of it.
    done: Vec<Piece>,
    /// Images among those that are not put away yet.
    unsaved: usize,
}

/// Neighbouring images of a shard that are done.
struct Piece {
    /// Images of the source.
    images: Range<usize>,
    /// Labels of those among them that could be read.
    labels: Vec<Labels>,
    /// Whether they are put away.
    saved: bool,
}

impl Open {
    /// Puts away what is done and is not yet, neighbours together.
    fn put_away(&mut self, folder: &Path, meta: &StoreMeta) -> Result<(), Error> {
        self.done.sort_by_key(|piece| piece.images.start);
        let mut joined: Vec<Piece> = Vec::new();
        for piece in std::mem::take(&mut self.done) {
            match joined.last_mut() {
                Some(before)
                    if !before.saved && !piece.saved && before.images.end == piece.images.start =>
                {
                    before.images.end = piece.images.end;
                    before.labels.extend(piece.labels);
                }
                _ => joined.push(piece),
            }
        }
        self.done = joined;
        for at in 0..self.done.len() {
            let name = self.piece_name(&self.done[at].images);
            let piece = &mut self.done[at];
            if !piece.saved {
                labels::write_shard(&folder.join(PIECES), &name, meta, &piece.labels)?;
                piece.saved = true;
            }
        }
        self.unsaved = 0;
        Ok(())
    }

    /// `SHARD@00256-00512` for images 256 to 511 of the shard.
    fn piece_name(&self, images: &Range<usize>) -> String {
        let [from, to] = [images.start, images.end].map(|image| image - self.shard.range.start);
        format!("{}@{from:05}-{to:05}", self.shard.name)
    }

    /// Writes the whole shard in place of its pieces.
    fn finish(&mut self, folder: &Path, meta: &StoreMeta) -> Result<usize, Error> {
        self.done.sort_by_key(|piece| piece.images.start);
        let saved = { self.done.iter() }.filter(|piece| piece.saved);
        let saved: Vec<String> = saved.map(|piece| self.piece_name(&piece.images)).collect();
        let labels = std::mem::take(&mut self.done).into_iter();
        let labels: Vec<Labels> = labels.flat_map(|piece| piece.labels).collect();
        labels::write_shard(folder, &self.shard.name, meta, &labels)?;
        for name in saved {
            remove(&folder.join(PIECES).join(labels::shard_file(&name)))?;
        }
        Ok(labels.len())
    }
}

/// Removes a folder of pieces that holds none. Not where other jobs may be about to write there.
fn remove_empty(pieces: &Path) -> Result<(), Error> {
    if !pieces.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(pieces)? {
        if entry?
            .path()
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            return Ok(());
        }
    }
    Ok(fs_err::remove_dir_all(pieces)?)
}

/// Removes a file; one that is gone is removed.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Labels all images of `source` (or part `i` of `n` of them) into `options.folder`, going on after what is there.
///
/// `progress` is called on the calling thread; when it returns `Break` the run stops, keeping what is done. The files do
/// not depend on `options.workers`, nor on interruptions.
///
/// # Errors
///
/// - the source is empty, or more than 5 % of its images cannot be read and `options.keep_going` is false (shards that
///   were written stay);
/// - the folder holds labels of another vocabulary, model, grid or method, or of other images;
/// - a file cannot be written, for instance on a full disk: nothing that was written before is lost;
/// - the network failed.
pub fn run<L: Labeller>(
    source: &Source,
    labeller: &L,
    options: &RunOptions,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<RunReport, Error> {
    let started = Instant::now();
    if source.is_empty() {
        return Err(Error::Empty {
            place: "labelling".into(),
            expected: "images",
        });
    }
    let (index, count) = options.shard;
    let all_shards = source.shards().len();
    let source = &source.shard(index, count);
    let total = source.len();
    let meta = labeller.meta();
    fs_err::create_dir_all(&options.folder)?;
    // Jobs of one corpus share the folder; two of the same part do not.
    let _lock = FolderLock::named(&options.folder, &format!(".lock-{index}-of-{count}"))?;

    let mut report = RunReport {
        images: total,
        labelled: 0,
        kept: 0,
        unreadable: 0,
        failures: Vec::new(),
        without_parts: 0,
        shards: 0,
        seconds: 0.0,
        per_second: 0.0,
        stopped: false,
    };
    check_settings(&options.folder, &labeller.settings())?;
    if source.is_empty() {
        let _ = progress(Progress::Empty {
            shards: all_shards,
            jobs: count,
        });
        return Ok(report);
    }
    let pieces_folder = options.folder.join(PIECES);
    let mine = source.shards();
    for folder in [&options.folder, &pieces_folder] {
        let files: Vec<String> = (mine.iter())
            .map(|shard| labels::shard_file(&shard.name))
            .map(|name| name.trim_end_matches(".parquet").to_owned())
            .collect();
        remove_abandoned_where(folder, |of| {
            files.iter().any(|file| of.starts_with(file.as_str()))
        })?;
    }
    let finished: BTreeSet<String> = labels::finished_shards(&options.folder, meta)?;
    let pieces: BTreeSet<String> = labels::finished_shards(&pieces_folder, meta)?;
    let batch = labeller.batch().max(1);
    let mut open: Vec<Open> = Vec::new();
    let mut failures: Vec<(usize, String)> = Vec::new();
    let mut done = 0;
    for shard in mine {
        let mut whole = finished.contains(&shard.name);
        if whole {
            let kept = kept(&options.folder, source, &shard.name, &shard.range)?;
            if kept.edited {
                let _ = progress(Progress::Edited { shard: &shard.name });
            }
            // Those that could not be read may be readable now.
            whole = kept.edited
                || !kept
                    .missing
                    .iter()
                    .any(|image| reads(source, *image, &options.limits));
            if whole {
                report.kept += kept.labels.len();
                report.unreadable += kept.missing.len();
                report.shards += 1;
                done += shard.range.len();
            }
        }
        let prefix = format!("{}@", shard.name);
        let of_shard = pieces.iter().filter(|name| name.starts_with(&prefix));
        let of_shard: Vec<String> = of_shard.cloned().collect();
        if whole {
            for name in of_shard {
                remove(&pieces_folder.join(labels::shard_file(&name)))?;
            }
            continue;
        }
        let mut one = Open {
            waiting: 0,
            done: Vec::new(),
            unsaved: 0,
            shard,
        };
        for name in of_shard {
            let range = piece_range(&name[prefix.len()..], &one.shard.range, batch);
            let after = one.done.last().map_or(0, |piece| piece.images.end);
            let fits = range.filter(|range| range.start >= after);
            let kept = fits.map(|range| Ok((kept(&pieces_folder, source, &name, &range)?, range)));
            let kept = kept.transpose().map(|kept: Option<(Kept, _)>| {
                kept.filter(|(kept, _)| {
                    !kept
                        .missing
                        .iter()
                        .any(|image| reads(source, *image, &options.limits))
                })
            });
            match kept {
                Ok(Some((kept, range))) => {
                    report.kept += kept.labels.len();
                    report.unreadable += kept.missing.len();
                    done += range.len();
                    one.done.push(Piece {
                        images: range,
                        labels: kept.labels,
                        saved: true,
                    });
                }
                // What does not fit is done again.
                Ok(None) | Err(Error::OtherImages { .. }) => {
                    remove(&pieces_folder.join(labels::shard_file(&name)))?;
                }
                Err(error) => return Err(error),
            }
        }
        open.push(one);
    }
    // The verdict on unreadable images must not depend on where a run was interrupted, so those of earlier runs count.
    let mut readable = UnreadableImages::default();
    (0..report.kept).for_each(|_| readable.ok());
    (0..report.unreadable)
        .for_each(|_| readable.fail("an image of an earlier run", "not in the labels"));
    if done > 0 {
        let resumed = Progress::Resumed {
            shards: report.shards,
            images: done,
        };
        report.stopped = progress(resumed).is_break();
    }

    let mut jobs: Vec<Job> = Vec::new();
    for (index, one) in open.iter_mut().enumerate() {
        let mut start = one.shard.range.start;
        let before = jobs.len();
        let gaps = one.done.iter().map(|piece| piece.images.clone());
        for images in gaps.chain([one.shard.range.end..one.shard.range.end]) {
            while start < images.start {
                let end = images.start.min(start + batch);
                jobs.push(Job {
                    shard: index,
                    images: start..end,
                });
                start = end;
            }
            start = images.end;
        }
        one.waiting = jobs.len() - before;
        // A kill between the last piece and the whole file.
        if one.waiting == 0 {
            one.finish(&options.folder, meta)?;
            report.shards += 1;
        }
    }

    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(report.stopped);
    let outcome = std::thread::scope(|scope| -> Result<(), Error> {
        // Bounded, so that workers wait for a slow disk instead of filling the memory.
        let shares = labeller.shares(options.workers);
        let (sender, receiver) = mpsc::sync_channel(2 * shares.replicas);
        let mut threads = Vec::new();
        for _ in 0..shares.replicas {
            let (sender, labeller) = (sender.clone(), labeller.clone());
            let (jobs, next, stop, limits) = (&jobs, &next, &stop, &options.limits);
            let pool = pool(shares.threads)?;
            threads.push(scope.spawn(move || {
                pool.install(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(job) = jobs.get(index) else { return };
                        let done = work(source, &labeller, job.images.clone(), limits).map(
                            |(labels, failures)| Done {
                                job: index,
                                labels,
                                failures,
                            },
                        );
                        // A closed channel: the run has failed and nobody waits for more.
                        if sender.send(done).is_err() {
                            return;
                        }
                    }
                });
            }));
        }
        drop(sender);

        let mut outcome = (|| {
            let mut left = jobs.len();
            while left > 0 {
                let batch = match receiver.recv() {
                    Ok(batch) => batch?,
                    // After a stop the batches that were under way have come; else a worker panicked.
                    Err(_) if report.stopped => break,
                    Err(_) => return Err(Error::Worker),
                };
                left -= 1;
                let job = &jobs[batch.job];
                done += job.images.len();
                report.labelled += batch.labels.len();
                report.without_parts += batch
                    .labels
                    .iter()
                    .filter(|l| l.parts.iter().all(|&p| p == IGNORE))
                    .count();
                let mut flow = ControlFlow::Continue(());
                batch.labels.iter().for_each(|_| readable.ok());
                for (image, reason) in batch.failures {
                    let key = source.key(image);
                    readable.fail(key, &reason);
                    report.unreadable += 1;
                    flow = either(
                        flow,
                        progress(Progress::Unreadable {
                            key,
                            reason: &reason,
                        }),
                    );
                    failures.push((image, reason));
                }
                // More than 5 % of all images, whatever the rest is like.
                if !options.keep_going && report.unreadable * 20 > total {
                    readable.check()?;
                }
                let one = &mut open[job.shard];
                one.done.push(Piece {
                    images: job.images.clone(),
                    labels: batch.labels,
                    saved: false,
                });
                one.unsaved += job.images.len();
                one.waiting -= 1;
                if one.waiting == 0 {
                    let labels = one.finish(&options.folder, meta)?;
                    report.shards += 1;
                    flow = either(
                        flow,
                        progress(Progress::Written {
                            shard: &one.shard.name,
                            labels,
                        }),
                    );
                } else if one.unsaved >= PIECE {
                    one.put_away(&options.folder, meta)?;
                }
                let per_second = report.labelled as f64 / started.elapsed().as_secs_f64().max(1e-9);
                flow = either(
                    flow,
                    progress(Progress::Images {
                        done,
                        total,
                        per_second,
                    }),
                );
                if flow.is_break() && left > 0 {
                    report.stopped = true;
                    stop.store(true, Ordering::Relaxed);
                }
            }
            // Everything may have been under way.
            report.stopped &= left > 0;
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        // However it ended, what is done is kept; the first error is the one to tell.
        for one in open
            .iter_mut()
            .filter(|one| one.waiting > 0 && one.unsaved > 0)
        {
            let put = one.put_away(&options.folder, meta);
            outcome = outcome.and(put);
        }
        let panicked = threads
            .into_iter()
            .map(|thread| thread.join())
            .any(|joined| joined.is_err());
        match outcome {
            Ok(()) if panicked => Err(Error::Worker),
            outcome => outcome,
        }
    });
    outcome?;
    if count == 1 {
        remove_empty(&pieces_folder)?;
    }
    if !options.keep_going && !report.stopped {
        readable.check()?;
    }
    // The threads finish in any order; the report does not.
    failures.sort_unstable();
    report.failures = failures
        .into_iter()
        .map(|(image, reason)| (source.key(image).to_owned(), reason))
        .collect();
    report.seconds = started.elapsed().as_secs_f64();
    report.per_second = report.labelled as f64 / report.seconds.max(1e-9);
    Ok(report)
}

fn either(a: ControlFlow<()>, b: ControlFlow<()>) -> ControlFlow<()> {
    if a.is_break() { a } else { b }
}

/// Reads, decodes and labels a batch. Images that cannot be read are left out and returned with the reason.
#[allow(clippy::type_complexity)]
fn work<L: Labeller>(
    source: &Source,
    labeller: &L,
    images: Range<usize>,
    limits: &Limits,
) -> Result<(Vec<Labels>, Vec<(usize, String)>), Error> {
    let prepared: Vec<_> = images
        .into_par_iter()
        .map(|index| {
            let prepare = |(image, read)| (labeller.prepare(&image), read);
            (index, decode(source, index, limits).map(prepare))
        })
        .collect();
    let mut pixels = Vec::new();
    let (mut read, mut failures) = (Vec::new(), Vec::new());
    for (index, image) in prepared {
        match image {
            Ok((mut values, of_image)) => {
                pixels.append(&mut values);
                read.push((index, of_image));
            }
            Err(reason) => failures.push((index, reason)),
        }
    }
    if read.is_empty() {
        return Ok((Vec::new(), failures));
    }
    let keys: Vec<&str> = read.iter().map(|(index, _)| source.key(*index)).collect();
    let labels = labeller.label(&keys, pixels)?;
    if labels.len() != keys.len() {
        return Err(Error::Network {
            place: "labels of a batch",
            expected: format!("{} of them", keys.len()),
            found: labels.len().to_string(),
        });
    }
    let labels = labels
        .into_iter()
        .zip(&read)
        .map(|(labels, (index, of_image))| Labels {
            key: source.key(*index).to_owned(),
            width: of_image.width,
            height: of_image.height,
            parts: labels.map.parts,
            part_confidence: labels.map.confidence,
            attributes: labels.attributes,
            image_sha256: of_image.digest.clone(),
        })
        .collect();
    Ok((labels, failures))
}

/// What the store keeps of an image.
struct OfImage {
    height: u16,
    width: u16,
    digest: String,
}

/// An image with what the store keeps of it, or why there is none.
fn decode(source: &Source, index: usize, limits: &Limits) -> Result<(image::Rgb, OfImage), String> {
    let bytes = source.read(index).map_err(|error| error.to_string())?;
    let image = image::decode(&bytes, limits).map_err(|error| error.to_string())?;
    match (u16::try_from(image.height), u16::try_from(image.width)) {
        (Ok(height), Ok(width)) => {
            let digest = image_digest(&bytes);
            Ok((
                image,
                OfImage {
                    height,
                    width,
                    digest,
                },
            ))
        }
        _ => Err(format!(
            "expected sides of at most {} pixels, found {}x{}",
            u16::MAX,
            image.height,
            image.width
        )),
    }
}

/// The file with the settings of a store. Its name begins with `_`, so that readers of folders of Parquet pass over it.
const SETTINGS: &str = "_label.toml";

/// Writes the settings into a new store, or checks that they are those of an old one.
fn check_settings(folder: &Path, settings: &toml::Table) -> Result<(), Error> {
    let path = folder.join(SETTINGS);
    let text = match fs_err::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!(
                "# What decided the labels in this folder, besides the vocabulary and the model.\n{settings}"
            );
            return Ok(atomic_write(&path, |out| out.write_all(text.as_bytes()))?);
        }
        text => text?,
    };
    let other = |key: &str, expected: String, found: String| {
        Err(Error::OtherSettings {
            path: path.clone(),
            key: key.to_owned(),
            expected,
            found,
        })
    };
    let there: toml::Table = match toml::from_str(&text) {
        Ok(there) => there,
        Err(error) => return other("the whole file", "TOML".into(), error.to_string()),
    };
    let show =
        |value: Option<&toml::Value>| value.map_or("nothing".to_owned(), ToString::to_string);
    let keys: BTreeSet<&String> = there.keys().chain(settings.keys()).collect();
    match keys
        .into_iter()
        .find(|&key| there.get(key) != settings.get(key))
    {
        Some(key) => other(key, show(there.get(key)), show(settings.get(key))),
        None => Ok(()),
    }
}

/// What a label file holds of some images.
struct Kept {
    labels: Vec<Labels>,
    /// Images that it has no labels of.
    missing: Vec<usize>,
    /// Whether another program wrote or changed it.
    edited: bool,
}

/// The labels of a file, after checking that they are of these images.
fn kept(folder: &Path, source: &Source, shard: &str, range: &Range<usize>) -> Result<Kept, Error> {
    let (labels, edited) = labels::read_shard(folder, shard)?;
    let mut missing = Vec::new();
    // Labels keep the order of the images, so one walk over both is enough.
    let mut images = range.clone();
    for label in &labels {
        loop {
            match images.next() {
                Some(image) if source.key(image) == label.key => break,
                Some(image) => missing.push(image),
                // Whoever edits a file may sort it.
                None if edited => break,
                None => {
                    return Err(Error::OtherImages {
                        folder: folder.to_owned(),
                        shard: shard.to_owned(),
                        found: format!(
                            "the key `{}`, which is not among the images of this shard or not in their order",
                            label.key
                        ),
                    });
                }
            }
        }
    }
    missing.extend(images);
    Ok(Kept {
        labels,
        missing,
        edited,
    })
}

/// Whether an image can be used.
fn reads(source: &Source, image: usize, limits: &Limits) -> bool {
    decode(source, image, limits).is_ok()
}

/// The images of a piece `00256-00512` of a shard, if it is made of whole batches.
fn piece_range(name: &str, shard: &Range<usize>, batch: usize) -> Option<Range<usize>> {
    let (from, to) = name.split_once('-')?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    let whole = from < to
        && to <= shard.len()
        && from.is_multiple_of(batch)
        && (to.is_multiple_of(batch) || to == shard.len());
    whole.then(|| shard.start + from..shard.start + to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LabelConfig;
    use crate::labeller::KMeansLabeller;
    use crate::testing::{files, images, labeller};
    use burn::tensor::Device;
    use clasp_data::labels::{LabelError, Store};
    use std::time::Duration;

    const GO_ON: fn(Progress<'_>) -> ControlFlow<()> = |_| ControlFlow::Continue(());

    /// The files of a run that nothing disturbed.
    fn undisturbed(source: &Source, folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
        let report = run(
            source,
            &labeller(&LabelConfig::default()),
            &RunOptions::new(folder, 1),
            &mut { GO_ON },
        )
        .unwrap();
        assert_eq!(
            (report.labelled, report.kept, report.unreadable),
            (source.len(), 0, 0)
        );
        assert!(!report.stopped);
        files(folder)
    }

    #[test]
    fn labels_do_not_depend_on_threads() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 3, 7);
        let expected = undisturbed(&source, &folder.path().join("one"));
        assert_eq!(expected.len(), 5, "{:?}", expected.keys());
        let three = folder.path().join("three");
        run(
            &source,
            &labeller(&LabelConfig::default()),
            &RunOptions::new(&three, 3),
            &mut { GO_ON },
        )
        .unwrap();
        assert!(files(&three) == expected);
        // What the labels say about the images is there.
        let store = Store::open(&three).unwrap();
        assert_eq!(store.len(), 21);
        let (key, last) = (source.key(20), store.get(source.key(20)).unwrap());
        assert_eq!(
            (last.width, last.height, last.parts.len()),
            (16, 32, 8),
            "{key}"
        );
        // A random CLIP is not sure, yet it must tell images apart.
        let first = store.get(source.key(0)).unwrap();
        assert_ne!(first.attributes, last.attributes);
    }

    #[test]
    fn an_interrupted_run_goes_on_to_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 12, 7);
        let expected = undisturbed(&source, &folder.path().join("whole"));
        let out = folder.path().join("interrupted");
        let labeller = labeller(&LabelConfig::default());
        let mut stop_after_a_shard = |progress: Progress<'_>| match progress {
            Progress::Written { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let report = run(
            &source,
            &labeller,
            &RunOptions::new(&out, 2),
            &mut stop_after_a_shard,
        )
        .unwrap();
        assert!(
            report.stopped && (1..12).contains(&report.shards),
            "{report:?}"
        );
        let whole = report.shards;
        assert!(files(&out).len() == 2 + whole);
        let mut resumed = None;
        let mut note = |progress: Progress<'_>| {
            if let Progress::Resumed { shards, images } = progress {
                resumed = Some((shards, images));
            }
            ControlFlow::Continue(())
        };
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut note).unwrap();
        assert_eq!((report.kept + report.labelled, report.shards), (84, 12));
        // The batches that were under way when it was stopped are kept too.
        assert!(report.kept >= 7, "{report:?}");
        assert_eq!(resumed, Some((whole, report.kept)));
        assert!(files(&out) == expected);
        // And once more: there is nothing to do.
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut {
            GO_ON
        })
        .unwrap();
        assert_eq!((report.kept, report.labelled), (84, 0));
    }

    #[test]
    fn what_is_done_is_put_away_in_the_middle_of_a_shard() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 1, 3 * PIECE / 2);
        assert_eq!(source.shards().len(), 2);
        let expected = undisturbed(&source, &folder.path().join("whole"));
        let out = folder.path().join("interrupted");
        let labeller = labeller(&LabelConfig::default());
        let (mut runs, mut labelled) = (0, 0);
        loop {
            let mut seen = 0;
            // Stop long before the shard is whole, then later.
            let mut stop = |progress: Progress<'_>| match progress {
                Progress::Images { .. } => {
                    seen += 1;
                    match seen {
                        ..5 => ControlFlow::Continue(()),
                        _ => ControlFlow::Break(()),
                    }
                }
                _ => ControlFlow::Continue(()),
            };
            let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut stop).unwrap();
            assert_eq!(report.kept, labelled);
            labelled += report.labelled;
            runs += 1;
            if !report.stopped {
                break;
            }
            // The batches that were under way count too, and none is lost.
            assert!(
                report.labelled >= 5 * labeller.batch().min(16),
                "{report:?}"
            );
        }
        assert!(runs > 2, "{runs}");
        assert_eq!(labelled, source.len());
        assert!(files(&out) == expected && !out.join(PIECES).exists());
    }

    #[test]
    fn images_that_were_away_are_labelled_by_the_next_run_and_edited_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 1, 40);
        let expected = undisturbed(&source, &folder.path().join("whole"));
        let out = folder.path().join("labels");
        let labeller = labeller(&LabelConfig::default());
        let (place, away) = (source.place(7), folder.path().join("away"));
        fs_err::rename(&place, &away).unwrap();
        let options = RunOptions::new(&out, 1);
        let report = run(&source, &labeller, &options, &mut { GO_ON }).unwrap();
        assert_eq!((report.labelled, report.unreadable), (39, 1));
        // Still away: nothing to do.
        let report = run(&source, &labeller, &options, &mut { GO_ON }).unwrap();
        assert_eq!(
            (report.labelled, report.kept, report.unreadable),
            (0, 39, 1)
        );
        fs_err::rename(&away, &place).unwrap();
        let report = run(&source, &labeller, &options, &mut { GO_ON }).unwrap();
        assert_eq!(
            (report.labelled, report.kept, report.unreadable),
            (40, 0, 0)
        );
        assert!(files(&out) == expected);
    }

    #[test]
    fn a_part_without_images_is_told_and_a_part_has_one_job_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 2, 4);
        let labeller = labeller(&LabelConfig::default());
        let out = folder.path().join("labels");
        let mut options = RunOptions::new(&out, 1);
        options.shard = (2, 3);
        let mut told = None;
        let mut note = |progress: Progress<'_>| {
            if let Progress::Empty { shards, jobs } = progress {
                told = Some((shards, jobs));
            }
            ControlFlow::Continue(())
        };
        let report = run(&source, &labeller, &options, &mut note).unwrap();
        assert_eq!((told, report.images), (Some((2, 3)), 0));
        let _lock = FolderLock::named(&out, ".lock-2-of-3").unwrap();
        let error = run(&source, &labeller, &options, &mut { GO_ON }).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        options.shard = (0, 3);
        run(&source, &labeller, &options, &mut { GO_ON }).unwrap();
    }

    /// Not a test of its own: what [`a_killed_run_goes_on_to_the_same_bytes`] starts as a process and kills.
    #[test]
    fn child() {
        let Ok(folder) = std::env::var("CLASP_LABEL_TEST_CHILD") else {
            return;
        };
        let source = source_of(Path::new(&folder));
        let mut slowly = |_: Progress<'_>| {
            std::thread::sleep(Duration::from_millis(30));
            ControlFlow::Continue(())
        };
        let options = RunOptions::new(&Path::new(&folder).join("labels"), 2);
        run(
            &source,
            &labeller(&LabelConfig::default()),
            &options,
            &mut slowly,
        )
        .unwrap();
    }

    fn source_of(folder: &Path) -> Source {
        let shards: Vec<String> = (0..4)
            .map(|i| {
                folder
                    .join(format!("images/shard{i}"))
                    .display()
                    .to_string()
            })
            .collect();
        Source::open(&shards.join(",")).unwrap()
    }

    #[test]
    fn a_killed_run_goes_on_to_the_same_bytes() {
        for whole_shards in [0, 1, 3] {
            let folder = tempfile::tempdir().unwrap();
            let source = images(&folder.path().join("images"), 4, 7);
            let expected = undisturbed(&source, &folder.path().join("whole"));
            let out = folder.path().join("labels");
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["run::tests::child", "--exact"])
                .env("CLASP_LABEL_TEST_CHILD", folder.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let written = || {
                let names = fs_err::read_dir(&out)
                    .into_iter()
                    .flatten()
                    .map(|entry| entry.unwrap().file_name());
                names
                    .filter(|name| !name.as_encoded_bytes().starts_with(b"."))
                    .count()
            };
            // The settings' file is the first.
            while written() < whole_shards + 1 && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // SIGKILL on Unix.
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(written() < 5, "killed too late to test anything");
            run(
                &source,
                &labeller(&LabelConfig::default()),
                &RunOptions::new(&out, 2),
                &mut { GO_ON },
            )
            .unwrap();
            assert!(files(&out) == expected, "after {whole_shards} whole shards");
        }
    }

    #[test]
    fn parts_of_a_corpus_together_are_the_corpus() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 3, 4);
        let expected = undisturbed(&source, &folder.path().join("whole"));
        let out = folder.path().join("parts");
        for index in [2, 0, 1, 3] {
            let options = RunOptions {
                shard: (index, 4),
                ..RunOptions::new(&out, 1)
            };
            let report = run(
                &source,
                &labeller(&LabelConfig::default()),
                &options,
                &mut { GO_ON },
            )
            .unwrap();
            assert_eq!(report.images, if index < 3 { 4 } else { 0 });
        }
        assert!(files(&out) == expected);
    }

    #[test]
    fn other_settings_vocabularies_and_images_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 1, 4);
        let out = folder.path().join("labels");
        let before = undisturbed(&source, &out);
        let again = |source: &Source, config: &LabelConfig| {
            run(source, &labeller(config), &RunOptions::new(&out, 1), &mut {
                GO_ON
            })
            .unwrap_err()
        };

        let config = LabelConfig {
            image_size: Some([48, 24]),
            ..LabelConfig::default()
        };
        let error = again(&source, &config);
        assert!(
            matches!(&error, Error::OtherSettings { key, .. } if key == "image_size"),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("expected [32, 32], found [48, 24]"),
            "{error}"
        );

        // Images of the same names and number of shards with one that was not there.
        let other = tempfile::tempdir().unwrap();
        let others = images(other.path(), 1, 4);
        fs_err::rename(
            other.path().join("shard0/0-001.png"),
            other.path().join("shard0/0-0010.png"),
        )
        .unwrap();
        drop(others);
        let others = Source::open(&other.path().join("shard0").display().to_string()).unwrap();
        let error = again(&others, &LabelConfig::default());
        assert!(matches!(error, Error::OtherImages { .. }), "{error}");
        assert!(error.to_string().contains("0-001"), "{error}");

        // Another vocabulary.
        let mut changed = labeller(&LabelConfig::default());
        changed.meta_mut().vocabulary.parts[1].name = "face".into();
        let error = run(&source, &changed, &RunOptions::new(&out, 1), &mut { GO_ON }).unwrap_err();
        assert!(
            matches!(error, Error::Labels(LabelError::Conflict { .. })),
            "{error}"
        );
        assert!(files(&out) == before);
    }

    #[test]
    fn unreadable_images_are_listed_and_more_than_a_twentieth_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        images(folder.path(), 1, 20);
        let place = folder.path().join("shard0");
        fs_err::write(place.join("0-003.png"), b"not an image").unwrap();
        let source = Source::open(&place.display().to_string()).unwrap();
        let labeller = labeller(&LabelConfig::default());
        let out = folder.path().join("one");
        // One of 20 is just right.
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut {
            GO_ON
        })
        .unwrap();
        assert_eq!((report.labelled, report.unreadable), (19, 1));
        assert!(
            report.failures[0].0.ends_with("0-003"),
            "{:?}",
            report.failures
        );
        // Going on counts what an earlier run could not read.
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut {
            GO_ON
        })
        .unwrap();
        assert_eq!((report.kept, report.unreadable), (19, 1));

        let half = fs_err::read(place.join("0-010.png")).unwrap();
        fs_err::write(place.join("0-010.png"), &half[..half.len() / 2]).unwrap();
        let out = folder.path().join("two");
        let error = run(&source, &labeller, &RunOptions::new(&out, 2), &mut {
            GO_ON
        })
        .unwrap_err();
        assert!(matches!(error, Error::TooManyUnreadable(_)), "{error}");
        let mut keys = Vec::new();
        let mut note = |progress: Progress<'_>| {
            if let Progress::Unreadable { key, .. } = progress {
                keys.push(key.to_owned());
            }
            ControlFlow::Continue(())
        };
        let options = RunOptions {
            keep_going: true,
            ..RunOptions::new(&out, 1)
        };
        let report = run(&source, &labeller, &options, &mut note).unwrap();
        // What the run before it had done was put away.
        assert_eq!((report.kept + report.labelled, report.unreadable), (18, 2));
        assert!(report.kept > 0 && !keys.is_empty());
        assert_eq!(Store::open(&out).unwrap().len(), 18);
    }

    #[test]
    fn kmeans_labels_go_the_same_way() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 2, 5);
        let device = Device::flex();
        // The image itself, shrunk to 8 × 4, as a feature map: it has three channels.
        let features = |images: burn::tensor::Tensor<4>| {
            let [batch, channels, ..] = images.dims();
            images
                .reshape([batch, channels, 8, 4, 4, 4])
                .mean_dim(3)
                .mean_dim(5)
                .reshape([batch, channels, 8, 4])
        };
        let config = LabelConfig {
            grid: [8, 4],
            batch: 2,
            ..LabelConfig::default()
        };
        let labeller =
            KMeansLabeller::new(features, [32, 16], "squares", "", &config, 0, &device).unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let report = run(&source, &labeller, &RunOptions::new(&one, 1), &mut {
            GO_ON
        })
        .unwrap();
        run(&source, &labeller, &RunOptions::new(&two, 2), &mut {
            GO_ON
        })
        .unwrap();
        assert!(files(&one) == files(&two));
        let store = Store::open(&one).unwrap();
        assert_eq!(
            (
                store.len(),
                store.meta.method.as_str(),
                store.meta.vocabulary.parts.len()
            ),
            (10, "kmeans", 4)
        );
        let skipped = store
            .iter()
            .filter(|labels| labels.parts.iter().all(|&part| part == IGNORE))
            .count();
        assert_eq!(skipped, report.without_parts);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 1, 2);
        let file = folder.path().join("file");
        fs_err::write(&file, b"in the way").unwrap();
        let error = run(
            &source,
            &labeller(&LabelConfig::default()),
            &RunOptions::new(&file, 1),
            &mut { GO_ON },
        )
        .unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
