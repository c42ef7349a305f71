//! Chores of the repository: `cargo xtask ci` is the one gate, `cargo xtask check-deps` holds the
//! crates to the table in the README.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Which of our crates each crate may use. The README shows the same table.
const MAY_USE: &[(&str, &[&str])] = &[
    ("clasp-data", &[]),
    ("clasp-metrics", &[]),
    ("clasp-model", &[]),
    (
        "clasp-weights",
        &["clasp-data", "clasp-metrics", "clasp-model"],
    ),
    (
        "clasp-label",
        &["clasp-data", "clasp-model", "clasp-weights"],
    ),
    ("clasp-run", &["clasp-data"]),
    (
        "clasp-pretrain",
        &["clasp-data", "clasp-model", "clasp-run", "clasp-weights"],
    ),
    (
        "clasp-tasks",
        &[
            "clasp-data",
            "clasp-metrics",
            "clasp-model",
            "clasp-run",
            "clasp-weights",
        ],
    ),
    (
        "clasp",
        &[
            "clasp-data",
            "clasp-label",
            "clasp-metrics",
            "clasp-model",
            "clasp-pretrain",
            "clasp-run",
            "clasp-tasks",
            "clasp-weights",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that stay free of Burn, so that they build and test in seconds.
const WITHOUT_BURN: &[&str] = &["clasp-data", "clasp-metrics"];

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("ci") => ci(),
        Some("check-deps") => check_deps(),
        other => bail!("expected `ci` or `check-deps`, found {other:?}"),
    }
}

/// Formatting, lints, dependency table, then the test command of the README.
fn ci() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])?;
    check_deps()?;
    run(
        "cargo",
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    run("cargo", &["test", "--release", "--workspace", "--locked"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    println!("$ {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        status.success(),
        "`{program} {}` failed: {status}",
        arguments.join(" ")
    );
    Ok(())
}

fn check_deps() -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .output()
        .context("starting cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let found = dependencies(&metadata)?;
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();

    let mut wrong = Vec::new();
    for (name, uses) in &found {
        let Some(may) = allowed.get(name.as_str()) else {
            wrong.push(format!("`{name}` is not in the table of crates/xtask"));
            continue;
        };
        for used in uses {
            if found.contains_key(used) && !may.contains(&used.as_str()) {
                wrong.push(format!("`{name}` must not use `{used}`"));
            }
            if used.starts_with("burn") && WITHOUT_BURN.contains(&name.as_str()) {
                wrong.push(format!(
                    "`{name}` must stay free of Burn, but uses `{used}`"
                ));
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "dependencies between crates:\n  {}",
        wrong.join("\n  ")
    );
    println!(
        "dependencies of {} crates agree with the table",
        found.len()
    );
    Ok(())
}

/// Each workspace crate with the names of what it depends on outside its tests.
fn dependencies(metadata: &serde_json::Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata without packages")?;
    let mut found = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("package without a name")?;
        let uses = package["dependencies"]
            .as_array()
            .context("package without dependencies")?
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
            .collect();
        found.insert(name.to_owned(), uses);
    }
    Ok(found)
}
