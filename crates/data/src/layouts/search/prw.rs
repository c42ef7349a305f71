//! PRW (Zheng et al., "Person Re-identification in the Wild", CVPR 2017).
//!
//! ```text
//! PRW/frames/c1s1_000151.jpg                     camera 1
//!     annotations/c1s1_000151.jpg.mat            rows of person, x, y, width, height
//!     frame_train.mat, frame_test.mat            names of the frames
//!     query_info.txt                             person x y width height name
//! ```
//!
//! The rows are called `box_new`, `anno_file` or `anno_previous`; person -2 is unknown. As in the
//! published code (SeqNet, which SOLIDER takes), negative values of a row are set to 0 before the
//! corners are computed, those of a query after that, and corners are cut to whole pixels.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::dataset::{FramePerson, SearchDataset, SearchFrame, SearchQuery};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, find, in_file, read_mat};
use crate::mat::MatFile;

pub(crate) const LAYOUT: Layout = Layout {
    name: "PRW",
    signature: "`frame_test.mat`",
    official: &[OfficialCounts {
        dataset: "PRW",
        folder_words: &[],
        counts: &[
            ("training frames", 5_704),
            ("test frames", 6_112),
            ("queries", 2_057),
            ("training people", 482),
        ],
    }],
    reader: LayoutReader::Search {
        find: place,
        read: |_, root, _| read(root),
    },
};

const ROOTS: [&str; 4] = ["", "PRW", "prw", "PRW-v16.04.20"];
const KEYS: [&str; 3] = ["box_new", "anno_file", "anno_previous"];

/// The folder of the dataset: `folder`, or one of the usual folders below it.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = ROOTS.map(|root| Path::new(root).join("frame_test.mat").display().to_string());
    let list = find(folder, &candidates, LAYOUT.name, LAYOUT.signature)?;
    Ok(list.parent().unwrap_or(folder).to_owned())
}

/// Reads the dataset in a folder.
fn read(root: PathBuf) -> Result<SearchDataset, LayoutError> {
    let list = root.join("frame_test.mat");
    let train = frames(
        &root,
        &names(&root.join("frame_train.mat"), "img_index_train")?,
    )?;
    let test_names = names(&list, "img_index_test")?;
    let test = frames(&root, &test_names)?;
    let index: HashMap<&str, usize> = test_names.iter().map(String::as_str).zip(0..).collect();

    let file = root.join("query_info.txt");
    let mut queries = Vec::new();
    let text = crate::text::read_text(&file)?;
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let query = parse(line, &index).ok_or_else(|| LayoutError::Line {
            file: file.display().to_string(),
            line: number + 1,
            expected: "person, x, y, width, height and a test frame, as in `479 1100 480 190 520 c1s3_016471`".to_owned(),
            found: format!("`{line}`"),
        })?;
        queries.push(query);
    }
    Ok(SearchDataset {
        layout: LAYOUT.name,
        root,
        train,
        test,
        queries,
        problems: Vec::new(),
    })
}

/// Names of frames, without an extension.
fn names(file: &Path, variable: &str) -> Result<Vec<String>, LayoutError> {
    let mat = read_mat(file)?;
    let names = mat
        .get(variable)
        .and_then(|names| names.cells()?.map(|cell| cell?.text()).collect());
    names.map_err(in_file(file))
}

fn frames(root: &Path, names: &[String]) -> Result<Vec<SearchFrame>, LayoutError> {
    names.par_iter().map(|name| frame(root, name)).collect()
}

fn frame(root: &Path, name: &str) -> Result<SearchFrame, LayoutError> {
    let path = root.join("frames").join(format!("{name}.jpg"));
    let camera = camera(name).ok_or_else(|| LayoutError::File {
        file: path.display().to_string(),
        expected: "a name that begins with `c` and a camera, as in c1s1_000151".to_owned(),
        found: format!("`{name}`"),
    })?;
    let file = root.join("annotations").join(format!("{name}.jpg.mat"));
    let mat = read_mat(&file)?;
    let key = KEYS
        .iter()
        .find(|key| mat.variables().any(|(name, _)| name == **key));
    Ok(SearchFrame {
        path,
        size: None,
        camera: Some(camera),
        people: people(&mat, key.unwrap_or(&KEYS[0])).map_err(in_file(&file))?,
    })
}

fn people(mat: &MatFile, key: &str) -> Result<Vec<FramePerson>, crate::mat::MatError> {
    let rows = mat.get(key)?;
    let ([count, columns], values) = (rows.shape(), rows.numbers()?);
    if count > 0 && columns < 5 {
        return Err(crate::mat::MatError {
            place: format!("variable {key}"),
            expected: "rows of person, x, y, width, height".to_owned(),
            found: format!("{columns} columns"),
        });
    }
    let value = |row: usize, column: usize| values[column * count + row];
    let marked = |row| {
        let [x, y, width, height] = [1, 2, 3, 4].map(|column| value(row, column).max(0.0));
        FramePerson {
            bbox: between([x, y, x + width, y + height].map(f64::trunc)),
            person: Some(value(row, 0) as i64).filter(|person| *person >= 0),
        }
    };
    Ok((0..count)
        .map(marked)
        .filter(|m| m.bbox[2] > 0.0 && m.bbox[3] > 0.0)
        .collect())
}

/// x, y, width, height between two corners.
fn between([left, top, right, bottom]: [f64; 4]) -> [f64; 4] {
    [left, top, right - left, bottom - top]
}

/// The number after the `c` of a name.
fn camera(name: &str) -> Option<i64> {
    let digits = name.strip_prefix('c')?;
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

fn parse(line: &str, index: &HashMap<&str, usize>) -> Option<SearchQuery> {
    let mut words = line.split_whitespace();
    let person: i64 = words.next()?.parse().ok()?;
    let mut numbers = [0.0; 4];
    for number in &mut numbers {
        *number = words.next()?.parse::<f64>().ok()?;
    }
    let [x, y, width, height] = numbers;
    let corners = [x, y, x + width, y + height].map(|v| v.trunc().max(0.0));
    let name = words.next()?;
    let frame = *index.get(name.strip_suffix(".jpg").unwrap_or(name))?;
    let is_whole = words.next().is_none() && numbers.iter().all(|v| v.is_finite());
    is_whole.then_some(SearchQuery {
        frame,
        bbox: between(corners),
        person,
        protocol: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::search::GallerySize;
    use fs_err as fs;

    /// A copy of the miniature with this list of queries.
    fn make(queries: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mat/prw");
        for place in ["", "annotations"] {
            let to = folder.path().join("PRW").join(place);
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(golden.join(place)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
                }
            }
        }
        fs::write(folder.path().join("PRW/query_info.txt"), queries).unwrap();
        folder
    }

    #[test]
    fn a_miniature_with_any_line_end() {
        for end in ["\r\n", "\n"] {
            let lines = [
                "9 10 20 30 60.5 c1s1_000101",
                "8 -3.5 20 30 60 c1s1_000103",
                "",
            ];
            let folder = make(&lines.join(end));
            let data = SearchDataset::open(folder.path(), GallerySize::default()).unwrap();
            assert_eq!(
                (
                    data.layout,
                    data.train.len(),
                    data.test.len(),
                    data.queries.len()
                ),
                ("PRW", 1, 3, 2)
            );
            let train: Vec<_> = data.train[0]
                .people
                .iter()
                .map(|m| (m.person, m.bbox[3]))
                .collect();
            // 20 + 61.5 is cut to 81.
            assert_eq!(train, [(Some(5), 60.0), (None, 61.0)]);
            // Beyond the left edge: a row keeps its width, a query its right edge, as published.
            assert_eq!(data.test[1].people[0].bbox, [0.0, 20.0, 30.0, 60.0]);
            assert_eq!(data.queries[1].bbox, [0.0, 20.0, 26.0, 60.0]);
            assert_eq!(data.queries[0].bbox, [10.0, 20.0, 30.0, 60.0]);
            let query = &data.queries[0];
            let shown = [0.0, 12.0].map(|x| Some([x, 20.0, 30.0, 60.0]));
            assert_eq!(data.gallery(query, false), [(1, shown[0]), (2, shown[1])]);
            assert_eq!(data.gallery(query, true), [(1, shown[0])]);
            let problems = data.problems();
            assert!(
                problems[0].starts_with(
                    "1 of 2 queries are in no frame of their gallery, the first: person 8"
                ),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn wrong_lines_and_files_are_named() {
        for line in [
            "9 10 20 30 c1s1_000101",
            "9 10 20 30 60 c9s9_1",
            "9 10 20 nan 60 c1s1_000101",
            "9 10 20 30 60 c1s1_000101 x",
        ] {
            let error = SearchDataset::open(make(line).path(), GallerySize::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("query_info.txt, line 1: expected person, x, y"),
                "{error}"
            );
        }
        let folder = make("");
        let annotations = folder.path().join("PRW/annotations");
        fs::copy(
            folder.path().join("PRW/frame_test.mat"),
            annotations.join("c1s1_000101.jpg.mat"),
        )
        .unwrap();
        let error = SearchDataset::open(folder.path(), GallerySize::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(
                "c1s1_000101.jpg.mat, file: expected a variable `box_new`, found `img_index_test`"
            ),
            "{error}"
        );
    }
}
