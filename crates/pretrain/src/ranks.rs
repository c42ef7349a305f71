//! What the ranks of a training exchange in a step: gradients, sums for the teacher's targets, and
//! measurements.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::losses::dino::SampleTotals;
use clasp_model::optim::{FlatLayout, Gradients};
use clasp_run::{Collective, CollectiveError, ExchangeFormat, Rank};

use crate::plan::PretrainPlan;

/// The part of every batch that a rank computes.
///
/// A batch is computed in parts, one after the other; each part is divided among the replicas of all
/// ranks, and a rank has the same number of consecutive replicas as every other. So the shares of a
/// batch, and what is drawn for each, do not depend on how many ranks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// Parts of a batch.
    parts: usize,
    /// Replicas of all ranks.
    replicas: usize,
    /// Replicas of this rank: the first, counted over all ranks, and their number.
    first: usize,
    own: usize,
    /// Images of a share: of one part on one replica.
    images: usize,
}

impl RankShare {
    /// That of `rank` in a plan, whose replicas are a multiple of the number of ranks.
    pub fn of(plan: &PretrainPlan, rank: Rank) -> Self {
        let run = &plan.recipe.run;
        let own = plan.replicas / rank.size;
        Self {
            parts: run.accumulate,
            replicas: plan.replicas,
            first: rank.index * own,
            own,
            images: run.batch / run.accumulate / plan.replicas,
        }
    }

    /// Replicas of this rank.
    pub fn own_replicas(self) -> usize {
        self.own
    }

    /// Images of a share.
    pub fn images_of_share(self) -> usize {
        self.images
    }

    /// Images of this rank in a part.
    pub fn images_of_part(self) -> usize {
        self.own * self.images
    }

    /// Images of this rank in a batch.
    pub fn images(self) -> usize {
        self.parts * self.images_of_part()
    }

    /// Shares of a batch, over all ranks.
    pub fn shares(self) -> usize {
        self.parts * self.replicas
    }

    /// The replica's number over all ranks.
    pub fn replica(self, own: usize) -> usize {
        self.first + own
    }

    /// The places in the whole batch of the images of this rank's `share`, counted over its parts.
    pub fn places_of_share(self, share: usize) -> Range<usize> {
        let (part, own) = (share / self.own, share % self.own);
        let first = (part * self.replicas + self.replica(own)) * self.images;
        first..first + self.images
    }

    /// The places in the whole batch of all images of this rank.
    pub fn places(self) -> Vec<usize> {
        { 0..self.parts * self.own }
            .flat_map(|share| self.places_of_share(share))
            .collect()
    }
}

/// Tensors that are added up over the ranks.
#[derive(Clone, Debug)]
pub(crate) struct RankSums {
    collective: Arc<dyn Collective>,
    format: ExchangeFormat,
    /// Parameters whose gradients are known first, those of the heads and the conditional blocks, and
    /// those of the shared blocks.
    layouts: [FlatLayout; 2],
}

impl RankSums {
    /// Over the ranks of `collective`, whose gradients are of the parameters of `layouts`: of the heads
    /// and the conditional blocks, and of the shared blocks.
    pub(crate) fn new(
        collective: Arc<dyn Collective>,
        format: ExchangeFormat,
        layouts: [FlatLayout; 2],
    ) -> Self {
        Self {
            collective,
            format,
            layouts,
        }
    }

    /// Those of a process alone.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self::new(
            Arc::new(clasp_run::Local),
            ExchangeFormat::F32,
            Default::default(),
        )
    }

    /// The ranks.
    pub(crate) fn collective(&self) -> &dyn Collective {
        self.collective.as_ref()
    }

    /// Adds up gradients: `gradients` of heads and conditional blocks, and those of the shared blocks,
    /// which `shared` computes while the others are exchanged. A parameter without a gradient on
    /// some ranks counts as zero there, one without on all of them stays without.
    pub(crate) fn gradients(
        &self,
        gradients: Gradients,
        shared: impl FnOnce() -> Gradients,
        device: &Device,
    ) -> Result<Gradients, CollectiveError> {
        let all_reduce = |values: &mut [f32]| self.collective.all_reduce(values, self.format);
        FlatLayout::reduced_during(&self.layouts, gradients, shared, device, all_reduce)
    }

    /// Adds up tensors of the same shapes on all ranks, at once.
    pub(crate) fn tensors<const N: usize>(
        &self,
        tensors: [Tensor<2>; N],
    ) -> Result<[Tensor<2>; N], CollectiveError> {
        if self.collective().is_alone() {
            return Ok(tensors);
        }
        let mut values: Vec<f32> = Vec::new();
        for tensor in &tensors {
            values.extend(tensor.to_data().iter::<f32>());
        }
        self.collective
            .all_reduce(&mut values, ExchangeFormat::F32)?;
        let mut rest = &values[..];
        Ok(tensors.map(|tensor| {
            let shape = tensor.dims();
            let (own, others) = rest.split_at(shape[0] * shape[1]);
            rest = others;
            Tensor::from_data(TensorData::new(own.to_vec(), shape), &tensor.device())
        }))
    }

    /// The mean over ranks of tensors that are each a mean over as many images.
    pub(crate) fn means<const N: usize>(
        &self,
        tensors: [Tensor<2>; N],
    ) -> Result<[Tensor<2>; N], CollectiveError> {
        let size = self.collective.rank().size;
        match size {
            1 => Ok(tensors),
            _ => Ok({ self.tensors(tensors)? }.map(|sum| sum.div_scalar(size as f64))),
        }
    }

    /// Adds up a count.
    pub(crate) fn count(&self, own: usize) -> Result<usize, CollectiveError> {
        let mut count = [own as f64];
        self.collective().sum(&mut count)?;
        Ok(count[0] as usize)
    }
}

impl SampleTotals for RankSums {
    type Error = CollectiveError;

    fn samples(&self, own: usize) -> Result<usize, CollectiveError> {
        self.count(own)
    }

    fn largest(&self, own: Tensor<2>) -> Result<Tensor<2>, CollectiveError> {
        if self.collective().is_alone() {
            return Ok(own);
        }
        let value: f32 = own.clone().into_scalar();
        // As bits: JSON has no infinity.
        let values = self.collective().gather(&value.to_bits())?;
        let largest = { values.into_iter() }
            .map(f32::from_bits)
            .fold(f32::NEG_INFINITY, f32::max);
        Ok(own.full_like(largest))
    }

    fn sum(&self, own: Tensor<2>) -> Result<Tensor<2>, CollectiveError> {
        let [sum] = self.tensors([own])?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::plan::machine;
    use crate::recipe::PretrainRecipe;

    fn plan(batch: usize, accumulate: usize, replicas: usize) -> PretrainPlan {
        let set = [
            format!("run.batch={batch}"),
            format!("run.accumulate={accumulate}"),
            format!("run.replicas={replicas}"),
        ];
        let recipe = PretrainRecipe::parse("", "test", &set).unwrap();
        recipe.plan(1000, machine(&Device::flex(), 1)).unwrap()
    }

    #[test]
    fn ranks_have_each_image_of_a_batch_once() {
        let plan = plan(48, 3, 4);
        for size in [1, 2, 4] {
            let shares = (0..size).map(|index| RankShare::of(&plan, Rank { index, size }));
            let mut places: Vec<usize> = shares.clone().flat_map(RankShare::places).collect();
            places.sort_unstable();
            assert_eq!(places, (0..48).collect::<Vec<_>>(), "{size} ranks");
            assert!(shares.clone().all(|share| share.images() == 48 / size));
            assert!(shares.clone().all(|share| share.shares() == 12));
        }
        let second = RankShare::of(&plan, Rank { index: 1, size: 2 });
        // Parts of 16 images, shares of 4, of which the second rank has the last two.
        assert_eq!(second.places_of_share(0), 8..12);
        assert_eq!(second.places_of_share(3), 28..32);
        assert_eq!((second.replica(1), second.own_replicas()), (3, 2));
        let alone = RankShare::of(&plan, Rank::ALONE);
        assert_eq!(alone.places(), (0..48).collect::<Vec<_>>());
    }

    #[test]
    fn a_process_alone_keeps_its_tensors() {
        let sums = RankSums::alone();
        let row = Tensor::<2>::from_floats([[1.001, 2.0]], &Device::flex());
        let [sum] = sums.means([row.clone()]).unwrap();
        sum.into_data().assert_eq(&row.into_data(), true);
        assert_eq!(sums.count(7).unwrap(), 7);
    }
}
