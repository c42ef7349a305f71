//! The optimizer.

use std::collections::BTreeMap;

use burn::module::Module;

use super::{
    groups,
    norms::Norms,
    rules::{Formula, OptimizerConfig, ParameterMoments, Rates, Rule, Update, Updated},
};
use crate::named::{self, Gradients};

/// Whether weight decay acts on a parameter of a head or of CLIP: not on vectors, which are biases
/// and norms (timm's `param_groups_weight_decay`). A backbone says so of each of its parameters
/// itself ([`crate::parameters::ParameterKind::decays`]).
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias")
}

/// An optimizer with its state.
#[derive(Debug, Clone)]
pub struct Optimizer {
    pub(super) config: OptimizerConfig,
    pub(super) moments: BTreeMap<String, ParameterMoments>,
}

impl Optimizer {
    /// Without state.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            moments: BTreeMap::new(),
        }
    }

    /// One step: the module, whose parameters are called `prefix` and their name, with new values.
    /// A parameter without a gradient, or without `rates`, keeps its value and its state. Gradients
    /// that were used are removed from `gradients`; `norms` are the norms of all of them.
    ///
    /// # Panics
    /// When a gradient's size is not its parameter's.
    pub fn step<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        gradients: &mut Gradients,
        norms: &Norms,
        rates: &dyn Fn(&str, &[usize]) -> Option<Rates>,
    ) -> M {
        let factors = norms.factors(self.config.clip);
        let mut updates = Vec::new();
        named::visit(&module, &mut |name, shape, value| {
            let name = format!("{prefix}{name}");
            let Some(gradient) = gradients.remove(&name) else {
                return;
            };
            let Some(rates) = rates(&name, shape) else {
                return;
            };
            assert_eq!(gradient.dims(), value.dims(), "gradient of `{name}`");
            let moments = self
                .moments
                .remove(&name)
                .unwrap_or_else(|| ParameterMoments {
                    steps: 0,
                    first: value.zeros_like(),
                    second: (self.config.rule != Rule::Sgd).then(|| value.zeros_like()),
                });
            updates.push(Update {
                formula: Formula::new(&self.config, rates, factors(&name), moments.steps + 1),
                name,
                value,
                gradient,
                moments,
            });
        });
        let mut news = BTreeMap::new();
        for (name, value, moments) in apply(updates) {
            self.moments.insert(name.clone(), moments);
            news.insert(name, value);
        }
        named::map(module, &mut |name, _, value| {
            news.remove(&format!("{prefix}{name}")).unwrap_or(value)
        })
    }
}

/// The parameters after a step.
pub(super) fn apply(updates: Vec<Update>) -> Vec<Updated> {
    groups::apply(updates)
        .unwrap_or_else(|updates| updates.into_iter().map(Update::apply).collect())
}
