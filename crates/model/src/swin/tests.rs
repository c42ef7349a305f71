//! Fused blocks, and those of the kernel for GPUs, against those of Burn's graph.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Tensor},
};

use super::{
    axis::PaddingOrder,
    block::SwinBlock,
    config::{SwinConfig, SwinSizes},
    layout::StageLayout,
    windows::{Partition, WindowPartition, Windows},
};
#[cfg(feature = "gpu")]
use crate::kernels::tests::relative_distance;
use crate::{
    adapter::Adapter,
    kernels::{
        self, Precision, instead_of_bf16,
        tests::{assert_alike, trace},
        unfused,
    },
    layers::{self, DropPath, Rng},
    moe::{MoeConfig, MoeKind},
    named,
    prompt::PromptWeights,
};
use rand_chacha::rand_core::SeedableRng;

/// A block with its input.
#[derive(Module, Debug)]
struct Case {
    block: SwinBlock,
    x: Param<Tensor<4>>,
}

#[test]
fn fused_blocks_are_the_graphs() {
    for seed in 0..24 {
        let traces = traces(seed, None, &Device::flex(), None, &|cut| {
            Partition::Fused(Arc::new(cut.grid()))
        });
        assert_alike(&traces.graph, &traces.other, &traces.geometry);
    }
}

#[cfg(feature = "gpu")]
#[test]
fn blocks_of_a_gpu_are_the_graphs() {
    for traces in traces_of_a_gpu(None) {
        assert_alike(&traces.graph, &traces.other, &traces.geometry);
    }
}

/// In bf16 and in f16, whichever the device has: the kernels are the same.
#[cfg(feature = "gpu")]
#[test]
fn blocks_of_a_gpu_in_16_bits_are_near_the_graphs() {
    let formats = [(DType::BF16, 3e-2), (DType::F16, 4e-3)];
    let formats = formats.map(|(half, most)| (Device::default().supports_dtype(half), half, most));
    assert!(formats.iter().any(|(supported, ..)| *supported));
    for (_, half, most) in formats.into_iter().filter(|(supported, ..)| *supported) {
        let mut worst = 0.0_f64;
        for traces in traces_of_a_gpu(Some(half)) {
            assert!(traces.graph.keys().eq(traces.other.keys()));
            for (name, exact) in &traces.graph {
                let apart = relative_distance(exact, &traces.other[name]);
                let what = format!("{half:?}, {}: {name}: {apart}", traces.geometry);
                assert!(apart < most, "{what}");
                worst = worst.max(apart);
            }
        }
        assert!(worst > most / 100.0, "{half:?} rounds: {worst}");
    }
}

/// Random blocks; then 125 windows of 7×7 with so many heads that a cube takes several in turn, as it does of
/// the 4,500 rows of a norm, whose channels are a multiple of a row's units or not; then wide heads.
#[cfg(feature = "gpu")]
fn traces_of_a_gpu(half: Option<DType>) -> impl Iterator<Item = BlockTraces> {
    let device = Device::default();
    assert!(
        crate::gpu::supports_window_attention(&device, [7, 7], 32, 1),
        "a build for GPUs is tested on one (docs/gpu.md): {device:?}"
    );
    let large = [[32, 4], [9, 4], [2, 32]].map(Some);
    let geometries = [None; 6].into_iter().chain(large);
    (0..).zip(geometries).map(move |(seed, large)| {
        traces(seed, large, &device, half, &|cut| {
            Partition::Kernel(Arc::new(cut.places(&device)))
        })
    })
}

/// Output and gradients of a block.
struct BlockTraces {
    /// By Burn's graph on the CPU.
    graph: BTreeMap<String, Vec<f32>>,
    /// By another partition on a device.
    other: BTreeMap<String, Vec<f32>>,
    geometry: String,
}

/// The traces of a block of a random geometry, or of a large one with so many heads of so many channels; by
/// the other partition with products in `half`.
fn traces(
    seed: u64,
    large: Option<[usize; 2]>,
    device: &Device,
    half: Option<DType>,
    partition: &dyn Fn(&WindowPartition) -> Partition,
) -> BlockTraces {
    let cpu = Device::flex().autodiff();
    let mut device = device.clone().autodiff();
    if seed % 2 == 1 && !kernels::fuses(&device) {
        device = device.gradient_checkpointing();
    }
    let mut rng = Rng::seed_from_u64(seed);
    let mut pick = |most: usize| 1 + (layers::uniform(&mut rng) * most as f64) as usize;
    let (mut heads, mut window) = (pick(3), [1 + pick(4), 1 + pick(4)]);
    let (mut channels, mut size) = (4 * heads * pick(3), [pick(11), pick(11)]);
    let mut batch = pick(3);
    if let Some([count, width]) = large {
        (heads, window, channels) = (count, [7, 7], count * width);
        (size, batch) = ([30, 30], 5);
    }
    let shape = [batch, size[0], size[1], channels];
    let adapter = match seed % 4 {
        1 => Adapter::Moe(MoeConfig {
            form: MoeKind::Merged,
            ..MoeConfig::default()
        }),
        2 => Adapter::Moe(MoeConfig::default()),
        _ => Adapter::None,
    };
    let sizes = SwinSizes {
        embed_dim: channels,
        depths: vec![1],
        num_heads: vec![heads],
        windows: vec![window],
        ..SwinSizes::tiny()
    };
    let config = SwinConfig {
        adapter,
        ..SwinConfig::new(sizes)
    };
    let order = match seed % 2 {
        0 => PaddingOrder::PadThenShift,
        _ => PaddingOrder::ShiftThenPad,
    };
    let shift = window.map(|side| if pick(2) == 1 { 0 } else { side / 2 });
    let case = Case {
        block: SwinBlock::init(&config, [0, 0], 0.3, channels, &mut rng, &cpu),
        x: layers::trunc_normal(shape, 1.0, &mut rng, &cpu),
    };
    // Away from biases and norms that do nothing.
    let case = named::map(case, &mut |_, _, value| {
        let noise = layers::trunc_normal(value.dims(), 0.1, &mut rng, &Device::flex());
        value + noise.val()
    });
    let run = |partition: Partition, device: &Device| {
        let Case { mut block, x } = layers::fork(case.clone(), device);
        // Blocks without experts, with gradient checkpointing and without, a frozen and a large one.
        if matches!(seed % 8, 0 | 3 | 7) {
            layers::cast_weights(block.layers_mut().collect());
            let format = match (Precision::current(), half) {
                (Precision::Bf16, Some(half)) => half,
                _ => DType::F32,
            };
            assert_eq!(block.attn.qkv.weight.val().dtype(), format);
        }
        // As in fine-tuning: blocks after frozen ones, and frozen blocks after others.
        let case = match seed % 6 {
            2 | 5 => Case {
                block,
                x: x.no_grad(),
            },
            1 => Case {
                block: block.no_grad(),
                x,
            },
            _ => Case { block, x },
        };
        let windows = Windows {
            partition,
            resampling: None,
        };
        trace(&case, |case| {
            let prompt_weights = "identity=0.7,part=0.3"
                .parse::<PromptWeights>()
                .unwrap()
                .tensor(device);
            let mut rng = Rng::seed_from_u64(seed);
            let mut drops = DropPath::draw([0.3].into_iter(), shape[0], Some(&mut rng), device);
            case.block
                .forward(case.x.val(), &windows, &prompt_weights, drops.next())
        })
    };
    let layout = StageLayout {
        window,
        shift,
        order,
    };
    let cut = || WindowPartition::new(size, layout);
    let graph = unfused(|| {
        let graph = cut().tensors(&cpu.clone().inner());
        run(Partition::Graph(Arc::new(graph)), &cpu)
    });
    let other = || run(partition(&cut()), &device);
    BlockTraces {
        graph,
        other: match half {
            None => other(),
            Some(half) => Precision::Bf16.within(|| instead_of_bf16(half, other)),
        },
        geometry: format!("{shape:?}, {heads} heads, {layout:?}"),
    }
}
