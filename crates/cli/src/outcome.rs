//! How a command ended.

/// How a command ended that did not fail.
pub enum Outcome {
    /// It finished.
    Done,
    /// It finished, and a check failed.
    CheckFailed,
    /// A signal stopped it; finished work is saved.
    Stopped,
}
