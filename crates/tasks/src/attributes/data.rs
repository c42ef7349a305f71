//! Labeled images of attribute recognition.

use std::path::Path;

use clasp_data::Rng as DataRng;
use clasp_data::augment::shift;
use clasp_data::image::{flip, resize};
use clasp_data::layouts::attributes::{AttributeDataset, AttributeImage};
use rand::RngExt;

use super::{AttributeTask, AttributesConfig};
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::task::{Example, SplitChoice, TrainingExamples};

/// Images with their attributes, the name of their split, and warnings about them.
#[derive(Debug)]
pub struct AttributeSet {
    pub(super) images: Vec<AttributeImage>,
    pub(super) split: String,
    pub(super) notes: Vec<String>,
}

pub(super) fn owned(images: Vec<&AttributeImage>) -> Vec<AttributeImage> {
    images.into_iter().cloned().collect()
}

/// A note of which file was read, where a folder has several.
pub(super) fn file_note(data: &AttributeDataset) -> Option<String> {
    let others: Vec<String> = { data.others.iter() }
        .map(|file| file.display().to_string())
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "{} is read; there is also {}: pass a file as the data to read another one",
            data.file.display(),
            others.join(", ")
        )
    })
}

/// A note of attributes that all training images have, or none has.
fn constant(names: &[String], ratios: &[f64], split: &str) -> Option<String> {
    let of = |ratio: f64| -> Vec<&str> {
        let all = names.iter().zip(ratios);
        all.filter(|(_, found)| **found == ratio)
            .map(|(name, _)| name.as_str())
            .collect()
    };
    let (never, always) = (of(0.0), of(1.0));
    let listed = [("no image has", never), ("all images have", always)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{word} {}", names.join(", ")));
    let listed: Vec<String> = listed.collect();
    (!listed.is_empty()).then(|| {
        let listed = listed.join("; ");
        format!("split {split}: {listed}; these cannot be learned, but count in mA")
    })
}

impl TrainingExamples for AttributeTask {
    type TrainingSet = AttributeSet;

    fn open(
        config: &AttributesConfig,
        folder: &Path,
        _: Option<&SplitChoice>,
    ) -> Result<(Self, AttributeSet), TaskError> {
        let data = AttributeDataset::open(folder)?;
        let mut images = Vec::new();
        for split in &config.train_splits {
            images.extend(owned(data.split(split)?));
        }
        let count = images.len().max(1) as f64;
        let positives = |j: usize| images.iter().filter(|image| image.values[j]).count();
        let ratios: Vec<f64> = (0..data.names.len())
            .map(|j| positives(j) as f64 / count)
            .collect();
        if ratios.iter().all(|ratio| *ratio == 0.0 || *ratio == 1.0) {
            return Err(TaskError::Mismatch {
                file: data.file.display().to_string(),
                expected: format!(
                    "an attribute with positive and negative images in split {}",
                    config.train_splits.join(" + ")
                ),
                found: format!("{} attributes with one value only", ratios.len()),
            });
        }
        let split = config.train_splits.join(" + ");
        let notes = { file_note(&data).into_iter() }
            .chain(constant(&data.names, &ratios, &split))
            .collect();
        let task = Self {
            config: config.clone(),
            names: data.names,
            ratios,
        };
        let data = AttributeSet {
            images,
            split,
            notes,
        };
        Ok((task, data))
    }

    fn notes(&self, data: &AttributeSet) -> Vec<String> {
        data.notes.clone()
    }

    fn files<'a>(&self, data: &'a AttributeSet) -> Vec<&'a Path> {
        { data.images.iter() }
            .map(|image| image.path.as_path())
            .collect()
    }

    fn count(&self, data: &AttributeSet) -> usize {
        data.images.len()
    }

    fn example(
        &self,
        data: &AttributeSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Vec<bool>>, TaskError> {
        let AttributeImage { path, values, .. } = &data.images[index];
        let image = read_image(path)?;
        let Preprocess {
            height,
            width,
            filter,
            ..
        } = self.preprocess(preprocess);
        let image = resize(&image, height, width, filter);
        let image = shift(&image, self.config.padding, rng);
        let image = if rng.random_bool(self.config.flip) {
            flip(&image)
        } else {
            image
        };
        Ok(Example {
            pixels: preprocess.normalize(&image),
            size: [preprocess.height, preprocess.width],
            target: values.clone(),
            key: path.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_attributes_and_the_file_that_was_read_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let table = |name: &str, rows: &str| {
            let text = format!("image,split,hat,bag,shoe\n{rows}");
            fs_err::write(folder.path().join(name), text).unwrap();
        };
        let rows = "a.jpg,train,0,1,1\nb.jpg,train,0,0,1\na/c.jpg,val,1,1,1\n";
        table("attributes.csv", rows);
        let open =
            || AttributeTask::open(&AttributesConfig::default(), folder.path(), None).unwrap();
        let (task, data) = open();
        let [note] = &task.notes(&data)[..] else {
            panic!("{:?}", data.notes)
        };
        assert!(
            note.starts_with("split train: no image has hat; all images have shoe; these"),
            "{note}"
        );
        fs_err::create_dir(folder.path().join("attributes")).unwrap();
        table("attributes/labels.csv", rows);
        let (task, data) = open();
        let note = &task.notes(&data)[0];
        assert!(
            note.contains("attributes.csv is read; there is also") && note.contains("labels.csv"),
            "{note}"
        );
        let eval =
            crate::task::Evaluate::open_test(&task, folder.path(), &SplitChoice::Val).unwrap();
        assert_eq!(
            (eval.images[0].name.as_str(), eval.notes.len()),
            ("a/c.jpg", 1)
        );
    }
}
