//! Self-correction (Li et al., "Self-Correction for Human Parsing", TPAMI 2020): from some epoch on, the weights at the end of each
//! cycle are averaged, and the average refines the labels of the steps that follow.
//!
//! As published, statistics of batch normalisation are estimated anew for the average, over the training images; the learning rate
//! goes down by a cosine in each cycle ([`super::recipe::Decline::Cycles`]). There the average answers by the statistics of each
//! batch; here by those that were estimated for it.

use burn::tensor::Device;
use clasp_data::rng_for;
use clasp_model::backbone::{Backbone, Features};
use clasp_model::heads::{Statistics, Training, update_statistics};
use clasp_model::optim::ema;

use super::trainer::inputs;
use super::{Example, Task};
use clasp_model::mix::Mix;

/// Share of a batch in the running statistics of [`clasp_model::heads::blocks::BatchNorm`].
const MOMENTUM: f64 = 0.1;

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
