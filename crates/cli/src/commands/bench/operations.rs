//! The operations of a network, each on its own: the first thing to look at where the whole differs.

use burn::tensor::activation::{log_softmax, relu, sigmoid, silu, softmax};
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_model::layers::{gelu, layer_norm, normalize};

use super::apart::{farthest, largest, values};

/// An operation with a gradient.
struct Operation {
    name: &'static str,
    /// Elements of each input.
    inputs: &'static [usize],
    compute: fn(&[Tensor<1>]) -> Tensor<1>,
}

/// Rows of the matrices below: the tokens of a few views.
const ROWS: usize = 1536;
const CHANNELS: usize = 32;
const HIDDEN: usize = 128;
/// Windows of 7×7 positions and their heads.
const WINDOWS: usize = 48;
const AREA: usize = 49;
const WIDTH: usize = 16;
/// Images and prototypes of a head.
const BATCH: usize = 12;
const PROTOTYPES: usize = 256;

/// What the backbones, heads and losses are made of. Each product has its two transposed products
/// as gradients.
const OPERATIONS: &[Operation] = &[
    Operation {
        name: "add_broadcast",
        inputs: &[ROWS * CHANNELS, CHANNELS],
        compute: |x| {
            (x[0].clone().reshape([ROWS, CHANNELS]) + x[1].clone().unsqueeze::<2>()).reshape([-1])
        },
    },
    Operation {
        name: "multiply_broadcast",
        inputs: &[ROWS * CHANNELS, CHANNELS],
        compute: |x| {
            (x[0].clone().reshape([ROWS, CHANNELS]) * x[1].clone().unsqueeze::<2>()).reshape([-1])
        },
    },
    Operation {
        name: "divide_broadcast",
        inputs: &[ROWS * CHANNELS, ROWS],
        compute: |x| {
            let norm = x[1].clone().reshape([ROWS, 1]).square() + 0.5;
            (x[0].clone().reshape([ROWS, CHANNELS]) / norm).reshape([-1])
        },
    },
    Operation {
        name: "sum",
        inputs: &[ROWS * CHANNELS],
        compute: |x| x[0].clone().square().sum(),
    },
    Operation {
        name: "sum_rows",
        inputs: &[ROWS * CHANNELS],
        compute: |x| {
            let x = x[0].clone().reshape([ROWS, CHANNELS]);
            x.square().sum_dim(0).reshape([-1])
        },
    },
    Operation {
        name: "mean_columns",
        inputs: &[ROWS * CHANNELS],
        compute: |x| {
            let x = x[0].clone().reshape([ROWS, CHANNELS]);
            x.square().mean_dim(1).reshape([-1])
        },
    },
    Operation {
        name: "linear",
        inputs: &[ROWS * CHANNELS, CHANNELS * HIDDEN, HIDDEN],
        compute: |x| {
            linear(
                x[0].clone().reshape([BATCH, ROWS / BATCH, CHANNELS]),
                x[1].clone().reshape([CHANNELS, HIDDEN]),
                Some(x[2].clone()),
            )
            .reshape([-1])
        },
    },
    Operation {
        name: "linear_narrowing",
        inputs: &[ROWS * HIDDEN, HIDDEN * CHANNELS, CHANNELS],
        compute: |x| {
            linear(
                x[0].clone().reshape([BATCH, ROWS / BATCH, HIDDEN]),
                x[1].clone().reshape([HIDDEN, CHANNELS]),
                Some(x[2].clone()),
            )
            .reshape([-1])
        },
    },
    Operation {
        name: "linear_of_maps",
        inputs: &[ROWS * CHANNELS, CHANNELS * 3 * CHANNELS, 3 * CHANNELS],
        compute: |x| {
            linear(
                x[0].clone().reshape([BATCH, 16, 8, CHANNELS]),
                x[1].clone().reshape([CHANNELS, 3 * CHANNELS]),
                Some(x[2].clone()),
            )
            .reshape([-1])
        },
    },
    Operation {
        name: "matmul_of_heads",
        inputs: &[WINDOWS * AREA * WIDTH, WINDOWS * AREA * WIDTH],
        compute: |x| {
            let [query, key] =
                [0, 1].map(|input| x[input].clone().reshape([WINDOWS, 1, AREA, WIDTH]));
            query.matmul(key.swap_dims(2, 3)).reshape([-1])
        },
    },
    Operation {
        name: "matmul_transposed",
        inputs: &[BATCH * CHANNELS, PROTOTYPES * CHANNELS],
        compute: |x| {
            let weight = x[1].clone().reshape([PROTOTYPES, CHANNELS]);
            let x = x[0].clone().reshape([BATCH, CHANNELS]);
            x.matmul(weight.transpose()).reshape([-1])
        },
    },
    Operation {
        name: "attention",
        inputs: &[3 * WINDOWS * AREA * WIDTH, WINDOWS * AREA * AREA],
        compute: |x| {
            let qkv = x[0].clone().reshape([3, WINDOWS, AREA, WIDTH]);
            let [query, key, value] = [0, 1, 2].map(|part| qkv.clone().narrow(0, part, 1));
            let scores = (query * 0.25).matmul(key.swap_dims(2, 3))
                + x[1].clone().reshape([1, WINDOWS, AREA, AREA]);
            softmax(scores, 3).matmul(value).reshape([-1])
        },
    },
    Operation {
        name: "softmax",
        inputs: &[WINDOWS * AREA * AREA],
        compute: |x| {
            let scores = x[0].clone().reshape([WINDOWS, AREA, AREA]);
            softmax(scores * 4.0, 2).reshape([-1])
        },
    },
    Operation {
        name: "log_softmax",
        inputs: &[BATCH * PROTOTYPES],
        compute: |x| {
            let logits = x[0].clone().reshape([BATCH, PROTOTYPES]);
            log_softmax(logits.div_scalar(0.1), 1).reshape([-1])
        },
    },
    Operation {
        name: "log_softmax_of_channels",
        inputs: &[BATCH * 8 * AREA],
        compute: |x| {
            let logits = x[0].clone().reshape([BATCH, 8, 7, 7]);
            log_softmax(logits, 1).reshape([-1])
        },
    },
    Operation {
        name: "layer_norm",
        inputs: &[ROWS * CHANNELS],
        compute: |x| {
            let norm = layer_norm(CHANNELS, &x[0].device());
            normalize(x[0].clone().reshape([ROWS, CHANNELS]), &norm).reshape([-1])
        },
    },
    Operation {
        name: "gelu",
        inputs: &[ROWS * HIDDEN],
        compute: |x| gelu(x[0].clone() * 3.0),
    },
    Operation {
        // Not used in training: its gradient is that of an approximation.
        name: "gelu_of_burn",
        inputs: &[ROWS * HIDDEN],
        compute: |x| burn::tensor::activation::gelu(x[0].clone() * 3.0),
    },
    Operation {
        name: "silu",
        inputs: &[ROWS * HIDDEN],
        compute: |x| silu(x[0].clone() * 3.0),
    },
    Operation {
        name: "relu",
        inputs: &[ROWS * HIDDEN],
        compute: |x| relu(x[0].clone()),
    },
    Operation {
        name: "sigmoid",
        inputs: &[ROWS * HIDDEN],
        compute: |x| sigmoid(x[0].clone() * 3.0),
    },
    Operation {
        name: "exponential",
        inputs: &[ROWS * HIDDEN],
        compute: |x| (x[0].clone() * 3.0).exp(),
    },
    Operation {
        name: "logarithm",
        inputs: &[ROWS * HIDDEN],
        compute: |x| (x[0].clone().square() + 0.01).log(),
    },
    Operation {
        name: "square_root",
        inputs: &[ROWS * HIDDEN],
        compute: |x| (x[0].clone().square() + 0.01).sqrt(),
    },
    Operation {
        name: "l2_normalize",
        inputs: &[BATCH * CHANNELS],
        compute: |x| {
            let x = x[0].clone().reshape([BATCH, CHANNELS]);
            let norm = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
            (x / norm).reshape([-1])
        },
    },
    Operation {
        name: "select",
        inputs: &[169 * 2],
        compute: |x| {
            let table = x[0].clone().reshape([169, 2]);
            let index: Vec<i64> = (0..AREA * AREA)
                .map(|pair| (pair * 7 % 169) as i64)
                .collect();
            let count = index.len();
            let index = Tensor::<1, Int>::from_data(
                TensorData::new(index, [count]),
                &table.device().inner(),
            );
            table.select(0, index).reshape([-1])
        },
    },
    Operation {
        name: "narrow_and_concatenate",
        inputs: &[BATCH * 16 * 8 * CHANNELS],
        compute: |x| {
            let x = x[0].clone().reshape([BATCH, 16, 8, CHANNELS]);
            let zeros = Tensor::zeros([BATCH, 5, 8, CHANNELS], &x.device());
            let rows = vec![x.clone().narrow(1, 3, 13), x.narrow(1, 0, 3), zeros];
            Tensor::cat(rows, 1).reshape([-1])
        },
    },
    Operation {
        name: "permute",
        inputs: &[BATCH * 14 * 14 * 3 * CHANNELS],
        compute: |x| {
            x[0].clone()
                .reshape([BATCH, 2, 7, 2, 7, 3, 2, CHANNELS / 2])
                .permute([5, 0, 1, 3, 6, 2, 4, 7])
                .reshape([-1])
        },
    },
];

/// Names of all operations, and how far their results and their gradients are apart from those of
/// the CPU: the largest difference over the largest value of a tensor, at most.
pub fn differences(device: &Device) -> Vec<(&'static str, f64)> {
    let cpu = Device::flex();
    let apart = |operation: &Operation| {
        let (one, other) = (results(operation, &cpu), results(operation, device));
        let apart = { one.iter().zip(&other) }
            .map(|(one, other)| farthest(one, other) / largest(one))
            .fold(0.0, f64::max);
        (operation.name, apart)
    };
    OPERATIONS.iter().map(apart).collect()
}

/// The output, and the gradients of its sum with weights.
fn results(operation: &Operation, device: &Device) -> Vec<Vec<f32>> {
    let graph = device.clone().autodiff();
    let tensor = |count: usize, seed: usize, device: &Device| {
        Tensor::<1>::from_data(TensorData::new(numbers(count, seed), [count]), device)
    };
    let inputs: Vec<Tensor<1>> = { operation.inputs.iter().enumerate() }
        .map(|(index, &count)| tensor(count, index, &graph).require_grad())
        .collect();
    let output = (operation.compute)(&inputs);
    let weights = tensor(output.dims()[0], inputs.len(), &graph);
    let gradients = (output.clone() * weights).sum().backward();
    let gradients = { inputs.iter() }
        .filter_map(|input| input.grad(&gradients))
        .map(values);
    [values(output.inner())]
        .into_iter()
        .chain(gradients)
        .collect()
}

/// Numbers between −1 and 1 that are the same on every machine.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed as u64 + 1);
    (0..count)
        .map(|_| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
            bits as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
