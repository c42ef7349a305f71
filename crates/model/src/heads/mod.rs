//! Heads: of pre-training (`dino`, `part`, `attribute`, `distillation`) and of the tasks after it.
//!
//! | file | for |
//! |---|---|
//! | [`dino`], [`part`], [`attribute`], [`distillation`] | pre-training |
//! | [`reid`] | re-identification |
//! | [`linear`] | attribute recognition |
//! | [`parsing`] | parsing: a light head and CE2P's |
//! | [`pose`] | heatmaps |
//! | [`detection`] | pedestrian detection, and person search in one stage with an embedding |
//! | [`two_stage`], [`regions`] | person search in two stages |
//! | [`blocks`] | the layers of these |

pub mod attribute;
pub mod blocks;
pub mod detection;
pub mod dino;
pub mod distillation;
pub mod linear;
pub mod parsing;
pub mod part;
pub mod pose;
pub mod regions;
pub mod reid;
pub mod two_stage;

pub use attribute::{AttributeHead, AttributeHeadConfig};
pub use blocks::{Statistics, Training, update_statistics};
pub use detection::{DetectionHead, DetectionHeadConfig, DetectionOutput};
pub use dino::{DinoHead, DinoHeadConfig};
pub use distillation::{DistillationHead, DistillationHeadConfig, DistillationOutputs};
pub use linear::LinearHead;
pub use parsing::{Ce2pConfig, Ce2pHead, LightParsingHead, ParsingHead, ParsingOutput};
pub use part::{PartHead, PartHeadConfig};
pub use pose::PoseHead;
pub use reid::ReidHead;
pub use two_stage::{TwoStageConfig, TwoStageHead};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers;
    use burn::tensor::{Device, Tensor};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    /// With a standard deviation of 0.02 in every width, heads on narrow features had next to no
    /// signal and learned only the mean output.
    #[test]
    fn narrow_heads_keep_the_scale_of_their_input() {
        let (mut rng, device) = (ChaCha8Rng::seed_from_u64(3), Device::flex());
        for channels in [64, 128, 768] {
            let rng = &mut rng;
            let input = layers::trunc_normal([64, channels], 1.0, rng, &device).val();
            let spread =
                |output: Tensor<2>| -> f32 { output.var(0).sqrt().mean().into_scalar::<f32>() };
            let map = input.clone().reshape([64, channels, 1, 1]);
            let part = PartHeadConfig::new(channels, 8).init(rng, &device);
            let part = spread(part.forward(map).reshape([64, 8]));
            let attribute = AttributeHeadConfig::new(channels, 40).init(rng, &device);
            let attribute = spread(attribute.forward(input.clone()));
            let dino = DinoHeadConfig {
                hidden: 4 * channels,
                ..DinoHeadConfig::new(channels, 32)
            };
            let layers = dino.init(rng, &device).mlp;
            let last = layers.iter().fold(input, |x, layer| layer.forward(x));
            for spread in [part, attribute, spread(last)] {
                assert!((0.1..3.0).contains(&spread), "{channels}: {spread}");
            }
        }
    }
}
