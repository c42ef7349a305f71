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
//! docs/weights.md lists the variables that are honored.

mod client;
mod options;
mod transfer;

use crate::clip::files::{HUGGING_FACE, OPEN_CLIP, PREPROCESSOR};
use crate::error::WeightsError;
use clasp_data::missing::MissingPath;
use client::{Client, Denied, Failure};
use fs_err as fs;
pub use options::{ENDPOINT, HubOptions, Proxies, Secret, Token};
use std::io;
use std::path::{Path, PathBuf};

/// The folder that holds the files of the CLIP called `name` (`owner/model`), fetched if it must
/// be.
///
/// # Errors
///
/// A name that no model can have, one that is not in the cache when offline, one that the hub does
/// not have or has without safetensors, or a hub that cannot be reached. The hint says which files
/// to put where.
pub fn fetch(name: &str, options: &HubOptions) -> Result<PathBuf, WeightsError> {
    fetch_while(name, options, &|| true)
}

/// As [`fetch`], as long as `go_on` says so, which is asked several times a second while a file
/// arrives.
///
/// # Errors
///
/// As [`fetch`], and when it is not to go on.
fn fetch_while(
    name: &str,
    options: &HubOptions,
    go_on: &dyn Fn() -> bool,
) -> Result<PathBuf, WeightsError> {
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
    let page = format!("{}/{name}", options.endpoint.trim_end_matches('/'));
    let base = format!("{page}/resolve/main");
    let client = Client::new(options, go_on).map_err(|error| not_found(error.to_string()))?;
    let _lock = lock(cache, &repository)?;
    if let Some(folder) = cached(&repository) {
        return Ok(folder);
    }
    let get = |file: &str| {
        fetch_file(&client, &base, file, &repository, options).map_err(|failure| match failure {
            Failure::Denied(denied) => refused(name, &page, &denied, options.token.as_ref()),
            Failure::Io(error) => not_found(format!("{base}/{file} could not be fetched: {error}")),
        })
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

/// The path itself, or where there is nothing and a model can have that name (`owner/model`), the
/// folder with its files, fetched if it must be.
///
/// # Errors
///
/// As [`fetch`].
pub fn existing_or_fetched(path: &Path, options: &HubOptions) -> Result<PathBuf, WeightsError> {
    existing_or_fetched_while(path, options, &|| true)
}

/// As [`existing_or_fetched`], as long as `go_on` says so, which is asked several times a second
/// while a file arrives. What has arrived of a file with an SHA-256 is kept.
///
/// # Errors
///
/// As [`fetch`], and when it is not to go on.
pub fn existing_or_fetched_while(
    path: &Path,
    options: &HubOptions,
    go_on: &dyn Fn() -> bool,
) -> Result<PathBuf, WeightsError> {
    // A mistyped file or run is not asked for: its folder is there, or it ends as files do.
    let is_local = |path: &Path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let of_files = ["safetensors", "pth", "pt", "bin", "ckpt", "json", "tar"];
        path.exists()
            || path.parent().is_some_and(Path::exists)
            || ending.is_some_and(|ending| of_files.contains(&ending))
    };
    match path.to_str() {
        Some(name) if is_model_name(name) && !is_local(path) => fetch_while(name, options, go_on),
        _ => Ok(path.to_owned()),
    }
}

/// What to do about a hub that wants an account, or another one.
fn refused(name: &str, page: &str, denied: &Denied, token: Option<&Token>) -> WeightsError {
    let license = format!("if the repository is gated, accept its license on {page}");
    let (why, hint) = match (denied.status, token) {
        (401, None) => (
            "it is gated, private or absent".to_owned(),
            format!(
                "check the name; {license}, and set HF_TOKEN to a token of your account (or log in \
                 with `hf auth login`)"
            ),
        ),
        (401, Some(Token { from, .. })) => (
            format!("the token of {from} is not accepted, or there is no such repository"),
            format!("check the name, and that the token is still valid; {license}"),
        ),
        (_, None) => (
            "it is not open to everyone".to_owned(),
            format!("{license}, and set HF_TOKEN to a token of your account"),
        ),
        (_, Some(Token { from, .. })) => (
            format!("the account of the token of {from} has no access"),
            format!(
                "{license} with that account; a fine-grained token also needs the permission to \
                 read gated repositories"
            ),
        ),
    };
    WeightsError::NotFound {
        what: format!("{name}: no such folder, and {page} is refused with {denied}: {why}"),
        hint,
    }
}

/// Waits until no other program fetches the same repository, so that none writes into the bytes of
/// another. The lock ends with the file.
fn lock(cache: &Path, repository: &Path) -> io::Result<fs::File> {
    let folder = { cache.join(".locks") }.join(repository.file_name().unwrap_or_default());
    fs::create_dir_all(&folder)?;
    let file = fs::File::create(folder.join("clasp.lock"))?;
    match file.file().lock() {
        // Some network file systems have none.
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(file),
    }
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
    client: &Client,
    base: &str,
    file: &str,
    repository: &Path,
    options: &HubOptions,
) -> Result<Option<()>, Failure> {
    let blobs = repository.join("blobs");
    fs::create_dir_all(&blobs)?;
    let address = format!("{base}/{file}");
    let Some(arrived) = transfer::fetch(client, &address, &blobs, file, options.patience)? else {
        return Ok(None);
    };
    // A mirror may not name the commit; any name will do then, as long as it is always the same.
    let commit = arrived.headers.commit.filter(|name| is_file_name(name));
    let commit = commit.unwrap_or_else(|| "main".to_owned());
    let blob = arrived.headers.tag.filter(|name| is_file_name(name));
    let blob = blob.unwrap_or_else(|| format!("{commit}-{file}"));
    fs::rename(&arrived.path, blobs.join(&blob))?;
    let snapshot = repository.join("snapshots").join(&commit);
    fs::create_dir_all(&snapshot)?;
    link(&blobs, &blob, &snapshot.join(file))?;
    fs::create_dir_all(repository.join("refs"))?;
    clasp_data::atomic_write(&repository.join("refs/main"), |out| {
        out.write_all(commit.as_bytes())
    })?;
    Ok(Some(()))
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

#[cfg(test)]
mod server;

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
