//! The data sets that a folder may hold: how much is in each, what is wrong with it, what to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Count, Found};
use crate::image::size_of;
use crate::layouts::attributes::Attributes;
use crate::layouts::coco::{CocoImage, Keypoints};
use crate::layouts::detection::{self, Boxes, is_outside};
use crate::layouts::parsing::{self, Masked, Parsing, folders};
use crate::layouts::reid::{self, Crop, MsmtVal, Reid, cameras, people};
use crate::layouts::search::{self, Frame, GallerySize, Search};
use crate::layouts::{LayoutError, cuhk_sysu, market1501, msmt17, par, prw};

const SPLITS: [&str; 3] = ["train", "val", "test"];

/// Something that may be a data set.
pub(super) struct Candidate {
    /// What it would be.
    pub(super) name: &'static str,
    /// Its file or folder.
    pub(super) place: PathBuf,
    /// Looks at it.
    pub(super) look: Box<dyn FnOnce() -> Result<Found, LayoutError>>,
}

/// What may be data sets in a folder, and the paths that were tried in vain.
pub(super) struct Candidates {
    folder: PathBuf,
    pub(super) found: Vec<Candidate>,
    pub(super) tried: Vec<String>,
}

impl Candidates {
    /// Those of a folder. Where each is is asked first, as reading some takes long.
    pub(super) fn of(folder: &Path) -> Self {
        let mut all = Self {
            folder: folder.to_owned(),
            found: Vec::new(),
            tried: Vec::new(),
        };
        all.add("Market-1501 layout", market1501::place(folder), |root| {
            people_of(market1501::read(root)?)
        });
        all.add("MSMT17", msmt17::place(folder), |root| {
            people_of(msmt17::read(root, MsmtVal::Holdout)?)
        });
        let table = reid::table_place(folder);
        all.add("re-identification table", table, |file| {
            people_of(reid::table(&file)?)
        });
        match Attributes::files(folder) {
            Ok(files) => {
                let first = files.first().cloned();
                for file in files {
                    let first = first.clone().filter(|first| *first != file);
                    all.add("attribute annotation", Ok(file), move |file| {
                        attributes(file, first)
                    });
                }
            }
            Err(error) => all.fail("attribute annotation", error),
        }
        all.add("label maps", parsing::table_place(folder), |file| {
            label_maps(&Parsing::table(file)?)
        });
        match folders::open(folder) {
            Ok(Ok(data)) => {
                all.add("label maps", Ok(data.file.clone()), move |_| {
                    label_maps(&data)
                });
            }
            Ok(Err(tried)) => all.tried.extend(tried),
            Err(error) => all.fail("label maps", error),
        }
        all.add("CUHK-SYSU", cuhk_sysu::place(folder), |root| {
            person_search(cuhk_sysu::read(root, GallerySize::Frames(50))?)
        });
        all.add("PRW", prw::place(folder), |root| {
            person_search(prw::read(root)?)
        });
        let place = folder.to_owned();
        let boxes_file = search::boxes_place(folder);
        all.add("COCO boxes with persons", boxes_file, move |file| {
            match search::boxes(&place) {
                // What is wrong with the file is told of it as boxes, below.
                Err(LayoutError::Json { .. } | LayoutError::Entry { .. }) => {
                    Err(search::no_persons(&file))
                }
                data => person_search(data?),
            }
        });
        for split in SPLITS {
            let file = Keypoints::place(folder, split);
            all.add("COCO keypoints", file, move |file| keypoints(&file, split));
        }
        for (index, split) in SPLITS.into_iter().enumerate() {
            let official = detection::CITYPERSONS.get(index).copied();
            let file = Boxes::place(folder, split);
            all.add("COCO boxes", file, move |file| {
                boxes(&file, split, official)
            });
        }
        all
    }

    fn add(
        &mut self,
        name: &'static str,
        place: Result<PathBuf, LayoutError>,
        look: impl FnOnce(PathBuf) -> Result<Found, LayoutError> + 'static,
    ) {
        match place {
            Ok(place) => self.found.push(Candidate {
                name,
                look: Box::new({
                    let place = place.clone();
                    move || look(place)
                }),
                place,
            }),
            Err(error) => self.fail(name, error),
        }
    }

    fn fail(&mut self, name: &'static str, error: LayoutError) {
        match error.missing() {
            Ok(tried) => self.tried.extend(tried),
            Err(error) => self.found.push(Candidate {
                name,
                place: self.folder.clone(),
                look: Box::new(move || Err(error)),
            }),
        }
    }
}

fn count(what: impl Into<String>, found: usize) -> Count {
    Count {
        what: what.into(),
        found: found as u64,
        official: None,
    }
}

/// Says what the published data set has of these.
fn publish<'a>(counts: &mut [Count], published: impl IntoIterator<Item = (&'a str, u64)>) {
    for (what, official) in published {
        for count in counts.iter_mut().filter(|count| count.what == what) {
            count.official = Some(official);
        }
    }
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

/// A size as people say it.
fn told([height, width]: [usize; 2]) -> String {
    format!("{width} x {height} (width x height)")
}

/// A message for image files of another size than the annotation says.
fn other_sizes(images: &[CocoImage]) -> Option<String> {
    let other = |image: &CocoImage| {
        let (said, found) = ([image.height, image.width], size_of(&image.path)?);
        let place = image.path.display();
        (found != said).then(|| format!("{place}: expected {}, found {}", told(said), told(found)))
    };
    let others: Vec<String> = images.par_iter().filter_map(other).collect();
    counted("images are of another size than the JSON says", &others)
}

/// What to tell of people who are in training and in the test.
fn in_both(train: &BTreeSet<i64>, test: &BTreeSet<i64>) -> Option<String> {
    let both: Vec<String> = train.intersection(test).map(i64::to_string).collect();
    let told = counted(
        "people are in training and in the test by their numbers",
        &both,
    )?;
    Some(format!(
        "{told}; if they are the same people, figures flatter"
    ))
}

/// What to tell of images of a split that are trained on, too; `train` gives the images of that split.
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
    let told = counted(&format!("images of {split} are in train, too"), &both)?;
    Some(format!("{told}; figures on them flatter"))
}

/// What to tell of images that a table lists more than once: in one split, with other answers, in train and another split.
/// `rows`: path, split, and whatever the answer is.
fn listed_again<T: PartialEq>(rows: &[(&Path, &str, T)]) -> Vec<String> {
    let mut first: BTreeMap<(&Path, &str), &T> = BTreeMap::new();
    let (mut twice, mut other) = (Vec::new(), Vec::new());
    for (path, split, answer) in rows {
        match first.get(&(*path, *split)) {
            Some(earlier) => {
                twice.push(path.display().to_string());
                if *earlier != answer {
                    other.push(path.display().to_string());
                }
            }
            None => {
                first.insert((path, split), answer);
            }
        }
    }
    let mut notes = Vec::from_iter(counted("images are listed twice in one split", &twice));
    notes.extend(counted(
        "images listed twice have other answers the second time",
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
        let told = counted(&format!("images of {split} are in train, too"), &images);
        notes.extend(told.map(|told| format!("{told}; figures on them flatter")));
    }
    notes
}

/// Names between quotes.
fn quoted<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn people_of(mut data: Reid) -> Result<Found, LayoutError> {
    let held = data.val.len();
    let is_msmt17 = data.layout == "MSMT17";
    // Most published figures train on MSMT17's validation images.
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
    let published = data.published();
    if let Some(published) = published {
        let names: Vec<String> = counts[..6].iter().map(|count| count.what.clone()).collect();
        let names = names.iter().map(String::as_str);
        publish(&mut counts, names.zip(published.counts));
        publish(
            &mut counts,
            published.cameras.map(|cameras| ("cameras", cameras)),
        );
    }
    if is_msmt17 {
        let mut of_them = count("of the training images in list_val.txt", held);
        of_them.official = Some(reid::MSMT17_VAL);
        counts.insert(1, of_them);
    } else if held > 0 {
        counts.insert(2, count("validation images", held));
    }
    let numbers = |crops: &[Crop]| -> BTreeSet<i64> {
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
        notes: both.into_iter().chain(again).collect(),
    })
}

/// `first` is the file that is read before it where the folder is given.
fn attributes(file: PathBuf, first: Option<PathBuf>) -> Result<Found, LayoutError> {
    let data = Attributes::read(file)?;
    let mut counts = vec![count("attributes", data.names.len())];
    let mut notes = Vec::new();
    if let Some(first) = first {
        let first = first.file_name().unwrap_or_default().display();
        notes.push(format!(
            "given as a folder, the data are those of {first}; give this file to take it"
        ));
    }
    for split in data.splits() {
        let images = data.split(&split)?;
        counts.push(count(format!("{split} images"), images.len()));
        for (value, word) in [(false, "nobody"), (true, "everybody")] {
            let constant = |j: &usize| images.iter().all(|image| image.values[*j] == value);
            let constant: Vec<usize> = (0..data.names.len()).filter(constant).collect();
            if !constant.is_empty() {
                let names = quoted(constant.iter().map(|j| &data.names[*j]));
                notes.push(format!(
                    "{word} of {split} has {} of the attributes: {names}",
                    constant.len()
                ));
            }
        }
    }
    if let Some((_, published)) = par::PUBLISHED.iter().find(|(name, _)| *name == data.layout) {
        let names = ["attributes", "train images", "val images", "test images"];
        publish(&mut counts, names.into_iter().zip(*published));
    }
    let paths = data.images.iter().map(|image| image.path.as_path());
    let rows = { data.images.iter() }
        .map(|image| (image.path.as_path(), image.split.as_str(), &image.values));
    notes.extend(listed_again(&Vec::from_iter(rows)));
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems: Vec::from_iter(missing("images", paths)),
        notes,
    })
}

fn label_maps(data: &Parsing) -> Result<Found, LayoutError> {
    let mut counts = vec![count("classes", data.classes.len())];
    if data.layout == "CCP" {
        counts.push(count("images", data.images.len()));
    }
    for split in data.splits() {
        counts.push(count(format!("{split} images"), data.split(&split)?.len()));
    }
    if let Some((_, published)) =
        { folders::PUBLISHED.iter() }.find(|(name, _)| *name == data.layout)
    {
        publish(&mut counts, published.iter().copied());
    }
    // Masks are small beside images: reading them finds labels without a name and classes without a pixel.
    let read = |image: &Masked| -> Result<[bool; 256], String> {
        let map = data
            .read_mask(&image.mask)
            .map_err(|error| error.to_string())?;
        let (size, found) = ([map.height, map.width], size_of(&image.image));
        if let Some(expected) = found.filter(|found| *found != size) {
            let place = image.mask.display();
            return Err(format!(
                "{place}: expected {} as its image, found {}",
                told(expected),
                told(size)
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
            notes.push(format!(
                "no mask of {split} has {count} of the classes: {names}"
            ));
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
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.file.display().to_string(),
        counts,
        problems,
        notes,
    })
}

fn person_search(data: Search) -> Result<Found, LayoutError> {
    let boxes = |frames: &[Frame]| frames.iter().map(|frame| frame.people.len()).sum();
    let mut counts = vec![
        count("training frames", data.train.len()),
        count("test frames", data.test.len()),
        count("queries", data.queries.len()),
        count("training people", Search::people(&data.train)),
        count("test people", Search::people(&data.test)),
        count("training boxes", boxes(&data.train)),
        count("test boxes", boxes(&data.test)),
    ];
    let published = search::PUBLISHED
        .iter()
        .find(|(name, _)| *name == data.layout);
    if let Some((_, published)) = published {
        let names = [
            "training frames",
            "test frames",
            "queries",
            "training people",
        ];
        publish(&mut counts, names.into_iter().zip(*published));
    }
    let frames = data.train.iter().chain(&data.test);
    let mut problems = Vec::from_iter(missing("frames", frames.map(|frame| frame.path.as_path())));
    problems.extend(Search::outside(&data.train));
    problems.extend(Search::outside(&data.test));
    problems.extend(data.problems());
    let mut notes = Vec::new();
    if data.layout == "CUHK-SYSU" {
        let (galleries, wrong) = cuhk_sysu::galleries(&data)?;
        for gallery in galleries {
            let mut queries = count(format!("queries of {}", gallery.name), gallery.queries);
            queries.official = published.map(|(_, [_, _, queries, _])| *queries);
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
        let numbers = |frames: &[Frame]| -> BTreeSet<i64> {
            let people = frames.iter().flat_map(|frame| &frame.people);
            people.filter_map(|marked| marked.person).collect()
        };
        notes.extend(in_both(&numbers(&data.train), &numbers(&data.test)));
    }
    Ok(Found {
        layout: data.layout.to_owned(),
        place: data.root.display().to_string(),
        counts,
        problems,
        notes,
    })
}

fn boxes(file: &Path, split: &str, citypersons: Option<u64>) -> Result<Found, LayoutError> {
    let data = Boxes::read(file)?;
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
    let is_citypersons = data.is_citypersons();
    if is_citypersons {
        publish(&mut counts, citypersons.map(|images| ("images", images)));
    }
    let paths = data.images.iter().map(|image| image.path.as_path());
    let mut problems = Vec::from_iter(missing("images", paths));
    problems.extend(other_sizes(&data.images));
    // Nothing is evaluated on what is trained on.
    let mut notes = Vec::from_iter(data.without_hidden().filter(|_| split != "train"));
    notes.extend(in_training_too(split, &data.images, || {
        let train = Boxes::open(file.parent()?, "train").ok()?;
        Some(train.images)
    }));
    problems.extend(data.problems);
    Ok(Found {
        layout: match is_citypersons {
            true => format!("CityPersons, {split}"),
            false => format!("COCO boxes, {split}"),
        },
        place: file.display().to_string(),
        counts,
        problems,
        notes,
    })
}

fn keypoints(file: &Path, split: &str) -> Result<Found, LayoutError> {
    let data = Keypoints::read(file)?;
    let people = || data.people.iter();
    let mut counts = vec![
        count("joints", data.joints.len()),
        count("images", data.images.len()),
        count("people", data.people.len()),
        count(
            "people with a labelled joint",
            people().filter(|one| one.labelled() > 0).count(),
        ),
        count("crowds", people().filter(|one| one.crowd).count()),
    ];
    publish(
        &mut counts,
        data.published().map(|images| ("images", images)),
    );
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
                told(size)
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
    let mut notes = Vec::from_iter(counted("labelled joints are outside their image", &beyond));
    notes.extend(in_training_too(split, &data.images, || {
        let train = Keypoints::open(file.parent()?, "train").ok()?;
        Some(train.images)
    }));
    if !data.unpaired.is_empty() {
        let names = quoted(data.unpaired.iter().map(|joint| &data.joints[*joint]));
        notes.push(format!(
            "joints without a counterpart on the other side, wrong in mirrored images unless the category has `flip_pairs`: {names}"
        ));
    }
    Ok(Found {
        layout: format!("COCO keypoints, {split}"),
        place: file.display().to_string(),
        counts,
        problems,
        notes,
    })
}
