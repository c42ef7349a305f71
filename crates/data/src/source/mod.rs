//! Where images come from: files, folders, lists and tar shards.
//!
//! A [`Source`] is an ordered index of images with random access. The order never depends on the
//! file system: folders are sorted by path, lists and tars keep the order in which they were
//! written. Tars are indexed by one pass over their headers, which touches no image.
//!
//! ```text
//! photos/                      every image below it, sorted; hidden files are skipped
//! people.txt                   one path a line, relative to the list; `#` starts a comment
//! -                            the same from standard input, relative to the current folder
//! shards/                      a folder of tars and no image: these, sorted
//! data/                        a folder of Parquet files and no image: their rows, in order
//! train.parquet                the rows with an image: column `image`, bytes or bytes and path
//! people-{000..099}.tar        shards; braces also hold alternatives, {train,val}.tar
//! shards/*.tar                 files that match the pattern, sorted
//! a.jpg,b.jpg,more/            several of these, joined
//! ```
//!
//! Each image is read once. Skipped files are counted by reason ([`Source::skipped`]): image
//! formats that are not decoded, masks beside photos (`x.seg.png`, `masks/x.png`), lines of a list
//! that repeat an earlier one, pipes and devices, and links that lead nowhere or to a folder that
//! is read anyway.
//!
//! The key of an image is its path below the folder, as listed, or in the tar, without extension
//! and with `/` between folders. No two images of a source share one. In a Parquet file the path is
//! that of the image's column; where a row has none or two have the same, keys are the file's name
//! and the number of the row, and where two files have a path in common, keys begin with the file's
//! name.

mod error;
mod folder;
mod index;
mod kinds;
mod packing;
mod parquet_index;
mod parquet_pages;
#[cfg(test)]
mod parquet_tests;
mod skipped;
mod spec;
mod tars;
#[cfg(test)]
mod tests;
mod unreadable;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

pub use self::error::{MAX_FILE_BYTES, SourceError};
use self::index::{Entry, Index, ParquetRow, Place};
pub use self::index::{SHARD_SIZE, SMALL, SMALL_SHARD_SIZE, Shard, TINY, TINY_SHARD_SIZE};
pub(crate) use self::kinds::is_hidden;
pub(crate) use self::packing::{PackProgress, manifest_path};
use self::parquet_index::RowPlace;
use self::parquet_pages::PageCache;
pub use self::skipped::SkippedFiles;
pub use self::spec::expand_braces;
pub(crate) use self::unreadable::read_file;
pub use self::unreadable::{
    ReadFailure, TRIED_FIRST, TooManyUnreadable, UnreadableImage, UnreadableImages, load_file,
    too_many_unreadable,
};
use crate::image::{Limits, Rgb, decode};

/// An ordered index of images. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Source {
    entries: Arc<[Entry]>,
    shards: Arc<[Shard]>,
    damage: Arc<[String]>,
    skipped: Arc<SkippedFiles>,
    pages: Arc<PageCache>,
}

impl Source {
    /// Opens what `spec` names; see the module's doc.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use clasp_data::image::{Limits, decode};
    /// use clasp_data::source::Source;
    ///
    /// let source = Source::open("shards/*.tar")?;
    /// for (index, key) in source.keys().enumerate() {
    ///     let image = decode(&source.read(index)?, &Limits::default())?;
    ///     println!("{key}: {} x {}", image.width, image.height);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where something is missing, holds no image, is damaged, or two images share a key.
    pub fn open(spec: &str) -> Result<Source, SourceError> {
        Self::checked(Index::open(&[spec], false, false)?)
    }

    /// As [`Source::open`], of several specifications, joined; with `lenient` as
    /// [`Source::open_lenient`].
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_several(specs: &[impl AsRef<str>], lenient: bool) -> Result<Source, SourceError> {
        Self::checked(Index::open(specs, lenient, false)?)
    }

    /// As [`Source::open`], but two images may share a key, as a photo and its mask beside it do.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub(crate) fn open_all(spec: &str) -> Result<Source, SourceError> {
        Ok(Self::of(Index::open(&[spec], false, true)?))
    }

    /// As [`Source::open`], but of a tar that is truncated or damaged the complete members are
    /// used. [`Source::damage`] says which tars those were.
    ///
    /// # Errors
    /// As [`Source::open`], except for damaged tars that have at least one complete image.
    pub fn open_lenient(spec: &str) -> Result<Source, SourceError> {
        Self::checked(Index::open(&[spec], true, false)?)
    }

    /// A source of files with given keys, in the given order, cut into shards named after `name`.
    ///
    /// # Errors
    /// Where two files share a key.
    pub fn from_files(
        name: &str,
        files: impl IntoIterator<Item = (String, PathBuf)>,
    ) -> Result<Source, SourceError> {
        Self::checked(Index::of_files(name, files))
    }

    fn checked(index: Index) -> Result<Source, SourceError> {
        index.check_keys()?;
        Ok(Self::of(index))
    }

    fn of(index: Index) -> Source {
        Source {
            entries: index.entries.into(),
            shards: index.shards.into(),
            damage: index.damage.into(),
            skipped: Arc::new(index.skipped),
            pages: index.pages,
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no image, which is so only for some [`Source::shard`]s.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Key of image `i`.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn key(&self, i: usize) -> &str {
        &self.entries[i].key
    }

    /// All keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.key)
    }

    /// Where image `i` is, for messages: a path, `archive.tar @ offset`, or `file.parquet row 7`.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn place(&self, i: usize) -> String {
        self.entries[i].place.describe()
    }

    /// The file that holds image `i`: its own, or a tar or Parquet file.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn file(&self, i: usize) -> &Path {
        match &self.entries[i].place {
            Place::File(path) => path,
            Place::Member { archive, .. } => archive,
            Place::Row(at) => &at.column.path,
        }
    }

    /// Size of the encoded image `i` in bytes; none where its file cannot be looked at.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn size(&self, i: usize) -> Option<u64> {
        match &self.entries[i].place {
            Place::File(path) => Some(fs::metadata(&**path).ok()?.len()),
            Place::Member { size, .. } => Some(*size),
            Place::Row(at) => match at.place {
                RowPlace::Bytes { size, .. } => Some(size),
                RowPlace::Page { page, at: place } => {
                    let values = self.pages.get(at.file, &at.column, page as usize).ok()?;
                    let value = values.get(place as usize)?.as_ref()?;
                    Some(value.len() as u64)
                }
            },
        }
    }

    /// The encoded bytes of image `i`.
    ///
    /// # Errors
    /// Where the file cannot be read, or is larger than [`MAX_FILE_BYTES`].
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn read(&self, i: usize) -> Result<Vec<u8>, SourceError> {
        let place = &self.entries[i].place;
        let (mut file, size) = match place {
            Place::File(path) => return read_file(path),
            Place::Member {
                archive,
                offset,
                size,
            } => {
                let mut file = fs::File::open(&**archive)?;
                file.seek(SeekFrom::Start(*offset))?;
                (file, *size)
            }
            Place::Row(at) => match at.place {
                RowPlace::Bytes { offset, size } => {
                    let mut file = fs::File::open(&at.column.path)?;
                    file.seek(SeekFrom::Start(offset))?;
                    (file, size)
                }
                RowPlace::Page { page, at: place } => return self.of_page(at, page, place),
            },
        };
        if size > MAX_FILE_BYTES {
            return Err(SourceError::TooLarge {
                place: place.describe(),
                bytes: size,
            });
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A value of a page that is decompressed first.
    fn of_page(&self, row: &ParquetRow, page: u32, at: u32) -> Result<Vec<u8>, SourceError> {
        let path = &row.column.path;
        let values = { self.pages.get(row.file, &row.column, page as usize) }
            .map_err(|failure| failure.at_row(path, row.row))?;
        let value = values.get(at as usize).and_then(Option::as_ref);
        let value = value.ok_or_else(|| SourceError::Row {
            file: path.display().to_string(),
            row: row.row,
            reason: "expected the bytes of an image, found none".to_owned(),
        })?;
        match value.len() as u64 {
            bytes if bytes > MAX_FILE_BYTES => Err(SourceError::TooLarge {
                place: format!("{} row {}", path.display(), row.row),
                bytes,
            }),
            _ => Ok(value.data().to_vec()),
        }
    }

    /// Image `i`, decoded.
    ///
    /// # Errors
    /// Where its file cannot be read, or does not hold an image.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn load(&self, i: usize, limits: &Limits) -> Result<Rgb, ReadFailure> {
        Ok(decode(&self.read(i)?, limits)?)
    }

    /// The shards: one per tar; folders, lists and Parquet files are cut into shards of
    /// [`SHARD_SIZE`] images, or fewer where there are few images.
    pub fn shards(&self) -> Vec<Shard> {
        self.shards.to_vec()
    }

    /// Part `index` of `count`: every `count`-th shard. The parts together are the source.
    ///
    /// # Panics
    /// If `index` is not below `count`.
    pub fn shard(&self, index: usize, count: usize) -> Source {
        assert!(index < count, "shard {index} of {count}");
        let mut entries = Vec::new();
        let mut shards = Vec::new();
        for shard in self.shards.iter().skip(index).step_by(count) {
            let start = entries.len();
            entries.extend_from_slice(&self.entries[shard.range.clone()]);
            shards.push(Shard {
                name: shard.name.clone(),
                range: start..entries.len(),
            });
        }
        Source {
            entries: entries.into(),
            shards: shards.into(),
            damage: Arc::clone(&self.damage),
            skipped: Arc::clone(&self.skipped),
            pages: Arc::clone(&self.pages),
        }
    }

    /// Part `index` of `count` of the images: neighbors, and as many in each part, but for one. The
    /// parts one after the other are the source.
    ///
    /// # Panics
    /// If `index` is not below `count`.
    pub fn part(&self, index: usize, count: usize) -> Source {
        assert!(index < count, "part {index} of {count}");
        let start = |index: usize| (self.len() as u128 * index as u128 / count as u128) as usize;
        let part = start(index)..start(index + 1);
        let shards = self.shards.iter().filter_map(|shard| {
            let range = shard.range.start.max(part.start)..shard.range.end.min(part.end);
            (!range.is_empty()).then(|| Shard {
                name: shard.name.clone(),
                range: range.start - part.start..range.end - part.start,
            })
        });
        Source {
            shards: shards.collect(),
            entries: self.entries[part.clone()].into(),
            damage: Arc::clone(&self.damage),
            skipped: Arc::clone(&self.skipped),
            pages: Arc::clone(&self.pages),
        }
    }

    /// Files that were found and are not read.
    pub fn skipped(&self) -> &SkippedFiles {
        &self.skipped
    }

    /// What [`Source::open_lenient`] found damaged, one message per file.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }
}
