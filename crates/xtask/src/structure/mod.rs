//! `cargo xtask structure`: size and shape of the workspace's code, tests apart.

mod imports;
mod items;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use imports::{CrateFile, import_circles};
use items::file_items;

/// Files above this many lines, tests apart, are listed.
const LONG_FILE: usize = 700;
/// Functions above this many lines are listed.
const LONG_FUNCTION: usize = 80;

/// The counts of a workspace.
#[derive(Debug, Serialize)]
pub struct StructureCounts {
    pub crates: Vec<CrateCounts>,
    /// Types by name, tests apart.
    pub type_names: usize,
    /// Names of types that two files or more define, with these files.
    pub shared_type_names: BTreeMap<String, BTreeSet<String>>,
}

/// The counts of a crate.
#[derive(Debug, Serialize)]
pub struct CrateCounts {
    pub name: String,
    /// Files of the library or program, tests apart.
    pub files: usize,
    pub lines: usize,
    /// Lines of tests, in `src` and in `tests`.
    pub test_lines: usize,
    pub long_files: Vec<LongFile>,
    pub long_functions: Vec<LongFunction>,
    /// Groups of files that import one another.
    pub import_circles: Vec<Vec<String>>,
}

/// A file above [`LONG_FILE`] lines.
#[derive(Debug, Serialize)]
pub struct LongFile {
    pub file: String,
    pub lines: usize,
}

/// A function above [`LONG_FUNCTION`] lines.
#[derive(Debug, Serialize)]
pub struct LongFunction {
    pub file: String,
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

/// Counts the workspace that `cargo metadata` describes.
pub fn count(metadata: &serde_json::Value) -> Result<StructureCounts> {
    let root = metadata["workspace_root"]
        .as_str()
        .context("cargo metadata without a workspace root")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata without packages")?;
    let mut crates = Vec::new();
    let mut types: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("package without a name")?;
        let targets = package["targets"]
            .as_array()
            .context("package without targets")?;
        let mut files = Vec::new();
        let mut test_lines = 0;
        for target in targets {
            let source = target["src_path"]
                .as_str()
                .context("target without a file")?;
            let kind = target["kind"][0].as_str().unwrap_or_default();
            let file = relative(root, Path::new(source));
            match kind {
                "custom-build" => {}
                "test" | "bench" | "example" => {
                    let mut tests = Vec::new();
                    add_file(root, Path::new(source), vec![], true, &mut tests)?;
                    test_lines += tests.iter().map(|file| file.items.lines).sum::<usize>();
                }
                _ => {
                    let known = files.iter().any(|known: &CrateFile| known.path == file);
                    ensure!(!known, "{file} is the root of two targets");
                    add_file(root, Path::new(source), vec![], false, &mut files)?;
                }
            }
        }
        for file in files.iter().filter(|file| !file.test) {
            for name in &file.items.types {
                types
                    .entry(name.clone())
                    .or_default()
                    .insert(file.path.clone());
            }
        }
        crates.push(crate_counts(name, &files, test_lines));
    }
    crates.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(StructureCounts {
        crates,
        type_names: types.len(),
        shared_type_names: types
            .into_iter()
            .filter(|(_, files)| files.len() > 1)
            .collect(),
    })
}

fn crate_counts(name: &str, files: &[CrateFile], test_lines: usize) -> CrateCounts {
    let code: Vec<&CrateFile> = files.iter().filter(|file| !file.test).collect();
    let tests = files.iter().filter(|file| file.test);
    let lines = |file: &CrateFile| file.items.lines - file.items.test_lines;
    CrateCounts {
        name: name.to_owned(),
        files: code.len(),
        lines: code.iter().map(|file| lines(file)).sum(),
        test_lines: test_lines
            + code.iter().map(|file| file.items.test_lines).sum::<usize>()
            + tests.map(|file| file.items.lines).sum::<usize>(),
        long_files: code
            .iter()
            .filter(|file| lines(file) > LONG_FILE)
            .map(|file| LongFile {
                file: file.path.clone(),
                lines: lines(file),
            })
            .collect(),
        long_functions: code
            .iter()
            .flat_map(|file| {
                file.items
                    .functions
                    .iter()
                    .map(|function| (*file, function))
            })
            .filter(|(_, function)| function.lines > LONG_FUNCTION)
            .map(|(file, function)| LongFunction {
                file: file.path.clone(),
                name: function.name.clone(),
                line: function.line,
                lines: function.lines,
            })
            .collect(),
        import_circles: import_circles(files),
    }
}

/// Adds the file and the files of the modules that it declares.
fn add_file(
    root: &str,
    path: &Path,
    module: Vec<String>,
    test: bool,
    files: &mut Vec<CrateFile>,
) -> Result<()> {
    let source = fs_err::read_to_string(path)?;
    let items = file_items(&source);
    let mut children = Vec::new();
    for inner in &items.modules {
        for child in &inner.children {
            let inline: PathBuf = inner.path.iter().collect();
            let folder = module_folder(path, module.is_empty())?.join(inline);
            let file = match &child.file {
                Some(file) => path.with_file_name(file),
                None => [
                    format!("{}.rs", child.name),
                    format!("{}/mod.rs", child.name),
                ]
                .map(|name| folder.join(name))
                .into_iter()
                .find(|file| file.is_file())
                .with_context(|| {
                    format!("{}: no file for `mod {};`", path.display(), child.name)
                })?,
            };
            let name = [&module[..], &inner.path, std::slice::from_ref(&child.name)].concat();
            children.push((file, name, child.test));
        }
    }
    files.push(CrateFile {
        path: relative(root, path),
        module,
        test,
        items,
    });
    for (file, name, child_test) in children {
        add_file(root, &file, name, test || child_test, files)?;
    }
    Ok(())
}

/// The folder of a file's child modules.
fn module_folder(path: &Path, crate_root: bool) -> Result<PathBuf> {
    let folder = path.parent().context("a source file without a folder")?;
    let stem = path.file_stem().context("a source file without a name")?;
    Ok(if crate_root || stem == "mod" {
        folder.to_owned()
    } else {
        folder.join(stem)
    })
}

fn relative(root: &str, path: &Path) -> String {
    path.strip_prefix(root)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Checks that no files of a crate import one another in a circle.
pub fn check(metadata: &serde_json::Value) -> Result<()> {
    let counts = count(metadata)?;
    let circles: Vec<String> = { counts.crates.iter() }
        .flat_map(|counts| &counts.import_circles)
        .map(|files| files.join(", "))
        .collect();
    ensure!(
        circles.is_empty(),
        "these files import one another in a circle; move what they share into a file of its own:\n  {}",
        circles.join("\n  ")
    );
    println!("no file is part of an import circle");
    Ok(())
}

/// Prints the counts.
pub fn structure(metadata: &serde_json::Value, arguments: &[String]) -> Result<()> {
    let counts = count(metadata)?;
    match arguments {
        [] => print!("{}", table(&counts)),
        [json] if json == "--json" => println!("{}", serde_json::to_string_pretty(&counts)?),
        other => bail!("expected nothing or --json, found `{}`", other.join(" ")),
    }
    Ok(())
}

fn table(counts: &StructureCounts) -> String {
    let mut rows = vec![[
        "crate".to_owned(),
        "files".to_owned(),
        "lines".to_owned(),
        "lines of tests".to_owned(),
        format!("files > {LONG_FILE} lines"),
        format!("functions > {LONG_FUNCTION} lines"),
        "import circles (files)".to_owned(),
    ]];
    let mut sums = [0; 7];
    for counts in &counts.crates {
        let in_circles: usize = counts.import_circles.iter().map(Vec::len).sum();
        let values = [
            counts.files,
            counts.lines,
            counts.test_lines,
            counts.long_files.len(),
            counts.long_functions.len(),
            counts.import_circles.len(),
            in_circles,
        ];
        sums.iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum += value);
        rows.push(row(&counts.name, values));
    }
    rows.push(row("all", sums));
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if index == 0 {
            text += &format!("|---|{}\n", "---:|".repeat(row.len() - 1));
        }
    }
    text += &format!(
        "\nType names: {}, of which {} are defined in two files or more.\n",
        counts.type_names,
        counts.shared_type_names.len()
    );
    text
}

fn row(name: &str, values: [usize; 7]) -> [String; 7] {
    let [
        files,
        lines,
        test_lines,
        long_files,
        long_functions,
        circles,
        in_circles,
    ] = values;
    [
        name.to_owned(),
        files.to_string(),
        lines.to_string(),
        test_lines.to_string(),
        long_files.to_string(),
        long_functions.to_string(),
        format!("{circles} ({in_circles})"),
    ]
}
