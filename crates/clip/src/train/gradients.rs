//! The gradient of a step, with the batch split over replicas.
//!
//! The contrastive loss needs the features of the whole batch, so that a step has three parts: the
//! replicas compute the features of their shares; the loss and its gradient with respect to all
//! features are computed once; the replicas propagate their shares of this gradient, together with
//! the losses that need no other share.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::Replicas;
use clasp_model::clip::{Clip, Dense};
use clasp_model::optim::{self, Gradients};

use super::batch::PairBatch;
use super::losses::contrastive_loss;
use super::objectives::{AttributeObjective, PartObjective};
use super::tensors::{host, integers};

/// Losses and gradients of a batch.
pub(super) struct BatchGradients {
    pub contrastive: f32,
    /// Lower bound of the contrastive loss, from the batch's equal captions.
    pub contrastive_floor: f32,
    pub part: f32,
    pub attribute: AttributeLoss,
    pub gradients: Gradients,
}

/// The attribute loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttributeLoss {
    /// All of it.
    pub total: f32,
    /// The term of the images' pooled features.
    pub images: f32,
}

/// What a step computes.
pub(super) struct ClipStep<'a> {
    pub batch: &'a PairBatch,
    /// Patches that are used; `None` for all.
    pub patches: Option<&'a [i64]>,
    pub part: Option<&'a PartObjective>,
    pub attribute: Option<&'a AttributeObjective>,
    /// Without autodiff.
    pub device: &'a Device,
}

/// The forward pass of a replica.
struct ReplicaFeatures {
    clip: Clip,
    /// Its share of the batch.
    rows: Range<usize>,
    /// Dense features, for the part and attribute losses.
    maps: Option<[Tensor<3>; 2]>,
    images: Tensor<2>,
    texts: Tensor<2>,
}

impl ClipStep<'_> {
    /// All losses and the gradient of every parameter, on `count` replicas.
    pub(super) fn gradients(
        &self,
        clip: &Clip,
        replicas: &Replicas,
        count: usize,
    ) -> BatchGradients {
        let pairs = self.batch.captions.len();
        let share = pairs.div_ceil(count);
        let shares: Vec<Range<usize>> = { (0..pairs).step_by(share) }
            .map(|start| start..pairs.min(start + share))
            .collect();
        let parts = shares.len() as f64;
        // Each replica has its own autodiff graph and shares the values.
        let outputs = replicas.map(shares, |_, rows| self.forward(clip.valid().train(), rows));

        let embed = clip.config().embed;
        let tracked = self.device.clone().autodiff();
        let gathered = |values: Vec<f32>| {
            let values = TensorData::new(values, [pairs, embed]);
            Tensor::<2>::from_data(values, &tracked).require_grad()
        };
        let of = |features: fn(&ReplicaFeatures) -> &Tensor<2>| {
            let features = outputs.iter().map(features);
            gathered(
                features
                    .flat_map(|part| host(part.clone().inner()))
                    .collect(),
            )
        };
        let images = of(|output| &output.images);
        let texts = of(|output| &output.texts);
        let log_scale = clip.logit_scale.val().autodiff().require_grad();
        let (loss, contrastive_floor) = contrastive_loss(
            images.clone(),
            texts.clone(),
            log_scale.clone().exp(),
            &self.batch.captions,
        );
        let contrastive = loss.clone().into_scalar::<f32>();
        let graph = loss.backward();
        // The loss depends on all three, so that zeros stand for nothing here.
        let at = |features: &Tensor<2>| {
            let gradient = features.grad(&graph);
            let gradient = gradient.unwrap_or_else(|| features.clone().inner().zeros_like());
            // The gradients of the replicas add up, but are averaged below.
            host(gradient * parts)
        };
        let (at_images, at_texts) = (at(&images), at(&texts));
        let scale_gradient = log_scale.grad(&graph);
        let scale_gradient = scale_gradient.unwrap_or_else(|| log_scale.inner().zeros_like());
        drop(graph);

        let results = replicas.map(outputs, |_, output| {
            let values = output.rows.start * embed..output.rows.end * embed;
            let at = [&at_images[values.clone()], &at_texts[values]];
            self.backward(output, at, parts)
        });
        let (mut part, mut attribute) = (0.0, AttributeLoss::default());
        let mut shares = Vec::new();
        for (of_part, of_attribute, gradients) in results {
            part += of_part;
            attribute.total += of_attribute.total;
            attribute.images += of_attribute.images;
            shares.push(gradients);
        }
        let mut gradients = optim::average(shares);
        // The scale occurs only in the gathered loss.
        gradients.insert("logit_scale".to_owned(), scale_gradient);
        BatchGradients {
            contrastive,
            contrastive_floor,
            part,
            attribute,
            gradients,
        }
    }

    /// The features of the pairs `rows` by a replica.
    fn forward(&self, clip: Clip, rows: Range<usize>) -> ReplicaFeatures {
        let batch = self.batch;
        let (count, [height, width]) = (rows.len(), batch.size);
        let tracked = self.device.clone().autodiff();
        let pixels = 3 * height * width;
        let images = batch.images[rows.start * pixels..rows.end * pixels].to_vec();
        let shape = [count, 3, height, width];
        let images = Tensor::<4>::from_data(TensorData::new(images, shape), &tracked);
        let columns = batch.columns;
        let tokens = &batch.tokens[rows.start * columns..rows.end * columns];
        let tokens = integers(tokens.to_vec(), [count, columns], &tracked);
        let patches = self
            .patches
            .map(|patches| integers(patches.to_vec(), [patches.len()], &tracked));
        let (maps, images) = match self.part {
            Some(_) => {
                let variants = [Dense::Clear, Dense::Mask];
                let (maps, images) = clip.encode_image_tokens(images, patches, variants);
                (Some(maps), images)
            }
            None => (None, clip.encode_image_patches(images, patches)),
        };
        let texts = clip.encode_text(tokens);
        ReplicaFeatures {
            clip,
            rows,
            maps,
            images,
            texts,
        }
    }

    /// The part and attribute losses of a replica's share, and the gradients of the parameters.
    ///
    /// `at`: gradient of the contrastive loss with respect to the image and text features, times
    /// `parts`, the number of replicas.
    fn backward(
        &self,
        output: ReplicaFeatures,
        at: [&[f32]; 2],
        parts: f64,
    ) -> (f32, AttributeLoss, Gradients) {
        let ReplicaFeatures {
            clip,
            rows,
            maps,
            images,
            texts,
        } = output;
        let tracked = self.device.clone().autodiff();
        let attribute = self.attribute.map(|attribute| {
            let loss = attribute.loss(&clip, images.clone(), maps.as_ref(), &rows, &tracked);
            (loss, attribute.weight)
        });
        let part = match (self.part, maps) {
            (Some(part), Some(maps)) => part
                .loss(&clip, maps, &rows, &tracked)
                .map(|loss| (loss, part.weight)),
            _ => None,
        };
        let shape = images.dims();
        let [at_images, at_texts] =
            at.map(|at| Tensor::<2>::from_data(TensorData::new(at.to_vec(), shape), &tracked));
        // d/dw Σ f(w)·g is the gradient of the loss when g is the loss's gradient on the features.
        let mut product = (images * at_images).sum() + (texts * at_texts).sum();
        let (mut of_part, mut of_attribute) = (0.0, AttributeLoss::default());
        if let Some((loss, weight)) = part {
            of_part = loss.clone().into_scalar::<f32>();
            product = product + loss * (weight * parts);
        }
        if let Some(((loss, of_images), weight)) = attribute {
            of_attribute.total = loss.clone().into_scalar::<f32>();
            of_attribute.images = of_images;
            product = product + loss * (weight * parts);
        }
        let gradients = optim::gradients(&clip, &mut product.backward());
        (of_part, of_attribute, gradients)
    }
}
