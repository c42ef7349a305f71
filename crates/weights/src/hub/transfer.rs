//! One file from a hub to the disk: in bounded size and time, resumed where it broke off, and
//! compared with the hub's SHA-256.

use super::client::{Answer, Client, Content, Failure, Headers};
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The largest file that is fetched: no CLIP comes near.
pub(super) const LARGEST: u64 = 16 << 30;
/// Broken connections in a row after which a file is given up.
const BREAKS: u32 = 5;
/// How often it is asked whether to go on.
const ASK: Duration = Duration::from_millis(200);
/// Bytes beyond those that were there before, after which the next break is the first again.
const PROGRESS: u64 = 1 << 20;

/// A file that came whole.
pub(super) struct Arrived {
    /// What the hub said of it.
    pub headers: Headers,
    /// Where its bytes are, to be renamed.
    pub path: PathBuf,
}

/// Fetches an address into the folder `blobs`; `None` if the hub has no such file. A broken
/// connection is taken up again. Of files with an SHA-256, what has come is kept when all else
/// fails, and the next call goes on from there.
pub(super) fn fetch(
    client: &Client,
    address: &str,
    blobs: &Path,
    file: &str,
    patience: Duration,
) -> Result<Option<Arrived>, Failure> {
    let Answer::Content(first) = client.get(address, 0)? else {
        return Ok(None);
    };
    let headers = first.headers.clone();
    check_size(headers.size.or(first.length))?;
    let sha256 = headers.tag.clone().filter(|tag| is_sha256(tag));
    // Only what is compared in the end may be put together from parts of several answers.
    let path = blobs.join(match &sha256 {
        Some(tag) => format!("{tag}.clasp.incomplete"),
        None => format!("{file}.{}.incomplete", std::process::id()),
    });
    let mut open = fs::OpenOptions::new();
    open.write(true).create(true).truncate(sha256.is_none());
    let mut transfer = Transfer {
        client,
        address,
        patience,
        file: open.open(&path)?,
        resumable: sha256.is_some(),
    };
    let result = transfer.run(first).and_then(|()| {
        let Some(expected) = &sha256 else {
            return Ok(());
        };
        // A damaged file must not enter the cache, which other programs use too.
        let found = hash(&path)?;
        if found != *expected {
            let _ = fs::remove_file(&path);
            let message = format!(
                "it came damaged: its SHA-256 is {found}, the hub says {expected} (try again)"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message).into());
        }
        Ok(())
    });
    if let Err(error) = result {
        if sha256.is_none() {
            // What matters is reported; there may be nothing to remove.
            let _ = fs::remove_file(&path);
        }
        return Err(error);
    }
    Ok(Some(Arrived { headers, path }))
}

struct Transfer<'a> {
    client: &'a Client<'a>,
    address: &'a str,
    patience: Duration,
    file: fs::File,
    resumable: bool,
}

/// How the body of an answer ended.
enum End {
    /// By itself, after so many bytes.
    Whole(u64),
    /// The connection broke.
    Broken { length: u64, why: String },
}

impl Transfer<'_> {
    /// Receives the whole file, of which `content` is the first answer.
    fn run(&mut self, mut content: Content) -> Result<(), Failure> {
        let (mut breaks, mut most) = (0, 0);
        let kept = self.file.seek(SeekFrom::End(0))?;
        if self.resumable && kept > 0 {
            match self.ask(kept)? {
                Some(rest) => content = rest,
                None => return Ok(()),
            }
        }
        loop {
            let from = content.from;
            self.file.set_len(from)?;
            self.file.seek(SeekFrom::Start(from))?;
            let claimed = content.length;
            let (length, why) = match self.receive(content.body, from)? {
                End::Whole(length) if claimed.is_none_or(|claimed| claimed == length) => {
                    return Ok(());
                }
                End::Whole(length) => (length, "the server ended it".to_owned()),
                End::Broken { length, why } => (length, why),
            };
            // A server that ignores ranges sends the same bytes over and over.
            breaks = match from + length >= most + PROGRESS {
                true => 1,
                false => breaks + 1,
            };
            most = most.max(from + length);
            let broken = || {
                let have = from + length;
                let message = format!("the connection broke after {have} bytes: {why}");
                Failure::Io(io::Error::new(io::ErrorKind::UnexpectedEof, message))
            };
            content = loop {
                if breaks > BREAKS {
                    return Err(broken());
                }
                // 0.06 s, doubled each time, at the usual patience of a minute.
                std::thread::sleep(self.patience / 1000 * (1 << (breaks - 1)));
                self.client.check_stop()?;
                match self.ask(if self.resumable { from + length } else { 0 }) {
                    Ok(Some(rest)) => break rest,
                    Ok(None) => return Ok(()),
                    Err(_) => breaks += 1,
                }
            };
        }
    }

    /// The rest of the file from a byte on; `None` if nothing is missing.
    fn ask(&mut self, from: u64) -> Result<Option<Content>, Failure> {
        let answer = match self.client.get(self.address, from)? {
            // Whole, or longer than the file: the comparison of the SHA-256 tells.
            Answer::Beyond => return Ok(None),
            answer => answer,
        };
        let Answer::Content(content) = answer else {
            return Err(io::Error::other("the hub no longer has it").into());
        };
        check_size(
            content
                .length
                .map(|length| length.saturating_add(content.from)),
        )?;
        Ok(Some(content))
    }

    /// Writes a body to the file, and gives up when nothing comes for the patience. `from` bytes
    /// are there already.
    fn receive(&mut self, mut body: Box<dyn Read + Send>, from: u64) -> io::Result<End> {
        // A read may wait for ever: it is another thread that waits, and ends with the connection
        // or the program.
        let (sender, receiver) = mpsc::sync_channel(4);
        std::thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || {
                loop {
                    let mut bytes = vec![0; 1 << 17];
                    let read = body.read(&mut bytes).map(|length| {
                        bytes.truncate(length);
                        bytes
                    });
                    let ended = !matches!(&read, Ok(bytes) if !bytes.is_empty());
                    if sender.send(read).is_err() || ended {
                        return;
                    }
                }
            })?;
        let mut length = 0;
        let mut last = Instant::now();
        loop {
            self.client.check_stop()?;
            let bytes = match receiver.recv_timeout(self.patience.min(ASK)) {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(error)) => {
                    let why = error.to_string();
                    return Ok(End::Broken { length, why });
                }
                Err(RecvTimeoutError::Timeout) if last.elapsed() < self.patience => continue,
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = self.patience.as_secs_f64();
                    let have = from + length;
                    let message = format!("nothing came for {seconds} s after {have} bytes");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the thread that receives it ended"));
                }
            };
            last = Instant::now();
            if bytes.is_empty() {
                self.file.flush()?;
                return Ok(End::Whole(length));
            }
            length += bytes.len() as u64;
            check_size(Some(from + length))?;
            self.file.write_all(&bytes)?;
        }
    }
}

fn check_size(size: Option<u64>) -> io::Result<()> {
    match size {
        Some(size) if size > LARGEST => {
            let message = format!("{size} bytes, more than the {LARGEST} that are fetched");
            Err(io::Error::other(message))
        }
        _ => Ok(()),
    }
}

fn is_sha256(tag: &str) -> bool {
    tag.len() == 64
        && tag
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 of a file, in hex.
fn hash(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
