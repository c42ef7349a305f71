//! The runs below `--runs`: their state, and their logs as they grow.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use clasp_run::error::RunError;
use clasp_run::listing::{ListedRun, run_folders, runs_below};
use clasp_weights::finetuned::chosen_by;
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::answer::{encoded_image, json};
use crate::app::{App, Shared, blocking};
use crate::params::Params;
use crate::problem::Problem;

/// Most lines of a log in an answer; of a longer one every so many-th is shown.
const MOST_LINES: usize = 1000;
/// Most bytes of a log that are looked at.
const MOST_BYTES: u64 = 256 << 20;

/// The folder of a run's pictures, in the folder of the run.
const PICTURES: &str = "pictures";
/// Most pictures of a run that are shown.
const MOST_PICTURES: usize = 100;
/// Most bytes of a picture.
const MOST_PICTURE_BYTES: u64 = 64 << 20;

/// A run.
#[derive(Serialize, ToSchema)]
pub struct ServedRun {
    /// Its folder below `--runs`.
    name: String,
    /// `pretrain`, `finetune TASK` or `clip train`.
    kind: String,
    /// `running`, `finished` or `stopped`; `unreadable`.
    state: &'static str,
    /// Step of the last logged metrics.
    step: u64,
    /// The metric that the model was selected by.
    chosen_by: Option<String>,
}

/// A part of a log.
#[derive(Serialize, ToSchema)]
pub struct LogPart {
    /// Its lines: `step` and numbers.
    #[schema(value_type = Vec<Object>)]
    lines: Vec<Value>,
    /// Step of the last line of the whole log.
    last: u64,
}

/// Looks below the folder of runs.
fn below_runs<T>(
    app: &App,
    look: impl FnOnce(&Path) -> Result<T, RunError>,
) -> Result<(T, &Path), Problem> {
    let folder = app
        .runs
        .as_deref()
        .ok_or_else(|| Problem::not_found("runs: none are served\nhint: start with --runs DIR"))?;
    let found = look(folder).map_err(|error| {
        (app.note)(format!("--runs: {error}"));
        Problem::internal("the runs cannot be read; the log of the server says why")
    })?;
    Ok((found, folder))
}

/// The name of a run: its path below the folder of runs.
fn name_of(run: &Path, folder: &Path) -> String {
    let below = run.strip_prefix(folder).unwrap_or(Path::new(""));
    match below == Path::new("") {
        true => ".".to_owned(),
        false => below.to_string_lossy().into_owned(),
    }
}

/// The runs with their state.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs",
    responses((status = 200, body = Vec<ServedRun>), (status = 404, body = Problem)),
)]
pub async fn list(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let runs = blocking(move || {
        let (runs, folder) = below_runs(&app, |folder| runs_below(folder, &chosen_by))?;
        let served = |run: ListedRun| ServedRun {
            name: name_of(&run.folder, folder),
            // The reason names files of this machine.
            chosen_by: run.chosen_by.filter(|_| run.state != "unreadable"),
            kind: run.kind,
            state: run.state,
            step: run.step,
        };
        Ok(runs.into_iter().map(served).collect::<Vec<_>>())
    });
    json(&runs.await?)
}

/// The metrics of a run by step, at most 1000 lines.
#[utoipa::path(
    get, path = "/v1/runs/metrics", tag = "runs",
    params(
        ("run" = String, Query, description = "Name of the run"),
        ("after" = Option<u64>, Query, description = "Begin after this step"),
    ),
    responses((status = 200, body = LogPart), (status = 404, body = Problem)),
)]
pub async fn metrics(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    log_of(app, &uri, "metrics.jsonl").await
}

/// The weights of the experts of a run by step, block and prompt: the last lines.
#[utoipa::path(
    get, path = "/v1/runs/experts", tag = "runs",
    params(
        ("run" = String, Query, description = "Name of the run"),
        ("after" = Option<u64>, Query, description = "Begin after this step"),
    ),
    responses((status = 200, body = LogPart), (status = 404, body = Problem)),
)]
pub async fn experts(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    log_of(app, &uri, "experts.jsonl").await
}

async fn log_of(app: Arc<App>, uri: &Uri, file: &'static str) -> Result<Response, Problem> {
    let params = Params::read(uri, &["run", "after"])?;
    let name = params.needed("run")?.to_owned();
    let after = params.number("after", 0..=u64::MAX, 0)?;
    let part = blocking(move || read_log(folder_of(&app, &name)?.join(file), after));
    json(&part.await?)
}

/// The folder of a run. The name is compared with those that exist; it never becomes a path.
fn folder_of(app: &App, name: &str) -> Result<PathBuf, Problem> {
    let (runs, folder) = below_runs(app, run_folders)?;
    let run = runs.into_iter().find(|run| name_of(run, folder) == name);
    run.ok_or_else(|| Problem::not_found(format!("{name}: expected a run")))
}

/// The names of a run's pictures: PNG and JPEG files in its folder `pictures`, at most 100.
#[utoipa::path(
    get, path = "/v1/runs/pictures", tag = "runs",
    params(("run" = String, Query, description = "Name of the run")),
    responses((status = 200, body = Vec<String>), (status = 404, body = Problem)),
)]
pub async fn pictures(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["run"])?;
    let run = params.needed("run")?.to_owned();
    let names = blocking(move || Ok(pictures_in(&folder_of(&app, &run)?)));
    json(&names.await?)
}

/// A picture of a run.
#[utoipa::path(
    get, path = "/v1/runs/picture", tag = "runs",
    params(
        ("run" = String, Query, description = "Name of the run"),
        ("name" = String, Query, description = "Name of the picture"),
    ),
    responses((status = 200, description = "The picture"), (status = 404, body = Problem)),
)]
pub async fn picture(State(app): Shared, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["run", "name"])?;
    let run = params.needed("run")?.to_owned();
    let name = params.needed("name")?.to_owned();
    let bytes = blocking(move || {
        let folder = folder_of(&app, &run)?;
        let missing = || Problem::not_found(format!("{name}: expected a picture of {run}"));
        if !pictures_in(&folder).contains(&name) {
            return Err(missing());
        }
        let file = fs::File::open(folder.join(PICTURES).join(&name)).map_err(|_| missing())?;
        let mut bytes = Vec::new();
        file.take(MOST_PICTURE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|_| missing())?;
        Ok(bytes)
    });
    encoded_image(bytes.await?)
}

/// Files only: a link could lead out of the folder.
fn pictures_in(run: &Path) -> Vec<String> {
    let is_picture = |name: &str| {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        extension.is_some_and(|of| {
            ["png", "jpg", "jpeg"]
                .iter()
                .any(|one| of.eq_ignore_ascii_case(one))
        })
    };
    let Ok(entries) = fs::read_dir(run.join(PICTURES)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|of| of.is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_picture(name))
        .collect();
    names.sort();
    names.truncate(MOST_PICTURES);
    names
}

fn read_log(path: PathBuf, after: u64) -> Result<LogPart, Problem> {
    let mut part = LogPart {
        lines: Vec::new(),
        last: after,
    };
    let failed = |_| Problem::internal("the log of the run cannot be read");
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(part),
        Err(error) => return Err(failed(error)),
    };
    // The end of a longer log; a first line that is cut is left out as the last one is.
    let start = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(start.saturating_sub(MOST_BYTES)))
        .map_err(failed)?;
    let (mut every, mut step, mut steps) = (1, 0, 0_usize);
    // Lines of the present step, where it is one of those that are left out.
    let mut left_out = Vec::new();
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        // The last line may be a part of one.
        let Ok(value) = serde_json::from_slice::<Value>(&line) else {
            continue;
        };
        let Some(of) = value["step"].as_u64().filter(|of| *of > after) else {
            continue;
        };
        part.last = part.last.max(of);
        // Lines of one step belong together.
        if of != step {
            (step, steps) = (of, steps + 1);
            left_out.clear();
        }
        if !steps.is_multiple_of(every) {
            left_out.push(value);
            continue;
        }
        part.lines.push(value);
        if part.lines.len() > 2 * MOST_LINES {
            every *= 2;
            thin(&mut part.lines);
        }
    }
    // The last step is always shown.
    part.lines.append(&mut left_out);
    while part.lines.len() > MOST_LINES {
        thin(&mut part.lines);
    }
    Ok(part)
}

/// Keeps every second step, and the last.
fn thin(lines: &mut Vec<Value>) {
    let last = lines.last().map(|line| line["step"].clone());
    let (mut step, mut keep) = (Value::Null, false);
    lines.retain(|line| {
        if line["step"] != step {
            step = line["step"].clone();
            keep = !keep;
        }
        keep || Some(&line["step"]) == last.as_ref()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_thinned_and_a_broken_last_line_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines: String = (1..=9000)
            .map(|step| format!("{{\"step\":{step}}}\n"))
            .collect();
        fs::write(&path, lines + "{\"step\":9001").unwrap();
        let part = read_log(path.clone(), 0).unwrap();
        assert!(
            (250..=MOST_LINES).contains(&part.lines.len()),
            "{}",
            part.lines.len()
        );
        assert_eq!(
            (part.last, &part.lines.last().unwrap()["step"]),
            (9000, &9000.into())
        );
        let part = read_log(path, 8990).unwrap();
        assert_eq!(
            (part.lines.len(), part.lines[0]["step"].as_u64()),
            (10, Some(8991))
        );
        assert!(
            read_log(folder.path().join("none"), 3)
                .unwrap()
                .lines
                .is_empty()
        );
    }
}
