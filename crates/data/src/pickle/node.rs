//! Values of a pickle.

use std::borrow::Cow;

/// What is wrong, in words.
pub type Result<T> = std::result::Result<T, String>;

/// A value's number in the arena: values refer to one another by it, so that a memo or a cycle
/// costs nothing and is dropped without recursion.
pub type Id = usize;

/// A value. `O` is what only the pickles of a library have.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a, O> {
    /// `None`, a number of more than 64 bits, or an object that is not known.
    Other,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes; the texts of Python 2 are bytes too.
    Bytes(Cow<'a, [u8]>),
    /// A list, a tuple or a set.
    List(Vec<Id>),
    /// A dictionary, or an object with entries; of a key that is set twice the last counts.
    Dict(Vec<(Id, Id)>),
    /// A class or a function, by module and name.
    Global(String),
    /// A value of the library.
    Object(O),
}

impl<O> Node<'_, O> {
    /// A text, or bytes that are one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// A number; 1 for `True`.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Bool(value) => Some(f64::from(u8::from(*value))),
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }
}
