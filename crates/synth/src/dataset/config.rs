//! What a dataset of synthetic people holds.

use clasp_data::rng_for;
use serde::{Deserialize, Serialize};

use super::error::SynthError;
use crate::camera::Camera;
use crate::person::appearance::SynthPerson;

/// Contents of a dataset.
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
    /// Crops of people without a query, in `bounding_box_test`.
    pub distractors: usize,
    /// Crops of further people in tars, without labels.
    pub unlabeled: usize,
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
            unlabeled: 0,
            scenes: 20,
            height: 256,
            width: 128,
            scene_height: 480,
            scene_width: 854,
            seed: 0,
        }
    }
}

impl SynthConfig {
    pub(super) fn check(&self) -> Result<(), SynthError> {
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
            "unlabeled",
            self.unlabeled,
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
    pub(crate) fn identity(&self, pid: usize) -> SynthPerson {
        SynthPerson::sample(&mut rng_for(self.seed, 0, &format!("identity {pid}")))
    }

    /// A camera of a site; the cameras of a site share backgrounds.
    pub(crate) fn camera(&self, kind: &str, number: usize) -> Camera {
        let site = Camera::site(&mut rng_for(self.seed, 0, &format!("{kind} site")));
        let mut rng = rng_for(self.seed, 0, &format!("{kind} camera {number}"));
        Camera::sample_among(&site, &mut rng)
    }
}
