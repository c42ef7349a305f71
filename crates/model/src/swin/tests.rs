//! Fused blocks, and those of the kernel for GPUs, against those of Burn's graph.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use super::{
    axis::PaddingOrder,
    block::SwinBlock,
    config::{SwinConfig, SwinSizes},
    layout::StageLayout,
    windows::{Partition, WindowPartition, Windows},
};
use crate::{
    adapter::Adapter,
    kernels::{
        self,
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
        compare_blocks(seed, None, &Device::flex(), &|cut| {
            Partition::Fused(Arc::new(cut.grid()))
        });
    }
}

/// Random blocks; then 125 windows of 7×7 with so many heads that a cube takes several in turn, as it does of
/// the 4,500 rows of a norm, whose channels are a multiple of a row's units or not; then wide heads.
#[cfg(feature = "gpu")]
#[test]
fn blocks_of_a_gpu_are_the_graphs() {
    let device = Device::default();
    assert!(
        crate::gpu::supports_window_attention(&device, [7, 7], 32, 1),
        "a build for GPUs is tested on one (docs/gpu.md): {device:?}"
    );
    let large = [[32, 4], [9, 4], [2, 32]].map(Some);
    let geometries = [None; 6].into_iter().chain(large);
    for (seed, large) in (0..).zip(geometries) {
        compare_blocks(seed, large, &device, &|cut| {
            Partition::Kernel(Arc::new(cut.places(&device)))
        });
    }
}

/// Compares a block by Burn's graph on the CPU with one by another partition on a device: of a random
/// geometry, or a large one with so many heads of so many channels.
fn compare_blocks(
    seed: u64,
    large: Option<[usize; 2]>,
    device: &Device,
    partition: &dyn Fn(&WindowPartition) -> Partition,
) {
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
        let case = layers::fork(case.clone(), device);
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
    assert_alike(
        &unfused(|| {
            let graph = cut().tensors(&cpu.clone().inner());
            run(Partition::Graph(Arc::new(graph)), &cpu)
        }),
        &run(partition(&cut()), &device),
        &format!("{shape:?}, {heads} heads, {layout:?}"),
    );
}
