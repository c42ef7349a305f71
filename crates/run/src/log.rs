//! The log of a run: JSON lines for scripts, event files for TensorBoard.
//!
//! `metrics.jsonl` holds one object a line, with `step` and the metrics of that step. A TensorBoard
//! file (`events.out.tfevents.*`) is a sequence of TFRecords, each
//!
//! ```text
//! u64 length · u32 masked crc32c(length) · bytes · u32 masked crc32c(bytes)      (little endian)
//! ```
//!
//! whose bytes are a protocol-buffer `Event`: 1 wall time (f64), 2 step (i64), then one of 3 file
//! version (text), 5 summary (repeated 1 value: 1 tag, 2 f32), 7 session log (1 status, where 1
//! means "restarted here": readers then drop what an earlier, killed process logged after this
//! step).

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde::Serialize;
use serde_json::{Map, Value};

/// Metrics of one step by name, such as `loss/total`.
pub type Metrics = BTreeMap<String, f64>;

/// Adds the metrics that every loop logs beside its own: `epoch`, epochs that are done, and
/// `speed/images_per_second` of a step that took `seconds`.
pub fn add_progress(metrics: &mut Metrics, epoch: f64, images: usize, seconds: f64) {
    metrics.insert("epoch".to_owned(), epoch);
    metrics.insert(
        "speed/images_per_second".to_owned(),
        images as f64 / seconds,
    );
}

/// The logs of a run.
pub struct Log {
    lines: fs::File,
    others: BTreeMap<&'static str, fs::File>,
    events: fs::File,
}

impl Log {
    /// Opens the logs of `folder`, and further files of JSON lines called `others`; what an earlier
    /// process logged after `step` is dropped, so that a run that was killed and resumed logs every
    /// step once.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written.
    pub fn open(folder: &Path, step: u64, others: &[&'static str]) -> io::Result<Self> {
        let append = |name: &str| {
            let path = folder.join(name);
            if path.exists() {
                drop_after(&path, step)?;
            }
            fs::OpenOptions::new().create(true).append(true).open(path)
        };
        let lines = append("metrics.jsonl")?;
        let others = { others.iter() }
            .map(|name| Ok((*name, append(name)?)))
            .collect::<io::Result<_>>()?;
        let mut events = fs::File::create(events_path(folder))?;
        events.write_all(&record(&event(0, 3, b"brain.Event:2")))?;
        if step > 0 {
            events.write_all(&record(&event(step + 1, 7, &[0x08, 1])))?;
        }
        events.flush()?;
        Ok(Self {
            lines,
            others,
            events,
        })
    }

    /// Logs the metrics of a step in both files. Values that are not finite are `null` in JSON,
    /// which cannot express them.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn write(&mut self, step: u64, metrics: &Metrics) -> io::Result<()> {
        let mut line = Map::new();
        line.insert("step".to_owned(), Value::from(step));
        let mut summary = Vec::new();
        for (name, &value) in metrics {
            line.insert(name.clone(), Value::from(value));
            let mut entry = Vec::new();
            field_bytes(&mut entry, 1, name.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend_from_slice(&(value as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &entry);
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // One write a line: a kill leaves at most the last line incomplete.
        self.lines.write_all(text.as_bytes())?;
        self.events.write_all(&record(&event(step, 5, &summary)))
    }

    /// Logs `items`, a line each, each with its `step`, in one of the files that the log was opened
    /// with.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    ///
    /// # Panics
    ///
    /// The log was opened without that file.
    pub fn append(&mut self, name: &str, items: &[impl Serialize]) -> io::Result<()> {
        let Some(file) = self.others.get_mut(name) else {
            panic!("the log was opened without `{name}`");
        };
        let mut text = String::new();
        for one in items {
            text.push_str(&serde_json::to_string(one)?);
            text.push('\n');
        }
        file.write_all(text.as_bytes())
    }
}

/// Removes the lines of steps after `step`, and an incomplete last line.
fn drop_after(path: &Path, step: u64) -> io::Result<()> {
    let mut kept = String::new();
    for line in BufReader::new(fs::File::open(path)?).lines() {
        let line = line?;
        let logged = serde_json::from_str::<Value>(&line)
            .ok()
            .and_then(|value| value["step"].as_u64());
        if logged.is_some_and(|logged| logged <= step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    clasp_data::atomic_write(path, |file| file.write_all(kept.as_bytes()))
}

/// A name that no earlier process of this run used; readers order the files by it.
fn events_path(folder: &Path) -> PathBuf {
    let seconds = seconds_now() as u64;
    (0..)
        .map(|number| {
            folder.join(format!(
                "events.out.tfevents.{seconds:010}.clasp.{number:03}"
            ))
        })
        .find(|path| !path.exists())
        .unwrap_or_else(|| folder.join("events.out.tfevents.clasp"))
}

fn seconds_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// An `Event` with one payload field.
fn event(step: u64, field: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend_from_slice(&seconds_now().to_le_bytes());
    bytes.push(2 << 3);
    varint(&mut bytes, step);
    field_bytes(&mut bytes, field, payload);
    bytes
}

fn field_bytes(bytes: &mut Vec<u8>, field: u8, payload: &[u8]) {
    bytes.push(field << 3 | 2);
    varint(bytes, payload.len() as u64);
    bytes.extend_from_slice(payload);
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(payload.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked_crc(&length).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&masked_crc(payload).to_le_bytes());
    bytes
}

/// TFRecord's checksum: crc32c, rotated and shifted so that a checksum of checksums stays good.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's CRC, a table lookup a byte.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    crc >> 1 ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| {
        TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_event_has_the_bytes_of_the_protocol() {
        let bytes = event(300, 5, b"ab");
        assert_eq!(bytes[0], 0x09);
        assert_eq!(&bytes[9..], &[0x10, 0xac, 0x02, 0x2a, 2, b'a', b'b']);
        let framed = record(&bytes);
        assert_eq!(framed.len(), bytes.len() + 16);
        assert_eq!(framed[..8], (bytes.len() as u64).to_le_bytes());
    }

    #[test]
    fn a_resumed_log_holds_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = |value: f64| Metrics::from([("loss/total".to_owned(), value)]);
        let mut log = Log::open(folder.path(), 0, &[]).unwrap();
        for step in 1..=5 {
            log.write(step, &metrics(step as f64)).unwrap();
        }
        // A kill in the middle of a line.
        log.lines.write_all(b"{\"step\":6,\"lo").unwrap();
        drop(log);
        let mut log = Log::open(folder.path(), 3, &[]).unwrap();
        log.write(4, &metrics(40.0)).unwrap();
        let text = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let steps: Vec<_> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["step"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert!(
            text.ends_with("\"loss/total\":40.0,\"step\":4}\n"),
            "{text}"
        );
        let events = fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .path()
                    .to_string_lossy()
                    .contains("tfevents")
            })
            .count();
        assert_eq!(events, 2);
    }
}
