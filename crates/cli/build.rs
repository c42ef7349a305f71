//! Tells the program which commit it is built from, where git knows, and its version with it.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    println!("cargo::rustc-env=CLASP_COMMIT={commit}");
    let version = env!("CARGO_PKG_VERSION");
    match commit.as_str() {
        "" => println!("cargo::rustc-env=CLASP_VERSION={version}"),
        commit => println!("cargo::rustc-env=CLASP_VERSION={version} ({commit})"),
    }
    println!("cargo::rerun-if-changed=build.rs");
    // The log of HEAD changes with every commit.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}
