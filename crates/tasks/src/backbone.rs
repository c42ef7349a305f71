//! A backbone with prompt weights as an [`Extractor`].

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::backbone::Backbone;
use clasp_model::prompt::PromptWeights;
use clasp_model::{Precision, Shares};

use crate::TaskError;
use crate::features::{Extractor, FeatureBatch, FeatureMaps, InputBatch};

/// A [`Backbone`] with the same prompt weights for every image.
#[derive(Debug, Clone)]
pub struct BackboneExtractor {
    backbone: Backbone,
    prompt: PromptWeights,
    precision: Precision,
    device: Device,
}

impl BackboneExtractor {
    /// `backbone` lives on `device`, without gradients.
    pub fn new(backbone: Backbone, prompt: PromptWeights, device: Device) -> Self {
        Self {
            backbone,
            prompt,
            precision: Precision::F32,
            device,
        }
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// The prompt weights.
    pub fn prompt(&self) -> PromptWeights {
        self.prompt
    }

    /// The same backbone at another precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }
}

impl Extractor for BackboneExtractor {
    fn shares(&self, threads: usize) -> Shares {
        Shares::of(&self.device, threads)
    }

    fn extract(&self, images: InputBatch, stages: usize) -> Result<FeatureBatch, TaskError> {
        let InputBatch {
            values,
            batch,
            height,
            width,
        } = images;
        let images = Tensor::from_data(
            TensorData::new(values, [batch, 3, height, width]),
            &self.device,
        );
        let prompt = self.prompt.tensor(&self.device);
        let features = (self.precision).within(|| self.backbone.forward(images, prompt, None));
        let skipped = features.pyramid.len().saturating_sub(stages);
        let maps = features.pyramid.into_iter().skip(skipped).map(|map| {
            let [_, channels, height, width] = map.dims();
            Ok(FeatureMaps {
                values: values_of(map)?,
                channels,
                height,
                width,
            })
        });
        Ok(FeatureBatch {
            maps: maps.collect::<Result<_, TaskError>>()?,
            pooled: values_of(features.pooled)?,
        })
    }
}

fn values_of<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TaskError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| TaskError::Device(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_model::backbone::{Adapter, BackboneConfig};
    use clasp_model::layers::Rng;
    use clasp_model::moe::MoeConfig;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn extracts_the_features_of_the_backbone() {
        let device = Device::flex();
        let config = BackboneConfig::named("swin-pico")
            .unwrap()
            .with_adapter(Adapter::Moe(MoeConfig::default()));
        let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
        let values: Vec<f32> = (0..2 * 3 * 64 * 32)
            .map(|i| (i as f32 * 0.01).sin())
            .collect();
        let images = InputBatch {
            values: values.clone(),
            batch: 2,
            height: 64,
            width: 32,
        };
        let extractor =
            BackboneExtractor::new(backbone.clone(), PromptWeights::single(1), device.clone());
        let found = extractor.extract(images, 2).unwrap();

        let images = Tensor::from_data(TensorData::new(values, [2, 3, 64, 32]), &device);
        let features = backbone.forward(images, PromptWeights::single(1).tensor(&device), None);
        assert_eq!(
            found.pooled,
            features.pooled.try_into_vec_as::<f32>().unwrap()
        );
        let shapes: Vec<_> = found
            .maps
            .iter()
            .map(|map| [map.channels, map.height, map.width])
            .collect();
        assert_eq!(
            shapes,
            [[backbone.channels() / 2, 4, 2], [backbone.channels(), 2, 1]]
        );
        assert_eq!(
            found.maps[1].values,
            features.map.try_into_vec_as::<f32>().unwrap()
        );
    }
}
