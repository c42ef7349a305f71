//! The way from features to labels against NumPy and scikit-learn; `tests/golden/labels.py` made the values.

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::rng_for;
use safetensors::SafeTensors;

use crate::attributes::logits;
use crate::config::{Band, LabelConfig};
use crate::parts::{self, PartMapper};
use crate::testing::vocabulary;
use crate::{kmeans, read};

const GOLDEN: &[u8] = include_bytes!("../tests/golden/labels.safetensors");
/// Synonyms' classes of the tests' vocabulary.
const CLASSES: [usize; 4] = [0, 1, 1, 2];

fn floats(name: &str) -> (Vec<f32>, Vec<usize>) {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    let view = file.tensor(name).unwrap();
    let numbers = view
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    (numbers, view.shape().to_vec())
}

fn bytes(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(GOLDEN)
        .unwrap()
        .tensor(name)
        .unwrap()
        .data()
        .to_vec()
}

fn tensor<const D: usize>(name: &str) -> Tensor<D> {
    let (numbers, shape) = floats(name);
    Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
}

#[test]
fn part_maps_equal_numpy() {
    let cosines = read(parts::cosines(tensor("dense"), tensor("text")), "cosines").unwrap();
    let plain = LabelConfig::default();
    let mut prior = LabelConfig {
        part_scale: 20.0,
        ..plain.clone()
    };
    prior.vertical_prior.insert(
        "head".into(),
        Band {
            centre: 0.15,
            spread: 0.1,
        },
    );
    prior.vertical_prior.insert(
        "legs".into(),
        Band {
            centre: 0.8,
            spread: 0.2,
        },
    );
    let cases = [
        ("16x8", plain.clone()),
        (
            "14x7",
            LabelConfig {
                grid: [14, 7],
                confidence: 0.0,
                ..plain.clone()
            },
        ),
        (
            "5x3",
            LabelConfig {
                grid: [5, 3],
                part_scale: 10.0,
                confidence: 0.45,
                ..plain
            },
        ),
        ("prior", prior),
    ];
    for (name, config) in cases {
        let mapper = PartMapper::new(&vocabulary(), &CLASSES, [14, 7], &config);
        let maps: Vec<_> = cosines
            .chunks_exact(CLASSES.len() * 14 * 7)
            .map(|image| mapper.map(image))
            .collect();
        assert_eq!(maps.len(), 3);
        let parts: Vec<u8> = maps.iter().flat_map(|map| map.parts.clone()).collect();
        assert_eq!(parts, bytes(&format!("parts.{name}")), "{name}");
        let confidence = maps.iter().flat_map(|map| map.confidence.clone());
        for (found, best) in confidence.zip(floats(&format!("best.{name}")).0) {
            // Half a step of rounding, and the difference between f32 and f64.
            assert!(
                (f32::from(found) - 255.0 * best).abs() < 0.5 + 1e-2,
                "{name}: {found} for {best}"
            );
        }
    }
}

#[test]
fn logits_equal_numpy() {
    let found = read(logits(tensor("pooled"), tensor("values"), 100.0), "logits").unwrap();
    let (expected, _) = floats("logits");
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
    }
}

#[test]
fn kmeans_equals_scikit_learn() {
    let (maps, shape) = floats("kmeans.maps");
    let (channels, rows, columns) = (shape[1], shape[2], shape[3]);
    let expected = bytes("kmeans.classes");
    for (index, map) in maps.chunks_exact(channels * rows * columns).enumerate() {
        let mut rng = rng_for(0, 0, &index.to_string());
        let map = kmeans::part_map(
            map,
            channels,
            [rows, columns],
            [rows, columns],
            0.5,
            &mut rng,
        );
        let cells = rows * columns;
        assert_eq!(
            map.parts,
            expected[index * cells..(index + 1) * cells],
            "map {index}"
        );
    }
}
