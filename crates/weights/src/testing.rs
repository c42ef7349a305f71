//! Values for tests, from names alone; as `tests/golden/import.py` has them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::backbone::Backbone;
use clasp_model::prompt::PromptWeights;

use crate::backbone::{backbone_state, load_backbone_state};
use crate::checkpoint;
use crate::state::{HostTensor, StateDict};

/// Largest difference between a feature of ours and the reference's: models, f32.
const TOLERANCE: f32 = 1e-4;

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Numbers in [-1, 1): FNV-1a, then SplitMix64.
pub fn noise(name: &str, count: usize) -> Vec<f32> {
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

/// A parameter of that name.
pub fn parameter(name: &str, shape: &[usize]) -> HostTensor {
    let tokens = [
        "relative_position_bias_table",
        "pos_embed",
        "_pos",
        "_token",
        "_tokens",
    ];
    let (offset, scale) = if name.contains("norm") && name.ends_with("weight") {
        (1.0, 0.1)
    } else if name.ends_with("bias") {
        (0.0, 0.1)
    } else if tokens.iter().any(|end| name.ends_with(end)) || name.contains("part_token") {
        (0.0, 0.5)
    } else {
        let inputs: usize = shape.iter().skip(1).product();
        (0.0, (3.0 / inputs as f64).sqrt())
    };
    HostTensor {
        shape: shape.to_vec(),
        data: noise(name, shape.iter().product())
            .into_iter()
            .map(|u| (offset + scale * f64::from(u)) as f32)
            .collect(),
    }
}

/// A backbone filled by its names.
pub fn filled(backbone: Backbone) -> Backbone {
    let state: StateDict = backbone_state(&backbone)
        .into_iter()
        .map(|(name, array)| {
            let array = parameter(&name, &array.shape);
            (name, array)
        })
        .collect();
    let (backbone, report) = load_backbone_state(backbone, &state);
    assert!(report.is_complete(), "{report}");
    backbone
}

/// Compares pooled features and the map with those that a script kept under `key`.
pub fn check_features(file: &str, key: &str, backbone: &Backbone, [height, width]: [usize; 2]) {
    let (reference, _) = checkpoint::read(&golden(file)).unwrap();
    let device = Device::flex();
    let images = noise(&format!("images {height}x{width}"), 3 * height * width);
    let images = Tensor::<4>::from_data(TensorData::new(images, [1, 3, height, width]), &device);
    let prompt_weights: PromptWeights = "identity=0.7,part=0.3".parse().unwrap();
    let features = backbone.forward(images * 2.0, prompt_weights.tensor(&device), None);
    check(&reference, &format!("{key} pooled"), features.pooled);
    // A script may keep some channels of the map.
    let name = format!("{key} map");
    let kept = reference[&name].shape[1];
    check(&reference, &name, features.map.narrow(1, 0, kept));
}

fn check<const D: usize>(reference: &StateDict, name: &str, found: Tensor<D>) {
    let expected = &reference[name];
    assert_eq!(found.dims().as_slice(), expected.shape, "{name}");
    let found: Vec<f32> = found.into_data().iter::<f32>().collect();
    let worst = worst(&found, &expected.data);
    println!("{name}: {worst:e}");
    assert!(worst < TOLERANCE, "{name}: {worst}");
}

/// Largest difference; infinite where a value is none.
pub fn worst(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let differences = one.iter().zip(other).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d <= worst { worst } else { d })
}
