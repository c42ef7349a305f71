//! The gallery: images with their features, from `--gallery`, and those that clients added.
//!
//! Additions and removals need `--store`, a folder with the file of [`log`]; they survive a restart
//! and a kill. Removing an image of `--gallery` leaves its file alone: the store remembers the key.

pub mod log;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use clasp_data::source::Source;
use clasp_tasks::embed::Embeddings;
use clasp_tasks::index::FeatureIndex;
use clasp_tasks::retrieve::GalleryMatch;

use self::log::{GalleryLog, LogRange, LogRecord, NewImage};
use crate::error::ServeError;

/// Where the image of an item is.
#[derive(Clone, Copy, Debug)]
enum ItemPlace {
    /// In the source of `--gallery`, at that position.
    Source(usize),
    /// In the store.
    Store(LogRange),
    /// Only its feature is known.
    Nowhere,
}

#[derive(Clone, Debug)]
struct GalleryItem {
    key: Arc<str>,
    place: ItemPlace,
}

/// Images with their features.
#[derive(Debug)]
pub struct Gallery {
    index: FeatureIndex,
    items: HashMap<u64, GalleryItem>,
    by_key: BTreeMap<Arc<str>, u64>,
    source: Option<Source>,
    log: Option<GalleryLog>,
    limit: usize,
}

/// Why the gallery is not changed.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// There is no store.
    #[error(
        "the gallery cannot be changed\nhint: start with --store DIR, which keeps additions and removals"
    )]
    ReadOnly,
    /// A key that is taken.
    #[error(
        "{0}: expected a key that is not in the gallery yet\nhint: remove it first, or choose another key"
    )]
    Taken(String),
    /// No such key.
    #[error("{0}: expected a key of the gallery")]
    Unknown(String),
    /// The gallery is full.
    #[error("expected at most {limit} images in the gallery, found {found}\nhint: --max-gallery")]
    Full {
        /// Most images.
        limit: usize,
        /// Images there would be.
        found: usize,
    },
    /// The image is not there any more.
    #[error("{0}: its image is not served")]
    NoImage(String),
    /// The store cannot be written or read.
    #[error("the store cannot be written or read: {0}")]
    Io(#[from] std::io::Error),
}

/// What a gallery begins with.
#[derive(Debug, Default)]
pub struct GalleryStart {
    /// Features of the images of `--gallery`.
    pub embeddings: Embeddings,
    /// Where those images are, if they are more than features.
    pub source: Option<Source>,
}

impl Gallery {
    /// A gallery of features of that length, with those of a source and of a store; `note` gets a
    /// message about an unfinished record that was cut off.
    ///
    /// # Errors
    /// The features have another length, or the store cannot be used.
    pub fn open(
        start: GalleryStart,
        store: Option<&Path>,
        model: &str,
        channels: usize,
        limit: usize,
        note: &dyn Fn(String),
    ) -> Result<Self, ServeError> {
        let GalleryStart { embeddings, source } = start;
        let (mut log, mut records) = (None, Vec::new());
        if let Some(folder) = store {
            let (opened, found, cut) = GalleryLog::open(folder, model, channels)?;
            if cut > 0 {
                note(format!(
                    "--store: an unfinished record of {cut} bytes was cut off; nothing acknowledged is lost"
                ));
            }
            (log, records) = (Some(opened), found);
        }
        let mut gallery = Self {
            index: FeatureIndex::new(channels),
            items: HashMap::new(),
            by_key: BTreeMap::new(),
            source,
            log,
            limit,
        };
        // A key of the store hides that of the source, and a removal removes either.
        let named: HashSet<&str> = { records.iter() }
            .map(|record| match record {
                LogRecord::Add { key, .. } | LogRecord::Remove { key } => key.as_str(),
            })
            .collect();
        let rows = embeddings.features.chunks_exact(channels.max(1));
        for ((key, item), row) in embeddings.keys.iter().zip(&embeddings.items).zip(rows) {
            if !named.contains(key.as_str()) {
                let place = match gallery.source {
                    Some(_) => ItemPlace::Source(*item),
                    None => ItemPlace::Nowhere,
                };
                gallery.insert(key, row, place);
            }
        }
        for record in records {
            match record {
                LogRecord::Add {
                    key,
                    feature,
                    image,
                } => {
                    gallery.forget(&key);
                    gallery.insert(&key, &feature, ItemPlace::Store(image));
                }
                LogRecord::Remove { key } => {
                    gallery.forget(&key);
                }
            }
        }
        Ok(gallery)
    }

    fn insert(&mut self, key: &str, feature: &[f32], place: ItemPlace) {
        let id = self.index.push(feature);
        let key: Arc<str> = key.into();
        let item = GalleryItem {
            key: Arc::clone(&key),
            place,
        };
        self.items.insert(id, item);
        self.by_key.insert(key, id);
    }

    fn forget(&mut self, key: &str) -> bool {
        let Some(id) = self.by_key.remove(key) else {
            return false;
        };
        self.items.remove(&id);
        self.index.remove(id)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether images can be added and removed.
    pub fn is_writable(&self) -> bool {
        self.log.is_some()
    }

    /// Whether there is an image of that key.
    pub fn has(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Adds images, all or none; they are on the disk when this returns.
    ///
    /// # Errors
    /// See [`GalleryError`].
    pub fn add(&mut self, images: &[NewImage]) -> Result<(), GalleryError> {
        let log = self.log.as_mut().ok_or(GalleryError::ReadOnly)?;
        let found = self.index.len() + images.len();
        if found > self.limit {
            return Err(GalleryError::Full {
                limit: self.limit,
                found,
            });
        }
        let taken = |one: &&NewImage| self.by_key.contains_key(one.key.as_str());
        if let Some(one) = images.iter().find(taken) {
            return Err(GalleryError::Taken(one.key.clone()));
        }
        let ranges = log.add(images)?;
        for (one, range) in images.iter().zip(ranges) {
            self.insert(&one.key, &one.feature, ItemPlace::Store(range));
        }
        Ok(())
    }

    /// Removes an image; that is on the disk when this returns.
    ///
    /// # Errors
    /// See [`GalleryError`].
    pub fn remove(&mut self, key: &str) -> Result<(), GalleryError> {
        let log = self.log.as_mut().ok_or(GalleryError::ReadOnly)?;
        if !self.by_key.contains_key(key) {
            return Err(GalleryError::Unknown(key.to_owned()));
        }
        log.remove(key)?;
        self.forget(key);
        Ok(())
    }

    /// The encoded image of a key.
    ///
    /// # Errors
    /// See [`GalleryError`].
    pub fn image(&self, key: &str) -> Result<Vec<u8>, GalleryError> {
        let item = { self.by_key.get(key) }
            .and_then(|id| self.items.get(id))
            .ok_or_else(|| GalleryError::Unknown(key.to_owned()))?;
        let missing = || GalleryError::NoImage(key.to_owned());
        match (item.place, &self.source, &self.log) {
            (ItemPlace::Source(at), Some(source), _) => source.read(at).map_err(|_| missing()),
            (ItemPlace::Store(range), _, Some(log)) => Ok(log.read(range)?),
            _ => Err(missing()),
        }
    }

    /// The feature of a key, normalized.
    pub fn feature(&self, key: &str) -> Option<&[f32]> {
        self.index.get(*self.by_key.get(key)?)
    }

    /// Keys after `after` in their order, at most `count` of those that `keep` accepts.
    pub fn keys(
        &self,
        after: Option<&str>,
        count: usize,
        keep: &dyn Fn(&str) -> bool,
    ) -> Vec<Arc<str>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.by_key.range::<str, _>((from, Bound::Unbounded));
        let keys = keys.map(|(key, _)| key).filter(|key| keep(key));
        keys.take(count).cloned().collect()
    }

    /// The nearest images of each query, `[queries, channels]`: see [`FeatureIndex::nearest`].
    pub fn nearest(
        &self,
        queries: &[f32],
        top: usize,
        threshold: f32,
        same: Option<f64>,
        keep: &(dyn Fn(&str) -> bool + Sync),
    ) -> Vec<Vec<GalleryMatch>> {
        let keep = |id: u64| self.items.get(&id).is_some_and(|item| keep(&item.key));
        let found = self.index.nearest(queries, top, threshold, &keep);
        let matched = |hit: clasp_tasks::index::IndexHit| {
            let item = self.items.get(&hit.id)?;
            Some(GalleryMatch {
                item: usize::try_from(hit.id).unwrap_or(usize::MAX),
                key: item.key.to_string(),
                cosine: hit.cosine,
                same: same.map(|same| f64::from(hit.cosine) >= same),
            })
        };
        { found.into_iter() }
            .map(|hits| hits.into_iter().filter_map(matched).collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn start() -> GalleryStart {
        GalleryStart {
            embeddings: Embeddings {
                items: vec![0, 1],
                keys: vec!["a".to_owned(), "b".to_owned()],
                channels: 2,
                features: vec![1.0, 0.0, 0.0, 1.0],
                ..Embeddings::default()
            },
            source: None,
        }
    }

    fn open(store: Option<&Path>, limit: usize) -> Gallery {
        Gallery::open(start(), store, "m", 2, limit, &|note| panic!("{note}")).unwrap()
    }

    fn image(key: &str, feature: [f32; 2]) -> NewImage {
        NewImage {
            key: key.to_owned(),
            feature: feature.to_vec(),
            image: Bytes::from_static(b"image"),
        }
    }

    fn nearest(gallery: &Gallery, query: [f32; 2]) -> Vec<String> {
        let found = gallery.nearest(&query, 9, -1.0, Some(0.9), &|key| key != "z");
        found[0].iter().map(|one| one.key.clone()).collect()
    }

    #[test]
    fn changes_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = open(Some(folder.path()), 4);
        gallery
            .add(&[image("c", [1.0, 1.0]), image("z", [1.0, 0.0])])
            .unwrap();
        gallery.remove("a").unwrap();
        gallery.remove("b").unwrap();
        gallery.add(&[image("b", [3.0, 0.0])]).unwrap();
        let check = |gallery: &Gallery| {
            assert_eq!(nearest(gallery, [1.0, 0.0]), ["b", "c"]);
            assert_eq!(gallery.image("b").unwrap(), b"image");
            assert!(matches!(gallery.image("a"), Err(GalleryError::Unknown(_))));
            let keys = gallery.keys(None, 9, &|_| true);
            assert_eq!(
                keys.iter().map(|key| &**key).collect::<Vec<_>>(),
                ["b", "c", "z"]
            );
            assert_eq!(gallery.keys(Some("b"), 1, &|_| true)[0].as_ref(), "c");
        };
        check(&gallery);
        drop(gallery);
        check(&open(Some(folder.path()), 4));
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let mut gallery = open(None, 9);
        assert!(matches!(
            gallery.add(&[image("c", [1.0, 0.0])]),
            Err(GalleryError::ReadOnly)
        ));
        assert!(matches!(gallery.remove("a"), Err(GalleryError::ReadOnly)));
        assert!(matches!(gallery.image("a"), Err(GalleryError::NoImage(_))));
        let folder = tempfile::tempdir().unwrap();
        let mut gallery = open(Some(folder.path()), 3);
        let two = [image("c", [1.0, 0.0]), image("d", [1.0, 0.0])];
        assert!(matches!(
            gallery.add(&two),
            Err(GalleryError::Full { found: 4, .. })
        ));
        let taken = gallery.add(&[image("a", [1.0, 0.0])]);
        assert!(matches!(taken, Err(GalleryError::Taken(_))));
        assert!(matches!(gallery.remove("x"), Err(GalleryError::Unknown(_))));
        assert_eq!(gallery.len(), 2);
    }
}
