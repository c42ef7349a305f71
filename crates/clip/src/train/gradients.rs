//! The gradient of a step, with the batch split over threads.

use std::sync::mpsc::{Receiver, Sender, channel};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::clip::{Clip, Dense};
use clasp_model::optim::{self, Gradients};

use super::batch::PairBatch;
use super::error::ClipTrainError;
use super::losses::contrastive_loss;
use super::objectives::{AttributeObjective, PartObjective};
use super::tensors::{host, integers};

/// Losses and gradients of a batch.
pub(super) struct BatchGradients {
    pub contrastive: f32,
    pub floor: f32,
    pub dense: f32,
    pub values: f32,
    pub gradients: Gradients,
}

/// All losses and the gradient of every parameter.
pub(super) fn gradients(
    clip: &Clip,
    batch: &PairBatch,
    patches: Option<&[i64]>,
    dense: Option<&PartObjective>,
    values: Option<&AttributeObjective>,
    pools: &[rayon::ThreadPool],
    device: &Device,
) -> Result<BatchGradients, ClipTrainError> {
    let count = batch.captions.len();
    let share = count.div_ceil(pools.len());
    let embed = clip.config().embed;
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (pool, start) in pools.iter().zip((0..count).step_by(share)) {
            let rows = start..count.min(start + share);
            let (features_out, features) = channel::<[Vec<f32>; 2]>();
            let (grads_out, grads) = channel::<FeatureGradients>();
            // Each replica has its own autodiff graph and shares the values.
            let replica = clip.valid().train();
            let part = ReplicaBatch {
                batch,
                rows,
                patches,
                dense,
                values,
                device,
            };
            let handle =
                scope.spawn(move || pool.install(move || part.run(replica, &features_out, &grads)));
            workers.push((handle, features, grads_out));
        }

        let mut gathered = [Vec::new(), Vec::new()];
        for (_, features, _) in &workers {
            let part = features.recv().map_err(|_| ClipTrainError::Worker)?;
            for (all, part) in gathered.iter_mut().zip(part) {
                all.extend(part);
            }
        }
        let tracked = device.clone().autodiff();
        let [images, texts] = gathered.map(|values| {
            Tensor::<2>::from_data(TensorData::new(values, [count, embed]), &tracked).require_grad()
        });
        let log_scale = clip.logit_scale.val().autodiff().require_grad();
        let (loss, floor) = contrastive_loss(
            images.clone(),
            texts.clone(),
            log_scale.clone().exp(),
            &batch.captions,
        );
        let contrastive = loss.clone().into_scalar::<f32>();
        let grads = loss.backward();
        let scale_gradient = log_scale.grad(&grads).ok_or(ClipTrainError::Worker)?;
        // The gradients of the replicas add up, but are averaged below.
        let parts = workers.len() as f64;
        let images = host(images.grad(&grads).ok_or(ClipTrainError::Worker)? * parts);
        let texts = host(texts.grad(&grads).ok_or(ClipTrainError::Worker)? * parts);

        let mut rows = 0;
        for (index, (_, _, grads)) in workers.iter().enumerate() {
            let end = count.min((index + 1) * share) * embed;
            let part = FeatureGradients {
                features: [images[rows..end].to_vec(), texts[rows..end].to_vec()],
                parts,
            };
            grads.send(part).map_err(|_| ClipTrainError::Worker)?;
            rows = end;
        }
        let mut replicas = Vec::new();
        let (mut dense, mut values) = (0.0, 0.0);
        for (handle, _, _) in workers {
            let ([of_tokens, of_values], gradients) =
                handle.join().map_err(|_| ClipTrainError::Worker)??;
            dense += of_tokens;
            values += of_values;
            replicas.push(gradients);
        }
        let mut gradients = optim::average(replicas);
        // The scale occurs only in the gathered loss.
        gradients.insert("logit_scale".to_owned(), scale_gradient);
        Ok(BatchGradients {
            contrastive,
            floor,
            dense,
            values,
            gradients,
        })
    })
}

/// Sent back to a replica: the gradient of the contrastive loss with respect to its features, and
/// the number of replicas.
struct FeatureGradients {
    features: [Vec<f32>; 2],
    parts: f64,
}

/// The share of a batch of one replica.
struct ReplicaBatch<'a> {
    batch: &'a PairBatch,
    rows: std::ops::Range<usize>,
    patches: Option<&'a [i64]>,
    dense: Option<&'a PartObjective>,
    values: Option<&'a AttributeObjective>,
    device: &'a Device,
}

impl ReplicaBatch<'_> {
    /// Sends the features and receives their gradient; returns the part and attribute losses of
    /// this share, and the gradients of the parameters.
    fn run(
        &self,
        replica: Clip,
        features: &Sender<[Vec<f32>; 2]>,
        gradients: &Receiver<FeatureGradients>,
    ) -> Result<([f32; 2], Gradients), ClipTrainError> {
        let batch = self.batch;
        let (count, [height, width]) = (self.rows.len(), batch.size);
        let tracked = self.device.clone().autodiff();
        let pixels = 3 * height * width;
        let images = batch.images[self.rows.start * pixels..self.rows.end * pixels].to_vec();
        let shape = [count, 3, height, width];
        let images = Tensor::<4>::from_data(TensorData::new(images, shape), &tracked);
        let columns = batch.columns;
        let tokens = &batch.tokens[self.rows.start * columns..self.rows.end * columns];
        let tokens = integers(tokens.to_vec(), [count, columns], &tracked);
        let patches = self
            .patches
            .map(|patches| integers(patches.to_vec(), [patches.len()], &tracked));
        let (maps, images) = match self.dense {
            Some(_) => {
                let variants = [Dense::Clear, Dense::Mask];
                let (maps, images) = replica.encode_image_tokens(images, patches, variants);
                (Some(maps), images)
            }
            None => (None, replica.encode_image_patches(images, patches)),
        };
        let texts = replica.encode_text(tokens);
        let parts = [host(images.clone().inner()), host(texts.clone().inner())];
        features.send(parts).map_err(|_| ClipTrainError::Worker)?;
        let (mut values, mut of_values) = (None, 0.0);
        if let Some(step) = self.values {
            let rows = &self.rows;
            let (loss, alone) = step.loss(&replica, images.clone(), maps.as_ref(), rows, &tracked);
            (values, of_values) = (Some(loss), alone);
        }
        let dense = match (self.dense, maps) {
            (Some(dense), Some(maps)) => dense.loss(&replica, maps, &self.rows, &tracked),
            _ => None,
        };

        let FeatureGradients {
            features: [image_gradient, text_gradient],
            parts,
        } = gradients.recv().map_err(|_| ClipTrainError::Worker)?;
        let shape = images.dims();
        let tensor = |values| Tensor::<2>::from_data(TensorData::new(values, shape), &tracked);
        // d/dw Σ f(w)·g is the gradient of the loss when g is the loss's gradient on the features.
        let mut product =
            (images * tensor(image_gradient)).sum() + (texts * tensor(text_gradient)).sum();
        let mut found = [0.0; 2];
        let weights = [
            self.dense.map(|step| step.weight),
            self.values.map(|step| step.weight),
        ];
        for ((loss, weight), found) in [dense, values].into_iter().zip(weights).zip(&mut found) {
            if let (Some(loss), Some(weight)) = (loss, weight) {
                *found = loss.clone().into_scalar::<f32>();
                product = product + loss * (weight * parts);
            }
        }
        found[1] = of_values;
        let gradients = optim::gradients(&replica, &mut product.backward());
        Ok((found, gradients))
    }
}
