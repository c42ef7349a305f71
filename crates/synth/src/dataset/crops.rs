//! Crops of one person each, with the tables of all tasks.

use std::path::Path;

use clasp_data::image::{encode_jpeg, encode_label_png};
use clasp_data::{atomic_write, part, rng_for};
use serde_json::json;

use super::config::SynthConfig;
use super::error::SynthError;
use super::files::{category, flat, hundredths, write_json, write_new};
use crate::camera::Camera;
use crate::person::appearance::{ATTRIBUTES, AttributeValues, SynthPerson};
use crate::render::{RenderedPerson, Shot, render};

/// One crop to render.
pub(super) struct CropSpec {
    pid: usize,
    camera: usize,
    shot: usize,
    pub(super) folder: &'static str,
    split: &'static str,
}

impl CropSpec {
    fn name(&self) -> String {
        // The fourth field is the frame number in the original dataset.
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

/// Annotations of a crop whose files are written.
pub(super) struct CropRecord {
    image: String,
    mask: String,
    split: &'static str,
    attributes: AttributeValues,
    keypoints: [[f32; 3]; 17],
    bbox: [f32; 4],
    area: u32,
}

pub(super) fn tasks(config: &SynthConfig) -> Vec<CropSpec> {
    let mut tasks = Vec::new();
    for pid in 1..=config.train_identities + config.test_identities {
        let train = pid <= config.train_identities;
        for camera in 1..=config.cameras {
            for shot in 0..config.shots {
                // With a single shot for each camera, the first camera gives the queries and the
                // others the gallery.
                let asks = shot == 0 && (config.shots > 1 || camera == 1);
                let (folder, split) = match (train, asks) {
                    (true, _) => ("bounding_box_train", "train"),
                    (false, true) => ("query", "val"),
                    (false, false) => ("bounding_box_test", "val"),
                };
                tasks.push(CropSpec {
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
        tasks.push(CropSpec {
            pid: 0,
            camera: 1 + shot % config.cameras,
            shot,
            folder: "bounding_box_test",
            split: "val",
        });
    }
    tasks
}

pub(super) fn write_crop(
    folder: &Path,
    config: &SynthConfig,
    cameras: &[Camera],
    task: &CropSpec,
) -> Result<CropRecord, SynthError> {
    let name = task.name();
    let person = if task.pid == 0 {
        SynthPerson::sample(&mut rng_for(
            config.seed,
            0,
            &format!("distractor {}", task.shot),
        ))
    } else {
        config.identity(task.pid)
    };
    let camera = &cameras[task.camera - 1];
    let shot = Shot::with_camera(&person, camera, &mut rng_for(config.seed, 1, &name));
    let RenderedPerson {
        image,
        parts,
        keypoints,
        bbox_xywh,
        area,
        attributes,
        ..
    } = render(&person, &shot, config.height, config.width);
    let image_path = format!("market/{}/{name}.jpg", task.folder);
    let mask_path = format!("masks/{name}.png");
    write_new(&folder.join(&image_path), || {
        encode_jpeg(&image, camera.quality)
    })?;
    write_new(&folder.join(&mask_path), || {
        encode_label_png(&parts, config.height, config.width)
    })?;
    Ok(CropRecord {
        image: image_path,
        mask: mask_path,
        split: task.split,
        attributes,
        keypoints,
        bbox: bbox_xywh,
        area,
    })
}

pub(super) fn write_tables(
    folder: &Path,
    config: &SynthConfig,
    records: &[CropRecord],
) -> Result<(), SynthError> {
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
        let own: Vec<&CropRecord> = records.iter().filter(|r| r.split == split).collect();
        let images: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(i, r)| json!({ "id": i + 1, "file_name": r.image, "height": config.height, "width": config.width }))
            .collect();
        let annotations: Vec<_> = own
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let (keypoints, labeled) = flat(&r.keypoints);
                json!({
                    "id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": r.bbox.map(hundredths), "area": r.area,
                    "iscrowd": 0, "keypoints": keypoints, "num_keypoints": labeled,
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
