//! Self-correction (Li et al., "Self-Correction for Human Parsing", TPAMI 2020): after
//! `self_correction_start` epochs, the weights at the end of each cycle are averaged, and the
//! average refines the labels of later steps.
//!
//! As published, the statistics of batch normalization of the average are estimated again on the
//! training images, and the learning rate follows a cosine in each cycle
//! ([`super::recipe::LrSchedule::Cyclic`]). The published average uses the statistics of each batch
//! to refine labels; this one uses its estimated statistics.

use burn::tensor::Device;
use clasp_data::rng_for;
use clasp_model::backbone::Backbone;
use clasp_model::heads::blocks::MOMENTUM;
use clasp_model::heads::{Statistics, Training, update_statistics};
use clasp_model::optim::ema;
use clasp_model::prompt::PromptWeights;

use super::inputs::inputs;
use crate::task::{Example, Objective};

/// The average of the weights at the end of each cycle, without gradients.
#[derive(Debug, Clone)]
pub struct CycleAverage<T: Objective> {
    /// The backbone.
    pub backbone: Backbone,
    /// The head.
    pub head: T::Head,
    /// Cycles in the average.
    pub cycles: u64,
}

impl<T: Objective> CycleAverage<T> {
    /// The average after another cycle.
    pub fn with(previous: Option<Self>, backbone: Backbone, head: T::Head) -> Self {
        let Some(previous) = previous else {
            return Self {
                backbone,
                head,
                cycles: 1,
            };
        };
        let cycles = previous.cycles + 1;
        let share = 1.0 - 1.0 / cycles as f64;
        Self {
            backbone: ema(previous.backbone, &backbone, share),
            head: ema(previous.head, &head, share),
            cycles,
        }
    }

    /// Estimates the statistics of batch normalization: means over batches of training images,
    /// weighted by batch size.
    pub fn estimate_statistics(
        &mut self,
        task: &T,
        prompt: &PromptWeights,
        device: &Device,
        batches: impl Iterator<Item = Vec<Example<T::Target>>>,
    ) {
        let mut batches = batches.peekable();
        let statistics_of = |own: &Self, batch: &[Example<T::Target>]| {
            let (images, prompt) = inputs(batch, prompt, device);
            let features = own.backbone.forward(images, prompt, None);
            let targets: Vec<T::Target> = batch.iter().map(|e| e.target.clone()).collect();
            let (mut statistics, mut rng) = (Statistics::new(), rng_for(0, 0, "statistics"));
            let mut training = Training {
                statistics: &mut statistics,
                rng: &mut rng,
            };
            task.loss(&own.head, &features, &targets, &mut training);
            statistics
        };
        // Updated from zero, the statistics are those of the batch times the momentum.
        if let Some(first) = batches.peek() {
            let zeros = { statistics_of(self, first).into_iter() }
                .map(|(id, value)| (id, value.zeros_like()));
            self.head = update_statistics(self.head.clone(), zeros.collect());
        }
        let mut sums = Statistics::new();
        let mut images = 0.0;
        for batch in batches {
            let size = batch.len() as f64;
            for (id, value) in statistics_of(self, &batch) {
                let sum = match sums.remove(&id) {
                    Some(sum) => sum + value * size,
                    None => value * size,
                };
                sums.insert(id, sum);
            }
            images += size;
        }
        let means = { sums.into_iter() }.map(|(id, sum)| (id, sum / (images * MOMENTUM)));
        self.head = update_statistics(self.head.clone(), means.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parsing::{ParsingConfig, ParsingTarget, ParsingTask};
    use crate::task::model::feature_layout;
    use clasp_model::backbone::BackboneConfig;
    use clasp_weights::state::{StateDict, state_dict};

    const SIZE: [usize; 2] = [128, 64];

    fn task() -> ParsingTask {
        ParsingTask {
            config: ParsingConfig {
                width: 8,
                ..ParsingConfig::default()
            },
            classes: ["background", "body"].map(str::to_owned).to_vec(),
            flipped: vec![0, 1],
        }
    }

    /// A backbone and a head with weights of this seed.
    fn network(seed: u64) -> (Backbone, <ParsingTask as Objective>::Head) {
        let device = Device::flex();
        let mut rng = rng_for(seed, 0, "network");
        let config = BackboneConfig::named("swin-pico").unwrap();
        let backbone = config.init(&mut rng, &device);
        let layout = feature_layout(&backbone, &PromptWeights::mean(), SIZE, &device);
        let head = task().head(&layout, &mut rng, &device).unwrap();
        (backbone, head)
    }

    #[test]
    fn all_cycles_have_equal_weight() {
        let mut average: Option<CycleAverage<ParsingTask>> = None;
        let mut sums = StateDict::new();
        for seed in 0..3 {
            let (backbone, head) = network(seed);
            for (name, array) in state_dict(&head) {
                let sum = sums.entry(name).or_insert_with(|| array.clone());
                if seed > 0 {
                    sum.data
                        .iter_mut()
                        .zip(array.data)
                        .for_each(|(a, b)| *a += b);
                }
            }
            average = Some(CycleAverage::with(average, backbone, head));
        }
        let average = average.unwrap();
        assert_eq!(average.cycles, 3);
        for (name, array) in state_dict(&average.head) {
            let sums = &sums[&name].data;
            let near = |(mean, sum): (&f32, &f32)| (mean - sum / 3.0).abs() < 1e-6;
            assert!(array.data.iter().zip(sums).all(near), "{name}");
        }
    }

    #[test]
    fn statistics_are_estimated_from_the_images() {
        let (backbone, head) = network(7);
        let mut average = CycleAverage::<ParsingTask>::with(None, backbone, head);
        let batch: Vec<Example<ParsingTarget>> = (0..8)
            .map(|index| {
                let mut rng = rng_for(index, 0, "image");
                let area = SIZE[0] * SIZE[1];
                let draw = |_| clasp_model::layers::uniform(&mut rng) as f32;
                Example {
                    pixels: (0..3 * area).map(draw).collect(),
                    size: SIZE,
                    target: ParsingTarget {
                        labels: vec![1; area],
                        size: SIZE,
                    },
                    key: String::new(),
                }
            })
            .collect();
        let device = Device::flex();
        let (images, prompt_weights) = inputs(&batch, &PromptWeights::mean(), &device);
        let features = average.backbone.forward(images, prompt_weights, None);
        let (mut statistics, mut rng) = (Statistics::new(), rng_for(0, 0, "statistics"));
        let mut training = Training {
            statistics: &mut statistics,
            rng: &mut rng,
        };
        let by_batch = average
            .head
            .forward(&features.pyramid, Some(&mut training))
            .logits;
        // The same images twice: the same statistics, except that running variances are unbiased.
        let batches = [batch.clone(), batch].into_iter();
        average.estimate_statistics(&task(), &PromptWeights::mean(), &device, batches);
        let by_statistics = average.head.forward(&features.pyramid, None).logits;
        let off = (by_batch.clone() - by_statistics)
            .abs()
            .max()
            .into_scalar::<f32>();
        let size = by_batch.abs().max().into_scalar::<f32>();
        assert!(off < 0.02 * size, "{off} of {size}");
    }
}
