//! The Market-1501 layout: `bounding_box_train`, `query` and `bounding_box_test`, with person and
//! camera in the file names.
//!
//! ```text
//! market1501/bounding_box_train/0002_c1s1_000451_03.jpg     person 2, camera 1
//!            query/0001_c1s1_001051_00.jpg
//!            bounding_box_test/0000_c1s1_000151_01.jpg       person 0: a distractor, kept in the gallery
//!                              -1_c1s1_000401_03.jpg         person -1: junk, dropped
//! ```
//!
//! A name begins with the person, `_c` and the camera; the rest does not matter, nor does the image
//! format. Files that are no images (`Thumbs.db` is in the official archive) are passed over.
//! DukeMTMC-reID, CUHK03 in its new protocol and some copies of MSMT17 have the same folders.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::dataset::{ReidDataset, ReidImage};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, find};
use crate::source::is_hidden;

/// Counts by the authors. The gallery is without junk, its people are those of the queries.
const fn official(
    dataset: &'static str,
    folder_words: &'static [&'static str],
    counts: &'static [(&'static str, u64)],
) -> OfficialCounts {
    OfficialCounts {
        dataset,
        folder_words,
        counts,
    }
}

pub(crate) const LAYOUT: Layout = Layout {
    name: "Market-1501 layout",
    signature: "folders `bounding_box_train`, `query` and `bounding_box_test` with names such as `0002_c1s1_000451_03.jpg`",
    official: &[
        official(
            "Market-1501",
            &["market"],
            &[
                ("training images", 12_936),
                ("training people", 751),
                ("query images", 3_368),
                ("query people", 750),
                ("gallery images", 15_913),
                ("gallery people", 750),
                ("cameras", 6),
            ],
        ),
        official(
            "DukeMTMC-reID",
            &["duke"],
            &[
                ("training images", 16_522),
                ("training people", 702),
                ("query images", 2_228),
                ("query people", 702),
                ("gallery images", 17_661),
                ("gallery people", 1_110),
                ("cameras", 8),
            ],
        ),
        official(
            "CUHK03 labeled",
            &["cuhk03", "label"],
            &[
                ("training images", 7_368),
                ("training people", 767),
                ("query images", 1_400),
                ("query people", 700),
                ("gallery images", 5_328),
                ("gallery people", 700),
            ],
        ),
        official(
            "CUHK03 detected",
            &["cuhk03", "detect"],
            &[
                ("training images", 7_365),
                ("training people", 767),
                ("query images", 1_400),
                ("query people", 700),
                ("gallery images", 5_332),
                ("gallery people", 700),
            ],
        ),
    ],
    reader: LayoutReader::Reid {
        find: place,
        read: |root, _| read(root),
    },
};

/// Folders below the one given where the layout is looked for.
const ROOTS: [&str; 13] = [
    "",
    "market1501",
    "Market-1501",
    "Market-1501-v15.09.15",
    "market1501/Market-1501-v15.09.15",
    "market",
    "reid",
    "DukeMTMC-reID",
    "dukemtmc-reid/DukeMTMC-reID",
    "cuhk03-np/labeled",
    "cuhk03-np/detected",
    "MSMT17",
    "msmt17",
];

/// The folder with the layout: `folder`, or one of the usual folders below it.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    // A folder `query` alone may be anything.
    let candidates: Vec<String> = { ROOTS.iter() }
        .flat_map(|root| ["bounding_box_test", "bounding_box_train"].map(|name| (root, name)))
        .map(|(root, name)| Path::new(root).join(name).display().to_string())
        .collect();
    let found = find(folder, &candidates, LAYOUT.name, LAYOUT.signature)?;
    Ok(found.parent().unwrap_or(folder).to_owned())
}

/// Reads the dataset in a folder; images are sorted by file name.
fn read(root: PathBuf) -> Result<ReidDataset, LayoutError> {
    let mut junk = 0;
    let train = match root.join("bounding_box_train") {
        train if train.exists() => crops(&train, &mut junk)?,
        _ => Vec::new(),
    };
    let gallery = crops(&root.join("bounding_box_test"), &mut junk)?;
    let query = crops(&root.join("query"), &mut junk)?;
    Ok(ReidDataset {
        layout: LAYOUT.name,
        root,
        train,
        val: Vec::new(),
        query,
        gallery,
        junk,
    })
}

fn crops(folder: &Path, junk: &mut usize) -> Result<Vec<ReidImage>, LayoutError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or("")
            .to_ascii_lowercase();
        // `._0001_c1.jpg` beside an image is what macOS keeps of it.
        if ["jpg", "jpeg", "png", "webp", "bmp"].contains(&extension.as_str()) && !is_hidden(&path)
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut crops = Vec::with_capacity(paths.len());
    let (mut found, images) = (0, paths.len());
    for path in paths {
        let name = (path.file_name().unwrap_or_default()).to_string_lossy();
        let (person, camera) = parse(&name).ok_or_else(|| LayoutError::File {
            file: path.display().to_string(),
            expected:
                "a name that begins with person, `_c` and camera, as in 0002_c1s1_000451_03.jpg"
                    .to_owned(),
            found: format!("`{name}`"),
        })?;
        if person == -1 {
            found += 1;
        } else {
            crops.push(ReidImage {
                name: name.into_owned(),
                path,
                person,
                camera,
            });
        }
    }
    *junk += found;
    if crops.is_empty() {
        return Err(LayoutError::File {
            file: folder.display().to_string(),
            expected: "images of people".to_owned(),
            found: if images == 0 {
                "no image".to_owned()
            } else {
                format!("{found} junk images and no other")
            },
        });
    }
    Ok(crops)
}

/// Person and camera of a file name: `([-\d]+)_c(\d+)` at its start, the person not below -1.
fn parse(name: &str) -> Option<(i64, i64)> {
    let (person, rest) = name.split_once("_c")?;
    let digits = person.strip_prefix('-').unwrap_or(person);
    let camera = &rest[..rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len()];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let person: i64 = person.parse().ok()?;
    (person >= -1).then_some((person, camera.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::reid::{cameras, people};

    fn make(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    #[test]
    fn junk_is_dropped_and_distractors_are_kept() {
        let folder = make(&[
            "market/bounding_box_train/0002_c1s1_000451_03.jpg",
            "market/bounding_box_train/0002_c2s1_000001_00.PNG",
            "market/query/0001_c6s3_000001_00.jpg",
            "market/bounding_box_test/-1_c1s1_000401_03.jpg",
            "market/bounding_box_test/0000_c1s1_000151_01.jpg",
            "market/bounding_box_test/0001_c12.webp",
            "market/bounding_box_test/Thumbs.db",
        ]);
        let data = ReidDataset::open(folder.path()).unwrap();
        assert_eq!(data.root, folder.path().join("market"));
        assert_eq!(
            (data.train.len(), people(&data.train), cameras(&data.train)),
            (2, 1, 2)
        );
        assert_eq!(data.junk, 1);
        let gallery: Vec<_> = data.gallery.iter().map(|c| (c.person, c.camera)).collect();
        assert_eq!(gallery, [(0, 1), (1, 12)]);
        assert_eq!(people(&data.gallery), 1);
        assert_eq!(
            data.query[0].path,
            folder.path().join("market/query/0001_c6s3_000001_00.jpg")
        );
    }

    #[test]
    fn names_are_read_as_the_published_pattern_reads_them() {
        assert_eq!(parse("0002_c1s1_000451_03.jpg"), Some((2, 1)));
        assert_eq!(parse("-1_c3s2_000001_00.jpg"), Some((-1, 3)));
        // DukeMTMC-reID and CUHK03.
        assert_eq!(parse("0005_c2_f0046985.jpg"), Some((5, 2)));
        assert_eq!(parse("0001_c1_1.png"), Some((1, 1)));
        for wrong in [
            "photo.jpg",
            "_c1.jpg",
            "0002_cx.jpg",
            "a2_c1.jpg",
            "-2_c1s1.jpg",
            "--1_c1.jpg",
            "9999999999999999999_c1.jpg",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_same_folders_of_other_data_sets() {
        for root in ["dukemtmc-reid/DukeMTMC-reID", "cuhk03-np/labeled", "MSMT17"] {
            let names = ["query/0001_c1_1.png", "bounding_box_test/0001_c2_1.png"];
            let names = names.map(|name| format!("{root}/{name}"));
            let folder = make(&[&names[0], &names[1]]);
            let data = ReidDataset::open(folder.path()).unwrap();
            assert!(data.train.is_empty() && data.problems().is_empty());
        }
        // Crops to look at are no dataset.
        let crops = make(&["query/0001_c1.jpg"]);
        let error = ReidDataset::open(crops.path()).unwrap_err();
        assert!(matches!(error, LayoutError::NotFound { .. }), "{error}");
    }

    #[test]
    fn errors_say_where_and_what() {
        let empty = make(&["photos/a.jpg"]);
        let error = ReidDataset::open(empty.path()).unwrap_err();
        // The message shows some of the paths, the error has all.
        assert!(
            format!("{error:?}").contains("Market-1501-v15.09.15")
                && error.to_string().contains("expected folders"),
            "{error}"
        );

        let no_gallery = make(&["query/0001_c1.jpg"]);
        let error = ReidDataset::open(no_gallery.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("bounding_box_test"), "{error}");

        let odd = make(&["query/0001_c1.jpg", "bounding_box_test/IMG_2034.jpg"]);
        let error = ReidDataset::open(odd.path()).unwrap_err().to_string();
        assert!(error.contains("IMG_2034.jpg: expected a name"), "{error}");

        let only_junk = make(&["query/0001_c1.jpg", "bounding_box_test/-1_c1.jpg"]);
        let error = ReidDataset::open(only_junk.path()).unwrap_err().to_string();
        assert!(error.contains("1 junk images and no other"), "{error}");
    }
}
