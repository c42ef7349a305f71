//! Kernels that compute several parameters in one launch, where the device has them ([`crate::gpu`]). Each
//! function here does what it can; without the feature `gpu` nothing.

#[cfg(feature = "gpu")]
pub use kernels::{add, apply, averages, squares};
#[cfg(not(feature = "gpu"))]
pub use none::{add, apply, averages, squares};

use burn::tensor::Tensor;

/// Sums of squares of gradients.
#[derive(Debug)]
pub struct SquareSums {
    /// Where they are: those of one gradient after those of another.
    pub tensors: Vec<Tensor<1>>,
    /// Sums of each gradient.
    pub parts: usize,
}

#[cfg(feature = "gpu")]
mod kernels {
    use std::collections::BTreeMap;

    use burn::{module::Module, tensor::Tensor};

    use super::SquareSums;
    use crate::{
        gpu::{self, AdamUpdate},
        named::{self, Gradients},
        optim::rules::{ParameterMoments, Update, Updated},
    };

    /// The squares of gradients.
    pub fn squares(gradients: &Gradients) -> Option<SquareSums> {
        gpu::supports_parameters(gradients.values()).then(|| SquareSums {
            tensors: gpu::square_sums(gradients.values().cloned().collect()),
            parts: gpu::PARTS,
        })
    }

    /// The parameters after a step, or the updates again.
    pub fn apply(updates: Vec<Update>) -> Result<Vec<Updated>, Vec<Update>> {
        if !gpu::supports_parameters(updates.iter().map(|update| &update.value)) {
            return Err(updates);
        }
        let kernel = |update: &Update| {
            let ParameterMoments { first, second, .. } = &update.moments;
            Some(AdamUpdate {
                state: [update.value.clone(), first.clone(), second.clone()?],
                gradient: update.gradient.clone(),
                scalars: update.formula.scalars()?,
            })
        };
        let kernels: Option<Vec<AdamUpdate>> = updates.iter().map(kernel).collect();
        let Some(kernels) = kernels else {
            return Err(updates);
        };
        let names: Vec<_> = { updates.into_iter() }
            .map(|update| (update.name, update.formula))
            .collect();
        let after = names.into_iter().zip(gpu::adam_steps(kernels));
        Ok(after
            .map(|((name, formula), [value, first, second])| {
                (name, value, formula.moments(first, Some(second)))
            })
            .collect())
    }

    /// Adds gradients to those of the same name; returns the others.
    pub fn add(sum: &mut Gradients, mut gradients: Gradients) -> Gradients {
        let both = |name: &String| sum.contains_key(name);
        let names: Vec<String> = gradients.keys().filter(|it| both(it)).cloned().collect();
        let tensors = { names.iter() }.flat_map(|name| [&sum[name], &gradients[name]]);
        if !gpu::supports_parameters(tensors) {
            return gradients;
        }
        let mut pairs = Vec::new();
        for name in &names {
            if let (Some(before), Some(gradient)) = (sum.remove(name), gradients.remove(name)) {
                assert_eq!(before.dims(), gradient.dims(), "gradients of `{name}`");
                pairs.push([before, gradient]);
            }
        }
        sum.extend(names.into_iter().zip(gpu::weighted_sums(pairs, [1.0; 2])));
        gradients
    }

    /// momentum·old + (1 − momentum)·new of the teacher's parameters that have a new value.
    pub fn averages<T: Module>(
        teacher: &T,
        news: &BTreeMap<String, Tensor<1>>,
        momentum: f64,
    ) -> BTreeMap<String, Tensor<1>> {
        let (mut names, mut pairs) = (Vec::new(), Vec::new());
        named::visit(teacher, &mut |name, _, old| {
            if let Some(new) = news.get(name) {
                assert_eq!(old.dims(), new.dims(), "`{name}`");
                pairs.push([old, new.clone()]);
                names.push(name.to_owned());
            }
        });
        if !gpu::supports_parameters(pairs.iter().flatten()) {
            return BTreeMap::new();
        }
        let weights = [momentum, 1.0 - momentum];
        { names.into_iter() }
            .zip(gpu::weighted_sums(pairs, weights))
            .collect()
    }
}

#[cfg(not(feature = "gpu"))]
mod none {
    use std::collections::BTreeMap;

    use burn::{module::Module, tensor::Tensor};

    use super::SquareSums;
    use crate::{
        named::Gradients,
        optim::rules::{Update, Updated},
    };

    pub fn squares(_: &Gradients) -> Option<SquareSums> {
        None
    }

    pub fn apply(updates: Vec<Update>) -> Result<Vec<Updated>, Vec<Update>> {
        Err(updates)
    }

    pub fn add(_: &mut Gradients, gradients: Gradients) -> Gradients {
        gradients
    }

    pub fn averages<T: Module>(
        _: &T,
        _: &BTreeMap<String, Tensor<1>>,
        _: f64,
    ) -> BTreeMap<String, Tensor<1>> {
        BTreeMap::new()
    }
}
