//! `cargo xtask ci`: the checks that every change passes, each with a time budget.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::workspace::metadata;
use crate::{dependencies, rust_version, structure};

/// Seconds that all steps may take together, from an empty `target` on two cores.
const WHOLE_BUDGET: u64 = 3600;

/// A program to run.
struct GateStep {
    /// Where the program comes from if it is not installed; such a step is then skipped.
    install: Option<&'static str>,
    program: &'static str,
    arguments: &'static str,
    environment: Option<(&'static str, &'static str)>,
    /// Seconds that the step may take, from an empty `target` on two cores.
    budget: u64,
}

/// A step of the toolchain itself.
const fn cargo(arguments: &'static str, budget: u64) -> GateStep {
    GateStep {
        install: None,
        program: "cargo",
        arguments,
        environment: None,
        budget,
    }
}

/// All steps before the tests, the fast ones first. Advisories need a download: the hosted workflow
/// checks them.
const STEPS: &[GateStep] = &[
    cargo("fmt --all --check", 20),
    GateStep {
        install: Some("cargo install typos-cli --locked"),
        program: "typos",
        arguments: "",
        environment: None,
        budget: 30,
    },
    GateStep {
        install: Some("cargo install cargo-deny --locked"),
        program: "cargo-deny",
        arguments: "--offline --locked check licenses bans sources",
        environment: None,
        budget: 60,
    },
    cargo(
        "clippy --release --workspace --all-targets --locked -- -D warnings",
        900,
    ),
    // Of the features for GPUs the one that needs nothing but the toolchain: the others download LLVM
    // to build. No GPU is needed; the device test (docs/gpu.md) is run before a release.
    cargo(
        "clippy --release --package clasp --features vulkan --locked -- -D warnings",
        600,
    ),
    GateStep {
        environment: Some(("RUSTDOCFLAGS", "-D warnings")),
        ..cargo("doc --release --workspace --no-deps --locked", 180)
    },
    GateStep {
        install: None,
        program: "crates/python/test.sh",
        arguments: "",
        environment: None,
        budget: 900,
    },
    // What the tests build too.
    cargo("build --release --workspace --locked", 420),
    GateStep {
        install: None,
        program: "runs/browser.sh",
        arguments: "target/release/clasp",
        environment: None,
        budget: 240,
    },
];
/// The last step: the gate ends with the summary of the test runner.
const TESTS: GateStep = cargo("test --release --workspace --locked", 2400);

/// Runs every step, and reports the seconds of each before the tests start.
pub fn ci() -> Result<()> {
    let start = Instant::now();
    let metadata = metadata()?;
    dependencies::check(&metadata)?;
    rust_version::check(&metadata)?;
    structure::check(&metadata)?;
    let mut report = Vec::new();
    for step in STEPS {
        report.push(run(step)?);
    }
    println!("\n{}\n", report.join("\n"));
    run(&TESTS)?;
    let seconds = start.elapsed().as_secs();
    if seconds > WHOLE_BUDGET {
        println!("{}", timing("all steps", seconds, WHOLE_BUDGET));
    }
    Ok(())
}

/// Runs a step; a line about its time.
fn run(step: &GateStep) -> Result<String> {
    let command = format!("{} {}", step.program, step.arguments);
    let command = command.trim();
    if let Some(install) = step.install
        && !is_installed(step.program)
    {
        let skipped = format!("skipped: `{command}` is not installed (`{install}`)");
        println!("{skipped}");
        return Ok(skipped);
    }
    println!("$ {command}");
    let start = Instant::now();
    let status = Command::new(step.program)
        .args(step.arguments.split_whitespace())
        .envs(step.environment)
        .status()
        .with_context(|| format!("starting {}", step.program))?;
    ensure!(status.success(), "`{command}` failed: {status}");
    Ok(timing(command, start.elapsed().as_secs(), step.budget))
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn timing(what: &str, seconds: u64, budget: u64) -> String {
    let above = if seconds > budget {
        "  WARNING: above its budget"
    } else {
        ""
    };
    format!("{seconds:>5} s of {budget:>4} s  {what}{above}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_fit_into_the_whole_budget() {
        let sum: u64 = STEPS.iter().map(|step| step.budget).sum();
        assert!(sum <= WHOLE_BUDGET, "{sum} s");
    }

    #[test]
    fn a_step_above_its_budget_is_marked() {
        assert!(timing("a", 11, 10).contains("WARNING"));
        assert!(!timing("a", 10, 10).contains("WARNING"));
    }
}
