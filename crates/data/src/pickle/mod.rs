//! Python pickles, as data only.
//!
//! A pickle is a program for a stack machine. [`machine`] runs the part of it that builds numbers,
//! texts, lists and dictionaries; what a call gives is up to a [`Library`], of which there are two:
//! NumPy's arrays ([`Pickle`], here) and PyTorch's tensors (in `clasp-weights`). A call of anything
//! else gives a value that says nothing, and nothing is ever imported or executed. The opcodes are
//! those of Python's `pickletools`, protocols 0 to 5.
//!
//! | file | holds |
//! |---|---|
//! | [`machine`] | the stack machine and its limits |
//! | `input` | where its bytes come from: memory or a stream |
//! | `node` | its values |
//! | `stack` | its stack |
//! | `numpy` | plain values and NumPy's arrays |

mod input;
pub mod machine;
mod node;
mod numpy;
mod stack;

pub use input::{BytesInput, Input, StreamInput};
pub use machine::{Library, Made};
pub use node::{Id, Node, Result};
pub use numpy::{Pickle, PickleValue};

#[cfg(test)]
mod tests;
