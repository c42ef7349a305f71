//! Gradients by name: sums and means of replicas.

use std::collections::BTreeMap;

use burn::{
    backend::Flex,
    tensor::{Device, Tensor},
};
use rayon::prelude::*;

use crate::kernels::operation::{host, values};

/// Gradients by parameter name, flattened, outside autodiff.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Values per task of a parallel pass. Partial sums are added in the order of the chunks, so that a
/// norm does not depend on the number of threads.
pub(super) const CHUNK: usize = 1 << 15;

/// Adds gradients to others: in place where nothing else holds their memory, by all threads.
///
/// # Panics
/// When two of a name differ in size.
pub fn add(sum: &mut Gradients, gradients: Gradients) {
    for (name, gradient) in gradients {
        let Some(before) = sum.remove(&name) else {
            sum.insert(name, gradient);
            continue;
        };
        assert_eq!(before.dims(), gradient.dims(), "gradients of `{name}`");
        let total = if on_host(&before) {
            let (mut before, gradient) = (host(before), host(gradient));
            { before.storage_mut::<f32>().par_chunks_mut(CHUNK) }
                .zip(values(&gradient).par_chunks(CHUNK))
                .for_each(|(before, gradient)| {
                    before
                        .iter_mut()
                        .zip(gradient)
                        .for_each(|(sum, g)| *sum += g);
                });
            Tensor::from_primitive::<Flex>(before)
        } else {
            before + gradient
        };
        sum.insert(name, total);
    }
}

/// Mean of the replicas' gradients. A parameter without a gradient in a replica counts as zero
/// there.
///
/// # Panics
/// Without replicas.
pub fn average(replicas: Vec<Gradients>) -> Gradients {
    let count = replicas.len();
    assert!(count > 0, "no replicas to average");
    let mut sum = Gradients::new();
    for replica in replicas {
        add(&mut sum, replica);
    }
    if count == 1 {
        return sum;
    }
    sum.into_iter()
        .map(|(name, gradient)| (name, gradient.div_scalar(count as f64)))
        .collect()
}

/// Whether the tensor's memory is the host's.
pub(super) fn on_host(tensor: &Tensor<1>) -> bool {
    tensor.device() == Device::flex()
}
