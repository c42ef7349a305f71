//! Features to labels, compared with NumPy and scikit-learn; `tests/golden/labels.py` made the
//! values. The foreground of k-means against masks; `tests/golden/foreground.py` makes its feature
//! maps.

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::rng_for;
use safetensors::SafeTensors;

use crate::attributes::logits;
use crate::config::{LabelConfig, VerticalBand};
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
        VerticalBand {
            center: 0.15,
            std: 0.1,
        },
    );
    prior.vertical_prior.insert(
        "legs".into(),
        VerticalBand {
            center: 0.8,
            std: 0.2,
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
        let positions = rows * columns;
        assert_eq!(
            map.parts,
            expected[index * positions..(index + 1) * positions],
            "map {index}"
        );
    }
}

/// Numbers of 16 bits (IEEE 754 binary16) as f32; neither infinities nor NaN.
fn halves(data: &[u8]) -> Vec<f32> {
    let value = |bits: u16| {
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
        let size = match exponent {
            0 => fraction / 1024.0 * 2f32.powi(-14),
            _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
        };
        if bits >> 15 == 1 { -size } else { size }
    };
    data.chunks_exact(2)
        .map(|b| value(u16::from_le_bytes([b[0], b[1]])))
        .collect()
}

/// Synthetic people seen by a backbone that learned by DINO: finding the person by the larger norms
/// had a precision of 0.36 and a recall of 0.57 on such maps.
#[test]
fn the_foreground_of_a_trained_backbone_is_the_person() {
    let file = SafeTensors::deserialize(include_bytes!("../tests/golden/foreground.safetensors"));
    let file = file.unwrap();
    let maps = file.tensor("maps").unwrap();
    let (values, shape) = (halves(maps.data()), maps.shape().to_vec());
    let (count, channels, rows, columns) = (shape[0], shape[1], shape[2], shape[3]);
    let person = file.tensor("person").unwrap().data().to_vec();
    let positions = rows * columns;
    let (mut both, mut found, mut true_ones, mut skipped) = (0, 0, 0, 0);
    for (index, (map, person)) in values
        .chunks_exact(channels * positions)
        .zip(person.chunks_exact(positions))
        .enumerate()
    {
        let mut rng = rng_for(0, 0, &index.to_string());
        let Some(classes) = kmeans::clusters(map, channels, columns, &mut rng) else {
            skipped += 1;
            continue;
        };
        for (&class, &share) in classes.iter().zip(person) {
            both += u32::from(class > 0 && share >= 128);
            found += u32::from(class > 0);
            true_ones += u32::from(share >= 128);
        }
    }
    let [precision, recall] = [found, true_ones].map(|of| f64::from(both) / f64::from(of));
    let skipped = f64::from(skipped) / count as f64;
    let figures = format!("precision {precision:.3}, recall {recall:.3}, skipped {skipped:.3}");
    assert!(
        precision >= 0.8 && recall >= 0.6 && skipped <= 0.2,
        "{figures}"
    );
}
