//! DINO's loss (Caron et al. 2021, arXiv 2104.14294): a student's views predict a teacher's views of the
//! same image.
//!
//! ```text
//! q_t = softmax((z_t − c) / τ_teacher),   p_s = softmax(z_s / τ_student)
//! L = −1/pairs · Σ_t Σ_{s ≠ t} mean over images of Σ_k q_t,k ln p_s,k
//! c ← 0.9 c + 0.1 · mean of z over the teacher's views
//! ```

use burn::tensor::{Tensor, activation::log_softmax};

/// What logits are divided by before the softmax.
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

/// What a teacher says of its views, without gradient.
#[derive(Debug, Clone)]
pub struct Answers {
    /// q of each global view: [batch, prototypes] each.
    pub probabilities: Vec<Tensor<2>>,
    /// Mean entropy over views and images: [1].
    pub entropy: Tensor<1>,
}

impl Answers {
    /// # Shapes
    /// - teacher: logits of the global views, [batch, prototypes] each
    /// - centre: [1, prototypes]
    ///
    /// # Panics
    /// Without a view.
    pub fn new(teacher: &[Tensor<2>], centre: &Tensor<2>, temperatures: &Temperatures) -> Self {
        let answer = |logits: &Tensor<2>| {
            let scaled = (logits.clone() - centre.clone()).div_scalar(temperatures.teacher);
            let log_q = log_softmax(scaled.detach(), 1);
            let q = log_q.clone().exp();
            (q.clone(), (q * log_q).sum_dim(1).mean().neg())
        };
        let (probabilities, entropies): (Vec<_>, Vec<_>) = teacher.iter().map(answer).unzip();
        assert!(!entropies.is_empty(), "a teacher needs a view");
        Self {
            probabilities,
            entropy: Tensor::cat(entropies, 0).mean(),
        }
    }
}

/// The loss over all pairs of a teacher's view and another student's view, from all logits at once, as the golden files have it: [1].
///
/// # Shapes
/// - student: as [`dino_loss_of`] takes it
/// - teacher: the global views, [batch, prototypes] each
/// - centre: [1, prototypes]
pub fn dino_loss(
    student: &[Tensor<2>],
    teacher: &[Tensor<2>],
    centre: Tensor<2>,
    temperatures: &Temperatures,
) -> Tensor<1> {
    let answers = Answers::new(teacher, &centre, temperatures);
    dino_loss_of(student, &answers.probabilities, temperatures)
}

/// The same, given what the teacher says.
///
/// # Shapes
/// - student: first the global views, [batch, prototypes] each, in the teacher's order; then local views,
///   [n · batch, prototypes] each, where one entry may hold any number n of views one after another (no
///   slicing of the largest tensor of the step)
/// - targets: [`Answers::probabilities`]
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
        // A student's view meets the sum of the teacher's other views: one product for all its pairs.
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

/// Mean of the teacher's logits over its views and images: [1, prototypes]. Of equal replicas the mean of
/// this is the mean over the whole batch.
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
pub fn centre_update(centre: Tensor<2>, mean: Tensor<2>, momentum: f64) -> Tensor<2> {
    centre.mul_scalar(momentum) + mean.mul_scalar(1.0 - momentum)
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
        let centre = logits(1, 6.0, &device);
        let temperatures = Temperatures::default();
        let separate: Vec<_> = globals.iter().chain(&locals).cloned().collect();
        let mut stacked = globals.to_vec();
        stacked.push(Tensor::cat(locals.to_vec(), 0));
        let [one, other]: [f32; 2] = [separate, stacked].map(|student| {
            dino_loss(&student, &teacher, centre.clone(), &temperatures).into_scalar()
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
        let centre = Tensor::zeros([1, 5], &device);
        let loss: f32 =
            dino_loss(&student, &teacher, centre, &Temperatures::default()).into_scalar();
        assert!((loss - 5.0f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn no_gradient_reaches_the_teacher() {
        let device = Device::flex().autodiff();
        let teacher = [0.0, 1.0].map(|o| logits(2, o, &device).require_grad());
        let student = [2.0, 3.0].map(|o| logits(2, o, &device).require_grad());
        let centre = Tensor::zeros([1, 5], &device);
        let grads = dino_loss(&student, &teacher, centre, &Temperatures::default()).backward();
        assert!(teacher[0].grad(&grads).is_none());
        assert!(student[0].grad(&grads).is_some());
    }
}
