//! The index of a source: where each image lies, its key, and the shards.

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use super::error::SourceError;
use super::folder::Folder;
use super::kinds::{EXTENSIONS, extension, is_image_file, starts_as_image};
use super::packing::{PackProgress, unfinished};
use super::parquet_index::{self, RowPlace};
use super::parquet_pages::{ByteColumn, PageCache};
use super::skipped::SkippedFiles;
use super::spec::paths_of;
use super::tars;
use crate::missing::MissingPath;
use crate::text::{decode_text, read_text};

/// Images in a shard of a folder or a list, unless it is small.
pub const SHARD_SIZE: usize = 4096;

/// Images in a shard of a folder or a list of fewer than [`SMALL`], so that several jobs can share
/// it.
pub const SMALL_SHARD_SIZE: usize = 256;

/// Images of a folder or a list up to which its shards are small.
pub const SMALL: usize = 64 * SMALL_SHARD_SIZE;

/// Images in a shard of a folder or a list of fewer than [`TINY`]: 120 images are eight shards.
pub const TINY_SHARD_SIZE: usize = 16;

/// Images of a folder or a list up to which its shards are tiny.
pub const TINY: usize = 64 * TINY_SHARD_SIZE;

/// Consecutive images of a source that are processed as a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// A file name without extension, unique in the source: a tar's own, or that of the folder or
    /// list and a number.
    pub name: String,
    /// The shard's images in the source.
    pub range: Range<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    File(Box<Path>),
    Member {
        archive: Arc<Path>,
        offset: u64,
        size: u64,
    },
    Row(ParquetRow),
}

/// A row of a Parquet file.
#[derive(Clone, Debug)]
pub(super) struct ParquetRow {
    pub(super) column: Arc<ByteColumn>,
    /// Number of the file among those of the source.
    pub(super) file: usize,
    pub(super) row: u64,
    pub(super) place: RowPlace,
}

impl Place {
    pub(super) fn describe(&self) -> String {
        match self {
            Place::File(path) => path.display().to_string(),
            Place::Member {
                archive, offset, ..
            } => format!("{} @ {offset}", archive.display()),
            Place::Row(at) => format!("{} row {}", at.column.path.display(), at.row),
        }
    }
}

/// What the index remembers of a Parquet file until all files are known.
struct ParquetEntries {
    range: Range<usize>,
    name: String,
    /// Whether keys are paths, which may be those of another file too, and not row numbers.
    has_paths: bool,
}

/// A source while it is being indexed.
#[derive(Default)]
pub(super) struct Index {
    pub(super) entries: Vec<Entry>,
    pub(super) shards: Vec<Shard>,
    pub(super) damage: Vec<String>,
    names: HashSet<String>,
    /// Entries of each Parquet file, and what their keys may begin with.
    parquet: Vec<ParquetEntries>,
    pub(super) pages: Arc<PageCache>,
    pub(super) skipped: SkippedFiles,
    lenient: bool,
    /// Whether masks beside photos are read as images.
    masks: bool,
}

impl Index {
    /// Indexes what the specifications name, in their order.
    pub(super) fn open(
        specs: &[impl AsRef<str>],
        lenient: bool,
        masks: bool,
    ) -> Result<Self, SourceError> {
        let mut index = Self {
            lenient,
            masks,
            ..Self::default()
        };
        // A shell expands `photos/*.jpg` to hundreds of files: one shard, not one for each.
        let mut files = Vec::new();
        for spec in specs.iter().map(AsRef::as_ref) {
            if spec == "-" {
                index.cut_files(&mut files);
                index.add_stdin()?;
                continue;
            }
            for path in paths_of(spec)? {
                if specs.len() > 1 && is_image_file(&path) {
                    files.push(path);
                } else {
                    index.cut_files(&mut files);
                    index.add(&path, spec)?;
                }
            }
        }
        index.cut_files(&mut files);
        index.tell_parquet_apart();
        if index.entries.is_empty() {
            let all: Vec<&str> = specs.iter().map(AsRef::as_ref).collect();
            return Err(SourceError::Empty {
                place: all.join(" "),
                found: "no path was given".to_owned(),
            });
        }
        Ok(index)
    }

    /// Indexes files with given keys, in the given order.
    pub(super) fn of_files(name: &str, files: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        let mut index = Self::default();
        index
            .entries
            .extend(files.into_iter().map(|(key, path)| Entry {
                key: key.into(),
                place: Place::File(path.into()),
            }));
        index.cut(name, 0);
        index
    }

    fn add(&mut self, path: &Path, spec: &str) -> Result<(), SourceError> {
        let start = self.entries.len();
        let shown = path.display().to_string();
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let part = match shown == spec {
                    true => String::new(),
                    false => format!(" (of `{spec}`)"),
                };
                let expected = format!(
                    "an image, a folder, a list (.txt, .lst), a tar or a Parquet file{part}"
                );
                SourceError::from(MissingPath::new(path, expected))
            }
            _ => error.into(),
        })?;
        if metadata.is_dir() {
            let mut skipped = std::mem::take(&mut self.skipped);
            let folder = Folder::walk(path, self.masks, &mut skipped);
            self.skipped = skipped;
            let folder = folder?;
            // A folder of tars or Parquet files alone is read as these.
            if folder.files.is_empty() && !folder.archives.is_empty() {
                for archive in &folder.archives {
                    self.add(archive, spec)?;
                }
                return Ok(());
            }
            if folder.files.is_empty() {
                return Err(SourceError::Empty {
                    place: shown,
                    found: folder.describe(),
                });
            }
            for (relative, file) in folder.files {
                self.push_file(&relative, file);
            }
            self.cut(&name_of(path), start);
            return Ok(());
        }
        if !metadata.is_file() {
            return Err(SourceError::Special { place: shown });
        }
        match extension(path).as_str() {
            "tar" => self.add_tar(path)?,
            "parquet" => self.add_parquet(path)?,
            "txt" | "lst" => {
                let text = read_text(path)?;
                let folder = path.parent().unwrap_or(Path::new(""));
                self.add_lines(&text, folder, &shown)?;
                self.cut(&name_of(path), start);
            }
            extension => {
                if !EXTENSIONS.contains(&extension) && !starts_as_image(path)? {
                    let found = match extension {
                        "gz" | "tgz" | "bz2" | "xz" | "zst" | "zip" => format!(
                            "a compressed file (.{extension})\n\
                             hint: unpack it; images are compressed already, so a plain tar is \
                             hardly larger"
                        ),
                        "" => "a file without extension that is not an image".to_owned(),
                        other => format!("a file .{other} that is not an image"),
                    };
                    return Err(SourceError::Unknown { path: shown, found });
                }
                let name = path.file_name().map(PathBuf::from).unwrap_or_default();
                self.push_file(&name, path.to_owned());
                self.cut(&name_of(path), start);
            }
        }
        Ok(())
    }

    fn add_tar(&mut self, path: &Path) -> Result<(), SourceError> {
        let start = self.entries.len();
        if let Some(PackProgress { done, total, .. }) = unfinished(path)? {
            return Err(SourceError::Unfinished {
                place: path.display().to_string(),
                done,
                total,
            });
        }
        let (members, ended) = tars::index(path, &mut self.skipped);
        let archive: Arc<Path> = path.into();
        self.entries.extend(members.into_iter().map(|member| Entry {
            key: key_of(Path::new(&member.path)).into(),
            place: Place::Member {
                archive: Arc::clone(&archive),
                offset: member.offset,
                size: member.size,
            },
        }));
        if let Err(error) = ended {
            if !self.lenient || self.entries.len() == start {
                return Err(error);
            }
            self.damage.push(error.to_string());
        }
        let name = self.unused_name(&name_of(path));
        let range = start..self.entries.len();
        self.shards.push(Shard { name, range });
        Ok(())
    }

    /// Adds the rows of a Parquet file that have an image. Their keys are their paths, where each
    /// has its own, else the file's name and row numbers.
    fn add_parquet(&mut self, path: &Path) -> Result<(), SourceError> {
        let start = self.entries.len();
        let images = parquet_index::index(path, &mut self.skipped)?;
        if let Err(error) = images.ended {
            if !self.lenient || images.rows.is_empty() {
                return Err(error);
            }
            self.damage.push(error.to_string());
        }
        let (name, file) = (self.unused_name(&name_of(path)), self.parquet.len());
        let keys: Option<Vec<String>> = images.paths.map(|paths| {
            let keys = paths.iter().map(|path| key_of(Path::new(path)));
            keys.collect()
        });
        // `a.jpg` and `a.png` are two paths and one key.
        let keys = keys.filter(|keys| {
            let mut seen = HashSet::new();
            keys.iter().all(|key| !key.is_empty() && seen.insert(key))
        });
        let has_paths = keys.is_some();
        let mut keys = keys.unwrap_or_default().into_iter();
        for row in images.rows {
            let number = || format!("{name}/{:08}", row.row);
            self.entries.push(Entry {
                key: keys.next().unwrap_or_else(number).into(),
                place: Place::Row(ParquetRow {
                    column: Arc::clone(&images.column),
                    file,
                    row: row.row,
                    place: row.place,
                }),
            });
        }
        let range = start..self.entries.len();
        self.cut_named(&name, start);
        self.parquet.push(ParquetEntries {
            range,
            name,
            has_paths,
        });
        Ok(())
    }

    /// Where the files of a dataset have paths in common (`0.jpg` in each), keys begin with the
    /// names of the files.
    fn tell_parquet_apart(&mut self) {
        let mut seen: HashSet<&str> = HashSet::with_capacity(match self.parquet.is_empty() {
            true => 0,
            false => self.entries.len(),
        });
        if self.parquet.is_empty() || self.entries.iter().all(|entry| seen.insert(&entry.key)) {
            return;
        }
        for file in self.parquet.iter().filter(|file| file.has_paths) {
            for entry in &mut self.entries[file.range.clone()] {
                entry.key = format!("{}/{}", file.name, entry.key).into();
            }
        }
    }

    /// Adds files that were given one by one as one shard: their keys are their names where these
    /// differ, else their paths.
    fn cut_files(&mut self, files: &mut Vec<PathBuf>) {
        if files.is_empty() {
            return;
        }
        let start = self.entries.len();
        let name = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
        let stems: HashSet<String> = files.iter().map(|path| key_of(&name(path))).collect();
        let differ = stems.len() == files.len();
        let mut seen = HashSet::new();
        for path in files.drain(..) {
            if !seen.insert(path.clone()) {
                self.skipped.repeated_lines += 1;
                continue;
            }
            let relative = if differ { name(&path) } else { path.clone() };
            self.push_file(&relative, path);
        }
        let folder = { self.entries.get(start) }.and_then(|first| match &first.place {
            Place::File(path) => path.parent().map(name_of),
            Place::Member { .. } | Place::Row(_) => None,
        });
        self.cut(&folder.unwrap_or_default(), start);
    }

    /// Adds the list that standard input holds.
    fn add_stdin(&mut self) -> Result<(), SourceError> {
        let start = self.entries.len();
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        let text = decode_text(bytes).map_err(|reason| {
            let message = format!("standard input: {reason}");
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        self.add_lines(&text, Path::new(""), "standard input")?;
        self.cut("list", start);
        Ok(())
    }

    fn push_file(&mut self, relative: &Path, file: PathBuf) {
        self.entries.push(Entry {
            key: key_of(relative).into(),
            place: Place::File(file.into()),
        });
    }

    /// Adds the files of a list, relative to `folder`; `list` is its name in messages.
    fn add_lines(&mut self, text: &str, folder: &Path, list: &str) -> Result<(), SourceError> {
        /// Listed files whose existence is checked, spread over the list.
        const CHECKED: usize = 16;
        let start = self.entries.len();
        let lines = text.lines().map(str::trim);
        let mut seen = HashSet::new();
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            // A list of Windows on another system: only where there is no file of that very name.
            let slashes = match line.contains('\\') && !folder.join(line).exists() {
                true => line.replace('\\', "/"),
                false => line.to_owned(),
            };
            if !seen.insert(slashes.clone()) {
                self.skipped.repeated_lines += 1;
                continue;
            }
            let path = folder.join(&slashes);
            self.push_file(Path::new(&slashes), path);
        }
        let listed = &self.entries[start..];
        let first = listed.first().ok_or_else(|| SourceError::Empty {
            place: list.to_owned(),
            found: "no line with a path".to_owned(),
        })?;
        let step = listed.len().div_ceil(CHECKED);
        let exists = |entry: &Entry| match &entry.place {
            Place::File(path) => path.exists(),
            Place::Member { .. } | Place::Row(_) => true,
        };
        if !listed.iter().step_by(step).any(exists) {
            return Err(SourceError::ListedMissing {
                list: list.to_owned(),
                example: first.place.describe(),
            });
        }
        Ok(())
    }

    /// Cuts the entries from `start` on into shards.
    fn cut(&mut self, name: &str, start: usize) {
        let name = self.unused_name(name);
        self.cut_named(&name, start);
    }

    /// As [`Self::cut`], with a name that is the shards' own.
    fn cut_named(&mut self, name: &str, start: usize) {
        let end = self.entries.len();
        let size = match end - start {
            ..TINY => TINY_SHARD_SIZE,
            TINY..SMALL => SMALL_SHARD_SIZE,
            _ => SHARD_SIZE,
        };
        for (number, start) in (start..end).step_by(size).enumerate() {
            self.shards.push(Shard {
                name: format!("{name}-{number:05}"),
                range: start..end.min(start + size),
            });
        }
    }

    /// `name`, with a number where an earlier part of the source has that name.
    fn unused_name(&mut self, name: &str) -> String {
        let numbered = (2_usize..).map(|number| format!("{name}.{number}"));
        let mut candidates = std::iter::once(name.to_owned()).chain(numbered);
        candidates
            .find(|candidate| self.names.insert(candidate.clone()))
            .unwrap_or_default()
    }

    /// Checks that no two images share a key.
    pub(super) fn check_keys(&self) -> Result<(), SourceError> {
        let mut sorted: Vec<&Entry> = self.entries.iter().collect();
        // Stable, so that of two equal keys the first is named first.
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for pair in sorted.windows(2) {
            if pair[0].key == pair[1].key {
                return Err(SourceError::Duplicate {
                    key: pair[0].key.to_string(),
                    first: pair[0].place.describe(),
                    second: pair[1].place.describe(),
                });
            }
        }
        Ok(())
    }
}

/// The key that belongs to a path below a folder, in a list or in a tar.
fn key_of(relative: &Path) -> String {
    let parts = relative.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    let mut key = parts.collect::<Vec<_>>().join("/");
    let extension = extension(relative);
    if EXTENSIONS.contains(&extension.as_str()) {
        key.truncate(key.len() - extension.len() - 1);
    }
    key
}

/// A name for the shards of what is at `path`, made of characters that any file system takes.
fn name_of(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = if whole.is_dir() {
        whole.file_name()
    } else {
        path.file_stem()
    };
    let name = name.unwrap_or_default().to_string_lossy();
    let safe = name.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => c,
        _ => '_',
    });
    let safe: String = safe.collect();
    let safe = safe.trim_start_matches('.');
    if safe.is_empty() { "images" } else { safe }.to_owned()
}
