//! Parsing heads: a light one, and that of CE2P with its edge branch (Ruan et al., AAAI 2019; Li et
//! al., "Self-Correction for Human Parsing", TPAMI 2020).

use burn::{
    module::Module,
    nn::LayerNorm,
    tensor::{Device, Tensor, activation::leaky_relu, activation::relu},
};

use super::blocks::{
    BatchNorm, Conv, Training, adaptive_mean, dropout_channels, normalize_stages, resize_bilinear,
    stage_norms,
};
use crate::layers::Rng;

/// Bins of the pyramid pooling along each axis.
const PYRAMID: [usize; 4] = [1, 2, 3, 6];
/// Slope of the leaky rectifiers in CE2P.
const SLOPE: f64 = 0.01;
/// Channels dropped before the last layer of CE2P.
const DROPOUT: f64 = 0.1;

/// Outputs of a parsing head, on the grid of the first stage.
#[derive(Debug, Clone)]
pub struct ParsingOutput {
    /// Class logits: [batch, classes, rows, columns].
    pub logits: Tensor<4>,
    /// CE2P's logits before the fusion with edges, for the training loss: the same shape.
    pub first: Option<Tensor<4>>,
    /// CE2P's edges, logits of no and yes: [batch, 2, rows, columns].
    pub edges: Option<Tensor<4>>,
}

/// Either head.
// A head is made once; a box, which Burn has no module for, would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum ParsingHead {
    /// Fast.
    Light(LightParsingHead),
    /// CE2P's.
    Ce2p(Ce2pHead),
}

impl ParsingHead {
    /// Class logits of the maps of all stages, finest first.
    ///
    /// # Shapes
    /// - pyramid: [batch, channels, rows, columns] each
    /// - output: see [`ParsingOutput`]
    pub fn forward(
        &self,
        pyramid: &[Tensor<4>],
        training: Option<&mut Training<'_>>,
    ) -> ParsingOutput {
        match self {
            Self::Light(head) => ParsingOutput {
                logits: head.forward(pyramid, training),
                first: None,
                edges: None,
            },
            Self::Ce2p(head) => head.forward(pyramid, training),
        }
    }
}

/// 1x1 convolution, batch normalization.
#[derive(Module, Debug)]
pub struct ConvNorm {
    /// Without a bias.
    pub conv: Conv,
    /// After it.
    pub norm: BatchNorm,
}

impl ConvNorm {
    fn init(sizes: [usize; 3], rng: &mut Rng, device: &Device) -> Self {
        Self {
            conv: Conv::init(sizes, false, rng, device),
            norm: BatchNorm::init(sizes[1], device),
        }
    }

    fn forward(&self, x: Tensor<4>, training: Option<&mut Training<'_>>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x), training)
    }

    fn leaky(&self, x: Tensor<4>, training: Option<&mut Training<'_>>) -> Tensor<4> {
        leaky_relu(self.forward(x, training), SLOPE)
    }
}

/// All stages brought to one width and to the first one's grid, added up, and mixed once. Our
/// choice, after the decoders of FPN (Kirillov et al., CVPR 2019) and SegFormer.
#[derive(Module, Debug)]
pub struct LightParsingHead {
    /// Of the maps of all stages but the last.
    pub norms: Vec<LayerNorm>,
    /// One a stage: its channels → width.
    pub lateral: Vec<ConvNorm>,
    /// 3x3, width → width.
    pub mix: ConvNorm,
    /// width → classes.
    pub classifier: Conv,
}

impl LightParsingHead {
    /// A head with fresh weights; `channels` of each stage.
    pub fn init(
        channels: &[usize],
        width: usize,
        classes: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        Self {
            norms: stage_norms(channels, device),
            lateral: { channels.iter() }
                .map(|&channels| ConvNorm::init([channels, width, 1], rng, device))
                .collect(),
            mix: ConvNorm::init([width, width, 3], rng, device),
            classifier: Conv::init([width, classes, 1], true, rng, device),
        }
    }

    /// [batch, classes, rows, columns] on the grid of the first stage.
    pub fn forward(
        &self,
        pyramid: &[Tensor<4>],
        mut training: Option<&mut Training<'_>>,
    ) -> Tensor<4> {
        let pyramid = normalize_stages(pyramid, &self.norms);
        let [_, _, rows, columns] = pyramid[0].dims();
        let mut sum: Option<Tensor<4>> = None;
        for (lateral, map) in self.lateral.iter().zip(&pyramid) {
            let map = lateral.forward(map.clone(), training.as_deref_mut());
            let map = resize_bilinear(map, [rows, columns], false);
            sum = Some(match sum {
                Some(sum) => sum + map,
                None => map,
            });
        }
        let x = relu(sum.unwrap_or_else(|| pyramid[0].clone()));
        self.classifier.forward(relu(self.mix.forward(x, training)))
    }
}

/// Widths of CE2P for a backbone with `channels` in each of four stages: as SOLIDER has them for
/// Swin-T, S and B.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ce2pConfig {
    /// Channels of the stages.
    pub channels: [usize; 4],
    /// Channels after pyramid pooling; 512 as published.
    pub context: usize,
    /// Channels of the decoder; 256 as published.
    pub decoder: usize,
    /// Classes, the background included.
    pub classes: usize,
}

/// Pyramid pooling on the last stage, a decoder that takes in the first, an edge branch on the
/// first three, and the fusion of both.
#[derive(Module, Debug)]
pub struct Ce2pHead {
    /// Of the maps of all stages but the last.
    pub norms: Vec<LayerNorm>,
    /// One for each number of bins.
    pub pools: Vec<ConvNorm>,
    /// 3x3 over the last stage and its pools.
    pub context: ConvNorm,
    /// context → decoder.
    pub decoder_high: ConvNorm,
    /// The first stage → half of its channels.
    pub decoder_low: ConvNorm,
    /// Two layers over both.
    pub decoder: Vec<ConvNorm>,
    /// decoder → classes.
    pub decoder_classifier: Conv,
    /// One a stage of the first three: its channels → twice those of the first.
    pub edges: Vec<ConvNorm>,
    /// The same 3x3 for all three: → no and yes.
    pub edge_classifier: Conv,
    /// Fusion of the three.
    pub edge_fusion: Conv,
    /// Decoder and edges → decoder.
    pub fusion: ConvNorm,
    /// decoder → classes.
    pub classifier: Conv,
}

impl Ce2pConfig {
    /// The published widths.
    pub fn new(channels: [usize; 4], classes: usize) -> Self {
        Self {
            channels,
            context: 512,
            decoder: 256,
            classes,
        }
    }

    /// A head with fresh weights.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> Ce2pHead {
        let Self {
            channels: [first, .., last],
            context,
            decoder,
            classes,
        } = *self;
        let (low, edge) = (first / 2, 2 * first);
        let mut conv = |sizes| ConvNorm::init(sizes, rng, device);
        let pools = PYRAMID.map(|_| conv([last, context, 1])).to_vec();
        let joined = conv([last + PYRAMID.len() * context, context, 3]);
        let decoder_high = conv([context, decoder, 1]);
        let decoder_low = conv([first, low, 1]);
        let layers = vec![
            conv([decoder + low, decoder, 1]),
            conv([decoder, decoder, 1]),
        ];
        let edges = { self.channels[..3].iter() }
            .map(|&channels| conv([channels, edge, 1]))
            .collect();
        let fusion = conv([decoder + 3 * edge, decoder, 1]);
        Ce2pHead {
            norms: stage_norms(&self.channels, device),
            pools,
            context: joined,
            decoder_high,
            decoder_low,
            decoder: layers,
            decoder_classifier: Conv::init([decoder, classes, 1], true, rng, device),
            edges,
            edge_classifier: Conv::init([edge, 2, 3], true, rng, device),
            edge_fusion: Conv::init([6, 2, 1], true, rng, device),
            fusion,
            classifier: Conv::init([decoder, classes, 1], true, rng, device),
        }
    }
}

impl Ce2pHead {
    /// See [`ParsingHead::forward`]; drops a tenth of the channels before the last layer in
    /// training.
    ///
    /// # Panics
    /// Without four stages.
    pub fn forward(
        &self,
        pyramid: &[Tensor<4>],
        training: Option<&mut Training<'_>>,
    ) -> ParsingOutput {
        self.forward_with(pyramid, DROPOUT, training)
    }

    /// As [`Ce2pHead::forward`] with another share of dropped channels.
    pub fn forward_with(
        &self,
        pyramid: &[Tensor<4>],
        dropout: f64,
        mut training: Option<&mut Training<'_>>,
    ) -> ParsingOutput {
        let pyramid = normalize_stages(pyramid, &self.norms);
        let [first, second, third, last] = pyramid.as_slice() else {
            panic!("expected maps of four stages, found {}", pyramid.len());
        };
        let size = |map: &Tensor<4>| [map.dims()[2], map.dims()[3]];
        let up = |map: Tensor<4>, to: &Tensor<4>| resize_bilinear(map, size(to), true);

        let mut context = Vec::new();
        for (pool, bins) in self.pools.iter().zip(PYRAMID) {
            let pooled = adaptive_mean(last.clone(), [bins, bins]);
            context.push(up(pool.leaky(pooled, training.as_deref_mut()), last));
        }
        context.push(last.clone());
        let context = self
            .context
            .leaky(Tensor::cat(context, 1), training.as_deref_mut());

        let high = self.decoder_high.leaky(context, training.as_deref_mut());
        let low = self
            .decoder_low
            .leaky(first.clone(), training.as_deref_mut());
        let mut decoded = Tensor::cat(vec![up(high, first), low], 1);
        for layer in &self.decoder {
            decoded = layer.leaky(decoded, training.as_deref_mut());
        }
        let answer = self.decoder_classifier.forward(decoded.clone());

        let mut features = Vec::new();
        let mut edges = Vec::new();
        for (layer, map) in self.edges.iter().zip([first, second, third]) {
            let feature = layer.leaky(map.clone(), training.as_deref_mut());
            edges.push(up(self.edge_classifier.forward(feature.clone()), first));
            features.push(up(feature, first));
        }
        let edges = self.edge_fusion.forward(Tensor::cat(edges, 1));

        features.insert(0, decoded);
        let fused = self
            .fusion
            .leaky(Tensor::cat(features, 1), training.as_deref_mut());
        let fused = dropout_channels(fused, dropout, training);
        ParsingOutput {
            logits: self.classifier.forward(fused),
            first: Some(answer),
            edges: Some(edges),
        }
    }
}
