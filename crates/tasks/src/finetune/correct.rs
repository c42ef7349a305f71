//! Self-correction (Li et al., "Self-Correction for Human Parsing", TPAMI 2020): from some epoch on, the weights at the end of each
//! cycle are averaged, and the average refines the labels of the steps that follow.
//!
//! As published, statistics of batch normalisation are estimated anew for the average, over the training images; the learning rate
//! goes down by a cosine in each cycle ([`super::recipe::Decline::Cycles`]). There the average answers by the statistics of each
//! batch; here by those that were estimated for it.

use burn::tensor::Device;
use clasp_data::rng_for;
use clasp_model::backbone::{Backbone, Features};
use clasp_model::heads::blocks::MOMENTUM;
use clasp_model::heads::{Statistics, Training, update_statistics};
use clasp_model::mix::Mix;
use clasp_model::optim::ema;

use super::trainer::inputs;
use super::{Example, Task};

/// The average of the weights at the ends of cycles, without gradients.
#[derive(Debug, Clone)]
pub struct Corrected<T: Task> {
    /// The backbone.
    pub backbone: Backbone,
    /// The head.
    pub head: T::Head,
    /// Cycles that are in it.
    pub cycles: u64,
}

/// A model that refines labels.
pub struct Teacher<'a, H> {
    /// Its head.
    pub head: &'a H,
    /// What its backbone makes of the batch.
    pub features: &'a Features,
    /// Cycles that are in it.
    pub cycles: u64,
}

impl<T: Task> Corrected<T> {
    /// The average with the weights of another cycle in it.
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

    /// Estimates the statistics of batch normalisation anew: means over batches of training images, each by its size.
    pub fn restate(
        &mut self,
        task: &T,
        mix: &Mix,
        device: &Device,
        batches: impl Iterator<Item = Vec<Example<T::Target>>>,
    ) {
        let mut batches = batches.peekable();
        let statistics_of = |own: &Self, batch: &[Example<T::Target>]| {
            let (images, mix) = inputs(batch, mix, device);
            let features = own.backbone.forward(images, mix, None);
            let targets: Vec<T::Target> = batch.iter().map(|e| e.target.clone()).collect();
            let (mut statistics, mut rng) = (Statistics::new(), rng_for(0, 0, "statistics"));
            let mut training = Training {
                statistics: &mut statistics,
                rng: &mut rng,
            };
            task.loss(&own.head, &features, &targets, &mut training);
            statistics
        };
        // From zero, the new statistics are those of the batch times its share.
        if let Some(first) = batches.peek() {
            let zeros = { statistics_of(self, first).into_iter() }
                .map(|(id, value)| (id, value.zeros_like()));
            self.head = update_statistics(self.head.clone(), zeros.collect());
        }
        let mut sums = Statistics::new();
        let mut seen = 0.0;
        for batch in batches {
            let size = batch.len() as f64;
            for (id, value) in statistics_of(self, &batch) {
                let sum = match sums.remove(&id) {
                    Some(sum) => sum + value * size,
                    None => value * size,
                };
                sums.insert(id, sum);
            }
            seen += size;
        }
        let means = { sums.into_iter() }.map(|(id, sum)| (id, sum / (seen * MOMENTUM)));
        self.head = update_statistics(self.head.clone(), means.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetune::model::stages;
    use crate::parsing::{ParsingTask, Settings};
    use clasp_model::backbone::BackboneConfig;
    use clasp_weights::state::{StateDict, state_dict};

    const SIZE: [usize; 2] = [128, 64];

    fn task() -> ParsingTask {
        ParsingTask {
            settings: Settings {
                width: 8,
                ..Settings::default()
            },
            classes: ["background", "body"].map(str::to_owned).to_vec(),
            mirrored: vec![0, 1],
        }
    }

    /// A backbone and a head with weights of their own.
    fn network(seed: u64) -> (Backbone, <ParsingTask as Task>::Head) {
        let device = Device::flex();
        let mut rng = rng_for(seed, 0, "network");
        let config = BackboneConfig::named("swin-pico").unwrap();
        let backbone = config.init(&mut rng, &device);
        let stages = stages(&backbone, &Mix::mean(), SIZE, &device);
        let head = task().head(&stages, &mut rng, &device).unwrap();
        (backbone, head)
    }

    #[test]
    fn every_cycle_counts_alike() {
        let mut corrected: Option<Corrected<ParsingTask>> = None;
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
            corrected = Some(Corrected::with(corrected, backbone, head));
        }
        let corrected = corrected.unwrap();
        assert_eq!(corrected.cycles, 3);
        for (name, array) in state_dict(&corrected.head) {
            let sums = &sums[&name].data;
            let near = |(mean, sum): (&f32, &f32)| (mean - sum / 3.0).abs() < 1e-6;
            assert!(array.data.iter().zip(sums).all(near), "{name}");
        }
    }

    #[test]
    fn statistics_are_those_of_the_images() {
        let (backbone, head) = network(7);
        let mut corrected = Corrected::<ParsingTask>::with(None, backbone, head);
        let batch: Vec<Example<(Vec<u8>, [usize; 2])>> = (0..8)
            .map(|index| {
                let mut rng = rng_for(index, 0, "image");
                let area = SIZE[0] * SIZE[1];
                let draw = |_| clasp_model::layers::uniform(&mut rng) as f32;
                Example {
                    pixels: (0..3 * area).map(draw).collect(),
                    size: SIZE,
                    target: (vec![1; area], SIZE),
                    key: String::new(),
                }
            })
            .collect();
        let device = Device::flex();
        let (images, mix) = inputs(&batch, &Mix::mean(), &device);
        let features = corrected.backbone.forward(images, mix, None);
        let (mut statistics, mut rng) = (Statistics::new(), rng_for(0, 0, "statistics"));
        let mut training = Training {
            statistics: &mut statistics,
            rng: &mut rng,
        };
        let by_batch = corrected
            .head
            .forward(&features.pyramid, Some(&mut training))
            .logits;
        // Twice the same images: the same statistics, but that running variances are unbiased.
        let batches = [batch.clone(), batch].into_iter();
        corrected.restate(&task(), &Mix::mean(), &device, batches);
        let by_statistics = corrected.head.forward(&features.pyramid, None).logits;
        let off = (by_batch.clone() - by_statistics)
            .abs()
            .max()
            .into_scalar::<f32>();
        let size = by_batch.abs().max().into_scalar::<f32>();
        assert!(off < 0.02 * size, "{off} of {size}");
    }
}
