//! L-BFGS (Nocedal 1980; Liu and Nocedal 1989) with a backtracking line search, on plain slices.

/// The optimizer and when it stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lbfgs {
    /// Most iterations.
    pub iterations: usize,
    /// Stop when the norm of the gradient is at most this fraction of the first, or a step lowers
    /// the value by less than a thousandth of this fraction of it.
    pub tolerance: f64,
}

impl Default for Lbfgs {
    fn default() -> Self {
        Self {
            iterations: 100,
            tolerance: 1e-3,
        }
    }
}

/// The end of a minimization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LbfgsResult {
    /// Iterations made.
    pub iterations: usize,
    /// Value of the objective.
    pub value: f64,
    /// Norm of the last gradient over that of the first.
    pub gradient: f64,
}

impl Lbfgs {
    /// Steps from which the curvature is estimated.
    const HISTORY: usize = 10;

    /// Minimizes `objective(x, gradient) -> value` from `x`.
    pub fn minimize(
        &self,
        mut x: Vec<f32>,
        mut objective: impl FnMut(&[f32], &mut [f32]) -> f64,
    ) -> (Vec<f32>, LbfgsResult) {
        let mut gradient = vec![0.0; x.len()];
        let mut value = objective(&x, &mut gradient);
        let first = norm(&gradient);
        // Step, change of the gradient, and 1 / their product.
        let mut history: Vec<(Vec<f32>, Vec<f32>, f64)> = Vec::new();
        let mut iterations = 0;
        while iterations < self.iterations && norm(&gradient) > self.tolerance * first {
            let direction = direction(&gradient, &history);
            let slope = product(&direction, &gradient);
            // Without a history the direction is the gradient, whose norm is no estimate of a good
            // step.
            let mut step = if history.is_empty() {
                1.0 / norm(&gradient).max(1.0)
            } else {
                1.0
            };
            let mut next = x.clone();
            let mut next_gradient = vec![0.0; x.len()];
            let mut accepted = None;
            for _ in 0..30 {
                for ((next, x), direction) in next.iter_mut().zip(&x).zip(&direction) {
                    *next = x + (step * f64::from(*direction)) as f32;
                }
                let next_value = objective(&next, &mut next_gradient);
                if next_value <= value + 1e-4 * step * slope {
                    accepted = Some(next_value);
                    break;
                }
                step *= 0.5;
            }
            let Some(next_value) = accepted else {
                if history.is_empty() {
                    break;
                }
                // The curvature estimate is lost to rounding: restart along the gradient.
                history.clear();
                continue;
            };
            iterations += 1;
            let change =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let (moved, turned) = (change(&next, &x), change(&next_gradient, &gradient));
            let curvature = product(&moved, &turned);
            if curvature > 1e-10 * product(&turned, &turned) {
                if history.len() == Self::HISTORY {
                    history.remove(0);
                }
                history.push((moved, turned, 1.0 / curvature));
            }
            let gain = value - next_value;
            (x, gradient, value) = (next, next_gradient, next_value);
            if gain <= 1e-3 * self.tolerance * value.abs() {
                break;
            }
        }
        let fit = LbfgsResult {
            iterations,
            value,
            gradient: if first > 0.0 {
                norm(&gradient) / first
            } else {
                0.0
            },
        };
        (x, fit)
    }
}

/// Minus the gradient times the estimated inverse Hessian.
fn direction(gradient: &[f32], history: &[(Vec<f32>, Vec<f32>, f64)]) -> Vec<f32> {
    let mut direction: Vec<f32> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::with_capacity(history.len());
    for (moved, turned, inverse) in history.iter().rev() {
        let share = inverse * product(moved, &direction);
        add(&mut direction, turned, -share);
        shares.push(share);
    }
    if let Some((_, turned, inverse)) = history.last() {
        let scale = 1.0 / (inverse * product(turned, turned));
        direction
            .iter_mut()
            .for_each(|d| *d = (f64::from(*d) * scale) as f32);
    }
    for ((moved, turned, inverse), share) in history.iter().zip(shares.iter().rev()) {
        let other = inverse * product(turned, &direction);
        add(&mut direction, moved, share - other);
    }
    direction
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

fn norm(a: &[f32]) -> f64 {
    product(a, a).sqrt()
}

pub(super) fn add(to: &mut [f32], what: &[f32], times: f64) {
    to.iter_mut()
        .zip(what)
        .for_each(|(to, what)| *to += (times * f64::from(*what)) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimizes_an_ill_conditioned_quadratic() {
        let objective = |x: &[f32], g: &mut [f32]| {
            let mut value = 0.0;
            for (i, (x, g)) in x.iter().zip(g).enumerate() {
                let (scale, d) = (10f32.powi(i as i32 % 4), x - i as f32);
                *g = 2.0 * scale * d;
                value += f64::from(scale * d * d);
            }
            value
        };
        let (x, fit) = Lbfgs {
            iterations: 200,
            tolerance: 1e-6,
        }
        .minimize(vec![0.0; 20], objective);
        assert!(
            x.iter()
                .enumerate()
                .all(|(i, x)| (x - i as f32).abs() < 1e-2),
            "{x:?} {fit:?}"
        );
    }
}
