//! Heads and losses of tasks against PyTorch. `golden/heads.py` makes the values.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use clasp_model::heads::{
    Ce2pConfig, DetectionHeadConfig, DetectionOutput, PoseHead, Statistics, Training,
    TwoStageConfig, TwoStageHead,
    regions::{Region, cut},
    update_statistics,
};
use clasp_model::layers::Rng;
use clasp_model::losses::{
    DetectionTargets, OimMemory, batch_hard_triplet, box_loss, cross_entropy, detection_losses,
    edge_loss, edges_of, heatmap_loss, lovasz_softmax, objectness_loss, pixel_cross_entropy,
    refined_divergence, weighted_bce,
};
use clasp_model::named;
use clasp_model::prompt::PromptWeights;
use clasp_model::swin::{SwinConfig, SwinSizes, WindowPadding};
use rand_chacha::rand_core::SeedableRng;
use safetensors::SafeTensors;

const OPS: f64 = 1e-5;
const MODELS: f64 = 1e-4;

struct Golden(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Golden {
    fn load() -> Self {
        let bytes = include_bytes!("golden/heads.safetensors");
        let file = SafeTensors::deserialize(bytes).unwrap();
        let read = |view: safetensors::tensor::TensorView<'_>| {
            let values = view.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (view.shape().to_vec(), values.collect())
        };
        let tensors = file.tensors();
        Self(
            tensors
                .into_iter()
                .map(|(name, view)| (name, read(view)))
                .collect(),
        )
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.0[name].1.clone()
    }

    #[track_caller]
    fn check<const D: usize>(&self, name: &str, found: Tensor<D>, tolerance: f64) {
        let (shape, values) = &self.0[name];
        let expected = TensorData::new(values.clone(), shape.clone());
        let found = found.without_autodiff().into_data();
        let largest = values
            .iter()
            .fold(1.0_f64, |m, v| m.max(f64::from(v.abs())));
        found.assert_approx_eq(&expected, Tolerance::<f32>::absolute(tolerance * largest));
    }
}

/// As in `heads.py`.
fn noise(name: &str, count: usize) -> Vec<f32> {
    let key = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |key, byte| {
        (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (1..=count as u64)
        .map(|index| {
            let mut z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            ((z >> 11) as f64 * 2f64.powi(-52) - 1.0) as f32
        })
        .collect()
}

fn tensor<const D: usize>(name: &str, shape: [usize; D], scale: f32, device: &Device) -> Tensor<D> {
    let values: Vec<f32> = { noise(name, shape.iter().product()).into_iter() }
        .map(|v| v * scale)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn fill<M: Module>(module: M, prefix: &str) -> M {
    named::map(module, &mut |name, shape, value| {
        let count = shape.iter().product();
        let one = shape.len() == 1 && (name.ends_with("weight") || name.ends_with("running_var"));
        let (offset, scale) = match shape.len() {
            1 => (f32::from(u8::from(one)), 0.1),
            _ => (
                0.0,
                (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32,
            ),
        };
        let values = noise(&format!("{prefix}.{name}"), count).into_iter();
        let values: Vec<f32> = values.map(|v| offset + scale * v).collect();
        Tensor::from_data(TensorData::new(values, [count]), &value.device())
    })
}

/// Evaluates, then trains one step, as `both_modes` in `heads.py`.
fn both_modes<M: Module + Clone>(
    golden: &Golden,
    name: &str,
    head: M,
    maps: &[Tensor<4>],
    names: &[&str],
    forward: impl Fn(&M, &[Tensor<4>], Option<&mut Training<'_>>) -> Vec<Tensor<4>>,
) {
    let head = fill(head, name);
    for (key, output) in names.iter().zip(forward(&head.valid(), maps, None)) {
        golden.check(&format!("{name}.eval.{key}"), output, MODELS);
    }
    let leaves: Vec<Tensor<4>> = maps
        .iter()
        .map(|map| Tensor::from_inner(map.clone()).require_grad())
        .collect();
    let (mut statistics, mut rng) = (Statistics::new(), Rng::seed_from_u64(0));
    let mut training = Training {
        statistics: &mut statistics,
        rng: &mut rng,
    };
    let outputs = forward(&head, &leaves, Some(&mut training));
    let mut sum: Option<Tensor<1>> = None;
    for (i, (key, output)) in names.iter().zip(outputs).enumerate() {
        let probe: Tensor<4> = tensor(
            &format!("{name}.probe.{i}"),
            output.dims(),
            1.0,
            &maps[0].device(),
        );
        let term = (output.clone() * Tensor::from_inner(probe)).sum();
        golden.check(&format!("{name}.train.{key}"), output, MODELS);
        sum = Some(sum.map_or(term.clone(), |sum| sum + term));
    }
    let gradients = sum.unwrap().backward();
    for (i, leaf) in leaves.iter().enumerate() {
        let gradient = leaf.grad(&gradients).unwrap();
        golden.check(&format!("{name}.gradient.{i}"), gradient, MODELS);
    }
    let head = update_statistics(head, statistics);
    named::visit(&head, &mut |parameter, _, value| {
        if parameter.contains("running") {
            golden.check(&format!("{name}.after.{parameter}"), value, MODELS);
        }
    });
}

fn maps(name: &str, shapes: &[[usize; 4]]) -> Vec<Tensor<4>> {
    { shapes.iter().enumerate() }
        .map(|(i, shape)| tensor(&format!("{name}.{i}"), *shape, 1.0, &Device::flex()))
        .collect()
}

#[test]
fn ce2p_is_the_published_network() {
    let device = Device::flex().autodiff();
    let config = Ce2pConfig {
        context: 16,
        decoder: 12,
        ..Ce2pConfig::new([8, 16, 32, 64], 5)
    };
    let head = config.init(&mut Rng::seed_from_u64(0), &device);
    let shapes = [[3, 8, 11, 7], [3, 16, 6, 4], [3, 32, 3, 2], [3, 64, 2, 1]];
    let forward = |head: &clasp_model::heads::Ce2pHead,
                   maps: &[Tensor<4>],
                   training: Option<&mut Training<'_>>| {
        let output = head.forward_with(maps, 0.0, training);
        vec![output.logits, output.first.unwrap(), output.edges.unwrap()]
    };
    let names = ["logits", "first", "edges"];
    both_modes(
        &Golden::load(),
        "ce2p",
        head,
        &maps("ce2p.map", &shapes),
        &names,
        forward,
    );
}

#[test]
fn the_pose_head_is_that_of_simple_baselines() {
    let device = Device::flex().autodiff();
    let head = PoseHead::init(12, 8, 2, 3, &mut Rng::seed_from_u64(0), &device);
    let map = tensor("pose.map", [2, 12, 4, 3], 1.0, &Device::flex());
    let forward = |head: &PoseHead, maps: &[Tensor<4>], training: Option<&mut Training<'_>>| {
        vec![head.forward(maps[0].clone(), training)]
    };
    both_modes(
        &Golden::load(),
        "pose",
        head,
        &[map],
        &["heatmaps"],
        forward,
    );
}

#[test]
fn the_detection_head_is_csp_with_an_embedding() {
    let device = Device::flex().autodiff();
    let config = DetectionHeadConfig {
        channels: vec![6, 8, 10],
        strides: vec![2, 4, 8],
        width: 32,
        embedding: Some(9),
    };
    let head = config.init(&mut Rng::seed_from_u64(0), &device);
    let maps = maps("csp.map", &[[2, 6, 5, 6], [2, 8, 3, 3], [2, 10, 2, 2]]);
    let forward = |head: &clasp_model::heads::DetectionHead,
                   maps: &[Tensor<4>],
                   _: Option<&mut Training<'_>>| {
        let output = head.forward(maps);
        vec![
            output.center,
            output.size,
            output.offset,
            output.embedding.unwrap(),
        ]
    };
    let names = ["centre", "size", "offset", "embedding"];
    both_modes(&Golden::load(), "csp", head, &maps, &names, forward);
}

/// The regions of `heads.py`, on a map of eight pixels a position.
fn regions() -> Vec<Region> {
    let boxes = [
        (0, [2.0, 3.0, 40.0, 90.0]),
        (1, [-9.0, 10.0, 31.5, 130.0]),
        (0, [55.0, 60.0, 55.2, 60.1]),
        (1, [20.0, 0.0, 64.0, 96.0]),
        (0, [70.0, 100.0, 90.0, 120.0]),
        (1, [8.0, 8.0, 24.0, 56.0]),
    ];
    let region = |(image, corners): (usize, [f32; 4])| Region {
        image,
        corners: corners.map(|at| at / 8.0),
    };
    boxes.map(region).into()
}

#[test]
fn regions_are_cut_out_by_roi_align() {
    let golden = Golden::load();
    let map = tensor("regions.map", [2, 3, 12, 8], 1.0, &Device::flex());
    // The operation of the CPU, and the products that stand for it elsewhere, which gradient
    // checkpointing asks for.
    let checkpointed = Device::flex().autodiff().gradient_checkpointing();
    for device in [Device::flex().autodiff(), checkpointed] {
        let map = Tensor::<4>::from_data(map.clone().into_data(), &device).require_grad();
        let cells = cut(map.clone(), &regions(), 14);
        golden.check("regions.cells", cells.clone(), OPS);
        let probe = tensor("regions.probe", cells.dims(), 1.0, &device);
        let gradients = (cells * probe).sum().backward();
        golden.check("regions.gradient", map.grad(&gradients).unwrap(), OPS);
    }
}

#[test]
fn the_two_stage_head_is_seqnet_on_a_swin() {
    let device = Device::flex().autodiff();
    let sizes = SwinSizes {
        embed_dim: 4,
        depths: vec![1, 1, 1, 2],
        num_heads: vec![1, 1, 2, 4],
        ..SwinSizes::tiny()
    };
    let swin = SwinConfig {
        padding: WindowPadding::Classification,
        drop_path: 0.0,
        ..SwinConfig::new(sizes)
    };
    let rng = &mut Rng::seed_from_u64(0);
    let swin = swin.init(rng, &device);
    let stage = || swin.last_stage(PromptWeights::mean()).unwrap();
    let config = TwoStageConfig {
        channels: [16, 32],
        anchors: 3,
        embedding: 6,
    };
    let head = config.init([stage(), stage()], rng, &device);
    let forward =
        |head: &TwoStageHead, maps: &[Tensor<4>], mut training: Option<&mut Training<'_>>| {
            let map = head.map(maps[0].clone());
            let proposals = head.propose(map.clone());
            let detections = head.detect(map.clone(), &regions(), training.as_deref_mut());
            let known = head.embed(map, &regions(), training);
            let rows = [
                detections.class,
                detections.deltas,
                known.embedding,
                known.score.unsqueeze_dim(1),
                known.deltas,
            ];
            let rows = rows.map(|rows| {
                let [regions, values] = rows.dims();
                rows.reshape([regions, values, 1, 1])
            });
            [vec![proposals.objectness, proposals.deltas], rows.into()].concat()
        };
    let map = tensor("two_stage.map", [2, 16, 12, 8], 1.0, &Device::flex());
    let names = [
        "objectness",
        "proposed",
        "class",
        "first",
        "embedding",
        "score",
        "second",
    ];
    both_modes(&Golden::load(), "two_stage", head, &[map], &names, forward);
}

#[test]
fn losses_of_boxes() {
    let (golden, device) = (Golden::load(), Device::flex());
    let logits = tensor("boxes.objectness", [7], 3.0, &device);
    check_loss(&golden, "boxes.objectness", logits, |x| {
        objectness_loss(x, &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    });
    let targets = noise("boxes.targets", 20);
    for (beta, name) in [(1.0 / 9.0, "boxes.0.11"), (1.0, "boxes.1.00")] {
        let deltas = tensor("boxes.deltas", [5, 4], 2.0, &device);
        check_loss(&golden, name, deltas, |x| {
            box_loss(x, targets.as_chunks::<4>().0, beta, 12)
        });
    }
}

/// Checks a loss of one leaf and its gradient.
#[track_caller]
fn check_loss<const D: usize>(
    golden: &Golden,
    name: &str,
    leaf: Tensor<D>,
    loss: impl Fn(Tensor<D>) -> Tensor<1>,
) {
    let leaf = Tensor::from_inner(leaf).require_grad();
    let value = loss(leaf.clone());
    golden.check(&format!("{name}.loss"), value.clone(), OPS);
    let gradients = value.backward();
    let gradient = leaf.grad(&gradients).unwrap();
    golden.check(&format!("{name}.gradient.0"), gradient, OPS);
}

fn bytes(values: Vec<f32>) -> Vec<u8> {
    values.into_iter().map(|v| v as u8).collect()
}

#[test]
fn losses_of_reid_and_attributes() {
    let (golden, device) = (Golden::load(), Device::flex());
    let labels = [0, 0, 1, 1, 2, 2, 3, 3, 3];
    for (margin, text) in [(None, "None"), (Some(0.3), "0.3")] {
        let features = tensor("triplet.features", [9, 6], 1.0, &device);
        check_loss(&golden, &format!("triplet.{text}"), features, |f| {
            batch_hard_triplet(f, &labels, margin)
        });
    }
    let logits = tensor("identity.logits", [9, 5], 3.0, &device);
    check_loss(&golden, "identity", logits, |x| {
        cross_entropy(x, &labels, 0.1)
    });
    let targets: Vec<bool> = { noise("bce.targets", 12).into_iter() }
        .map(|v| v > 0.0)
        .collect();
    let logits = tensor("bce.logits", [4, 3], 4.0, &device);
    check_loss(&golden, "bce", logits, |x| {
        weighted_bce(x, &targets, Some(&[0.1, 0.5, 0.8]))
    });
}

#[test]
fn losses_of_parsing() {
    let (golden, device) = (Golden::load(), Device::flex());
    let labels = bytes(golden.values("parsing.labels"));
    let logits: Tensor<4> = tensor("parsing.logits", [2, 5, 6, 4], 2.0, &device);
    check_loss(&golden, "parsing.ce", logits.clone(), |x| {
        pixel_cross_entropy(x, &labels)
    });
    check_loss(&golden, "parsing.lovasz", logits.clone(), |x| {
        lovasz_softmax(x, &labels)
    });
    // Nothing but ignored pixels is no loss, and no NaN.
    let ignored = [255; 48];
    assert_eq!(
        lovasz_softmax(logits.clone(), &ignored).into_scalar::<f32>(),
        0.0
    );
    assert_eq!(
        pixel_cross_entropy(logits, &ignored).into_scalar::<f32>(),
        0.0
    );

    let soft: Tensor<4> = tensor("refined.soft", [2, 5, 6, 4], 3.0, &device);
    let student: Tensor<4> = tensor("refined.logits", [2, 5, 6, 4], 2.0, &device);
    check_loss(&golden, "refined", student, |x| {
        refined_divergence(x, soft.clone(), &labels, &labels, 1.0 / 3.0)
    });

    let labels = bytes(golden.values("edges.labels"));
    let (height, width) = (27, 14);
    let edges: Vec<u8> = { labels.chunks_exact(height * width) }
        .flat_map(|map| edges_of(map, height, width))
        .collect();
    assert_eq!(edges, bytes(golden.values("edges.edges")));
    let logits = tensor("edges.logits", [2, 2, height, width], 2.0, &device);
    check_loss(&golden, "edges", logits, |x| edge_loss(x, &edges));
}

#[test]
fn losses_of_pose_and_detection() {
    let (golden, device) = (Golden::load(), Device::flex());
    let predicted = tensor("heatmap.predicted", [2, 3, 4, 5], 1.0, &device);
    let target = noise("heatmap.target", 120);
    check_loss(&golden, "heatmap", predicted, |x| {
        heatmap_loss(x, target.clone(), vec![1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    });

    let leaf = |name: &str, channels: usize, scale: f32| {
        let leaf: Tensor<4> = tensor(name, [2, channels, 4, 5], scale, &device);
        Tensor::from_inner(leaf).require_grad()
    };
    let output = DetectionOutput {
        center: leaf("detection.centre", 1, 3.0),
        size: leaf("detection.size", 2, 1.0),
        offset: leaf("detection.offset", 2, 1.0),
        embedding: None,
    };
    let get = |name: &str| golden.values(&format!("detection.{name}"));
    let targets = DetectionTargets {
        nearness: get("nearness"),
        middles: get("middles"),
        counts: get("counts"),
        sizes: get("sizes"),
        sized: get("sized"),
        offsets: get("offsets"),
    };
    let losses = detection_losses(&output, &targets);
    let all = Tensor::cat(vec![losses.center, losses.size, losses.offset], 0);
    golden.check("detection.losses", all.clone(), OPS);
    let gradients = all.sum().backward();
    for (i, leaf) in [output.center, output.size, output.offset]
        .iter()
        .enumerate()
    {
        let gradient = leaf.grad(&gradients).unwrap();
        golden.check(&format!("detection.gradient.{i}"), gradient, OPS);
    }
}

#[test]
fn online_instance_matching() {
    let (golden, device) = (Golden::load(), Device::flex());
    let mut memory = OimMemory::init(4, 3, 5, &device);
    let steps = [
        vec![Some(0), None, Some(2)],
        vec![Some(2), Some(2), None, None, Some(1)],
        vec![None, Some(0), None, Some(3)],
    ];
    for (step, persons) in steps.iter().enumerate() {
        let name = format!("oim.{step}");
        let features = tensor(&name, [persons.len(), 5], 1.0, &device);
        let unit = |x: Tensor<2>| x.clone() / x.square().sum_dim(1).sqrt();
        check_loss(&golden, &name, features.clone(), |x| {
            memory.loss(unit(x), persons, 10.0)
        });
        let (mut statistics, mut rng) = (Statistics::new(), Rng::seed_from_u64(0));
        let mut training = Training {
            statistics: &mut statistics,
            rng: &mut rng,
        };
        memory.follow(unit(features), persons, 0.5, &mut training);
        memory = update_statistics(memory, statistics);
    }
    golden.check("oim.table", memory.table.val(), OPS);
    golden.check("oim.queue", memory.queue.val(), OPS);
}
