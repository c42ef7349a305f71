//! Fused blocks against those of Burn's graph.

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
    kernels::tests::{assert_alike, trace},
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
    let device = Device::flex().autodiff();
    for seed in 0..24 {
        let mut rng = Rng::seed_from_u64(seed);
        let mut pick = |most: usize| 1 + (layers::uniform(&mut rng) * most as f64) as usize;
        let (heads, window) = (pick(3), [1 + pick(4), 1 + pick(4)]);
        let (channels, size) = (4 * heads * pick(3), [pick(11), pick(11)]);
        let shape = [pick(3), size[0], size[1], channels];
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
            block: SwinBlock::init(&config, [0, 0], 0.3, channels, &mut rng, &device),
            x: layers::trunc_normal(shape, 1.0, &mut rng, &device),
        };
        // Away from biases and norms that do nothing.
        let case = named::map(case, &mut |_, _, value| {
            let noise = layers::trunc_normal(value.dims(), 0.1, &mut rng, &Device::flex());
            value + noise.val()
        });
        let run = |partition: Partition| {
            let windows = Windows {
                partition,
                resampling: None,
            };
            trace(&case, |case| {
                let prompt_weights = "identity=0.7,part=0.3"
                    .parse::<PromptWeights>()
                    .unwrap()
                    .tensor(&device);
                let mut rng = Rng::seed_from_u64(seed);
                let mut drops =
                    DropPath::draw([0.3].into_iter(), shape[0], Some(&mut rng), &device);
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
            &run(Partition::Graph(Arc::new(cut().tensors(&device)))),
            &run(Partition::Fused(Arc::new(cut().grid()))),
            &format!("{shape:?}, {heads} heads, {layout:?}"),
        );
    }
}
