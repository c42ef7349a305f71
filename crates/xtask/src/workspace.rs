//! The workspace as `cargo metadata` describes it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What `cargo metadata` says about the crates of the workspace.
pub fn metadata() -> Result<serde_json::Value> {
    cargo_metadata(&["--no-deps"])
}

/// The same with all dependencies.
pub fn metadata_with_dependencies() -> Result<serde_json::Value> {
    cargo_metadata(&[])
}

fn cargo_metadata(more: &[&str]) -> Result<serde_json::Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(more)
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
pub fn in_repository(metadata: &serde_json::Value, path: &str) -> Result<PathBuf> {
    let root = metadata["workspace_root"]
        .as_str()
        .context("cargo metadata without a workspace root")?;
    Ok(Path::new(root).join(path))
}
