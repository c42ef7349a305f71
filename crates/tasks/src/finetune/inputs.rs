//! Examples as input tensors.

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::prompt::PromptWeights;

use crate::task::Example;

/// The largest height and width of examples.
pub(super) fn size<T>(examples: &[Example<T>]) -> [usize; 2] {
    let most = |axis: usize| examples.iter().map(|example| example.size[axis]).max();
    [0, 1].map(|axis| most(axis).unwrap_or(0))
}

/// Examples as inputs: images `[batch, 3, height, width]`, prompt weights `[batch, prompts]`.
pub(super) fn inputs<T>(
    examples: &[Example<T>],
    prompt: &PromptWeights,
    device: &Device,
) -> (Tensor<4>, Tensor<2>) {
    padded_inputs(examples, size(examples), prompt, device)
}

/// The same, padded with zeros to a height and width.
pub(super) fn padded_inputs<T>(
    examples: &[Example<T>],
    [height, width]: [usize; 2],
    prompt: &PromptWeights,
    device: &Device,
) -> (Tensor<4>, Tensor<2>) {
    let mut pixels = vec![0.0; examples.len() * 3 * height * width];
    for (input, example) in pixels.chunks_exact_mut(3 * height * width).zip(examples) {
        let [rows, columns] = example.size;
        let planes = input.chunks_exact_mut(height * width);
        for (plane, values) in planes.zip(example.pixels.chunks_exact(rows * columns)) {
            let lines = plane
                .chunks_exact_mut(width)
                .zip(values.chunks_exact(columns));
            lines.for_each(|(to, from)| to[..columns].copy_from_slice(from));
        }
    }
    let data = TensorData::new(pixels, [examples.len(), 3, height, width]);
    let images = Tensor::from_data(data, device);
    (images, prompt.tensor(device))
}
