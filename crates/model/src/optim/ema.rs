//! The teacher's moving average.

use std::collections::BTreeMap;

use burn::{backend::Flex, module::Module, tensor::Tensor};
use rayon::prelude::*;

use super::{
    groups,
    host::{CHUNK, on_host},
};
use crate::{
    kernels::operation::{host, values},
    named,
};

/// The teacher's moving average: teacher ← momentum·teacher + (1 − momentum)·student, by name; on the
/// CPU in the teacher's memory where nothing else holds it.
///
/// # Panics
/// When the student lacks a parameter of the teacher.
pub fn ema<T: Module, S: Module>(teacher: T, student: &S, momentum: f64) -> T {
    let mut news = BTreeMap::new();
    named::visit(student, &mut |name, _, value| {
        news.insert(name.to_string(), value);
    });
    let mut averages = groups::averages(&teacher, &news, momentum);
    named::map(teacher, &mut |name, _, old| {
        if let Some(average) = averages.remove(name) {
            return average;
        }
        let Some(new) = news.remove(name) else {
            panic!("the student has no `{name}`");
        };
        if !on_host(&old) {
            return old * momentum + new * (1.0 - momentum);
        }
        let (keep, take) = (momentum as f32, (1.0 - momentum) as f32);
        let (mut old, new) = (host(old), host(new));
        { old.storage_mut::<f32>().par_iter_mut() }
            .zip(values(&new))
            .with_min_len(CHUNK)
            .for_each(|(old, new)| *old = keep * *old + take * new);
        Tensor::from_primitive::<Flex>(old)
    })
}
