use proptest::prelude::*;
use rand::RngExt;

use super::*;
use crate::rng_for;
use crate::vocabulary::{Attribute, AttributeValue};

/// Attributes of these names, kinds and numbers of values.
fn vocabulary_of(attributes: &[(&str, AttributeKind, usize)]) -> Vocabulary {
    let value = |i: usize| AttributeValue {
        name: i.to_string(),
        prompts: vec![i.to_string()],
    };
    let attributes = attributes.iter().map(|&(name, kind, values)| Attribute {
        name: name.into(),
        kind,
        values: (0..values).map(value).collect(),
    });
    Vocabulary {
        attributes: attributes.collect(),
        ..Vocabulary::kmeans()
    }
}

/// A group of three, then a pair.
fn vocabulary() -> Vocabulary {
    vocabulary_of(&[
        ("age", AttributeKind::Group, 3),
        ("glasses", AttributeKind::Pair, 2),
    ])
}

fn of(rows: &[Vec<f32>], vocabulary: &Vocabulary) -> Calibration {
    let mut visit = |each: &mut dyn FnMut(&[f32])| {
        rows.iter().for_each(|row| each(row));
        Ok(())
    };
    Calibration::of_rows(vocabulary, false, &mut visit)
        .unwrap()
        .unwrap()
}

/// Means of 0, both attributes as wide.
fn plain(vocabulary: &Vocabulary) -> Calibration {
    Calibration {
        vocabulary: vocabulary.digest(),
        count: 1,
        log_probabilities: false,
        mean: vec![0.0; vocabulary.logits()],
        spread: vec![1.0; vocabulary.attributes.len()],
        margins: vec![vec![0.0; INTERVALS + 1]; vocabulary.attributes.len()],
    }
}

fn at(temperature: f64) -> AttributeConfig {
    AttributeConfig {
        temperature: Some(temperature),
        ..AttributeConfig::default()
    }
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 1e-5,
            "expected {expected:?}, found {found:?}"
        );
    }
}

#[test]
fn statistics_by_hand() {
    // Without their means over the group (2, 101; -1, 3) the two images of the group of three are
    // (-1, 0, 1) and (1, 1, -2): means (0, .5, -.5), residuals ±(-1, -.5, 1.5), whose squares have
    // the mean 3.5 / 3. The pair: (0, 0) and (-1, 1), residuals ±(.5, -.5), mean square .25.
    let rows = [
        vec![1.0, 2.0, 3.0, 101.0, 101.0],
        vec![0.0, 0.0, -3.0, 2.0, 4.0],
    ];
    let found = of(&rows, &vocabulary());
    close(&found.mean, &[0.5, 1.0, 0.0, 51.5, 52.5]);
    close(&found.spread, &[(3.5_f32 / 3.0).sqrt(), 0.5]);
    assert_eq!(found.count, 2);
    // Centered: (.5, 1, 3) and (-.5, -1, -3): margins 2 and .5; yes - no: -1 and 1.
    close(&[found.margins[0][0], found.margins[0][100]], &[0.5, 2.0]);
    close(&[found.margins[1][0], found.margins[1][100]], &[-1.0, 1.0]);
    close(&[found.margins[1][25]], &[-0.5]);
}

#[test]
fn moments_equal_two_passes_where_the_mean_is_large() {
    let values = [1000.0_f32, 1000.5, 1001.0, 999.5, 1000.25];
    let mut moments = LogitMoments::new(1);
    values.iter().for_each(|&value| moments.add(&[value]));
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 5.0;
    let squares = { values.iter() }
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>();
    assert!((moments.mean[0] - mean).abs() < 1e-9);
    assert!((moments.squares[0] - squares).abs() < 1e-9);
    assert_eq!(moments.count, 5);
}

#[test]
fn targets_by_hand() {
    let vocabulary = vocabulary();
    let calibration = Calibration {
        mean: vec![20.0, 30.0, 10.0, 5.0, 7.0],
        ..plain(&vocabulary)
    };
    // Scores 1, -1, 0 and 0, 1 at temperature 2.
    let rule = AttributeRule::new(&calibration, &at(2.0));
    let targets = rule.targets_of_logits(&[22.0, 28.0, 10.0, 5.0, 9.0], &vocabulary);
    let e = std::f32::consts::E;
    let sum = e + 1.0 / e + 1.0;
    let yes = e / (1.0 + e);
    let expected = [e / sum, 1.0 / e / sum, 1.0 / sum, 1.0 - yes, yes];
    close(&targets.target, &expected);
    // e : 1 is above 0.65 : 0.35 in both.
    assert_eq!(targets.mask, [true, true]);
    assert_eq!(targets.weight, [1.0, 1.0]);
}

#[test]
fn close_calls_are_masked() {
    let vocabulary = vocabulary();
    let rule = AttributeRule::new(&plain(&vocabulary), &at(1.0));
    let mask = |logits: [f32; 5]| rule.targets_of_logits(&logits, &vocabulary).mask;
    // ln(0.65 / 0.35) = 0.619: below it a call is too close, on either side of a pair.
    assert_eq!(mask([0.6, 0.0, -5.0, 0.0, 0.6]), [false, false]);
    assert_eq!(mask([0.64, 0.0, -5.0, 0.0, 0.64]), [true, true]);
    assert_eq!(mask([0.0, 0.0, 0.64, 0.64, 0.0]), [true, true]);
    assert_eq!(mask([1.0, 1.0, 0.0, 0.6, 0.0]), [false, false]);
}

#[test]
fn weights_are_spreads_with_mean_one_and_narrow_groups_are_off() {
    let pair = AttributeKind::Pair;
    let vocabulary = vocabulary_of(&[
        ("a", pair, 2),
        ("b", pair, 2),
        ("c", pair, 2),
        ("d", pair, 2),
    ]);
    let calibration = Calibration {
        spread: vec![1.0, 0.2, 3.0, 0.0],
        ..plain(&vocabulary)
    };
    let weight = |config: &AttributeConfig| AttributeRule::new(&calibration, config).weight;
    // The median is 0.6; 0.2 is a third of it.
    close(&weight(&at(1.0)), &[1.0 / 1.4, 0.2 / 1.4, 3.0 / 1.4, 0.0]);
    let strict = AttributeConfig {
        minimum_spread: 0.4,
        ..at(1.0)
    };
    close(&weight(&strict), &[0.5, 0.0, 1.5, 0.0]);
    let equal = AttributeConfig {
        weights: GroupWeights::Equal,
        ..strict
    };
    close(&weight(&equal), &[1.0, 0.0, 1.0, 0.0]);
    // What is off is masked, however clear.
    let targets = AttributeRule::new(&calibration, &equal)
        .targets_of_logits(&[9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0], &vocabulary);
    assert_eq!(targets.mask, [true, false, true, false]);
    assert_eq!(targets.weight, [1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn an_offset_common_to_all_values_of_an_image_changes_no_target() {
    let vocabulary = vocabulary();
    let mut rng = rng_for(0, 0, "offsets");
    let mut row = || -> Vec<f32> { (0..5).map(|_| rng.random_range(-2.0..2.0)).collect() };
    let rows: Vec<Vec<f32>> = (0..200).map(|_| row()).collect();
    let mut rng = rng_for(0, 1, "offsets");
    let mut moved = rows.clone();
    for row in &mut moved {
        let offsets: [f32; 2] = [rng.random_range(-50.0..50.0), rng.random_range(-50.0..50.0)];
        for (i, logit) in row.iter_mut().enumerate() {
            *logit += offsets[usize::from(i >= 3)];
        }
    }
    let rules = [&rows, &moved]
        .map(|rows| AttributeRule::new(&of(rows, &vocabulary), &AttributeConfig::default()));
    assert!((rules[0].temperature / rules[1].temperature - 1.0).abs() < 1e-3);
    for (row, moved) in rows.iter().zip(&moved) {
        let [a, b] = [(&rules[0], row), (&rules[1], moved)]
            .map(|(r, row)| r.targets_of_logits(row, &vocabulary));
        for (a, b) in a.target.iter().zip(&b.target) {
            assert!((a - b).abs() < 1e-3, "{a} and {b}");
        }
    }
}

/// Logits of a pair as CLIP gives them: an offset with a standard deviation of 2.5 that both
/// values share, a signal of ±0.4 in their difference, and a fixed preference for one.
fn offset_and_signal() -> (Vec<Vec<f32>>, Vec<bool>) {
    let mut rng = rng_for(0, 0, "offset and signal");
    // The sum of twelve uniform draws, less 6, is nearly normal with a standard deviation of 1.
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let truth: Vec<bool> = (0..500).map(|i| i % 2 == 0).collect();
    let rows = truth.iter().map(|&yes| {
        let offset = 20.0 + 2.5 * normal();
        let signal = if yes { 0.4 } else { -0.4 } + 0.1 * normal();
        vec![offset + 3.0 - signal, offset + signal]
    });
    (rows.collect(), truth)
}

#[test]
fn dividing_by_a_values_own_deviation_hides_the_signal() {
    let (rows, truth) = offset_and_signal();
    let vocabulary = vocabulary_of(&[("gender", AttributeKind::Pair, 2)]);
    let calibration = of(&rows, &vocabulary);
    let rule = AttributeRule::new(&calibration, &AttributeConfig::default());
    let (mut clear, mut right) = (0, 0);
    for (row, &yes) in rows.iter().zip(&truth) {
        let targets = rule.targets_of_logits(row, &vocabulary);
        clear += usize::from(targets.mask[0]);
        right += usize::from(targets.mask[0] && (targets.target[1] > 0.5) == yes);
    }
    assert!((395..=405).contains(&clear), "{clear} of 500 are clear");
    assert!(right * 100 >= clear * 99, "{right} of {clear} are right");
    // With the division, as it was, nearly all are too close to call: the two scores differ by
    // about 0.8 / 2.5 = 0.32, and 0.62 is needed.
    let std = |value: usize| {
        let mean = calibration.mean[value];
        let squares: f32 = rows.iter().map(|row| (row[value] - mean).powi(2)).sum();
        (squares / rows.len() as f32).sqrt()
    };
    let deviations = [std(0), std(1)];
    let divided = rows.iter().filter(|row| {
        let score = |value: usize| (row[value] - calibration.mean[value]) / deviations[value];
        (score(1) - score(0)).abs() >= (0.65_f32 / 0.35).ln()
    });
    assert!(divided.count() < 50);
}

#[test]
fn the_stated_share_of_the_widest_attribute_is_clear() {
    let vocabulary = vocabulary();
    let mut rng = rng_for(3, 0, "share");
    // The pair is ten times as wide as the group, and lopsided.
    let mut row = || -> Vec<f32> {
        let u = rng.random::<f32>();
        let mut row: Vec<f32> = (0..5).map(|_| rng.random_range(-1.0..1.0)).collect();
        row[4] += 30.0 * u * u;
        row
    };
    let rows: Vec<Vec<f32>> = (0..2000).map(|_| row()).collect();
    let calibration = of(&rows, &vocabulary);
    assert!(calibration.spread[1] > 5.0 * calibration.spread[0]);
    for share in [0.5, 0.8, 0.95] {
        let config = AttributeConfig {
            confident_share: share,
            ..AttributeConfig::default()
        };
        let rule = AttributeRule::new(&calibration, &config);
        let clear = { rows.iter() }
            .filter(|row| rule.targets_of_logits(row, &vocabulary).mask[1])
            .count();
        let found = clear as f64 / rows.len() as f64;
        assert!(
            (found - share).abs() < 0.01,
            "expected {share}, found {found}"
        );
    }
}

#[test]
fn logits_that_never_vary_say_nothing() {
    let vocabulary = vocabulary();
    let rows = vec![vec![1e3, -1e3, 3.0, 0.0, 1e3]; 4];
    let rule = AttributeRule::new(&of(&rows, &vocabulary), &AttributeConfig::default());
    let targets = rule.targets_of_logits(&rows[0], &vocabulary);
    close(&targets.target[3..], &[0.5, 0.5]);
    assert_eq!(targets.mask, [false, false]);
    assert_eq!(targets.weight, [0.0, 0.0]);
}

#[test]
fn log_probabilities_are_used_as_they_are() {
    let vocabulary = vocabulary();
    // Glasses are rare: centering would not matter for the order, but would for how sure it is.
    let rows: Vec<Vec<f32>> = (0..50)
        .map(|i| {
            let mut row = vec![-10.0; 5];
            row[i % 3] = 0.0;
            row[3 + usize::from(i == 7)] = 0.0;
            row
        })
        .collect();
    let mut visit = |each: &mut dyn FnMut(&[f32])| {
        rows.iter().for_each(|row| each(row));
        Ok(())
    };
    let calibration = Calibration::of_rows(&vocabulary, true, &mut visit)
        .unwrap()
        .unwrap();
    let rule = AttributeRule::new(&calibration, &AttributeConfig::default());
    assert_eq!((rule.temperature, &rule.weight[..]), (1.0, &[1.0, 1.0][..]));
    for (i, row) in rows.iter().enumerate() {
        let targets = rule.targets_of_logits(row, &vocabulary);
        assert!(targets.target[i % 3] > 0.999 && targets.target[3 + usize::from(i == 7)] > 0.999);
        assert_eq!(targets.mask, [true, true]);
    }
    // Equal log-probabilities: unknown, so masked.
    assert_eq!(
        rule.targets_of_logits(&[0.0; 5], &vocabulary).mask,
        [false, false]
    );
}

#[test]
fn a_calibration_is_refused_for_another_vocabulary_or_length() {
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = vocabulary();
    let error = Calibration::read(folder.path(), &vocabulary).unwrap_err();
    assert!(matches!(error, LabelError::NoCalibration { .. }), "{error}");

    let calibration = Calibration {
        mean: vec![0.1, 1e-8, 3.0, -7.25, 1e8],
        ..plain(&vocabulary)
    };
    calibration.write(folder.path()).unwrap();
    assert_eq!(
        Calibration::read(folder.path(), &vocabulary).unwrap(),
        calibration
    );

    let error = Calibration::read(folder.path(), &Vocabulary::kmeans())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&vocabulary.digest()) && error.contains("hint"),
        "{error}"
    );

    let cases: [(fn(&mut Calibration), &str); 6] = [
        (|c| c.mean.truncate(4), "mean: expected 5 values, found 4"),
        (|c| c.spread.push(1.0), "spread: expected 2 values, found 3"),
        (
            |c| c.spread[0] = -1.0,
            "spread: expected numbers from 0 up, found -1",
        ),
        (
            |c| c.margins.truncate(1),
            "margins: expected 2 values, found 1",
        ),
        (
            |c| c.margins[1].truncate(3),
            "margins: expected 101 ascending numbers",
        ),
        (
            |c| c.margins[0][0] = 1.0,
            "margins: expected 101 ascending numbers",
        ),
    ];
    for (change, expected) in cases {
        let mut wrong = calibration.clone();
        change(&mut wrong);
        wrong.write(folder.path()).unwrap();
        let error = Calibration::read(folder.path(), &vocabulary)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::write(Calibration::path(folder.path()), "{\"vocabulary\": 3}").unwrap();
    let error = Calibration::read(folder.path(), &vocabulary).unwrap_err();
    assert!(matches!(error, LabelError::Calibration { .. }), "{error}");
}

#[test]
fn the_older_form_asks_to_calibrate_again() {
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = vocabulary();
    let digest = vocabulary.digest();
    let text = format!(
        "{{\"vocabulary\": \"{digest}\", \"count\": 2, \"mean\": [0, 0, 0, 0, 0], \
         \"std\": [1, 1, 1, 1, 1]}}"
    );
    fs::write(Calibration::path(folder.path()), text).unwrap();
    let error = Calibration::read(folder.path(), &vocabulary)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("older form") && error.contains("`clasp label calibrate`"),
        "{error}"
    );
}

#[test]
fn settings_out_of_range_name_their_field() {
    let default = AttributeConfig::default;
    let cases: [(&str, fn(&mut AttributeConfig)); 9] = [
        ("confident_share", |c| c.confident_share = 1.0),
        ("confident_share", |c| c.confident_share = f64::NAN),
        ("temperature", |c| c.temperature = Some(0.0)),
        ("minimum_spread", |c| c.minimum_spread = -1.0),
        ("mask_low", |c| c.mask_low = 0.6),
        ("mask_low", |c| c.mask_low = f32::NAN),
        ("mask_high", |c| c.mask_high = 0.4),
        ("mask_high", |c| c.mask_high = 0.5),
        ("mask_high", |c| c.mask_high = 1.0),
    ];
    for (field, change) in cases {
        let mut config = default();
        change(&mut config);
        let error = config.check().unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
    assert_eq!(default().check(), Ok(()));
    // Without a mask there is no share to go by, but a temperature may be given.
    let unmasked = AttributeConfig {
        mask_low: 0.5,
        mask_high: 0.5,
        ..at(1.0)
    };
    assert_eq!(unmasked.check(), Ok(()));
}

proptest! {
    #[test]
    fn targets_are_probabilities(
        logits in prop::collection::vec(-1e4_f32..1e4, 5), low in 0.0_f32..0.5, t in 0.01..10.0_f64,
    ) {
        let vocabulary = vocabulary();
        let config = AttributeConfig { mask_low: low, mask_high: 1.0 - low, ..at(t) };
        let targets = AttributeRule::new(&plain(&vocabulary), &config).targets_of_logits(&logits, &vocabulary);
        for range in vocabulary.ranges() {
            let values = &targets.target[range];
            prop_assert!(values.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        prop_assert_eq!(targets.mask.len(), 2);
    }

    #[test]
    fn a_wider_band_masks_no_less(
        logits in prop::collection::vec(-3.0_f32..3.0, 5), low in 0.0_f32..0.4,
    ) {
        let vocabulary = vocabulary();
        let mask = |low: f32| {
            let config = AttributeConfig { mask_low: low, mask_high: 1.0 - low, ..at(1.0) };
            AttributeRule::new(&plain(&vocabulary), &config).targets_of_logits(&logits, &vocabulary).mask
        };
        for (wide, narrow) in mask(low).into_iter().zip(mask(low + 0.1)) {
            prop_assert!(narrow || !wide);
        }
    }

    #[test]
    fn percentiles_and_shares_agree(
        values in prop::collection::vec(-5.0_f32..5.0, 101), limit in -6.0_f32..6.0,
    ) {
        let share = share_from(&percentiles(values.clone()), limit);
        let count = values.iter().filter(|&&x| x >= limit).count() as f64 / 101.0;
        prop_assert!((share - count).abs() < 0.011, "{share} for {count}");
    }
}
