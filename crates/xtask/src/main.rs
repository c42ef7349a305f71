//! Chores of the repository: `cargo xtask ci` is the one gate, `cargo xtask check-deps` compares
//! the crates with the table in the README, `cargo xtask structure` counts the code.
#![allow(clippy::print_stdout)]

mod dependencies;
mod gate;
mod rust_version;
mod structure;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ci"] => gate::ci(),
        ["check-deps"] => {
            let metadata = metadata()?;
            dependencies::check(&metadata)?;
            rust_version::check(&metadata)
        }
        ["structure", ..] => structure::structure(&metadata()?, &arguments[1..]),
        _ => bail!(
            "expected `ci`, `check-deps` or `structure [--json]`, found `{}`",
            arguments.join(" ")
        ),
    }
}

/// What `cargo metadata` says about the crates of the workspace.
fn metadata() -> Result<serde_json::Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .output()
        .context("starting cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A file of the repository, by its path from the root.
fn in_repository(metadata: &serde_json::Value, path: &str) -> Result<PathBuf> {
    let root = metadata["workspace_root"]
        .as_str()
        .context("cargo metadata without a workspace root")?;
    Ok(Path::new(root).join(path))
}
