//! Online instance matching (Xiao et al., "Joint Detection and Identification Feature Learning for Person Search",
//! CVPR 2017): features against a table of the known people and a queue of unknown ones.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData, activation::log_softmax},
};

use crate::layers;

/// The table and the queue; not trained, but changed after every step.
#[derive(Module, Debug)]
pub struct OimMemory {
    /// A feature of each known person: [people, channels].
    pub table: Param<Tensor<2>>,
    /// Features of unknown people: [length, channels].
    pub queue: Param<Tensor<2>>,
    /// Place of the queue that is written next: [1].
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

    /// Cross-entropy of scale · similarity with the true row of the table, among all rows of both; mean over the
    /// features whose person is known, 0 without any.
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

    /// The memory after a step: known people's rows move to their features, table ← momentum · table +
    /// (1 − momentum) · feature, of length 1 again; unknown people replace the oldest of the queue.
    ///
    /// # Shapes
    /// As in [`OimMemory::loss`]; features row-major.
    pub fn follow(self, features: &[f32], persons: &[Option<usize>], momentum: f32) -> Self {
        let [_, channels] = self.table.dims();
        let read = |param: &Param<Tensor<2>>| -> Vec<f32> {
            param.val().inner().into_data().iter::<f32>().collect()
        };
        let (mut table, mut queue) = (read(&self.table), read(&self.queue));
        let length = queue.len() / channels;
        let mut next = self.next.val().into_scalar::<f32>() as usize;
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
        let write = |param: Param<Tensor<2>>, values: Vec<f32>| {
            param.map(|old| Tensor::from_data(TensorData::new(values, old.dims()), &old.device()))
        };
        Self {
            table: write(self.table, table),
            queue: write(self.queue, queue),
            next: (self.next).map(|old| {
                Tensor::from_data(TensorData::new(vec![next as f32], [1]), &old.device())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_people_move_their_row_and_unknown_ones_take_turns() {
        let memory = OimMemory::init(2, 2, 2, &Device::flex());
        let features = [0.0, 1.0, 1.0, 0.0, 0.6, 0.8, 0.0, -1.0];
        let memory = memory.follow(&features, &[Some(1), None, None, None], 0.5);
        let read = |param: &Param<Tensor<2>>| -> Vec<f32> {
            param.val().into_data().iter::<f32>().collect()
        };
        assert_eq!(read(&memory.table), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(read(&memory.queue), [0.0, -1.0, 0.6, 0.8]);
        assert_eq!(memory.next.val().into_scalar::<f32>(), 1.0);
        let memory = memory.follow(&[1.0, 0.0], &[Some(1)], 0.5);
        let half = 0.5_f32.sqrt();
        assert!(
            read(&memory.table)
                .iter()
                .zip([0.0, 0.0, half, half])
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );

        let feature = Tensor::<2>::from_data([[0.0, 1.0], [1.0, 0.0]], &Device::flex());
        let loss = memory
            .loss(feature, &[Some(1), None], 1.0)
            .into_scalar::<f32>();
        // Similarities of the first with table 0, 0.707 and queue -1, 0.8.
        let sum: f32 = [0.0, half, -1.0, 0.8].iter().map(|s| s.exp()).sum();
        assert!((loss - (sum.ln() - half)).abs() < 1e-6, "{loss}");
    }
}
