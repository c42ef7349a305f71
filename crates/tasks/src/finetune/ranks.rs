//! What the ranks of a fine-tuning exchange in a step: features, so that each computes the head and
//! the loss on the whole batch, and gradients.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::backbone::Features;
use clasp_model::optim::{FlatLayout, Gradients};
use clasp_run::{Collective, CollectiveError, ExchangeFormat};

use crate::task::HeadInput;

/// Relative difference of losses that rounding may make.
const LOSS_TOLERANCE: f64 = 1e-3;

/// The other ranks that train the same model.
///
/// The replicas of a batch are divided among the ranks in order: each has the same number of
/// consecutive ones.
#[derive(Clone, Debug)]
pub(super) struct RankExchange {
    collective: Arc<dyn Collective>,
    /// The parameters whose gradients are exchanged: of the head, and of the backbone if it is trained.
    layouts: [FlatLayout; 2],
}

impl RankExchange {
    /// Over the ranks of `collective`, which train the parameters of `layouts`: of the head and the
    /// backbone, called `head.` and `backbone.` and their names.
    pub(super) fn new(collective: Arc<dyn Collective>, layouts: [FlatLayout; 2]) -> Self {
        Self {
            collective,
            layouts,
        }
    }

    /// The first replica of this rank, counted over all ranks, and the number of its replicas, of
    /// `replicas` in all.
    pub(super) fn own_replicas(&self, replicas: usize) -> (usize, usize) {
        let rank = self.collective.rank();
        let own = replicas / rank.size;
        (rank.index * own, own)
    }

    /// The features of the whole batch, given those of this rank's images: what the head reads. The
    /// others stay those of this rank.
    pub(super) fn features(
        &self,
        own: Features,
        input: HeadInput,
    ) -> Result<Features, CollectiveError> {
        if self.collective.is_alone() {
            return Ok(own);
        }
        match input {
            HeadInput::Pooled => {
                let mut pooled = self.gathered(&[own.pooled])?;
                Ok(Features {
                    pooled: pooled.remove(0),
                    ..own
                })
            }
            HeadInput::Maps => {
                let pyramid = self.gathered(&own.pyramid)?;
                Ok(Features {
                    map: pyramid[pyramid.len() - 1].clone(),
                    pyramid,
                    ..own
                })
            }
        }
    }

    /// Tensors whose first axis holds the images of all ranks, given those of this rank's images.
    fn gathered<const D: usize>(
        &self,
        own: &[Tensor<D>],
    ) -> Result<Vec<Tensor<D>>, CollectiveError> {
        let rank = self.collective.rank();
        // As a sum, in which every other rank has zeros: messages are for short values.
        let mut values: Vec<f32> = Vec::new();
        for tensor in own {
            let [start, size] = [values.len(), tensor.shape().num_elements()];
            values.resize(start + rank.size * size, 0.0);
            let place = &mut values[start + rank.index * size..][..size];
            for (place, value) in place.iter_mut().zip(tensor.to_data().iter::<f32>()) {
                *place = value;
            }
        }
        self.collective
            .all_reduce(&mut values, ExchangeFormat::F32)?;
        let mut rest = &values[..];
        let whole = own.iter().map(|tensor| {
            let mut shape = tensor.dims();
            shape[0] *= rank.size;
            let (whole, others) = rest.split_at(shape.iter().product());
            rest = others;
            Tensor::from_data(TensorData::new(whole.to_vec(), shape), &tensor.device())
        });
        Ok(whole.collect())
    }

    /// Checks that the loss of the batch is that of rank 0. Processors may round differently; another
    /// loss comes from other labels or images.
    pub(super) fn agree_on_loss(&self, loss: f64) -> Result<(), CollectiveError> {
        if self.collective.is_alone() {
            return Ok(());
        }
        let losses = self.collective.gather(&loss)?;
        let differs = |other: &f64| (other - losses[0]).abs() > LOSS_TOLERANCE * losses[0].abs();
        match losses.iter().position(differs) {
            None => Ok(()),
            Some(rank) => Err(CollectiveError::Disagree {
                what: "the loss of a batch, whose images and labels all ranks must have",
                rank,
                expected: losses[0].to_string(),
                found: losses[rank].to_string(),
            }),
        }
    }

    /// The gradients of the batch, the same bits on every rank: the sum over ranks of the
    /// backbone's, and the mean of the head's, which every rank computes from the whole batch. The
    /// head's are exchanged while `backbone` computes the others.
    pub(super) fn gradients(
        &self,
        head: Gradients,
        backbone: impl FnOnce() -> Gradients,
        device: &Device,
    ) -> Result<Gradients, CollectiveError> {
        let size = self.collective.rank().size as f64;
        let named = |prefix: &str, gradients: Gradients| -> Gradients {
            { gradients.into_iter() }
                .map(|(name, gradient)| (format!("{prefix}{name}"), gradient))
                .collect()
        };
        let mut head = named("head.", head);
        if self.collective.is_alone() {
            head.extend(named("backbone.", backbone()));
            return Ok(head);
        }
        for gradient in head.values_mut() {
            *gradient = gradient.clone().div_scalar(size);
        }
        let backbone = || named("backbone.", backbone());
        let all_reduce =
            |values: &mut [f32]| self.collective.all_reduce(values, ExchangeFormat::F32);
        FlatLayout::reduced_during(&self.layouts, head, backbone, device, all_reduce)
    }
}
