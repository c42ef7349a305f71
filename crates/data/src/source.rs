//! Where images come from: files, folders, lists and tar shards.
//!
//! A [`Source`] is an ordered index of images with random access. The order never depends on the
//! file system: folders are sorted by path, lists and tars keep the order in which they were
//! written. Tars are indexed by one pass over their headers, which touches no image.
//!
//! ```text
//! photos/                      every image below it, sorted; hidden files are left out
//! people.txt                   one path a line, relative to the list; `#` starts a comment
//! -                            the same from standard input, relative to the current folder
//! shards/                      a folder of tars and no image: these, sorted
//! people-{000..099}.tar        shards; braces also hold alternatives, {train,val}.tar
//! shards/*.tar                 what fits the pattern, sorted
//! a.jpg,b.jpg,more/            several of these, joined
//! ```
//!
//! Each image is read once. What is not read is counted and told ([`Source::left_out`]): image
//! kinds that are not decoded, masks beside photos (`x.seg.png`, `masks/x.png`), lines of a list
//! that repeat an earlier one, pipes and devices, and links that lead nowhere or to a folder that
//! is read anyway.
//!
//! The key of an image is its path below the folder, as listed, or in the tar, without extension
//! and with `/` between folders. No two images of a source share one.

mod folder;
mod tars;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use self::folder::Folder;
use crate::image::{ImageError, Limits, Rgb, decode, format_of};
use crate::pack::unfinished;
use crate::text::{decode_text, read_text};

/// Images in a shard of a folder or a list, unless it is small.
pub const SHARD_SIZE: usize = 4096;

/// Images in a shard of a folder or a list of fewer than [`SMALL`], so that several jobs can share it.
pub const SMALL_SHARD_SIZE: usize = 256;

/// Images of a folder or a list up to which its shards are small.
pub const SMALL: usize = 64 * SMALL_SHARD_SIZE;

/// Largest file or tar member that is read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Most paths that the braces of one specification may stand for.
const MAX_EXPANSION: usize = 1_000_000;

/// Extensions of images, in small letters.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "jpe", "jfif", "jif", "png", "webp", "bmp"];

/// Extensions of images that are not decoded, and of archives: told when they are left out.
const NOT_READ: [&str; 33] = [
    "7z", "arw", "avif", "bz2", "cr2", "dng", "exr", "gif", "gz", "hdr", "heic", "heif", "ico",
    "j2k", "jp2", "jxl", "nef", "pbm", "pgm", "ppm", "psd", "rar", "raw", "svg", "tar", "tga",
    "tgz", "tif", "tiff", "xz", "zip", "zst", "zstd",
];

/// Words that name a mask between a photo's name and the extension, as in `x.seg.png`.
const FIELDS: [&str; 18] = [
    "alpha",
    "annotation",
    "depth",
    "densepose",
    "gt",
    "instance",
    "label",
    "labels",
    "mask",
    "matte",
    "normal",
    "normals",
    "parsing",
    "parts",
    "pose",
    "seg",
    "segmentation",
    "semantic",
];

/// Why images cannot be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is nothing at the path.
    #[error("`{path}` does not exist{}", of_spec(.path, .spec))]
    NotFound {
        /// The path that is missing.
        path: String,
        /// What it was part of.
        spec: String,
    },
    /// The path exists but is nothing that holds images.
    #[error("`{path}`: expected an image, a folder, a list (.txt, .lst) or a tar, found {found}")]
    Unknown {
        /// The path.
        path: String,
        /// What it is instead, with a hint where there is one.
        found: String,
    },
    /// There is no image in it.
    #[error("`{place}` holds no image (.jpg, .jpeg, .png, .webp, .bmp): {found}")]
    Empty {
        /// The folder, list or tar.
        place: String,
        /// What it holds instead.
        found: String,
    },
    /// The tar ends inside a member or without its end mark.
    #[error(
        "`{archive}` is cut short: {what} at byte {offset} needs {need} bytes, {have} are there\n\
         hint: copy it again; with --keep-going (in a recipe: data.skip_unreadable = true) the \
         {complete} whole images before that are used"
    )]
    Truncated {
        /// The tar.
        archive: String,
        /// What is incomplete.
        what: String,
        /// Where it begins in the tar.
        offset: u64,
        /// Bytes that it needs from there.
        need: u64,
        /// Bytes that the file has from there.
        have: u64,
        /// Whole images before it.
        complete: usize,
    },
    /// The content is not that of a tar.
    #[error(
        "`{archive}` is not a readable tar: {reason} at byte {offset}\n\
         hint: copy it again; with --keep-going (in a recipe: data.skip_unreadable = true) the \
         {complete} whole images before that are used"
    )]
    Damaged {
        /// The tar.
        archive: String,
        /// End of what could be read.
        offset: u64,
        /// What is wrong.
        reason: String,
        /// Whole images before it.
        complete: usize,
    },
    /// Tars that `clasp data pack` has not finished.
    #[error(
        "`{place}` is being packed, or its packing was stopped: {done} of {total} images so far\n  \
         hint: the same `clasp data pack` goes on with it"
    )]
    Unfinished {
        /// The tar or its folder.
        place: String,
        /// Images that are packed.
        done: usize,
        /// Images that are to be packed.
        total: usize,
    },
    /// What is to be read as an image is none of the things that can be.
    #[error("`{place}`: expected a file, found a named pipe, a socket or a device")]
    Special {
        /// The path.
        place: String,
    },
    /// Two images would have the same key.
    #[error(
        "two images have the key `{key}`: `{first}` and `{second}`\n  \
         hint: a key is the path without its ending; rename one, or give a list file of the images that are wanted"
    )]
    Duplicate {
        /// The key.
        key: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// None of the files of a list that were looked for exist.
    #[error(
        "`{list}`: none of the listed files exist, for example `{example}`\n\
         hint: paths in a list are relative to the list's folder"
    )]
    ListedMissing {
        /// The list.
        list: String,
        /// The first path looked for.
        example: String,
    },
    /// The braces of a specification are wrong.
    #[error("`{spec}`: {reason}\nhint: a range is written {{000..099}}")]
    Braces {
        /// The specification.
        spec: String,
        /// What is wrong.
        reason: String,
    },
    /// A pattern that no file fits, or that is none.
    #[error("`{pattern}`: {reason}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// A file is larger than any image should be.
    #[error("`{place}` has {bytes} bytes, more than the {MAX_FILE_BYTES} allowed for an image")]
    TooLarge {
        /// The file or member.
        place: String,
        /// Its size.
        bytes: u64,
    },
    /// The file system failed; the message names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn of_spec(path: &str, spec: &str) -> String {
    if path == spec {
        String::new()
    } else {
        format!(" (of `{spec}`)")
    }
}

/// A run of images that is worked on as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// A file name without extension, unique in the source: a tar's own, or that of the folder or
    /// list and a number.
    pub name: String,
    /// The shard's images in the source.
    pub range: Range<usize>,
}

/// An ordered index of images. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Source {
    entries: Arc<[Entry]>,
    shards: Arc<[Shard]>,
    damage: Arc<[String]>,
    left_out: Arc<LeftOut>,
}

/// What lies among the images of a source and is not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Image kinds that are not decoded, and archives, by extension.
    pub kinds: BTreeMap<String, usize>,
    /// Images without extension.
    pub unnamed: usize,
    /// Hidden images.
    pub hidden: usize,
    /// Masks and other fields of a sample beside its image: `x.seg.png`.
    pub fields: usize,
    /// Masks in folders of masks.
    pub masks: usize,
    /// Pipes, sockets, devices, and members of a tar that are no plain files.
    pub special: usize,
    /// Links in a tar to what is not in it.
    pub broken_links: usize,
    /// Linked folders that are read under another name, or hold the link.
    pub linked_folders: usize,
    /// Lines of a list that repeat an earlier one.
    pub repeated_lines: usize,
    notes: Vec<String>,
}

impl LeftOut {
    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn other(&mut self, extension: &str) {
        self.others(extension, 1);
    }

    fn others(&mut self, extension: &str, count: usize) {
        if NOT_READ.contains(&extension) {
            *self.kinds.entry(extension.to_owned()).or_default() += count;
        }
    }

    /// In words, a line a kind of thing; nothing where all was read.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = self.notes.clone();
        if !self.kinds.is_empty() {
            lines.push(format!(
                "left out {} of kinds that are not read",
                describe_others(&self.kinds).replace("other ", "")
            ));
        }
        let counts = [
            (self.unnamed, "images without extension"),
            (self.hidden, "hidden images"),
            (
                self.fields,
                "masks or other fields beside images, as x.seg.png",
            ),
            (self.masks, "masks in folders of masks"),
            (self.special, "pipes, sockets, devices or sparse files"),
            (self.broken_links, "links to files that are not in the tar"),
            (
                self.linked_folders,
                "linked folders that are read under another name",
            ),
            (
                self.repeated_lines,
                "lines of a list that repeat an earlier one",
            ),
        ];
        let told = counts.into_iter().filter(|(count, _)| *count > 0);
        lines.extend(told.map(|(count, what)| format!("left out {count} {what}")));
        lines
    }
}

#[derive(Clone, Debug)]
struct Entry {
    key: Box<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    File(Box<Path>),
    Member {
        archive: Arc<Path>,
        offset: u64,
        size: u64,
    },
}

impl Source {
    /// Opens what `spec` names; see the module's doc.
    ///
    /// # Errors
    /// Where something is missing, holds no image, is damaged, or two images share a key.
    pub fn open(spec: &str) -> Result<Source, SourceError> {
        Self::open_with(&[spec], false, false)?.finish()
    }

    /// As [`Source::open`], of several things, joined; with `lenient` as [`Source::open_lenient`].
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_several(specs: &[impl AsRef<str>], lenient: bool) -> Result<Source, SourceError> {
        Self::open_with(specs, lenient, false)?.finish()
    }

    /// As [`Source::open`], but two images may share a key, as a photo and its mask beside it do.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub(crate) fn open_all(spec: &str) -> Result<Source, SourceError> {
        Ok(Self::open_with(&[spec], false, true)?.source())
    }

    /// As [`Source::open`], but of a tar that is cut short or damaged the whole members are used.
    /// [`Source::damage`] says which tars those were.
    ///
    /// # Errors
    /// As [`Source::open`], other than for damaged tars that have at least one whole image.
    pub fn open_lenient(spec: &str) -> Result<Source, SourceError> {
        Self::open_with(&[spec], true, false)?.finish()
    }

    fn open_with(
        specs: &[impl AsRef<str>],
        lenient: bool,
        masks: bool,
    ) -> Result<Index, SourceError> {
        let mut index = Index {
            lenient,
            masks,
            ..Index::default()
        };
        // What a shell makes of `photos/*.jpg` is one thing, not hundreds of one image.
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
        if index.entries.is_empty() {
            let all: Vec<&str> = specs.iter().map(AsRef::as_ref).collect();
            return Err(SourceError::Empty {
                place: all.join(" "),
                found: "nothing is named".to_owned(),
            });
        }
        Ok(index)
    }

    /// A source of files with given keys, in the given order, cut into shards named after `name`.
    ///
    /// # Errors
    /// Where two files share a key.
    pub fn from_files(
        name: &str,
        files: impl IntoIterator<Item = (String, PathBuf)>,
    ) -> Result<Source, SourceError> {
        let mut index = Index::default();
        index
            .entries
            .extend(files.into_iter().map(|(key, path)| Entry {
                key: key.into(),
                place: Place::File(path.into()),
            }));
        index.cut(name, 0);
        index.finish()
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

    /// Where image `i` is, for messages: a path, or `archive.tar @ offset`.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn place(&self, i: usize) -> String {
        self.entries[i].place.describe()
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
            Place::File(path) => {
                // Before it is opened: to open a pipe is to wait for a writer.
                if !fs::metadata(&**path)?.is_file() {
                    return Err(SourceError::Special {
                        place: place.describe(),
                    });
                }
                let file = fs::File::open(&**path)?;
                let size = file.metadata()?.len();
                (file, size)
            }
            Place::Member {
                archive,
                offset,
                size,
            } => {
                let mut file = fs::File::open(&**archive)?;
                file.seek(SeekFrom::Start(*offset))?;
                (file, *size)
            }
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

    /// Image `i`, decoded.
    ///
    /// # Errors
    /// Where it cannot be read, or its bytes are no image.
    ///
    /// # Panics
    /// If `i` is not below [`Source::len`].
    pub fn load(&self, i: usize, limits: &Limits) -> Result<Rgb, Failure> {
        Ok(decode(&self.read(i)?, limits)?)
    }

    /// The runs of images that are worked on as a whole: one per tar; folders and lists are cut
    /// into runs of [`SHARD_SIZE`].
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
            left_out: Arc::clone(&self.left_out),
        }
    }

    /// What was found and is not read.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// What [`Source::open_lenient`] found damaged, one message per tar.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }
}

impl Place {
    fn describe(&self) -> String {
        match self {
            Place::File(path) => path.display().to_string(),
            Place::Member {
                archive, offset, ..
            } => format!("{} @ {offset}", archive.display()),
        }
    }
}

/// A source while it is put together.
#[derive(Default)]
struct Index {
    entries: Vec<Entry>,
    shards: Vec<Shard>,
    damage: Vec<String>,
    names: HashSet<String>,
    left_out: LeftOut,
    lenient: bool,
    /// Whether masks are images too.
    masks: bool,
}

impl Index {
    fn add(&mut self, path: &Path, spec: &str) -> Result<(), SourceError> {
        let start = self.entries.len();
        let shown = path.display().to_string();
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SourceError::NotFound {
                path: shown.clone(),
                spec: spec.to_owned(),
            },
            _ => error.into(),
        })?;
        if metadata.is_dir() {
            let mut left_out = std::mem::take(&mut self.left_out);
            let folder = Folder::walk(path, self.masks, &mut left_out);
            self.left_out = left_out;
            let folder = folder?;
            // A folder of shards and nothing else stands for its shards.
            if folder.files.is_empty() && !folder.tars.is_empty() {
                for tar in &folder.tars {
                    self.add(tar, spec)?;
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
            "tar" => {
                if let Some((done, total)) = unfinished(path)? {
                    return Err(SourceError::Unfinished {
                        place: shown,
                        done,
                        total,
                    });
                }
                let (members, ended) = tars::index(path, &mut self.left_out);
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
            }
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
                        "" => "a file without extension that is no image".to_owned(),
                        other => format!("a file .{other} that is no image"),
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

    /// Adds single files that were named one by one, as one thing: their keys are their names
    /// where these differ, else their paths.
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
                self.left_out.repeated_lines += 1;
                continue;
            }
            let relative = if differ { name(&path) } else { path.clone() };
            self.push_file(&relative, path);
        }
        let folder = { self.entries.get(start) }.and_then(|first| match &first.place {
            Place::File(path) => path.parent().map(name_of),
            Place::Member { .. } => None,
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

    /// Adds the files that a list names, relative to `folder`; `list` is for messages.
    fn add_lines(&mut self, text: &str, folder: &Path, list: &str) -> Result<(), SourceError> {
        /// So many of the listed files are looked for, spread over the list.
        const LOOKED_FOR: usize = 16;
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
                self.left_out.repeated_lines += 1;
                continue;
            }
            let path = folder.join(&slashes);
            self.push_file(Path::new(&slashes), path);
        }
        let listed = &self.entries[start..];
        let first = listed.first().ok_or_else(|| SourceError::Empty {
            place: list.to_owned(),
            found: "no line names a file".to_owned(),
        })?;
        let step = listed.len().div_ceil(LOOKED_FOR);
        let exists = |entry: &Entry| match &entry.place {
            Place::File(path) => path.exists(),
            Place::Member { .. } => true,
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
        let end = self.entries.len();
        let name = self.unused_name(name);
        let size = match end - start {
            ..SMALL => SMALL_SHARD_SIZE,
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

    fn finish(self) -> Result<Source, SourceError> {
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
        Ok(self.source())
    }

    fn source(self) -> Source {
        Source {
            entries: self.entries.into(),
            shards: self.shards.into(),
            damage: self.damage.into(),
            left_out: Arc::new(self.left_out),
        }
    }
}

fn describe_others(others: &BTreeMap<String, usize>) -> String {
    if others.is_empty() {
        return "it is empty".to_owned();
    }
    let mut by_count: Vec<_> = others.iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts = by_count.iter().take(3).map(|(extension, count)| {
        if extension.is_empty() {
            format!("{count} without extension")
        } else {
            format!("{count} x .{extension}")
        }
    });
    let parts: Vec<String> = parts.collect();
    let total: usize = others.values().sum();
    format!("{total} other files ({})", parts.join(", "))
}

/// Extension in small letters, empty where there is none.
fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// Whether an image's path is `BASE.FIELD.EXTENSION` beside an image of the name `BASE`, so that it
/// is a field of that sample rather than another photo; with `any`, whatever word the field is but
/// a number, else one of [`FIELDS`].
fn is_sidecar_field(path: &str, is_image: impl Fn(&str) -> bool, any: bool) -> bool {
    let Some((base, field)) = { path.rsplit_once('.') }.and_then(|(stem, _)| stem.rsplit_once('.'))
    else {
        return false;
    };
    let field = field.to_ascii_lowercase();
    let is_word = !field.contains('/') && !field.bytes().all(|byte| byte.is_ascii_digit());
    is_word && (any || FIELDS.contains(&field.as_str())) && is_image(base)
}

/// Whether there is a file of that name with the extension of an image.
fn is_image_file(path: &Path) -> bool {
    EXTENSIONS.contains(&extension(path).as_str()) && path.is_file()
}

pub(crate) fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with('.')
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

fn starts_as_image(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    fs::File::open(path)?.take(64).read_to_end(&mut start)?;
    Ok(format_of(&start).is_some())
}

/// The paths that a specification stands for. What exists under the very name is taken as it is,
/// so that names with commas and braces stay usable.
fn paths_of(spec: &str) -> Result<Vec<PathBuf>, SourceError> {
    if Path::new(spec).exists() {
        return Ok(vec![PathBuf::from(spec)]);
    }
    let mut paths = Vec::new();
    for part in split_outside_braces(spec) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        if Path::new(part).exists() {
            paths.push(PathBuf::from(part));
            continue;
        }
        for path in expand_braces(part)? {
            match path.contains(['*', '?', '[']) && !Path::new(&path).exists() {
                true => paths.extend(matches_of(&path)?),
                false => paths.push(PathBuf::from(path)),
            }
        }
    }
    Ok(paths)
}

/// The paths that fit a pattern with `*`, `?`, `[…]` and `**`, sorted.
fn matches_of(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    let wrong = |reason: String| SourceError::NoMatch {
        pattern: pattern.to_owned(),
        reason,
    };
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let found = glob::glob_with(pattern, options).map_err(|error| wrong(error.to_string()))?;
    let mut paths = found
        .collect::<Result<Vec<PathBuf>, _>>()
        .map_err(|error| SourceError::Io(error.into()))?;
    if paths.is_empty() {
        return Err(wrong("no file fits the pattern".to_owned()));
    }
    paths.sort();
    Ok(paths)
}

fn split_outside_braces(spec: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let at_comma = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    spec.split(at_comma).collect()
}

/// Expands `{000..099}` (the width of the first number is kept) and `{a,b}`, left to right, any
/// number of them, not nested.
///
/// # Errors
/// [`SourceError::Braces`] for a brace without its other half, a range that is none or runs
/// backwards, and more than a million results.
pub fn expand_braces(spec: &str) -> Result<Vec<String>, SourceError> {
    let wrong = |reason: String| SourceError::Braces {
        spec: spec.to_owned(),
        reason,
    };
    let mut results = vec![String::new()];
    let mut rest = spec;
    while let Some(open) = rest.find(['{', '}']) {
        let (before, braced) = rest.split_at(open);
        let (inside, after) = braced
            .strip_prefix('{')
            .and_then(|braced| braced.split_once('}'))
            .filter(|(inside, _)| !inside.contains('{'))
            .ok_or_else(|| wrong("a brace has no other half".to_owned()))?;
        let values: Vec<String> = match inside.split_once("..") {
            Some((first, last)) => number_range(first, last).map_err(wrong)?,
            None => inside.split(',').map(str::to_owned).collect(),
        };
        if results.len().saturating_mul(values.len()) > MAX_EXPANSION {
            return Err(wrong(format!("stands for more than {MAX_EXPANSION} files")));
        }
        let joined = results
            .iter()
            .flat_map(|start| values.iter().map(move |v| format!("{start}{before}{v}")));
        results = joined.collect();
        rest = after;
    }
    for result in &mut results {
        result.push_str(rest);
    }
    Ok(results)
}

fn number_range(first: &str, last: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|_| digits);
        number.ok_or_else(|| format!("`{text}` is not a number of a range"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range {first}..{last} runs backwards"));
    }
    if to - from >= MAX_EXPANSION as u64 {
        return Err(format!("stands for more than {MAX_EXPANSION} files"));
    }
    let width = first.len();
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}

/// Why an image could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is wrong, in words.
    pub reason: String,
    /// Whether the bytes of the image are at fault, so that it fails again. Otherwise they could not
    /// be read (a share that is away, too many open files), which passes.
    pub damaged: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self {
            reason: error.to_string(),
            damaged: false,
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self {
            reason: error.to_string(),
            damaged: true,
        }
    }
}

/// Images that were tried and those that could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Images tried, good and bad.
    pub seen: u64,
    /// Key of, and reason for, each that could not be used.
    pub failed: Vec<(String, String)>,
}

/// More images than 5 % cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{failed} of {seen} images cannot be read, more than 5 %; the first: `{key}`: {reason}\n\
     hint: --keep-going uses the others"
)]
pub struct TooManyUnreadable {
    /// How many failed.
    pub failed: u64,
    /// How many were tried.
    pub seen: u64,
    /// Key of the first that failed.
    pub key: String,
    /// Why it failed.
    pub reason: String,
}

impl Unreadable {
    /// Counts an image that could be used.
    pub fn ok(&mut self) {
        self.seen += 1;
    }

    /// Counts an image that could not, and remembers why.
    pub fn fail(&mut self, key: impl Into<String>, reason: impl ToString) {
        self.seen += 1;
        self.failed.push((key.into(), reason.to_string()));
    }

    /// Adds the counts of another part of the work.
    pub fn merge(&mut self, other: Unreadable) {
        self.seen += other.seen;
        self.failed.extend(other.failed);
    }

    /// The rule for finished work: at most 5 % may fail.
    ///
    /// # Errors
    /// If more did.
    pub fn check(&self) -> Result<(), TooManyUnreadable> {
        let failed = self.failed.len() as u64;
        match self.failed.first() {
            Some((key, reason)) if 20 * failed > self.seen => Err(TooManyUnreadable {
                failed,
                seen: self.seen,
                key: key.clone(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The rule for work that goes on: the same once 1000 images were seen, so that hours are not
    /// spent on a broken copy, nor work stopped by the first bad file.
    ///
    /// # Errors
    /// If more failed.
    pub fn check_early(&self) -> Result<(), TooManyUnreadable> {
        if self.seen < 1000 {
            return Ok(());
        }
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::encode_png;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn png(colour: u8) -> Vec<u8> {
        encode_png(&Rgb::filled(2, 3, [colour, 0, 0]))
    }

    /// A folder with these files, each an image of its own colour unless it is a text.
    fn folder(names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, name) in names.iter().enumerate() {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.ends_with("txt") {
                fs::write(path, "words").unwrap();
            } else {
                fs::write(path, png(i as u8)).unwrap();
            }
        }
        folder
    }

    fn write_tar(path: &Path, members: &[(&str, Vec<u8>)]) {
        let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap();
    }

    fn open(path: &Path) -> Result<Source, SourceError> {
        Source::open(path.to_str().unwrap())
    }

    fn keys(source: &Source) -> Vec<&str> {
        source.keys().collect()
    }

    fn colours(source: &Source) -> Vec<u8> {
        let limits = Limits::default();
        (0..source.len())
            .map(|i| decode(&source.read(i).unwrap(), &limits).unwrap().pixels[0])
            .collect()
    }

    #[test]
    fn a_folder_is_sorted_and_read_to_any_depth() {
        let names = ["b.png", "a/z.JPG", "a/b/c.webp", "notes.txt", ".hidden.png"];
        let folder = folder(&names);
        let source = open(folder.path()).unwrap();
        assert_eq!(keys(&source), ["a/b/c", "a/z", "b"]);
        assert_eq!(colours(&source), [2, 1, 0]);
        assert!(source.place(2).ends_with("b.png"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_linked_into_itself_ends() {
        let folder = folder(&["a/x.png"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("gone.png")).unwrap();
        let source = open(folder.path()).unwrap();
        assert_eq!(keys(&source), ["a/x", "gone"]);
        assert!(source.read(1).is_err());
        assert_eq!(source.left_out().linked_folders, 1);
    }

    #[test]
    fn one_file_and_several_parts() {
        let folder = folder(&["a.png", "more/b.png", "no extension", "c,d.png"]);
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(keys(&Source::open(&at("a.png")).unwrap()), ["a"]);
        assert_eq!(
            keys(&Source::open(&at("no extension")).unwrap()),
            ["no extension"]
        );
        assert_eq!(keys(&Source::open(&at("c,d.png")).unwrap()), ["c,d"]);
        let joined = Source::open(&format!("{}, {}", at("more"), at("a.png"))).unwrap();
        assert_eq!(keys(&joined), ["b", "a"]);
        assert_eq!(colours(&joined), [1, 0]);
        let braces = Source::open(&format!("{}/{{a,more/b}}.png", folder.path().display()));
        assert_eq!(keys(&braces.unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_list_is_relative_to_itself_and_keeps_its_order() {
        let folder = folder(&["in/b.png", "a.png", "lists/x.txt"]);
        let list = folder.path().join("lists/x.txt");
        let absolute = folder.path().join("a.png");
        let text = format!("# people\n../in/b.png\r\n\n{}\n", absolute.display());
        fs::write(&list, text).unwrap();
        let source = open(&list).unwrap();
        assert_eq!(source.key(0), "in/b");
        assert!(source.key(1).ends_with("/a"));
        assert_eq!(colours(&source), [0, 1]);
    }

    #[test]
    fn tars_keep_their_order_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/z.png", "long".repeat(40));
        for shard in 0..3 {
            let member = |name: &str, i: u8| (format!("{name}{shard}"), png(10 * shard + i));
            let (b, a, l) = (member("b", 0), member("./x/a", 1), member("", 2));
            let l_name = format!("{}/{long}", l.0);
            write_tar(
                &folder.path().join(format!("p-{shard:02}.tar")),
                &[
                    (&format!("{}.png", b.0), b.1),
                    ("meta.json", b"{}".to_vec()),
                    (&format!("{}.png", a.0), a.1),
                    (&l_name, l.1),
                ],
            );
        }
        let spec = format!("{}/p-{{00..02}}.tar", folder.path().display());
        let source = Source::open(&spec).unwrap();
        assert_eq!(source.len(), 9);
        assert_eq!(&keys(&source)[..2], ["b0", "x/a0"]);
        assert!(source.key(2).ends_with("long/z"));
        assert_eq!(colours(&source), [0, 1, 2, 10, 11, 12, 20, 21, 22]);
        let shards = source.shards();
        let names: Vec<&str> = shards.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["p-00", "p-01", "p-02"]);
        assert_eq!(shards[1].range, 3..6);
    }

    #[test]
    fn a_tar_cut_anywhere_is_named_and_its_whole_members_usable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("people.tar");
        let names: Vec<String> = (0..6).map(|i| format!("p{i}.png")).collect();
        let members: Vec<_> = names.iter().map(|n| (n.as_str(), png(7))).collect();
        write_tar(&path, &members);
        let whole = fs::read(&path).unwrap();
        let step = whole.len() / 40;
        let end = 6 * 2 * 512;
        for cut in (1..end).step_by(step).chain([512, 1024, 2048, 6 * 1024]) {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = open(&path).unwrap_err();
            let text = error.to_string();
            assert!(
                matches!(error, SourceError::Truncated { .. }),
                "{cut}: {text}"
            );
            assert!(
                text.contains("people.tar") && text.contains("at byte"),
                "{text}"
            );
            // A member is a header block and one block of content, whose padding may be missing.
            let content = png(7).len();
            let complete = (cut + 512 - content) / 1024;
            let lenient = Source::open_lenient(path.to_str().unwrap());
            if complete == 0 {
                assert!(lenient.is_err());
                continue;
            }
            let lenient = lenient.unwrap();
            assert_eq!(lenient.len(), complete, "cut at {cut}");
            assert!(lenient.damage()[0].contains("people.tar"));
            assert!(colours(&lenient).iter().all(|c| *c == 7));
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(open(&path).unwrap().damage().len(), 0);
    }

    #[test]
    fn a_text_called_tar_and_an_empty_tar_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        fs::write(&path, "words, ".repeat(900)).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
        fs::write(&path, "").unwrap();
        assert!(matches!(
            open(&path).unwrap_err(),
            SourceError::Truncated { .. }
        ));
        write_tar(&path, &[]);
        assert!(matches!(
            open(&path).unwrap_err(),
            SourceError::Empty { .. }
        ));
        write_tar(&path, &[("a.json", b"{}".to_vec())]);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("1 x .json"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_pipes_and_other_kinds_are_read_once_or_told() {
        use std::os::unix::fs::symlink;
        let names = [
            "in/a.png",
            "in/b.jfif",
            "in/c.jpe",
            "in/d.tif",
            "in/e.gif",
            "in/f.heic",
        ];
        let folder = folder(&names);
        let path = |name: &str| folder.path().join(name);
        fs::write(path("in/._a.png"), "resource fork").unwrap();
        fs::write(path("in/.h.png"), png(1)).unwrap();
        fs::write(path("in/unnamed"), png(1)).unwrap();
        fs::write(path("in/notes"), "words").unwrap();
        fs::hard_link(path("in/a.png"), path("in/hard.png")).unwrap();
        symlink("a.png", path("in/soft.png")).unwrap();
        fs::create_dir_all(path("other/deep")).unwrap();
        fs::write(path("other/deep/x.png"), png(9)).unwrap();
        symlink(path("other"), path("in/l1")).unwrap();
        symlink(path("other"), path("in/l2")).unwrap();
        // A loop of two links, and one to the folder above.
        symlink(path("in"), path("other/back")).unwrap();
        symlink(folder.path(), path("in/up")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("in/s.png")).unwrap();
        let source = open(&path("in")).unwrap();
        assert_eq!(keys(&source), ["a", "b", "c", "hard", "l1/deep/x", "soft"]);
        assert_eq!(colours(&source), [0, 1, 2, 0, 9, 0]);
        let left_out = source.left_out();
        assert_eq!(left_out.kinds.values().sum::<usize>(), 3);
        assert_eq!(
            (left_out.special, left_out.hidden, left_out.unnamed),
            (1, 1, 1)
        );
        assert_eq!(left_out.linked_folders, 3);
        let told = left_out.describe().join("\n");
        assert!(
            told.contains("1 x .heic") && told.contains("left out 3 files"),
            "{told}"
        );
        let error = open(&path("in/s.png")).unwrap_err();
        assert!(matches!(error, SourceError::Special { .. }), "{error}");
        let listed = Source::from_files("s", [("s".to_owned(), path("in/s.png"))]).unwrap();
        assert!(listed.read(0).unwrap_err().to_string().contains("a device"));
    }

    #[test]
    fn masks_beside_photos_are_no_photos() {
        let names = [
            "images/a.jpg",
            "images/a.seg.png",
            "images/a.2.png",
            "images/b.png",
        ];
        let more = [
            "masks/a.png",
            "masks/b.png",
            "masks/c.png",
            "labels/x.jpg",
            "x.jpg",
        ];
        let folder = folder(&[&names[..], &more[..]].concat());
        let source = open(folder.path()).unwrap();
        let expected = [
            "images/a.2",
            "images/a",
            "images/b",
            "labels/x",
            "masks/c",
            "x",
        ];
        assert_eq!(keys(&source), expected);
        assert_eq!((source.left_out().fields, source.left_out().masks), (1, 2));
        // The folder of masks itself may be what is wanted, and a check counts everything.
        assert_eq!(open(&folder.path().join("masks")).unwrap().len(), 3);
        let all = Source::open_all(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn the_image_of_a_sample_is_read_and_its_other_fields_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.tar");
        let members = [
            ("00000.png", png(1)),
            ("00000.seg.png", png(2)),
            ("00000.json", b"{}".to_vec()),
            ("a.b/c.png", png(3)),
            ("00001.0.png", png(4)),
            ("00001.png", png(5)),
            ("x.tif", png(6)),
        ];
        write_tar(&path, &members);
        let source = open(&path).unwrap();
        assert_eq!(keys(&source), ["00000", "a.b/c", "00001.0", "00001"]);
        assert_eq!(colours(&source), [1, 3, 4, 5]);
        assert_eq!(
            (source.left_out().fields, source.left_out().kinds["tif"]),
            (1, 1)
        );
    }

    #[test]
    fn links_in_a_tar_and_several_tars_in_one_file_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.tar");
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        let add = |tar: &mut tar::Builder<_>, kind, name: &str, to: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            match to {
                "" => tar.append_data(&mut header, name, bytes).unwrap(),
                to => tar.append_link(&mut header, name, to).unwrap(),
            }
        };
        add(
            &mut tar,
            tar::EntryType::Symlink,
            "x/early.png",
            "../x/0.png",
            b"",
        );
        add(&mut tar, tar::EntryType::Regular, "x/0.png", "", &png(7));
        add(&mut tar, tar::EntryType::Link, "x/hard.png", "x/0.png", b"");
        add(
            &mut tar,
            tar::EntryType::Symlink,
            "x/soft.png",
            "hard.png",
            b"",
        );
        add(
            &mut tar,
            tar::EntryType::Symlink,
            "x/gone.png",
            "/elsewhere.png",
            b"",
        );
        add(
            &mut tar,
            tar::EntryType::Symlink,
            "x/loop.png",
            "loop.png",
            b"",
        );
        add(&mut tar, tar::EntryType::Fifo, "x/pipe.png", "", b"");
        tar.into_inner().unwrap();
        let other = folder.path().join("m.tar");
        write_tar(&other, &[("y.png", png(8))]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(fs::read(&other).unwrap());
        bytes.extend(b"words that are no tar");
        fs::write(&path, bytes).unwrap();
        let source = open(&path).unwrap();
        let expected = ["x/early", "x/0", "x/hard", "x/soft", "y"];
        assert_eq!(keys(&source), expected);
        assert_eq!(colours(&source), [7, 7, 7, 7, 8]);
        let left_out = source.left_out();
        assert_eq!((left_out.broken_links, left_out.special), (2, 1));
        let told = left_out.describe().join("\n");
        assert!(told.contains("21 bytes after its end are no tar"), "{told}");
    }

    #[test]
    fn a_name_in_a_tar_is_bounded_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.tar");
        let size = 40 << 30;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(size);
        header.set_cksum();
        let mut file = fs::File::create(&path).unwrap();
        io::Write::write_all(&mut file, header.as_bytes()).unwrap();
        // A file with holes takes no space; to read the name would take 40 GiB.
        file.set_len(512 + size + 1024).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("a name of 42949672960 bytes"), "{error}");
    }

    #[test]
    fn lists_of_other_systems_are_read_and_repeats_told() {
        let folder = folder(&["a/0.png", "a/1.png", "a/2.png"]);
        let list = folder.path().join("list.txt");
        let lines = "a\\0.png\r\na\\1.png\r\na/1.png\r\na\\2.png\r\n";
        let wide = "\u{feff}".to_owned() + lines;
        let wide: Vec<u8> = wide.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [format!("\u{feff}{lines}").into_bytes(), wide] {
            fs::write(&list, bytes).unwrap();
            let source = open(&list).unwrap();
            assert_eq!(keys(&source), ["a/0", "a/1", "a/2"]);
            assert_eq!(colours(&source), [0, 1, 2]);
            assert_eq!(source.left_out().repeated_lines, 1);
        }
        fs::write(&list, b"a/0.png\n\xe9.png\n").unwrap();
        let error = open(&list).unwrap_err().to_string();
        assert!(error.contains("line 2: expected text in UTF-8"), "{error}");
    }

    #[test]
    fn several_arguments_and_patterns_are_one_source() {
        let folder = folder(&["b.png", "a.png", "more/a.png", "more/c.png", "x.txt"]);
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let several = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| at(name)).collect();
            Source::open_several(&names, false)
        };
        let source = several(&["a.png", "b.png"]).unwrap();
        assert_eq!((keys(&source), source.shards().len()), (vec!["a", "b"], 1));
        let source = several(&["b.png", "more"]).unwrap();
        assert_eq!(keys(&source), ["b", "a", "c"]);
        let source = several(&["a.png", "more/a.png"]).unwrap();
        assert!(source.key(1).ends_with("more/a"), "{}", source.key(1));
        let source = Source::open(&at("more/*.png")).unwrap();
        assert_eq!(keys(&source), ["a", "c"]);
        let error = Source::open(&at("none/*.png")).unwrap_err().to_string();
        assert!(error.contains("no file fits the pattern"), "{error}");
    }

    #[test]
    fn what_is_missing_or_empty_is_said() {
        let texts = folder(&["a.txt", "sub/b.txt", "c"]);
        let error = open(texts.path()).unwrap_err();
        assert!(matches!(error, SourceError::Empty { .. }), "{error}");
        assert!(error.to_string().contains("2 x .txt"), "{error}");

        let empty = tempfile::tempdir().unwrap();
        let error = open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("it is empty"), "{error}");

        let error = open(&empty.path().join("absent.tar")).unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");

        let error = open(&texts.path().join("a.txt")).unwrap_err();
        assert!(
            matches!(error, SourceError::ListedMissing { .. }),
            "{error}"
        );

        fs::write(empty.path().join("data.csv"), "a,b").unwrap();
        let error = open(&empty.path().join("data.csv"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a file .csv that is no image"), "{error}");

        fs::write(empty.path().join("p.tar.gz"), [0x1f, 0x8b]).unwrap();
        let error = open(&empty.path().join("p.tar.gz"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("hint: unpack it"), "{error}");

        fs::write(empty.path().join("p-0.tar"), "").unwrap();
        let error = open(empty.path()).unwrap_err().to_string();
        assert!(error.contains("p-0.tar"), "{error}");
        for nothing in ["", " , "] {
            assert!(Source::open(nothing).is_err());
        }
    }

    #[test]
    fn a_folder_of_tars_is_its_shards_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for (name, key) in [("b.tar", "two.jpg"), ("a.tar", "one.jpg")] {
            write_tar(&folder.path().join(name), &[(key, vec![1])]);
        }
        let source = open(folder.path()).unwrap();
        assert_eq!(source.keys().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(source.shards().len(), 2);
    }

    #[test]
    fn one_key_for_two_images_names_both() {
        let folder = folder(&["a.png", "a.jpg"]);
        let error = open(folder.path()).unwrap_err().to_string();
        for part in ["the key `a`", "a.png", "a.jpg"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn braces_expand() {
        let expand = |spec| expand_braces(spec).unwrap();
        assert_eq!(
            expand("p-{08..11}.tar"),
            ["p-08.tar", "p-09.tar", "p-10.tar", "p-11.tar"]
        );
        assert_eq!(expand("{9..11}"), ["9", "10", "11"]);
        assert_eq!(expand("{a,b}/{0..1}"), ["a/0", "a/1", "b/0", "b/1"]);
        assert_eq!(expand("plain"), ["plain"]);
        for wrong in [
            "{0..",
            "0..1}",
            "{{0..1}",
            "{2..1}",
            "{a..z}",
            "{0..99999999}",
            "{+1..2}",
        ] {
            assert!(expand_braces(wrong).is_err(), "{wrong}");
        }
        let many = "{0..999}".repeat(3);
        assert!(expand_braces(&many).is_err());
    }

    #[test]
    fn a_folder_is_cut_into_shards_with_names_of_their_own() {
        let files = |range: Range<usize>| range.map(|i| (format!("{i:05}"), PathBuf::from("x")));
        let source = Source::from_files("all", files(0..SMALL_SHARD_SIZE + 3)).unwrap();
        let shards = source.shards();
        assert_eq!(shards[0].name, "all-00000");
        assert_eq!(shards[1].range, SMALL_SHARD_SIZE..SMALL_SHARD_SIZE + 3);
        let many = Source::from_files("all", files(0..SMALL)).unwrap();
        assert_eq!(many.shards()[1].range, SHARD_SIZE..2 * SHARD_SIZE);

        let a = folder(&["same/a.png"]);
        let b = folder(&["same/b.png"]);
        let (a, b) = (a.path().join("same"), b.path().join("same"));
        let source = Source::open(&format!("{},{}", a.display(), b.display())).unwrap();
        let names: Vec<String> = source.shards().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["same-00000", "same.2-00000"]);
    }

    proptest! {
        #[test]
        fn parts_are_a_partition(images in 1_usize..40_000, count in 1_usize..12) {
            let files = (0..images).map(|i| (i.to_string(), PathBuf::from("x")));
            let source = Source::from_files("s", files).unwrap();
            let mut found = Vec::new();
            for index in 0..count {
                let part = source.shard(index, count);
                for shard in part.shards() {
                    let whole = source.shards().into_iter().find(|s| s.name == shard.name).unwrap();
                    let keys = |s: &Source, r: Range<usize>| -> Vec<String> {
                        r.map(|i| s.key(i).to_owned()).collect()
                    };
                    prop_assert_eq!(keys(&part, shard.range), keys(&source, whole.range));
                }
                found.extend(part.keys().map(|k| k.parse::<usize>().unwrap()));
            }
            found.sort_unstable();
            prop_assert_eq!(found, (0..images).collect::<Vec<_>>());
        }

        #[test]
        fn damaged_tars_never_panic(at in 0_usize..2048, value: u8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.tar");
            write_tar(&path, &[("a.png", png(1)), ("b.png", png(2))]);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] = value;
            fs::write(&path, bytes).unwrap();
            if let Ok(source) = open(&path) {
                for i in 0..source.len() {
                    let _ = source.read(i);
                }
            }
        }
    }

    #[test]
    fn five_in_a_hundred_may_fail() {
        let mut unreadable = Unreadable::default();
        assert_eq!(unreadable.check(), Ok(()));
        for i in 0..95 {
            unreadable.ok();
            if i < 5 {
                unreadable.fail(format!("k{i}"), "cut short");
            }
        }
        assert_eq!(unreadable.check(), Ok(()));
        unreadable.fail("k", "no");
        assert!(unreadable.check_early().is_ok());
        let error = unreadable.check().unwrap_err();
        assert_eq!((error.failed, error.seen), (6, 101));
        assert!(error.to_string().contains("`k0`: cut short"), "{error}");
    }
}
