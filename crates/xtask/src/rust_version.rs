//! The Rust version that Cargo.toml and the README state is the one that the dependencies need.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::{in_repository, metadata_with_dependencies};

/// A version of Rust: major, minor, patch.
type RustVersion = (u32, u32, u32);

/// Compares the `rust-version` of the workspace with those of all dependencies, and the README's
/// sentence with it.
pub fn check(workspace: &Value) -> Result<()> {
    let stated = workspace["packages"][0]["rust_version"]
        .as_str()
        .context("Cargo.toml without rust-version")?;
    let all = metadata_with_dependencies()?;
    let (package, needed) = newest(&all).context("no dependency states a Rust version")?;
    ensure!(
        parse(stated)? >= parse(&needed)?,
        "Cargo.toml: rust-version is {stated}, but {package} needs {needed}"
    );
    let readme = fs_err::read_to_string(in_repository(workspace, "README.md")?)?;
    ensure!(
        readme.contains(&format!("Rust toolchain ({stated} or later)")),
        "README.md: expected `Rust toolchain ({stated} or later)`, the rust-version of Cargo.toml"
    );
    println!("Rust {stated} is enough for all dependencies ({package} needs {needed})");
    Ok(())
}

/// The package that needs the newest Rust, and the version.
fn newest(metadata: &Value) -> Option<(String, String)> {
    metadata["packages"]
        .as_array()?
        .iter()
        .filter(|package| !package["source"].is_null())
        .filter_map(|package| {
            let version = package["rust_version"].as_str()?;
            let name = format!(
                "{} {}",
                package["name"].as_str()?,
                package["version"].as_str()?
            );
            Some((name, version.to_owned()))
        })
        .max_by_key(|(_, version)| parse(version).unwrap_or_default())
}

fn parse(version: &str) -> Result<RustVersion> {
    let mut parts = version.split('.').map(str::parse);
    let mut part = || {
        let number = parts.next().unwrap_or(Ok(0));
        number.with_context(|| format!("expected a version such as 1.95, found `{version}`"))
    };
    Ok((part()?, part()?, part()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_version_counts_as_numbers() {
        let package = |name: &str, version: Value| json!({ "name": name, "version": "1.0.0", "source": "registry", "rust_version": version });
        let packages = [
            package("a", json!("1.9")),
            package("b", json!("1.85.1")),
            package("c", Value::Null),
        ];
        let metadata = json!({ "packages": packages });
        assert_eq!(
            newest(&metadata),
            Some(("b 1.0.0".to_owned(), "1.85.1".to_owned()))
        );
        assert!(parse("1.x").is_err());
    }
}
