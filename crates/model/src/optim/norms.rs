//! Norms of gradients and their limits.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, Transaction};
use rayon::prelude::*;

use super::{
    groups::{self, SquareSums},
    host::{CHUNK, on_host},
    rules::GradientClip,
};
use crate::{
    kernels::{
        operation::{host, values},
        scalar::{dot, vectorized},
    },
    named::Gradients,
};

/// Norms of gradients by name.
#[derive(Debug, Clone, Default)]
pub struct Norms(BTreeMap<String, f64>);

impl Norms {
    /// Waits for the device.
    pub fn of(gradients: &Gradients) -> Self {
        let mut squares = Squares::of(gradients);
        let values = read(squares.take());
        squares.norms(&values)
    }

    /// Norm of all gradients together.
    pub fn total(&self) -> f64 {
        self.total_of(|_| true)
    }

    /// Norm of the gradients whose names `of` accepts together.
    pub fn total_of(&self, of: impl Fn(&str) -> bool) -> f64 {
        let norms = self.0.iter().filter(|(name, _)| of(name));
        norms.map(|(_, norm)| norm * norm).sum::<f64>().sqrt()
    }

    /// The factor by which clipping scales the gradient of a name.
    pub(super) fn factors(&self, clip: GradientClip) -> impl Fn(&str) -> f64 + '_ {
        let factor = |norm: f64, limit: f64| (limit / (norm + 1e-6)).min(1.0);
        let whole = match clip {
            GradientClip::Global(limit) => factor(self.total(), limit),
            GradientClip::None | GradientClip::PerTensor(_) => 1.0,
        };
        move |name| match (clip, self.0.get(name)) {
            (GradientClip::PerTensor(limit), Some(norm)) => factor(*norm, limit),
            _ => whole,
        }
    }
}

/// Σ g² of gradients, where these are, to be read together with other numbers.
#[derive(Debug)]
pub struct Squares {
    names: Vec<String>,
    sums: SquareSums,
}

impl Squares {
    /// Of these gradients.
    pub fn of(gradients: &Gradients) -> Self {
        let square = |gradient: &Tensor<1>| {
            if on_host(gradient) {
                let sum = square_sum(values(&host(gradient.clone())));
                Tensor::from_floats([sum as f32], &gradient.device())
            } else {
                gradient.clone().square().sum()
            }
        };
        Self {
            names: gradients.keys().cloned().collect(),
            sums: groups::squares(gradients).unwrap_or_else(|| SquareSums {
                tensors: gradients.values().map(square).collect(),
                parts: 1,
            }),
        }
    }

    /// The tensors to [`read`].
    pub fn take(&mut self) -> Vec<Tensor<1>> {
        std::mem::take(&mut self.sums.tensors)
    }

    /// The norms, from the values of those tensors.
    ///
    /// # Panics
    /// When there are fewer values.
    pub fn norms(self, values: &[Vec<f64>]) -> Norms {
        let values = values.concat();
        let sums = values
            .chunks(self.sums.parts)
            .map(|parts| parts.iter().sum());
        let sums: Vec<f64> = sums.take(self.names.len()).collect();
        assert_eq!(sums.len(), self.names.len(), "squares of the gradients");
        let norms = sums.into_iter().map(f64::sqrt);
        Norms(self.names.into_iter().zip(norms).collect())
    }
}

/// The values of each tensor, with one synchronization: reading them one by one would wait for each.
pub fn read(tensors: Vec<Tensor<1>>) -> Vec<Vec<f64>> {
    let reads = tensors
        .into_iter()
        .fold(Transaction::default(), |reads, tensor| {
            reads.register(tensor.without_autodiff())
        });
    { reads.execute().into_iter() }
        .map(|data| data.iter::<f64>().collect())
        .collect()
}

fn square_sum(values: &[f32]) -> f64 {
    let sums: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut sum = 0.0;
            square_sums(chunk, &mut sum);
            sum
        })
        .collect();
    sums.into_iter().sum()
}

vectorized! {
    /// sum += Σ values², in f64 over short stretches in f32.
    fn square_sums<'a>(values: &'a [f32], sum: &'a mut f64) {
        for stretch in values.chunks(256) {
            *sum += f64::from(dot(stretch, stretch));
        }
    }
}
