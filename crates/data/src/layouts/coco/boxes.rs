//! Boxes of people in COCO's JSON: CityPersons, or your own.
//!
//! Besides COCO's keys an annotation may have those of CityPersons, `height` (pixels), `vis_ratio`
//! or `vis_bbox`, `ignore`, and the number of the person, `pid`, for person search. Where they are
//! missing, the height is that of the box, all of it is visible, nothing is ignored and no identity
//! is known. Annotations of other categories than `person` or `pedestrian` are skipped, unless
//! there is only one category.
//!
//! ```text
//! CityPersons/{train.json, val_gt.json, val_gt_mm_nested.json}
//!             leftImg8bit_trainvaltest/leftImg8bit/{train, val}/<city>/*.png, val_all_in_folder/*.png
//! ```
//!
//! Published results are evaluated on `val_gt.json`, which has the visible share of each person.
//! `val_gt_mm_nested.json` has the same images with the folders of their cities, which are found
//! without it: it is read only where the other is missing.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::dataset::{BoxAnnotation, BoxDataset, is_outside};
use super::image::{CocoImage, UnknownCategories, read_image};
use super::json::{
    self, EntryErrors, JsonEntry, JsonFlag, OptionalNumber, WholeNumber, other_form,
};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, around, find};

pub(crate) const LAYOUT: Layout = Layout {
    name: "COCO boxes",
    signature: "`instances_<split>.json`, or CityPersons' `train.json`, `val_gt.json` or `val_gt_mm_nested.json`",
    official: &[
        OfficialCounts {
            dataset: "CityPersons, train",
            folder_words: &[],
            counts: &[("images", 2_975)],
        },
        OfficialCounts {
            dataset: "CityPersons, val",
            folder_words: &[],
            counts: &[("images", 500)],
        },
    ],
    reader: LayoutReader::Boxes {
        find: place,
        read: BoxDataset::read,
    },
};

#[derive(Deserialize)]
struct BoxFile {
    images: Vec<BoxFileImage>,
    #[serde(default = "Vec::new")]
    annotations: Vec<JsonEntry<RawBox>>,
    #[serde(default)]
    categories: Vec<BoxCategory>,
}

#[derive(Deserialize)]
struct BoxFileImage {
    id: WholeNumber,
    #[serde(alias = "im_name")]
    file_name: String,
    width: WholeNumber,
    height: WholeNumber,
}

#[derive(Deserialize)]
struct RawBox {
    id: WholeNumber,
    image_id: WholeNumber,
    category_id: Option<WholeNumber>,
    bbox: [OptionalNumber; 4],
    area: Option<f64>,
    height: Option<f64>,
    vis_ratio: Option<f64>,
    vis_bbox: Option<[f64; 4]>,
    #[serde(default)]
    ignore: JsonFlag,
    #[serde(default)]
    iscrowd: JsonFlag,
    #[serde(alias = "person_id")]
    pid: Option<WholeNumber>,
}

#[derive(Deserialize)]
struct BoxCategory {
    id: WholeNumber,
    name: String,
}

impl BoxDataset {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// If it is invalid. A box of no size or wholly outside its image is skipped and listed in
    /// `problems`.
    pub fn read(path: &Path) -> Result<Self, LayoutError> {
        let raw: BoxFile = json::read(path, "COCO boxes")?;
        let mut faults = EntryErrors::default();
        let categories = categories(&raw.categories, &mut faults);
        let place = BoxImageFolder::of(
            path,
            raw.images.first().map(|image| image.file_name.as_str()),
        );
        let (mut index, mut names) = (HashMap::new(), BTreeSet::new());
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        for image in raw.images {
            let Some(found) = read_image(image.id, [image.height, image.width], &mut faults) else {
                continue;
            };
            let (id, [height, width]) = found;
            let entry = format!("image {id}");
            if index.insert(id, images.len()).is_some() {
                faults.add(entry.clone(), "every id once", "it twice".to_owned());
            }
            images.push(CocoImage {
                id,
                path: place.path(&image.file_name),
                height,
                width,
            });
            if !names.insert(image.file_name.clone()) {
                problems.push(format!("{entry}: `{}` is listed twice", image.file_name));
            }
        }
        let mut people = Vec::with_capacity(raw.annotations.len());
        let ids = raw.categories.iter().map(|category| category.id);
        let mut unknown = UnknownCategories::besides(ids);
        let mut sizes = Vec::new();
        for (place, entry) in raw.annotations.into_iter().enumerate() {
            let item = match entry.read("annotation", place) {
                Ok(item) => item,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            let category = item.category_id.unwrap_or(WholeNumber(1));
            if !categories.is_empty() && !categories.contains(&category) {
                unknown.count(category);
                continue;
            }
            let entry = format!("annotation {}", item.id.0);
            let Some(&image) =
                { item.image_id.0.try_into().ok() }.and_then(|id: u64| index.get(&id))
            else {
                let found = format!("image_id {}", item.image_id.0);
                faults.add(entry, "an image of `images`", found);
                continue;
            };
            let bbox = item.bbox.map(|value| value.0);
            let area = item.area.unwrap_or(bbox[2] * bbox[3]);
            let height = item.height.unwrap_or(bbox[3]);
            let visible = item
                .vis_bbox
                .map(|[_, _, width, height]| width * height / (bbox[2] * bbox[3]));
            let visibility = item
                .vis_ratio
                .or(visible.filter(|share| share.is_finite()))
                .unwrap_or(1.0);
            if !bbox
                .iter()
                .chain([&area, &height, &visibility])
                .all(|v| v.is_finite())
            {
                faults.add(entry, "finite numbers", format!("{bbox:?}"));
                continue;
            }
            let size = &images[image];
            sizes.push((bbox, [size.height, size.width]));
            if is_outside(bbox, [size.height, size.width]) {
                let CocoImage { width, height, .. } = size;
                problems.push(format!(
                    "{entry}: the box {bbox:?} (x, y, width, height) covers nothing of its image of {width} x {height}: skipped"
                ));
                continue;
            }
            people.push(BoxAnnotation {
                id: item.id.0 as u64,
                image,
                bbox,
                area,
                height,
                visibility,
                ignored: item.ignore.0,
                crowd: item.iscrowd.0,
                person: item.pid.map(|pid| pid.0),
            });
        }
        if let Some(form) = other_form(sizes.iter().copied()) {
            let expected = "boxes of x, y, width, height in pixels";
            faults.add("annotations".to_owned(), expected, form.to_owned());
        }
        faults.check(path)?;
        problems.extend(unknown.describe());
        problems.extend(without_unknown(&mut people));
        Ok(Self {
            file: path.to_owned(),
            images,
            people,
            problems,
            category: categories.first().map_or(1, |category| category.0 as u64),
        })
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
        "detection/",
        "coco/annotations/",
        "CityPersons/",
    ];
    let names = [
        format!("instances_{split}.json"),
        format!("instances_{split}2017.json"),
        format!("{split}_gt.json"),
        format!("{split}_gt_mm_nested.json"),
        format!("{split}.json"),
    ];
    let candidates: Vec<String> = { folders.iter() }
        .flat_map(|folder| names.iter().map(move |name| format!("{folder}{name}")))
        .collect();
    find(folder, &candidates, LAYOUT.name, LAYOUT.signature)
}

/// The number that the published code for person search gives to unidentified people.
const UNKNOWN: i64 = 5555;

/// Removes the numbers of unidentified people: negative ones, and 5555 where one image has it
/// twice, which no identity can. A note where 5555 is kept.
fn without_unknown(people: &mut [BoxAnnotation]) -> Option<String> {
    let mut seen = BTreeSet::new();
    let unknown = |marked: &&BoxAnnotation| marked.person == Some(UNKNOWN);
    let twice = { people.iter() }
        .filter(unknown)
        .any(|marked| !seen.insert(marked.image));
    let count = people.iter().filter(unknown).count();
    for marked in people {
        if marked
            .person
            .is_some_and(|person| person < 0 || (twice && person == UNKNOWN))
        {
            marked.person = None;
        }
    }
    (!twice && count > 1).then(|| {
        format!(
            "{count} boxes have pid {UNKNOWN}, which published code uses for unidentified people; here it is one \
             identity, as no image has it twice (write -1 for unidentified people)"
        )
    })
}

/// The categories that are people; none if the file names no category.
fn categories(all: &[BoxCategory], faults: &mut EntryErrors) -> Vec<WholeNumber> {
    let is_person =
        |c: &&BoxCategory| ["person", "pedestrian"].contains(&c.name.to_lowercase().as_str());
    let people: Vec<WholeNumber> = all.iter().filter(is_person).map(|c| c.id).collect();
    if people.is_empty() && all.len() > 1 {
        let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
        let expected = "a category `person` or `pedestrian`, or one category";
        let found = format!("`{}`", names.join("`, `"));
        faults.add("categories".to_owned(), expected, found);
    }
    match people[..] {
        [] => all.iter().map(|c| c.id).collect(),
        _ => people,
    }
}

/// Where the images of a file are.
struct BoxImageFolder {
    folder: PathBuf,
    /// Whether there is a folder for each city, the first part of a name.
    by_city: bool,
}

impl BoxImageFolder {
    /// That one of the usual places that holds the first image; where none does, opening it reports
    /// the first place.
    fn of(json: &Path, first: Option<&str>) -> Self {
        let folder = json.parent().unwrap_or(Path::new(""));
        let stem = json
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("");
        let split = stem
            .rsplit_once("instances_")
            .map_or(stem, |(_, split)| split);
        let short = split.split('_').next().unwrap_or("");
        let cities = "leftImg8bit_trainvaltest/leftImg8bit";
        let near = ["images", "", split, &format!("images/{split}")].map(String::from);
        let city = [
            format!("{cities}/{short}"),
            format!("{cities}/{short}_all_in_folder"),
            format!("leftImg8bit/{short}"),
        ];
        let places = [around(json, &near), around(json, &city)].concat();
        for place in places {
            for by_city in [false, true] {
                let place = Self {
                    folder: place.clone(),
                    by_city,
                };
                if first.is_some_and(|name| place.path(name).is_file()) {
                    return place;
                }
            }
        }
        Self {
            folder: folder.join("images"),
            by_city: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match name.split_once('_') {
            Some((city, _)) if self.by_city => self.folder.join(city).join(name),
            _ => self.folder.join(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::tests::assert_refused;
    use fs_err as fs;

    const GOOD: &str = r#"{"images": [{"id": 7, "im_name": "ulm_1.png", "width": 40, "height": 80}],
        "annotations": [
          {"id": 1, "image_id": 7, "category_id": 1, "bbox": [-5, 2, 30, 60], "vis_bbox": [0, 2, 15, 60], "ignore": 1},
          {"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 6, "height": 4.5, "vis_ratio": 0.3, "iscrowd": true, "pid": 9},
          {"id": 3, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
          {"id": 4, "image_id": 7, "category_id": 1, "bbox": [40, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "Pedestrian"}, {"id": 2, "name": "rider"}]}"#;

    fn read(text: &str) -> Result<BoxDataset, LayoutError> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder
            .path()
            .join("leftImg8bit_trainvaltest/leftImg8bit/val/ulm/ulm_1.png");
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(image, b"").unwrap();
        fs::write(folder.path().join("val_gt.json"), text).unwrap();
        BoxDataset::open(folder.path(), "val")
    }

    #[test]
    fn reads_citypersons() {
        let data = read(GOOD).unwrap();
        assert!(
            data.images[0]
                .path
                .ends_with("leftImg8bit/val/ulm/ulm_1.png"),
            "{:?}",
            data.images
        );
        let [first, second] = &data.people[..] else {
            panic!("{:?}", data.people)
        };
        assert_eq!(
            (first.area, first.height, first.visibility, first.ignored),
            (1800.0, 60.0, 0.5, true)
        );
        assert_eq!(
            (second.area, second.height, second.visibility, second.crowd),
            (6.0, 4.5, 0.3, true)
        );
        assert_eq!((first.person, second.person), (None, Some(9)));
        assert_eq!(data.without_hidden(), None);
        assert_eq!(data.problems.len(), 1);
        assert!(
            data.problems[0].starts_with("annotation 4: the box [40.0, 2.0, 3.0, 4.0]"),
            "{:?}",
            data.problems
        );
    }

    #[test]
    fn annotation_with_visibility_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cities = folder
            .path()
            .join("leftImg8bit_trainvaltest/leftImg8bit/val");
        fs::create_dir_all(cities.join("ulm")).unwrap();
        fs::write(cities.join("ulm/ulm_1.png"), b"").unwrap();
        let nested = GOOD
            .replace("im_name\": \"", "file_name\": \"ulm/")
            .replace("\"vis_bbox\": [0, 2, 15, 60], ", "")
            .replace(", \"vis_ratio\": 0.3", "");
        fs::write(folder.path().join("val_gt_mm_nested.json"), nested).unwrap();
        let data = BoxDataset::open(folder.path(), "val").unwrap();
        assert_eq!(data.images[0].path, cities.join("ulm/ulm_1.png"));
        let note = data.without_hidden().unwrap();
        assert!(note.starts_with("no box is marked as occluded"), "{note}");
        fs::write(folder.path().join("val_gt.json"), GOOD).unwrap();
        let data = BoxDataset::open(folder.path(), "val").unwrap();
        assert!(data.file.ends_with("val_gt.json") && data.without_hidden().is_none());
        assert_eq!(data.images[0].path, cities.join("ulm/ulm_1.png"));
    }

    #[test]
    fn wrong_entries_are_named() {
        let changes = [
            (
                "\"image_id\": 7, \"category_id\": 1, \"bbox\": [1,",
                "\"image_id\": 8, \"category_id\": 1, \"bbox\": [1,",
                "annotation 2: expected an image of `images`, found image_id 8",
            ),
            (
                "\"width\": 40",
                "\"width\": 0",
                "image 7: expected a size, found 0 x 80",
            ),
            (
                "Pedestrian",
                "tram",
                "expected a category `person` or `pedestrian`, or one category, found `tram`, `rider`",
            ),
            (
                "\"im_name\"",
                "\"name\"",
                "not COCO boxes: missing field `file_name`",
            ),
        ];
        assert_refused(GOOD, &changes, read);
        // The message shows some of the paths, the error has all.
        let error = format!(
            "{:?}",
            BoxDataset::open(Path::new("nowhere"), "val").unwrap_err()
        );
        assert!(error.contains("nowhere/CityPersons/val_gt.json"), "{error}");
    }
}
