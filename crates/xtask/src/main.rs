//! Chores of the repository: `cargo xtask ci` is the one gate, `cargo xtask check-deps` compares
//! the crates with the table in the README and finds files that import one another in a circle,
//! `cargo xtask structure` counts the code.
#![allow(clippy::print_stdout)]

mod dependencies;
mod gate;
mod rust_version;
mod structure;
mod workspace;

use anyhow::{Result, bail};

use workspace::metadata;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ci"] => gate::ci(),
        ["check-deps"] => {
            let metadata = metadata()?;
            dependencies::check(&metadata)?;
            rust_version::check(&metadata)?;
            structure::check(&metadata)
        }
        ["structure", ..] => structure::structure(&metadata()?, &arguments[1..]),
        _ => bail!(
            "expected `ci`, `check-deps` or `structure [--json]`, found `{}`",
            arguments.join(" ")
        ),
    }
}
