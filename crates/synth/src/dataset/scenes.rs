//! Street scenes of several people.

use std::path::Path;

use clasp_data::image::encode_jpeg;
use clasp_data::{Rng, rng_for};
use rand::RngExt;
use rayon::prelude::*;
use serde_json::json;

use super::config::SynthConfig;
use super::error::SynthError;
use super::files::{category, flat, hundredths, write_json, write_new};
use crate::camera::Camera;
use crate::person::appearance::SynthPerson;
use crate::scene::{RenderedScene, render_scene};

/// Scenes drawn at a time, which bounds the memory.
const CHUNK: usize = 8;
/// One scene with the identities of its people (-1: not an identity of this set).
pub(super) fn scene(
    config: &SynthConfig,
    cameras: &[Camera],
    index: usize,
    val: bool,
) -> (RenderedScene, Vec<i64>, usize) {
    let mut rng: Rng = rng_for(config.seed, 0, &format!("scene {index}"));
    let camera = index % cameras.len();
    let (first, count) = if val {
        (config.train_identities + 1, config.test_identities)
    } else {
        (1, config.train_identities)
    };
    let mut people: Vec<SynthPerson> = Vec::new();
    let mut pids: Vec<i64> = Vec::new();
    for _ in 0..rng.random_range(3..=10u32) {
        let pid = (count > 0 && rng.random_bool(0.7)).then(|| first + rng.random_range(0..count));
        match pid {
            Some(pid) if !pids.contains(&(pid as i64)) => {
                people.push(config.identity(pid));
                pids.push(pid as i64);
            }
            _ => {
                people.push(SynthPerson::sample(&mut rng));
                pids.push(-1);
            }
        }
    }
    let list: Vec<&SynthPerson> = people.iter().collect();
    let scene = render_scene(
        &list,
        &cameras[camera],
        rng.random(),
        config.scene_height,
        config.scene_width,
    );
    (scene, pids, camera + 1)
}

pub(super) fn write_scenes(
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
        for chunk in indices.chunks(CHUNK) {
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
                    let (keypoints, labeled) = flat(&p.keypoints);
                    annotations.push(json!({
                        "id": annotations.len() + 1, "image_id": image_id, "category_id": 1,
                        "bbox": p.bbox_xywh.map(hundredths), "vis_bbox": p.visible_xywh.map(hundredths),
                        "vis_ratio": (f64::from(p.visible) * 1e4).round() / 1e4, "height": hundredths(p.bbox_xywh[3]),
                        "ignore": u8::from(p.ignore), "iscrowd": 0, "area": p.area, "pid": pids[p.person],
                        "keypoints": keypoints, "num_keypoints": labeled,
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
