//! Files of a dataset, and the parts of COCO's JSON that crops and scenes share.

use std::io;
use std::path::Path;

use clasp_data::layouts::coco::COCO_JOINTS;
use clasp_data::{atomic_write, atomic_write_unsynced};
use serde::Serialize;
use serde_json::json;

use super::error::SynthError;

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SynthError> {
    atomic_write(path, |out| {
        serde_json::to_writer(out, value).map_err(io::Error::from)
    })?;
    Ok(())
}

/// Writes a file unless it exists: a file under its final name is complete.
pub(super) fn write_new(path: &Path, bytes: impl FnOnce() -> Vec<u8>) -> Result<(), SynthError> {
    if !path.exists() {
        let bytes = bytes();
        atomic_write_unsynced(path, |out| out.write_all(&bytes))?;
    }
    Ok(())
}

pub(super) fn category() -> serde_json::Value {
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
pub(super) fn hundredths(value: f32) -> f64 {
    (f64::from(value) * 100.0).round() / 100.0
}

pub(super) fn flat(keypoints: &[[f32; 3]; 17]) -> (Vec<f64>, usize) {
    let labeled = keypoints.iter().filter(|k| k[2] > 0.0).count();
    (
        keypoints.iter().flatten().map(|v| hundredths(*v)).collect(),
        labeled,
    )
}
