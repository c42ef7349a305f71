//! Matched, missing and unexpected keys of an import.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::source::CheckpointSource;
use crate::state::LoadReport;
use crate::tensors::TensorFile;

/// Names that a line lists before it says how many more there are.
const LISTED: usize = 6;

/// What an import did with every tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportReport {
    /// Who published it, in words.
    pub source: String,
    /// What wrote the file, in words.
    pub container: String,
    /// What stands in front of the backbone's names.
    pub prefix: String,
    /// Tensors in the file.
    pub tensors: usize,
    /// Parameters that were found with their shape.
    pub matched: Vec<String>,
    /// Of these, those that were resampled to another size.
    pub resampled: Vec<Change>,
    /// Parameters that the file lacks; they keep their initialization.
    pub missing: Vec<String>,
    /// Tensors that the network lacks.
    pub unexpected: Vec<String>,
    /// Parameters whose shapes differ; they keep their initialization.
    pub mismatched: Vec<Change>,
    /// What the file does not show and was taken from published networks, in words.
    pub assumed: Vec<String>,
    /// Tensors that are known not to belong to a backbone of this program, by reason.
    pub left_out: BTreeMap<&'static str, Vec<String>>,
}

/// A tensor of two shapes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Its shape in the file.
    pub from: Vec<usize>,
    /// Its shape in the network.
    pub to: Vec<usize>,
}

impl ImportReport {
    pub(super) fn new(source: CheckpointSource, file: &TensorFile, prefix: &str) -> Self {
        Self {
            source: source.describe().to_owned(),
            container: file.container().to_owned(),
            prefix: prefix.to_owned(),
            tensors: file.shapes().len(),
            matched: Vec::new(),
            resampled: Vec::new(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            mismatched: Vec::new(),
            assumed: Vec::new(),
            left_out: BTreeMap::new(),
        }
    }

    pub(super) fn leave_out(&mut self, reason: &'static str, name: String) {
        self.left_out.entry(reason).or_default().push(name);
    }

    pub(super) fn take(&mut self, load: LoadReport) {
        self.matched = load.matched;
        self.missing = load.missing;
        self.unexpected = load.unexpected;
        self.mismatched = load
            .reshaped
            .into_iter()
            .map(|(name, to, from)| Change { name, from, to })
            .collect();
    }

    /// Whether every key matched, but for those that are known not to belong to the backbone.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, {} tensors",
            self.source, self.container, self.tensors
        )?;
        if !self.prefix.is_empty() {
            write!(f, ", backbone under `{}`", self.prefix)?;
        }
        write!(f, ")")?;
        line(f, "matched", self.matched.len(), &[])?;
        let changes = |changes: &[Change]| -> Vec<String> {
            let change =
                |c: &Change| format!("{}: {:?} in the file, {:?} here", c.name, c.from, c.to);
            changes.iter().take(LISTED).map(change).collect()
        };
        line(
            f,
            "resampled",
            self.resampled.len(),
            &changes(&self.resampled),
        )?;
        all(f, "missing", &self.missing)?;
        all(f, "unexpected", &self.unexpected)?;
        // The shapes as the network has them come first: they are what is expected.
        let mismatched: Vec<String> = self
            .mismatched
            .iter()
            .take(LISTED)
            .map(|c| format!("{}: expected {:?}, found {:?}", c.name, c.to, c.from))
            .collect();
        line(f, "other shape", self.mismatched.len(), &mismatched)?;
        for assumed in &self.assumed {
            write!(f, "\n  {:<12}{:>6}  {assumed}", "assumed", "")?;
        }
        for (reason, names) in &self.left_out {
            write!(f, "\n  {:<12}{:>6}  {reason}", "left out", names.len())?;
            list(f, names.len(), names)?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, what: &str, count: usize, names: &[String]) -> fmt::Result {
    write!(f, "\n  {what:<12}{count:>6}")?;
    list(f, count, names)
}

/// A line with every name: what is missing or left over is to be looked up.
fn all(f: &mut fmt::Formatter<'_>, what: &str, names: &[String]) -> fmt::Result {
    write!(f, "\n  {what:<12}{:>6}", names.len())?;
    for (index, name) in names.iter().enumerate() {
        write!(f, "{}{name}", if index == 0 { "  " } else { ", " })?;
    }
    Ok(())
}

fn list(f: &mut fmt::Formatter<'_>, count: usize, names: &[String]) -> fmt::Result {
    for (index, name) in names.iter().take(LISTED).enumerate() {
        write!(f, "{}{name}", if index == 0 { "  " } else { ", " })?;
    }
    if !names.is_empty() && count > LISTED {
        write!(f, ", and {} more", count - LISTED)?;
    }
    Ok(())
}
