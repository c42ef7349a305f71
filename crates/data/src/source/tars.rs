//! The index of a tar: where its images lie, by one pass over the headers.
//!
//! Read here rather than by a library, because names and sizes come from a file that may be
//! damaged or hostile: what a header says is compared with the length of the file before anything
//! is allocated, and a name has at most [`MOST_NAME`] bytes. Understood are the old, POSIX (pax)
//! and GNU formats, hard and soft links to members of the same tar, and several tars in one file.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use fs_err as fs;
use tar::{EntryType, Header};

use super::error::SourceError;
use super::kinds::{EXTENSIONS, extension, is_hidden, is_sidecar_field};
use super::skipped::{SkippedFiles, describe_others};

/// Bytes of a header, and what contents are padded to.
const BLOCK: u64 = 512;

/// Longest name, or set of extended attributes, of a member that is read.
const MOST_NAME: u64 = 1 << 20;

/// An image in a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarMember {
    /// Path in the tar.
    pub path: String,
    /// First byte of the content in the file.
    pub offset: u64,
    /// Bytes of the content.
    pub size: u64,
}

/// A link in a tar, to be followed when all members are known.
struct TarLink {
    path: String,
    to: String,
    /// Members before it, to keep the order of the tar.
    place: usize,
}

/// The images of a tar in the order of the file, and the error that ended it, if any. Skipped
/// members are counted.
pub(super) fn index(
    path: &Path,
    skipped: &mut SkippedFiles,
) -> (Vec<TarMember>, Result<(), SourceError>) {
    let mut reader = TarIndexer {
        archive: path.display().to_string(),
        members: Vec::new(),
        links: Vec::new(),
        files: HashMap::new(),
        others: BTreeMap::new(),
    };
    let mut ended = reader.read(path, skipped);
    let mut members = reader.follow(skipped);
    skip_fields(&mut members, skipped);
    if ended.is_ok() && members.is_empty() {
        ended = Err(SourceError::Empty {
            place: reader.archive,
            found: describe_others(&reader.others),
        });
    }
    (members, ended)
}

struct TarIndexer {
    archive: String,
    members: Vec<TarMember>,
    links: Vec<TarLink>,
    /// Content of every file by its path, for links.
    files: HashMap<String, (u64, u64)>,
    others: BTreeMap<String, usize>,
}

/// What extended headers hold for the member that follows them.
#[derive(Default)]
struct ExtendedHeader {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

impl TarIndexer {
    fn read(&mut self, path: &Path, skipped: &mut SkippedFiles) -> Result<(), SourceError> {
        let mut file = std::io::BufReader::new(fs::File::open(path)?);
        let length = file.get_ref().metadata()?.len();
        let (mut at, mut ahead, mut ended) = (0_u64, ExtendedHeader::default(), false);
        let archive = self.archive.clone();
        let after_end = |at: u64, skipped: &mut SkippedFiles| {
            let rest = length - at;
            skipped.note(format!(
                "{archive}: {rest} bytes after its end are not a tar"
            ));
        };
        loop {
            if length < at + BLOCK {
                // One empty block suffices as end marker: some writers omit the second.
                if ended && length == at {
                    return Ok(());
                }
                if ended {
                    after_end(at, skipped);
                    return Ok(());
                }
                let what = match length == at && ahead.path.is_none() {
                    true => "the end marker",
                    false => "the next member's header",
                };
                return Err(self.truncated(what.to_owned(), at, BLOCK, length));
            }
            let mut block = [0; BLOCK as usize];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut block)?;
            if block.iter().all(|&byte| byte == 0) {
                // Another tar may follow, as after `cat a.tar b.tar`.
                ended = true;
                at += BLOCK;
                continue;
            }
            let header = Header::from_byte_slice(&block);
            if let Err(reason) = check(&block, header) {
                if ended {
                    after_end(at, skipped);
                    return Ok(());
                }
                return Err(self.damaged(at, reason));
            }
            ended = false;
            let kind = header.entry_type();
            let extended = kind.is_pax_global_extensions()
                || kind.is_pax_local_extensions()
                || kind.is_gnu_longname()
                || kind.is_gnu_longlink();
            let size = match ahead.size.filter(|_| !extended) {
                Some(size) => size,
                None => header
                    .entry_size()
                    .map_err(|error| self.damaged(at, error.to_string()))?,
            };
            // Some old writers give the size of the file that a link leads to.
            let stored = match kind {
                EntryType::Link | EntryType::Symlink | EntryType::Directory => 0,
                _ => size,
            };
            let mut offset = at + BLOCK;
            let name = match (&ahead.path, extended) {
                (Some(name), false) => name.clone(),
                _ => String::from_utf8_lossy(&header.path_bytes()).into_owned(),
            };
            if offset.checked_add(stored).is_none_or(|end| end > length) {
                return Err(self.truncated(format!("`{name}`"), offset, stored, length));
            }
            at = (offset + stored).next_multiple_of(BLOCK);
            if extended {
                if size > MOST_NAME {
                    return Err(self.damaged(
                        offset - BLOCK,
                        format!("a name of {size} bytes, more than the {MOST_NAME} that are read,"),
                    ));
                }
                let mut bytes = vec![0; size as usize];
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut bytes)?;
                self.read_extended(kind, &bytes, &mut ahead, offset)?;
                continue;
            }
            if kind == EntryType::GNUSparse {
                // Up to any number of further blocks describe the holes.
                let mut more = (header.as_gnu()).is_some_and(|gnu| gnu.is_extended());
                while more && length >= offset + BLOCK {
                    file.seek(SeekFrom::Start(offset))?;
                    let mut holes = [0; BLOCK as usize];
                    file.read_exact(&mut holes)?;
                    more = holes[504] == 1;
                    offset += BLOCK;
                }
                at = (offset + stored).next_multiple_of(BLOCK);
            }
            let link = match (&ahead.link, header.link_name_bytes()) {
                (Some(link), _) => link.clone(),
                (None, Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
                (None, None) => String::new(),
            };
            let sparse = ahead.sparse || kind == EntryType::GNUSparse;
            ahead = ExtendedHeader::default();
            self.member(kind, name, link, [offset, size], sparse, skipped);
        }
    }

    /// Takes a name, link or size for the member that comes next.
    fn read_extended(
        &self,
        kind: EntryType,
        bytes: &[u8],
        ahead: &mut ExtendedHeader,
        offset: u64,
    ) -> Result<(), SourceError> {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&byte| byte == 0);
            String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
        };
        if kind.is_gnu_longname() {
            ahead.path = Some(text(bytes));
        } else if kind.is_gnu_longlink() {
            ahead.link = Some(text(bytes));
        } else if kind.is_pax_local_extensions() {
            for record in tar::PaxExtensions::new(bytes) {
                let record = record.map_err(|error| self.damaged(offset, error.to_string()))?;
                let value = record.value_bytes();
                match record.key_bytes() {
                    b"path" | b"GNU.sparse.name" => ahead.path = Some(text(value)),
                    b"linkpath" => ahead.link = Some(text(value)),
                    b"size" => {
                        let size = text(value).parse();
                        let size = size.map_err(|_| {
                            self.damaged(offset, "an extended size that is no number".to_owned())
                        })?;
                        ahead.size = Some(size);
                    }
                    key if key.starts_with(b"GNU.sparse.") => ahead.sparse = true,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        kind: EntryType,
        name: String,
        link: String,
        [offset, size]: [u64; 2],
        sparse: bool,
        skipped: &mut SkippedFiles,
    ) {
        let path = Path::new(&name);
        let extension = extension(path);
        let is_image = EXTENSIONS.contains(&extension.as_str());
        if kind == EntryType::Directory {
            return;
        }
        if is_hidden(path) {
            // `._x.jpg` is not an image but what macOS keeps beside one.
            if is_image && !name_of(path).starts_with("._") {
                skipped.hidden += 1;
            }
            return;
        }
        let is_file = kind.is_file() || kind == EntryType::Continuous;
        match kind {
            _ if is_file && !sparse => {
                self.files.insert(plain(&name), (offset, size));
                if is_image {
                    self.members.push(TarMember {
                        path: name,
                        offset,
                        size,
                    });
                } else {
                    skipped.other(&extension);
                    *self.others.entry(extension).or_default() += 1;
                }
            }
            EntryType::Link | EntryType::Symlink if is_image => {
                let to = match (kind, path.parent()) {
                    (EntryType::Symlink, Some(folder)) => {
                        plain(&folder.join(&link).to_string_lossy())
                    }
                    _ => plain(&link),
                };
                self.links.push(TarLink {
                    path: name,
                    to,
                    place: self.members.len(),
                });
            }
            _ if is_image => skipped.special += 1,
            _ => {}
        }
    }

    /// The images, with those that links lead to in their places.
    fn follow(&mut self, skipped: &mut SkippedFiles) -> Vec<TarMember> {
        // A link may lead to a link.
        let links: HashMap<String, String> = (self.links.iter())
            .map(|link| (plain(&link.path), link.to.clone()))
            .collect();
        let target = |mut to: String| {
            for _ in 0..=links.len().min(32) {
                if let Some(&content) = self.files.get(&to) {
                    return Some(content);
                }
                to = links.get(&to)?.clone();
            }
            None
        };
        let mut members = Vec::with_capacity(self.members.len() + self.links.len());
        let mut own = std::mem::take(&mut self.members).into_iter();
        let mut taken = 0;
        for link in &self.links {
            members.extend(own.by_ref().take(link.place - taken));
            taken = link.place;
            match target(link.to.clone()) {
                Some((offset, size)) => members.push(TarMember {
                    path: link.path.clone(),
                    offset,
                    size,
                }),
                None => skipped.broken_links += 1,
            }
        }
        members.extend(own);
        members
    }

    fn truncated(&self, what: String, offset: u64, need: u64, length: u64) -> SourceError {
        SourceError::Truncated {
            archive: self.archive.clone(),
            what,
            offset,
            need,
            have: length.saturating_sub(offset),
            complete: self.members.len(),
        }
    }

    fn damaged(&self, offset: u64, reason: String) -> SourceError {
        SourceError::Damaged {
            archive: self.archive.clone(),
            offset,
            reason,
            complete: self.members.len(),
        }
    }
}

/// Whether the block is a header.
fn check(block: &[u8; BLOCK as usize], header: &Header) -> Result<(), String> {
    let blank = |at: usize, byte: u8| match at {
        148..156 => u32::from(b' '),
        _ => u32::from(byte),
    };
    let sum: u32 = block.iter().enumerate().map(|(at, &b)| blank(at, b)).sum();
    let said = header.cksum().map_err(|error| error.to_string())?;
    match sum == said {
        true => Ok(()),
        false => Err("no header, or one that was changed (its checksum does not fit),".to_owned()),
    }
}

/// In a tar of samples (WebDataset) `000.png`, `000.seg.png` and `000.json` are fields of one
/// sample: only the first is its image.
fn skip_fields(members: &mut Vec<TarMember>, skipped: &mut SkippedFiles) {
    let samples: std::collections::HashSet<String> = (members.iter())
        .filter_map(|member| Some(member.path.rsplit_once('.')?.0.to_owned()))
        .collect();
    members.retain(|member| {
        let is_field = is_sidecar_field(&member.path, |base| samples.contains(base), true);
        skipped.fields += usize::from(is_field);
        !is_field
    });
}

/// A path without `.`, `..` and doubled slashes, to compare.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
