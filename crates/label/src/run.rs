//! The labelling run: images in, a folder of label files out.
//!
//! The unit that is kept is the shard of the images: its labels are one file, written under a temporary name and
//! renamed when whole. A run that was killed goes on after the shards that are there. The unit of work is a batch of
//! neighbouring images of one shard, so every batch holds the same images whatever the threads, the interruptions and
//! the part `i/n` of the corpus, and the files are the same to the byte. `_label.toml` beside them holds the settings,
//! and a run with others into the same folder is refused.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clasp_data::atomic_write;
use clasp_data::image::{self, Limits};
use clasp_data::labels::{self, Labels};
use clasp_data::source::{Source, Unreadable};
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

/// Labels that came for a shard so far, by job.
struct Partial {
    waiting: usize,
    labels: Vec<(usize, Vec<Labels>)>,
}

/// Labels all images of `source` (or part `i` of `n` of them) into `options.folder`, going on after what is there.
///
/// `progress` is called on the calling thread; when it returns `Break` the run stops, keeping the shards that are
/// whole. The files do not depend on `options.workers`, nor on interruptions.
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
    let source = &source.shard(index, count);
    let total = source.len();
    let meta = labeller.meta();
    fs_err::create_dir_all(&options.folder)?;

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
    let finished: BTreeSet<String> = labels::finished_shards(&options.folder, meta)?;
    let mut open = Vec::new();
    let mut failures: Vec<(usize, String)> = Vec::new();
    let mut done = 0;
    for shard in source.shards() {
        if finished.contains(&shard.name) {
            let rows = check_keys(&options.folder, source, &shard.name, &shard.range)?;
            report.kept += rows;
            report.unreadable += shard.range.len() - rows;
            report.shards += 1;
            done += shard.range.len();
        } else {
            open.push(shard);
        }
    }
    // The verdict on unreadable images must not depend on where a run was interrupted, so those of earlier runs count.
    let mut readable = Unreadable::default();
    (0..report.kept).for_each(|_| readable.ok());
    (0..report.unreadable)
        .for_each(|_| readable.fail("an image of an earlier run", "not in the labels"));
    if report.shards > 0 {
        let resumed = Progress::Resumed {
            shards: report.shards,
            images: done,
        };
        report.stopped = progress(resumed).is_break();
    }

    let batch = labeller.batch().max(1);
    let jobs: Vec<Job> = open
        .iter()
        .enumerate()
        .flat_map(|(index, shard)| {
            let end = shard.range.end;
            let images = move |start| start..end.min(start + batch);
            shard.range.clone().step_by(batch).map(move |start| Job {
                shard: index,
                images: images(start),
            })
        })
        .collect();
    let mut partial: Vec<Partial> = open
        .iter()
        .map(|shard| Partial {
            waiting: shard.range.len().div_ceil(batch),
            labels: Vec::new(),
        })
        .collect();

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

        let outcome = (|| {
            let mut left = jobs.len();
            while left > 0 && !stop.load(Ordering::Relaxed) {
                // All senders gone with work left: a worker panicked.
                let batch = receiver.recv().map_err(|_| Error::Worker)??;
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
                let shard = &mut partial[job.shard];
                shard.labels.push((batch.job, batch.labels));
                shard.waiting -= 1;
                if shard.waiting == 0 {
                    let mut batches = std::mem::take(&mut shard.labels);
                    batches.sort_by_key(|&(job, _)| job);
                    let labels: Vec<Labels> =
                        batches.into_iter().flat_map(|(_, labels)| labels).collect();
                    let name = &open[job.shard].name;
                    labels::write_shard(&options.folder, name, meta, &labels)?;
                    report.shards += 1;
                    flow = either(
                        flow,
                        progress(Progress::Written {
                            shard: name,
                            labels: labels.len(),
                        }),
                    );
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
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
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
            let prepare = |(image, size)| (labeller.prepare(&image), size);
            (index, decode(source, index, limits).map(prepare))
        })
        .collect();
    let mut pixels = Vec::new();
    let (mut read, mut failures) = (Vec::new(), Vec::new());
    for (index, image) in prepared {
        match image {
            Ok((mut values, size)) => {
                pixels.append(&mut values);
                read.push((index, size));
            }
            Err(reason) => failures.push((index, reason)),
        }
    }
    if read.is_empty() {
        return Ok((Vec::new(), failures));
    }
    let keys: Vec<&str> = read.iter().map(|&(index, _)| source.key(index)).collect();
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
        .map(|(labels, &(index, (height, width)))| Labels {
            key: source.key(index).to_owned(),
            width,
            height,
            parts: labels.map.parts,
            part_confidence: labels.map.confidence,
            attributes: labels.attributes,
        })
        .collect();
    Ok((labels, failures))
}

/// An image with its height and width as the store keeps them, or why there is none.
fn decode(
    source: &Source,
    index: usize,
    limits: &Limits,
) -> Result<(image::Rgb, (u16, u16)), String> {
    let bytes = source.read(index).map_err(|error| error.to_string())?;
    let image = image::decode(&bytes, limits).map_err(|error| error.to_string())?;
    match (u16::try_from(image.height), u16::try_from(image.width)) {
        (Ok(height), Ok(width)) => Ok((image, (height, width))),
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

/// The number of labels in a finished shard, after checking that they are of these images.
fn check_keys(
    folder: &Path,
    source: &Source,
    shard: &str,
    range: &Range<usize>,
) -> Result<usize, Error> {
    let keys = labels::shard_keys(folder, shard)?;
    let other = |found: String| Error::OtherImages {
        folder: folder.to_owned(),
        shard: shard.to_owned(),
        found,
    };
    // Labels keep the order of the images, so one walk over both is enough.
    let mut images = range.clone();
    for key in &keys {
        if !images.any(|index| source.key(index) == key) {
            return Err(other(format!(
                "the key `{key}`, which is not among the images of this shard or not in their order"
            )));
        }
    }
    Ok(keys.len())
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
        assert_eq!(expected.len(), 4, "{:?}", expected.keys());
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
        let source = images(&folder.path().join("images"), 3, 7);
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
        assert!(report.stopped && report.shards == 1, "{report:?}");
        assert!(files(&out).len() == 2);
        let mut resumed = None;
        let mut note = |progress: Progress<'_>| {
            if let Progress::Resumed { shards, images } = progress {
                resumed = Some((shards, images));
            }
            ControlFlow::Continue(())
        };
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut note).unwrap();
        assert_eq!((report.kept, report.labelled, report.shards), (7, 14, 3));
        assert_eq!(resumed, Some((1, 7)));
        assert!(files(&out) == expected);
        // And once more: there is nothing to do.
        let report = run(&source, &labeller, &RunOptions::new(&out, 2), &mut {
            GO_ON
        })
        .unwrap();
        assert_eq!((report.kept, report.labelled), (21, 0));
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
        assert_eq!((report.labelled, report.unreadable, keys.len()), (18, 2, 2));
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
