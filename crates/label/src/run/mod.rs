//! The labeling run: from images to a folder of label files.
//!
//! The labels of a shard of the images are one file, written under a temporary name and renamed
//! when complete. Finished batches of an incomplete shard are saved every [`PIECE`] images and when
//! the run stops, as pieces in `_pieces`, which the complete file replaces. A run that was killed
//! resumes from these files. The unit of work is a batch of neighboring images of one shard, so
//! batches do not depend on threads, interruptions or the part `i/n` of the images, and the files
//! are the same to the byte. `_label.toml` beside them holds the settings; a run with other
//! settings into the same folder is refused.
//!
//! Unreadable images are not recorded: a later run tries them again, and labels their shard again
//! if one has become readable. A file that another program changed is kept as it is.

mod batch;
mod settings;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clasp_data::atomic::{FolderLock, name_in_temporary, remove_abandoned_where};
use clasp_data::image::Limits;
use clasp_data::labels::{self, Labels, StoreMeta};
use clasp_data::source::{Shard, Source, UnreadableImages, too_many_unreadable};
use serde::Serialize;

use self::batch::{is_readable, label_batch};
use self::settings::check_settings;
use self::shard::{
    KeptLabels, OpenShard, PIECES, Piece, pieces_in_order, read_kept, remove, remove_empty,
};
use crate::labeler::Labeler;
use crate::parts::IGNORE;
use crate::{Error, pool};

/// How a run works; the labels do not depend on it.
#[derive(Debug, Clone)]
pub struct LabelRunConfig {
    /// Folder of the labels; made if it is missing.
    pub folder: PathBuf,
    /// Part `i` of `n` of the images, counted from 0.
    pub shard: (usize, usize),
    /// Threads, divided by [`Labeler::shares`]: each replica decodes and labels whole batches.
    pub workers: usize,
    /// Skip unreadable images even if they are more than 5 %.
    pub skip_unreadable: bool,
    /// Largest accepted images.
    pub limits: Limits,
}

impl LabelRunConfig {
    /// All images into `folder`, with `workers` threads and the default limits.
    pub fn new(folder: &Path, workers: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            shard: (0, 1),
            workers,
            skip_unreadable: false,
            limits: Limits::default(),
        }
    }
}

/// Progress of a run.
#[derive(Debug)]
pub enum LabelProgress<'a> {
    /// Labels of an earlier run are kept.
    Resumed {
        /// Shards that are kept.
        shards: usize,
        /// Images in them.
        images: usize,
    },
    /// This part has no image, as there are fewer shards than parts.
    Empty {
        /// Shards of all images.
        shards: usize,
        /// Number of parts.
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
        /// Images of this part.
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
    /// A shard is complete and on disk.
    Written {
        /// Its name.
        shard: &'a str,
        /// Its labels.
        labels: usize,
    },
}

/// Summary of a run.
#[derive(Debug, Clone, Serialize)]
pub struct LabelRunReport {
    /// Images of this part.
    pub images: usize,
    /// Images that this run labeled.
    pub labeled: usize,
    /// Labels of earlier runs.
    pub kept: usize,
    /// Images that could not be read, those of earlier runs included.
    pub unreadable: usize,
    /// Key of each image that this run could not read, and why, in the order of the images.
    pub failures: Vec<(String, String)>,
    /// Images without a labeled position: no confidence anywhere, or skipped by k-means.
    pub without_parts: usize,
    /// Complete shards of this part.
    pub shards: usize,
    /// Seconds of this run.
    pub seconds: f64,
    /// Images a second of this run.
    pub per_second: f64,
    /// True if `progress` stopped the run.
    pub stopped: bool,
}

impl LabelRunReport {
    fn new(images: usize) -> Self {
        Self {
            images,
            labeled: 0,
            kept: 0,
            unreadable: 0,
            failures: Vec::new(),
            without_parts: 0,
            shards: 0,
            seconds: 0.0,
            per_second: 0.0,
            stopped: false,
        }
    }
}

/// Number of labeled images of an open shard that are saved together as a piece.
pub const PIECE: usize = 256;

/// A batch to label: the index of its open shard, and its images in the source.
struct BatchJob {
    shard: usize,
    images: Range<usize>,
}

/// The labels of a batch, and its images that could not be read, each with the reason.
struct LabeledBatch {
    job: usize,
    labels: Vec<Labels>,
    failures: Vec<(usize, String)>,
}

/// Labels all images of `source` (or part `i` of `n` of them) into `options.folder`, resuming an
/// earlier run.
///
/// `progress` is called on the calling thread; when it returns `Break` the run stops and keeps its
/// finished batches. The files do not depend on `options.workers`, nor on interruptions.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::ops::ControlFlow;
///
/// use burn::tensor::Device;
/// use clasp_data::source::Source;
/// use clasp_data::vocabulary::Vocabulary;
/// use clasp_label::{ClipLabeler, LabelConfig, LabelRunConfig};
///
/// let device = Device::flex();
/// let (clip, info) = clasp_weights::clip::load_clip("openai/clip-vit-base-patch16", &device)?;
/// let vocabulary = Vocabulary::standard()?;
/// let labeler = ClipLabeler::new(clip, &info, &vocabulary, &LabelConfig::default(), &device)?;
/// let options = LabelRunConfig::new("labels".as_ref(), 2);
/// let images = Source::open("people")?;
/// let mut quiet = |_: clasp_label::LabelProgress<'_>| ControlFlow::Continue(());
/// let report = clasp_label::run(&images, &labeler, &options, &mut quiet)?;
/// println!("{} images labeled", report.images);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// - the source is empty, or more than 5 % of its images cannot be read and
///   `options.skip_unreadable` is false (shards that were written stay);
/// - the folder holds labels of another vocabulary, model, grid or method, or of other images;
/// - a file cannot be written, for instance on a full disk: nothing that was written before is
///   lost;
/// - the network failed.
pub fn run<L: Labeler>(
    source: &Source,
    labeler: &L,
    options: &LabelRunConfig,
    progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
) -> Result<LabelRunReport, Error> {
    let started = Instant::now();
    if source.is_empty() {
        return Err(Error::Empty {
            place: "labeling".into(),
            expected: "images",
        });
    }
    let (index, count) = options.shard;
    let all_shards = source.shards().len();
    let source = &source.shard(index, count);
    if options.folder.is_file() {
        return Err(Error::Config {
            key: "out".into(),
            expected: "a folder for the labels".into(),
            found: format!("the file {}", options.folder.display()),
        });
    }
    fs_err::create_dir_all(&options.folder)?;
    // Jobs of different parts share the folder; two jobs of the same part do not.
    let _lock = FolderLock::named(&options.folder, &format!(".lock-{index}-of-{count}"))?;
    let mut run = LabelRun {
        source,
        labeler,
        options,
        meta: labeler.meta(),
        started,
        report: LabelRunReport::new(source.len()),
        open: Vec::new(),
        done: 0,
        unreadable: UnreadableImages::default(),
        failures: Vec::new(),
    };
    check_settings(&options.folder, &labeler.settings())?;
    if source.is_empty() {
        let _ = progress(LabelProgress::Empty {
            shards: all_shards,
            jobs: count,
        });
        return Ok(run.report);
    }
    run.resume(progress)?;
    let jobs = run.jobs()?;
    run.label(&jobs, progress)?;
    if count == 1 {
        remove_empty(&run.pieces_folder())?;
    }
    if !options.skip_unreadable && !run.report.stopped {
        run.unreadable.check()?;
    }
    Ok(run.finish())
}

/// The state of a run.
struct LabelRun<'a, L> {
    source: &'a Source,
    labeler: &'a L,
    options: &'a LabelRunConfig,
    meta: &'a StoreMeta,
    started: Instant,
    report: LabelRunReport,
    /// Shards that are not whole.
    open: Vec<OpenShard>,
    /// Images that are done, those of earlier runs included.
    done: usize,
    unreadable: UnreadableImages,
    /// Images that could not be read, with the reason.
    failures: Vec<(usize, String)>,
}

impl<L: Labeler> LabelRun<'_, L> {
    fn pieces_folder(&self) -> PathBuf {
        self.options.folder.join(PIECES)
    }

    /// Takes over the labels of earlier runs.
    fn resume(
        &mut self,
        progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let shards = self.source.shards();
        let pieces_folder = self.pieces_folder();
        // Those of other shards may be another machine's, which is at work on them.
        let names = |name: String| name_in_temporary(&labels::shard_file(&name)).to_owned();
        let whole: BTreeSet<String> = { shards.iter() }
            .map(|shard| names(shard.name.clone()))
            .collect();
        let of_pieces: Vec<String> = { shards.iter() }
            .map(|shard| names(format!("{}@", shard.name)))
            .map(|name| name.trim_end_matches(".parquet").to_owned())
            .collect();
        remove_abandoned_where(&self.options.folder, |of| whole.contains(of))?;
        remove_abandoned_where(&pieces_folder, |of| {
            of_pieces.iter().any(|piece| of.starts_with(piece.as_str()))
        })?;
        let finished: BTreeSet<String> = labels::finished_shards(&self.options.folder, self.meta)?;
        let pieces: BTreeSet<String> = labels::finished_shards(&pieces_folder, self.meta)?;
        for shard in shards {
            let prefix = format!("{}@", shard.name);
            let of_shard = pieces.iter().filter(|name| name.starts_with(&prefix));
            let of_shard: Vec<String> = of_shard.cloned().collect();
            if finished.contains(&shard.name) && self.keep_whole(&shard, progress)? {
                for name in of_shard {
                    remove(&pieces_folder.join(labels::shard_file(&name)))?;
                }
                continue;
            }
            let shard = self.keep_pieces(shard, &of_shard)?;
            self.open.push(shard);
        }
        // Whether too many images are unreadable must not depend on where a run was interrupted, so
        // those of earlier runs count.
        (0..self.report.kept).for_each(|_| self.unreadable.ok());
        (0..self.report.unreadable).for_each(|_| {
            self.unreadable
                .fail("an image of an earlier run", "not in the labels");
        });
        if self.done > 0 {
            let resumed = LabelProgress::Resumed {
                shards: self.report.shards,
                images: self.done,
            };
            self.report.stopped = progress(resumed).is_break();
        }
        Ok(())
    }

    /// Keeps the labels of a whole shard; false if an image that could not be read is readable now.
    fn keep_whole(
        &mut self,
        shard: &Shard,
        progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        let kept = read_kept(&self.options.folder, self.source, &shard.name, &shard.range)?;
        if kept.edited {
            let _ = progress(LabelProgress::Edited { shard: &shard.name });
        }
        let whole = kept.edited || !self.any_readable(&kept.missing);
        if whole {
            self.report.shards += 1;
            self.keep(&kept, shard.range.len());
        }
        Ok(whole)
    }

    /// The shard with those of its pieces that are still valid; the others are removed.
    fn keep_pieces(&mut self, shard: Shard, names: &[String]) -> Result<OpenShard, Error> {
        let pieces_folder = self.pieces_folder();
        let batch = self.labeler.batch().max(1);
        let mut open = OpenShard::new(shard);
        for (range, name) in pieces_in_order(names, &open.shard, batch) {
            let after = open.done.last().map_or(0, |piece| piece.images.end);
            let kept = match range.filter(|range| range.start >= after) {
                Some(range) => match read_kept(&pieces_folder, self.source, name, &range) {
                    Ok(kept) if self.any_readable(&kept.missing) => None,
                    Ok(kept) => Some((kept, range)),
                    Err(Error::OtherImages { .. }) => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            match kept {
                Some((kept, range)) => {
                    self.keep(&kept, range.len());
                    open.done.push(Piece {
                        images: range,
                        labels: kept.labels,
                        saved: true,
                    });
                }
                // Labeled again.
                None => remove(&pieces_folder.join(labels::shard_file(name)))?,
            }
        }
        Ok(open)
    }

    /// Counts labels of an earlier run.
    fn keep(&mut self, kept: &KeptLabels, images: usize) {
        self.report.kept += kept.labels.len();
        self.report.unreadable += kept.missing.len();
        self.done += images;
    }

    fn any_readable(&self, images: &[usize]) -> bool {
        let readable = |image: &usize| is_readable(self.source, *image, &self.options.limits);
        images.iter().any(readable)
    }

    /// The batches that are still to be labeled; a shard without any is finished.
    fn jobs(&mut self) -> Result<Vec<BatchJob>, Error> {
        let batch = self.labeler.batch().max(1);
        let mut jobs: Vec<BatchJob> = Vec::new();
        for (index, one) in self.open.iter_mut().enumerate() {
            let mut start = one.shard.range.start;
            let before = jobs.len();
            let gaps = one.done.iter().map(|piece| piece.images.clone());
            for images in gaps.chain([one.shard.range.end..one.shard.range.end]) {
                while start < images.start {
                    let end = images.start.min(start + batch);
                    jobs.push(BatchJob {
                        shard: index,
                        images: start..end,
                    });
                    start = end;
                }
                start = images.end;
            }
            one.waiting = jobs.len() - before;
            // The earlier run was killed between the last piece and the complete file.
            if one.waiting == 0 {
                one.finish(&self.options.folder, self.meta)?;
                self.report.shards += 1;
            }
        }
        Ok(jobs)
    }

    /// Labels batches on worker threads and writes the shards as they become whole.
    fn label(
        &mut self,
        jobs: &[BatchJob],
        progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(self.report.stopped);
        let (source, limits) = (self.source, &self.options.limits);
        std::thread::scope(|scope| -> Result<(), Error> {
            // Bounded, so that workers wait for a slow disk instead of filling the memory.
            let shares = self.labeler.shares(self.options.workers);
            let (sender, receiver) = mpsc::sync_channel(2 * shares.replicas);
            let mut threads = Vec::new();
            for _ in 0..shares.replicas {
                let (sender, labeler) = (sender.clone(), self.labeler.clone());
                let (next, stop) = (&next, &stop);
                let pool = pool(shares.threads)?;
                threads.push(scope.spawn(move || {
                    pool.install(move || {
                        while !stop.load(Ordering::Relaxed) {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some(job) = jobs.get(index) else { return };
                            let labels = label_batch(source, &labeler, job.images.clone(), limits);
                            let labeled = labels.map(|(labels, failures)| LabeledBatch {
                                job: index,
                                labels,
                                failures,
                            });
                            // The channel is closed when the run has failed.
                            if sender.send(labeled).is_err() {
                                return;
                            }
                        }
                    });
                }));
            }
            drop(sender);

            let mut outcome = self.receive(jobs, &receiver, &stop, progress);
            stop.store(true, Ordering::Relaxed);
            drop(receiver);
            // What is done is kept in any case; the first error is reported.
            let unsaved = |one: &&mut OpenShard| one.waiting > 0 && one.unsaved > 0;
            for one in self.open.iter_mut().filter(unsaved) {
                let saved = one.save_pieces(&self.options.folder, self.meta);
                outcome = outcome.and(saved);
            }
            let panicked = threads
                .into_iter()
                .map(|thread| thread.join())
                .any(|joined| joined.is_err());
            match outcome {
                Ok(()) if panicked => Err(Error::Worker),
                outcome => outcome,
            }
        })
    }

    /// Receives all batches, or those under way when the run is stopped.
    fn receive(
        &mut self,
        jobs: &[BatchJob],
        receiver: &mpsc::Receiver<Result<LabeledBatch, Error>>,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut left = jobs.len();
        while left > 0 {
            let batch = match receiver.recv() {
                Ok(batch) => batch?,
                // After a stop the batches that were under way have come; else a worker panicked.
                Err(_) if self.report.stopped => break,
                Err(_) => return Err(Error::Worker),
            };
            left -= 1;
            let flow = self.add(&jobs[batch.job], batch, progress)?;
            if flow.is_break() && left > 0 {
                self.report.stopped = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
        // The stop may have come when everything was under way.
        self.report.stopped &= left > 0;
        Ok(())
    }

    /// Adds a batch to its shard, which is written when it is whole.
    fn add(
        &mut self,
        job: &BatchJob,
        batch: LabeledBatch,
        progress: &mut dyn FnMut(LabelProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        self.done += job.images.len();
        self.report.labeled += batch.labels.len();
        let without_parts =
            |labels: &&Labels| labels.values.parts.iter().all(|&part| part == IGNORE);
        self.report.without_parts += batch.labels.iter().filter(without_parts).count();
        batch.labels.iter().for_each(|_| self.unreadable.ok());
        let mut flow = ControlFlow::Continue(());
        for (image, reason) in batch.failures {
            let key = self.source.key(image);
            self.unreadable.fail(key, &reason);
            self.report.unreadable += 1;
            let unreadable = LabelProgress::Unreadable {
                key,
                reason: &reason,
            };
            flow = either(flow, progress(unreadable));
            self.failures.push((image, reason));
        }
        // Too many of all images, whatever the rest is like.
        let [failed, all] = [self.report.unreadable, self.report.images].map(|count| count as u64);
        if !self.options.skip_unreadable && too_many_unreadable(failed, all) {
            self.unreadable.check()?;
        }
        let one = &mut self.open[job.shard];
        one.done.push(Piece {
            images: job.images.clone(),
            labels: batch.labels,
            saved: false,
        });
        one.unsaved += job.images.len();
        one.waiting -= 1;
        if one.waiting == 0 {
            let labels = one.finish(&self.options.folder, self.meta)?;
            self.report.shards += 1;
            let written = LabelProgress::Written {
                shard: &one.shard.name,
                labels,
            };
            flow = either(flow, progress(written));
        } else if one.unsaved >= PIECE {
            one.save_pieces(&self.options.folder, self.meta)?;
        }
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let images = LabelProgress::Images {
            done: self.done,
            total: self.report.images,
            per_second: self.report.labeled as f64 / seconds,
        };
        Ok(either(flow, progress(images)))
    }

    /// The report, with the unreadable images in the order of the source.
    fn finish(mut self) -> LabelRunReport {
        // The threads finish in any order.
        self.failures.sort_unstable();
        self.report.failures = { self.failures.into_iter() }
            .map(|(image, reason)| (self.source.key(image).to_owned(), reason))
            .collect();
        self.report.seconds = self.started.elapsed().as_secs_f64();
        self.report.per_second = self.report.labeled as f64 / self.report.seconds.max(1e-9);
        self.report
    }
}

fn either(a: ControlFlow<()>, b: ControlFlow<()>) -> ControlFlow<()> {
    if a.is_break() { a } else { b }
}
