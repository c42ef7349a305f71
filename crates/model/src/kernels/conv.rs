//! Convolutions and transposed convolutions as matrix products over patches.
//!
//! A convolution multiplies its weights with the patches of a map; a transposed one makes patches
//! and adds them up. Each is the other's gradient. Patches are made for some rows of a map at a
//! time, so that they stay in the cache. (Burn's gradient of the weights is a convolution with a
//! kernel as large as the map, whose products are long and nine rows high: docs/LOG.md.)

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{
    matrix::{MatrixView, add_product, set_product},
    norm::total,
    operation::{FusedOperation, Operand, apply},
};

/// Positions whose patches are made at a time.
const RUN: usize = 256;

/// How patches lie on a map: for each position of a grid one of kernel x kernel values.
#[derive(Debug, Clone, Copy)]
struct Patches {
    channels: usize,
    /// Height and width of the map.
    map: [usize; 2],
    /// Rows and columns of the grid.
    grid: [usize; 2],
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Patches {
    fn area(&self) -> usize {
        self.map[0] * self.map[1]
    }

    fn positions(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Values of a patch.
    fn depth(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Stretches of rows of the grid.
    fn strips(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let [rows, columns] = self.grid;
        let step = (RUN / columns).max(1);
        (0..rows)
            .step_by(step)
            .map(move |row| row..(row + step).min(rows))
    }

    /// Values of the patches of a stretch, and where its first position is.
    fn sizes(&self, strip: &std::ops::Range<usize>) -> (usize, usize) {
        let columns = self.grid[1];
        (strip.len() * columns, strip.start * columns)
    }

    /// Calls `each` with every run of neighboring values: where it begins among the patches of a
    /// stretch and on the map, and its length; its values are one after the other among the patches
    /// and `stride` apart on the map.
    fn runs(&self, strip: &std::ops::Range<usize>, mut each: impl FnMut(usize, usize, usize)) {
        let ([height, width], columns) = (self.map, self.grid[1]);
        let (count, _) = self.sizes(strip);
        for channel in 0..self.channels {
            for dy in 0..self.kernel {
                for dx in 0..self.kernel {
                    let line = (channel * self.kernel + dy) * self.kernel + dx;
                    // Columns of the grid whose value lies on the map.
                    let first = self.padding.saturating_sub(dx).div_ceil(self.stride);
                    let end = match (width + self.padding).checked_sub(dx + 1) {
                        Some(last) => columns.min(last / self.stride + 1),
                        None => 0,
                    };
                    if first >= end {
                        continue;
                    }
                    for (index, row) in strip.clone().enumerate() {
                        let Some(y) = (row * self.stride + dy).checked_sub(self.padding) else {
                            continue;
                        };
                        if y < height {
                            let x = first * self.stride + dx - self.padding;
                            let at = line * count + index * columns + first;
                            each(at, (channel * height + y) * width + x, end - first);
                        }
                    }
                }
            }
        }
    }

    /// The patches of a stretch: [depth, positions of the stretch].
    fn gather(&self, strip: &std::ops::Range<usize>, map: &[f32], patches: &mut [f32]) {
        patches.fill(0.0);
        self.runs(strip, |at, from, count| {
            let patches = &mut patches[at..at + count];
            if self.stride == 1 {
                patches.copy_from_slice(&map[from..from + count]);
            } else {
                let values = map[from..].iter().step_by(self.stride);
                patches
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, from)| *to = *from);
            }
        });
    }

    /// Adds patches up where they lie.
    fn scatter(&self, strip: &std::ops::Range<usize>, patches: &[f32], map: &mut [f32]) {
        self.runs(strip, |at, to, count| {
            let patches = &patches[at..at + count];
            if self.stride == 1 {
                let map = &mut map[to..to + count];
                map.iter_mut()
                    .zip(patches)
                    .for_each(|(to, from)| *to += from);
            } else {
                let values = map[to..].iter_mut().step_by(self.stride);
                values.zip(patches).for_each(|(to, from)| *to += from);
            }
        });
    }

    /// Memory for the patches of a stretch.
    fn memory(&self) -> Vec<f32> {
        let longest = self.strips().map(|strip| strip.len()).max().unwrap_or(0);
        vec![0.0; self.depth() * longest * self.grid[1]]
    }
}

/// y = W ∗ x + b with stride 1. x: [batch, inputs, height, width], weight: [outputs, inputs,
/// kernel, kernel], the kernel odd and its padding half of it, so that y has x's height and width.
pub fn conv(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
    let ([batch, channels, height, width], [outputs, _, kernel, _]) = (x.dims(), weight.dims());
    let operation = Convolution {
        patches: Patches {
            channels,
            map: [height, width],
            grid: [height, width],
            kernel,
            stride: 1,
            padding: kernel / 2,
        },
        others: outputs,
        transposed: false,
    };
    let inputs = operation.operands(x, weight, bias, outputs);
    apply(operation, inputs, [batch, outputs, height, width])
}

/// The transposed convolution of x: [batch, inputs, height, width] to [batch, outputs, stride ·
/// height, stride · width]. weight: [inputs, outputs, kernel, kernel], padded by half of what the
/// kernel has beyond the stride.
pub fn conv_transposed(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
) -> Tensor<4> {
    let ([batch, inputs, rows, columns], [_, outputs, kernel, _]) = (x.dims(), weight.dims());
    let map = [stride * rows, stride * columns];
    let operation = Convolution {
        patches: Patches {
            channels: outputs,
            map,
            grid: [rows, columns],
            kernel,
            stride,
            padding: (kernel - stride) / 2,
        },
        others: inputs,
        transposed: true,
    };
    let operands = operation.operands(x, weight, bias, outputs);
    apply(operation, operands, [batch, outputs, map[0], map[1]])
}

#[derive(Debug, Clone)]
struct Convolution {
    patches: Patches,
    /// Channels of the grid.
    others: usize,
    /// Whether the grid goes in and the map comes out.
    transposed: bool,
}

impl Convolution {
    fn operands(
        &self,
        x: Tensor<4>,
        weight: Tensor<4>,
        bias: Option<Tensor<1>>,
        outputs: usize,
    ) -> [Operand; 3] {
        let device = x.device().inner();
        let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], &device));
        [Operand::new(x), Operand::new(weight), Operand::new(bias)]
    }

    /// grid += W · patches of `map`. weight: [others, depth].
    fn to_grid(&self, map: &[f32], weight: MatrixView, grid: &mut [f32], memory: &mut [f32]) {
        let (patches, all) = (self.patches, self.patches.positions());
        for strip in patches.strips() {
            let (count, start) = patches.sizes(&strip);
            let memory = &mut memory[..patches.depth() * count];
            patches.gather(&strip, map, memory);
            add_product(
                &mut grid[start..],
                all,
                weight,
                MatrixView::new(memory, count),
                1.0,
            );
        }
    }

    /// map += Wᵀ · grid, added up.
    fn to_map(&self, grid: &[f32], weight: MatrixView, map: &mut [f32], memory: &mut [f32]) {
        let (patches, all) = (self.patches, self.patches.positions());
        for strip in patches.strips() {
            let (count, start) = patches.sizes(&strip);
            let memory = &mut memory[..patches.depth() * count];
            let values = MatrixView::part(&grid[start..], self.others, count, all);
            set_product(memory, count, weight.t(), values);
            patches.scatter(&strip, memory, map);
        }
    }

    /// sums += grid · patches of `map`ᵀ: the gradient of the weights.
    fn to_weight(&self, grid: &[f32], map: &[f32], sums: &mut [f32], memory: &mut [f32]) {
        let (patches, all) = (self.patches, self.patches.positions());
        for strip in patches.strips() {
            let (count, start) = patches.sizes(&strip);
            let memory = &mut memory[..patches.depth() * count];
            patches.gather(&strip, map, memory);
            let values = MatrixView::part(&grid[start..], self.others, count, all);
            let memory = MatrixView::new(memory, count).t();
            add_product(sums, patches.depth(), values, memory, 1.0);
        }
    }

    /// Values of an image that goes in and of one that comes out.
    fn image_sizes(&self) -> [usize; 2] {
        let grid = self.others * self.patches.positions();
        let map = self.patches.channels * self.patches.area();
        if self.transposed {
            [grid, map]
        } else {
            [map, grid]
        }
    }
}

impl FusedOperation<3> for Convolution {
    type Saved = ();

    fn forward(&self, [x, weight, bias]: [&[f32]; 3], _save: bool) -> (Vec<f32>, Option<()>) {
        let [before, after] = self.image_sizes();
        let weight = MatrixView::new(weight, self.patches.depth());
        let mut out = vec![0.0; x.len() / before * after];
        let images = out.par_chunks_mut(after).zip(x.par_chunks(before));
        images.for_each_init(
            || self.patches.memory(),
            |memory, (out, x)| {
                let channels = out.chunks_exact_mut(after / bias.len());
                channels.zip(bias).for_each(|(out, bias)| out.fill(*bias));
                if self.transposed {
                    self.to_map(x, weight, out, memory);
                } else {
                    self.to_grid(x, weight, out, memory);
                }
            },
        );
        (out, Some(()))
    }

    fn backward(&self, [x, weight, bias]: [&[f32]; 3], (): (), output: Vec<f32>) -> [Vec<f32>; 3] {
        let [before, after] = self.image_sizes();
        let matrix = MatrixView::new(weight, self.patches.depth());
        let mut gradient = vec![0.0; x.len()];
        // A share of the images for each thread, as each has sums as large as the weights.
        let share = (x.len() / before).div_ceil(rayon::current_num_threads());
        let sums: Vec<[Vec<f32>; 2]> = gradient
            .par_chunks_mut(share * before)
            .zip(x.par_chunks(share * before))
            .zip(output.par_chunks(share * after))
            .map(|((gradients, xs), outputs)| {
                let mut memory = self.patches.memory();
                let mut sums = [weight.len(), bias.len()].map(|count| vec![0.0; count]);
                let [weight_sums, bias_sums] = &mut sums;
                let images = gradients
                    .chunks_exact_mut(before)
                    .zip(xs.chunks_exact(before));
                for ((gradient, x), output) in images.zip(outputs.chunks_exact(after)) {
                    if self.transposed {
                        self.to_grid(output, matrix, gradient, &mut memory);
                        self.to_weight(x, output, weight_sums, &mut memory);
                    } else {
                        self.to_map(output, matrix, gradient, &mut memory);
                        self.to_weight(output, x, weight_sums, &mut memory);
                    }
                    let channels = output.chunks_exact(after / bias.len());
                    for (sum, values) in bias_sums.iter_mut().zip(channels) {
                        *sum += values.iter().sum::<f32>();
                    }
                }
                sums
            })
            .collect();
        let (weights, biases) = sums.into_iter().map(|[a, b]| (a, b)).unzip();
        [gradient, total(weights), total(biases)]
    }
}
