//! What a dataset of each task holds: counts, problems, notes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::report::{CheckedCount, LayoutCheck};
use crate::image::size_of;
use crate::layouts::LayoutError;
use crate::layouts::attributes::AttributeDataset;
use crate::layouts::coco::{BoxDataset, CocoImage, KeypointDataset, is_outside, share_inside};
use crate::layouts::layout::{LayoutReader, OfficialCounts};
use crate::layouts::parsing::{self, MaskedImage, ParsingDataset};
use crate::layouts::registry::{LAYOUTS, official};
use crate::layouts::reid::{ReidDataset, ReidImage, cameras, msmt17, people};
use crate::layouts::search::{SearchDataset, SearchFrame, cuhk_sysu};

fn count(what: impl Into<String>, found: usize) -> CheckedCount {
    CheckedCount {
        what: what.into(),
        found: found as u64,
        official: None,
    }
}

/// Adds the official counts of a published dataset to those found.
fn publish(counts: &mut [CheckedCount], published: Option<&OfficialCounts>) {
    for (what, official) in published.into_iter().flat_map(|set| set.counts) {
        for count in counts.iter_mut().filter(|count| count.what == *what) {
            count.official = Some(*official);
        }
    }
}

/// The published dataset for re-identification that this seems to be: by its folder's name, else by
/// its counts.
fn published_reid(data: &ReidDataset) -> Option<&'static OfficialCounts> {
    // The last two folders: those above are named by the user.
    let ends: Vec<_> = data.root.components().rev().take(2).collect();
    let ends: Vec<String> = ends
        .iter()
        .map(|part| part.as_os_str().to_string_lossy().to_lowercase())
        .collect();
    let place = ends.join("/");
    let of_reid = |reader: &LayoutReader| matches!(reader, LayoutReader::Reid { .. });
    let layouts = LAYOUTS.iter().filter(|layout| of_reid(&layout.reader));
    let sets: Vec<&OfficialCounts> = layouts.flat_map(|layout| layout.official).collect();
    let is_named = |set: &&&OfficialCounts| {
        let words = set.folder_words;
        !words.is_empty() && words.iter().all(|word| place.contains(word))
    };
    let images = [
        ("training images", data.train.len()),
        ("query images", data.query.len()),
        ("gallery images", data.gallery.len()),
    ];
    let is_equal = |set: &&&OfficialCounts| {
        images
            .iter()
            .any(|(what, found)| set.counts.contains(&(what, *found as u64)))
    };
    sets.iter()
        .find(is_named)
        .or_else(|| sets.iter().find(is_equal))
        .copied()
}

/// How many there are of something, and the first; nothing of none.
fn counted(what: &str, all: &[String]) -> Option<String> {
    let first = all.first()?;
    Some(format!("{} {what}, the first: {first}", all.len()))
}

/// A message for files of a list that are not there.
fn missing<'a>(what: &str, paths: impl Iterator<Item = &'a Path>) -> Option<String> {
    let missing: BTreeSet<&Path> = paths.filter(|path| !path.is_file()).collect();
    let missing: Vec<String> = missing
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    counted(&format!("{what} are missing"), &missing)
}

/// A size for messages.
fn describe_size([height, width]: [usize; 2]) -> String {
    format!("{width} x {height} (width x height)")
}

/// A message for image files of another size than the annotation says.
fn other_sizes(images: &[CocoImage]) -> Option<String> {
    let other = |image: &CocoImage| {
        let (said, found) = ([image.height, image.width], size_of(&image.path)?);
        let place = image.path.display();
        (found != said).then(|| {
            format!(
                "{place}: expected {}, found {}",
                describe_size(said),
                describe_size(found)
            )
        })
    };
    let others: Vec<String> = images.par_iter().filter_map(other).collect();
    counted("images are of another size than the JSON says", &others)
}

/// A note on people who are both in training and in the test.
fn in_both(train: &BTreeSet<i64>, test: &BTreeSet<i64>) -> Option<String> {
    let both: Vec<String> = train.intersection(test).map(i64::to_string).collect();
    let note = counted(
        "people are both in training and in the test by their numbers",
        &both,
    )?;
    Some(format!(
        "{note}; if they are the same people, results are too high"
    ))
}

/// A note on images of a split that are in training too; `train` gives the training images.
fn in_training_too(
    split: &str,
    images: &[CocoImage],
    train: impl FnOnce() -> Option<Vec<CocoImage>>,
) -> Option<String> {
    if split == "train" {
        return None;
    }
    let train: BTreeSet<PathBuf> = train()?.into_iter().map(|image| image.path).collect();
    let both = images.iter().filter(|image| train.contains(&image.path));
    let both: Vec<String> = both.map(|image| image.path.display().to_string()).collect();
    let note = counted(&format!("images of {split} are in train too"), &both)?;
    Some(format!("{note}; results on them are too high"))
}

/// Notes on images that a table lists more than once: in one split, with other annotation, in train
/// and another split. `rows`: path, split and annotation.
fn listed_again<T: PartialEq>(rows: &[(&Path, &str, T)]) -> Vec<String> {
    let mut first: BTreeMap<(&Path, &str), &T> = BTreeMap::new();
    let (mut twice, mut other) = (Vec::new(), Vec::new());
    for (path, split, annotation) in rows {
        match first.get(&(*path, *split)) {
            Some(earlier) => {
                twice.push(path.display().to_string());
                if *earlier != annotation {
                    other.push(path.display().to_string());
                }
            }
            None => {
                first.insert((path, split), annotation);
            }
        }
    }
    let mut notes = Vec::from_iter(counted("images are listed twice in one split", &twice));
    notes.extend(counted(
        "images listed twice have other annotation the second time",
        &other,
    ));
    let mut shared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (path, split) in first.keys() {
        if *split != "train" && first.contains_key(&(*path, "train")) {
            shared
                .entry(split)
                .or_default()
                .push(path.display().to_string());
        }
    }
    for (split, images) in shared {
        let note = counted(&format!("images of {split} are in train too"), &images);
        notes.extend(note.map(|note| format!("{note}; results on them are too high")));
    }
    notes
}

/// Names between quotes.
fn quoted<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

pub(super) fn reid(mut data: ReidDataset) -> Result<LayoutCheck, LayoutError> {
    let held = data.val.len();
    let is_msmt17 = data.layout == msmt17::LAYOUT.name;
    // Most published results train on MSMT17's validation images.
    if is_msmt17 {
        data.train.append(&mut data.val);
    }
    let all = [&data.train[..], &data.val, &data.query, &data.gallery].concat();
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
        count("cameras", cameras(&all)),
    ];
    if is_msmt17 {
        counts.insert(1, count("of the training images in list_val.txt", held));
    } else if held > 0 {
        counts.insert(2, count("validation images", held));
    }
    let published = published_reid(&data);
    publish(&mut counts, published);
    let numbers = |crops: &[ReidImage]| -> BTreeSet<i64> {
        crops
            .iter()
            .map(|crop| crop.person)
            .filter(|person| *person > 0)
            .collect()
    };
    let mut test = numbers(&data.query);
    test.extend(numbers(&data.gallery));
    // MSMT17 numbers the people of training and test from 0 each.
    let both = (!is_msmt17)
        .then(|| in_both(&numbers(&data.train), &test))
        .flatten();
    let splits = [
        ("train", &data.train),
        ("val", &data.val),
        ("query", &data.query),
        ("gallery", &data.gallery),
    ];
    let rows: Vec<(&Path, &str, i64)> = { splits.iter() }
        .flat_map(|(split, crops)| {
            crops
                .iter()
                .map(move |crop| (crop.path.as_path(), *split, crop.person))
        })
        .collect();
    let again = listed_again(&rows);
    let mut problems = Vec::from_iter(missing(
        "images",
        all.iter().map(|crop| crop.path.as_path()),
    ));
    problems.extend(data.problems());
    Ok(LayoutCheck {
        layout: match published {
            Some(published) if published.dataset != data.layout => {
                format!("{} ({})", data.layout, published.dataset)
            }
            _ => data.layout.to_owned(),
        },
        place: data.root.display().to_string(),
        counts,
        problems,
        notes: both.into_iter().chain(again).collect(),
    })
}

/// `first` is the file that is read before it where the folder is given.
pub(super) fn attributes(
    data: AttributeDataset,
    first: Option<PathBuf>,
) -> Result<LayoutCheck, LayoutError> {
    let mut counts = vec![count("attributes", data.names.len())];
    let mut notes = Vec::new();
    if let Some(first) = first {
        let first = first.file_name().unwrap_or_default().display();
        notes.push(format!(
            "where the folder is given, {first} is read; give this file to read it"
        ));
    }
    for split in data.splits() {
        let images = data.split(&split)?;
        counts.push(count(format!("{split} images"), images.len()));
        for (value, word) in [(false, "false"), (true, "true")] {
            let constant = |j: &usize| images.iter().all(|image| image.values[*j] == value);
            let constant: Vec<usize> = (0..data.names.len()).filter(constant).collect();
            if !constant.is_empty() {
                let names = quoted(constant.iter().map(|j| &data.names[*j]));
                notes.push(format!(
                    "{} attributes are {word} for every image of {split}: {names}",
                    constant.len()
                ));
            }
        }
    }
    publish(&mut counts, official(data.layout));
    let paths = data.images.iter().map(|image| image.path.as_path());
    let rows = { data.images.iter() }
        .map(|image| (image.path.as_path(), image.split.as_str(), &image.values));
    notes.extend(listed_again(&Vec::from_iter(rows)));
    Ok(LayoutCheck {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems: Vec::from_iter(missing("images", paths)),
        notes,
    })
}

pub(super) fn parsing(data: &ParsingDataset) -> Result<LayoutCheck, LayoutError> {
    let mut counts = vec![count("classes", data.classes.len())];
    let published = official(data.layout);
    // Where the authors have no splits, all images are counted.
    if published.is_some_and(|set| set.counts.iter().any(|(what, _)| *what == "images")) {
        counts.push(count("images", data.images.len()));
    }
    for split in data.splits() {
        counts.push(count(format!("{split} images"), data.split(&split)?.len()));
    }
    publish(&mut counts, published);
    // Masks are small beside images: reading them finds labels without a name and classes without a
    // pixel.
    let read = |image: &MaskedImage| -> Result<[bool; 256], String> {
        let map = data
            .read_mask(&image.mask)
            .map_err(|error| error.to_string())?;
        let (size, found) = ([map.height, map.width], size_of(&image.image));
        if let Some(expected) = found.filter(|found| *found != size) {
            let place = image.mask.display();
            return Err(format!(
                "{place}: expected {} as its image, found {}",
                describe_size(expected),
                describe_size(size)
            ));
        }
        Ok(map.present())
    };
    let read: Vec<(&str, Result<[bool; 256], String>)> = { data.images.par_iter() }
        .filter(|image| image.mask.is_file())
        .map(|image| (image.split.as_str(), read(image)))
        .collect();
    let (mut wrong, mut present) = (Vec::new(), BTreeMap::<&str, [bool; 256]>::new());
    let mut any = [false; 256];
    for (split, result) in read {
        match result {
            Ok(labels) => {
                let present = present.entry(split).or_insert([false; 256]);
                for (label, there) in labels.into_iter().enumerate() {
                    present[label] |= there;
                    any[label] |= there;
                }
            }
            Err(error) => wrong.push(error),
        }
    }
    let mut notes = Vec::new();
    for (split, present) in present {
        let classes = data.classes.iter().zip(present);
        let absent: Vec<&String> = classes
            .filter(|(_, there)| !there)
            .map(|(class, _)| class)
            .collect();
        if !absent.is_empty() {
            let (count, names) = (absent.len(), quoted(absent));
            notes.push(format!("{count} classes have no pixel in {split}: {names}"));
        }
    }
    let alone = data.sides().alone;
    if !alone.is_empty() {
        let names = quoted(alone.iter().map(|class| &data.classes[*class]));
        notes.push(format!(
            "classes with a side that has no counterpart, wrong in mirrored images: {names}"
        ));
    }
    let rows = { data.images.iter() }
        .map(|image| (image.image.as_path(), image.split.as_str(), &image.mask));
    notes.extend(listed_again(&Vec::from_iter(rows)));
    let images = data.images.iter().map(|image| image.image.as_path());
    let masks = data.images.iter().map(|image| image.mask.as_path());
    let mut problems = Vec::from_iter(missing("images", images));
    problems.extend(missing("masks", masks));
    problems.extend(counted("masks cannot be used", &wrong));
    if parsing::is_black_and_white(&any) {
        problems.push(parsing::BLACK_AND_WHITE.to_owned());
    }
    Ok(LayoutCheck {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems,
        notes,
    })
}

pub(super) fn search(data: SearchDataset) -> Result<LayoutCheck, LayoutError> {
    let boxes = |frames: &[SearchFrame]| frames.iter().map(|frame| frame.people.len()).sum();
    let mut counts = vec![
        count("training frames", data.train.len()),
        count("test frames", data.test.len()),
        count("queries", data.queries.len()),
        count("training people", SearchDataset::people(&data.train)),
        count("test people", SearchDataset::people(&data.test)),
        count("training boxes", boxes(&data.train)),
        count("test boxes", boxes(&data.test)),
    ];
    publish(&mut counts, official(data.layout));
    let official_queries = { counts.iter() }
        .find(|count| count.what == "queries")
        .and_then(|count| count.official);
    let frames = data.train.iter().chain(&data.test);
    let mut problems = Vec::from_iter(missing("frames", frames.map(|frame| frame.path.as_path())));
    problems.extend(SearchDataset::outside(&data.train));
    problems.extend(SearchDataset::outside(&data.test));
    problems.extend(data.problems());
    let of = |frame: &SearchFrame| {
        let size = frame.size.or_else(|| size_of(&frame.path));
        let boxes = frame.people.iter().map(|person| person.bbox);
        size.map_or_else(Vec::new, |size| mostly_outside(boxes, &frame.path, size))
    };
    let frames = data.train.par_iter().chain(&data.test);
    let mut notes = Vec::from_iter(counted(
        MOSTLY_OUTSIDE,
        &frames.flat_map_iter(of).collect::<Vec<_>>(),
    ));
    if data.layout == cuhk_sysu::LAYOUT.name {
        let (galleries, wrong) = cuhk_sysu::galleries(&data)?;
        for gallery in galleries {
            let mut queries = count(format!("queries of {}", gallery.name), gallery.queries);
            queries.official = official_queries;
            counts.push(queries);
            let [least, most] = gallery.frames;
            let frames = match least == most {
                true => format!("frames that each query of {} is searched in", gallery.name),
                false => format!(
                    "frames at most that a query of {} is searched in, {least} at least",
                    gallery.name
                ),
            };
            counts.push(count(frames, most));
        }
        problems.extend(wrong);
    } else {
        let numbers = |frames: &[SearchFrame]| -> BTreeSet<i64> {
            let people = frames.iter().flat_map(|frame| &frame.people);
            people.filter_map(|marked| marked.person).collect()
        };
        notes.extend(in_both(&numbers(&data.train), &numbers(&data.test)));
    }
    Ok(LayoutCheck {
        layout: data.layout.to_owned(),
        place: data.root.display().to_string(),
        counts,
        problems,
        notes,
    })
}

/// What [`mostly_outside`] lists.
const MOSTLY_OUTSIDE: &str = "boxes are more than half outside their image";

/// The boxes (xywh) of an image of `[height, width]` of which it shows something, but less than half:
/// people at the edge may have such boxes, boxes of another form often do.
fn mostly_outside(
    boxes: impl Iterator<Item = [f64; 4]>,
    image: &Path,
    size: [usize; 2],
) -> Vec<String> {
    boxes
        .filter(|bbox| (f64::MIN_POSITIVE..0.5).contains(&share_inside(*bbox, size)))
        .map(|bbox| {
            let (image, size) = (image.display(), describe_size(size));
            format!("{bbox:?} (x, y, width, height) of {image} of {size}")
        })
        .collect()
}

/// As [`mostly_outside`], of boxes of several images.
fn mostly_outside_images<'a>(
    boxes: impl Iterator<Item = ([f64; 4], &'a CocoImage)>,
) -> Vec<String> {
    boxes
        .flat_map(|(bbox, image)| {
            mostly_outside([bbox].into_iter(), &image.path, [image.height, image.width])
        })
        .collect()
}

pub(super) fn boxes(data: BoxDataset, file: &Path, split: &str) -> LayoutCheck {
    let people = || data.people.iter();
    let mut counts = vec![
        count("images", data.images.len()),
        count("people", data.people.len()),
        count(
            "people that are ignored",
            people().filter(|one| one.ignored).count(),
        ),
        count(
            "people that are partly hidden",
            people().filter(|one| one.visibility < 1.0).count(),
        ),
        count("crowds", people().filter(|one| one.crowd).count()),
    ];
    let citypersons = data
        .is_citypersons()
        .then(|| format!("CityPersons, {split}"));
    publish(&mut counts, citypersons.as_deref().and_then(official));
    let paths = data.images.iter().map(|image| image.path.as_path());
    let mut problems = Vec::from_iter(missing("images", paths));
    problems.extend(other_sizes(&data.images));
    // Miss rates are not evaluated on training images.
    let mut notes = Vec::from_iter(data.without_hidden().filter(|_| split != "train"));
    let beyond = people().map(|one| (one.bbox, &data.images[one.image]));
    notes.extend(counted(MOSTLY_OUTSIDE, &mostly_outside_images(beyond)));
    notes.extend(in_training_too(split, &data.images, || {
        let train = BoxDataset::open(file.parent()?, "train").ok()?;
        Some(train.images)
    }));
    problems.extend(data.problems);
    LayoutCheck {
        layout: citypersons.unwrap_or_else(|| format!("COCO boxes, {split}")),
        place: file.display().to_string(),
        counts,
        problems,
        notes,
    }
}

pub(super) fn keypoints(data: KeypointDataset, file: &Path, split: &str) -> LayoutCheck {
    let people = || data.people.iter();
    let mut counts = vec![
        count("joints", data.joints.len()),
        count("images", data.images.len()),
        count("people", data.people.len()),
        count(
            "people with a labeled joint",
            people().filter(|one| one.labeled() > 0).count(),
        ),
        count("crowds", people().filter(|one| one.crowd).count()),
    ];
    publish(&mut counts, data.published().and_then(official));
    let paths = data.images.iter().map(|image| image.path.as_path());
    let mut problems = Vec::from_iter(missing("images", paths));
    problems.extend(other_sizes(&data.images));
    problems.extend(data.problems.iter().cloned());
    let mut beyond = Vec::new();
    for one in &data.people {
        let image = &data.images[one.image];
        let size = [image.height, image.width];
        let place = || {
            format!(
                "annotation {} in {} of {}",
                one.id,
                image.path.display(),
                describe_size(size)
            )
        };
        if is_outside(one.bbox, size) {
            let bbox = one.bbox;
            problems.push(format!(
                "{}: the box {bbox:?} (x, y, width, height) covers nothing of it",
                place()
            ));
        }
        for (joint, [x, y, visibility]) in data.joints.iter().zip(&one.keypoints) {
            let inside = |at: f64, length: usize| (0.0..=length as f64).contains(&at);
            if *visibility > 0.0 && !(inside(*x, image.width) && inside(*y, image.height)) {
                beyond.push(format!("`{joint}` at x {x}, y {y} of {}", place()));
            }
        }
    }
    let mut notes = Vec::from_iter(counted("labeled joints are outside their image", &beyond));
    let beyond = people().map(|one| (one.bbox, &data.images[one.image]));
    notes.extend(counted(MOSTLY_OUTSIDE, &mostly_outside_images(beyond)));
    notes.extend(in_training_too(split, &data.images, || {
        let train = KeypointDataset::open(file.parent()?, "train").ok()?;
        Some(train.images)
    }));
    if !data.unpaired.is_empty() {
        let names = quoted(data.unpaired.iter().map(|joint| &data.joints[*joint]));
        notes.push(format!(
            "joints without a counterpart on the other side, wrong in mirrored images unless the category has `flip_pairs`: {names}"
        ));
    }
    LayoutCheck {
        layout: format!("COCO keypoints, {split}"),
        place: file.display().to_string(),
        counts,
        problems,
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Boxes of x1, y1, x2, y2 in place of x, y, width, height often leave the image.
    #[test]
    fn boxes_that_are_more_than_half_outside_are_noted() {
        let boxes = [
            [0.0, 0.0, 10.0, 10.0],
            [5.0, 0.0, 10.0, 10.0],
            [6.0, 0.0, 10.0, 10.0],
            [-6.0, -1.0, 10.0, 10.0],
            // Nothing of it is in the image, which is a problem and not a note.
            [20.0, 0.0, 10.0, 10.0],
        ];
        let found = mostly_outside(boxes.into_iter(), Path::new("a.jpg"), [20, 10]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("[6.0, 0.0, 10.0, 10.0]"), "{found:?}");
    }

    /// A dataset of one query.
    fn dataset() -> ReidDataset {
        ReidDataset {
            layout: "re-identification table",
            root: PathBuf::new(),
            train: Vec::new(),
            val: Vec::new(),
            query: vec![ReidImage {
                path: PathBuf::from("a.jpg"),
                name: "a.jpg".to_owned(),
                person: 1,
                camera: 1,
            }],
            gallery: Vec::new(),
            junk: 0,
        }
    }

    #[test]
    fn published_sets_are_known_by_name_or_counts() {
        let mut data = dataset();
        data.root = "/data/cuhk03-np/detected".into();
        assert_eq!(published_reid(&data).unwrap().dataset, "CUHK03 detected");
        data.root = "/data/people".into();
        data.query = vec![data.query[0].clone(); 2_228];
        assert_eq!(published_reid(&data).unwrap().dataset, "DukeMTMC-reID");
        assert!(published_reid(&dataset()).is_none());
        for (root, name) in [
            ("dukemtmc-reid/DukeMTMC-reID", "DukeMTMC-reID"),
            ("cuhk03-np/labeled", "CUHK03 labeled"),
            ("MSMT17", "MSMT17"),
            ("MSMT17_V1", "MSMT17"),
        ] {
            data.root = root.into();
            assert_eq!(published_reid(&data).unwrap().dataset, name);
        }
    }
}
