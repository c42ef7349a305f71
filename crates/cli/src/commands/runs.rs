//! `clasp runs DIR`: the training runs below a folder.

use anyhow::{Result, bail};
use clasp_data::missing::require;
use clasp_run::listing::runs_below;
use clasp_weights::finetuned::chosen_by;

use super::print_result;
use crate::Outcome;
use crate::args::{GlobalOptions, RunsArguments};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &RunsArguments) -> Result<Outcome> {
    let folder = &arguments.folder;
    require(folder, "a folder with runs")?;
    if !folder.is_dir() {
        bail!(
            "{}: expected a folder with runs, found a file",
            folder.display()
        );
    }
    let runs = runs_below(folder, &chosen_by)?;
    let mut text = String::new();
    for run in &runs {
        let chosen = run.chosen_by.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "{:<9} step {:>8}  {:<20} {}  {chosen}\n",
            run.state,
            run.step,
            run.kind,
            run.folder.display()
        ));
    }
    if runs.is_empty() {
        text = format!("{}: no run (run.toml) here", arguments.folder.display());
    }
    print_result(common.json, &runs, &text)?;
    Ok(Outcome::Done)
}
