//! The text tower: causal attention, and where texts end.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The place of each row's end token (the first of its largest numbers) among all tokens: [batch].
pub(super) fn end_positions(tokens: &Tensor<2, Int>, vocabulary: usize) -> Tensor<1, Int> {
    let [batch, length] = tokens.dims();
    let vocabulary = vocabulary as i64;
    let numbers: Vec<i64> = tokens.to_data().iter::<i64>().collect();
    let ends: Vec<i64> = numbers
        .chunks_exact(length)
        .enumerate()
        .map(|(row, numbers)| {
            let mut end = 0;
            for (place, &number) in numbers.iter().enumerate() {
                assert!(
                    (0..vocabulary).contains(&number),
                    "token {number}; the vocabulary has {vocabulary}"
                );
                if number > numbers[end] {
                    end = place;
                }
            }
            (row * length + end) as i64
        })
        .collect();
    Tensor::from_data(TensorData::new(ends, [batch]), &tokens.device())
}

/// Minus infinity above the diagonal, 0 elsewhere: [1, 1, tokens, tokens].
pub(super) fn causal_mask(tokens: usize, device: &Device) -> Tensor<4> {
    let mut mask = vec![0f32; tokens * tokens];
    for row in 0..tokens {
        mask[row * tokens + row + 1..(row + 1) * tokens].fill(f32::NEG_INFINITY);
    }
    Tensor::from_data(TensorData::new(mask, [1, 1, tokens, tokens]), device)
}
