//! Models by name, from a model hub or from its cache on this machine.
//!
//! The cache is the one that Hugging Face's tools use, in their layout, so what one has fetched the
//! other finds:
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
//! | `HF_HUB_OFFLINE` | 1: use the cache only |
//!
//! The program links no TLS library (all of them are C): `http` is spoken here, and `https` by the
//! system's `curl`.

use crate::clip::files::{HUGGING_FACE, OPEN_CLIP, PREPROCESSOR};
use crate::error::WeightsError;
use clasp_data::missing::MissingPath;
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
pub struct HubOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The cache's folder; `None` where the machine has no home for it.
    pub cache: Option<PathBuf>,
    /// Look into the cache only.
    pub offline: bool,
    /// How long a hub may send nothing before it is given up.
    pub patience: Duration,
}

impl HubOptions {
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

/// The folder that holds the files of the CLIP called `name` (`owner/model`), fetched if it must
/// be.
///
/// # Errors
///
/// A name that no model can have, one that is not in the cache when offline, one that the hub does
/// not have or has without safetensors, or a hub that cannot be reached. The hint says which files
/// to put where.
pub fn fetch(name: &str, options: &HubOptions) -> Result<PathBuf, WeightsError> {
    let not_found = |why: String| WeightsError::NotFound {
        what: format!("{name}: no such folder, and {why}"),
        hint: hint(name, options),
    };
    let Some((owner, model)) = name.split_once('/').filter(|_| is_model_name(name)) else {
        let expected = "a folder with a CLIP, `mini`, or the name of a model (owner/model)";
        let missing = MissingPath::new(Path::new(name), expected);
        return Err(missing.or_hint(hint("OWNER/MODEL", options)).into());
    };
    let Some(cache) = &options.cache else {
        return Err(not_found(
            "there is no cache folder: HOME is not set".to_owned(),
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

fn hint(name: &str, options: &HubOptions) -> String {
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

/// `owner/model`, of letters, digits, dots, dashes and underscores: nothing that leads out of the
/// cache.
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
        // A mirror may not name the commit; any name will do then, as long as it is always the
        // same.
        let commit = headers.commit.filter(|name| is_file_name(name));
        let commit = commit.unwrap_or_else(|| "main".to_owned());
        let blob = headers.tag.filter(|name| is_file_name(name));
        // Of large files the hub's tag is their SHA-256. A damaged one must not enter the cache,
        // which other programs use too.
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

/// Fetches an address into a file; `None` if there is nothing (404, or 401 for what does not exist
/// publicly).
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
    // A read may wait for ever: it is another thread that waits, and ends with the connection or
    // the program.
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
#[path = "hub_tests.rs"]
mod tests;
