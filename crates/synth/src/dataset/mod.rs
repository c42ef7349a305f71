//! Datasets of synthetic people on disk.
//!
//! ```text
//! OUT/synth.json               the settings; `finished` when everything is written
//!     market/bounding_box_train/0001_c1s1_000001_00.jpg
//!                              training identities (1 to n), every camera
//!     market/query/            other identities: the first shot of each camera
//!     market/bounding_box_test/
//!                              their other shots, and distractors (0000)
//!     attributes.csv           image,split, then a column of 0/1 for each value, `upper_color.red`;
//!                              yes/no questions have the column `headwear.yes` only
//!     parsing.csv, labels.txt, masks/
//!                              image,mask,split; PNG masks, one byte per pixel
//!     person_keypoints_{train,val}.json
//!                              COCO keypoints of the same crops
//!     scenes/images/, scenes/{train,val}.json
//!                              as CityPersons, with `pid` for person search (-1 = unknown person)
//!                              and keypoints
//!     unlabeled/unlabeled-000.tar
//!                              further people, for pre-training
//!     truth/                   their ground truth as a label store
//!                              ([`crate::ground_truth_labels`]):
//!                              `clasp pretrain --set data.labels=OUT/truth`
//! ```
//!
//! All tasks read the same crops. Split `train` holds the people of `bounding_box_train`, `val`
//! those of `query` and `bounding_box_test`: no person is in both. Every picture depends on the
//! seed and its own name only, so threads and interruptions change nothing: a run that was killed
//! is resumed and ends with the same files.

mod config;
mod crops;
mod error;
mod files;
mod scenes;
mod unlabeled;

use std::path::Path;

use clasp_data::labels::{self, Calibration};
use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use config::SynthConfig;
pub use error::SynthError;
pub use unlabeled::unlabeled_jpeg;

use self::crops::{CropRecord, tasks, write_crop, write_tables};
use self::files::write_json;
use self::scenes::write_scenes;
#[cfg(test)]
pub(crate) use self::unlabeled::render_unlabeled;
use self::unlabeled::{SHARD, shard_name, whole, write_shard};
use crate::camera::Camera;
use crate::ground_truth::ground_truth_meta;

/// Pictures rendered between two calls of `progress`; also bounds the memory.
const CHUNK: usize = 64;
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
    pub unlabeled: usize,
    /// Scenes.
    pub scenes: usize,
    /// People in the scenes.
    pub pedestrians: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DatasetManifest {
    version: String,
    config: SynthConfig,
    finished: Option<SynthSummary>,
}

/// Renders a dataset into a folder, or resumes one that is unfinished.
///
/// `progress` receives the numbers of finished and of all pictures. The module documentation lists
/// the files.
///
/// # Errors
/// A setting out of range, a folder with other settings, or a failure of the file system.
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
        // A folder without a label store of the ground truth gets one.
        if config.unlabeled == 0 || Calibration::path(&truth).exists() && whole(&truth, config) {
            return Ok(done);
        }
    }
    write_json(
        &manifest,
        &DatasetManifest {
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
    let shards = config.unlabeled.div_ceil(SHARD);
    let total = tasks.len() + config.unlabeled + config.scenes;
    let mut done = 0;
    let cameras: Vec<Camera> = (1..=config.cameras)
        .map(|c| config.camera("crop", c))
        .collect();
    let mut records: Vec<CropRecord> = Vec::with_capacity(tasks.len());
    for chunk in tasks.chunks(CHUNK) {
        let written: Vec<CropRecord> = chunk
            .par_iter()
            .map(|task| write_crop(folder, config, &cameras, task))
            .collect::<Result<_, SynthError>>()?;
        records.extend(written);
        done += chunk.len();
        progress(done, total);
    }
    write_tables(folder, config, &records)?;

    if shards > 0 {
        fs::create_dir_all(folder.join("unlabeled"))?;
    }
    let meta = ground_truth_meta()?;
    for shard in 0..shards {
        let range = shard * SHARD..((shard + 1) * SHARD).min(config.unlabeled);
        let name = shard_name(shard);
        let path = folder.join(format!("unlabeled/{name}.tar"));
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
        unlabeled: config.unlabeled,
        scenes: config.scenes,
        pedestrians,
    };
    write_json(
        &manifest,
        &DatasetManifest {
            version: version(),
            config: config.clone(),
            finished: Some(summary.clone()),
        },
    )?;
    Ok(summary)
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// The summary of a finished dataset with the same settings; `None` if there is none or it is
/// unfinished.
fn read_manifest(
    folder: &Path,
    file: &Path,
    config: &SynthConfig,
) -> Result<Option<SynthSummary>, SynthError> {
    if !file.exists() {
        return Ok(None);
    }
    let found: DatasetManifest =
        serde_json::from_slice(&fs::read(file)?).map_err(|error| SynthError::DatasetManifest {
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
