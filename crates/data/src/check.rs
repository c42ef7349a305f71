//! What a folder holds, before it is used: `clasp data check`.
//!
//! Every known layout is looked for and counted, beside the official counts where there are any; an image listed but not
//! there is a problem. On request every image is decoded, which finds what is broken in a copy.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::image::{Limits, decode};
use crate::layouts::LayoutError;
use crate::layouts::attributes::Attributes;
use crate::layouts::coco::Keypoints;
use crate::layouts::market1501::{self, Market1501, cameras, people};
use crate::layouts::parsing::Parsing;
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
            ("Market-1501 layout", market(folder)),
            ("attribute table", attributes(folder)),
            ("label maps", parsing(folder)),
        ];
        for (name, result) in found.into_iter().chain(keypoints(folder)) {
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
        problem: None,
    };
    match Source::open(path) {
        Ok(source) => {
            report.images = source.len();
            if decoding {
                report.unreadable = decode_all(&source, progress);
                report.decoded = Some(source.len());
            }
        }
        Err(error) if report.layouts.is_empty() => return Err(error),
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(report)
}

/// Tries every image on all threads; the list is in the source's order.
fn decode_all(source: &Source, progress: &(dyn Fn(usize, usize) + Sync)) -> Vec<(String, String)> {
    let done = std::sync::atomic::AtomicUsize::new(0);
    (0..source.len())
        .into_par_iter()
        .filter_map(|i| {
            let reason = match source.read(i) {
                Ok(bytes) => decode(&bytes, &Limits::default())
                    .err()
                    .map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            progress(
                1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                source.len(),
            );
            reason.map(|reason| (source.place(i), reason))
        })
        .collect()
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

fn market(folder: &Path) -> Result<Found, LayoutError> {
    let data = Market1501::open(folder)?;
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
    for (what, official) in market1501::OFFICIAL {
        for count in counts.iter_mut().filter(|count| count.what == what) {
            count.official = Some(official);
        }
    }
    Ok(Found {
        layout: "Market-1501 layout".to_owned(),
        place: data.root.display().to_string(),
        counts,
        problems: Vec::new(),
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
    Ok(Found {
        layout: "attribute table".to_owned(),
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
    // Masks are few and small beside images: reading them finds labels without a name.
    let wrong: Vec<String> = { data.images.par_iter() }
        .filter(|image| image.mask.is_file())
        .filter_map(|image| {
            data.read_mask(&image.mask)
                .err()
                .map(|error| error.to_string())
        })
        .collect();
    if let Some(first) = wrong.first() {
        problems.push(format!(
            "{} masks cannot be used, the first: {first}",
            wrong.len()
        ));
    }
    Ok(Found {
        layout: "label maps".to_owned(),
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
            problems: missing(
                "images",
                data.images.iter().map(|image| image.path.as_path()),
            ),
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
