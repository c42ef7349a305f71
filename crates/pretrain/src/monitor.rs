//! What to watch while a run goes: collapse, and who uses which expert.

use clasp_model::backbone::Routing;
use clasp_model::mix::{Mix, TASKS};
use serde::Serialize;

use clasp_run::Metrics;

/// Steps over which the figures are averaged before they are judged.
const MEMORY: f64 = 20.0;
/// A loss or an entropy this close to ln K, as a share of it, counts as being there.
const CLOSE: f64 = 0.01;
/// A teacher entropy below this share of ln K counts as 0.
const PEAKED: f64 = 0.005;
/// A standard deviation of features below this (1 is what independent features have) counts as 0.
const FLAT: f64 = 0.02;

/// Looks for collapse and says once what it sees.
pub struct Watch {
    /// Natural logarithm of the head's outputs.
    log_outputs: f64,
    /// Step before which nothing is judged: everything looks collapsed when a run begins.
    from: u64,
    loss: Average,
    entropy: Average,
    spread: Average,
    said: [bool; 4],
}

/// An exponential average without the bias of its start.
#[derive(Default)]
struct Average {
    sum: f64,
    weight: f64,
}

impl Average {
    fn add(&mut self, value: f64) -> f64 {
        let keep = 1.0 - 1.0 / MEMORY;
        self.sum = keep * self.sum + value;
        self.weight = keep * self.weight + 1.0;
        self.sum / self.weight
    }
}

impl Watch {
    /// A watch over a head of `outputs` outputs that speaks after step `from`.
    pub fn new(outputs: usize, from: u64) -> Self {
        Self {
            log_outputs: (outputs as f64).ln(),
            from,
            loss: Average::default(),
            entropy: Average::default(),
            spread: Average::default(),
            said: [false; 4],
        }
    }

    /// Warnings after `step`, each with what to change; each is given once, and again only after
    /// the run had recovered.
    pub fn look(&mut self, step: u64, metrics: &Metrics) -> Vec<String> {
        let average =
            |average: &mut Average, name: &str| metrics.get(name).map(|value| average.add(*value));
        let (Some(loss), Some(entropy), Some(spread)) = (
            average(&mut self.loss, "loss/dino"),
            average(&mut self.entropy, "teacher/entropy"),
            average(&mut self.spread, "features/std"),
        ) else {
            return Vec::new();
        };
        if step < self.from {
            return Vec::new();
        }
        let full = self.log_outputs;
        let seen = [
            (
                (loss - full).abs() < CLOSE * full,
                format!(
                    "collapse? the DINO loss sits at {loss:.3}, and ln K is {full:.3}: the student learns nothing; \
                     lower `loss.teacher_temperature` or `head.outputs`, or raise `optimiser.lr`"
                ),
            ),
            (
                entropy > (1.0 - CLOSE) * full,
                format!(
                    "collapse: the teacher's entropy is {entropy:.3} of at most ln K = {full:.3}: it gives every \
                     output to every image; lower `loss.teacher_temperature`"
                ),
            ),
            (
                entropy < PEAKED * full,
                format!(
                    "collapse: the teacher's entropy is {entropy:.4}, nearly 0: it gives few outputs to all images; \
                     lower `loss.centre_momentum` or raise `loss.teacher_temperature`"
                ),
            ),
            (
                spread < FLAT,
                format!(
                    "collapse: the features' standard deviation over the batch is {spread:.4} (1 is free of collapse): \
                     all images look alike; lower `optimiser.lr` or raise `teacher.momentum`"
                ),
            ),
        ];
        let mut warnings = Vec::new();
        for (said, (now, text)) in self.said.iter_mut().zip(seen) {
            if now && !*said {
                warnings.push(format!("step {step}: {text}"));
            }
            *said = now;
        }
        warnings
    }
}

/// How the images of one task use the experts of one block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Step of the measurement.
    pub step: u64,
    /// Place of the block among those with experts, from the input on.
    pub block: usize,
    /// Name of the task; only images whose mix is this task alone are counted.
    pub task: &'static str,
    /// Share of the tokens' choices that fell on each expert; sums to 1.
    pub frequency: Vec<f64>,
    /// Mean probability of each expert over all experts; sums to 1.
    pub mass: Vec<f64>,
    /// Entropy of `frequency`, over that of equal shares: 1 when all are used alike.
    pub entropy: f64,
}

/// Sums from which [`Usage`] is made; those of replicas and of parts of a batch add up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageSums {
    /// [blocks][tasks][experts] of (choices, probability).
    sums: Vec<[Vec<(f64, f64)>; TASKS.len()]>,
}

impl UsageSums {
    /// Sums over one forward pass: `routing` has one entry a block, `mixes` one an image.
    pub fn new(routing: &[Routing], mixes: &[Mix]) -> Self {
        let sums = routing
            .iter()
            .map(|block| {
                let [_, _, experts] = block.probabilities.dims();
                let chosen = per_image(block.chosen.clone());
                let mass = per_image(block.probabilities.clone());
                let mut tasks = [(); TASKS.len()].map(|()| vec![(0.0, 0.0); experts]);
                for (image, mix) in mixes.iter().enumerate() {
                    let Some(task) = mix.weights().iter().position(|weight| *weight == 1.0) else {
                        continue;
                    };
                    for (expert, sums) in tasks[task].iter_mut().enumerate() {
                        sums.0 += f64::from(chosen[image * experts + expert]);
                        sums.1 += f64::from(mass[image * experts + expert]);
                    }
                }
                tasks
            })
            .collect();
        Self { sums }
    }

    /// Adds the sums of another pass.
    pub fn add(&mut self, other: &Self) {
        if self.sums.is_empty() {
            self.sums.clone_from(&other.sums);
            return;
        }
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            for (mine, theirs) in mine.iter_mut().flatten().zip(theirs.iter().flatten()) {
                mine.0 += theirs.0;
                mine.1 += theirs.1;
            }
        }
    }

    /// Usage by block and task; tasks that no image was of are left out.
    pub fn usage(&self, step: u64) -> Vec<Usage> {
        let mut all = Vec::new();
        for (block, tasks) in self.sums.iter().enumerate() {
            for (task, sums) in TASKS.iter().zip(tasks) {
                let (choices, probability) = sums
                    .iter()
                    .fold((0.0, 0.0), |total, one| (total.0 + one.0, total.1 + one.1));
                if choices <= 0.0 || probability <= 0.0 {
                    continue;
                }
                let frequency: Vec<f64> = sums.iter().map(|one| one.0 / choices).collect();
                let entropy = -frequency
                    .iter()
                    .filter(|f| **f > 0.0)
                    .map(|f| f * f.ln())
                    .sum::<f64>();
                all.push(Usage {
                    step,
                    block,
                    task,
                    mass: sums.iter().map(|one| one.1 / probability).collect(),
                    entropy: if sums.len() > 1 {
                        entropy / (sums.len() as f64).ln()
                    } else {
                        1.0
                    },
                    frequency,
                });
            }
        }
        all
    }
}

/// [batch, tokens, experts] summed over tokens, as numbers.
fn per_image(tensor: burn::tensor::Tensor<3>) -> Vec<f32> {
    tensor
        .inner()
        .sum_dim(1)
        .into_data()
        .convert::<f32>()
        .try_into_vec()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    fn metrics(loss: f64, entropy: f64, spread: f64) -> Metrics {
        Metrics::from([
            ("loss/dino".to_owned(), loss),
            ("teacher/entropy".to_owned(), entropy),
            ("features/std".to_owned(), spread),
        ])
    }

    #[test]
    fn each_kind_of_collapse_is_named_once() {
        let full = 1024.0_f64.ln();
        for (figures, word) in [
            (metrics(full, 3.0, 0.5), "DINO loss sits"),
            (metrics(5.0, full, 0.5), "every output"),
            (metrics(5.0, 0.001, 0.5), "nearly 0"),
            (metrics(5.0, 3.0, 0.001), "all images look alike"),
        ] {
            let mut watch = Watch::new(1024, 10);
            let said: Vec<String> = (1..50)
                .flat_map(|step| watch.look(step, &figures))
                .collect();
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(
                said[0].starts_with("step 10:") && said[0].contains(word),
                "{said:?}"
            );
        }
        let mut watch = Watch::new(1024, 10);
        assert!((1..50).all(|step| watch.look(step, &metrics(5.0, 3.0, 0.5)).is_empty()));
    }

    #[test]
    fn usage_counts_images_of_one_task_only() {
        let device = Device::flex();
        // Image 0 chooses experts 0 and 1 for both tokens, image 1 always 2 and one of 0 and 1.
        let chosen = Tensor::<3>::from_data(
            [
                [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
                [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
            ],
            &device,
        );
        let probabilities = Tensor::<3>::from_data(
            [
                [[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]],
                [[0.2, 0.2, 0.6], [0.2, 0.2, 0.6]],
            ],
            &device,
        );
        let routing = [Routing {
            weights: chosen.clone(),
            probabilities,
            chosen,
        }];
        let mut sums = UsageSums::new(&routing, &[Mix::single(0), Mix::single(1)]);
        let mixed = UsageSums::new(&routing, &[Mix::mean(), Mix::mean()]);
        sums.add(&mixed);
        let usage = sums.usage(7);
        assert_eq!(usage.len(), 2);
        assert_eq!((usage[0].task, usage[0].step), ("identity", 7));
        assert_eq!(usage[0].frequency, [0.5, 0.5, 0.0]);
        assert!((usage[0].mass[0] - 0.6).abs() < 1e-6);
        assert!((usage[0].entropy - 2.0_f64.ln() / 3.0_f64.ln()).abs() < 1e-12);
        assert_eq!(usage[1].frequency, [0.25, 0.25, 0.5]);
    }
}
