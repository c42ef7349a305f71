//! `[distillation]` of a recipe: features of a frozen teacher as targets.

use std::path::PathBuf;

use clasp_run::recipe::Auto;
use clasp_run::{InvalidValue, check};
use serde::{Deserialize, Serialize};

use super::ranges::LOSS_WEIGHT;

/// Longest side of the teacher's input, as of views.
const LONGEST: usize = 4096;

/// `[distillation]`: see [`mod@crate::distillation`]. The teacher of `[teacher]` is another, the
/// moving average of the student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillationSection {
    /// Backbone file, or any checkpoint that `clasp import` reads, whose features are learned. It
    /// is not trained. Empty: none.
    pub teacher: PathBuf,
    /// Weight of the loss on pooled features. Auto: 1 with a teacher, 0 without.
    pub pooled: Auto<f64>,
    /// Weight of the loss on the features of every patch position.
    pub dense: f64,
    /// Size of the teacher's input, `[height, width]`; views of another size are resized. Auto: the
    /// teacher's own. Without a teacher it has no effect.
    pub size: Auto<[usize; 2]>,
}

impl Default for DistillationSection {
    fn default() -> Self {
        Self {
            teacher: PathBuf::new(),
            pooled: Auto::Auto,
            dense: 0.0,
            size: Auto::Auto,
        }
    }
}

impl DistillationSection {
    /// Whether there is a teacher.
    pub(crate) fn is_on(&self) -> bool {
        !self.teacher.as_os_str().is_empty()
    }

    /// Weight of the loss on pooled features.
    pub(crate) fn pooled_weight(&self) -> f64 {
        match self.pooled {
            Auto::Value(weight) => weight,
            Auto::Auto if self.is_on() => 1.0,
            Auto::Auto => 0.0,
        }
    }

    /// The size of the teacher's input; none if it is the teacher's own.
    pub(crate) fn input_size(&self) -> Option<[usize; 2]> {
        match self.size {
            Auto::Value(size) => Some(size),
            Auto::Auto => None,
        }
    }

    /// Checks the values and resolves what follows from the recipe. An automatic size is that of
    /// the teacher, which a recipe does not know; without a teacher it is that of the global
    /// `views`.
    ///
    /// # Errors
    ///
    /// A value is out of range, a loss has no teacher, or a teacher no loss.
    pub(crate) fn resolve(&mut self, views: [usize; 2]) -> Result<(), InvalidValue> {
        let pooled = self.pooled_weight();
        self.pooled = Auto::Value(pooled);
        let weights = [
            ("distillation.pooled", pooled),
            ("distillation.dense", self.dense),
        ];
        check::within(&weights, LOSS_WEIGHT)?;
        if let Some(size) = self.input_size()
            && !size.iter().all(|side| (1..=LONGEST).contains(side))
        {
            let expected = format!("height and width of 1 to {LONGEST} pixels");
            let found = format!("{size:?}");
            return Err(InvalidValue::new("distillation.size", expected, found));
        }
        if self.is_on() {
            return match weights.iter().any(|(_, weight)| *weight > 0.0) {
                true => Ok(()),
                false => {
                    let expected = "a weight above 0, or one of `distillation.dense`, with \
                                    `distillation.teacher`";
                    Err(InvalidValue::new("distillation.pooled", expected, pooled))
                }
            };
        }
        if let Some((key, weight)) = weights.into_iter().find(|(_, weight)| *weight > 0.0) {
            let expected = "0 without `distillation.teacher`, the file to learn from";
            return Err(InvalidValue::new(key, expected, weight));
        }
        self.size.resolve(views);
        Ok(())
    }
}
