//! Work on a long list of images that can be resumed after Ctrl-C and kills.
//!
//! Finished results are in `OUT.partial` beside the final file: JSON lines, the first with the
//! settings of the command, then one for each image of the source in order, `{"image": KEY, …}`
//! with its result or the reason why it is `unreadable`. The same command resumes after the last
//! whole line; a command with other settings is an error. When all images are finished OUT is
//! written and the partial file removed.
//!
//! A damaged image is not read again. One that could not be read (a network share that was away,
//! too many open files) has `"again": true` and is retried, at the end and by every later process;
//! the result of a retry is a line at the end of the file, after a line `{"again": ITEM}` with the
//! index of the image in the source.

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clasp_data::source::{ReadFailure, Source, UnreadableImages};
use clasp_data::text::printable;
use fs_err as fs;
use serde_json::{Map, Value, json};

use super::beside;

/// The fields of an image's line, or the reason why the image cannot be used.
pub type ImageResult = Result<Map<String, Value>, ReadFailure>;

/// The file of finished results.
pub struct Partial {
    path: PathBuf,
    file: fs::File,
    /// Finished images.
    pub done: usize,
    /// The unreadable ones among them, in the order of the source.
    failed: BTreeMap<usize, Failed>,
    /// Lines at the end that replace earlier ones.
    again: usize,
}

/// An image that cannot be used.
struct Failed {
    key: String,
    failure: ReadFailure,
}

impl Partial {
    /// Begins the work for `out`, or resumes that of an earlier process with the same settings
    /// `asked`.
    ///
    /// # Errors
    ///
    /// The file is of other work, another process uses it, or it cannot be read or written.
    pub fn open(out: &Path, asked: &Value, source: &Source) -> Result<Self> {
        let path = beside(out, ".partial")?;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        // Not every file system has locks; without them it is the user who runs one process at a
        // time.
        if matches!(file.file().try_lock(), Err(TryLockError::WouldBlock)) {
            bail!("{}: another process is writing it", path.display());
        }
        let mut partial = Self {
            path,
            file,
            done: 0,
            failed: BTreeMap::new(),
            again: 0,
        };
        partial.resume(asked, source)?;
        Ok(partial)
    }

    /// Reads the whole lines and places the end of the file behind them.
    fn resume(&mut self, asked: &Value, source: &Source) -> Result<()> {
        let mut whole = 0;
        let length = self.file.metadata()?.len();
        let mut lines = BufReader::new(self.file.try_clone()?);
        if let Some(first) = next(&mut lines, &self.path)? {
            if first.value != *asked {
                // Work that ended before its first result, as with a wrong folder, is not to be kept.
                if first.value.get("clasp").is_some() && next(&mut lines, &self.path)?.is_none() {
                    return self.begin(asked);
                }
                let (what, was, is) = difference(&first.value, asked);
                bail!(
                    "{}: holds other work, which was stopped: {what} was {was}, now it is {is}\n\
                     hint: repeat the earlier command to resume it, remove the file, or choose another --out",
                    self.path.display()
                );
            }
            whole += first.text.len();
            while let Some(StoredLine { text, value }) = next(&mut lines, &self.path)? {
                let (item, text, value) = match value["again"].as_u64() {
                    // A kill between the two lines: the image is still to be tried.
                    Some(item) => match next(&mut lines, &self.path)? {
                        Some(line) => (item as usize, [text, line.text].concat(), line.value),
                        None => break,
                    },
                    None => (self.done, text, value),
                };
                let key = match item < source.len().min(self.done + 1) {
                    true => source.key(item),
                    false => "no further image",
                };
                if value["image"] != key {
                    bail!(
                        "{}: the images have changed: number {item} was {}, now it is `{key}`\n\
                         hint: remove it to start again",
                        self.path.display(),
                        value["image"]
                    );
                }
                let outcome = value["unreadable"].as_str().map(|reason| ReadFailure {
                    reason: reason.to_owned(),
                    permanent: value["again"] != true,
                });
                self.count(item, key, outcome);
                whole += text.len();
            }
        } else if length > 0 {
            bail!(
                "{}: expected what an earlier process did, found something else\n\
                 hint: remove it, or choose another --out",
                self.path.display()
            );
        }
        if whole == 0 {
            return self.begin(asked);
        }
        self.file.set_len(whole as u64)?;
        self.file.seek(SeekFrom::Start(whole as u64))?;
        Ok(())
    }

    /// Begins the file.
    fn begin(&mut self, asked: &Value) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        Ok(writeln!(self.file, "{asked}")?)
    }

    /// Counts the result of an image, the next one or a retried one.
    fn count(&mut self, item: usize, key: &str, failure: Option<ReadFailure>) {
        self.again += usize::from(item < self.done);
        self.done += usize::from(item == self.done);
        match failure {
            Some(failure) => {
                let key = key.to_owned();
                self.failed.insert(item, Failed { key, failure });
            }
            None => {
                self.failed.remove(&item);
            }
        }
    }

    /// Writes the results of the next images.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn put(&mut self, source: &Source, outcomes: Vec<ImageResult>) -> Result<()> {
        let items = self.done..self.done + outcomes.len();
        self.write(source, items.zip(outcomes))
    }

    /// Writes the results of retried images.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn put_again(
        &mut self,
        source: &Source,
        outcomes: Vec<(usize, ImageResult)>,
    ) -> Result<()> {
        self.write(source, outcomes.into_iter())
    }

    fn write(
        &mut self,
        source: &Source,
        outcomes: impl Iterator<Item = (usize, ImageResult)>,
    ) -> Result<()> {
        let mut lines = Vec::new();
        for (item, outcome) in outcomes {
            if item < self.done {
                serde_json::to_writer(&mut lines, &json!({"again": item}))?;
                lines.push(b'\n');
            }
            let key = source.key(item);
            let mut line = Map::from_iter([("image".to_owned(), json!(key))]);
            let failure = match outcome {
                Ok(fields) => {
                    line.extend(fields);
                    None
                }
                Err(failure) => {
                    line.insert("unreadable".to_owned(), json!(failure.reason));
                    if !failure.permanent {
                        line.insert("again".to_owned(), json!(true));
                    }
                    Some(failure)
                }
            };
            self.count(item, key, failure);
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        // One write: a kill leaves at most the last line short.
        Ok(self.file.write_all(&lines)?)
    }

    /// Images to retry, in order.
    pub fn to_try_again(&self) -> Vec<usize> {
        let failed = self.failed.iter();
        let again = failed.filter(|(_, failed)| !failed.failure.permanent);
        again.map(|(item, _)| *item).collect()
    }

    /// The finished images, and the unreadable ones among them.
    pub fn unreadable(&self) -> UnreadableImages {
        let failed = self.failed.values();
        let failed = failed.map(|failed| (failed.key.clone(), failed.failure.reason.clone()));
        UnreadableImages {
            seen: self.done as u64,
            failed: failed.collect(),
        }
    }

    /// Processes all remaining images, `chunk` at a time, after a retry of those that could not be
    /// read before; those that cannot be read now are retried once at the end. `some` returns the
    /// results of a range of images, or none when a signal stopped it.
    ///
    /// False where a signal stopped it.
    ///
    /// # Errors
    ///
    /// Those of `some`, of the file, and more than 5 % of the images unreadable, unless
    /// `keep_going`.
    pub fn work(
        &mut self,
        source: &Source,
        chunk: usize,
        keep_going: bool,
        mut some: impl FnMut(Range<usize>) -> Result<Option<Vec<ImageResult>>>,
    ) -> Result<bool> {
        let before = self.done;
        if !self.try_again(source, chunk, &mut some)? {
            return Ok(false);
        }
        while self.done < source.len() {
            let items = self.done..source.len().min(self.done + chunk);
            match some(items)? {
                None => return Ok(false),
                Some(outcomes) => self.put(source, outcomes)?,
            }
            if !keep_going {
                self.unreadable().check_early()?;
            }
        }
        match before < self.done {
            true => self.try_again(source, chunk, &mut some),
            false => Ok(true),
        }
    }

    fn try_again(
        &mut self,
        source: &Source,
        chunk: usize,
        some: &mut impl FnMut(Range<usize>) -> Result<Option<Vec<ImageResult>>>,
    ) -> Result<bool> {
        let items = self.to_try_again();
        // Neighbors are done together.
        for run in items.chunk_by(|a, b| a + 1 == *b) {
            for part in run.chunks(chunk) {
                let Some(outcomes) = some(part[0]..part[0] + part.len())? else {
                    return Ok(false);
                };
                self.put_again(source, part.iter().copied().zip(outcomes).collect())?;
            }
        }
        Ok(true)
    }

    /// Passes the line of every readable image to `take`, as text and as JSON, in order.
    ///
    /// # Errors
    ///
    /// Those of `take`, and a file that cannot be read.
    pub fn each(&mut self, mut take: impl FnMut(&[u8], &Value) -> Result<()>) -> Result<()> {
        let mut later = match self.again {
            0 => BTreeMap::new(),
            _ => self.later_lines()?,
        };
        self.file.seek(SeekFrom::Start(0))?;
        let mut lines = BufReader::new(&mut self.file);
        next(&mut lines, &self.path)?;
        let mut count = 0;
        while let Some(line) = next(&mut lines, &self.path)? {
            if line.value["again"].is_u64() {
                next(&mut lines, &self.path)?;
                continue;
            }
            let StoredLine { text, value } = later.remove(&count).unwrap_or(line);
            if value.get("unreadable").is_none() {
                take(&text, &value)?;
            }
            count += 1;
        }
        if count != self.done {
            bail!(
                "{}: expected {} whole lines, found {count}\nhint: remove it to start again",
                self.path.display(),
                self.done
            );
        }
        Ok(())
    }

    /// The last replacing line of each retried image.
    fn later_lines(&mut self) -> Result<BTreeMap<usize, StoredLine>> {
        let mut later = BTreeMap::new();
        self.file.seek(SeekFrom::Start(0))?;
        let mut lines = BufReader::new(&mut self.file);
        next(&mut lines, &self.path)?;
        while let Some(line) = next(&mut lines, &self.path)? {
            if let Some(item) = line.value["again"].as_u64()
                && let Some(line) = next(&mut lines, &self.path)?
            {
                later.insert(item as usize, line);
            }
        }
        Ok(later)
    }

    /// Removes the file, after the results were written to their own.
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        drop(self.file);
        Ok(fs::remove_file(&self.path)?)
    }

    /// The message after a stop.
    pub fn stopped(&self, all: usize) -> String {
        format!(
            "stopped after {} of {all} images, saved in {}; run the same command to resume",
            self.done,
            self.path.display()
        )
    }
}

/// A line of the file.
struct StoredLine {
    /// Its bytes, with the line break.
    text: Vec<u8>,
    value: Value,
}

/// The next line; none behind the last whole one, as a kill may have left the last one short.
///
/// # Errors
///
/// A whole line is no JSON: it was damaged later, and what follows is not to be lost.
fn next(lines: &mut impl BufRead, path: &Path) -> Result<Option<StoredLine>> {
    let mut text = Vec::new();
    lines
        .read_until(b'\n', &mut text)
        .context("reading finished results")?;
    if text.last() != Some(&b'\n') {
        return Ok(None);
    }
    let value = serde_json::from_slice(&text).with_context(|| {
        let start: String = String::from_utf8_lossy(&text).chars().take(60).collect();
        format!(
            "{}: expected lines of JSON, found `{}`\n\
             hint: remove the file to start again, or that line and all after it to keep those before",
            path.display(),
            printable(start.trim_end())
        )
    })?;
    Ok(Some(StoredLine { text, value }))
}

/// The first field in which two objects differ, with both values.
fn difference(was: &Value, is: &Value) -> (String, Value, Value) {
    let fields = is.as_object().into_iter().flat_map(Map::keys);
    let other = { fields }.find(|field| was.get(field.as_str()) != is.get(field.as_str()));
    let field = other.map_or("something", String::as_str);
    (field.to_owned(), was[field].clone(), is[field].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: &Path, names: &[&str]) -> Source {
        let files = names
            .iter()
            .map(|name| ((*name).to_owned(), folder.join(name)));
        Source::from_files("people", files).unwrap()
    }

    fn result(value: u64) -> ImageResult {
        Ok(Map::from_iter([("prediction".to_owned(), json!(value))]))
    }

    fn broken() -> ReadFailure {
        ReadFailure {
            reason: "broken".to_owned(),
            permanent: true,
        }
    }

    fn away() -> ReadFailure {
        ReadFailure {
            reason: "no such file".to_owned(),
            permanent: false,
        }
    }

    fn values(partial: &mut Partial) -> Vec<u64> {
        let mut values = Vec::new();
        let take = |text: &[u8], line: &Value| {
            assert_eq!(serde_json::from_slice::<Value>(text).unwrap(), *line);
            values.push(line["prediction"].as_u64().unwrap());
            Ok(())
        };
        partial.each(take).unwrap();
        values
    }

    #[test]
    fn work_resumes_after_its_last_complete_line() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), &["a", "b", "c", "d"]);
        let (out, asked) = (folder.path().join("out.jsonl"), json!({"task": "reid"}));
        let path = folder.path().join("out.jsonl.partial");
        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        let first = vec![result(7), Err(broken()), result(8)];
        partial.put(&source, first).unwrap();
        assert!(partial.stopped(4).contains("3 of 4"));
        drop(partial);
        // A kill in the middle of the third line.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();

        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        assert_eq!(partial.done, 2);
        assert_eq!(
            (partial.unreadable().seen, partial.unreadable().failed.len()),
            (2, 1)
        );
        assert!(partial.to_try_again().is_empty());
        partial.put(&source, vec![result(8), result(9)]).unwrap();
        assert_eq!(values(&mut partial), [7, 8, 9]);
        partial.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_could_not_be_read_is_tried_again_and_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), &["a", "b", "c", "d", "e"]);
        let (out, asked) = (folder.path().join("out.jsonl"), json!({"task": "reid"}));
        let path = folder.path().join("out.jsonl.partial");
        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        let first = vec![Err(away()), result(1), Err(broken()), Err(away())];
        partial.put(&source, first).unwrap();
        assert_eq!(partial.to_try_again(), [0, 3]);
        partial.put_again(&source, vec![(0, Err(away()))]).unwrap();
        drop(partial);

        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        assert_eq!((partial.done, partial.to_try_again()), (4, vec![0, 3]));
        partial
            .put_again(&source, vec![(0, result(10)), (3, result(13))])
            .unwrap();
        let whole = fs::read(&path).unwrap();
        // A kill in the middle of the last line, and one right before it.
        let cut = whole.len() - b"{\"image\":\"d\",\"prediction\":13}\n".len();
        for end in [whole.len() - 3, cut] {
            drop(partial);
            fs::write(&path, &whole[..end]).unwrap();
            partial = Partial::open(&out, &asked, &source).unwrap();
            assert_eq!((partial.done, partial.to_try_again()), (4, vec![3]));
        }
        partial.put(&source, vec![result(4)]).unwrap();
        partial.put_again(&source, vec![(3, result(3))]).unwrap();
        drop(partial);
        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        assert_eq!(values(&mut partial), [10, 1, 3, 4]);
        let unreadable = partial.unreadable();
        assert_eq!(unreadable.seen, 5);
        assert_eq!(unreadable.failed, [("c".to_owned(), "broken".to_owned())]);
    }

    #[test]
    fn other_work_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let images = source(folder.path(), &["a", "b"]);
        let (out, asked) = (folder.path().join("out"), json!({"task": "reid", "n": 2}));
        let mut partial = Partial::open(&out, &asked, &images).unwrap();
        partial.put(&images, vec![result(7)]).unwrap();
        let busy = Partial::open(&out, &asked, &images).err().unwrap();
        assert!(busy.to_string().contains("another process"), "{busy}");
        drop(partial);

        let refused = |asked: &Value, images: &Source, words: &str| {
            let error = Partial::open(&out, asked, images).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        };
        let other = json!({"task": "pose", "n": 2});
        refused(&other, &images, "task was \"reid\", now it is \"pose\"");
        let changed = source(folder.path(), &["x", "b"]);
        refused(&asked, &changed, "now it is `x`");
        let mut partial = Partial::open(&out, &asked, &images).unwrap();
        assert_eq!((partial.done, values(&mut partial)), (1, vec![7]));
        drop(partial);
        let path = folder.path().join("out.partial");
        for (notes, said) in [
            ("notes of the user", "found something else"),
            ("notes\n", "found `notes`"),
        ] {
            fs::write(&path, notes).unwrap();
            refused(&asked, &images, said);
            assert_eq!(fs::read_to_string(&path).unwrap(), notes);
        }
    }

    /// Once it was cut with all that followed.
    #[test]
    fn a_damaged_line_is_an_error_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let images = source(folder.path(), &["a", "b", "c"]);
        let (out, asked) = (folder.path().join("out"), json!({"clasp": "1"}));
        let mut partial = Partial::open(&out, &asked, &images).unwrap();
        partial.put(&images, vec![result(7), result(8)]).unwrap();
        drop(partial);
        let path = folder.path().join("out.partial");
        let damaged = fs::read_to_string(&path)
            .unwrap()
            .replace("\"a\",", "\"a\"");
        fs::write(&path, &damaged).unwrap();
        let error = Partial::open(&out, &asked, &images).err().unwrap();
        assert!(
            error.to_string().contains("found `{\"image\":\"a\""),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }

    /// A wrong setting that stopped the work before its first result once kept its place for good.
    #[test]
    fn work_without_a_result_makes_room_for_other_work() {
        let folder = tempfile::tempdir().unwrap();
        let images = source(folder.path(), &["a", "b"]);
        let out = folder.path().join("out");
        let asked = |draw: &str| json!({"clasp": "1", "draw": draw});
        drop(Partial::open(&out, &asked("a file"), &images).unwrap());
        let mut partial = Partial::open(&out, &asked("pictures"), &images).unwrap();
        partial.put(&images, vec![result(7)]).unwrap();
        drop(partial);
        assert!(Partial::open(&out, &asked("other"), &images).is_err());
        assert_eq!(
            Partial::open(&out, &asked("pictures"), &images)
                .unwrap()
                .done,
            1
        );
    }
}
