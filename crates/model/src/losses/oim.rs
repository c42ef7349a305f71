//! Online instance matching (Xiao et al., "Joint Detection and Identification Feature Learning for
//! Person Search", CVPR 2017): features against a lookup table of labeled identities and a circular
//! queue of unlabeled ones.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData, activation::log_softmax},
};

use crate::heads::Training;
use crate::layers;

/// The lookup table and the queue; not trained, but updated after every step.
#[derive(Module, Debug)]
pub struct OimMemory {
    /// A feature of each known person: [people, channels].
    pub table: Param<Tensor<2>>,
    /// Features of unknown people: [length, channels].
    pub queue: Param<Tensor<2>>,
    /// Place of the queue that is written next: `[1]`.
    pub next: Param<Tensor<1>>,
}

impl OimMemory {
    /// All zero, as published.
    pub fn init(people: usize, queue: usize, channels: usize, device: &Device) -> Self {
        let zeros = |rows| layers::constant([rows, channels], 0.0, device).set_require_grad(false);
        Self {
            table: zeros(people),
            queue: zeros(queue),
            next: layers::constant([1], 0.0, device).set_require_grad(false),
        }
    }

    /// Cross-entropy of scale · similarity with the true row of the table, among all rows of both;
    /// mean over the features whose person is known, 0 without any.
    ///
    /// # Shapes
    /// - features: [people, channels], of length 1
    /// - persons: one a feature; none for an unknown person
    pub fn loss(&self, features: Tensor<2>, persons: &[Option<usize>], scale: f64) -> Tensor<1> {
        let count = features.dims()[0];
        assert_eq!(persons.len(), count, "people of a batch");
        let rows = Tensor::cat(vec![self.table.val(), self.queue.val()], 0);
        let classes = rows.dims()[0];
        let mut target = vec![0.0_f32; count * classes];
        let mut known = 0.0;
        for (row, person) in persons.iter().enumerate() {
            if let Some(person) = person {
                target[row * classes + person] = 1.0;
                known += 1.0;
            }
        }
        let device = features.device();
        let target = Tensor::from_data(TensorData::new(target, [count, classes]), &device);
        let logits = features.matmul(rows.transpose()) * scale;
        (log_softmax(logits, 1) * target).sum().neg() / f64::max(known, 1.0)
    }

    /// Remembers the features of a step: known people's rows move to their features, table ←
    /// momentum · table + (1 − momentum) · feature, of length 1 again; unknown people replace the
    /// oldest of the queue. The new values go out through `training`.
    ///
    /// # Shapes
    /// As in [`OimMemory::loss`].
    pub fn follow(
        &self,
        features: Tensor<2>,
        persons: &[Option<usize>],
        momentum: f64,
        training: &mut Training<'_>,
    ) {
        let momentum = momentum as f32;
        let [_, channels] = self.table.dims();
        let read = |tensor: Tensor<2>| -> Vec<f32> {
            let data = tensor.without_autodiff().into_data();
            data.iter::<f32>().collect()
        };
        let (mut table, mut queue) = (read(self.table.val()), read(self.queue.val()));
        let features = read(features);
        let length = queue.len() / channels;
        let mut next = self.next.val().into_scalar::<f32>() as usize % length.max(1);
        for (feature, person) in features.chunks_exact(channels).zip(persons) {
            match person {
                Some(person) => {
                    let row = &mut table[person * channels..(person + 1) * channels];
                    for (old, new) in row.iter_mut().zip(feature) {
                        *old = momentum * *old + (1.0 - momentum) * new;
                    }
                    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                    row.iter_mut().for_each(|v| *v /= norm);
                }
                None if length > 0 => {
                    queue[next * channels..(next + 1) * channels].copy_from_slice(feature);
                    next = (next + 1) % length;
                }
                None => {}
            }
        }
        let device = self.table.val().device().inner();
        let mut hand_out = |id, values: Vec<f32>| {
            let values = TensorData::from(values.as_slice());
            training
                .statistics
                .insert(id, Tensor::from_data(values, &device));
        };
        hand_out(self.table.id, table);
        hand_out(self.queue.id, queue);
        hand_out(self.next.id, vec![next as f32]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::{Statistics, update_statistics};
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn known_people_move_their_row_and_unknown_ones_take_turns() {
        let device = Device::flex();
        let follow = |memory: OimMemory, features: Tensor<2>, persons: &[Option<usize>]| {
            let (mut statistics, mut rng) = (Statistics::new(), layers::Rng::seed_from_u64(0));
            let mut training = Training {
                statistics: &mut statistics,
                rng: &mut rng,
            };
            memory.follow(features, persons, 0.5, &mut training);
            update_statistics(memory, statistics)
        };
        let memory = OimMemory::init(2, 2, 2, &device);
        let features =
            Tensor::from_data([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.0, -1.0]], &device);
        let memory = follow(memory, features, &[Some(1), None, None, None]);
        let read = |param: &Param<Tensor<2>>| -> Vec<f32> {
            param.val().into_data().iter::<f32>().collect()
        };
        assert_eq!(read(&memory.table), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(read(&memory.queue), [0.0, -1.0, 0.6, 0.8]);
        assert_eq!(memory.next.val().into_scalar::<f32>(), 1.0);
        let one = Tensor::from_data([[1.0, 0.0]], &device);
        let memory = follow(memory, one, &[Some(1)]);
        let half = 0.5_f32.sqrt();
        assert!(
            read(&memory.table)
                .iter()
                .zip([0.0, 0.0, half, half])
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );

        let feature = Tensor::<2>::from_data([[0.0, 1.0], [1.0, 0.0]], &device);
        let loss = memory
            .loss(feature, &[Some(1), None], 1.0)
            .into_scalar::<f32>();
        // Similarities of the first with table 0, 0.707 and queue -1, 0.8.
        let sum: f32 = [0.0, half, -1.0, 0.8].iter().map(|s| s.exp()).sum();
        assert!((loss - (sum.ln() - half)).abs() < 1e-6, "{loss}");
    }
}
