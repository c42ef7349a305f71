//! Stochastic depth (Huang et al. 2016).

use burn::tensor::{Device, Tensor, TensorData};

use super::init::{Rng, uniform};

/// Stochastic depth (Huang et al. 2016): what the branch of each image is multiplied with. With
/// probability `rate` it is dropped, else divided by the probability of being kept. None without a
/// generator, which drops nothing.
fn drop_factors(batch: usize, rate: f64, rng: Option<&mut Rng>) -> Option<Vec<f32>> {
    assert!(
        (0.0..1.0).contains(&rate),
        "drop path rate {rate} is not in [0, 1)"
    );
    let rng = rng.filter(|_| rate > 0.0)?;
    let keep = 1.0 - rate;
    let factor = |_| {
        if uniform(rng) < keep {
            (1.0 / keep) as f32
        } else {
            0.0
        }
    };
    Some((0..batch).map(factor).collect())
}

/// x: [batch, ...], each sample times its factor.
pub(crate) fn scale_samples<const D: usize>(x: Tensor<D>, factors: Option<&[f32]>) -> Tensor<D> {
    let Some(factors) = factors else { return x };
    let mut shape = [1; D];
    shape[0] = factors.len();
    let factors = Tensor::<D>::from_data(TensorData::new(factors.to_vec(), shape), &x.device());
    x * factors
}

/// Drop path of a whole pass: the factors of two branches a block, drawn in their order, and sent
/// to the device at once.
#[derive(Debug)]
pub(crate) struct DropPath(std::vec::IntoIter<[Option<DropFactors>; 2]>);

/// Factors of a branch, one for each image.
#[derive(Debug, Clone)]
pub(crate) struct DropFactors {
    /// As fused operations take them.
    pub values: Vec<f32>,
    /// Row of the tensor of all factors, [branches, batch]; none where `values` are on the device
    /// already.
    row: Option<(Tensor<2>, usize)>,
}

impl DropPath {
    /// For blocks of these rates. Without a generator nothing is dropped. `device` computes.
    pub fn draw(
        rates: impl Iterator<Item = f64>,
        batch: usize,
        mut rng: Option<&mut Rng>,
        device: &Device,
    ) -> Self {
        let drawn: Vec<[Option<Vec<f32>>; 2]> = rates
            .map(|rate| [(); 2].map(|()| drop_factors(batch, rate, rng.as_deref_mut())))
            .collect();
        let device = device.clone().inner();
        let all: Vec<f32> = drawn
            .iter()
            .flatten()
            .flatten()
            .flatten()
            .copied()
            .collect();
        let tensor = (!all.is_empty() && device != Device::flex()).then(|| {
            let rows = all.len() / batch;
            Tensor::<2>::from_data(TensorData::new(all, [rows, batch]), &device)
        });
        let mut rows = 0..;
        let blocks: Vec<[Option<DropFactors>; 2]> = drawn
            .into_iter()
            .map(|branches| {
                branches.map(|values| {
                    values.map(|values| DropFactors {
                        values,
                        row: tensor.clone().zip(rows.next()),
                    })
                })
            })
            .collect();
        Self(blocks.into_iter())
    }

    /// Factors of the next block's attention and MLP.
    pub fn next(&mut self) -> [Option<DropFactors>; 2] {
        self.0.next().unwrap_or_default()
    }
}

impl DropFactors {
    /// A tensor of factors on the device, [branches, batch], and the row of these.
    #[cfg(feature = "gpu")]
    pub fn on_device(&self, device: &Device) -> (Tensor<2>, usize) {
        self.row.clone().unwrap_or_else(|| {
            let values = TensorData::new(self.values.clone(), [1, self.values.len()]);
            (Tensor::from_data(values, &device.clone().inner()), 0)
        })
    }

    /// x: [batch, ...], each sample times its factor.
    pub fn scale<const D: usize>(factors: &Option<Self>, x: Tensor<D>) -> Tensor<D> {
        match factors {
            None => x,
            Some(Self {
                row: Some((tensor, row)),
                ..
            }) => {
                let mut shape = [1; D];
                shape[0] = x.dims()[0];
                x * tensor.clone().narrow(0, *row, 1).reshape(shape)
            }
            Some(Self { values, .. }) => scale_samples(x, Some(values)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn drop_path_keeps_the_mean_and_drops_whole_images() {
        let device = Device::flex();
        let mut rng = Rng::seed_from_u64(2);
        let branch = Tensor::<3>::ones([4000, 2, 3], &device);
        let factors = drop_factors(4000, 0.25, Some(&mut rng));
        let values = scale_samples(branch, factors.as_deref())
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        for image in values.chunks(6) {
            assert!(image.iter().all(|v| *v == image[0]));
            assert!(image[0] == 0.0 || (image[0] - 4.0 / 3.0).abs() < 1e-6);
        }
        assert_eq!(drop_factors(4000, 0.25, None), None);
    }
}
