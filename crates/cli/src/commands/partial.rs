//! Work on a long list of images that outlives Ctrl-C and kills.
//!
//! What is done lies in `OUT.partial` beside the file that it will become: JSON lines, the first with what was asked for,
//! then one an image of the source in its order, `{"image": KEY, …}` with its result or with why it is `unreadable`. Asked
//! for the same again, the work goes on after the last whole line; asked for something else, it says so and touches
//! nothing. When all images are done the lines become OUT, whole, and the partial file goes.

use std::fs::TryLockError;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clasp_data::source::{Source, Unreadable};
use fs_err as fs;
use serde_json::{Map, Value, json};

use super::beside;

/// An image's result, fields of its line; or why it cannot be read.
pub type Outcome = Result<Map<String, Value>, String>;

/// The file of what is done.
pub struct Partial {
    path: PathBuf,
    file: fs::File,
    /// Images that are done.
    pub done: usize,
    /// Those among them that cannot be read.
    pub unreadable: Unreadable,
}

impl Partial {
    /// Begins the work for `out`, or goes on with what an earlier process did for the same `asked`.
    ///
    /// # Errors
    ///
    /// The file is of other work, another process is at it, or it cannot be read or written.
    pub fn open(out: &Path, asked: &Value, source: &Source) -> Result<Self> {
        let path = beside(out, ".partial")?;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        // Not every file system has locks; without them it is the user who runs one process at a time.
        if matches!(file.file().try_lock(), Err(TryLockError::WouldBlock)) {
            bail!("{}: another process is writing it", path.display());
        }
        let mut partial = Self {
            path,
            file,
            done: 0,
            unreadable: Unreadable::default(),
        };
        partial.go_on(asked, source)?;
        Ok(partial)
    }

    /// Reads the whole lines and places the end of the file behind them.
    fn go_on(&mut self, asked: &Value, source: &Source) -> Result<()> {
        let mut whole = 0;
        let length = self.file.metadata()?.len();
        let mut lines = BufReader::new(&mut self.file);
        if let Some(first) = next(&mut lines)? {
            if first.value != *asked {
                let (what, was, is) = difference(&first.value, asked);
                bail!(
                    "{}: holds other work, which was stopped: {what} was {was}, now it is {is}\n  \
                     hint: ask for the same to go on with it, remove it, or choose another --out",
                    self.path.display()
                );
            }
            whole += first.text.len();
            while self.done < source.len()
                && let Some(Line { text, value }) = next(&mut lines)?
            {
                let key = source.key(self.done);
                if value["image"] != key {
                    bail!(
                        "{}: the images have changed: number {} was {}, now it is `{key}`\n  \
                         hint: remove it to begin again",
                        self.path.display(),
                        self.done,
                        value["image"]
                    );
                }
                match value["unreadable"].as_str() {
                    Some(reason) => self.unreadable.fail(key, reason),
                    None => self.unreadable.ok(),
                }
                self.done += 1;
                whole += text.len();
            }
        } else if length > 0 {
            bail!(
                "{}: expected what an earlier process did, found something else\n  \
                 hint: remove it, or choose another --out",
                self.path.display()
            );
        }
        self.file.set_len(whole as u64)?;
        self.file.seek(SeekFrom::Start(whole as u64))?;
        if whole == 0 {
            writeln!(self.file, "{asked}")?;
        }
        Ok(())
    }

    /// Puts the next images' results away.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn put(&mut self, source: &Source, outcomes: Vec<Outcome>) -> Result<()> {
        let mut lines = Vec::new();
        for outcome in outcomes {
            let key = source.key(self.done);
            let mut line = Map::from_iter([("image".to_owned(), json!(key))]);
            match outcome {
                Ok(fields) => {
                    self.unreadable.ok();
                    line.extend(fields);
                }
                Err(reason) => {
                    line.insert("unreadable".to_owned(), json!(reason));
                    self.unreadable.fail(key, reason);
                }
            }
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
            self.done += 1;
        }
        // One write: a kill leaves at most the last line short.
        Ok(self.file.write_all(&lines)?)
    }

    /// Hands every image's line to `take`, as text and as JSON, in order, without those that cannot be read.
    ///
    /// # Errors
    ///
    /// Those of `take`, and a file that cannot be read.
    pub fn each(&mut self, mut take: impl FnMut(&[u8], &Value) -> Result<()>) -> Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut lines = BufReader::new(&mut self.file);
        next(&mut lines)?;
        let mut count = 0;
        while let Some(Line { text, value }) = next(&mut lines)? {
            if value.get("unreadable").is_none() {
                take(&text, &value)?;
            }
            count += 1;
        }
        if count != self.done {
            bail!(
                "{}: expected {} whole lines, found {count}\n  hint: remove it to begin again",
                self.path.display(),
                self.done
            );
        }
        Ok(())
    }

    /// Removes the file: what was done has its own place now.
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        drop(self.file);
        Ok(fs::remove_file(&self.path)?)
    }

    /// What there is to say after a stop.
    pub fn stopped(&self, all: usize) -> String {
        format!(
            "stopped after {} of {all} images, which are kept in {}; the same command goes on",
            self.done,
            self.path.display()
        )
    }
}

/// A line of the file.
struct Line {
    /// Its bytes, with the line break.
    text: Vec<u8>,
    value: Value,
}

/// The next line; none behind the last whole one.
fn next(lines: &mut impl BufRead) -> Result<Option<Line>> {
    let mut text = Vec::new();
    lines
        .read_until(b'\n', &mut text)
        .context("reading what is done")?;
    if text.last() != Some(&b'\n') {
        return Ok(None);
    }
    let value = serde_json::from_slice(&text).ok();
    Ok(value.map(|value| Line { text, value }))
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

    fn result(value: u64) -> Outcome {
        Ok(Map::from_iter([("prediction".to_owned(), json!(value))]))
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
    fn work_goes_on_after_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), &["a", "b", "c", "d"]);
        let (out, asked) = (folder.path().join("out.jsonl"), json!({"task": "reid"}));
        let path = folder.path().join("out.jsonl.partial");
        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        let first = vec![result(7), Err("broken".to_owned()), result(8)];
        partial.put(&source, first).unwrap();
        assert!(partial.stopped(4).contains("3 of 4"));
        drop(partial);
        // A kill in the middle of the third line.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();

        let mut partial = Partial::open(&out, &asked, &source).unwrap();
        assert_eq!(partial.done, 2);
        assert_eq!(
            (partial.unreadable.seen, partial.unreadable.failed.len()),
            (2, 1)
        );
        partial.put(&source, vec![result(8), result(9)]).unwrap();
        assert_eq!(values(&mut partial), [7, 8, 9]);
        partial.remove().unwrap();
        assert!(!path.exists());
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
        fs::write(&path, "somebody's notes").unwrap();
        refused(&asked, &images, "found something else");
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's notes");
    }
}
