//! Each operation against Burn's graph, forward and backward, on random shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{
        Device, Tensor, TensorData,
        activation::{gelu, sigmoid, softmax},
        module::{conv_transpose2d, conv2d},
        ops::{ConvOptions, ConvTransposeOptions},
    },
};
use rand::seq::SliceRandom;
use rand_chacha::rand_core::SeedableRng;

use super::{
    activation::Activation,
    attention, conv, mlp,
    mode::Precision,
    norm,
    windows::{Window, WindowGrid},
};
use crate::{
    layers::{self, Rng, scale_samples, uniform},
    named,
};

/// Largest difference over the largest value, of outputs and of gradients.
const TOLERANCE: f32 = 3e-5;

/// The layers of one branch.
#[derive(Module, Debug)]
struct Branch {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    x: Param<Tensor<3>>,
}

/// From 1 to `most`.
fn pick(most: usize, rng: &mut Rng) -> usize {
    1 + (uniform(rng) * most as f64) as usize
}

/// Values of that shape around `center`.
fn random<const D: usize>(shape: [usize; D], center: f64, rng: &mut Rng) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count)
        .map(|_| (center + uniform(rng) - 0.5) as f32)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

fn branch(shape: [usize; 3], hidden: usize, out: usize, rng: &mut Rng) -> Branch {
    let device = Device::flex().autodiff();
    let channels = shape[2];
    let mut linear = |inputs, outputs| Linear {
        weight: Param::from_tensor(random([inputs, outputs], 0.0, rng)),
        bias: Some(Param::from_tensor(random([outputs], 0.0, rng))),
    };
    let (first, second) = (linear(channels, hidden), linear(out, channels));
    let mut norm = LayerNormConfig::new(channels).init(&device);
    norm.gamma = Param::from_tensor(random([channels], 1.0, rng));
    norm.beta = Some(Param::from_tensor(random([channels], 0.0, rng)));
    let x = Param::from_tensor(random(shape, 0.3, rng) * 3.0);
    Branch {
        norm,
        first,
        second,
        x,
    }
}

/// Output and gradients by name, of a loss in which every value counts differently.
pub fn trace<M: Module, const D: usize>(
    module: &M,
    forward: impl Fn(&M) -> Tensor<D>,
) -> BTreeMap<String, Vec<f32>> {
    let output = forward(module);
    let weights = random(output.dims(), 0.2, &mut Rng::seed_from_u64(9));
    // Without a graph, as it would be one without gradient checkpointing.
    let weights = { weights.without_autodiff() }.to_device(&output.device().inner());
    let mut gradients = (output.clone() * weights).sum().backward();
    let mut found: BTreeMap<String, Vec<f32>> = named::gradients(module, &mut gradients)
        .into_iter()
        .map(|(name, gradient)| (name, gradient.try_into_vec_as().unwrap()))
        .collect();
    found.insert(
        "output".to_owned(),
        output.inner().try_into_vec_as().unwrap(),
    );
    found
}

pub fn assert_alike(
    one: &BTreeMap<String, Vec<f32>>,
    other: &BTreeMap<String, Vec<f32>>,
    what: &str,
) {
    let names = |map: &BTreeMap<String, Vec<f32>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other), "{what}");
    for (name, values) in one {
        let largest = values.iter().fold(1e-2f32, |most, v| most.max(v.abs()));
        for (a, b) in values.iter().zip(&other[name]) {
            assert!(
                (a - b).abs() <= TOLERANCE * largest,
                "{what}: {name}: {a} and {b} of {largest}"
            );
        }
    }
}

#[test]
fn layer_norm_is_burns() {
    for seed in 0..10 {
        let rng = &mut Rng::seed_from_u64(seed);
        let shape = [pick(3, rng), pick(9, rng), 1 + pick(70, rng)];
        let parts = branch(shape, 1, 1, rng);
        let graph = trace(&parts, |parts| parts.norm.forward(parts.x.val()));
        let fused = trace(&parts, |parts| {
            norm::layer_norm(parts.x.val(), &parts.norm, 1e-5)
        });
        assert_alike(&graph, &fused, &format!("{shape:?}"));
    }
}

#[test]
fn mlp_is_the_graphs() {
    for seed in 0..12 {
        let rng = &mut Rng::seed_from_u64(seed);
        // Some have more tokens than a run.
        let shape = [
            pick(4, rng),
            pick(if seed < 3 { 400 } else { 20 }, rng),
            1 + pick(40, rng),
        ];
        let hidden = pick(90, rng);
        let parts = branch(shape, hidden, hidden, rng);
        let (activation, function): (_, fn(Tensor<3>) -> Tensor<3>) = if seed % 3 == 0 {
            (Activation::QuickGelu, |x| x.clone() * sigmoid(x * 1.702))
        } else {
            (Activation::Gelu, gelu)
        };
        let factors =
            (seed % 2 == 0).then(|| (0..shape[0]).map(|i| i as f32 * 0.7).collect::<Vec<_>>());
        let graph = trace(&parts, |parts| {
            let x = parts.x.val();
            let y = parts.first.forward(parts.norm.forward(x.clone()));
            x + scale_samples(parts.second.forward(function(y)), factors.as_deref())
        });
        let fused = trace(&parts, |parts| {
            let parameters = mlp::MlpParameters::new(&parts.norm, &parts.first, &parts.second);
            mlp::mlp(parts.x.val(), parameters, 1e-5, activation, factors.clone())
        });
        assert_alike(&graph, &fused, &format!("{shape:?}, {hidden} hidden"));
        let plain = parts.valid();
        let parameters = mlp::MlpParameters::new(&plain.norm, &plain.first, &plain.second);
        let output = mlp::mlp(plain.x.val(), parameters, 1e-5, activation, factors.clone());
        let output: Vec<f32> = output.try_into_vec_as().unwrap();
        assert_eq!(output, fused["output"], "with and without autodiff");
    }
}

#[test]
fn attention_over_all_tokens_is_the_graphs() {
    for seed in 0..12 {
        let rng = &mut Rng::seed_from_u64(seed);
        let (heads, width) = (pick(3, rng), 4 * pick(3, rng));
        let channels = heads * width;
        let shape @ [batch, tokens, _] = [pick(4, rng), pick(40, rng), channels];
        let causal = seed % 2 == 0;
        let parts = branch(shape, 3 * channels, channels, rng);
        let factors =
            (seed % 3 == 0).then(|| (0..batch).map(|i| i as f32 * 0.7).collect::<Vec<_>>());
        let grid = Arc::new(WindowGrid::whole(tokens, causal));
        let graph = trace(&parts, |parts| {
            attention_by_the_graph(parts, None, heads, &grid, factors.as_deref())
        });
        let fused = trace(&parts, |parts| {
            fused_attention(parts, None, heads, &grid, factors.clone())
        });
        assert_alike(&graph, &fused, &format!("{shape:?}, {heads} heads"));
    }
}

/// Windows of `area` positions with so many tokens each, in any order and with padding between, and
/// biases of their scores.
fn random_windows(counts: &[usize], area: usize, causal: bool, rng: &mut Rng) -> WindowGrid {
    let tokens = counts.iter().sum::<usize>();
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    order.shuffle(rng);
    let mut rest = order.into_iter();
    let windows = counts.iter().enumerate().map(|(index, count)| {
        let mut tokens: Vec<Option<u32>> = rest.by_ref().take(*count).map(Some).collect();
        tokens.resize(area, None);
        tokens.shuffle(rng);
        let regions = (0..area).map(|_| pick(2, rng) as u8).collect();
        Window {
            tokens,
            regions: if index % 2 == 0 { Vec::new() } else { regions },
            penalty: -3.0,
        }
    });
    let windows = windows.collect();
    let bias_index = (0..area * area).map(|_| pick(9, rng) as u32 - 1).collect();
    WindowGrid::new([tokens, area], windows, bias_index, causal)
}

fn fused_attention(
    parts: &Branch,
    table: Option<Tensor<2>>,
    heads: usize,
    grid: &Arc<WindowGrid>,
    factors: Option<Vec<f32>>,
) -> Tensor<3> {
    let Branch {
        norm,
        first,
        second,
        x,
    } = parts;
    let parameters = attention::AttentionParameters::new(norm, first, second, table);
    attention::attention(x.val(), parameters, 1e-5, heads, grid.clone(), factors)
}

/// [`fused_attention`] by Burn's graph, window by window.
fn attention_by_the_graph(
    parts: &Branch,
    table: Option<&Tensor<2>>,
    heads: usize,
    grid: &WindowGrid,
    factors: Option<&[f32]>,
) -> Tensor<3> {
    let x = parts.x.val();
    let [batch, tokens, channels] = x.dims();
    let (area, width) = (grid.area, channels / heads);
    let indices = |values: Vec<i64>| -> Tensor<1, burn::tensor::Int> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &Device::flex())
    };
    let qkv = parts.first.forward(parts.norm.forward(x.clone()));
    // The row after the last token is padding.
    let bias = parts.first.bias.as_ref().unwrap().val();
    let padding = bias.reshape([1, 1, 3 * channels]).repeat_dim(0, batch);
    let rows = Tensor::cat(vec![qkv, padding], 1);
    let bias = table.map(|table| {
        let index = grid.bias_index.iter().map(|index| i64::from(*index));
        let bias = table.clone().select(0, indices(index.collect()));
        bias.reshape([area, area, heads]).permute([2, 0, 1])
    });
    let mut place = vec![0; tokens];
    let outputs = grid.windows.iter().enumerate().map(|(index, window)| {
        let mut mask = vec![0.0; area * area];
        for (pair, mask) in mask.iter_mut().enumerate() {
            let (row, column) = (pair / area, pair % area);
            if window.regions.get(row) != window.regions.get(column) {
                *mask += window.penalty;
            }
            if grid.causal && column > row {
                *mask = -1e30;
            }
        }
        let mask = TensorData::new(mask, [1, 1, area, area]);
        let mask = Tensor::<4>::from_data(mask, &Device::flex().autodiff());
        let tokens = window.tokens.iter().enumerate().map(|(position, token)| {
            token.map_or(tokens as i64, |token| {
                place[token as usize] = (index * area + position) as i64;
                i64::from(token)
            })
        });
        let qkv = rows.clone().select(1, indices(tokens.collect()));
        let qkv = qkv
            .reshape([batch, area, 3, heads, width])
            .permute([2, 0, 3, 1, 4]);
        let [query, key, value] =
            [0, 1, 2].map(|i| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0));
        let scores = query.matmul(key.swap_dims(2, 3)) * (width as f64).powf(-0.5);
        let scores = match bias.clone() {
            Some(bias) => scores + mask + bias.unsqueeze(),
            None => scores + mask,
        };
        let mixed = softmax(scores, 3).matmul(value).swap_dims(1, 2);
        mixed.reshape([batch, area, channels])
    });
    let outputs = Tensor::cat(outputs.collect(), 1);
    let mixed = outputs.select(1, indices(place));
    x + scale_samples(parts.second.forward(mixed), factors)
}

#[test]
fn attention_in_windows_with_padding_is_the_graphs() {
    // Tokens of each window; positions of all; images. Windows without tokens at both ends, a window
    // without padding, windows that exceed a run of 512 tokens together or alone.
    let cases: [(&[usize], usize, usize); 5] = [
        (&[0, 17, 5, 9, 0], 17, 3),
        (&[4], 4, 1),
        (&[16, 16, 1], 16, 5),
        (&[40; 15], 41, 2),
        (&[530], 531, 3),
    ];
    for (seed, (counts, area, batch)) in cases.into_iter().enumerate() {
        let rng = &mut Rng::seed_from_u64(seed as u64);
        let (heads, width) = (2, 4);
        let channels = heads * width;
        let shape = [batch, counts.iter().sum(), channels];
        let grid = Arc::new(random_windows(counts, area, seed % 2 == 1, rng));
        let parts = branch(shape, 3 * channels, channels, rng);
        let table = random([9, heads], 0.0, rng);
        let factors =
            (seed % 2 == 0).then(|| (0..batch).map(|i| i as f32 * 0.7).collect::<Vec<_>>());
        let graph = trace(&parts, |parts| {
            attention_by_the_graph(parts, Some(&table), heads, &grid, factors.as_deref())
        });
        let block = |parts: &Branch, table: Tensor<2>| {
            fused_attention(parts, Some(table), heads, &grid, factors.clone())
        };
        for threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let fused = trace(&parts, |parts| block(parts, table.clone()));
                assert_alike(&graph, &fused, &format!("case {seed}, {threads} threads"));
                for precision in [Precision::F32, Precision::Bf16] {
                    let [plain, tracked] = precision.within(|| {
                        let plain = block(&parts.valid(), table.clone().inner());
                        [plain, block(&parts, table.clone()).inner()]
                            .map(|x| x.try_into_vec_as::<f32>().unwrap())
                    });
                    let same = plain == tracked;
                    assert!(same, "case {seed}, {precision}: with and without autodiff");
                }
            });
        }
    }
}

#[test]
#[should_panic(expected = "hold each of them once")]
fn windows_hold_every_token() {
    let window = Window {
        tokens: vec![Some(1), Some(1)],
        regions: Vec::new(),
        penalty: 0.0,
    };
    WindowGrid::new([2, 2], vec![window], vec![0; 4], false);
}

#[test]
fn the_same_bits_on_one_thread() {
    let run = || {
        let rng = &mut Rng::seed_from_u64(5);
        let parts = branch([3, 50, 32], 64, 64, rng);
        trace(&parts, |parts| {
            let parameters = mlp::MlpParameters::new(&parts.norm, &parts.first, &parts.second);
            mlp::mlp(
                parts.x.val(),
                parameters,
                layers::EPSILON,
                Activation::Gelu,
                None,
            )
        })
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(pool.install(run), pool.install(run));
    assert_alike(&pool.install(run), &run(), "threads");
}

#[test]
fn bf16_is_near_and_holds_for_what_is_started_in_it() {
    let rng = &mut Rng::seed_from_u64(6);
    let parts = branch([2, 40, 48], 3 * 48, 48, rng);
    let grid = Arc::new(WindowGrid::whole(40, false));
    let block = |parts: &Branch| fused_attention(parts, None, 3, &grid, None);
    let values = |x: Tensor<3>| -> Vec<f32> { x.try_into_vec_as().unwrap() };
    let plain = parts.valid();
    let exact = values(block(&plain));
    let rounded = values(Precision::Bf16.within(|| block(&plain)));
    let largest = exact.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let difference =
        { exact.iter().zip(&rounded) }.fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        difference > 1e-5 * largest && difference < 1e-2 * largest,
        "{difference} of {largest}"
    );
    // The same where gradients are asked for; what comes after is as before, a panic included.
    assert_eq!(
        Precision::Bf16.within(|| values(block(&parts).inner())),
        rounded
    );
    let panics = std::panic::catch_unwind(|| Precision::Bf16.within(|| panic!("on purpose")));
    assert!(panics.is_err());
    assert_eq!(values(block(&plain)), exact);
}

/// Distance of two vectors over the length of the first; 0 of equal ones.
pub fn relative_distance(one: &[f32], other: &[f32]) -> f64 {
    assert_eq!(one.len(), other.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut one.iter().zip(other).map(|(a, b)| f64::from(a - b)));
    if difference == 0.0 {
        return 0.0;
    }
    (difference / squares(&mut one.iter().map(|x| f64::from(*x)))).sqrt()
}

#[test]
fn gradients_in_bf16_are_those_in_f32_within_its_rounding() {
    let rng = &mut Rng::seed_from_u64(8);
    // More tokens than a run, and sizes that fill no block.
    let [first, second] = [
        branch([3, 300, 48], 100, 100, rng),
        branch([3, 40, 48], 144, 48, rng),
    ];
    let grid = Arc::new(WindowGrid::whole(40, false));
    let traces = [Precision::F32, Precision::Bf16].map(|precision| {
        let within = |block: &dyn Fn() -> Tensor<3>| precision.within(block);
        let mlp = trace(&first, |parts| {
            let parameters = mlp::MlpParameters::new(&parts.norm, &parts.first, &parts.second);
            within(&|| {
                mlp::mlp(
                    parts.x.val(),
                    parameters.clone(),
                    1e-5,
                    Activation::Gelu,
                    None,
                )
            })
        });
        let attention = trace(&second, |parts| {
            within(&|| fused_attention(parts, None, 3, &grid, None))
        });
        [mlp, attention]
    });
    let [exact, rounded] = traces;
    for (exact, rounded) in exact.iter().zip(&rounded) {
        for (name, exact) in exact {
            let apart = relative_distance(exact, &rounded[name]);
            assert!(apart < 1e-2, "{name}: {apart}");
            // The bias of the second layer gets the gradient of the sum as it is.
            assert!(apart > 1e-5 || name == "second.bias", "{name}: {apart}");
        }
    }
}

/// A convolution's input and parameters.
#[derive(Module, Debug)]
struct Maps {
    x: Param<Tensor<4>>,
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

#[test]
fn convolutions_are_the_graphs() {
    for seed in 0..24 {
        let rng = &mut Rng::seed_from_u64(seed);
        let [inputs, outputs] = [pick(9, rng), pick(9, rng)];
        // Some maps have more positions than a run, some are smaller than the kernel.
        let size = [pick(if seed < 4 { 40 } else { 8 }, rng), pick(20, rng)];
        let transposed = seed % 2 == 0;
        let (kernel, stride) = match (transposed, seed % 3) {
            (false, odd) => ([1, 3, 5][odd as usize], 1),
            (true, 0) => (2, 2),
            (true, 1) => (4, 2),
            (true, _) => (4, 4),
        };
        let weight = if transposed {
            [inputs, outputs, kernel, kernel]
        } else {
            [outputs, inputs, kernel, kernel]
        };
        let parts = Maps {
            x: Param::from_tensor(random([pick(5, rng), inputs, size[0], size[1]], 0.1, rng)),
            weight: Param::from_tensor(random(weight, 0.0, rng)),
            bias: Param::from_tensor(random([outputs], 0.0, rng)),
        };
        let graph = trace(&parts, |parts| {
            let (x, weight, bias) = (parts.x.val(), parts.weight.val(), Some(parts.bias.val()));
            let padding = (kernel - stride) / 2;
            if transposed {
                let options =
                    ConvTransposeOptions::new([stride; 2], [padding; 2], [0; 2], [1; 2], 1);
                conv_transpose2d(x, weight, bias, options)
            } else {
                let options = ConvOptions::new([1; 2], [padding; 2], [1; 2], 1);
                conv2d(x, weight, bias, options)
            }
        });
        let fused = trace(&parts, |parts| {
            let (x, weight, bias) = (parts.x.val(), parts.weight.val(), Some(parts.bias.val()));
            if transposed {
                conv::conv_transposed(x, weight, bias, stride)
            } else {
                conv::conv(x, weight, bias)
            }
        });
        assert_alike(&graph, &fused, &format!("{weight:?} on {size:?}"));
    }
}
