//! Scenes with the boxes of pedestrians.

use std::path::Path;

use clasp_data::Rng as DataRng;
use clasp_data::image::Rgb;
use clasp_data::layouts::coco::BoxDataset;

use super::scenes::{self, ScenePerson, SceneTarget};
use super::{DetectionConfig, DetectionTask};
use crate::TaskError;
use crate::features::Preprocess;
use crate::task::examples::skipped_note;
use crate::task::{Example, SplitChoice, TrainingExamples};

/// Scenes with the people in each.
#[derive(Debug)]
pub struct DetectionSet {
    pub(super) boxes: BoxDataset,
    pub(super) people: Vec<Vec<ScenePerson>>,
}

impl DetectionSet {
    fn new(boxes: BoxDataset) -> Self {
        let mut people = vec![Vec::new(); boxes.images.len()];
        for marked in &boxes.people {
            people[marked.image].push(ScenePerson {
                bbox: marked.bbox,
                ignored: marked.ignored || marked.crowd,
                identity: None,
            });
        }
        Self { boxes, people }
    }

    /// Scenes, at least one of which has a labeled person.
    pub(super) fn with_people(boxes: BoxDataset) -> Result<Self, TaskError> {
        let scenes = Self::new(boxes);
        if scenes.people.iter().flatten().all(|one| one.ignored) {
            return Err(TaskError::TooFew {
                what: scenes.boxes.file.display().to_string(),
                expected: "at least one labeled person",
                found: 0,
            });
        }
        Ok(scenes)
    }

    pub(super) fn read(&self, index: usize) -> Result<(Rgb, &Path), TaskError> {
        let image = &self.boxes.images[index];
        let scene = scenes::read(&image.path, Some([image.height, image.width]))?;
        Ok((scene, &image.path))
    }

    pub(super) fn notes(&self) -> Vec<String> {
        Vec::from_iter(skipped_note(&self.boxes.file, &self.boxes.problems))
    }
}

impl TrainingExamples for DetectionTask {
    type TrainingSet = DetectionSet;

    fn open(
        config: &DetectionConfig,
        folder: &Path,
        _: Option<&SplitChoice>,
    ) -> Result<(Self, DetectionSet), TaskError> {
        let scenes = DetectionSet::with_people(BoxDataset::open(folder, &config.train_split)?)?;
        let task = Self {
            config: config.clone(),
        };
        Ok((task, scenes))
    }

    fn notes(&self, data: &DetectionSet) -> Vec<String> {
        data.notes()
    }

    fn files<'a>(&self, data: &'a DetectionSet) -> Vec<&'a Path> {
        { data.boxes.images.iter() }
            .map(|image| image.path.as_path())
            .collect()
    }

    fn count(&self, data: &DetectionSet) -> usize {
        data.people.len()
    }

    fn example(
        &self,
        data: &DetectionSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<SceneTarget>, TaskError> {
        let (scene, path) = data.read(index)?;
        let config = &self.config.scenes;
        let people = &data.people[index];
        Ok(scenes::example(
            &scene, path, people, config, preprocess, rng,
        ))
    }
}
