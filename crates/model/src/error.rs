//! What can go wrong when a model is described or its state is loaded.

use thiserror::Error;

/// Errors of this crate. Wrong shapes inside a forward pass are programmer errors and panic.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Prompt weights that cannot be read.
    #[error(
        "prompt weights `{text}`: {problem}\nhint: name one prompt (`identity`) or weights (`identity=0.8,part=0.1,attribute=0.1`)"
    )]
    PromptWeights {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A backbone that does not exist.
    #[error("backbone `{name}` is not known\nhint: one of {known}")]
    Backbone {
        /// What was given.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// A setting that cannot work.
    #[error("`{field}`: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A tensor whose shape does not fit the parameter of that name.
    #[error(
        "`{name}`: expected {expected:?}, found {found:?}\nhint: the checkpoint is of another architecture or of other head sizes"
    )]
    Shape {
        /// Parameter name.
        name: String,
        /// Shape of the model's parameter.
        expected: Vec<usize>,
        /// Shape of what was to be loaded.
        found: Vec<usize>,
    },
    /// Values that do not fill their shape.
    #[error("`{name}`: a tensor of shape {shape:?} needs {needed} values, found {found}")]
    Values {
        /// Parameter name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Product of the shape.
        needed: usize,
        /// Number of values given.
        found: usize,
    },
    /// A parameter or an optimizer state that is not there.
    #[error("`{name}` is missing\nhint: {hint}")]
    Missing {
        /// Name of what is missing.
        name: String,
        /// What to do.
        hint: &'static str,
    },
    /// A parameter of a backbone that none of its modules claims ([`crate::parameters`]).
    #[error(
        "`{name}`: the backbone gives this parameter no layer and no kind\nhint: claim it in the module that holds it"
    )]
    Unclaimed {
        /// Parameter name.
        name: String,
    },
    /// A name that no parameter has.
    #[error("`{name}` is not a parameter of this model")]
    Unexpected {
        /// The name.
        name: String,
    },
}
