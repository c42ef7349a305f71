//! What must hold for any input.

use clasp_metrics::{attributes, parsing, reid, rerank};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Another order of the gallery changes no metric unless two distances tie.
    #[test]
    fn a_permuted_gallery_scores_the_same(seed in any::<u32>(), shift in 1_usize..29) {
        // Mixed bits, not a wave: a wave repeats, and then distances tie.
        let value = |i: usize| {
            let mixed = (u64::from(seed) << 32 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let features: Vec<f32> = (0..40 * 8).map(value).collect();
        let persons: Vec<i64> = (0..40).map(|i| i % 5).collect();
        let cameras: Vec<i64> = (0..40).map(|i| (i / 5) % 3).collect();
        let order: Vec<usize> = (0..30).map(|i| 10 + (i * 7 + shift) % 30).collect();
        let query = reid::ReidImages { features: &features[..80], channels: 8, persons: &persons[..10], cameras: &cameras[..10] };
        let gallery = reid::ReidImages { features: &features[80..], channels: 8, persons: &persons[10..], cameras: &cameras[10..] };
        let moved: Vec<f32> = order.iter().flat_map(|i| features[i * 8..(i + 1) * 8].to_vec()).collect();
        let moved_persons: Vec<i64> = order.iter().map(|i| persons[*i]).collect();
        let moved_cameras: Vec<i64> = order.iter().map(|i| cameras[*i]).collect();
        let permuted = reid::ReidImages { features: &moved, channels: 8, persons: &moved_persons, cameras: &moved_cameras };
        prop_assert_eq!(reid::evaluate(&query, &gallery, 10), reid::evaluate(&query, &permuted, 10));
        // Re-ranked distances are sums in another order then: equal up to rounding.
        let rerank = rerank::Rerank { k1: 6, k2: 3, lambda: 0.3 };
        let rows = rerank::map_rows(&query, &gallery, rerank, |_, row| row.to_vec()).unwrap();
        let permuted_rows = rerank::map_rows(&query, &permuted, rerank, |_, row| row.to_vec()).unwrap();
        for (row, permuted) in rows.iter().zip(&permuted_rows) {
            for (i, value) in order.iter().zip(permuted) {
                prop_assert!((row[i - 10] - value).abs() < 1e-5);
            }
        }
    }

    /// The truth as prediction is perfect, and every metric is between 0 and 1.
    #[test]
    fn truth_is_perfect(labels in prop::collection::vec(0_u8..5, 1..200), guess in prop::collection::vec(0_u8..5, 200)) {
        let mut confusion = parsing::ConfusionMatrix::new(5);
        confusion.add(&labels, &labels).unwrap();
        prop_assert_eq!(confusion.metrics().mean_iou_present, Some(1.0));
        confusion.add(&labels, &guess[..labels.len()]).unwrap();
        prop_assert!((0.0..=1.0).contains(&confusion.metrics().mean_iou));

        let truth: Vec<bool> = labels.iter().map(|l| *l > 2).collect();
        let scores: Vec<f32> = truth.iter().map(|t| f32::from(u8::from(*t))).collect();
        let metrics = attributes::evaluate(&truth, &scores, 1, 0.5).unwrap();
        prop_assert!(metrics.ma_defined.is_none_or(|ma| ma == 1.0));
        prop_assert!(metrics.map.is_none_or(|ap| ap == 1.0));
    }
}
