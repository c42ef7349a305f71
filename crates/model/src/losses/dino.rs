//! DINO's loss (Caron et al. 2021, arXiv 2104.14294): a student's views predict a teacher's views
//! of the same image.
//!
//! ```text
//! q_t = softmax((z_t − c) / τ_teacher),   p_s = softmax(z_s / τ_student)
//! L = −1/pairs · Σ_t Σ_{s ≠ t} mean over images of Σ_k q_t,k ln p_s,k
//! c ← 0.9 c + 0.1 · mean of z over the teacher's views
//! ```

use std::convert::Infallible;

use burn::tensor::{
    Tensor,
    activation::{log_softmax, softmax},
};

/// Temperatures of the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperatures {
    /// Of the student: 0.1 in DINO.
    pub student: f64,
    /// Of the teacher: 0.04 in DINO.
    pub teacher: f64,
}

impl Default for Temperatures {
    fn default() -> Self {
        Self {
            student: 0.1,
            teacher: 0.04,
        }
    }
}

/// The teacher's targets with centering: q of each view of [batch, prototypes] logits, without
/// gradient.
///
/// # Shapes
/// - teacher: logits of the global views, [batch, prototypes] each
/// - center: [1, prototypes]
pub fn centered_targets(
    teacher: &[Tensor<2>],
    center: &Tensor<2>,
    temperature: f64,
) -> Vec<Tensor<2>> {
    let target = |logits: &Tensor<2>| {
        let scaled = (logits.clone() - center.clone()).div_scalar(temperature);
        softmax(scaled.detach(), 1)
    };
    teacher.iter().map(target).collect()
}

/// Totals over all samples of a step, some of which may be in other processes.
pub trait SampleTotals {
    /// Why a total is not known.
    type Error;

    /// Number of samples, of which `own` are here.
    ///
    /// # Errors
    /// The other processes are not reached.
    fn samples(&self, own: usize) -> Result<usize, Self::Error>;

    /// The largest value, [1, 1], of which `own` is that of the samples here.
    ///
    /// # Errors
    /// The other processes are not reached.
    fn largest(&self, own: Tensor<2>) -> Result<Tensor<2>, Self::Error>;

    /// A sum over samples, [1, prototypes], of which `own` is that of the samples here.
    ///
    /// # Errors
    /// The other processes are not reached.
    fn sum(&self, own: Tensor<2>) -> Result<Tensor<2>, Self::Error>;
}

/// All samples of the step are in this process.
#[derive(Clone, Copy, Debug)]
pub struct AllHere;

impl SampleTotals for AllHere {
    type Error = Infallible;

    fn samples(&self, own: usize) -> Result<usize, Infallible> {
        Ok(own)
    }

    fn largest(&self, own: Tensor<2>) -> Result<Tensor<2>, Infallible> {
        Ok(own)
    }

    fn sum(&self, own: Tensor<2>) -> Result<Tensor<2>, Infallible> {
        Ok(own)
    }
}

/// The teacher's targets by Sinkhorn–Knopp (Cuturi 2013), as in SwAV (Caron et al. 2020) and
/// DINOv2: exp(z/τ) scaled in turn so that every prototype has an equal share of the samples and
/// every sample sums to 1. No center is needed.
///
/// With more prototypes than samples an equal share is less than a sample, and each target spreads
/// over at least prototypes/samples of them.
///
/// # Shapes
/// - logits: [samples, prototypes], of all samples of a step
/// - returns [samples, prototypes]; rows sum to 1
pub fn sinkhorn_knopp(logits: Tensor<2>, temperature: f64, iterations: usize) -> Tensor<2> {
    match sinkhorn_knopp_of(
        Some(logits.clone()),
        &logits,
        temperature,
        iterations,
        &AllHere,
    ) {
        Ok(targets) => targets.unwrap_or(logits),
        Err(never) => match never {},
    }
}

/// The same for samples of which only some are in this process, or none: `totals` knows those over
/// all of them. Every process must call it.
///
/// # Shapes
/// - logits: [own samples, prototypes]; none without an own sample
/// - like: [any, prototypes], for the number of prototypes and the device
/// - returns [own samples, prototypes]; none without an own sample
///
/// # Errors
/// A total is not known.
pub fn sinkhorn_knopp_of<T: SampleTotals>(
    logits: Option<Tensor<2>>,
    like: &Tensor<2>,
    temperature: f64,
    iterations: usize,
    totals: &T,
) -> Result<Option<Tensor<2>>, T::Error> {
    let prototypes = like.dims()[1];
    let own = logits.as_ref().map_or(0, |logits| logits.dims()[0]);
    let samples = totals.samples(own)?;
    // Without an own sample: one that adds exp(−∞) = 0 to every sum.
    let rows =
        logits.unwrap_or_else(|| Tensor::full([1, prototypes], f32::NEG_INFINITY, &like.device()));
    let scaled = rows.detach().div_scalar(temperature);
    let largest = totals.largest(scaled.clone().max().reshape([1, 1]))?;
    let mut q = (scaled - largest).exp();
    for _ in 0..iterations {
        let sum = totals.sum(q.clone().sum_dim(0))?;
        let share = sum.clamp_min(1e-30) * (prototypes as f64 / samples.max(1) as f64);
        q = q / share;
        let row = q.clone().sum_dim(1).clamp_min(1e-30);
        q = q / row;
    }
    Ok((own > 0).then_some(q))
}

/// Mean entropy over all rows of distributions: `[1]`. 0 ln 0 counts as 0.
///
/// # Panics
/// Without a tensor.
pub fn mean_entropy(distributions: &[Tensor<2>]) -> Tensor<1> {
    let entropies: Vec<Tensor<1>> = distributions
        .iter()
        .map(|q| {
            let log = q.clone().clamp_min(1e-30).log();
            (q.clone() * log).sum_dim(1).mean().neg()
        })
        .collect();
    assert!(!entropies.is_empty(), "the entropy of no distribution");
    Tensor::cat(entropies, 0).mean()
}

/// The loss over all pairs of a teacher's view and another student's view, from all logits at once,
/// as the golden files have it: `[1]`.
///
/// # Shapes
/// - student: as [`dino_loss_of`] takes it
/// - teacher: the global views, [batch, prototypes] each
/// - center: [1, prototypes]
pub fn dino_loss(
    student: &[Tensor<2>],
    teacher: &[Tensor<2>],
    center: Tensor<2>,
    temperatures: &Temperatures,
) -> Tensor<1> {
    let targets = centered_targets(teacher, &center, temperatures.teacher);
    dino_loss_of(student, &targets, temperatures)
}

/// The same, given the teacher's targets.
///
/// # Shapes
/// - student: first the global views, [batch, prototypes] each, in the teacher's order; then local
///   views, [n · batch, prototypes] each, where one entry may hold any number n of views one after
///   another (no slicing of the largest tensor of the step)
/// - targets: [batch, prototypes] of each global view, from [`centered_targets`] or
///   [`sinkhorn_knopp`]
pub fn dino_loss_of(
    student: &[Tensor<2>],
    targets: &[Tensor<2>],
    temperatures: &Temperatures,
) -> Tensor<1> {
    let globals = targets.len();
    assert!(globals > 0, "dino_loss needs a view of the teacher");
    assert!(
        student.len() >= globals,
        "{} student views for {globals} teacher views",
        student.len()
    );
    let [batch, prototypes] = targets[0].dims();

    let mut total: Option<Tensor<1>> = None;
    let mut pairs = 0;
    for (index, logits) in student.iter().enumerate() {
        // A student's view is multiplied with the sum of the teacher's other views: one product for
        // all its pairs.
        let others = targets
            .iter()
            .enumerate()
            .filter(|(t, _)| *t != index)
            .map(|(_, q)| q.clone());
        let Some(target) = others.reduce(|sum, q| sum + q) else {
            continue;
        };
        let rows = logits.dims()[0];
        assert_eq!(
            rows % batch,
            0,
            "{rows} rows of student logits, batch of {batch}"
        );
        let views = rows / batch;
        assert!(
            index >= globals || views == 1,
            "global view {index} holds {views} views"
        );
        pairs += views * (globals - usize::from(index < globals));
        let log_p = log_softmax(logits.clone().div_scalar(temperatures.student), 1)
            .reshape([views, batch, prototypes]);
        let term = (log_p * target.unsqueeze::<3>()).sum();
        total = Some(match total {
            None => term,
            Some(sum) => sum + term,
        });
    }
    match total {
        Some(total) => total.div_scalar(-((pairs * batch) as f64)),
        // One view of each: there is no other view to predict.
        None => Tensor::zeros([1], &student[0].device()),
    }
}

/// Mean of the teacher's logits over its views and images: [1, prototypes]. Of equal replicas the
/// mean of this is the mean over the whole batch.
pub fn teacher_mean(teacher: &[Tensor<2>]) -> Tensor<2> {
    assert!(!teacher.is_empty(), "teacher_mean needs a view");
    let sum = teacher
        .iter()
        .map(|logits| logits.clone().detach().mean_dim(0))
        .reduce(|sum, mean| sum + mean);
    match sum {
        Some(sum) => sum.div_scalar(teacher.len() as f64),
        None => teacher[0].clone(),
    }
}

/// c ← momentum·c + (1 − momentum)·mean. Both [1, prototypes].
pub fn center_update(center: Tensor<2>, mean: Tensor<2>, momentum: f64) -> Tensor<2> {
    center.mul_scalar(momentum) + mean.mul_scalar(1.0 - momentum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn logits(rows: usize, offset: f32, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = (0..rows * 5)
            .map(|i| ((i as f32 * 1.7 + offset).sin() * 2.0) / 5.0)
            .collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape([rows, 5])
    }

    #[test]
    fn stacked_local_views_are_the_same_as_separate_ones() {
        let device = Device::flex();
        let teacher = [logits(3, 0.0, &device), logits(3, 1.0, &device)];
        let globals = [logits(3, 2.0, &device), logits(3, 3.0, &device)];
        let locals = [logits(3, 4.0, &device), logits(3, 5.0, &device)];
        let center = logits(1, 6.0, &device);
        let temperatures = Temperatures::default();
        let separate: Vec<_> = globals.iter().chain(&locals).cloned().collect();
        let mut stacked = globals.to_vec();
        stacked.push(Tensor::cat(locals.to_vec(), 0));
        let [one, other]: [f32; 2] = [separate, stacked].map(|student| {
            dino_loss(&student, &teacher, center.clone(), &temperatures).into_scalar()
        });
        assert!((one - other).abs() < 1e-6, "{one} {other}");
    }

    #[test]
    fn a_uniform_student_loses_ln_k() {
        let device = Device::flex();
        let teacher = [logits(2, 0.0, &device), logits(2, 1.0, &device)];
        let student = [
            Tensor::zeros([2, 5], &device),
            Tensor::zeros([2, 5], &device),
        ];
        let center = Tensor::zeros([1, 5], &device);
        let loss: f32 =
            dino_loss(&student, &teacher, center, &Temperatures::default()).into_scalar();
        assert!((loss - 5.0f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn sinkhorn_gives_prototypes_equal_shares_and_samples_a_distribution() {
        let device = Device::flex();
        // Without it, every sample would choose the first prototype.
        let z = Tensor::<2>::from_data([[0.9, 0.1], [0.8, 0.2], [0.7, 0.0], [0.9, 0.5]], &device);
        let q = sinkhorn_knopp(z.clone(), 0.1, 50);
        let rows: Vec<f32> = q.clone().sum_dim(1).try_into_vec_as().unwrap();
        let shares: Vec<f32> = q.clone().mean_dim(0).try_into_vec_as().unwrap();
        assert!(rows.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{rows:?}");
        assert!(shares.iter().all(|s| (s - 0.5).abs() < 1e-3), "{shares:?}");
        // By hand, one iteration: columns e^0, e^-1, e^-2, e^0 and e^-8, e^-7, e^-9, e^-4, each
        // over its mean, rows to 1.
        let once: Vec<f32> = sinkhorn_knopp(z, 0.1, 1).try_into_vec_as().unwrap();
        let columns = [[0.0_f64, -1.0, -2.0, 0.0], [-8.0, -7.0, -9.0, -4.0]];
        let sums = columns.map(|column| column.iter().map(|v| v.exp()).sum::<f64>());
        for (row, found) in once.chunks(2).enumerate() {
            let [a, b] = [0, 1].map(|c| columns[c][row].exp() / sums[c]);
            assert!((f64::from(found[0]) - a / (a + b)).abs() < 1e-5, "{once:?}");
        }
    }

    #[test]
    fn no_gradient_reaches_the_teacher() {
        let device = Device::flex().autodiff();
        let teacher = [0.0, 1.0].map(|o| logits(2, o, &device).require_grad());
        let student = [2.0, 3.0].map(|o| logits(2, o, &device).require_grad());
        let center = Tensor::zeros([1, 5], &device);
        let grads = dino_loss(&student, &teacher, center, &Temperatures::default()).backward();
        assert!(teacher[0].grad(&grads).is_none());
        assert!(student[0].grad(&grads).is_some());
    }
}
