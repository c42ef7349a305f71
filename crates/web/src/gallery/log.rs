//! The file of a gallery that clients change: records are appended and never changed.
//!
//! ```text
//! record  head 16 bytes: "clgr", u64 length of the body, 4 bytes of SHA-256 over the 12 before
//!         body
//!         tail 16 bytes: first bytes of SHA-256 over head and body
//! body    u32 length of the description, description (JSON), numbers and bytes that it counts
//! ```
//!
//! All numbers are little endian. The first record says what the features are of; the others add an
//! image with its feature, or remove one. A record is on the disk before it is acknowledged. A kill
//! leaves at most a part of the last record, which is cut off when the file is opened again;
//! anything else that does not fit is an error, because it is damage.

use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clasp_data::atomic::FolderLock;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::ServeError;

/// Name of the file in the folder.
const FILE: &str = "gallery.clgr";
const MAGIC: &[u8; 4] = b"clgr";
const HEAD: usize = 16;
const TAIL: usize = 16;
/// Longest body of a record.
const LONGEST: u64 = 1 << 30;

/// The description of a record.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase", deny_unknown_fields)]
enum Description {
    /// What the features are of: always the first record.
    Gallery {
        format: u32,
        /// SHA-256 of the searching model.
        model: String,
        channels: usize,
    },
    /// An image with its feature.
    Add {
        key: String,
        channels: usize,
        image: usize,
    },
    /// An image that is no longer part of the gallery.
    Remove { key: String },
}

/// What happened to a gallery.
#[derive(Debug, PartialEq)]
pub enum LogRecord {
    /// An image was added.
    Add {
        /// Its key.
        key: String,
        /// Its feature.
        feature: Vec<f32>,
        /// Where the encoded image lies.
        image: LogRange,
    },
    /// An image was removed.
    Remove {
        /// Its key.
        key: String,
    },
}

/// Bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    offset: u64,
    length: usize,
}

/// An image that is to be added.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its key.
    pub key: String,
    /// Its feature.
    pub feature: Vec<f32>,
    /// The encoded image.
    pub image: Bytes,
}

/// The file of a gallery, which this process alone writes.
#[derive(Debug)]
pub struct GalleryLog {
    path: PathBuf,
    file: fs::File,
    /// Where the next record goes.
    end: u64,
    channels: usize,
    /// Whether a write failed and could not be undone.
    broken: bool,
    _lock: FolderLock,
}

impl GalleryLog {
    /// Opens the file in `folder`, which is created where it is missing, and returns what it holds
    /// and the number of bytes of an unfinished last record, which are cut off. `model` is the
    /// SHA-256 of the model that the features are of.
    ///
    /// # Errors
    /// Another process writes there; the file is damaged or of another model.
    pub fn open(
        folder: &Path,
        model: &str,
        channels: usize,
    ) -> Result<(Self, Vec<LogRecord>, u64), ServeError> {
        fs::create_dir_all(folder)?;
        let lock = FolderLock::take(folder)?;
        let path = folder.join(FILE);
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        let total = file.metadata()?.len();
        let mut scan = LogScan {
            path: &path,
            reader: BufReader::with_capacity(1 << 20, file),
            at: 0,
            total,
        };
        let mut records = Vec::new();
        let mut begun = false;
        while let Some((description, rest, start)) = scan.next()? {
            match (begun, description) {
                (
                    false,
                    Description::Gallery {
                        format: 1,
                        model: of,
                        channels: had,
                    },
                ) => {
                    if of != model || had != channels {
                        let found = format!("features of {had} numbers of model {of}");
                        let expected = format!("features of {channels} numbers of model {model}");
                        let hint = "start with that model, or choose another --store";
                        return Err(scan.wrong(expected, found, hint));
                    }
                    begun = true;
                }
                (
                    true,
                    Description::Add {
                        key,
                        channels: had,
                        image,
                    },
                ) if had == channels => {
                    records.push(scan.added(key, channels, image, &rest, start)?);
                }
                (true, Description::Remove { key }) => records.push(LogRecord::Remove { key }),
                (_, other) => {
                    let expected = "the records of a gallery, format 1".to_owned();
                    let hint = "it is of another version, or no gallery; choose another --store";
                    return Err(scan.wrong(expected, format!("{other:?}"), hint));
                }
            }
        }
        let (end, cut) = (scan.at, total - scan.at);
        let mut log = Self {
            file: scan.reader.into_inner(),
            path: path.clone(),
            end,
            channels,
            broken: false,
            _lock: lock,
        };
        if cut > 0 {
            log.file.set_len(end)?;
        }
        if !begun {
            let description = Description::Gallery {
                format: 1,
                model: model.to_owned(),
                channels,
            };
            log.append(&record(&description, &[])?)?;
            // The file's name, too, is to be on the disk before anything is acknowledged.
            let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok((log, records, cut))
    }

    /// Appends images, and returns where each lies, when they are on the disk.
    ///
    /// # Errors
    /// That of the file system; then none is appended.
    ///
    /// # Panics
    /// When a feature has another length than those of the gallery.
    pub fn add(&mut self, images: &[NewImage]) -> std::io::Result<Vec<LogRange>> {
        let (mut bytes, mut ranges) = (Vec::new(), Vec::with_capacity(images.len()));
        for NewImage {
            key,
            feature,
            image,
        } in images
        {
            assert_eq!(feature.len(), self.channels, "length of a feature");
            let description = Description::Add {
                key: key.clone(),
                channels: self.channels,
                image: image.len(),
            };
            let numbers: Vec<u8> = feature
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            bytes.extend(record(&description, &[&numbers, image])?);
            let before = bytes.len() - TAIL - image.len();
            ranges.push(LogRange {
                offset: self.end + before as u64,
                length: image.len(),
            });
        }
        self.append(&bytes)?;
        Ok(ranges)
    }

    /// Appends that an image is removed.
    ///
    /// # Errors
    /// That of the file system; then it is not.
    pub fn remove(&mut self, key: &str) -> std::io::Result<()> {
        let description = Description::Remove {
            key: key.to_owned(),
        };
        self.append(&record(&description, &[])?)
    }

    /// The bytes of an image.
    ///
    /// # Errors
    /// That of the file system.
    pub fn read(&self, range: LogRange) -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(range.offset))?;
        let mut bytes = vec![0; range.length];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.broken {
            let text = format!(
                "{}: an earlier write failed and left a part of a record; restart the server",
                self.path.display()
            );
            return Err(std::io::Error::other(text));
        }
        let written = (self.file.seek(SeekFrom::Start(self.end)))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.file().sync_data());
        if let Err(error) = written {
            // What is not acknowledged must not come back after a restart.
            self.broken = self.file.set_len(self.end).is_err();
            return Err(error);
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// The bytes of a record.
fn record(description: &Description, parts: &[&[u8]]) -> std::io::Result<Vec<u8>> {
    let description = serde_json::to_vec(description)?;
    let parts_length: usize = parts.iter().map(|part| part.len()).sum();
    let body = 4 + description.len() + parts_length;
    // A longer one would be taken for damage when the gallery is opened.
    if body as u64 > LONGEST {
        let text = format!(
            "a record of {body} bytes: expected at most {LONGEST}; add fewer images at a time"
        );
        return Err(std::io::Error::other(text));
    }
    let mut bytes = Vec::with_capacity(HEAD + body + TAIL);
    bytes.extend(MAGIC);
    bytes.extend((body as u64).to_le_bytes());
    bytes.extend_from_slice(&Sha256::digest(&bytes)[..4]);
    let length = u32::try_from(description.len()).map_err(std::io::Error::other)?;
    bytes.extend(length.to_le_bytes());
    bytes.extend(description);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    let tail = Sha256::digest(&bytes);
    bytes.extend_from_slice(&tail[..TAIL]);
    Ok(bytes)
}

/// Reads the records of a file one after the other.
struct LogScan<'a> {
    path: &'a Path,
    reader: BufReader<fs::File>,
    /// End of the last whole record.
    at: u64,
    total: u64,
}

impl LogScan<'_> {
    fn wrong(&self, expected: String, found: String, hint: &str) -> ServeError {
        ServeError::Store {
            file: format!("{} @ {}", self.path.display(), self.at),
            expected,
            found,
            hint: hint.to_owned(),
        }
    }

    fn damaged(&self, found: &str) -> ServeError {
        let hint = format!(
            "restore the file from a backup, or cut off everything from here on: truncate -s {} {}",
            self.at,
            self.path.display()
        );
        self.wrong("a whole record".to_owned(), found.to_owned(), &hint)
    }

    /// Description of the next record, the rest of its body, and where that begins; none at the
    /// end, or where only a part of a record follows.
    fn next(&mut self) -> Result<Option<(Description, Vec<u8>, u64)>, ServeError> {
        let left = self.total - self.at;
        if left < (HEAD + TAIL) as u64 {
            return Ok(None);
        }
        let mut bytes = vec![0; HEAD];
        self.reader.read_exact(&mut bytes)?;
        if bytes[..12] == [0; 12] {
            // After a crash of the whole system a file may end in zeros.
            return match self.rest_is_zero()? {
                true => Ok(None),
                false => Err(self.damaged("zeros")),
            };
        }
        if &bytes[..4] != MAGIC || bytes[12..] != Sha256::digest(&bytes[..12])[..4] {
            return Err(self.damaged("other bytes"));
        }
        let length = bytes[4..12]
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        if length > LONGEST {
            return Err(self.damaged(&format!("a record of {length} bytes")));
        }
        if length > left - (HEAD + TAIL) as u64 {
            return Ok(None);
        }
        // Not more than the file holds, see above.
        bytes.resize(HEAD + length as usize, 0);
        self.reader.read_exact(&mut bytes[HEAD..])?;
        let mut tail = [0; TAIL];
        self.reader.read_exact(&mut tail)?;
        if tail != Sha256::digest(&bytes)[..TAIL] {
            return Err(self.damaged("a wrong checksum"));
        }
        let start = self.at;
        let body = bytes.split_off(HEAD);
        let described = body.split_first_chunk::<4>().and_then(|(length, rest)| {
            let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            let description: Description = serde_json::from_slice(text).ok()?;
            Some((description, rest.to_vec()))
        });
        let Some((description, rest)) = described else {
            return Err(self.damaged("a record without a description of this version"));
        };
        self.at += (HEAD + TAIL) as u64 + length;
        let begin = start + HEAD as u64 + length - rest.len() as u64;
        Ok(Some((description, rest, begin)))
    }

    fn rest_is_zero(&mut self) -> Result<bool, ServeError> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.reader.read(&mut buffer)? {
                0 => return Ok(true),
                count if buffer[..count].iter().any(|byte| *byte != 0) => return Ok(false),
                _ => {}
            }
        }
    }

    fn added(
        &self,
        key: String,
        channels: usize,
        image: usize,
        rest: &[u8],
        start: u64,
    ) -> Result<LogRecord, ServeError> {
        let split = channels
            .checked_mul(4)
            .and_then(|bytes| rest.split_at_checked(bytes));
        match split {
            Some((numbers, encoded)) if encoded.len() == image => {
                let (values, _) = numbers.as_chunks::<4>();
                Ok(LogRecord::Add {
                    key,
                    feature: values
                        .iter()
                        .map(|bytes| f32::from_le_bytes(*bytes))
                        .collect(),
                    image: LogRange {
                        offset: start + numbers.len() as u64,
                        length: image,
                    },
                })
            }
            _ => Err(self.damaged("a record of another length than its description")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(key: &str, value: f32) -> NewImage {
        NewImage {
            key: key.to_owned(),
            feature: vec![value, -value],
            image: Bytes::from(vec![value as u8; 5]),
        }
    }

    fn keys(records: &[LogRecord]) -> Vec<String> {
        let key = |record: &LogRecord| match record {
            LogRecord::Add { key, .. } => format!("+{key}"),
            LogRecord::Remove { key } => format!("-{key}"),
        };
        records.iter().map(key).collect()
    }

    fn written(folder: &Path) -> Vec<u8> {
        let (mut log, records, cut) = GalleryLog::open(folder, "m", 2).unwrap();
        assert!(records.is_empty() && cut == 0);
        let ranges = log.add(&[image("a", 1.0), image("b", 2.0)]).unwrap();
        assert_eq!(log.read(ranges[1]).unwrap(), [2; 5]);
        log.remove("a").unwrap();
        drop(log);
        fs::read(folder.join(FILE)).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let (log, records, _) = GalleryLog::open(folder.path(), "m", 2).unwrap();
        assert_eq!(keys(&records), ["+a", "+b", "-a"]);
        let LogRecord::Add { feature, image, .. } = &records[1] else {
            panic!("{records:?}")
        };
        assert_eq!(feature, &[2.0, -2.0]);
        assert_eq!(log.read(*image).unwrap(), [2; 5]);
        let error = GalleryLog::open(folder.path(), "m", 2).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(log);
        let error = GalleryLog::open(folder.path(), "other", 2).unwrap_err();
        assert!(error.to_string().contains("of model m"), "{error}");
    }

    #[test]
    fn a_cut_at_any_byte_loses_the_unfinished_record_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let whole = written(folder.path());
        let (mut before, mut seen) = (0, Vec::new());
        for end in 0..=whole.len() {
            fs::write(folder.path().join(FILE), &whole[..end]).unwrap();
            let (mut log, records, cut) = GalleryLog::open(folder.path(), "m", 2).unwrap();
            assert!(records.len() >= before && cut < whole.len() as u64);
            before = records.len();
            seen.push(records.len());
            // And it goes on from there.
            log.add(&[image("c", 3.0)]).unwrap();
            drop(log);
            let (_, again, cut) = GalleryLog::open(folder.path(), "m", 2).unwrap();
            assert_eq!((again.len(), cut), (before + 1, 0));
        }
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3]);
    }

    #[test]
    fn damage_is_an_error_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let whole = written(folder.path());
        let path = folder.path().join(FILE);
        // The last record may be a part of one: what makes its length unreadable is damage, too.
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(&path, &bytes).unwrap();
            let error = GalleryLog::open(folder.path(), "m", 2).unwrap_err();
            assert!(error.to_string().contains("hint"), "{at}: {error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // Zeros at the end are those of a crashed system.
        fs::write(&path, [&whole[..], &[0; 100]].concat()).unwrap();
        let (_, records, cut) = GalleryLog::open(folder.path(), "m", 2).unwrap();
        assert_eq!((records.len(), cut), (3, 100));
    }
}
