//! The datasets of a folder, checked before they are used: `clasp data check`.
//!
//! The folder and those below it are searched for every layout; what is found is counted, beside
//! the official counts where there are any. Problems prevent training or evaluation: listed images
//! that are missing, masks and JSON of another size than their image, boxes outside it, queries
//! that no gallery has. Notes are worth knowing: attributes that are constant, people both in
//! training and test, joints outside their image. On request every image is decoded, which finds
//! damaged and repeated files.

mod candidates;
mod datasets;
mod report;

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use fs_err as fs;
use rayon::prelude::*;
pub use report::{CheckedCount, FolderCheck, LayoutCheck};

use self::candidates::Candidates;
use crate::image::{Limits, decode, is_turned};
use crate::layouts::{LayoutError, TriedPath};
use crate::source::{Source, SourceError};

/// Levels of folders below the one given that are searched.
const DEPTH: usize = 3;
/// A folder with more folders than this has one for each person, not for each dataset.
const MOST_FOLDERS: usize = 100;

/// Checks a folder, or any images that [`Source::open`] takes. With `decoding`, decodes every
/// image; `progress` is called with the number done and the number of all.
///
/// # Errors
/// If there is neither a known layout nor an image.
pub fn check(
    path: &str,
    decoding: bool,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<FolderCheck, SourceError> {
    let (found, tried) = match Path::new(path) {
        root if root.is_dir() => find_datasets(root),
        _ => Default::default(),
    };
    let mut report = FolderCheck {
        path: path.to_owned(),
        images: 0,
        layouts: found,
        tried: tried.iter().map(TriedPath::to_string).collect(),
        decoded: None,
        unreadable: Vec::new(),
        repeated: Vec::new(),
        skipped: Vec::new(),
        problem: None,
    };
    // In a dataset masks may lie beside their photos, under the same name; elsewhere keys are
    // unique.
    let source = match report.layouts.is_empty() {
        true => Source::open(path),
        false => Source::open_all(path),
    };
    match source {
        Ok(source) => {
            report.images = source.len();
            report.skipped = source.skipped().describe();
            if decoding {
                let turned;
                (report.unreadable, report.repeated, turned) = decode_all(&source, progress);
                if let Some(first) = turned.first() {
                    report.skipped.push(format!(
                        "{} images carry an EXIF orientation, which is applied when they are read; boxes, joints and \
                         masks must be those of the rotated image, the first: {first}",
                        turned.len()
                    ));
                }
                report.decoded = Some(source.len() - report.unreadable.len());
            }
        }
        Err(error) if report.layouts.is_empty() => return Err(error),
        // A table may lie apart from its images, which are checked with the table.
        Err(SourceError::Empty { .. }) => {}
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(report)
}

/// The datasets in a folder and in those below it, and the paths of the folder itself where none
/// is.
fn find_datasets(root: &Path) -> (Vec<LayoutCheck>, Vec<TriedPath>) {
    let (mut found, mut tried, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    for folder in folders(root) {
        let candidates = Candidates::of(&folder);
        let is_root = folder == root;
        if is_root {
            tried = candidates.tried;
        }
        for candidate in candidates.found {
            let place =
                { candidate.place.canonicalize() }.unwrap_or_else(|_| candidate.place.clone());
            if !known.insert((candidate.name, place)) {
                continue;
            }
            let (name, place) = (candidate.name, candidate.place.display().to_string());
            match (candidate.check)() {
                Ok(layout) => found.push(layout),
                Err(
                    LayoutError::NotFound { tried: paths, .. }
                    | LayoutError::NoSplitFile { tried: paths, .. },
                ) if is_root => tried.extend(paths),
                Err(LayoutError::NotFound { .. } | LayoutError::NoSplitFile { .. }) => {}
                // A `train.json` somewhere below may be anything.
                Err(LayoutError::Json { .. }) if !is_root && is_common(&candidate.place) => {}
                Err(error) => found.push(LayoutCheck {
                    layout: name.to_owned(),
                    place,
                    counts: Vec::new(),
                    problems: vec![error.to_string()],
                    notes: Vec::new(),
                }),
            }
        }
    }
    (found, tried)
}

/// Whether other programs have files of this name too.
fn is_common(file: &Path) -> bool {
    ["train.json", "val.json", "test.json"]
        .iter()
        .any(|name| file.ends_with(name))
}

/// A folder and those below it that may hold datasets, each before those in it.
fn folders(root: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, depth: usize, all: &mut Vec<PathBuf>) {
        all.push(folder.to_owned());
        if depth == 0 {
            return;
        }
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut below: Vec<PathBuf> = entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            // Most entries are images.
            .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_file()))
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        below.sort();
        if below.len() <= MOST_FOLDERS {
            below.iter().for_each(|folder| walk(folder, depth - 1, all));
        }
    }
    let mut all = Vec::new();
    walk(root, DEPTH, &mut all);
    all
}

/// Places in the source's order, each with a reason or an earlier place.
type Places = Vec<(String, String)>;

/// Decodes every image on all threads: those that cannot be read, repeated ones, and those that an
/// EXIF orientation rotates.
fn decode_all(
    source: &Source,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> (Places, Places, Vec<String>) {
    let done = AtomicUsize::new(0);
    let try_one = |i| {
        let result = source.read(i).map_err(|error| error.to_string());
        let result = result.and_then(|bytes| match decode(&bytes, &Limits::default()) {
            Ok(_) => {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                Ok(((bytes.len(), hasher.finish()), is_turned(&bytes)))
            }
            Err(error) => Err(error.to_string()),
        });
        progress(1 + done.fetch_add(1, Ordering::Relaxed), source.len());
        result
    };
    let results: Vec<Result<((usize, u64), bool), String>> =
        (0..source.len()).into_par_iter().map(try_one).collect();
    let (mut unreadable, mut repeated, mut first) = (Vec::new(), Vec::new(), HashMap::new());
    let mut turned = Vec::new();
    for (i, result) in results.into_iter().enumerate() {
        match result {
            Ok((content, is_turned)) => {
                if is_turned {
                    turned.push(source.place(i));
                }
                match first.entry(content) {
                    Entry::Occupied(earlier) => {
                        repeated.push((source.place(i), source.place(*earlier.get())))
                    }
                    Entry::Vacant(place) => {
                        place.insert(i);
                    }
                }
            }
            Err(reason) => unreadable.push((source.place(i), reason)),
        }
    }
    (unreadable, repeated, turned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Rgb, encode_jpeg, encode_label_png};
    use fs_err as fs;

    fn jpeg(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, encode_jpeg(&Rgb::filled(4, 8, [9, 8, 7]), 90)).unwrap();
    }

    #[test]
    fn finds_layouts_counts_and_problems() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in [
            "query/0001_c1.jpg",
            "bounding_box_test/0001_c2.jpg",
            "bounding_box_test/-1_c2.jpg",
        ] {
            jpeg(&root.join("market").join(name));
        }
        fs::write(
            root.join("attributes.csv"),
            "image,split,hat\nmarket/query/0001_c1.jpg,train,1\nno.jpg,train,1\n",
        )
        .unwrap();
        let report = check(&root.display().to_string(), true, &|_, _| ()).unwrap();
        assert_eq!(
            (report.images, report.decoded, report.unreadable.len()),
            (3, Some(3), 0)
        );
        assert_eq!(report.layouts.len(), 2);
        let counts: Vec<_> = report.layouts[0]
            .counts
            .iter()
            .map(|c| (c.what.as_str(), c.found))
            .collect();
        assert!(
            counts.contains(&("gallery images", 1))
                && counts.contains(&("junk images, dropped", 1)),
            "{counts:?}"
        );
        assert_eq!(report.is_official(), Some(false));
        assert!(report.layouts[1].problems[0].starts_with("1 images are missing, the first: "));
        assert!(!report.is_ok());
        assert!(
            report
                .tried
                .iter()
                .any(|path| path.ends_with("parsing.csv"))
        );
    }

    #[test]
    fn all_data_sets_of_a_folder_are_found_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for set in ["a/market1501", "b", "c/d/e/f"] {
            for image in ["query/0001_c1.jpg", "bounding_box_test/0001_c2.jpg"] {
                jpeg(&root.join(set).join(image));
            }
        }
        fs::write(
            root.join("b/attributes.csv"),
            "image,split,hat\nx.jpg,train,1\n",
        )
        .unwrap();
        fs::create_dir_all(root.join("b/attributes")).unwrap();
        let other = "image,split,hat\ny.jpg,train,1\n";
        fs::write(root.join("b/attributes/attributes.csv"), other).unwrap();
        // A file of another program.
        fs::write(root.join("b/val.json"), "[1]").unwrap();
        let report = check(&root.display().to_string(), false, &|_, _| ()).unwrap();
        let found: Vec<_> = { report.layouts.iter() }
            .map(|found| {
                (
                    found.layout.as_str(),
                    found.place.strip_prefix(&report.path).unwrap(),
                )
            })
            .collect();
        let expected = [
            ("Market-1501 layout (Market-1501)", "/a/market1501"),
            ("Market-1501 layout", "/b"),
            ("attribute table", "/b/attributes.csv"),
            ("attribute table", "/b/attributes/attributes.csv"),
        ];
        assert_eq!(found, expected);
        // Where it is what was asked for, it has to be a dataset.
        let path = root.join("b").display().to_string();
        let report = check(&path, false, &|_, _| ()).unwrap();
        let boxes = |found: &&LayoutCheck| found.layout.starts_with("COCO boxes");
        assert_eq!(report.layouts.iter().filter(boxes).count(), 1);
    }

    #[test]
    fn boxes_beyond_the_image_repeats_and_absent_classes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        // 4 x 8 (width x height).
        for name in [
            "frames/c1s1_000001.jpg",
            "frames/c1s1_000101.jpg",
            "frames/c2s1_000102.jpg",
            "frames/c1s1_000103.jpg",
        ] {
            jpeg(&root.join(name));
        }
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mat/prw");
        for entry in [golden.clone(), golden.join("annotations")]
            .iter()
            .flat_map(|f| fs::read_dir(f).unwrap())
        {
            let path = entry.unwrap().path();
            let to = root.join(path.strip_prefix(&golden).unwrap());
            if path.is_file() {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(&path, to).unwrap();
            }
        }
        fs::write(root.join("query_info.txt"), "9 10 20 30 60 c1s1_000101\n").unwrap();
        let json = r#"{"images": [{"id": 1, "file_name": "frames/c1s1_000001.jpg", "width": 4, "height": 8}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 0, 2, 2], "area": 4, "keypoints": [1, 1, 2]}],
            "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}"#;
        fs::write(root.join("person_keypoints_val.json"), json).unwrap();
        let report = check(&root.display().to_string(), true, &|_, _| ()).unwrap();
        assert_eq!(report.repeated.len(), 3);
        let names: Vec<&str> = report.layouts.iter().map(|l| l.layout.as_str()).collect();
        assert_eq!(names, ["PRW", "COCO keypoints, val"]);
        let problems = |index: usize| report.layouts[index].problems.join("\n");
        assert!(
            problems(0).starts_with(
                "the box [10.0, 20.0, 30.0, 60.0] (x, y, width, height) covers nothing of"
            ),
            "{}",
            problems(0)
        );
        assert!(
            problems(1).contains(
                "the box [5.0, 0.0, 2.0, 2.0] (x, y, width, height) covers nothing of it"
            ),
            "{}",
            problems(1)
        );
        let official: Vec<_> = report.layouts[0]
            .counts
            .iter()
            .map(|c| c.official)
            .collect();
        assert_eq!(
            official[..4],
            [Some(5_704), Some(6_112), Some(2_057), Some(482)]
        );
    }

    #[test]
    fn a_mask_may_lie_beside_its_photo() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        jpeg(&root.join("a.jpg"));
        fs::write(root.join("a.png"), encode_label_png(&[0; 32], 8, 4)).unwrap();
        let path = root.display().to_string();
        assert!(check(&path, true, &|_, _| ()).is_err());
        fs::write(root.join("labels.txt"), "background\n").unwrap();
        fs::write(
            root.join("parsing.csv"),
            "image,mask,split\na.jpg,a.png,train\n",
        )
        .unwrap();
        let report = check(&path, true, &|_, _| ()).unwrap();
        assert_eq!((report.is_ok(), report.decoded), (true, Some(2)));
        // Of another size than its image.
        fs::write(root.join("a.png"), encode_label_png(&[0; 32], 4, 8)).unwrap();
        let report = check(&path, false, &|_, _| ()).unwrap();
        let problem = &report.layouts[0].problems[0];
        assert!(
            problem.contains("expected 4 x 8 (width x height) as its image, found 8 x 4"),
            "{problem}"
        );
    }

    #[test]
    fn broken_images_and_layouts_are_problems_not_errors() {
        let folder = tempfile::tempdir().unwrap();
        jpeg(&folder.path().join("a.jpg"));
        fs::write(folder.path().join("b.jpg"), b"no image").unwrap();
        fs::write(folder.path().join("attributes.csv"), "x\n").unwrap();
        let report = check(&folder.path().display().to_string(), true, &|_, _| ()).unwrap();
        assert_eq!(report.unreadable.len(), 1);
        assert!(report.unreadable[0].0.ends_with("b.jpg"));
        assert!(
            report.layouts[0].problems[0].contains("line 1: expected a header"),
            "{:?}",
            report.layouts
        );
        assert!(!report.is_ok());

        let empty = tempfile::tempdir().unwrap();
        assert!(check(&empty.path().display().to_string(), false, &|_, _| ()).is_err());
        assert!(check("nowhere", false, &|_, _| ()).is_err());
    }
}
