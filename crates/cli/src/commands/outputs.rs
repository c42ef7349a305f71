//! Files and results that commands write.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clasp_data::atomic::{file_to_write, remove_abandoned_of};
use clasp_data::source::Source;
use clasp_data::text::printable;
use clasp_weights::backbone::{backbone_file, backbone_parts};
use clasp_weights::finetuned;
use serde::Serialize;

/// Checks before long work that a file can be written there.
pub fn check_writable(path: &Path) -> Result<()> {
    let file = file_to_write(path)?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!(
            "{}: cannot be written, as there is no folder {}\nhint: create it first",
            path.display(),
            folder.display()
        );
    }
    Ok(())
}

/// What a command reads, and a file to write would replace.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// The files of images, or the tar and Parquet files that hold them.
    Images(&'a Source),
    /// The file of a model or that of its run folder; of a checkpoint in several files the index and the parts.
    Model(&'a Path),
    /// A file, or a folder with all that is in it.
    Files(&'a Path),
}

impl Input<'_> {
    /// What this is, in an error.
    fn name(self) -> &'static str {
        match self {
            Self::Images(_) => "one of the images that are read",
            Self::Model(_) => "the model that is read",
            Self::Files(_) => "one of the files that are read",
        }
    }

    /// Its files and folders that are there, by their paths without links.
    fn places(self) -> HashSet<PathBuf> {
        let files: HashSet<Cow<Path>> = match self {
            // A tar file holds many images.
            Self::Images(source) => { 0..source.len() }
                .map(|image| source.file(image).into())
                .collect(),
            Self::Model(path) => [finetuned::existing(path), backbone_file(path)]
                .into_iter()
                .flatten()
                .chain(backbone_parts(path).into_iter().flatten())
                .map(Cow::from)
                .collect(),
            Self::Files(path) => [path.into()].into(),
        };
        { files.into_iter() }
            .filter_map(|file| fs_err::canonicalize(file).ok())
            .collect()
    }
}

/// One of `files` that belongs to the inputs, by whatever way or link, with its place and what it is: writing it
/// would lose that. Each file has a value that says what it is for.
pub fn first_replaced<T>(
    files: impl Iterator<Item = (T, PathBuf)>,
    inputs: &[Input],
) -> Option<(T, PathBuf, &'static str)> {
    // Only what is there can be lost; mostly that is nothing.
    let mut there: Vec<(T, PathBuf)> = files
        .filter_map(|(what, file)| Some((what, fs_err::canonicalize(file).ok()?)))
        .collect();
    if there.is_empty() {
        return None;
    }
    inputs.iter().find_map(|input| {
        let places = input.places();
        let is_read = |file: &Path| file.ancestors().any(|place| places.contains(place));
        let at = there.iter().position(|(_, file)| is_read(file))?;
        let (what, file) = there.swap_remove(at);
        Some((what, file, input.name()))
    })
}

/// Checks that none of the files to write, each with its option, is one that is read, and removes
/// temporary files of them that killed processes left.
pub fn claim_outputs(files: &[(&str, &Path)], inputs: &[Input]) -> Result<()> {
    let paths = files.iter().map(|file| (file, file.1.to_owned()));
    if let Some(((option, path), _, found)) = first_replaced(paths, inputs) {
        bail!(
            "{option} {}: expected a file to write, found {found}\nhint: choose another name",
            path.display()
        );
    }
    for (_, path) in files {
        remove_abandoned_of(path)?;
    }
    Ok(())
}

/// `path` with `suffix` after its name: another file of the same folder, and another for every
/// `path`.
///
/// # Errors
///
/// `path` names no file, as `..` does.
pub fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        bail!("{}: expected a name, found none", path.display());
    };
    let mut name = name.to_owned();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

/// A result on standard output: `value` as JSON if asked for, else `text`.
pub fn print_result(json: bool, value: &impl Serialize, text: &str) -> Result<()> {
    if json {
        print_text(&serde_json::to_string_pretty(value)?)
    } else {
        print_text(&printable(text))
    }
}

/// Text on standard output. A closed pipe, as behind `head`, is no error.
pub fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It used to be replaced after hours of work.
    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("absent/file", at("link")).unwrap();
        for (name, found) in [
            ("socket", "expected a file to write, found a device or pipe"),
            ("", "expected a file to write, found a folder"),
            ("link", "there is no folder"),
        ] {
            let error = check_writable(&at(name)).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
        check_writable(&at("new")).unwrap();
    }

    /// `label show --out` and `search --sheet` used to replace a photo.
    #[cfg(unix)]
    #[test]
    fn an_image_that_is_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let photo = clasp_data::image::encode_png(&clasp_data::image::Rgb::filled(2, 2, [0; 3]));
        fs_err::create_dir(at("photos")).unwrap();
        for name in ["photos/a.png", "apart.png", "other.png"] {
            fs_err::write(at(name), &photo).unwrap();
        }
        std::os::unix::fs::symlink(at("apart.png"), at("photos/b.png")).unwrap();
        let photos = Source::open(at("photos").to_str().unwrap()).unwrap();
        let check = |name: &str| claim_outputs(&[("--out", &at(name))], &[Input::Images(&photos)]);
        for name in [
            "photos/a.png",
            "photos/../photos/a.png",
            "photos/b.png",
            "apart.png",
        ] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains("one of the images"), "{name}: {error}");
        }
        for name in ["photos/new.png", "other.png", "absent/a.png"] {
            check(name).unwrap();
        }
    }

    /// `predict --out` used to replace the model, and `eval --predictions` the annotations.
    #[test]
    fn a_file_that_is_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir_all(at("run")).unwrap();
        fs_err::create_dir_all(at("data/below")).unwrap();
        fs_err::create_dir_all(at("hub")).unwrap();
        for name in [
            "run/model.safetensors",
            "run/old.jsonl",
            "part.parquet",
            "data/below/val.json",
            "hub/model-00001-of-00002.safetensors",
            "hub/model-00002-of-00002.safetensors",
        ] {
            fs_err::write(at(name), "x").unwrap();
        }
        let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        fs_err::write(at("hub/model.safetensors.index.json"), index).unwrap();
        let (run, file, hub) = (at("run"), at("run/model.safetensors"), at("hub"));
        let (part, data) = (at("part.parquet"), at("data/below/.."));
        let check = |name: &str, input| claim_outputs(&[("--out", &at(name))], &[input]);
        for (name, input, found) in [
            ("run/model.safetensors", Input::Model(&run), "the model"),
            ("run/model.safetensors", Input::Model(&file), "the model"),
            (
                "hub/model.safetensors.index.json",
                Input::Model(&hub),
                "the model",
            ),
            (
                "hub/model-00002-of-00002.safetensors",
                Input::Model(&hub),
                "the model",
            ),
            (
                "run/../part.parquet",
                Input::Files(&part),
                "one of the files",
            ),
            (
                "data/below/val.json",
                Input::Files(&data),
                "one of the files",
            ),
        ] {
            let error = check(name, input).unwrap_err().to_string();
            assert!(error.contains(found), "{name}: {error}");
        }
        for (name, input) in [
            ("run/old.jsonl", Input::Model(&run)),
            ("run/new.jsonl", Input::Model(&run)),
            ("hub/new.jsonl", Input::Model(&hub)),
            ("new.parquet", Input::Files(&part)),
            ("data/new.json", Input::Files(&data)),
            ("run/old.jsonl", Input::Files(&data)),
        ] {
            check(name, input).unwrap();
        }
    }

    /// `merge ./p ./q --out q` used to overwrite its part.
    #[test]
    fn a_part_is_the_result_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::write(at("q"), "").unwrap();
        fs_err::create_dir(at("below")).unwrap();
        let check = |part: &str, out: &str| {
            claim_outputs(&[("--out", &at(out))], &[Input::Files(&at(part))])
        };
        assert!(check("q", "below/../q").is_err());
        check("q", "below").unwrap();
        check("absent", "absent").unwrap();
    }

    #[test]
    fn what_lies_beside_differs_where_names_differ() {
        let run = |name: &str| beside(Path::new(name), ".run").unwrap();
        assert_eq!(run("m"), Path::new("m.run"));
        assert_eq!(run("a/m-0.1"), Path::new("a/m-0.1.run"));
        assert_ne!(run("m-0.1"), run("m-0.2"));
        assert_eq!(run("a/m/"), Path::new("a/m.run"));
        assert!(beside(Path::new(".."), ".run").is_err());
    }
}
