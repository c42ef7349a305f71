//! The augmentations against torchvision and Pillow, and what must hold for any view.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

/// Single operations and the whole view, in units of the range 0 to 1 (the normalized view: of
/// its standard deviations).
const OPERATION_TOLERANCE: f32 = 1e-5;
/// A whole view passes several operations and a division by 0.225.
const VIEW_TOLERANCE: f32 = 5e-5;

/// Values made by `tests/golden/augment.py`.
struct Golden(SafeTensors<'static>);

impl Golden {
    fn open() -> Self {
        Self(
            SafeTensors::deserialize(include_bytes!("../../tests/golden/augment.safetensors"))
                .unwrap(),
        )
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let data = self.0.tensor(name).unwrap().data();
        data.chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    /// `[height, width, 3]`, 8 bits.
    fn image(&self, name: &str) -> Rgb {
        let tensor = self.0.tensor(name).unwrap();
        Rgb {
            width: tensor.shape()[1],
            height: tensor.shape()[0],
            pixels: tensor.data().to_vec(),
        }
    }
}

/// 8-bit pixels, interleaved, as planes from 0 to 1: `[3, height, width]`.
fn planes(image: &Rgb) -> Vec<f32> {
    let channel = |c| image.pixels.iter().skip(c).step_by(3);
    let unit = |byte: &u8| f32::from(*byte) / 255.0;
    (0..3).flat_map(channel).map(unit).collect()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn single_operations_equal_torchvision() {
    let golden = Golden::open();
    let image = planes(&golden.image("image"));
    let kinds: [(&str, fn(f32) -> ColorOperation); 4] = [
        ("brightness", ColorOperation::Brightness),
        ("contrast", ColorOperation::Contrast),
        ("saturation", ColorOperation::Saturation),
        ("hue", ColorOperation::Hue),
    ];
    for (name, operation) in kinds {
        let expected = golden.floats(name);
        for (factor, expected) in golden
            .floats(&format!("{name}.factors"))
            .into_iter()
            .zip(expected.chunks(image.len()))
        {
            let mut pixels = image.clone();
            color::apply(&mut pixels, &[operation(factor)]);
            let difference = largest_difference(&pixels, expected);
            assert!(
                difference < OPERATION_TOLERANCE,
                "{name} {factor}: {difference}"
            );
        }
    }
    let mut pixels = image.clone();
    color::apply(&mut pixels, &[ColorOperation::Gray]);
    assert!(largest_difference(&pixels, &golden.floats("grey")) < OPERATION_TOLERANCE);
    let mut pixels = image;
    color::finish(&mut pixels, true, [0.0; 3], [1.0; 3]);
    assert!(largest_difference(&pixels, &golden.floats("solarize")) < OPERATION_TOLERANCE);
}

#[test]
fn blur_equals_torchvision_and_is_close_to_pillow() {
    let golden = Golden::open();
    let source = golden.image("image");
    let image = planes(&source);
    let (torchvision, pillow) = (
        golden.floats("blur"),
        golden.0.tensor("blur.pillow").unwrap().data(),
    );
    for (i, sigma) in golden.floats("blur.sigmas").into_iter().enumerate() {
        let mut pixels = image.clone();
        blur::gaussian(
            &mut pixels,
            source.height,
            source.width,
            sigma,
            &mut Vec::new(),
        );
        let difference =
            largest_difference(&pixels, &torchvision[i * image.len()..][..image.len()]);
        assert!(
            difference < OPERATION_TOLERANCE,
            "sigma {sigma}: {difference}"
        );

        // Pillow approximates the Gaussian by box filters, repeats the border and rounds to 8
        // bits: away from the border the two are one gray level apart on the mean, no more.
        let pillow = Rgb {
            pixels: pillow[i * image.len()..][..image.len()].to_vec(),
            ..source.clone()
        };
        let pillow = planes(&pillow);
        let inside = |i: &usize| {
            let (x, y) = (i % source.width, i / source.width % source.height);
            (6..source.width - 6).contains(&x) && (6..source.height - 6).contains(&y)
        };
        let differences: Vec<f32> = (0..image.len())
            .filter(inside)
            .map(|i| (pixels[i] - pillow[i]).abs())
            .collect();
        let mean = 255.0 * differences.iter().sum::<f32>() / differences.len() as f32;
        assert!(mean < 1.5, "sigma {sigma}: {mean} gray levels");
    }
}

#[test]
fn a_whole_view_equals_torchvision() {
    let golden = Golden::open();
    let crop = CropBox {
        left: 6,
        top: 11,
        width: 31,
        height: 52,
    };
    let changes = ViewChanges {
        flip: true,
        colors: vec![
            ColorOperation::Brightness(1.3),
            ColorOperation::Hue(-0.08),
            ColorOperation::Contrast(1.35),
            ColorOperation::Saturation(0.85),
        ],
        blur: Some(1.2),
        solarize: true,
    };
    let found = render(
        &ByColumns::whole(&golden.image("source")),
        &crop,
        &changes,
        [48, 24],
        IMAGENET_MEAN,
        IMAGENET_STD,
        &mut ViewScratch::default(),
    );
    let expected = golden.floats("view");
    // Solarizing jumps from v to 1 - v only at one half, where both are the same but for one part
    // in 255: a value on the edge may fall on the other side and still be as near as that.
    let jumps = found
        .iter()
        .zip(&expected)
        .filter(|(a, b)| (*a - *b).abs() > VIEW_TOLERANCE)
        .count();
    let difference = largest_difference(&found, &expected);
    assert!(
        jumps <= 1 && difference < 0.02,
        "{jumps} values differ, by up to {difference}"
    );
}

#[test]
fn crops_are_distributed_as_torchvisions() {
    const DRAWS: usize = 40_000;
    const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];
    // Two samples of 40,000: a quantile of a share moves by less than this, whole pixels included.
    const TOLERANCE: f32 = 0.015;
    let golden = Golden::open();
    let (sizes, scales) = (golden.floats("crop.sizes"), golden.floats("crop.scales"));
    let statistics = golden.floats("crop.statistics");
    let mut expected = statistics.chunks(1 + QUANTILES.len());
    for size in sizes.chunks(2) {
        let (width, height) = (size[0] as usize, size[1] as usize);
        for scale in scales.chunks(2) {
            let mut rng = crate::rng_for(7, 0, "crops");
            let mut draw =
                || CropBox::draw(width, height, [scale[0], scale[1]], [0.4, 0.6], &mut rng);
            let crops: Vec<CropBox> = (0..DRAWS).map(|_| draw()).collect();
            let shares: [fn(&CropBox) -> usize; 4] =
                [|c| c.width, |c| c.height, |c| c.left, |c| c.top];
            for (share, whole) in shares.into_iter().zip([width, height, width, height]) {
                let mut values: Vec<f32> = crops
                    .iter()
                    .map(|crop| share(crop) as f32 / whole as f32)
                    .collect();
                values.sort_by(f32::total_cmp);
                let mean = values.iter().sum::<f32>() / DRAWS as f32;
                let quantiles =
                    QUANTILES.map(|q| values[(q * (DRAWS - 1) as f64).round() as usize]);
                let found: Vec<f32> = std::iter::once(mean).chain(quantiles).collect();
                let expected = expected.next().unwrap();
                let difference = largest_difference(&found, expected);
                assert!(
                    difference < TOLERANCE,
                    "{width} x {height}, scale {scale:?}: {found:?} and {expected:?}"
                );
            }
        }
    }
}

/// A soft picture with every color in it.
fn picture(width: usize, height: usize) -> Rgb {
    let pixel = |i: usize| {
        let (x, y) = ((i % width) as f32, (i / width) as f32);
        [x / 7.0, y / 5.0, (x + y) / 11.0].map(|phase| (127.5 + 120.0 * phase.sin()) as u8)
    };
    Rgb {
        width,
        height,
        pixels: (0..width * height).flat_map(pixel).collect(),
    }
}

/// A configuration that only crops and flips, with pixels left from 0 to 1.
fn crops_only(flip: f32) -> ViewsConfig {
    ViewsConfig {
        local: 2,
        global_size: [64, 32],
        local_size: [32, 16],
        flip,
        jitter: 0.0,
        grayscale: 0.0,
        blur: [0.0; 3],
        solarize: 0.0,
        mean: [0.0; 3],
        std: [1.0; 3],
        ..ViewsConfig::default()
    }
}

fn mirror(view: &View) -> Vec<f32> {
    view.pixels
        .chunks(view.width)
        .flat_map(|row| row.iter().rev().copied())
        .collect()
}

#[test]
fn the_same_generator_gives_the_same_views_and_another_gives_others() {
    let image = picture(90, 200);
    let parts: Vec<u8> = (0..128).collect();
    let grid = GridLabels {
        rows: 16,
        columns: 8,
        parts: &parts,
    };
    let config = ViewsConfig::default();
    let make = |key: &str| {
        views(
            &image,
            Some(grid),
            &config,
            [8, 4],
            &mut crate::rng_for(3, 1, key),
        )
    };
    let first = make("a");
    assert_eq!(first, make("a"));
    assert_ne!(first, make("b"));
    let sizes = |views: &[View]| {
        views
            .iter()
            .map(|v| {
                (
                    v.height,
                    v.width,
                    v.pixels.len(),
                    v.labels.as_ref().map(|labels| labels.parts.len()),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        sizes(&first.global),
        [(256, 128, 3 * 256 * 128, Some(32)); 2]
    );
    assert_eq!(sizes(&first.local), [(128, 64, 3 * 128 * 64, None); 8]);
    assert!(
        first
            .global
            .iter()
            .chain(&first.local)
            .all(|v| v.pixels.iter().all(|x| x.is_finite()))
    );
}

#[test]
fn flipping_twice_is_the_identity_and_flipping_commutes_with_the_rest() {
    let image = picture(50, 110);
    let parts: Vec<u8> = (0..128).collect();
    let grid = GridLabels {
        rows: 16,
        columns: 8,
        parts: &parts,
    };
    // The flip is one draw whatever its probability, so everything else is the same.
    let full = ViewsConfig {
        local: 2,
        global_size: [64, 32],
        local_size: [32, 16],
        ..ViewsConfig::default()
    };
    for base in [crops_only(0.0), full] {
        let make = |flip| {
            let config = ViewsConfig {
                flip,
                ..base.clone()
            };
            views(
                &image,
                Some(grid),
                &config,
                [8, 4],
                &mut crate::rng_for(0, 0, "flip"),
            )
        };
        let (plain, flipped) = (make(0.0), make(1.0));
        for (plain, flipped) in plain
            .global
            .iter()
            .chain(&plain.local)
            .zip(flipped.global.iter().chain(&flipped.local))
        {
            // The mean gray of a contrast is summed in another order.
            assert!(largest_difference(&mirror(flipped), &plain.pixels) < 1e-4);
            if let (Some(plain), Some(flipped)) = (&plain.labels, &flipped.labels) {
                let [plain, flipped] = [&plain.parts, &flipped.parts];
                let mirrored: Vec<u8> = flipped
                    .chunks(4)
                    .flat_map(|row| row.iter().rev().copied())
                    .collect();
                assert_eq!(&mirrored, plain);
            }
        }
    }
}

#[test]
fn treatments_happen_as_often_as_configured() {
    const DRAWS: usize = 20_000;
    let config = ViewsConfig::default();
    let mut rng = crate::rng_for(1, 0, "changes");
    for (kind, blur, solarize) in [
        (ViewKind::First, 1.0, 0.0),
        (ViewKind::Global, 0.1, 0.2),
        (ViewKind::Local, 0.5, 0.0),
    ] {
        let drawn: Vec<ViewChanges> = (0..DRAWS)
            .map(|_| ViewChanges::draw(&config, kind, &mut rng))
            .collect();
        let share = |test: &dyn Fn(&ViewChanges) -> bool| {
            drawn.iter().filter(|c| test(c)).count() as f32 / DRAWS as f32
        };
        let expected = [
            (share(&|c| c.flip), 0.5),
            (share(&|c| c.colors.len() >= 4), 0.8),
            (
                share(&|c| c.colors.last() == Some(&ColorOperation::Gray)),
                0.2,
            ),
            (share(&|c| c.blur.is_some()), blur),
            (share(&|c| c.solarize), solarize),
            // Each of the four operations comes first a quarter of the time.
            (
                share(&|c| matches!(c.colors.first(), Some(ColorOperation::Contrast(_)))),
                0.2,
            ),
            (
                share(&|c| matches!(c.colors.get(3), Some(ColorOperation::Hue(_)))),
                0.2,
            ),
        ];
        for (i, (found, expected)) in expected.into_iter().enumerate() {
            assert!(
                (found - expected).abs() < 0.015,
                "{kind:?}, {i}: expected {expected}, found {found}"
            );
        }
        for change in &drawn {
            assert!(change.blur.is_none_or(|sigma| (0.1..=2.0).contains(&sigma)));
            for operation in &change.colors {
                match *operation {
                    ColorOperation::Brightness(f) | ColorOperation::Contrast(f) => {
                        assert!((0.6..=1.4).contains(&f))
                    }
                    ColorOperation::Saturation(f) => assert!((0.8..=1.2).contains(&f)),
                    ColorOperation::Hue(turn) => assert!((-0.1..=0.1).contains(&turn)),
                    ColorOperation::Gray => {}
                }
            }
        }
    }
}

#[test]
fn a_configuration_out_of_bounds_names_its_field() {
    ViewsConfig::default().check().unwrap();
    let cases: [(fn(&mut ViewsConfig), &str); 12] = [
        (
            |c| c.global = 0,
            "views.global: expected 1 to 64 views, found 0",
        ),
        (|c| c.local = 65, "views.local"),
        (|c| c.global_size = [256, 0], "views.global_size"),
        (|c| c.local_size = [5000, 64], "views.local_size"),
        (
            |c| c.global_scale = [0.0, 1.0],
            "views.global_scale: expected 0 < least <= most <= 1, found [0.0, 1.0]",
        ),
        (|c| c.local_scale = [0.5, 0.4], "views.local_scale"),
        (|c| c.ratio = [0.0, 1.0], "views.ratio"),
        (|c| c.flip = f32::NAN, "views.flip"),
        (|c| c.hue = 0.6, "views.hue"),
        (
            |c| c.blur = [1.0, 1.5, 0.0],
            "views.blur: expected 0 to 1, found 1.5",
        ),
        (|c| c.blur_sigma = [0.0, 2.0], "views.blur_sigma"),
        (|c| c.std = [0.0; 3], "views.std"),
    ];
    for (change, expected) in cases {
        let mut config = ViewsConfig::default();
        change(&mut config);
        let text = config.check().unwrap_err().to_string();
        assert!(
            text.starts_with(expected),
            "expected {expected:?}, found {text:?}"
        );
    }
}

#[test]
fn a_misspelled_key_is_refused_and_missing_ones_have_defaults() {
    let config: ViewsConfig = toml::from_str("local = 4\nblur = [0.0, 0.0, 0.0]\n").unwrap();
    assert_eq!(
        config,
        ViewsConfig {
            local: 4,
            blur: [0.0; 3],
            ..ViewsConfig::default()
        }
    );
    let text = toml::from_str::<ViewsConfig>("locals = 4\n")
        .unwrap_err()
        .to_string();
    assert!(text.contains("locals") && text.contains("line 1"), "{text}");
}

/// Distance from `x` to the nearest multiple of `step`.
fn to_border(x: f32, step: f32) -> f32 {
    let rest = x.rem_euclid(step);
    rest.min(step - rest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Each label has its color in the image: after crop and flip, the color in the middle of an
    /// output cell is that of the carried label.
    #[test]
    fn labels_follow_the_pixels(width in 40_usize..160, height in 80_usize..320, seed: u64, flip: bool) {
        const ROWS: usize = 6;
        const COLUMNS: usize = 4;
        const OUTPUT: [usize; 2] = [8, 4];
        let parts: Vec<u8> = (0..(ROWS * COLUMNS) as u8).collect();
        let color = |label: u8| [label % 3 * 127, label / 3 % 3 * 127, label / 9 * 127];
        let pixel = |i: usize| {
            let (x, y) = (i % width, i / width);
            color(parts[y * ROWS / height * COLUMNS + x * COLUMNS / width])
        };
        let image = Rgb { width, height, pixels: (0..width * height).flat_map(pixel).collect() };
        let grid = GridLabels { rows: ROWS, columns: COLUMNS, parts: &parts };

        let mut rng = crate::rng_for(seed, 0, "labels");
        let crop = CropBox::draw(width, height, [0.3, 1.0], [0.4, 0.6], &mut rng);
        let size = [64, 32];
        let changes = ViewChanges { flip, colors: Vec::new(), blur: None, solarize: false };
        let pixels = render(&ByColumns::whole(&image), &crop, &changes, size, [0.0; 3], [1.0; 3], &mut ViewScratch::default());
        let labels = GridCrop::new(&crop, flip, [height, width], [ROWS, COLUMNS], OUTPUT);
        let labels = grid.crop(&labels).parts;

        let (mut compared, area) = (0, size[0] * size[1]);
        for (i, &label) in labels.iter().enumerate() {
            let (row, column) = (i / OUTPUT[1], i % OUTPUT[1]);
            let place = |cell: usize, cells: usize, start: usize, length: usize| start as f32 + (cell as f32 + 0.5) / cells as f32 * length as f32;
            let y = place(row, OUTPUT[0], crop.top, crop.height);
            let across = if flip { OUTPUT[1] - 1 - column } else { column };
            let x = place(across, OUTPUT[1], crop.left, crop.width);
            // Beside a border between labels the resized pixel mixes the two colors.
            let reach = |length: usize, out: usize| 3.0 * (length as f32 / out as f32).max(1.0);
            let clear_x = to_border(x, width as f32 / COLUMNS as f32) > reach(crop.width, size[1]);
            let clear_y = to_border(y, height as f32 / ROWS as f32) > reach(crop.height, size[0]);
            if clear_x && clear_y {
                let at = (row * 8 + 4) * size[1] + column * 8 + 4;
                for (channel, expected) in color(label).into_iter().enumerate() {
                    let found = pixels[channel * area + at];
                    prop_assert!((found - f32::from(expected) / 255.0).abs() < 0.05, "cell {i}: label {label}, found {found} in channel {channel}");
                }
                compared += 1;
            }
        }
        prop_assert!(compared > 0 || width < 64, "no cell to compare at {width} x {height}");
    }

    #[test]
    fn any_image_has_views(width in 1_usize..40, height in 1_usize..40, seed: u64) {
        let image = picture(width, height);
        let config = ViewsConfig { local: 1, global_size: [33, 17], local_size: [9, 5], ..ViewsConfig::default() };
        let parts = [255, 1, 2];
        let grid = GridLabels { rows: 3, columns: 1, parts: &parts };
        let made = views(&image, Some(grid), &config, [2, 1], &mut crate::rng_for(seed, 0, "any"));
        for view in made.global.iter().chain(&made.local) {
            prop_assert_eq!(view.pixels.len(), 3 * view.height * view.width);
            prop_assert!(view.pixels.iter().all(|x| x.is_finite()));
        }
    }
}
