//! Gradients by name: sums and means of replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::thread;

use burn::{
    backend::Flex,
    module::Module,
    tensor::{DType, Device, Gradients as BackwardGradients, Tensor, TensorData},
};
use rayon::prelude::*;

use super::{
    groups,
    host::{CHUNK, on_host},
};
use crate::{
    kernels::operation::{host, values},
    layers::cast_all,
    named::{self, Gradients},
};

/// Gradients of a module's trained parameters by name, flattened, outside autodiff, in f32. A parameter that
/// the loss did not reach has no entry.
pub fn gradients<M: Module>(module: &M, backward: &mut BackwardGradients) -> Gradients {
    // Some are of weights in the number format of products.
    let (mut gradients, others): (Gradients, Gradients) =
        { named::gradients(module, backward).into_iter() }
            .partition(|(_, gradient)| gradient.dtype() == DType::F32);
    let (names, others): (Vec<_>, Vec<_>) = others.into_iter().unzip();
    gradients.extend(names.into_iter().zip(cast_all(others, DType::F32)));
    gradients
}

/// Adds gradients to others: on the CPU in place where nothing else holds their memory, by all threads.
///
/// # Panics
/// When two of a name differ in size.
pub fn add(sum: &mut Gradients, gradients: Gradients) {
    for (name, gradient) in groups::add(sum, gradients) {
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

/// Names and sizes of a module's parameters, in the order of the names: the layout of a flat buffer
/// of gradients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlatLayout(BTreeMap<String, usize>);

impl FlatLayout {
    /// The parameters of `module`.
    pub fn of(module: &impl Module) -> Self {
        let mut sizes = BTreeMap::new();
        named::visit(module, &mut |name, shape, _| {
            sizes.insert(name.to_owned(), shape.iter().product());
        });
        Self(sizes)
    }

    /// The same parameters, each called `prefix` and its name.
    pub fn with_prefix(self, prefix: &str) -> Self {
        let named = |(name, size)| (format!("{prefix}{name}"), size);
        Self(self.0.into_iter().map(named).collect())
    }

    /// The parameters that are not called as one of `names`, and those that are.
    pub fn split(self, names: &BTreeSet<String>) -> [Self; 2] {
        let (named, others) = { self.0.into_iter() }.partition(|(name, _)| names.contains(name));
        [Self(others), Self(named)]
    }

    /// Gradients added up over several ranks by `all_reduce`, which replaces values by their
    /// sums. A parameter without a gradient on some ranks counts as zero there; one without on
    /// all of them stays without.
    ///
    /// # Errors
    ///
    /// Those of `all_reduce`.
    pub fn reduced<E>(
        &self,
        gradients: Gradients,
        device: &Device,
        all_reduce: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<Gradients, E> {
        let (mut values, present) = self.flatten(&gradients);
        drop(gradients);
        // Counts of ranks beside the gradients: one exchange, in which they stay above zero in
        // any format.
        values.extend(present.into_iter().map(|it| f32::from(u8::from(it))));
        all_reduce(&mut values)?;
        let (flat, counts) = values.split_at(values.len() - self.0.len());
        let present: Vec<bool> = counts.iter().map(|count| *count > 0.0).collect();
        Ok(self.unflatten(flat, &present, device))
    }

    /// Gradients added up over several ranks as by [`Self::reduced`], in two parts: those of the parameters
    /// of the first layout, while `second` computes those of the second.
    ///
    /// # Errors
    ///
    /// Those of `all_reduce`.
    pub fn reduced_during<E: Send>(
        [of_first, of_second]: &[Self; 2],
        first: Gradients,
        second: impl FnOnce() -> Gradients,
        device: &Device,
        all_reduce: impl Fn(&mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<Gradients, E> {
        let (first, second) = thread::scope(|scope| {
            let exchange = scope.spawn(|| of_first.reduced(first, device, &all_reduce));
            let second = second();
            let first = exchange.join();
            (first.unwrap_or_else(|panic| resume_unwind(panic)), second)
        });
        let mut sum = first?;
        sum.extend(of_second.reduced(second, device, &all_reduce)?);
        Ok(sum)
    }

    /// The values of all gradients one after the other, with zeros for a parameter that has none,
    /// and for each parameter whether it has one.
    ///
    /// # Panics
    /// When there is a gradient of another parameter, which would be lost.
    fn flatten(&self, gradients: &Gradients) -> (Vec<f32>, Vec<bool>) {
        if let Some(name) = gradients.keys().find(|name| !self.0.contains_key(*name)) {
            panic!("`{name}` is not in the flat buffer");
        }
        let mut flat = Vec::with_capacity(self.0.values().sum());
        let mut present = Vec::with_capacity(self.0.len());
        for (name, size) in &self.0 {
            let end = flat.len() + size;
            let gradient = gradients.get(name);
            present.push(gradient.is_some());
            match gradient {
                Some(gradient) if on_host(gradient) => {
                    flat.extend_from_slice(values(&host(gradient.clone())));
                }
                Some(gradient) => flat.extend(gradient.to_data().iter::<f32>()),
                None => {}
            }
            flat.resize(end, 0.0);
        }
        (flat, present)
    }

    /// The gradients of the parameters that are `present`, from the values of [`Self::flatten`].
    ///
    /// # Panics
    /// When the numbers of values are not those of the layout.
    fn unflatten(&self, flat: &[f32], present: &[bool], device: &Device) -> Gradients {
        let size: usize = self.0.values().sum();
        assert_eq!(
            (flat.len(), present.len()),
            (size, self.0.len()),
            "values and parameters of a flat buffer"
        );
        let mut rest = flat;
        let mut gradients = Gradients::new();
        for ((name, size), present) in self.0.iter().zip(present) {
            let (values, others) = rest.split_at(*size);
            rest = others;
            if *present {
                let values = TensorData::new(values.to_vec(), [*size]);
                gradients.insert(name.clone(), Tensor::from_data(values, device));
            }
        }
        gradients
    }
}
