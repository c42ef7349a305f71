//! CUHK-SYSU (Xiao et al., "Joint Detection and Identification Feature Learning for Person Search",
//! CVPR 2017).
//!
//! ```text
//! CUHK-SYSU/Image/SSM/*.jpg
//!           annotation/Images.mat                     every frame and its boxes
//!                      pool.mat                       frames to search in; the others are for training
//!                      test/train_test/Train.mat      people of the training frames
//!                                      TestG50.mat .. TestG4000.mat      queries, each with a gallery
//! ```
//!
//! Boxes of no size are skipped. Training people are numbered from 1 as listed, test people by
//! their query, from 1 again. People of galleries are those of `TestG50.mat`, as published. In the
//! full gallery a query is searched in the frames of its list of 50 first and then in all others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::dataset::{
    FramePerson, GallerySize, QueryGallery, SearchDataset, SearchFrame, SearchQuery,
};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, find, in_file, read_mat};
use crate::mat::{Array, MatError};

pub(crate) const LAYOUT: Layout = Layout {
    name: "CUHK-SYSU",
    signature: "`annotation/Images.mat`",
    official: &[OfficialCounts {
        dataset: "CUHK-SYSU",
        folder_words: &[],
        counts: &[
            ("training frames", 11_206),
            ("test frames", 6_978),
            ("queries", 2_900),
            ("training people", 5_532),
        ],
    }],
    reader: LayoutReader::Search {
        find: place,
        read: |_, root, size| read(root, size),
    },
};

/// Frames in the published galleries.
const SIZES: [usize; 6] = [50, 100, 500, 1000, 2000, 4000];
const ROOTS: [&str; 4] = ["", "CUHK-SYSU", "cuhk_sysu", "cuhk-sysu"];

/// The folder of the dataset: `folder`, or one of the usual folders below it.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = ROOTS.map(|root| {
        Path::new(root)
            .join("annotation/Images.mat")
            .display()
            .to_string()
    });
    let file = find(folder, &candidates, LAYOUT.name, LAYOUT.signature)?;
    Ok({ file.ancestors().nth(2) }.unwrap_or(folder).to_owned())
}

/// Reads the dataset in a folder.
fn read(root: PathBuf, size: GallerySize) -> Result<SearchDataset, LayoutError> {
    let annotation = root.join("annotation");
    let file = annotation.join("Images.mat");
    let protocols = annotation.join("test/train_test");

    let (pool, problems) = (read_pool(&annotation.join("pool.mat"))?, Vec::new());
    let mut data = SearchDataset {
        layout: LAYOUT.name,
        root,
        train: Vec::new(),
        test: Vec::new(),
        queries: Vec::new(),
        problems,
    };
    let (mut train_index, mut test_index) = (HashMap::new(), HashMap::new());
    let images = read_mat(&file)?;
    let images = images.get("Img").and_then(|images| images.records());
    for record in images.map_err(in_file(&file))? {
        let (name, boxes) = record
            .and_then(|r| Ok((r.at(0)?.text()?, boxes(r.at(2)?)?)))
            .map_err(in_file(&file))?;
        let frame = SearchFrame {
            path: data.root.join("Image/SSM").join(&name),
            size: None,
            camera: None,
            people: { boxes.into_iter() }
                .filter(|bbox| bbox[2] > 0.0 && bbox[3] > 0.0)
                .map(|bbox| FramePerson { bbox, person: None })
                .collect(),
        };
        let (frames, index) = match pool.contains(&name) {
            true => (&mut data.test, &mut test_index),
            false => (&mut data.train, &mut train_index),
        };
        if index.insert(name.clone(), frames.len()).is_some() {
            data.problems
                .push(format!("{}: `{name}` is listed twice", file.display()));
        }
        frames.push(frame);
    }

    let train = protocols.join("Train.mat");
    for (person, sightings) in (1..).zip(read_train(&train)?) {
        for (name, bbox) in sightings {
            mark(
                &mut data.train,
                &train_index,
                &name,
                bbox,
                person,
                &train,
                &mut data.problems,
            );
        }
    }
    let people = protocols.join("TestG50.mat");
    let first = read_protocol(&people, "TestG50", &test_index)?;
    let names: Vec<String> = names_of(&data.test);
    for (person, (query, protocol)) in (1..).zip(&first) {
        let shown = protocol.shown.iter();
        let sightings =
            shown.map(|(place, bbox)| (protocol.frames[*place as usize] as usize, *bbox));
        for (frame, bbox) in sightings.chain([(query.0, query.1)]) {
            mark(
                &mut data.test,
                &test_index,
                &names[frame],
                bbox,
                person,
                &people,
                &mut data.problems,
            );
        }
    }
    let protocols = match size {
        GallerySize::Frames(50) | GallerySize::Full => first,
        GallerySize::Frames(size) => {
            let name = format!("TestG{size}");
            let file = protocols.join(format!("{name}.mat"));
            read_protocol(&file, &name, &test_index)?
        }
    };
    let all = data.test.len() as u32;
    data.queries = { protocols.into_iter().zip(1..) }
        .map(|(((frame, bbox), mut protocol), person)| {
            if size == GallerySize::Full {
                let listed: BTreeSet<u32> = protocol
                    .frames
                    .iter()
                    .copied()
                    .chain([frame as u32])
                    .collect();
                protocol
                    .frames
                    .extend((0..all).filter(|frame| !listed.contains(frame)));
            }
            SearchQuery {
                frame,
                bbox,
                person,
                protocol: Some(protocol),
            }
        })
        .collect();
    Ok(data)
}

/// A published gallery: its name, its queries, the smallest and the largest number of frames that
/// one is searched in.
pub(crate) struct GallerySummary {
    pub(crate) name: String,
    pub(crate) queries: usize,
    pub(crate) frames: [usize; 2],
}

/// The galleries whose files exist, read one after the other, as the largest have gigabytes; and
/// their problems.
///
/// # Errors
/// If one is invalid.
pub(crate) fn galleries(
    data: &SearchDataset,
) -> Result<(Vec<GallerySummary>, Vec<String>), LayoutError> {
    let names = names_of(&data.test);
    let index: HashMap<String, usize> = names.into_iter().zip(0..).collect();
    let (mut galleries, mut problems) = (Vec::new(), Vec::new());
    for size in SIZES {
        let name = format!("TestG{size}");
        let file = { data.root.join("annotation/test/train_test") }.join(format!("{name}.mat"));
        if !file.is_file() {
            continue;
        }
        let read = read_protocol(&file, &name, &index)?;
        // People are numbered by the queries of the smallest.
        let differs =
            |((sought, _), query): &(&Sought, &SearchQuery)| *sought != (query.frame, query.bbox);
        if let Some(number) = read
            .iter()
            .zip(&data.queries)
            .position(|pair| differs(&pair))
        {
            let file = file.display();
            problems.push(format!(
                "{file}: query {} is another than in TestG50.mat",
                number + 1
            ));
        }
        let frames = || read.iter().map(|(_, protocol)| protocol.frames.len());
        galleries.push(GallerySummary {
            name,
            queries: read.len(),
            frames: [frames().min().unwrap_or(0), frames().max().unwrap_or(0)],
        });
    }
    Ok((galleries, problems))
}

fn names_of(frames: &[SearchFrame]) -> Vec<String> {
    let name = |frame: &SearchFrame| {
        frame
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    frames.iter().map(name).collect()
}

/// Sets the identity of a box.
fn mark(
    frames: &mut [SearchFrame],
    index: &HashMap<String, usize>,
    name: &str,
    bbox: [f64; 4],
    person: i64,
    file: &Path,
    problems: &mut Vec<String>,
) {
    let people = index.get(name).map(|i| &mut frames[*i].people);
    let marked = people.and_then(|people| people.iter_mut().find(|marked| marked.bbox == bbox));
    match marked {
        Some(marked) => marked.person = Some(person),
        None => problems.push(format!(
            "{}: person {person}: `{name}` has no box {bbox:?} in Images.mat",
            file.display()
        )),
    }
}

fn read_pool(file: &Path) -> Result<BTreeSet<String>, LayoutError> {
    let mat = read_mat(file)?;
    let names = mat
        .get("pool")
        .and_then(|pool| pool.cells()?.map(|cell| cell?.text()).collect());
    names.map_err(in_file(file))
}

/// Where each person of the training frames is.
fn read_train(file: &Path) -> Result<Vec<Vec<(String, [f64; 4])>>, LayoutError> {
    let mat = read_mat(file)?;
    let sightings = |person: Array| -> Result<Vec<_>, MatError> {
        let scenes = person.record()?.at(2)?.records()?;
        scenes
            .map(|scene| scene.and_then(|s| Ok((s.at(0)?.text()?, bbox(s.at(1)?)?))))
            .collect()
    };
    let people = mat
        .get("Train")
        .and_then(|train| train.cells()?.map(|cell| sightings(cell?)).collect());
    people.map_err(in_file(file))
}

/// Frame and box of each query, and its gallery.
type Sought = ((usize, [f64; 4]), QueryGallery);

fn read_protocol(
    file: &Path,
    name: &str,
    index: &HashMap<String, usize>,
) -> Result<Vec<Sought>, LayoutError> {
    let mat = read_mat(file)?;
    let place = |name: String| {
        index.get(&name).copied().ok_or_else(|| MatError {
            place: "gallery".to_owned(),
            expected: "frames of pool.mat".to_owned(),
            found: format!("`{name}`"),
        })
    };
    let one = |query: Array, gallery: Array| -> Result<Sought, MatError> {
        let query = query.record()?;
        let sought = (
            place(query.get("imname")?.text()?)?,
            bbox(query.get("idlocate")?)?,
        );
        let mut protocol = QueryGallery::default();
        let mut listed = HashSet::new();
        for scene in gallery.records()? {
            let scene = scene?;
            let name = scene.at(0)?.text()?;
            let frame = place(name.clone())? as u32;
            if !listed.insert(frame) {
                return Err(MatError {
                    place: "gallery".to_owned(),
                    expected: "each frame once".to_owned(),
                    found: format!("`{name}` twice"),
                });
            }
            let shown = scene.at(1)?;
            if !shown.is_empty() {
                protocol
                    .shown
                    .push((protocol.frames.len() as u32, bbox(shown)?));
            }
            protocol.frames.push(frame);
        }
        Ok((sought, protocol))
    };
    let queries = mat.get(name).and_then(|queries| {
        let queries = queries.records()?;
        queries
            .map(|q| q.and_then(|q| one(q.get("Query")?, q.get("Gallery")?)))
            .collect()
    });
    queries.map_err(in_file(file))
}

fn boxes(array: Array) -> Result<Vec<[f64; 4]>, MatError> {
    if array.is_empty() {
        return Ok(Vec::new());
    }
    array
        .records()?
        .map(|record| bbox(record?.at(0)?))
        .collect()
}

fn bbox(array: Array) -> Result<[f64; 4], MatError> {
    let numbers = array.numbers()?;
    numbers[..].try_into().map_err(|_| MatError {
        place: "box".to_owned(),
        expected: "x, y, width, height".to_owned(),
        found: format!("{numbers:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    fn golden() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mat"))
    }

    #[test]
    fn a_miniature() {
        let data = SearchDataset::open(golden(), GallerySize::default()).unwrap();
        assert_eq!(
            (data.layout, data.train.len(), data.test.len()),
            ("CUHK-SYSU", 2, 3)
        );
        let persons =
            |frame: &SearchFrame| frame.people.iter().map(|m| m.person).collect::<Vec<_>>();
        // The box without a width is gone.
        assert_eq!(persons(&data.train[0]), [Some(1), Some(2)]);
        assert_eq!(persons(&data.train[1]), [Some(1)]);
        assert_eq!(
            (persons(&data.test[0]), persons(&data.test[1])),
            (vec![Some(1), None], vec![Some(1)])
        );
        assert!(data.test[0].path.ends_with("cuhk_sysu/Image/SSM/s3.jpg"));
        let query = &data.queries[0];
        assert_eq!(
            (query.frame, query.bbox, query.person),
            (0, [7.0, 1.0, 11.0, 31.0], 1)
        );
        let bbox = Some([2.0, 3.0, 14.0, 35.0]);
        assert_eq!(data.gallery(query, false), [(1, bbox), (2, None)]);
        assert!(data.problems().is_empty(), "{:?}", data.problems());

        let small = SearchDataset::open(golden(), GallerySize::Frames(50)).unwrap();
        assert_eq!(small.gallery(&small.queries[0], false), [(1, bbox)]);
        let full = SearchDataset::open(golden(), GallerySize::Full).unwrap();
        assert_eq!(
            full.gallery(&full.queries[0], false),
            [(1, bbox), (2, None)]
        );
        let error = SearchDataset::open(golden(), GallerySize::Frames(500))
            .unwrap_err()
            .to_string();
        assert!(error.contains("TestG500.mat"), "{error}");
    }

    #[test]
    fn missing_lists_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("annotation");
        let copy = |name: &str, to: &str| {
            let to = root.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(golden().join("cuhk_sysu/annotation").join(name), to).unwrap();
        };
        for name in [
            "Images.mat",
            "pool.mat",
            "test/train_test/Train.mat",
            "test/train_test/TestG100.mat",
            "test/train_test/TestG50.mat",
        ] {
            copy(name, name);
        }
        // Nothing is for searching: the training frames are all, and the queries' frames are
        // unknown.
        copy("test/train_test/Train.mat", "pool.mat");
        let error = SearchDataset::open(folder.path(), GallerySize::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("pool.mat, file: expected a variable `pool`, found `Train`"),
            "{error}"
        );
    }
}
