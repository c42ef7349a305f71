//! Consistency of labels and images.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use clasp_data::image::{Limits, decode};
use clasp_data::labels::Store;
use clasp_data::source::Source;
use rayon::prelude::*;
use serde::Serialize;

/// Keys that the text lists; the JSON lists all.
const LISTED: usize = 10;

/// Consistency of labels and images. Vocabulary and grid are checked when a store is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelCheck {
    /// Images of the source.
    pub images: usize,
    /// Labels of the store.
    pub labels: usize,
    /// Shards that another program wrote or changed.
    pub edited: Vec<String>,
    /// Keys whose corrections are not used: no labels, or labels of another image of this key.
    pub unused_corrections: Vec<String>,
    /// Keys of labels that no image has.
    pub without_image: Vec<String>,
    /// Keys of images that have no labels.
    pub without_labels: Vec<String>,
    /// Key of each image that has changed since it was labeled, and how.
    pub changed: Vec<(String, String)>,
    /// Key of each labeled image that cannot be read now, and why.
    pub unreadable: Vec<(String, String)>,
}

impl LabelCheck {
    /// Whether every label and correction belongs to an unchanged image. Images without labels and edited shards
    /// are no errors.
    pub fn is_ok(&self) -> bool {
        let faults = [self.changed.len(), self.unreadable.len()];
        self.without_image.is_empty() && self.unused_corrections.is_empty() && faults == [0, 0]
    }
}

/// Compares the labels of a store with the images of a source. `progress` receives the number of
/// images done and their total.
pub fn check(
    store: &Store,
    source: &Source,
    limits: &Limits,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> LabelCheck {
    let done = AtomicUsize::new(0);
    enum ImageCheck {
        Fits,
        Unlabeled,
        Changed(String),
        Unreadable(String),
    }
    let look = |image: usize| {
        let found = match store.get(source.key(image)) {
            None => ImageCheck::Unlabeled,
            Some(label) => match source.read(image) {
                Err(error) => ImageCheck::Unreadable(error.to_string()),
                Ok(bytes) => match decode(&bytes, limits) {
                    Err(error) => ImageCheck::Unreadable(error.to_string()),
                    Ok(pixels) => label
                        .difference_from(&bytes, [pixels.height, pixels.width])
                        .map_or(ImageCheck::Fits, ImageCheck::Changed),
                },
            },
        };
        progress(1 + done.fetch_add(1, Ordering::Relaxed), source.len());
        found
    };
    let found: Vec<ImageCheck> = (0..source.len()).into_par_iter().map(look).collect();
    let keys: HashSet<&str> = source.keys().collect();
    let mut check = LabelCheck {
        images: source.len(),
        labels: store.len(),
        edited: store.edited.clone(),
        unused_corrections: store.corrections().unused,
        without_image: { store.iter() }
            .filter(|label| !keys.contains(label.key))
            .map(|label| label.key.to_owned())
            .collect(),
        without_labels: Vec::new(),
        changed: Vec::new(),
        unreadable: Vec::new(),
    };
    for (key, found) in source.keys().map(str::to_owned).zip(found) {
        match found {
            ImageCheck::Fits => {}
            ImageCheck::Unlabeled => check.without_labels.push(key),
            ImageCheck::Changed(how) => check.changed.push((key, how)),
            ImageCheck::Unreadable(why) => check.unreadable.push((key, why)),
        }
    }
    check
}

impl fmt::Display for LabelCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} labels, {} images", self.labels, self.images)?;
        let edited = self.edited.iter().map(|shard| (shard, ""));
        let keys = |keys: &[String]| {
            keys.iter()
                .map(|key| (key.clone(), String::new()))
                .collect()
        };
        let lists: [(&str, Vec<(String, String)>); 6] = [
            (
                "shards edited by other programs",
                edited
                    .map(|(shard, why)| (shard.clone(), why.to_owned()))
                    .collect(),
            ),
            (
                "corrections of other images",
                keys(&self.unused_corrections),
            ),
            ("labels without an image", keys(&self.without_image)),
            ("images without labels", keys(&self.without_labels)),
            (
                "images changed since they were labeled",
                self.changed.clone(),
            ),
            (
                "labeled images that cannot be read",
                self.unreadable.clone(),
            ),
        ];
        for (what, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            write!(f, "\n{} {what}", list.len())?;
            for (key, why) in list.iter().take(LISTED) {
                match why.is_empty() {
                    true => write!(f, "\n  {key}")?,
                    false => write!(f, "\n  {key}: {why}")?,
                }
            }
            if list.len() > LISTED {
                write!(
                    f,
                    "\n  and {} more (--json lists them)",
                    list.len() - LISTED
                )?;
            }
        }
        if self.is_ok() {
            write!(f, "\nevery label is of an image as it is now")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LabelConfig;
    use crate::testing::{images, labeler};
    use crate::{LabelRunConfig, run};
    use clasp_data::image::{Rgb, encode_png};
    use std::ops::ControlFlow;

    #[test]
    fn changed_missing_and_new_images_are_distinguished() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 1, 6);
        let out = folder.path().join("labels");
        let options = LabelRunConfig::new(&out, 1);
        let keep_running = &mut |_: crate::LabelProgress<'_>| ControlFlow::Continue(());
        run(
            &source,
            &labeler(&LabelConfig::default()),
            &options,
            keep_running,
        )
        .unwrap();
        let store = Store::open(&out).unwrap();
        let look = |source: &Source| check(&store, source, &Limits::default(), &|_, _| ());
        assert!(look(&source).is_ok());

        let place = |image: usize| source.place(image);
        // The same size with other pixels; another size; no image; not there.
        let size = store.get(source.key(1)).unwrap();
        let same = Rgb::filled(size.width.into(), size.height.into(), [1, 2, 3]);
        fs_err::write(place(1), encode_png(&same)).unwrap();
        fs_err::write(place(2), encode_png(&Rgb::filled(9, 9, [1, 2, 3]))).unwrap();
        fs_err::write(place(3), "text").unwrap();
        fs_err::remove_file(place(4)).unwrap();
        let folder_now = folder.path().join("images/shard0");
        fs_err::write(folder_now.join("new.png"), encode_png(&same)).unwrap();
        let now = Source::open(&folder_now.display().to_string()).unwrap();
        let found = look(&now);
        assert!(!found.is_ok());
        let changed: Vec<&str> = found.changed.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(changed, [source.key(1), source.key(2)]);
        assert!(found.changed[0].1.contains("another content"));
        assert!(found.changed[1].1.contains("9 x 9"));
        assert_eq!(found.unreadable.len(), 1);
        assert_eq!(found.without_image, [source.key(4)]);
        assert_eq!(found.without_labels, ["new"]);
        assert!(
            found
                .to_string()
                .contains("2 images changed since they were labeled")
        );
    }
}
