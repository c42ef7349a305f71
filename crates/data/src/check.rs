//! What a folder holds, before it is used: `clasp data check`.
//!
//! Every known layout is looked for and counted, beside the official counts where there are any. Problems are images listed but
//! not there, boxes outside their image, queries whom no gallery shows. On request every image is decoded, which finds what is
//! broken in a copy, and what is in it twice.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::image::{Limits, decode};
use crate::layouts::LayoutError;
use crate::layouts::attributes::Attributes;
use crate::layouts::coco::Keypoints;
use crate::layouts::detection::{self, Boxes};
use crate::layouts::par;
use crate::layouts::parsing::{Masked, Parsing, folders};
use crate::layouts::reid::{Reid, cameras, people};
use crate::layouts::search::{self, GallerySize, Search};
use crate::source::{Source, SourceError};

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was checked.
    pub path: String,
    /// Images of any kind, in any depth.
    pub images: usize,
    /// The layouts that were found.
    pub layouts: Vec<Found>,
    /// Paths that were looked for and are not there.
    pub tried: Vec<String>,
    /// Images that were decoded; `None` if that was not asked for.
    pub decoded: Option<usize>,
    /// Where and why, for each image that cannot be decoded.
    pub unreadable: Vec<(String, String)>,
    /// Images with the same bytes as an earlier one, and that; known if images were decoded. No problem in itself.
    pub repeated: Vec<(String, String)>,
    /// What keeps the images from being listed, if anything.
    pub problem: Option<String>,
}

/// A layout in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Its name, for example `Market-1501 layout`.
    pub layout: String,
    /// Where it is.
    pub place: String,
    /// What it holds.
    pub counts: Vec<Count>,
    /// What is wrong with it; empty if nothing is.
    pub problems: Vec<String>,
}

/// A number of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Of what, for example `query images`.
    pub what: String,
    /// The number found.
    pub found: u64,
    /// The number that the published data set has, where there is one.
    pub official: Option<u64>,
}

impl Report {
    /// Whether nothing is wrong. Counts other than the official ones are not wrong: it may be another data set.
    pub fn is_ok(&self) -> bool {
        self.problem.is_none()
            && self.unreadable.is_empty()
            && self.layouts.iter().all(|l| l.problems.is_empty())
    }

    /// Whether every count that has an official one equals it; `None` if there is none.
    pub fn is_official(&self) -> Option<bool> {
        let counts = self.layouts.iter().flat_map(|layout| &layout.counts);
        counts
            .filter_map(|count| count.official.map(|official| official == count.found))
            .reduce(|a, b| a && b)
    }
}

/// Checks a folder, or any images that [`Source::open`] takes. With `decoding`, decodes every image; `progress` is called
/// with the number done and the number of all.
///
/// # Errors
/// If there is neither a known layout nor an image.
pub fn check(
    path: &str,
    decoding: bool,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, SourceError> {
    let folder = Path::new(path);
    let (mut layouts, mut tried) = (Vec::new(), Vec::new());
    if folder.is_dir() {
        let found = [
            ("re-identification data", reid(folder)),
            ("attribute table", attributes(folder)),
            ("label maps", parsing(folder)),
            ("person search data", person_search(folder)),
        ];
        let found = found
            .into_iter()
            .chain(keypoints(folder))
            .chain(boxes(folder));
        for (name, result) in found {
            match result {
                Ok(found) => layouts.push(found),
                Err(LayoutError::NotFound { tried: paths, .. }) => tried.extend(paths),
                Err(error) => layouts.push(Found {
                    layout: name.to_owned(),
                    place: path.to_owned(),
                    counts: Vec::new(),
                    problems: vec![error.to_string()],
                }),
            }
        }
    }
    let mut report = Report {
        path: path.to_owned(),
        images: 0,
        layouts,
        tried,
        decoded: None,
        unreadable: Vec::new(),
        repeated: Vec::new(),
        problem: None,
    };
    match Source::open(path) {
        Ok(source) => {
            report.images = source.len();
            if decoding {
                (report.unreadable, report.repeated) = decode_all(&source, progress);
                report.decoded = Some(source.len() - report.unreadable.len());
            }
        }
        Err(error) if report.layouts.is_empty() => return Err(error),
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(report)
}

/// Places in the source's order, with a reason or an earlier place.
type Places = Vec<(String, String)>;

/// Tries every image on all threads: what cannot be read, and what is there twice.
fn decode_all(source: &Source, progress: &(dyn Fn(usize, usize) + Sync)) -> (Places, Places) {
    let done = AtomicUsize::new(0);
    let try_one = |i| {
        let result = source.read(i).map_err(|error| error.to_string());
        let result = result.and_then(|bytes| match decode(&bytes, &Limits::default()) {
            Ok(_) => {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                Ok((bytes.len(), hasher.finish()))
            }
            Err(error) => Err(error.to_string()),
        });
        progress(1 + done.fetch_add(1, Ordering::Relaxed), source.len());
        result
    };
    let results: Vec<Result<(usize, u64), String>> =
        (0..source.len()).into_par_iter().map(try_one).collect();
    let (mut unreadable, mut repeated, mut first) = (Vec::new(), Vec::new(), HashMap::new());
    for (i, result) in results.into_iter().enumerate() {
        match result {
            Ok(content) => match first.entry(content) {
                Entry::Occupied(earlier) => {
                    repeated.push((source.place(i), source.place(*earlier.get())))
                }
                Entry::Vacant(place) => {
                    place.insert(i);
                }
            },
            Err(reason) => unreadable.push((source.place(i), reason)),
        }
    }
    (unreadable, repeated)
}

fn count(what: impl Into<String>, found: usize) -> Count {
    Count {
        what: what.into(),
        found: found as u64,
        official: None,
    }
}

/// A message for files of a list that are not there.
fn missing<'a>(what: &str, paths: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let missing: BTreeSet<&Path> = paths.filter(|path| !path.is_file()).collect();
    let first = missing.first().map(|path| path.display().to_string());
    first
        .map(|first| format!("{} {what} are missing, the first: {first}", missing.len()))
        .into_iter()
        .collect()
}

/// Says what the published data set has of these.
fn publish<'a>(counts: &mut [Count], published: impl IntoIterator<Item = (&'a str, u64)>) {
    for (what, official) in published {
        for count in counts.iter_mut().filter(|count| count.what == what) {
            count.official = Some(official);
        }
    }
}

/// A message for boxes outside their images.
fn outside(boxes: impl Iterator<Item = ([f64; 4], [usize; 2], String)>) -> Vec<String> {
    let beyond = |bbox: &[f64; 4], [height, width]: &[usize; 2]| {
        let shared =
            |start: f64, size: f64, limit: usize| (start + size).min(limit as f64) - start.max(0.0);
        shared(bbox[0], bbox[2], *width) <= 0.0 || shared(bbox[1], bbox[3], *height) <= 0.0
    };
    let wrong: Vec<String> = { boxes.filter(|(bbox, size, _)| beyond(bbox, size)) }
        .map(|(bbox, [height, width], place)| format!("{bbox:?} in {place} of {width} x {height}"))
        .collect();
    let message = |first: &String| {
        let count = wrong.len();
        format!(
            "{count} boxes cover nothing of their image, the first (x, y, width, height): {first}"
        )
    };
    wrong.first().map(message).into_iter().collect()
}

fn reid(folder: &Path) -> Result<Found, LayoutError> {
    let data = Reid::open(folder)?;
    let mut counts = vec![
        count("training images", data.train.len()),
        count("training people", people(&data.train)),
        count("query images", data.query.len()),
        count("query people", people(&data.query)),
        count("gallery images", data.gallery.len()),
        count("gallery people", people(&data.gallery)),
        count(
            "distractors in the gallery",
            data.gallery.iter().filter(|crop| crop.person == 0).count(),
        ),
        count("junk images, dropped", data.junk),
        count(
            "cameras",
            cameras(&[data.train.as_slice(), &data.query, &data.gallery].concat()),
        ),
    ];
    let published = data.published();
    if let Some(published) = published {
        let names: Vec<String> = counts[..6].iter().map(|count| count.what.clone()).collect();
        publish(
            &mut counts,
            names.iter().map(String::as_str).zip(published.counts),
        );
    }
    let crops = [&data.train, &data.val, &data.query, &data.gallery];
    let paths = crops.into_iter().flatten().map(|crop| crop.path.as_path());
    let mut problems = missing("images", paths);
    problems.extend(data.problems());
    Ok(Found {
        layout: match published {
            Some(published) if published.name != data.layout => {
                format!("{} ({})", data.layout, published.name)
            }
            _ => data.layout.to_owned(),
        },
        place: data.root.display().to_string(),
        counts,
        problems,
    })
}

fn person_search(folder: &Path) -> Result<Found, LayoutError> {
    let data = Search::open(folder, GallerySize::default())?;
    let boxes = |frames: &[search::Frame]| frames.iter().map(|frame| frame.people.len()).sum();
    let mut counts = vec![
        count("training frames", data.train.len()),
        count("test frames", data.test.len()),
        count("queries", data.queries.len()),
        count("training people", Search::people(&data.train)),
        count("test people", Search::people(&data.test)),
        count("training boxes", boxes(&data.train)),
        count("test boxes", boxes(&data.test)),
    ];
    if let Some((_, published)) = search::PUBLISHED
        .iter()
        .find(|(name, _)| *name == data.layout)
    {
        let names = [
            "training frames",
            "test frames",
            "queries",
            "training people",
        ];
        publish(&mut counts, names.into_iter().zip(*published));
    }
    let frames: Vec<&search::Frame> = data.train.iter().chain(&data.test).collect();
    let mut problems = missing("frames", frames.iter().map(|frame| frame.path.as_path()));
    let sized: Vec<(&search::Frame, [usize; 2])> = { frames.par_iter() }
        .filter_map(|frame| {
            let (width, height) = ::image::image_dimensions(&frame.path).ok()?;
            Some((*frame, [height as usize, width as usize]))
        })
        .collect();
    problems.extend(outside(sized.iter().flat_map(|(frame, size)| {
        let place = frame.path.display();
        { frame.people.iter() }.map(move |marked| (marked.bbox, *size, place.to_string()))
    })));
    problems.extend(data.problems());
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.root.display().to_string(),
        counts,
        problems,
    })
}

fn boxes(folder: &Path) -> impl Iterator<Item = (&'static str, Result<Found, LayoutError>)> {
    ["train", "val", "test"]
        .into_iter()
        .enumerate()
        .map(move |(index, split)| {
            let found = Boxes::open(folder, split).map(|data| {
                let mut counts = vec![
                    count("images", data.images.len()),
                    count("people", data.people.len()),
                    count(
                        "people that are ignored",
                        data.people.iter().filter(|p| p.ignored).count(),
                    ),
                    count("crowds", data.people.iter().filter(|p| p.crowd).count()),
                ];
                let place = data.file.display().to_string();
                if let Some(official) = detection::CITYPERSONS.get(index)
                    && place.to_lowercase().contains("cityperson")
                {
                    publish(&mut counts, [("images", *official)]);
                }
                let mut problems = missing(
                    "images",
                    data.images.iter().map(|image| image.path.as_path()),
                );
                problems.extend(data.problems);
                Found {
                    layout: format!("COCO boxes, {split}"),
                    place,
                    counts,
                    problems,
                }
            });
            ("COCO boxes", found)
        })
}

fn attributes(folder: &Path) -> Result<Found, LayoutError> {
    let data = Attributes::open(folder)?;
    let mut counts = vec![count("attributes", data.names.len())];
    for split in data.splits() {
        let images = data.split(&split)?;
        counts.push(count(format!("{split} images"), images.len()));
        let constant = |j: &usize| {
            images
                .iter()
                .all(|image| image.values[*j] == images[0].values[*j])
        };
        counts.push(count(
            format!("attributes that are the same in all of {split}"),
            (0..data.names.len()).filter(constant).count(),
        ));
    }
    if let Some((_, published)) = par::PUBLISHED.iter().find(|(name, _)| *name == data.layout) {
        let names = ["attributes", "train images", "val images", "test images"];
        publish(&mut counts, names.into_iter().zip(*published));
    }
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems: missing(
            "images",
            data.images.iter().map(|image| image.path.as_path()),
        ),
    })
}

fn parsing(folder: &Path) -> Result<Found, LayoutError> {
    let data = Parsing::open(folder)?;
    let mut counts = vec![count("classes", data.classes.len())];
    for split in data.splits() {
        counts.push(count(format!("{split} images"), data.split(&split)?.len()));
    }
    let mut problems = missing(
        "images",
        data.images.iter().map(|image| image.image.as_path()),
    );
    problems.extend(missing(
        "masks",
        data.images.iter().map(|image| image.mask.as_path()),
    ));
    // Masks are small beside images: reading them finds labels without a name and classes without a pixel.
    let read = |image: &Masked| match data.read_mask(&image.mask) {
        Ok(map) => {
            let mut present = [false; 256];
            map.labels
                .iter()
                .for_each(|label| present[usize::from(*label)] = true);
            Ok((image.split.clone(), present))
        }
        Err(error) => Err(error.to_string()),
    };
    let (mut wrong, mut present) = (Vec::new(), HashMap::<String, [bool; 256]>::new());
    let read: Vec<Result<_, String>> = { data.images.par_iter() }
        .filter(|image| image.mask.is_file())
        .map(read)
        .collect();
    for result in read {
        match result {
            Ok((split, labels)) => {
                let all = present.entry(split).or_insert([false; 256]);
                all.iter_mut()
                    .zip(labels)
                    .for_each(|(all, label)| *all |= label);
            }
            Err(error) => wrong.push(error),
        }
    }
    for split in data.splits() {
        let Some(present) = present.get(&split) else {
            continue;
        };
        let absent: Vec<&str> = { data.classes.iter().zip(present) }
            .filter(|(_, present)| !**present)
            .map(|(class, _)| class.as_str())
            .collect();
        if !absent.is_empty() {
            let names = absent.join(", ");
            counts.push(count(
                format!("classes in no mask of {split}: {names}"),
                absent.len(),
            ));
        }
    }
    if let Some((_, published)) =
        { folders::PUBLISHED.iter() }.find(|(name, _)| *name == data.layout)
    {
        publish(
            &mut counts,
            ["train images", "val images"].into_iter().zip(*published),
        );
    }
    if let Some(first) = wrong.first() {
        problems.push(format!(
            "{} masks cannot be used, the first: {first}",
            wrong.len()
        ));
    }
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems,
    })
}

fn keypoints(folder: &Path) -> impl Iterator<Item = (&'static str, Result<Found, LayoutError>)> {
    ["train", "val", "test"].into_iter().map(move |split| {
        let found = Keypoints::open(folder, split).map(|data| Found {
            layout: format!("COCO keypoints, {split}"),
            place: data.file.display().to_string(),
            counts: vec![
                count("joints", data.joints.len()),
                count("images", data.images.len()),
                count("people", data.people.len()),
                count(
                    "people with a labelled joint",
                    data.people.iter().filter(|p| p.labelled() > 0).count(),
                ),
                count("crowds", data.people.iter().filter(|p| p.crowd).count()),
            ],
            problems: {
                let paths = data.images.iter().map(|image| image.path.as_path());
                let mut problems = missing("images", paths);
                problems.extend(outside(data.people.iter().map(|person| {
                    let image = &data.images[person.image];
                    let size = [image.height, image.width];
                    (person.bbox, size, image.path.display().to_string())
                })));
                problems
            },
        });
        ("COCO keypoints", found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Rgb, encode_jpeg};
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
                "7 boxes cover nothing of their image, the first (x, y, width, height): [10.0,"
            ),
            "{}",
            problems(0)
        );
        assert!(
            problems(1).starts_with("1 boxes cover nothing of their image"),
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
