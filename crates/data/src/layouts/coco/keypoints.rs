//! Keypoints in COCO's JSON, with any skeleton.
//!
//! The category that has `keypoints` gives the joints; besides COCO's own keys it may hold
//! `flip_pairs` (indices from 0) and `sigmas`. Where they are missing, flip pairs follow from the
//! names ([`super::sides`]), and σ is COCO's if the joints are COCO's 17. Segmentations are not
//! read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::dataset::{KeypointAnnotation, KeypointDataset};
use super::image::{CocoImage, UnknownCategories, read_image};
use super::json::{
    self, EntryErrors, JsonEntry, JsonFlag, OptionalNumber, WholeNumber, other_form,
};
use super::skeleton::{COCO_JOINTS, COCO_SIGMAS};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::sides::Sides;
use crate::layouts::{LayoutError, around, find};

pub(crate) const LAYOUT: Layout = Layout {
    name: "COCO keypoints",
    signature: "`person_keypoints_<split>.json`, with any skeleton",
    official: &[
        OfficialCounts {
            dataset: "COCO 2017 keypoints, train",
            folder_words: &[],
            counts: &[("images", 118_287)],
        },
        OfficialCounts {
            dataset: "COCO 2017 keypoints, val",
            folder_words: &[],
            counts: &[("images", 5_000)],
        },
    ],
    reader: LayoutReader::Keypoints {
        find: place,
        read: KeypointDataset::read,
    },
};

#[derive(Deserialize)]
struct KeypointFile {
    images: Vec<KeypointFileImage>,
    #[serde(default = "Vec::new")]
    annotations: Vec<JsonEntry<RawKeypoints>>,
    categories: Vec<KeypointCategory>,
}

#[derive(Deserialize)]
struct KeypointFileImage {
    id: WholeNumber,
    file_name: String,
    width: WholeNumber,
    height: WholeNumber,
}

#[derive(Deserialize)]
struct RawKeypoints {
    id: WholeNumber,
    image_id: WholeNumber,
    category_id: WholeNumber,
    bbox: [OptionalNumber; 4],
    area: Option<f64>,
    #[serde(default)]
    iscrowd: JsonFlag,
    #[serde(default)]
    keypoints: Option<Vec<OptionalNumber>>,
}

#[derive(Deserialize)]
struct KeypointCategory {
    id: WholeNumber,
    #[serde(default)]
    keypoints: Vec<String>,
    #[serde(default)]
    skeleton: Vec<[usize; 2]>,
    flip_pairs: Option<Vec<[usize; 2]>>,
    sigmas: Option<Vec<f64>>,
}

impl KeypointDataset {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn read(path: &Path) -> Result<Self, LayoutError> {
        let raw: KeypointFile = json::read(path, "COCO keypoints")?;
        let mut faults = EntryErrors::default();
        let category = category(&raw.categories, &mut faults);
        let Some(category) = category else {
            faults.check(path)?;
            return Err(LayoutError::File {
                file: path.display().to_string(),
                expected: "one category with `keypoints`".to_owned(),
                found: "none".to_owned(),
            });
        };
        let joints = category.keypoints.len();
        let folder = image_folder(path, raw.images.first());
        let mut index = HashMap::with_capacity(raw.images.len());
        let mut images = Vec::with_capacity(raw.images.len());
        for image in raw.images {
            let Some(found) = read_image(image.id, [image.height, image.width], &mut faults) else {
                continue;
            };
            let (id, [height, width]) = found;
            if index.insert(id, images.len()).is_some() {
                faults.add(
                    format!("image {id}"),
                    "every id once",
                    "it twice".to_owned(),
                );
            }
            images.push(CocoImage {
                id,
                path: folder.join(&image.file_name),
                height,
                width,
            });
        }
        let mut people = Vec::with_capacity(raw.annotations.len());
        let ids = raw.categories.iter().map(|category| category.id);
        let mut unknown = UnknownCategories::besides(ids);
        for (place, entry) in raw.annotations.into_iter().enumerate() {
            let person = match entry.read("annotation", place) {
                Ok(person) => person,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            if person.category_id != category.id {
                unknown.count(person.category_id);
                continue;
            }
            let entry = || format!("annotation {}", person.id.0);
            let Some(&image) =
                { person.image_id.0.try_into().ok() }.and_then(|id: u64| index.get(&id))
            else {
                let found = format!("image_id {}", person.image_id.0);
                faults.add(entry(), "an image of `images`", found);
                continue;
            };
            // No joint is labeled.
            let keypoints = person.keypoints.unwrap_or_default();
            let keypoints: Vec<f64> = match keypoints.is_empty() {
                true => vec![0.0; 3 * joints],
                false => keypoints.iter().map(|value| value.0).collect(),
            };
            if keypoints.len() != 3 * joints {
                let expected = format!("{} numbers, 3 for each of {joints} joints", 3 * joints);
                faults.add(entry(), &expected, keypoints.len().to_string());
                continue;
            }
            let bbox = person.bbox.map(|value| value.0);
            let area = person.area.unwrap_or(bbox[2] * bbox[3]);
            if !{ bbox.iter().chain(&keypoints).chain([&area]) }.all(|value| value.is_finite()) {
                faults.add(
                    entry(),
                    "finite numbers",
                    format!("{bbox:?} and its joints"),
                );
                continue;
            }
            if bbox[2] < 0.0 || bbox[3] < 0.0 || area < 0.0 {
                let found = format!("{} x {}, {area}", bbox[2], bbox[3]);
                faults.add(entry(), "a box and an area that are not negative", found);
                continue;
            }
            people.push(KeypointAnnotation {
                id: person.id.0 as u64,
                image,
                bbox,
                area,
                crowd: person.iscrowd.0,
                keypoints: { keypoints.chunks_exact(3) }
                    .map(|k| [k[0], k[1], k[2]])
                    .collect(),
            });
        }
        let sizes = people.iter().map(|person: &KeypointAnnotation| {
            let image: &CocoImage = &images[person.image];
            (person.bbox, [image.height, image.width])
        });
        if let Some(form) = other_form(sizes) {
            let expected = "boxes of x, y, width, height in pixels";
            faults.add("annotations".to_owned(), expected, form.to_owned());
        }
        faults.check(path)?;
        let sides = match category.flip_pairs.clone() {
            Some(pairs) => Sides {
                pairs,
                ..Sides::default()
            },
            None => Sides::among(&category.keypoints),
        };
        let unpaired = match category.flip_pairs.is_none() && sides.pairs.is_empty() && joints > 1 {
            true => (0..joints).collect(),
            false => sides.alone,
        };
        Ok(Self {
            file: path.to_owned(),
            category: category.id.0 as u64,
            joints: category.keypoints.clone(),
            skeleton: category
                .skeleton
                .iter()
                .map(|[a, b]| [a - 1, b - 1])
                .collect(),
            flip_pairs: sides.pairs,
            unpaired,
            sigmas: category.sigmas.clone().or_else(|| {
                category
                    .keypoints
                    .iter()
                    .eq(COCO_JOINTS.iter())
                    .then(|| COCO_SIGMAS.to_vec())
            }),
            images,
            people,
            problems: unknown.describe(),
        })
    }

    /// Name of the published dataset that this is a part of, by its joints and its file's name.
    pub(crate) fn published(&self) -> Option<&'static str> {
        let name = self.file.file_name()?.to_str()?;
        let dataset = match name {
            "person_keypoints_train2017.json" => LAYOUT.official[0].dataset,
            "person_keypoints_val2017.json" => LAYOUT.official[1].dataset,
            _ => return None,
        };
        self.joints.iter().eq(COCO_JOINTS.iter()).then_some(dataset)
    }
}

/// The file of a split in a folder.
///
/// # Errors
/// [`LayoutError::NotFound`].
pub(crate) fn place(folder: &Path, split: &str) -> Result<PathBuf, LayoutError> {
    let folders = [
        "",
        "annotations/",
        "pose/",
        "keypoints/",
        "coco/annotations/",
    ];
    let names = [
        format!("person_keypoints_{split}.json"),
        format!("person_keypoints_{split}2017.json"),
    ];
    let candidates: Vec<String> = folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| format!("{folder}{name}")))
        .collect();
    find(folder, &candidates, LAYOUT.name, LAYOUT.signature)
}

/// The one category with joints, if it can be used.
fn category<'a>(
    categories: &'a [KeypointCategory],
    faults: &mut EntryErrors,
) -> Option<&'a KeypointCategory> {
    let with_joints: Vec<&KeypointCategory> = categories
        .iter()
        .filter(|c| !c.keypoints.is_empty())
        .collect();
    let [category] = with_joints[..] else {
        let expected = "one category with `keypoints`";
        faults.add(
            "categories".to_owned(),
            expected,
            with_joints.len().to_string(),
        );
        return None;
    };
    let joints = category.keypoints.len();
    let entry = || format!("category {}", category.id.0);
    let mut skeleton = category.skeleton.iter();
    let bone = skeleton.find(|bone| bone.iter().any(|joint| !(1..=joints).contains(joint)));
    if let Some(bone) = bone {
        let expected = format!("`skeleton` with joints 1 to {joints}");
        faults.add(entry(), &expected, format!("{bone:?}"));
        return None;
    }
    let mut pairs = category.flip_pairs.iter().flatten();
    if let Some(pair) = pairs.find(|pair| pair.iter().any(|joint| *joint >= joints)) {
        let expected = format!("`flip_pairs` with joints 0 to {}", joints - 1);
        faults.add(entry(), &expected, format!("{pair:?}"));
    }
    if let Some(sigmas) = &category.sigmas
        && (sigmas.len() != joints || !sigmas.iter().all(|s| *s > 0.0))
    {
        faults.add(
            entry(),
            &format!("{joints} positive `sigmas`"),
            format!("{sigmas:?}"),
        );
    }
    Some(category)
}

/// The folder of the images: that one of the usual places that holds the first.
fn image_folder(json: &Path, first: Option<&KeypointFileImage>) -> PathBuf {
    let folder = json.parent().unwrap_or(Path::new(""));
    let split = json
        .file_stem()
        .and_then(|s| s.to_str())
        .and_then(|s| s.rsplit_once('_'))
        .map_or("", |s| s.1);
    let near = [
        "images".to_owned(),
        String::new(),
        split.to_owned(),
        format!("images/{split}"),
    ];
    let mut places = around(json, &near).into_iter();
    let holds_first =
        |place: &PathBuf| first.is_some_and(|image| place.join(&image.file_name).is_file());
    // Where no place has it, opening the image reports the usual one.
    places
        .find(holds_first)
        .unwrap_or_else(|| folder.join("images"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::tests::assert_refused;
    use fs_err as fs;

    const GOOD: &str = r#"{"images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 80}],
        "annotations": [
          {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 6, "iscrowd": 0, "num_keypoints": 1,
           "segmentation": {"counts": [1], "size": [2, 2]}, "keypoints": [5, 6, 2, 0, 0, 0, 0, 0, 0]},
          {"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "area": 6}],
        "categories": [{"id": 4, "name": "dog"},
          {"id": 3, "name": "person", "keypoints": ["head", "left_hip", "right_hip"], "skeleton": [[1, 2], [2, 3]]}]}"#;

    fn read(text: &str) -> Result<KeypointDataset, LayoutError> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("images")).unwrap();
        fs::write(folder.path().join("images/a.jpg"), b"").unwrap();
        fs::write(folder.path().join("person_keypoints_val.json"), text).unwrap();
        KeypointDataset::open(folder.path(), "val")
    }

    #[test]
    fn reads_any_skeleton() {
        let data = read(GOOD).unwrap();
        assert_eq!(data.joints, ["head", "left_hip", "right_hip"]);
        assert_eq!(
            (data.skeleton, data.flip_pairs),
            (vec![[0, 1], [1, 2]], vec![[1, 2]])
        );
        assert_eq!(data.sigmas, None);
        assert_eq!(data.people.len(), 1);
        assert_eq!((data.people[0].image, data.people[0].labeled()), (0, 1));
        assert_eq!(data.people[0].keypoints[0], [5.0, 6.0, 2.0]);
        assert!(data.images[0].path.ends_with("images/a.jpg"));
    }

    #[test]
    fn sides_are_known_by_any_of_the_usual_names_unless_the_file_says() {
        let named = |joints: &str, more: &str| {
            let joints = format!("{joints}{more}, \"skeleton\"");
            let text = GOOD.replace(r#"["head", "left_hip", "right_hip"], "skeleton""#, &joints);
            read(&text).unwrap()
        };
        let data = named(r#"["L_Shoulder", "RHip", "R_Shoulder"]"#, "");
        assert_eq!(
            (data.flip_pairs.as_slice(), data.unpaired.as_slice()),
            (&[[0, 2]][..], &[1][..])
        );
        assert_eq!(data.torso_diagonals(), [[0, 1]]);
        let said = r#", "flip_pairs": [[0, 1]]"#;
        let data = named(r#"["L_Shoulder", "RHip", "R_Shoulder"]"#, said);
        assert_eq!((data.flip_pairs, data.unpaired.len()), (vec![[0, 1]], 0));
    }

    #[test]
    fn wrong_entries_are_named() {
        let changes = [
            (
                "\"image_id\": 7, \"category_id\": 3",
                "\"image_id\": 8, \"category_id\": 3",
                "annotation 1: expected an image",
            ),
            (
                "[5, 6, 2, 0, 0, 0, 0, 0, 0]",
                "[5, 6, 2]",
                "annotation 1: expected 9 numbers, 3 for each of 3 joints, found 3",
            ),
            (
                "[[1, 2], [2, 3]]",
                "[[0, 2]]",
                "category 3: expected `skeleton` with joints 1 to 3, found [0, 2]",
            ),
            (
                "\"skeleton\"",
                "\"sigmas\": [0.1], \"skeleton\"",
                "expected 3 positive `sigmas`",
            ),
            (
                "\"skeleton\"",
                "\"flip_pairs\": [[0, 3]], \"skeleton\"",
                "`flip_pairs` with joints 0 to 2",
            ),
            (
                "\"keypoints\": [\"head\"",
                "\"other\": [\"head\"",
                "expected one category with `keypoints`, found 0",
            ),
            (
                "\"width\": 40",
                "\"width\": 0",
                "image 7: expected a size, found 0 x 80",
            ),
            (
                "\"bbox\": [1, 2, 3, 4], \"area\": 6, \"iscrowd\"",
                "\"bbox\": [1, 2, -3, 4], \"area\": 6, \"iscrowd\"",
                "not negative",
            ),
            (
                "\"categories\"",
                "\"classes\"",
                "not COCO keypoints: missing field `categories`",
            ),
        ];
        assert_refused(GOOD, &changes, read);
        // The message shows some of the paths, the error has all.
        let error = format!(
            "{:?}",
            KeypointDataset::open(Path::new("nowhere"), "val").unwrap_err()
        );
        assert!(
            error.contains("nowhere/annotations/person_keypoints_val2017.json"),
            "{error}"
        );
    }
}
