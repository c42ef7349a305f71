//! Images that cannot be used, and how many of them a run tolerates.

use serde::{Deserialize, Serialize};

use super::error::SourceError;
use crate::image::ImageError;

/// Why an image could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is wrong, in words.
    pub reason: String,
    /// Whether the bytes of the image are at fault, so that it fails again. Otherwise they could not
    /// be read (a share that is away, too many open files), which passes.
    pub damaged: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self {
            reason: error.to_string(),
            damaged: false,
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self {
            reason: error.to_string(),
            damaged: true,
        }
    }
}

/// Images that were tried and those that could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Images tried, good and bad.
    pub seen: u64,
    /// Key of, and reason for, each that could not be used.
    pub failed: Vec<(String, String)>,
}

/// More images than 5 % cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{failed} of {seen} images cannot be read, more than 5 %; the first: `{key}`: {reason}\n\
     hint: --keep-going uses the others"
)]
pub struct TooManyUnreadable {
    /// How many failed.
    pub failed: u64,
    /// How many were tried.
    pub seen: u64,
    /// Key of the first that failed.
    pub key: String,
    /// Why it failed.
    pub reason: String,
}

impl Unreadable {
    /// Counts an image that could be used.
    pub fn ok(&mut self) {
        self.seen += 1;
    }

    /// Counts an image that could not, and remembers why.
    pub fn fail(&mut self, key: impl Into<String>, reason: impl ToString) {
        self.seen += 1;
        self.failed.push((key.into(), reason.to_string()));
    }

    /// Adds the counts of another part of the work.
    pub fn merge(&mut self, other: Unreadable) {
        self.seen += other.seen;
        self.failed.extend(other.failed);
    }

    /// The rule for finished work: at most 5 % may fail.
    ///
    /// # Errors
    /// If more did.
    pub fn check(&self) -> Result<(), TooManyUnreadable> {
        let failed = self.failed.len() as u64;
        match self.failed.first() {
            Some((key, reason)) if 20 * failed > self.seen => Err(TooManyUnreadable {
                failed,
                seen: self.seen,
                key: key.clone(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The rule for work that goes on: the same once 1000 images were seen, so that hours are not
    /// spent on a broken copy, nor work stopped by the first bad file.
    ///
    /// # Errors
    /// If more failed.
    pub fn check_early(&self) -> Result<(), TooManyUnreadable> {
        if self.seen < 1000 {
            return Ok(());
        }
        self.check()
    }
}
