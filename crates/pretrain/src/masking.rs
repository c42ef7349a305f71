//! Masked patches of iBOT: which patches of a global view the student does not see, and the targets
//! of the teacher there.

use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::rng_for;
use clasp_model::layers::Rng;
use clasp_model::losses::dino::sinkhorn_knopp_of;
use clasp_model::losses::{center_update, patch_targets};
use clasp_run::CollectiveError;
use rand::RngExt;

use crate::ranks::RankSums;
use crate::recipe::{Centering, LossSection};
use crate::teacher::SINKHORN_ITERATIONS;

/// Aspect ratios of masked blocks, as in BEiT and iBOT.
const ASPECT: [f64; 2] = [0.3, 1.0 / 0.3];
/// Attempts to place a block before a view is left as it is.
const ATTEMPTS: usize = 10;

/// The masked patches of a share of a batch; its views are stacked as those of
/// [`crate::batch::BatchTensors`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ViewMasks {
    /// True where masked: [views · batch · rows · columns].
    masked: Vec<bool>,
    /// Rows and columns of the map of a view.
    grid: [usize; 2],
}

impl ViewMasks {
    /// Masks of `views` global views of images `images` of the batch of a step. Each view is drawn
    /// by itself, so that a mask does not depend on how a batch is divided.
    pub(crate) fn draw(
        loss: &LossSection,
        [seed, step]: [u64; 2],
        images: std::ops::Range<usize>,
        views: usize,
        grid: [usize; 2],
    ) -> Self {
        let each = (0..views).flat_map(|view| images.clone().map(move |image| (view, image)));
        let masked = each.flat_map(|(view, image)| {
            let mut rng = rng_for(seed, step, &format!("masked patches {image} {view}"));
            let is_masked = rng.random_bool(loss.mask_probability);
            let [least, most] = loss.mask_ratio;
            let ratio = least + (most - least) * rng.random::<f64>();
            match is_masked {
                true => block_mask(grid, ratio, &mut rng),
                false => vec![false; grid[0] * grid[1]],
            }
        });
        let masked = masked.collect();
        Self { masked, grid }
    }

    /// As tensors on `device`; none without a masked patch.
    pub(crate) fn tensors(&self, device: &Device) -> Option<MaskTensors> {
        let [rows, columns] = self.grid;
        let views = self.masked.len() / (rows * columns);
        let (mut positions, mut weights) = (Vec::new(), Vec::new());
        for (view, masked) in self.masked.chunks(rows * columns).enumerate() {
            let count = masked.iter().filter(|masked| **masked).count();
            let of_view = (0..masked.len()).filter(|at| masked[*at]);
            positions.extend(of_view.map(|at| (view * rows * columns + at) as i64));
            weights.resize(positions.len(), 1.0 / (views * count.max(1)) as f32);
        }
        let count = positions.len();
        if count == 0 {
            return None;
        }
        let mask: Vec<f32> = self
            .masked
            .iter()
            .map(|&m| f32::from(u8::from(m)))
            .collect();
        Some(MaskTensors {
            mask: Tensor::from_data(TensorData::new(mask, [views, rows, columns]), device),
            positions: Tensor::from_data(TensorData::new(positions, [count]), device),
            weights: Tensor::from_data(TensorData::new(weights, [count]), device),
        })
    }
}

/// The masked patches of a share as tensors.
#[derive(Clone, Debug)]
pub struct MaskTensors {
    /// 1 where masked: [views · batch, rows, columns].
    pub mask: Tensor<3>,
    /// Places of the masked patches in [views · batch · rows · columns]: [masked].
    pub positions: Tensor<1, Int>,
    /// 1 / (views · batch · masked patches of its view): [masked].
    pub weights: Tensor<1>,
}

impl MaskTensors {
    /// The features at the masked patches of maps [views · batch, channels, rows, columns]:
    /// [masked, channels].
    pub(crate) fn select(&self, map: Tensor<4>) -> Tensor<2> {
        let [views, channels, rows, columns] = map.dims();
        map.permute([0, 2, 3, 1])
            .reshape([views * rows * columns, channels])
            .select(0, self.positions.clone())
    }
}

/// Block masks of BEiT (Bao et al., ICLR 2022) as in iBOT: rectangles of a random area, at least
/// (⌊shorter side / 3⌋)² positions, and a random aspect ratio, one after the other, until the share
/// `ratio` of the positions is masked or ten attempts in a row mask nothing more. True where
/// masked: [rows · columns].
fn block_mask([rows, columns]: [usize; 2], ratio: f64, rng: &mut Rng) -> Vec<bool> {
    let mut mask = vec![false; rows * columns];
    let wanted = ratio * (rows * columns) as f64;
    let least = (rows.min(columns) / 3).pow(2) as f64;
    let mut count = 0;
    let mut attempts = 0;
    while (count as f64) < wanted && attempts < ATTEMPTS {
        attempts += 1;
        let most = wanted - count as f64;
        let area = least + (most - least) * rng.random::<f64>();
        let [low, high] = ASPECT.map(f64::ln);
        let aspect = (low + (high - low) * rng.random::<f64>()).exp();
        let height = (area * aspect).sqrt().round() as usize;
        let width = (area / aspect).sqrt().round() as usize;
        if height >= rows || width >= columns {
            continue;
        }
        let top = rng.random_range(0..=rows - height);
        let left = rng.random_range(0..=columns - width);
        let block = (top..top + height)
            .flat_map(|row| (left..left + width).map(move |column| row * columns + column));
        let fresh: Vec<usize> = block.filter(|at| !mask[*at]).collect();
        if fresh.is_empty() || fresh.len() as f64 > most {
            continue;
        }
        count += fresh.len();
        fresh.into_iter().for_each(|at| mask[at] = true);
        attempts = 0;
    }
    mask
}

/// The teacher targets of the masked patches of a step.
pub(crate) struct PatchTargets {
    /// By share, [masked, prototypes]; none without a masked patch.
    pub shares: Vec<Option<Tensor<2>>>,
    /// The center of the next step: [1, prototypes].
    pub center: Tensor<2>,
}

impl PatchTargets {
    /// Targets from the teacher's `logits` at the masked patches of each share, [masked,
    /// prototypes]. All shares are needed at once, for Sinkhorn–Knopp and the center, those of other
    /// ranks included.
    ///
    /// # Errors
    ///
    /// A rank is gone.
    pub(crate) fn new(
        logits: Vec<Option<Tensor<2>>>,
        loss: &LossSection,
        center: &Tensor<2>,
        temperature: f64,
        ranks: &RankSums,
    ) -> Result<Self, CollectiveError> {
        let counts: Vec<usize> = { logits.iter() }
            .map(|logits| logits.as_ref().map_or(0, |logits| logits.dims()[0]))
            .collect();
        let own: usize = counts.iter().sum();
        let masked = match loss.masks_patches() {
            true => ranks.count(own)?,
            false => 0,
        };
        if masked == 0 {
            return Ok(Self {
                shares: vec![None; counts.len()],
                center: center.clone(),
            });
        }
        let all: Vec<Tensor<2>> = logits.into_iter().flatten().collect();
        let all = (own > 0).then(|| Tensor::cat(all, 0));
        let mean = mean_over_ranks(all.as_ref(), center, [own, masked], ranks)?;
        let targets = match loss.centering {
            Centering::Center => all.map(|all| patch_targets(all, center, temperature)),
            Centering::Sinkhorn => {
                sinkhorn_knopp_of(all, center, temperature, SINKHORN_ITERATIONS, ranks)?
            }
        };
        let mut start = 0;
        let shares = counts.into_iter().map(|count| {
            let share = { targets.as_ref() }.filter(|_| count > 0);
            let share = share.map(|targets| targets.clone().narrow(0, start, count));
            start += count;
            share
        });
        Ok(Self {
            shares: shares.collect(),
            center: center_update(center.clone(), mean, loss.center_momentum),
        })
    }
}

/// Mean of rows, of which `own` are here and `all` on all ranks: [1, prototypes], as `like`.
fn mean_over_ranks(
    rows: Option<&Tensor<2>>,
    like: &Tensor<2>,
    [own, all]: [usize; 2],
    ranks: &RankSums,
) -> Result<Tensor<2>, CollectiveError> {
    let mean = match rows {
        Some(rows) => rows.clone().detach().mean_dim(0),
        None => like.zeros_like(),
    };
    if ranks.collective().is_alone() {
        return Ok(mean);
    }
    let [sum] = ranks.tensors([mean.mul_scalar(own as f64 / all as f64)])?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(probability: f64, ratio: [f64; 2]) -> LossSection {
        LossSection {
            mask_probability: probability,
            mask_ratio: ratio,
            ..LossSection::default()
        }
    }

    #[test]
    fn blocks_mask_about_the_share_that_is_asked_for() {
        for grid in [[16, 8], [14, 14], [8, 4], [2, 1], [1, 1]] {
            let positions = (grid[0] * grid[1]) as f64;
            for ratio in [0.0, 0.1, 0.3, 0.5, 1.0] {
                let masked: Vec<f64> = (0..200)
                    .map(|seed| {
                        let mask = block_mask(grid, ratio, &mut rng_for(seed, 0, "test"));
                        assert_eq!(mask.len(), grid[0] * grid[1]);
                        mask.iter().filter(|m| **m).count() as f64 / positions
                    })
                    .collect();
                assert!(masked.iter().all(|share| *share <= ratio + 1e-9));
                let mean = masked.iter().sum::<f64>() / masked.len() as f64;
                if grid[1] >= 8 {
                    assert!(mean >= 0.8 * ratio, "{grid:?} {ratio}: {mean}");
                }
            }
        }
        // Blocks, not single patches: most masked patches have a masked neighbor below.
        let mask = block_mask([16, 8], 0.4, &mut rng_for(3, 0, "test"));
        let count = |it: &dyn Fn(usize) -> bool| (0..120).filter(|at| it(*at)).count();
        let pairs = count(&|at| mask[at] && mask[at + 8]);
        assert!(2 * pairs > count(&|at| mask[at]));
    }

    #[test]
    fn masks_do_not_depend_on_how_a_batch_is_divided() {
        let loss = loss(0.7, [0.1, 0.5]);
        let draw = |images| ViewMasks::draw(&loss, [5, 9], images, 2, [4, 2]);
        let whole = draw(0..4);
        let parts = [draw(0..2), draw(2..4)];
        for view in 0..2 {
            for image in 0..4 {
                let (part, at) = (&parts[image / 2], view * 2 + image % 2);
                let expected = &whole.masked[(view * 4 + image) * 8..][..8];
                assert_eq!(&part.masked[at * 8..][..8], expected);
            }
        }
        assert!(whole.masked.iter().any(|masked| *masked));
        let other = ViewMasks::draw(&loss, [5, 10], 0..4, 2, [4, 2]);
        assert_ne!(whole, other);
    }

    #[test]
    fn weights_are_a_mean_over_patches_and_then_over_views() {
        let device = Device::flex();
        let masks = ViewMasks {
            masked: [true, false, true, false, false, false, false, true].to_vec(),
            grid: [2, 1],
        };
        let tensors = masks.tensors(&device).unwrap();
        let weights: Vec<f32> = tensors.weights.clone().into_data().iter::<f32>().collect();
        assert_eq!(weights, [0.25, 0.25, 0.25]);
        let map = Tensor::<1, Int>::arange(0..16, &device)
            .float()
            .reshape([4, 2, 2, 1]);
        let selected = tensors
            .select(map)
            .into_data()
            .iter::<f32>()
            .collect::<Vec<_>>();
        assert_eq!(selected, [0.0, 2.0, 4.0, 6.0, 13.0, 15.0]);
        let none = ViewMasks::draw(&loss(0.0, [0.1, 0.5]), [1, 1], 0..4, 2, [2, 2]);
        assert!(none.tensors(&device).is_none());
    }

    #[test]
    fn targets_of_shares_are_those_of_the_whole_step() {
        let device = Device::flex();
        let logits = |rows: usize, offset: f32| {
            let values: Vec<f32> = (0..rows * 3).map(|i| (i as f32 + offset).sin()).collect();
            Tensor::<2>::from_data(TensorData::new(values, [rows, 3]), &device)
        };
        let (a, b) = (logits(2, 0.0), logits(3, 7.0));
        let center = Tensor::zeros([1, 3], &device);
        for centering in [Centering::Center, Centering::Sinkhorn] {
            let loss = LossSection {
                centering,
                ibot_weight: 1.0,
                ..LossSection::default()
            };
            let apart = vec![Some(a.clone()), None, Some(b.clone())];
            let alone = RankSums::alone();
            let apart = PatchTargets::new(apart, &loss, &center, 0.1, &alone).unwrap();
            let whole = Tensor::cat(vec![a.clone(), b.clone()], 0);
            let whole = PatchTargets::new(vec![Some(whole)], &loss, &center, 0.1, &alone).unwrap();
            assert!(apart.shares[1].is_none());
            let apart_targets = apart.shares.into_iter().flatten().collect();
            let expected = whole.shares[0].clone().unwrap().into_data();
            let tolerance = burn::tensor::Tolerance::<f32>::absolute(1e-6);
            Tensor::cat(apart_targets, 0)
                .into_data()
                .assert_approx_eq(&expected, tolerance);
            apart
                .center
                .into_data()
                .assert_approx_eq(&whole.center.into_data(), tolerance);
        }
        let (loss, alone) = (LossSection::default(), RankSums::alone());
        let none = PatchTargets::new(vec![None], &loss, &center, 0.1, &alone).unwrap();
        assert!(none.shares[0].is_none());
    }
}
