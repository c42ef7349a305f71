//! Models by name, from a model hub or from its cache on this machine.
//!
//! The cache is the one that Hugging Face's tools use, in their layout, so what one has fetched the other finds:
//!
//! ```text
//! models--OWNER--NAME/refs/main                      the commit
//! models--OWNER--NAME/snapshots/COMMIT/config.json   a link to ../../blobs/...
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_ENDPOINT` | the hub, `https://huggingface.co` if unset |
//! | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` | the cache; else `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub` |
//! | `HF_HUB_OFFLINE` | 1: look into the cache only |
//!
//! The program links no TLS library (all of them are C): `http` is spoken here, and `https` by the system's `curl`.

use crate::clip::{HUGGING_FACE, OPEN_CLIP, PREPROCESSOR};
use crate::error::WeightsError;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// The hub that is asked when no other is named.
pub const ENDPOINT: &str = "https://huggingface.co";
/// The largest file that is fetched: no CLIP comes near.
const LARGEST: u64 = 16 << 30;
/// How long a hub may send nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Redirections that are followed.
const REDIRECTIONS: usize = 5;

/// Where to look for models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The hub's address.
    pub endpoint: String,
    /// The cache's folder; `None` where the machine has no home for it.
    pub cache: Option<PathBuf>,
    /// Look into the cache only.
    pub offline: bool,
    /// How long a hub may send nothing before it is given up.
    pub patience: Duration,
}

impl Options {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .or_else(|| {
                let home = path("HOME").or_else(|| path("USERPROFILE"))?;
                Some(home.join(".cache/huggingface/hub"))
            });
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
        });
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            cache,
            offline,
            patience: PATIENCE,
        }
    }
}

/// The folder that holds the files of the CLIP called `name` (`owner/model`), fetched if it must be.
///
/// # Errors
///
/// A name that no model can have, one that is not in the cache when offline, one that the hub does not have or has
/// without safetensors, or a hub that cannot be reached. The hint says which files to put where.
pub fn fetch(name: &str, options: &Options) -> Result<PathBuf, WeightsError> {
    let not_found = |why: String| WeightsError::NotFound {
        what: format!("{name}: no such folder, and {why}"),
        hint: hint(name, options),
    };
    let Some((owner, model)) = name.split_once('/').filter(|_| is_model_name(name)) else {
        return Err(WeightsError::NotFound {
            what: format!("{name}: no such folder, and not the name of a model (owner/model)"),
            hint: hint("OWNER/MODEL", options),
        });
    };
    let Some(cache) = &options.cache else {
        return Err(not_found(
            "there is no cache to look into: HOME is not set".to_owned(),
        ));
    };
    let repository = cache.join(format!("models--{owner}--{model}"));
    if let Some(folder) = cached(&repository) {
        return Ok(folder);
    }
    if options.offline {
        let place = repository.display();
        return Err(not_found(format!(
            "HF_HUB_OFFLINE is set and {place} does not hold it"
        )));
    }
    let base = format!(
        "{}/{name}/resolve/main",
        options.endpoint.trim_end_matches('/')
    );
    let get = |file: &str| {
        fetch_file(&base, file, &repository, options.patience)
            .map_err(|error| not_found(format!("{base}/{file} could not be fetched: {error}")))
    };
    for [config, weights] in [OPEN_CLIP, HUGGING_FACE] {
        if get(config)?.is_none() {
            continue;
        }
        if config == HUGGING_FACE[0] {
            get(PREPROCESSOR)?;
        }
        if get(weights)?.is_none() {
            return Err(not_found(format!("{base} has no {weights}")));
        }
        if let Some(folder) = cached(&repository) {
            return Ok(folder);
        }
    }
    Err(not_found(format!(
        "{base} has neither {} nor {}",
        OPEN_CLIP[0], HUGGING_FACE[0]
    )))
}

fn hint(name: &str, options: &Options) -> String {
    let by = match &options.cache {
        Some(_) if !options.offline => format!(
            ", or on a machine with access fetch {}/{name}/resolve/main/FILE",
            options.endpoint.trim_end_matches('/')
        ),
        _ => String::new(),
    };
    format!(
        "give a folder with {} and {}, or with {}, {} and {PREPROCESSOR}{by}",
        OPEN_CLIP[0], OPEN_CLIP[1], HUGGING_FACE[0], HUGGING_FACE[1]
    )
}

/// `owner/model`, of letters, digits, dots, dashes and underscores: nothing that leads out of the cache.
fn is_model_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| is_file_name(part))
}

fn is_file_name(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=128).contains(&part.len()) && !part.starts_with('.') && part.chars().all(plain)
}

/// The snapshot of the cache's main branch, if it holds a whole CLIP.
fn cached(repository: &Path) -> Option<PathBuf> {
    let commit = fs::read_to_string(repository.join("refs/main")).ok()?;
    let commit = commit.trim();
    if !is_file_name(commit) {
        return None;
    }
    let folder = repository.join("snapshots").join(commit);
    [OPEN_CLIP, HUGGING_FACE]
        .iter()
        .any(|files| files.iter().all(|file| folder.join(file).is_file()))
        .then_some(folder)
}

/// Fetches one file into the cache; `None` if the hub does not have it.
fn fetch_file(
    base: &str,
    file: &str,
    repository: &Path,
    patience: Duration,
) -> io::Result<Option<()>> {
    let blobs = repository.join("blobs");
    fs::create_dir_all(&blobs)?;
    let partial = blobs.join(format!("{file}.{}.incomplete", std::process::id()));
    let result = download(&format!("{base}/{file}"), &partial, patience).and_then(|headers| {
        let Some(headers) = headers else {
            return Ok(None);
        };
        // A mirror may not name the commit; any name will do then, as long as it is always the same.
        let commit = headers.commit.filter(|name| is_file_name(name));
        let commit = commit.unwrap_or_else(|| "main".to_owned());
        let blob = headers.tag.filter(|name| is_file_name(name));
        // Of large files the hub's tag is their SHA-256. A damaged one must not enter the cache, which other programs
        // use too.
        if let Some(expected) = blob.as_deref().filter(|tag| is_sha256(tag)) {
            let found = sha256(&partial)?;
            if found != expected {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "it came damaged: its SHA-256 is {found}, the hub says {expected} (try again)"
                    ),
                ));
            }
        }
        let blob = blob.unwrap_or_else(|| format!("{commit}-{file}"));
        fs::rename(&partial, blobs.join(&blob))?;
        let snapshot = repository.join("snapshots").join(&commit);
        fs::create_dir_all(&snapshot)?;
        link(&blobs, &blob, &snapshot.join(file))?;
        fs::create_dir_all(repository.join("refs"))?;
        clasp_data::atomic_write(&repository.join("refs/main"), |out| {
            out.write_all(commit.as_bytes())
        })?;
        Ok(Some(()))
    });
    if !matches!(result, Ok(Some(()))) {
        // What matters is reported above; there may be nothing to remove.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn is_sha256(tag: &str) -> bool {
    tag.len() == 64
        && tag
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 of a file, in hex.
fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Makes a snapshot's file from a blob: a relative link where there are such, else a copy.
fn link(blobs: &Path, blob: &str, file: &Path) -> io::Result<()> {
    if file.symlink_metadata().is_ok() {
        fs::remove_file(file)?;
    }
    #[cfg(unix)]
    {
        let _ = blobs;
        fs_err::os::unix::fs::symlink(Path::new("../../blobs").join(blob), file)
    }
    #[cfg(not(unix))]
    fs::copy(blobs.join(blob), file).map(|_| ())
}

/// What the hub says about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Headers {
    commit: Option<String>,
    tag: Option<String>,
}

impl Headers {
    /// The first hop names the commit and the file; hops behind it are a store of bytes.
    fn note(&mut self, name: &str, value: &str) {
        let value = value.trim().trim_start_matches("W/").trim_matches('"');
        let slot = match name.trim().to_ascii_lowercase().as_str() {
            "x-repo-commit" => &mut self.commit,
            "x-linked-etag" | "etag" => &mut self.tag,
            _ => return,
        };
        slot.get_or_insert_with(|| value.to_owned());
    }
}

/// Fetches an address into a file; `None` if there is nothing (404, or 401 for what does not exist publicly).
fn download(address: &str, to: &Path, patience: Duration) -> io::Result<Option<Headers>> {
    if address.starts_with("http://") {
        download_http(address, to, patience)
    } else {
        download_curl(address, to, patience)
    }
}

/// Writes a body to a file, and gives up when nothing comes for `patience`. How many bytes came.
fn receive(
    mut body: impl Read + Send + 'static,
    file: &mut fs::File,
    patience: Duration,
) -> io::Result<u64> {
    // A read may wait for ever: it is another thread that waits, and ends with the connection or the program.
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
    loop {
        let bytes = match receiver.recv_timeout(patience) {
            Ok(bytes) => bytes?,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = patience.as_secs_f64();
                let message = format!("nothing came for {seconds} s after {length} bytes");
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the thread that receives it ended"));
            }
        };
        if bytes.is_empty() {
            file.flush()?;
            return Ok(length);
        }
        length += bytes.len() as u64;
        if length > LARGEST {
            return Err(io::Error::other(format!("more than {LARGEST} bytes")));
        }
        file.write_all(&bytes)?;
    }
}

fn download_http(address: &str, to: &Path, patience: Duration) -> io::Result<Option<Headers>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .user_agent(concat!("clasp/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut address = address.to_owned();
    let mut headers = Headers::default();
    for _ in 0..=REDIRECTIONS {
        let response = agent.get(&address).call().map_err(io::Error::other)?;
        // The tag of the target before the tag of the redirection.
        for name in ["x-repo-commit", "x-linked-etag", "etag"] {
            if let Some(value) = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
            {
                headers.note(name, value);
            }
        }
        match response.status().as_u16() {
            200 => {
                let claimed = response
                    .headers()
                    .get("content-length")
                    .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
                let mut file = fs::File::create(to)?;
                let length = receive(response.into_body().into_reader(), &mut file, patience)?;
                if claimed.is_some_and(|claimed| claimed != length) {
                    let message = format!("the connection broke after {length} bytes");
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                }
                return Ok(Some(headers));
            }
            301 | 302 | 303 | 307 | 308 => {
                let target = response.headers().get("location");
                let target = target
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default();
                address = resolve(&address, target)?;
                if !address.starts_with("http://") {
                    return Ok(download_curl(&address, to, patience)?.map(|_| headers));
                }
            }
            401 | 404 => return Ok(None),
            status => return Err(io::Error::other(format!("status {status}"))),
        }
    }
    Err(io::Error::other("too many redirections"))
}

/// A redirection's target, which may lack the server.
fn resolve(address: &str, target: &str) -> io::Result<String> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return Ok(target.to_owned());
    }
    let server = address
        .match_indices('/')
        .nth(2)
        .map_or(address, |(end, _)| &address[..end]);
    if target.starts_with('/') && !target.starts_with("//") {
        return Ok(format!("{server}{target}"));
    }
    Err(io::Error::other(format!("a redirection to `{target}`")))
}

/// By the system's `curl`, which brings TLS, certificates and proxies.
fn download_curl(address: &str, to: &Path, patience: Duration) -> io::Result<Option<Headers>> {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--location",
            "--dump-header",
            "-",
        ])
        .args(["--proto", "=http,https", "--connect-timeout", "30"])
        .args(["--speed-limit", "1"])
        .args(["--speed-time", &patience.as_secs().max(1).to_string()])
        .args(["--max-redirs", &REDIRECTIONS.to_string()])
        .args(["--max-filesize", &LARGEST.to_string()])
        .arg("--output")
        .arg(to)
        .args(["--", address])
        .output()
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("`curl`, which speaks https for this program, did not start: {error}"),
            )
        })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(message));
    }
    let mut headers = Headers::default();
    let mut status = 0u16;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((name, value)) = line.split_once(':') {
            headers.note(name, value);
        } else if line.starts_with("HTTP/") {
            status = line
                .split_whitespace()
                .nth(1)
                .and_then(|s| s.parse().ok())
                .unwrap_or(0);
        }
    }
    match status {
        200 => Ok(Some(headers)),
        401 | 404 => Ok(None),
        status => Err(io::Error::other(format!("status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    /// A hub of one thread on this machine: paths to answers.
    struct Server {
        address: String,
        asked: Arc<Mutex<Vec<String>>>,
    }

    #[derive(Clone)]
    enum Answer {
        File(Vec<u8>),
        Redirect(String),
        Cut(Vec<u8>),
        Stall(Vec<u8>),
        Tagged(Vec<u8>, String),
        Status(u16),
    }

    fn serve(answers: BTreeMap<String, Answer>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut request = String::new();
                reader.read_line(&mut request).unwrap();
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let path = request.split_whitespace().nth(1).unwrap_or("").to_owned();
                log.lock().unwrap().push(path.clone());
                let (head, body, claimed) = match answers.get(&path) {
                    Some(Answer::File(body)) => (
                        "200 OK\r\nETag: \"tag\"".to_owned(),
                        body.clone(),
                        body.len(),
                    ),
                    Some(Answer::Cut(body)) => {
                        ("200 OK".to_owned(), body.clone(), body.len() + 100)
                    }
                    Some(Answer::Stall(body)) => {
                        ("200 OK".to_owned(), body.clone(), body.len() + 100)
                    }
                    Some(Answer::Tagged(body, tag)) => (
                        format!("200 OK\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{tag}\""),
                        body.clone(),
                        body.len(),
                    ),
                    Some(Answer::Redirect(to)) => (
                        format!(
                            "302 Found\r\nLocation: {to}\r\nX-Repo-Commit: abc123\r\nX-Linked-ETag: \"{}\"",
                            path.replace('/', "_").trim_start_matches('_')
                        ),
                        vec![],
                        0,
                    ),
                    Some(Answer::Status(status)) => (format!("{status} No"), vec![], 0),
                    None => ("404 Not Found".to_owned(), vec![], 0),
                };
                let head = format!(
                    "HTTP/1.1 {head}\r\nContent-Length: {claimed}\r\nConnection: close\r\n\r\n"
                );
                // A client that has seen enough may have gone.
                let _ = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(&body));
                if matches!(answers.get(&path), Some(Answer::Stall(_))) {
                    std::thread::sleep(Duration::from_secs(5));
                }
            }
        });
        Server { address, asked }
    }

    fn options(server: &Server, cache: &Path) -> Options {
        Options {
            endpoint: server.address.clone(),
            cache: Some(cache.to_owned()),
            offline: false,
            patience: Duration::from_secs(30),
        }
    }

    fn repository() -> BTreeMap<String, Answer> {
        let mut answers = BTreeMap::new();
        for file in [HUGGING_FACE[0], HUGGING_FACE[1], PREPROCESSOR] {
            let at = format!("/some/model/resolve/main/{file}");
            answers.insert(at, Answer::Redirect(format!("/store/{file}")));
            let body = Answer::File(format!("contents of {file}").into_bytes());
            answers.insert(format!("/store/{file}"), body);
        }
        answers
    }

    #[test]
    fn a_hub_that_stops_sending_is_given_up() {
        let cache = tempfile::tempdir().unwrap();
        let mut answers = repository();
        let body = Answer::Stall(b"half of it".to_vec());
        answers.insert(format!("/store/{}", HUGGING_FACE[1]), body);
        let mut options = options(&serve(answers), cache.path());
        options.patience = Duration::from_millis(200);
        let error = fetch("some/model", &options).unwrap_err().to_string();
        assert!(
            error.contains("nothing came for 0.2 s after 10 bytes"),
            "{error}"
        );
    }

    #[test]
    fn what_came_damaged_does_not_enter_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let mut answers = repository();
        let weights = b"the weights".to_vec();
        let hash = Sha256::digest(&weights);
        let tag: String = { hash.iter() }.map(|byte| format!("{byte:02x}")).collect();
        let at = format!("/some/model/resolve/main/{}", HUGGING_FACE[1]);
        let mut damaged = weights.clone();
        damaged[3] ^= 0x40;
        answers.insert(at.clone(), Answer::Tagged(damaged, tag.clone()));
        let error = fetch(
            "some/model",
            &options(&serve(answers.clone()), cache.path()),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("it came damaged") && error.contains(&tag),
            "{error}"
        );
        let blobs = cache.path().join("models--some--model/blobs");
        for blob in fs::read_dir(&blobs).unwrap() {
            let name = blob.unwrap().file_name().to_string_lossy().into_owned();
            assert!(
                !name.contains(&tag) && !name.contains("incomplete"),
                "{name}"
            );
        }
        answers.insert(at, Answer::Tagged(weights, tag.clone()));
        fetch("some/model", &options(&serve(answers), cache.path())).unwrap();
        assert!(blobs.join(tag).is_file());
    }

    #[test]
    fn a_model_is_fetched_once_in_the_usual_layout() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(repository());
        let options = options(&server, cache.path());
        let folder = fetch("some/model", &options).unwrap();
        assert_eq!(
            folder,
            cache.path().join("models--some--model/snapshots/abc123")
        );
        for file in [HUGGING_FACE[0], HUGGING_FACE[1], PREPROCESSOR] {
            assert_eq!(
                fs::read_to_string(folder.join(file)).unwrap(),
                format!("contents of {file}")
            );
        }
        let asked = server.asked.lock().unwrap().len();
        assert_eq!(fetch("some/model", &options).unwrap(), folder);
        let offline = Options {
            offline: true,
            ..options
        };
        assert_eq!(fetch("some/model", &offline).unwrap(), folder);
        assert_eq!(
            server.asked.lock().unwrap().len(),
            asked,
            "asked again for what is cached"
        );
        let blobs = fs::read_dir(cache.path().join("models--some--model/blobs")).unwrap();
        assert!(
            blobs
                .flatten()
                .all(|blob| !blob.file_name().to_string_lossy().contains("incomplete"))
        );
    }

    #[test]
    fn open_clip_files_are_preferred() {
        let cache = tempfile::tempdir().unwrap();
        let mut answers = repository();
        for file in OPEN_CLIP {
            answers.insert(
                format!("/some/model/resolve/main/{file}"),
                Answer::File(b"here".to_vec()),
            );
        }
        let server = serve(answers);
        let folder = fetch("some/model", &options(&server, cache.path())).unwrap();
        assert!(OPEN_CLIP.iter().all(|file| folder.join(file).is_file()));
        assert!(!folder.join(HUGGING_FACE[1]).exists());
    }

    #[test]
    fn what_cannot_be_fetched_says_which_files_to_put_where() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(BTreeMap::new());
        let online = options(&server, cache.path());
        let message = fetch("some/model", &online).unwrap_err().to_string();
        assert!(message.contains("open_clip_model.safetensors"), "{message}");
        assert!(message.contains("hint: give a folder"), "{message}");
        let asked = server.asked.lock().unwrap().len();
        let offline = Options {
            offline: true,
            ..online.clone()
        };
        let message = fetch("some/model", &offline).unwrap_err().to_string();
        assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
        assert_eq!(
            server.asked.lock().unwrap().len(),
            asked,
            "asked although offline"
        );
        let homeless = Options {
            cache: None,
            ..online
        };
        assert!(fetch("some/model", &homeless).is_err());
    }

    #[test]
    fn a_name_never_leads_out_of_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let server = serve(BTreeMap::new());
        let options = options(&server, cache.path());
        for name in [
            "model",
            "../..",
            "a/../b",
            "/etc/passwd",
            "a/b/c",
            "a b/c",
            "a/",
            "a/.b",
            "-/../-",
            "",
        ] {
            let message = fetch(name, &options).unwrap_err().to_string();
            assert!(
                message.contains("not the name of a model"),
                "{name}: {message}"
            );
        }
        assert!(server.asked.lock().unwrap().is_empty());
    }

    #[test]
    fn failures_on_the_way_leave_nothing_half_done() {
        static RUN: AtomicUsize = AtomicUsize::new(0);
        for (answer, expected) in [
            (Answer::Cut(b"half".to_vec()), ""),
            (Answer::Status(500), "status 500"),
            (Answer::Status(401), "has no model.safetensors"),
            (
                Answer::Redirect("/some/model/resolve/main/model.safetensors".into()),
                "too many redirections",
            ),
            (
                Answer::Redirect("ftp://elsewhere".into()),
                "a redirection to",
            ),
        ] {
            let cache = tempfile::tempdir().unwrap();
            let run = RUN.fetch_add(1, Ordering::Relaxed);
            let mut answers = repository();
            answers.insert("/some/model/resolve/main/model.safetensors".into(), answer);
            let server = serve(answers);
            let message = fetch("some/model", &options(&server, cache.path()))
                .unwrap_err()
                .to_string();
            assert!(message.contains(expected), "{run}: {message}");
            let blobs = fs::read_dir(cache.path().join("models--some--model/blobs")).unwrap();
            assert!(
                blobs
                    .flatten()
                    .all(|blob| !blob.file_name().to_string_lossy().contains("incomplete"))
            );
        }
    }

    #[test]
    fn curl_fetches_the_same() {
        if Command::new("curl").arg("--version").output().is_err() {
            // Only `https` needs it.
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let server = serve(repository());
        let to = folder.path().join("file");
        let address = format!("{}/some/model/resolve/main/config.json", server.address);
        let headers = download_curl(&address, &to, PATIENCE).unwrap().unwrap();
        assert_eq!(headers.commit.as_deref(), Some("abc123"));
        assert_eq!(fs::read_to_string(&to).unwrap(), "contents of config.json");
        let absent = format!("{}/absent", server.address);
        assert_eq!(download_curl(&absent, &to, PATIENCE).unwrap(), None);
    }

    #[test]
    fn the_environment_decides() {
        let from = |variables: &[(&str, &str)]| {
            let variables: BTreeMap<String, String> = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            Options::from_variables(&|name| variables.get(name).cloned())
        };
        let options = from(&[("HOME", "/h")]);
        assert_eq!(options.endpoint, ENDPOINT);
        assert_eq!(
            options.cache,
            Some(PathBuf::from("/h/.cache/huggingface/hub"))
        );
        assert!(!options.offline);
        let options = from(&[
            ("HOME", "/h"),
            ("HF_HOME", "/f"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(options.cache, Some(PathBuf::from("/f/hub")));
        assert!(options.offline);
        let options = from(&[
            ("HF_HOME", "/f"),
            ("HUGGINGFACE_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "0"),
            ("HF_ENDPOINT", "http://mirror"),
        ]);
        assert_eq!(options.cache, Some(PathBuf::from("/c")));
        assert!(!options.offline);
        assert_eq!(options.endpoint, "http://mirror");
        assert_eq!(from(&[]).cache, None);
    }
}
