//! COCO boxes with a `pid` for each person, in `instances_train.json` and `instances_test.json` (or
//! `val`).
//!
//! Every person who is in two test frames or more is searched for by the first of the boxes, in all
//! other frames.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dataset::{FramePerson, SearchDataset, SearchFrame, SearchQuery};
use crate::layouts::coco::{BoxDataset, boxes};
use crate::layouts::layout::{Layout, LayoutReader};
use crate::layouts::{LayoutError, TriedPath};

pub(crate) const LAYOUT: Layout = Layout {
    name: "COCO boxes with persons",
    signature: "`instances_<split>.json` with a `pid` for each person",
    official: &[],
    reader: LayoutReader::Search {
        find: place,
        read: |folder, file, _| read(folder, &file),
    },
};

/// The file of boxes to search in.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    match boxes::place(folder, "test") {
        Err(LayoutError::NotFound { .. }) => boxes::place(folder, "val"),
        other => other,
    }
}

/// The error for a file of boxes without identities.
fn no_persons(file: &Path) -> LayoutError {
    let folder = file.parent().unwrap_or(Path::new(""));
    LayoutError::NotFound {
        folder: folder.display().to_string(),
        layout: LAYOUT.name,
        expected: "annotations with `pid`".to_owned(),
        tried: vec![TriedPath {
            path: file.to_owned(),
            problem: Some("annotations without `pid`"),
        }],
    }
}

/// Reads boxes with persons.
fn read(folder: &Path, file: &Path) -> Result<SearchDataset, LayoutError> {
    let test = BoxDataset::read(file)?;
    if test.people.iter().all(|marked| marked.person.is_none()) {
        return Err(no_persons(&test.file));
    }
    let (train, mut problems) = match boxes::place(folder, "train") {
        Err(LayoutError::NotFound { .. }) => (Vec::new(), Vec::new()),
        file => {
            let train = BoxDataset::read(&file?)?;
            (frames(&train), train.problems)
        }
    };
    problems.extend(test.problems.iter().cloned());
    let test_frames = frames(&test);
    let mut seen: BTreeMap<i64, Vec<(usize, [f64; 4])>> = BTreeMap::new();
    for (index, frame) in test_frames.iter().enumerate() {
        for marked in &frame.people {
            if let Some(person) = marked.person {
                seen.entry(person).or_default().push((index, marked.bbox));
            }
        }
    }
    let several = |places: &[(usize, [f64; 4])]| places.iter().any(|place| place.0 != places[0].0);
    let queries = { seen.into_iter() }
        .filter(|(_, places)| several(places))
        .map(|(person, places)| SearchQuery {
            frame: places[0].0,
            bbox: places[0].1,
            person,
            protocol: None,
        })
        .collect();
    Ok(SearchDataset {
        layout: LAYOUT.name,
        root: test.file.parent().unwrap_or(folder).to_owned(),
        train,
        test: test_frames,
        queries,
        problems,
    })
}

/// Ignore regions and crowds are skipped.
fn frames(boxes: &BoxDataset) -> Vec<SearchFrame> {
    let mut frames: Vec<SearchFrame> = { boxes.images.iter() }
        .map(|image| SearchFrame {
            path: image.path.clone(),
            size: Some([image.height, image.width]),
            camera: None,
            people: Vec::new(),
        })
        .collect();
    for marked in boxes
        .people
        .iter()
        .filter(|marked| !marked.ignored && !marked.crowd)
    {
        frames[marked.image].people.push(FramePerson {
            bbox: marked.bbox,
            person: marked.person,
        });
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::search::GallerySize;

    #[test]
    fn coco_boxes_with_persons() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |text: &str| fs_err::write(folder.path().join("instances_val.json"), text).unwrap();
        let text = r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 90}, {"id": 2, "file_name": "b.jpg", "width": 90, "height": 90}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "pid": 4}, {"id": 2, "image_id": 2, "bbox": [5, 0, 9, 9], "pid": 4},
              {"id": 3, "image_id": 2, "bbox": [50, 0, 9, 9], "pid": 5}, {"id": 4, "image_id": 2, "bbox": [70, 0, 9, 9], "pid": 6, "ignore": 1}]}"#;
        write(text);
        let data = SearchDataset::open(folder.path(), GallerySize::default()).unwrap();
        assert_eq!(
            (
                data.queries.len(),
                data.queries[0].person,
                SearchDataset::people(&data.test)
            ),
            (1, 4, 2)
        );
        assert_eq!(
            data.gallery(&data.queries[0], false),
            [(1, Some([5.0, 0.0, 9.0, 9.0]))]
        );
        assert!(data.problems().is_empty());
        write(&text.replace("\"pid\"", "\"track\""));
        let error = SearchDataset::open(folder.path(), GallerySize::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("instances_val.json (annotations without `pid`)"),
            "{error}"
        );
        assert!(
            error.contains("annotation/Images.mat") && error.contains("frame_test.mat"),
            "{error}"
        );
    }
}
