//! Feature maps as pictures: the first three principal components become red, green and blue.

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use clasp_data::image::{Filter, Rgb, normalize, resize};
use clasp_model::prompt::PromptWeights;

use crate::commands::eval::Model;

/// Rounds of power iteration: enough for a picture.
const ROUNDS: usize = 60;

/// The features of the last stage but one, under prompt weights, of images resized to `size`
/// (height, width): one picture for each image, with components shared by all.
///
/// # Errors
///
/// The device failed.
pub fn pictures(
    model: &Model,
    mix: &PromptWeights,
    images: &[Rgb],
    size: [usize; 2],
) -> Result<Vec<Rgb>> {
    let [height, width] = size;
    let preprocess = &model.preprocess;
    let pixels: Vec<f32> = images
        .iter()
        .flat_map(|image| {
            normalize(
                &resize(image, height, width, preprocess.filter),
                preprocess.mean,
                preprocess.std,
            )
        })
        .collect();
    let input = Tensor::from_data(
        TensorData::new(pixels, [images.len(), 3, height, width]),
        &model.device,
    );
    let features = model
        .backbone
        .forward(input, mix.tensor(&model.device), None);
    let mut stages = features.pyramid;
    stages.pop();
    let map = stages.pop().unwrap_or(features.map);
    let [batch, channels, rows, columns] = map.dims();
    let tokens = map
        .swap_dims(1, 2)
        .swap_dims(2, 3)
        .try_into_vec_as::<f32>()
        .map_err(|error| anyhow::anyhow!("reading features: {error}"))?;
    let coordinates = principal(tokens, channels);

    // The range of each color is that of all images, without the few most extreme positions.
    let ranges: Vec<(f32, f32)> = (0..3)
        .map(|c| {
            let mut values: Vec<f32> = coordinates.iter().map(|point| point[c]).collect();
            values.sort_by(f32::total_cmp);
            (
                values[values.len() / 50],
                values[values.len() - 1 - values.len() / 50],
            )
        })
        .collect();
    Ok((0..batch)
        .map(|image| {
            let pixels = coordinates[image * rows * columns..(image + 1) * rows * columns]
                .iter()
                .flat_map(|point| {
                    [0, 1, 2].map(|c| {
                        let (low, high) = ranges[c];
                        (255.0 * (point[c] - low) / (high - low).max(1e-9)).clamp(0.0, 255.0) as u8
                    })
                })
                .collect();
            resize(
                &Rgb::new(columns, rows, pixels),
                height,
                width,
                Filter::Nearest,
            )
        })
        .collect())
}

/// Coordinates of each token along the first three principal directions. `tokens`: [tokens,
/// channels]
fn principal(mut tokens: Vec<f32>, channels: usize) -> Vec<[f32; 3]> {
    let count = tokens.len() / channels;
    for c in 0..channels {
        let mean = (0..count).map(|t| tokens[t * channels + c]).sum::<f32>() / count as f32;
        (0..count).for_each(|t| tokens[t * channels + c] -= mean);
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let mut coordinates = vec![[0.0; 3]; count];
    for k in 0..3 {
        let mut direction: Vec<f32> = (0..channels)
            .map(|c| 1.0 + ((c * (k + 3)) % 7) as f32)
            .collect();
        for _ in 0..ROUNDS {
            let mut next = vec![0.0f32; channels];
            for token in tokens.chunks_exact(channels) {
                let along = dot(token, &direction);
                next.iter_mut()
                    .zip(token)
                    .for_each(|(next, x)| *next += along * x);
            }
            let length = dot(&next, &next).sqrt().max(1e-20);
            direction = next.into_iter().map(|x| x / length).collect();
        }
        for (token, point) in tokens.chunks_exact_mut(channels).zip(&mut coordinates) {
            point[k] = dot(token, &direction);
            token
                .iter_mut()
                .zip(&direction)
                .for_each(|(x, d)| *x -= point[k] * d);
        }
    }
    coordinates
}

#[cfg(test)]
mod tests {
    use super::principal;

    #[test]
    fn the_first_direction_is_that_of_the_largest_spread() {
        // Spread 10 along (0, 1, 0), 2 along (1, 0, 0), 0.1 along (0, 0, 1).
        let tokens: Vec<f32> = (0..200)
            .flat_map(|i| {
                let angle = i as f32 * 0.7;
                [
                    2.0 * angle.cos(),
                    10.0 * (1.3 * angle).sin(),
                    0.1 * (2.1 * angle).cos(),
                ]
            })
            .collect();
        let coordinates = principal(tokens.clone(), 3);
        let mean = tokens.iter().skip(1).step_by(3).sum::<f32>() / 200.0;
        for (point, token) in coordinates.iter().zip(tokens.chunks_exact(3)) {
            assert!(
                (point[0].abs() - (token[1] - mean).abs()).abs() < 0.2,
                "{point:?} {token:?}"
            );
        }
    }
}
