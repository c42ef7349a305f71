//! Paths that do not exist: one error for all of them, which says what was expected there and names
//! what is there instead.

use std::path::{Component, Path, PathBuf};

use fs_err as fs;

use crate::text::edits;

/// Entries of a folder that are compared with a name that is missing.
const MOST_COMPARED: usize = 10_000;
/// Entries of a folder that a hint names.
const MOST_NAMED: usize = 5;

/// Nothing at a path that was to be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found}\n  hint: {hint}")]
pub struct MissingPath {
    /// The path.
    pub path: String,
    /// What was expected there.
    pub expected: String,
    /// What is there: nothing, or not even the folder.
    pub found: String,
    /// The nearest name that exists, or what the folder holds.
    pub hint: String,
}

impl MissingPath {
    /// The error for `path`, where `expected` was to be: `an image`, `the folder of a dataset`.
    pub fn new(path: &Path, expected: impl Into<String>) -> Self {
        let (folder, missing) = first_missing(path);
        let is_last = missing == path;
        // Without the `/` behind a file's name.
        let there = missing.components().as_path();
        let found = match fs::symlink_metadata(there) {
            Ok(there) if there.is_symlink() => {
                format!("a link to what is not there, `{}`", missing.display())
            }
            // As `a.tar/` or `a.tar/b`.
            Ok(_) => format!("`{}`, which is no folder", there.display()),
            Err(_) if is_last => "nothing there".to_owned(),
            Err(_) => format!("no folder `{}`", missing.display()),
        };
        let hint = match nearest(&folder, missing) {
            Some(near) if is_last => format!("did you mean `{}`?", near.display()),
            // What comes after the name that is wrong may be right.
            Some(near) => {
                let rest = path.strip_prefix(missing).unwrap_or(Path::new(""));
                let whole = near.join(rest);
                let near = if whole.exists() { whole } else { near };
                format!("did you mean `{}`?", near.display())
            }
            None => holdings(&folder),
        };
        Self {
            path: path.display().to_string(),
            expected: expected.into(),
            found,
            hint,
        }
    }

    /// The same with `hint`, unless a similar name exists.
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        if !self.hint.starts_with("did you mean") {
            self.hint = hint.into();
        }
        self
    }
}

/// Checks that there is something at `path`, where `expected` is to be. A path that cannot be
/// looked at is left to its reader.
///
/// # Errors
/// There is nothing.
pub fn require(path: &Path, expected: &str) -> Result<(), MissingPath> {
    match path.try_exists() {
        Ok(false) => Err(MissingPath::new(path, expected)),
        _ => Ok(()),
    }
}

/// The folder that exists, and the first path below it that does not.
fn first_missing(path: &Path) -> (PathBuf, &Path) {
    let mut missing = path;
    loop {
        match missing.parent() {
            Some(parent) if parent.as_os_str().is_empty() => return (PathBuf::from("."), missing),
            Some(parent) if !parent.is_dir() => missing = parent,
            Some(parent) => return (parent.to_owned(), missing),
            None => return (PathBuf::from("."), missing),
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with('.'))
        .take(MOST_COMPARED)
        .collect();
    names.sort();
    names
}

/// The path in `folder` whose name is the nearest to that of `missing`: the same in other letters
/// or with another ending, a few letters changed, or one that begins with it.
fn nearest(folder: &Path, missing: &Path) -> Option<PathBuf> {
    let wanted = missing.file_name()?.to_string_lossy().to_lowercase();
    let stem = |name: &str| Path::new(name).with_extension("").display().to_string();
    let most = (wanted.chars().count() / 3).min(3);
    let distance = |name: &String| {
        let name = name.to_lowercase();
        let changed = edits(&wanted, &name);
        if stem(&name) == stem(&wanted) {
            Some(0)
        } else if changed <= most {
            Some(changed)
        } else {
            (wanted.len() > 2 && name.starts_with(&wanted)).then_some(most + 1)
        }
    };
    // What has the name itself was not what was asked for.
    let others =
        { names(folder).into_iter() }.filter(|name| missing.file_name() != Some(name.as_ref()));
    let near = others.filter_map(|name| Some((distance(&name)?, name)));
    let (_, name) = near.min()?;
    let plain = folder == Path::new(".") && missing.components().next() != Some(Component::CurDir);
    Some(match plain {
        true => PathBuf::from(name),
        false => folder.join(name),
    })
}

/// What a folder holds, in words.
pub(crate) fn holdings(folder: &Path) -> String {
    let place = match folder == Path::new(".") {
        true => match std::env::current_dir() {
            Ok(here) => format!("the current folder, {},", here.display()),
            Err(_) => "the current folder".to_owned(),
        },
        false => folder.display().to_string(),
    };
    let names = names(folder);
    match names.len().checked_sub(MOST_NAMED) {
        _ if names.is_empty() => format!("{place} is empty"),
        None | Some(0) => format!("{place} holds {}", names.join(", ")),
        Some(more) => format!(
            "{place} holds {} and {more} more",
            names[..MOST_NAMED].join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_what_is_there_instead() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        fs::create_dir_all(at.join("market1501/query")).unwrap();
        fs::write(at.join("photo.png"), "").unwrap();
        let missing = |name: &str| MissingPath::new(&at.join(name), "a folder");
        let shown = |name: &str| at.join(name).display().to_string();
        for (name, near) in [
            ("market1051", "market1501"),
            ("Market1501", "market1501"),
            ("market", "market1501"),
            ("photo.jpg", "photo.png"),
            ("markt1501/query", "market1501/query"),
            ("markt1501/gallery", "market1501"),
            ("market1501/qurey", "market1501/query"),
        ] {
            let hint = missing(name).hint;
            assert_eq!(hint, format!("did you mean `{}`?", shown(near)), "{name}");
        }
        let error = missing("cuhk03");
        let text = error.to_string();
        let expected = format!(
            "{}: expected a folder, found nothing there",
            shown("cuhk03")
        );
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.ends_with("holds market1501, photo.png"), "{text}");
        assert_eq!(error.or_hint("make it").hint, "make it");
        assert_eq!(
            missing("cuhk03/a/b").found,
            format!("no folder `{}`", shown("cuhk03"))
        );
        assert!(missing("market1501/query/1.jpg").hint.ends_with("is empty"));
        // The hint was once the name itself.
        for name in ["photo.png/", "photo.png/a"] {
            let error = missing(name);
            let found = format!("`{}`, which is no folder", shown("photo.png"));
            assert_eq!(error.found, found);
            assert!(!error.hint.contains("did you mean"), "{error}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("gone", at.join("link")).unwrap();
            let error = missing("link");
            assert!(
                error.found.starts_with("a link to what is not there"),
                "{error}"
            );
            assert!(!error.hint.contains("did you mean"), "{error}");
        }
        assert!(require(at, "a folder").is_ok());
    }
}
