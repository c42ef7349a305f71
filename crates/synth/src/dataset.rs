//! Whole data sets of drawn people on disk.
//!
//! ```text
//! OUT/synth.json                            the settings; `finished` once everything is there
//!     market/bounding_box_train/0001_c1s1_000001_00.jpg    identities to train on (1 to n), every camera
//!     market/query/                         other identities: the first shot of each camera
//!     market/bounding_box_test/             their other shots, and distractors (0000)
//!     attributes.csv                        image,split, then one column of 0/1 per value: `upper_colour.red`;
//!                                           yes/no questions have `headwear.yes` only
//!     parsing.csv, labels.txt, masks/       image,mask,split; PNG masks, one byte a pixel
//!     person_keypoints_{train,val}.json     COCO keypoints of the same crops
//!     scenes/images/, scenes/{train,val}.json   CityPersons-style, with `pid` for person search (-1 = nobody known)
//!                                           and keypoints
//!     unlabelled/unlabelled-000.tar         further people, for pre-training
//!     truth/                                what is true of these, as a store of labels ([`crate::truth_labels`]):
//!                                           `clasp pretrain --set data.labels=OUT/truth`
//! ```
//!
//! All tasks read the same crops. Split `train` holds the people of `bounding_box_train`, `val` those of `query` and
//! `bounding_box_test`: no person is in both. Every picture depends on the seed and its own name only, so threads and
//! interruptions change nothing: a run that was killed goes on and ends with the same files.

use std::io;
use std::path::Path;

use fs_err as fs;
use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::camera::Camera;
use crate::ground_truth::{truth_labels, truth_meta};
use crate::person::appearance::{ATTRIBUTES, Attributes, Person};
use crate::render::{Drawn, Shot, draw};
use crate::scene::{Scene, draw_scene};
use clasp_data::image::{encode_jpeg, encode_label_png};
use clasp_data::labels::{self, Calibration, LabelError, Labels, StoreMeta};
use clasp_data::layouts::coco::COCO_JOINTS;
use clasp_data::part;
use clasp_data::vocabulary::VocabularyError;
use clasp_data::{Rng, atomic_write, atomic_write_unsynced, rng_for};

/// Pictures drawn between two reports of progress; also bounds the memory.
const CHUNK: usize = 64;
/// Images in a tar of unlabelled people.
const SHARD: usize = 1000;

/// What to draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthConfig {
    /// Identities in `bounding_box_train`.
    pub train_identities: usize,
    /// Other identities in `query` and `bounding_box_test`.
    pub test_identities: usize,
    /// Cameras; each sees every identity. At most 9, one digit of Market-1501's names.
    pub cameras: usize,
    /// Shots of an identity by a camera.
    pub shots: usize,
    /// Crops of people who are no query, in `bounding_box_test`.
    pub distractors: usize,
    /// Crops of further people in tars, without labels.
    pub unlabelled: usize,
    /// Street scenes; a quarter of them goes to `val`.
    pub scenes: usize,
    /// Height of a crop.
    pub height: usize,
    /// Width of a crop.
    pub width: usize,
    /// Height of a scene.
    pub scene_height: usize,
    /// Width of a scene.
    pub scene_width: usize,
    /// Seed of everything.
    pub seed: u64,
}

impl Default for SynthConfig {
    fn default() -> Self {
        SynthConfig {
            train_identities: 200,
            test_identities: 100,
            cameras: 3,
            shots: 2,
            distractors: 0,
            unlabelled: 0,
            scenes: 20,
            height: 256,
            width: 128,
            scene_height: 480,
            scene_width: 854,
            seed: 0,
        }
    }
}

/// Why a data set was not written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// A file could not be written or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The store of the truth could not be written.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// The built-in vocabulary of the store of the truth cannot be read.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A setting that cannot be.
    #[error("`{field}`: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: usize,
    },
    /// The folder holds a data set with other settings.
    #[error(
        "`{folder}` holds drawn people with other settings ({found})\nhint: choose another folder, or remove this one"
    )]
    OtherSettings {
        /// The folder.
        folder: String,
        /// Its settings.
        found: String,
    },
    /// `synth.json` is not what this program writes.
    #[error("`{file}` cannot be read: {reason}\nhint: choose another folder")]
    Manifest {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynthSummary {
    /// Crops in `bounding_box_train`.
    pub train: usize,
    /// Crops in `query`.
    pub query: usize,
    /// Crops in `bounding_box_test`, distractors included.
    pub gallery: usize,
    /// Crops in the tars.
    pub unlabelled: usize,
    /// Scenes.
    pub scenes: usize,
    /// People in the scenes.
    pub pedestrians: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: String,
    config: SynthConfig,
    finished: Option<SynthSummary>,
}

impl SynthConfig {
    fn check(&self) -> Result<(), SynthError> {
        let within = |field, value: usize, low: usize, high: usize, expected| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(SynthError::Setting {
                    field,
                    expected,
                    found: value,
                })
            }
        };
        within("cameras", self.cameras, 1, 9, "1 to 9")?;
        within("shots", self.shots, 1, 99, "1 to 99")?;
        within(
            "train_identities",
            self.train_identities,
            0,
            1_000_000,
            "at most a million",
        )?;
        within(
            "test_identities",
            self.test_identities,
            0,
            1_000_000,
            "at most a million",
        )?;
        within(
            "distractors",
            self.distractors,
            0,
            10_000_000,
            "at most ten million",
        )?;
        within(
            "unlabelled",
            self.unlabelled,
            0,
            100_000_000,
            "at most a hundred million",
        )?;
        within("scenes", self.scenes, 0, 1_000_000, "at most a million")?;
        within("height", self.height, 32, 2048, "32 to 2048")?;
        within("width", self.width, 16, 2048, "16 to 2048")?;
        within("scene_height", self.scene_height, 64, 4096, "64 to 4096")?;
        within("scene_width", self.scene_width, 64, 4096, "64 to 4096")
    }

    /// The person of an identity, numbered from 1: training identities first.
    pub(super) fn identity(&self, pid: usize) -> Person {
        Person::sample(&mut rng_for(self.seed, 0, &format!("identity {pid}")))
    }

    /// A camera of several that watch the same site from other sides: their scenes overlap.
    pub(super) fn camera(&self, kind: &str, number: usize) -> Camera {
        let site = Camera::site(&mut rng_for(self.seed, 0, &format!("{kind} site")));
        let mut rng = rng_for(self.seed, 0, &format!("{kind} camera {number}"));
        Camera::sample_among(&site, &mut rng)
    }
}

/// One crop to draw.
struct Task {
    pid: usize,
    camera: usize,
    shot: usize,
    folder: &'static str,
    split: &'static str,
}

impl Task {
    fn name(&self) -> String {
        // The fourth field stands for the frame number of the original.
        let frame = if self.pid == 0 {
            self.shot
        } else {
            self.pid * 100 + self.shot
        };
        format!(
            "{:04}_c{}s1_{frame:06}_{:02}",
            self.pid,
            self.camera,
            self.shot % 100
        )
    }
}

/// What remains of a crop once its files are written.
struct Record {
    image: String,
    mask: String,
    split: &'static str,
    attributes: Attributes,
    keypoints: [[f32; 3]; 17],
    bbox: [f32; 4],
    area: u32,
}

/// Draws a data set into a folder, or goes on with one that was begun.
///
/// `progress` is told how many pictures are done, of how many. See the module for what is written.
///
/// # Errors
/// Settings that cannot be, a folder with other settings, or the file system.
pub fn write_dataset(
    folder: &Path,
    config: &SynthConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<SynthSummary, SynthError> {
    config.check()?;
    fs::create_dir_all(folder)?;
    let manifest = folder.join("synth.json");
    let truth = folder.join("truth");
    if let Some(done) = read_manifest(folder, &manifest, config)? {
        // Folders from before there was a store of the truth lack it; it is made then.
        if config.unlabelled == 0 || Calibration::path(&truth).exists() && whole(&truth, config) {
            return Ok(done);
        }
    }
    write_json(
        &manifest,
        &Manifest {
            version: version(),
            config: config.clone(),
            finished: None,
        },
    )?;
    for name in [
        "market/bounding_box_train",
        "market/query",
        "market/bounding_box_test",
        "masks",
        "scenes/images",
    ] {
        fs::create_dir_all(folder.join(name))?;
    }

    let tasks = tasks(config);
    let shards = config.unlabelled.div_ceil(SHARD);
    let total = tasks.len() + config.unlabelled + config.scenes;
    let mut done = 0;
    let cameras: Vec<Camera> = (1..=config.cameras)
        .map(|c| config.camera("crop", c))
        .collect();
    let mut records: Vec<Record> = Vec::with_capacity(tasks.len());
    for chunk in tasks.chunks(CHUNK) {
        let written: Vec<Record> = chunk
            .par_iter()
            .map(|task| write_crop(folder, config, &cameras, task))
            .collect::<Result<_, SynthError>>()?;
        records.extend(written);
        done += chunk.len();
        progress(done, total);
    }
    write_tables(folder, config, &records)?;

    if shards > 0 {
        fs::create_dir_all(folder.join("unlabelled"))?;
    }
    let meta = truth_meta()?;
    for shard in 0..shards {
        let range = shard * SHARD..((shard + 1) * SHARD).min(config.unlabelled);
        let name = shard_name(shard);
        let path = folder.join(format!("unlabelled/{name}.tar"));
        if !path.exists() || !truth.join(format!("{name}.parquet")).exists() {
            let labels = write_shard(&path, config, &meta, range.clone(), &mut |n| {
                progress(done + n, total)
            })?;
            labels::write_shard(&truth, &name, &meta, &labels)?;
        }
        done += range.len();
        progress(done, total);
    }
    if shards > 0 {
        Calibration::of_folder(&truth)?.write(&truth)?;
    }

    let pedestrians = write_scenes(folder, config, &mut |n| progress(done + n, total))?;
    let count = |name: &str| tasks.iter().filter(|t| t.folder == name).count();
    let summary = SynthSummary {
        train: count("bounding_box_train"),
        query: count("query"),
        gallery: count("bounding_box_test"),
        unlabelled: config.unlabelled,
        scenes: config.scenes,
        pedestrians,
    };
    write_json(
        &manifest,
        &Manifest {
            version: version(),
            config: config.clone(),
            finished: Some(summary.clone()),
        },
    )?;
    Ok(summary)
}

/// Name of a tar of unlabelled people and of its labels.
fn shard_name(shard: usize) -> String {
    format!("unlabelled-{shard:03}")
}

/// Whether the labels of every shard are there; each file is whole.
fn whole(truth: &Path, config: &SynthConfig) -> bool {
    (0..config.unlabelled.div_ceil(SHARD))
        .all(|shard| truth.join(shard_name(shard) + ".parquet").exists())
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// The summary of a finished data set with the same settings; none if there is none or it is unfinished.
fn read_manifest(
    folder: &Path,
    file: &Path,
    config: &SynthConfig,
) -> Result<Option<SynthSummary>, SynthError> {
    if !file.exists() {
        return Ok(None);
    }
    let found: Manifest =
        serde_json::from_slice(&fs::read(file)?).map_err(|error| SynthError::Manifest {
            file: file.display().to_string(),
            reason: error.to_string(),
        })?;
    if found.config != *config || found.version != version() {
        let found = serde_json::to_string(&found.config).unwrap_or_default();
        return Err(SynthError::OtherSettings {
            folder: folder.display().to_string(),
            found,
        });
    }
    Ok(found.finished)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SynthError> {
    atomic_write(path, |out| {
        serde_json::to_writer(out, value).map_err(io::Error::from)
    })?;
    Ok(())
}

fn tasks(config: &SynthConfig) -> Vec<Task> {
    let mut tasks = Vec::new();
    for pid in 1..=config.train_identities + config.test_identities {
        let train = pid <= config.train_identities;
        for camera in 1..=config.cameras {
            for shot in 0..config.shots {
                // With a single shot a camera, the first camera asks and the others are searched.
                let asks = shot == 0 && (config.shots > 1 || camera == 1);
                let (folder, split) = match (train, asks) {
                    (true, _) => ("bounding_box_train", "train"),
                    (false, true) => ("query", "val"),
                    (false, false) => ("bounding_box_test", "val"),
                };
                tasks.push(Task {
                    pid,
                    camera,
                    shot,
                    folder,
                    split,
                });
            }
        }
    }
    for shot in 0..config.distractors {
        tasks.push(Task {
            pid: 0,
            camera: 1 + shot % config.cameras,
            shot,
            folder: "bounding_box_test",
            split: "val",
        });
    }
    tasks
}

/// Writes unless it is there: a file under its final name is whole.
fn write_new(path: &Path, bytes: impl FnOnce() -> Vec<u8>) -> Result<(), SynthError> {
    if !path.exists() {
        let bytes = bytes();
        atomic_write_unsynced(path, |out| out.write_all(&bytes))?;
    }
    Ok(())
}

fn write_crop(
    folder: &Path,
    config: &SynthConfig,
    cameras: &[Camera],
    task: &Task,
) -> Result<Record, SynthError> {
    let name = task.name();
    let person = if task.pid == 0 {
        Person::sample(&mut rng_for(
            config.seed,
            0,
            &format!("distractor {}", task.shot),
        ))
    } else {
        config.identity(task.pid)
    };
    let camera = &cameras[task.camera - 1];
    let shot = Shot::with_camera(&person, camera, &mut rng_for(config.seed, 1, &name));
    let Drawn {
        image,
        parts,
        keypoints,
        bbox_xywh,
        area,
        attributes,
        ..
    } = draw(&person, &shot, config.height, config.width);
    let image_path = format!("market/{}/{name}.jpg", task.folder);
    let mask_path = format!("masks/{name}.png");
    write_new(&folder.join(&image_path), || {
        encode_jpeg(&image, camera.quality)
    })?;
    write_new(&folder.join(&mask_path), || {
        encode_label_png(&parts, config.height, config.width)
    })?;
    Ok(Record {
        image: image_path,
        mask: mask_path,
        split: task.split,
        attributes,
        keypoints,
        bbox: bbox_xywh,
        area,
    })
}

fn category() -> serde_json::Value {
    // COCO's own bones, joints counted from 1.
    let skeleton = [
        [16, 14],
        [14, 12],
        [17, 15],
        [15, 13],
        [12, 13],
        [6, 12],
        [7, 13],
        [6, 7],
        [6, 8],
        [7, 9],
        [8, 10],
        [9, 11],
        [2, 3],
        [1, 2],
        [1, 3],
        [2, 4],
        [3, 5],
        [4, 6],
        [5, 7],
    ];
    json!({ "id": 1, "name": "person", "keypoints": COCO_JOINTS, "skeleton": skeleton })
}

/// Pixels to a hundredth, as COCO writes them.
fn hundredths(value: f32) -> f64 {
    (f64::from(value) * 100.0).round() / 100.0
}

fn flat(keypoints: &[[f32; 3]; 17]) -> (Vec<f64>, usize) {
    let labelled = keypoints.iter().filter(|k| k[2] > 0.0).count();
    (
        keypoints.iter().flatten().map(|v| hundredths(*v)).collect(),
        labelled,
    )
}

fn write_tables(folder: &Path, config: &SynthConfig, records: &[Record]) -> Result<(), SynthError> {
    let columns: Vec<(&str, &str)> = ATTRIBUTES
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (*name, *value)))
        .filter(|(_, value)| *value != "no")
        .collect();
    atomic_write(&folder.join("attributes.csv"), |out| {
        write!(out, "image,split")?;
        for (name, value) in &columns {
            write!(out, ",{name}.{value}")?;
        }
        writeln!(out)?;
        for record in records {
            write!(out, "{},{}", record.image, record.split)?;
            for (name, value) in &columns {
                write!(
                    out,
                    ",{}",
                    u8::from(record.attributes.get(name) == Some(value))
                )?;
            }
            writeln!(out)?;
        }
        Ok(())
    })?;
    atomic_write(&folder.join("labels.txt"), |out| {
        out.write_all((part::NAMES.join("\n") + "\n").as_bytes())
    })?;
    atomic_write(&folder.join("parsing.csv"), |out| {
        writeln!(out, "image,mask,split")?;
        for record in records {
            writeln!(out, "{},{},{}", record.image, record.mask, record.split)?;
        }
        Ok(())
    })?;
    for split in ["train", "val"] {
        let own: Vec<&Record> = records.iter().filter(|r| r.split == split).collect();
        let images: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(i, r)| json!({ "id": i + 1, "file_name": r.image, "height": config.height, "width": config.width }))
            .collect();
        let annotations: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let (keypoints, labelled) = flat(&r.keypoints);
                json!({
                    "id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": r.bbox.map(hundredths), "area": r.area,
                    "iscrowd": 0, "keypoints": keypoints, "num_keypoints": labelled,
                })
            })
            .collect();
        let file =
            json!({ "images": images, "annotations": annotations, "categories": [category()] });
        write_json(
            &folder.join(format!("person_keypoints_{split}.json")),
            &file,
        )?;
    }
    Ok(())
}

/// The `index`-th of an endless row of people, each seen once by a camera of its own, as JPEG with its name.
#[must_use]
pub fn unlabelled(seed: u64, index: u64, height: usize, width: usize) -> (String, Vec<u8>) {
    let (key, drawn, quality) = draw_unlabelled(seed, index, height, width);
    (format!("{key}.jpg"), encode_jpeg(&drawn.image, quality))
}

/// Key, picture with its truth, and JPEG quality of one of [`unlabelled`].
pub(super) fn draw_unlabelled(
    seed: u64,
    index: u64,
    height: usize,
    width: usize,
) -> (String, Drawn, u8) {
    let mut rng = rng_for(seed, 0, &format!("unlabelled {index}"));
    let person = Person::sample(&mut rng);
    let shot = Shot::sample(&person, &mut rng);
    let drawn = draw(&person, &shot, height, width);
    (format!("{index:08}"), drawn, shot.camera.quality)
}

/// Writes a tar of unlabelled people and returns what is true of them, in its order.
fn write_shard(
    path: &Path,
    config: &SynthConfig,
    meta: &StoreMeta,
    range: std::ops::Range<usize>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Labels>, SynthError> {
    let mut labels = Vec::with_capacity(range.len());
    atomic_write(path, |out| {
        let mut tar = tar::Builder::new(out);
        let start = range.start;
        for first in range.clone().step_by(CHUNK) {
            let chunk: Vec<(String, Vec<u8>, Labels)> = (first..(first + CHUNK).min(range.end))
                .into_par_iter()
                .map(|index| {
                    let (height, width) = (config.height, config.width);
                    let (key, drawn, quality) =
                        draw_unlabelled(config.seed, index as u64, height, width);
                    let labels = truth_labels(&key, &drawn, meta);
                    let bytes = encode_jpeg(&drawn.image, quality);
                    (format!("{key}.jpg"), bytes, labels)
                })
                .collect();
            for (name, bytes, _) in &chunk {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(0);
                tar.append_data(&mut header, name, bytes.as_slice())?;
            }
            progress(first + chunk.len() - start);
            labels.extend(chunk.into_iter().map(|(_, _, labels)| labels));
        }
        tar.finish()
    })?;
    Ok(labels)
}

/// One scene with the identities of its people (-1: not an identity of this set).
fn scene(
    config: &SynthConfig,
    cameras: &[Camera],
    index: usize,
    val: bool,
) -> (Scene, Vec<i64>, usize) {
    let mut rng: Rng = rng_for(config.seed, 0, &format!("scene {index}"));
    let camera = index % cameras.len();
    let (first, count) = if val {
        (config.train_identities + 1, config.test_identities)
    } else {
        (1, config.train_identities)
    };
    let mut people: Vec<Person> = Vec::new();
    let mut pids: Vec<i64> = Vec::new();
    for _ in 0..rng.random_range(3..=10u32) {
        let pid = (count > 0 && rng.random_bool(0.7)).then(|| first + rng.random_range(0..count));
        match pid {
            Some(pid) if !pids.contains(&(pid as i64)) => {
                people.push(config.identity(pid));
                pids.push(pid as i64);
            }
            _ => {
                people.push(Person::sample(&mut rng));
                pids.push(-1);
            }
        }
    }
    let list: Vec<&Person> = people.iter().collect();
    let scene = draw_scene(
        &list,
        &cameras[camera],
        rng.random(),
        config.scene_height,
        config.scene_width,
    );
    (scene, pids, camera + 1)
}

fn write_scenes(
    folder: &Path,
    config: &SynthConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<usize, SynthError> {
    let cameras: Vec<Camera> = (1..=config.cameras)
        .map(|c| config.camera("scene", c))
        .collect();
    let val_from = config.scenes - config.scenes / 4;
    let mut total = 0;
    let mut done = 0;
    for (split, range) in [("train", 0..val_from), ("val", val_from..config.scenes)] {
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        let indices: Vec<usize> = range.collect();
        for chunk in indices.chunks(CHUNK / 8) {
            let scenes: Vec<_> = chunk
                .par_iter()
                .map(|&index| {
                    let (scene, pids, camera) = scene(config, &cameras, index, split == "val");
                    let name = format!("c{camera}_{index:06}.jpg");
                    write_new(&folder.join("scenes/images").join(&name), || {
                        encode_jpeg(&scene.image, cameras[camera - 1].quality.max(75))
                    })?;
                    Ok((name, camera, scene.people, pids))
                })
                .collect::<Result<_, SynthError>>()?;
            for (name, camera, people, pids) in scenes {
                let image_id = images.len() + 1;
                images.push(json!({
                    "id": image_id, "file_name": name, "height": config.scene_height, "width": config.scene_width,
                    "camera": camera,
                }));
                for p in people {
                    let (keypoints, labelled) = flat(&p.keypoints);
                    annotations.push(json!({
                        "id": annotations.len() + 1, "image_id": image_id, "category_id": 1,
                        "bbox": p.bbox_xywh.map(hundredths), "vis_bbox": p.visible_xywh.map(hundredths),
                        "vis_ratio": (f64::from(p.visible) * 1e4).round() / 1e4, "height": hundredths(p.bbox_xywh[3]),
                        "ignore": u8::from(p.ignore), "iscrowd": 0, "area": p.area, "pid": pids[p.person],
                        "keypoints": keypoints, "num_keypoints": labelled,
                    }));
                }
            }
            done += chunk.len();
            progress(done);
        }
        total += annotations.len();
        let file =
            json!({ "images": images, "annotations": annotations, "categories": [category()] });
        write_json(&folder.join(format!("scenes/{split}.json")), &file)?;
    }
    Ok(total)
}
