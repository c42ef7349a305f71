//! `cargo xtask check-deps`: the crates use only what the table in the README allows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::in_repository;

/// The first cells of the table's header.
const HEADER: &str = "| crate | holds | may use |";

/// A row of the README's table.
#[derive(Debug, PartialEq, Eq)]
struct AllowedUses {
    /// Folders of our crates below `crates/`.
    crates: BTreeSet<String>,
    burn: bool,
}

/// What a crate of the workspace depends on outside its tests.
struct ActualUses {
    /// Its folder below `crates/`, which the table names it by.
    folder: String,
    packages: BTreeSet<String>,
}

/// Compares `cargo metadata` with the table of the README.
pub fn check(metadata: &serde_json::Value) -> Result<()> {
    let readme = fs_err::read_to_string(in_repository(metadata, "README.md")?)?;
    let allowed = crate_table(&readme)?;
    let found = dependencies(metadata)?;
    let wrong = violations(&allowed, &found);
    ensure!(
        wrong.is_empty(),
        "the crates and the table in README.md disagree:\n  {}",
        wrong.join("\n  ")
    );
    println!(
        "dependencies of {} crates agree with the table in README.md",
        found.len()
    );
    Ok(())
}

/// Reads the table of crates. A cell of `may use` holds names of crates, `all`, `none` or `none of
/// ours`, and besides `Burn` or `no Burn`; further cells that begin with `no` are for readers.
fn crate_table(readme: &str) -> Result<BTreeMap<String, AllowedUses>> {
    let mut lines = readme.lines().skip_while(|line| line.trim() != HEADER);
    ensure!(lines.next().is_some(), "README.md has no table `{HEADER}`");
    let rows: Vec<(String, &str)> = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            match cells[..] {
                [name, _, may_use] => Ok((name.trim_matches('`').to_owned(), may_use)),
                _ => bail!("README.md: expected three cells, found `{line}`"),
            }
        })
        .collect::<Result<_>>()?;
    let names: BTreeSet<String> = rows.iter().map(|(name, _)| name.clone()).collect();
    let row = |(name, may_use): &(String, &str)| {
        let mut allowed = AllowedUses {
            crates: BTreeSet::new(),
            burn: true,
        };
        for entry in may_use.split(',').map(str::trim) {
            match entry {
                "all" => allowed.crates = names.clone(),
                "none" | "none of ours" | "Burn" => {}
                "no Burn" => allowed.burn = false,
                entry if entry.starts_with("no ") => {}
                entry if names.contains(entry) => {
                    allowed.crates.insert(entry.to_owned());
                }
                _ => bail!("README.md: `{name}` may use `{entry}`, which is no crate of the table"),
            }
        }
        Ok((name.clone(), allowed))
    };
    rows.iter().map(row).collect()
}

/// Each workspace crate by its package's name.
fn dependencies(metadata: &serde_json::Value) -> Result<BTreeMap<String, ActualUses>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata without packages")?;
    let mut found = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("package without a name")?;
        let folder = package["manifest_path"]
            .as_str()
            .and_then(|manifest| Path::new(manifest).parent()?.file_name()?.to_str())
            .context("package without a folder")?;
        let packages = package["dependencies"]
            .as_array()
            .context("package without dependencies")?
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
            .collect();
        let uses = ActualUses {
            folder: folder.to_owned(),
            packages,
        };
        found.insert(name.to_owned(), uses);
    }
    Ok(found)
}

fn violations(
    allowed: &BTreeMap<String, AllowedUses>,
    found: &BTreeMap<String, ActualUses>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for ActualUses { folder, packages } in found.values() {
        let Some(may_use) = allowed.get(folder) else {
            wrong.push(format!("`{folder}` has no row"));
            continue;
        };
        for package in packages {
            if let Some(used) = found.get(package)
                && !may_use.crates.contains(&used.folder)
            {
                wrong.push(format!("`{folder}` must not use `{}`", used.folder));
            }
            if package.starts_with("burn") && !may_use.burn {
                wrong.push(format!(
                    "`{folder}` must not use Burn, but uses `{package}`"
                ));
            }
        }
    }
    let folders: BTreeSet<&String> = found.values().map(|uses| &uses.folder).collect();
    let gone = allowed.keys().filter(|name| !folders.contains(name));
    wrong.extend(gone.map(|name| format!("`{name}` has a row, but there is no such crate")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "
# Words

| crate | holds | may use |
|---|---|---|
| `data` | images \\| files | none of ours, no Burn, no network |
| `model` | networks | Burn |
| `tasks` | evaluation | data, model |
| `cli` | the program | all |

| other | table |
";

    fn uses(folder: &str, packages: &[&str]) -> (String, ActualUses) {
        let uses = ActualUses {
            folder: folder.to_owned(),
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        };
        (format!("clasp-{folder}"), uses)
    }

    #[test]
    fn the_table_is_read() {
        let table = crate_table(README).unwrap();
        assert_eq!(
            table.keys().collect::<Vec<_>>(),
            ["cli", "data", "model", "tasks"]
        );
        assert!(!table["data"].burn && table["model"].burn);
        assert_eq!(
            table["tasks"].crates,
            ["data", "model"].map(str::to_owned).into()
        );
        assert_eq!(table["cli"].crates.len(), 4);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_an_error() {
        let error = crate_table("no table").unwrap_err().to_string();
        assert!(error.contains("has no table"), "{error}");
        let error = crate_table(&README.replace("data, model", "dato"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "README.md: `tasks` may use `dato`, which is no crate of the table"
        );
    }

    #[test]
    fn what_the_table_does_not_allow_is_reported() {
        let table = crate_table(README).unwrap();
        let mut found: BTreeMap<_, _> = [
            uses("data", &["serde"]),
            uses("model", &["burn"]),
            uses("tasks", &["clasp-data", "clasp-model", "burn"]),
            uses("cli", &["clasp-tasks"]),
        ]
        .into();
        assert!(violations(&table, &found).is_empty());
        found.extend([
            uses("data", &["clasp-model", "burn-core"]),
            uses("web", &[]),
        ]);
        found.remove("clasp-tasks");
        let expected = [
            "`data` must not use Burn, but uses `burn-core`",
            "`data` must not use `model`",
            "`web` has no row",
            "`tasks` has a row, but there is no such crate",
        ];
        assert_eq!(violations(&table, &found), expected);
    }

    #[test]
    fn the_readme_agrees_with_the_workspace() {
        let metadata = crate::workspace::metadata().unwrap();
        check(&metadata).unwrap();
    }
}
