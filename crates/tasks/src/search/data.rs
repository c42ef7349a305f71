//! Scenes of person search.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clasp_data::Rng as DataRng;
use clasp_data::layouts::search::{GallerySize, SearchDataset, SearchFrame};

use super::SearchTask;
use super::config::SearchConfig;
use crate::TaskError;
use crate::detection::scenes::{self, ScenePerson, SceneTarget};
use crate::features::Preprocess;
use crate::task::examples::skipped_note;
use crate::task::{Example, SplitChoice, TrainingExamples};

/// Scenes to train on.
#[derive(Debug)]
pub struct SearchTrainingSet {
    root: PathBuf,
    frames: Vec<SearchFrame>,
    people: Vec<Vec<ScenePerson>>,
    /// Warnings about labels that cannot be used.
    problems: Vec<String>,
}

/// Opens the data of a folder with the configured gallery size.
pub(super) fn open(folder: &Path, config: &SearchConfig) -> Result<SearchDataset, TaskError> {
    let gallery = match config.gallery_size {
        0 => GallerySize::Full,
        frames => GallerySize::Frames(frames),
    };
    Ok(SearchDataset::open(folder, gallery)?)
}

impl TrainingExamples for SearchTask {
    type TrainingSet = SearchTrainingSet;

    fn open(
        config: &SearchConfig,
        folder: &Path,
        _: Option<&SplitChoice>,
    ) -> Result<(Self, SearchTrainingSet), TaskError> {
        let search = open(folder, config)?;
        let known = search.train.iter().flat_map(|frame| &frame.people);
        let people: BTreeSet<i64> = known.filter_map(|marked| marked.person).collect();
        let people: Vec<i64> = people.into_iter().collect();
        if people.len() < 2 {
            return Err(TaskError::TooFew {
                what: search.root.display().to_string(),
                expected: "at least 2 known people in the training frames",
                found: people.len(),
            });
        }
        let class = |person: i64| people.binary_search(&person).ok();
        let people_of = |frame: &SearchFrame| -> Vec<ScenePerson> {
            { frame.people.iter() }
                .map(|marked| ScenePerson {
                    bbox: marked.bbox,
                    ignored: false,
                    identity: marked.person.and_then(class),
                })
                .collect()
        };
        let data = SearchTrainingSet {
            people: search.train.iter().map(people_of).collect(),
            problems: [search.problems, SearchDataset::outside(&search.train)].concat(),
            root: search.root,
            frames: search.train,
        };
        let task = Self {
            config: config.clone(),
            people: people.clone(),
        };
        Ok((task, data))
    }

    fn notes(&self, data: &SearchTrainingSet) -> Vec<String> {
        Vec::from_iter(skipped_note(&data.root, &data.problems))
    }

    fn files<'a>(&self, data: &'a SearchTrainingSet) -> Vec<&'a Path> {
        { data.frames.iter() }
            .map(|frame| frame.path.as_path())
            .collect()
    }

    fn count(&self, data: &SearchTrainingSet) -> usize {
        data.frames.len()
    }

    fn example(
        &self,
        data: &SearchTrainingSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<SceneTarget>, TaskError> {
        let SearchFrame { path, size, .. } = &data.frames[index];
        let scene = scenes::read(path, *size)?;
        let config = &self.config.scenes;
        let people = &data.people[index];
        Ok(scenes::example(
            &scene, path, people, config, preprocess, rng,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_outside_their_frame_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 90}, {"id": 2, "file_name": "b.jpg", "width": 90, "height": 90}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "pid": 4}, {"id": 2, "image_id": 2, "bbox": [5, 0, 9, 9], "pid": 5},
              {"id": 3, "image_id": 2, "bbox": [95, 0, 9, 9], "pid": 5}]}"#;
        for split in ["train", "test"] {
            let file = folder.path().join(format!("instances_{split}.json"));
            fs_err::write(file, text).unwrap();
        }
        let (task, data) = SearchTask::open(&SearchConfig::default(), folder.path(), None).unwrap();
        let [note] = &task.notes(&data)[..] else {
            panic!("{:?}", data.problems)
        };
        assert!(note.contains("the box [95.0, 0.0, 9.0, 9.0]"), "{note}");
    }
}
