//! Drawings and their ground truth agree.

use std::collections::BTreeMap;

use super::*;
use crate::person::pose::sample_yaw;
use clasp_data::image::Rgb;
use clasp_data::part;
use clasp_data::rng_for;

fn person_and_shot(index: u64) -> (SynthPerson, Shot) {
    let mut rng = rng_for(7, 0, &format!("test {index}"));
    let person = SynthPerson::sample(&mut rng);
    let shot = Shot::sample(&person, &mut rng);
    (person, shot)
}

/// Whether one of the classes lies within `reach` pixels of a point.
fn near(rendered: &RenderedPerson, point: [f32; 3], classes: &[u8], reach: i64) -> bool {
    let (width, height) = (rendered.image.width as i64, rendered.image.height as i64);
    let (x, y) = (point[0] as i64, point[1] as i64);
    (-reach..=reach).any(|dy| {
        (-reach..=reach).any(|dx| {
            let (x, y) = (x + dx, y + dy);
            (0..width).contains(&x)
                && (0..height).contains(&y)
                && classes.contains(&rendered.parts[(y * width + x) as usize])
        })
    })
}

#[test]
fn same_arguments_same_picture() {
    let (person, shot) = person_and_shot(1);
    let (a, b) = (
        render(&person, &shot, 96, 48),
        render(&person, &shot, 96, 48),
    );
    assert_eq!(a.image, b.image);
    assert_eq!(a.parts, b.parts);
    assert_eq!(a.keypoints, b.keypoints);
    let other = Shot {
        seed: shot.seed ^ 1,
        ..shot
    };
    assert_ne!(render(&person, &other, 96, 48).image, a.image);
}

#[test]
fn any_size_draws() {
    let (person, shot) = person_and_shot(2);
    for (height, width) in [(1, 1), (7, 3), (31, 64), (300, 90)] {
        let rendered = render(&person, &shot, height, width);
        assert_eq!(
            (rendered.image.height, rendered.image.width),
            (height, width)
        );
        assert_eq!(rendered.parts.len(), height * width);
        assert!(rendered.keypoints.iter().flatten().all(|v| v.is_finite()));
    }
}

#[test]
fn visible_keypoints_lie_on_their_parts() {
    use part::{ARMS, BAG, FEET, HEAD, LEGS, LOWER_BODY, UPPER_BODY};
    let classes: [&[u8]; 17] = [
        &[HEAD],
        &[HEAD],
        &[HEAD],
        &[HEAD],
        &[HEAD],
        &[UPPER_BODY, BAG, HEAD],
        &[UPPER_BODY, BAG, HEAD],
        &[UPPER_BODY, ARMS],
        &[UPPER_BODY, ARMS],
        &[UPPER_BODY, ARMS],
        &[UPPER_BODY, ARMS],
        &[UPPER_BODY, LOWER_BODY],
        &[UPPER_BODY, LOWER_BODY],
        &[UPPER_BODY, LOWER_BODY, LEGS],
        &[UPPER_BODY, LOWER_BODY, LEGS],
        &[LOWER_BODY, LEGS, FEET],
        &[LOWER_BODY, LEGS, FEET],
    ];
    let (mut seen, mut hidden) = (0, 0);
    for index in 0..60 {
        let (person, shot) = person_and_shot(index);
        let rendered = render(&person, &shot, 256, 128);
        for (k, point) in rendered.keypoints.iter().enumerate() {
            match point[2] as u8 {
                2 => {
                    seen += 1;
                    assert!(
                        near(&rendered, *point, classes[k], 2),
                        "person {index}: keypoint {k} at {point:?} is not near {:?}",
                        classes[k]
                    );
                }
                1 => hidden += 1,
                _ => assert_eq!(*point, [0.0; 3]),
            }
        }
    }
    assert!(seen > 500 && hidden > 100, "{seen} seen, {hidden} hidden");
}

#[test]
fn a_visible_person_lies_in_its_box() {
    for index in 0..20 {
        let (person, shot) = person_and_shot(100 + index);
        let rendered = render(
            &person,
            &Shot {
                occluder: None,
                ..shot
            },
            128,
            64,
        );
        let [x, y, w, h] = rendered.bbox_xywh;
        let inside = rendered.parts.iter().enumerate().all(|(at, part)| {
            let (px, py) = ((at % 64) as f32, (at / 64) as f32);
            *part == 0 || (px >= x && px < x + w && py >= y && py < y + h)
        });
        assert!(inside);
        let area = rendered.parts.iter().filter(|p| **p != 0).count();
        assert_eq!(area as u32, rendered.area);
        assert!(h > 70.0, "{h} of 128 pixels high");
    }
}

#[test]
fn the_view_determines_visible_parts_of_the_face() {
    let mut rng = rng_for(3, 0, "views");
    for _ in 0..20 {
        let person = SynthPerson {
            headwear: None,
            glasses: Glasses::None,
            carried: None,
            bag: None,
            ..SynthPerson::sample(&mut rng)
        };
        let mut shot = Shot {
            occluder: None,
            ..Shot::sample(&person, &mut rng)
        };
        shot.pose.head_turn = 0.0;
        shot.pose.arms = shot.pose.arms.map(|_| Arm {
            flex: 0.0,
            abduct: 0.15,
            elbow: 0.1,
            inward: 0.0,
        });
        let eyes = |yaw: f32| {
            let rendered = render(
                &person,
                &Shot {
                    yaw,
                    shift: [0.0; 2],
                    fill: 0.9,
                    ..shot.clone()
                },
                256,
                128,
            );
            [rendered.keypoints[1][2], rendered.keypoints[2][2]]
        };
        assert_eq!(eyes(0.0), [2.0, 2.0]);
        assert_eq!(eyes(std::f32::consts::PI), [1.0, 1.0]);
        // Turned to the right of the picture, the person shows the right side.
        assert_eq!(eyes(std::f32::consts::FRAC_PI_2)[1], 2.0);
        assert_eq!(eyes(-std::f32::consts::FRAC_PI_2)[0], 2.0);
    }
}

#[test]
fn views_are_bounded_as_documented() {
    assert_eq!(view_of(0.0), View::Front);
    assert_eq!(view_of(-0.6), View::Front);
    assert_eq!(view_of(1.6), View::Side);
    assert_eq!(view_of(-1.6), View::Side);
    assert_eq!(view_of(3.2), View::Back);
}

#[test]
fn every_attribute_value_is_neither_rare_nor_almost_constant() {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    const PEOPLE: usize = 3000;
    let mut rng = rng_for(11, 0, "frequencies");
    for _ in 0..PEOPLE {
        let person = SynthPerson::sample(&mut rng);
        for (name, value) in person.attributes(view_of(sample_yaw(&mut rng))) {
            *counts.entry((name, value)).or_default() += 1;
        }
    }
    for (name, values) in ATTRIBUTES {
        for value in *values {
            let share = counts.get(&(*name, *value)).copied().unwrap_or(0) as f64 / PEOPLE as f64;
            assert!((0.03..0.85).contains(&share), "{name}.{value}: {share}");
        }
    }
}

#[test]
fn attributes_are_those_of_the_default_vocabulary() {
    let vocabulary = clasp_data::vocabulary::Vocabulary::standard().unwrap();
    let ours: Vec<(&str, Vec<&str>)> = ATTRIBUTES.iter().map(|(n, v)| (*n, v.to_vec())).collect();
    let theirs: Vec<(&str, Vec<&str>)> = vocabulary
        .attributes
        .iter()
        .map(|a| {
            (
                a.name.as_str(),
                a.values.iter().map(|v| v.name.as_str()).collect(),
            )
        })
        .collect();
    assert_eq!(ours, theirs);
    let parts: Vec<&str> = vocabulary.parts.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(parts, part::NAMES);
}

#[test]
fn many_people_share_a_color() {
    let mut rng = rng_for(5, 0, "colors");
    let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for _ in 0..500 {
        let person = SynthPerson::sample(&mut rng);
        *pairs
            .entry((person.upper.color.hue.name(), person.lower.color.hue.name()))
            .or_default() += 1;
    }
    let alone = pairs.values().filter(|n| **n == 1).count();
    assert!(
        alone < 25,
        "{alone} of 500 people have a pair of colors of their own"
    );
}

#[test]
fn a_camera_is_the_same_for_all_people() {
    let camera = Camera::sample(&mut rng_for(1, 0, "camera"));
    let mut rng = rng_for(2, 0, "people");
    let (a, b) = (SynthPerson::sample(&mut rng), SynthPerson::sample(&mut rng));
    let (a, b) = (
        Shot::with_camera(&a, &camera, &mut rng),
        Shot::with_camera(&b, &camera, &mut rng),
    );
    // Lens, sensor and processing are the camera's; scene and light are the moment's.
    for own in [&a.camera, &b.camera] {
        assert_eq!(
            (own.blur, own.noise, own.quality, &own.scenes),
            (camera.blur, camera.noise, camera.quality, &camera.scenes)
        );
        assert!(camera.scenes.contains(&(own.place, own.place_seed)));
    }
    assert_ne!(a.camera, b.camera);
    assert_ne!(a.seed, b.seed);
}

#[test]
fn scenes_report_visibility() {
    let mut rng = rng_for(4, 0, "scene");
    let people: Vec<SynthPerson> = (0..9).map(|_| SynthPerson::sample(&mut rng)).collect();
    let list: Vec<&SynthPerson> = people.iter().collect();
    let camera = Camera::sample(&mut rng);
    let (mut hidden, mut all) = (0, 0);
    for seed in 0..6 {
        let scene = render_scene(&list, &camera, seed, 240, 427);
        assert_eq!(
            scene.image,
            render_scene(&list, &camera, seed, 240, 427).image
        );
        let area: u32 = scene.people.iter().map(|p| p.area).sum();
        assert!(area as usize >= scene.parts.iter().filter(|p| **p != 0).count());
        for p in &scene.people {
            let ([x, y, w, h], [vx, vy, vw, vh]) = (p.bbox_xywh, p.visible_xywh);
            assert!((0.0..=1.0).contains(&p.visible));
            if p.area > 0 {
                assert!(vx >= x && vy >= y && vx + vw <= x + w && vy + vh <= y + h);
            }
            hidden += usize::from(p.visible < 0.9);
            all += 1;
        }
    }
    assert!(hidden > 0 && hidden < all, "{hidden} of {all} hidden");
}

fn files(folder: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs_err::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, fs_err::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_dataset_reads_back_in_every_layout_and_resumes() {
    let config = SynthConfig {
        train_identities: 3,
        test_identities: 2,
        cameras: 2,
        shots: 2,
        distractors: 2,
        unlabeled: 5,
        scenes: 4,
        height: 64,
        width: 32,
        scene_height: 96,
        scene_width: 160,
        seed: 9,
    };
    let home = tempfile::tempdir().unwrap();
    let first = home.path().join("a");
    let mut last = (0, 0);
    let summary = write_dataset(&first, &config, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!((summary.train, summary.query, summary.gallery), (12, 4, 6));
    assert_eq!(last, (22 + 5 + 4, 22 + 5 + 4));

    let market = clasp_data::layouts::reid::ReidDataset::open(&first).unwrap();
    assert_eq!((market.train.len(), market.query.len()), (12, 4));
    let attributes = clasp_data::layouts::attributes::AttributeDataset::open(&first).unwrap();
    assert_eq!(attributes.images.len(), 22);
    assert_eq!(attributes.splits(), ["train", "val"]);
    assert!(attributes.names.iter().any(|n| n == "upper_color.red"));
    let parsing = clasp_data::layouts::parsing::ParsingDataset::open(&first).unwrap();
    assert_eq!(parsing.classes, part::NAMES);
    assert_eq!(parsing.split("val").unwrap().len(), 10);
    for split in ["train", "val"] {
        let keypoints = clasp_data::layouts::coco::KeypointDataset::open(&first, split).unwrap();
        assert!(keypoints.images.iter().all(|image| image.path.is_file()));
        let scenes = clasp_data::layouts::coco::KeypointDataset::open(
            &first.join(format!("scenes/{split}.json")),
            split,
        )
        .unwrap();
        assert!(scenes.images.iter().all(|image| image.path.is_file()));
    }
    let people = clasp_data::source::Source::open(
        &first
            .join("unlabeled/unlabeled-000.tar")
            .display()
            .to_string(),
    )
    .unwrap();
    assert_eq!(people.len(), 5);

    // An interrupted run: some files are missing, the manifest says unfinished.
    let second = home.path().join("b");
    write_dataset(&second, &config, &mut |_, _| {}).unwrap();
    for name in [
        "synth.json",
        "attributes.csv",
        "market/query/0004_c1s1_000400_00.jpg",
        "scenes/val.json",
    ] {
        fs_err::remove_file(second.join(name)).unwrap();
    }
    write_dataset(&second, &config, &mut |_, _| {}).unwrap();
    assert_eq!(files(&first), files(&second));

    // Finished: nothing is drawn again. Other settings: refused.
    assert_eq!(
        write_dataset(&second, &config, &mut |_, _| unreachable!(
            "finished already"
        ))
        .unwrap(),
        summary
    );
    let other = SynthConfig {
        seed: 10,
        ..config.clone()
    };
    let error = write_dataset(&second, &other, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, SynthError::OtherSettings { .. }), "{error}");
    let error = write_dataset(
        &home.path().join("c"),
        &SynthConfig {
            cameras: 12,
            ..config
        },
        &mut |_, _| {},
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "`cameras`: expected 1 to 9, found 12");
}

/// What a matcher by background sees of a picture: mean colors along its border, a twelfth of the
/// width and a sixteenth of the height deep, in eight stretches on each long side and four above
/// and below.
fn border(image: &Rgb) -> Vec<f32> {
    let (width, height) = (image.width, image.height);
    let (deep_x, deep_y) = (width / 12, height / 16);
    let mean = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| -> [f32; 3] {
        let mut sum = [0.0; 3];
        let count = (x.len() * y.len()) as f32;
        for (row, column) in y.flat_map(|row| x.clone().map(move |column| (row, column))) {
            for (c, sum) in sum.iter_mut().enumerate() {
                *sum += f32::from(image.pixels[3 * (row * width + column) + c]) / count;
            }
        }
        sum
    };
    let mut found = Vec::new();
    for k in 0..8 {
        let rows = k * height / 8..(k + 1) * height / 8;
        found.extend(mean(0..deep_x, rows.clone()));
        found.extend(mean(width - deep_x..width, rows));
    }
    for k in 0..4 {
        let columns = k * width / 4..(k + 1) * width / 4;
        found.extend(mean(columns.clone(), 0..deep_y));
        found.extend(mean(columns, height - deep_y..height));
    }
    found
}

/// Each camera had one scene and one light, so that the background alone identified the camera, and
/// a network learned that instead of re-identification.
#[test]
fn the_background_identifies_neither_camera_nor_person() {
    const CAMERAS: usize = 3;
    let config = SynthConfig {
        cameras: CAMERAS,
        ..SynthConfig::default()
    };
    let cameras: Vec<Camera> = (1..=CAMERAS).map(|c| config.camera("crop", c)).collect();
    let mut shots = Vec::new();
    for pid in 1..=40 {
        let person = config.identity(pid);
        for (number, camera) in cameras.iter().enumerate() {
            for shot in 0..2 {
                let mut rng = rng_for(1, 0, &format!("{pid} {number} {shot}"));
                let shot = Shot::with_camera(&person, camera, &mut rng);
                let rendered = render(&person, &shot, 96, 48);
                shots.push((pid, number, border(&rendered.image)));
            }
        }
    }
    let nearest = |i: usize, allowed: &dyn Fn(usize) -> bool| {
        let distance = |j: usize| -> f32 {
            let pairs = shots[i].2.iter().zip(&shots[j].2);
            pairs.map(|(a, b)| (a - b).powi(2)).sum()
        };
        (0..shots.len())
            .filter(|j| *j != i && allowed(*j))
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .unwrap()
    };
    let share = |right: &dyn Fn(usize) -> bool| {
        (0..shots.len()).filter(|i| right(*i)).count() as f32 / shots.len() as f32
    };
    let camera = share(&|i| shots[nearest(i, &|_| true)].1 == shots[i].1);
    let within = share(&|i| shots[nearest(i, &|j| shots[j].1 == shots[i].1)].0 == shots[i].0);
    let across = share(&|i| shots[nearest(i, &|j| shots[j].1 != shots[i].1)].0 == shots[i].0);
    // Guessing: a third of the cameras, one of 79 others and four of 160 others for the person.
    assert!(camera < 0.65, "camera told by the background: {camera}");
    assert!(within < 0.08, "person told within a camera: {within}");
    assert!(across < 0.1, "person told across cameras: {across}");
}

#[test]
fn training_never_uses_the_held_out_style() {
    // No shade belongs to both styles: of each word, hue, saturation or lightness do not meet.
    for hue in Hue::ALL {
        let (a, b) = (hue.ranges(), hue.held_out_ranges());
        let apart = |a: [f32; 2], b: [f32; 2]| a[1] < b[0] || b[1] < a[0];
        assert!(
            apart(a.0, b.0) || apart(a.1, b.1) || apart(a.2, b.2),
            "{hue:?}: {a:?} and {b:?}"
        );
    }
    let mut rng = rng_for(6, 0, "styles");
    for _ in 0..500 {
        let state = rng.clone();
        let person = SynthPerson::sample(&mut rng);
        assert_eq!(Shot::sample(&person, &mut rng).style, Style::Standard);
        let camera = Camera::sample(&mut rng);
        let shot = Shot::with_camera(&person, &camera, &mut rng);
        assert_eq!(shot.style, Style::Standard);
        assert!(person.lower.length <= 0.75);
        assert!(person.lower.kind != LowerKind::Shorts || person.lower.length <= 0.4);
        // The same person in the other style: the same attributes, other colors and cuts.
        let other = SynthPerson::sample_in(Style::HeldOut, &mut state.clone());
        let view = shot.view();
        assert_eq!(other.attributes(view), person.attributes(view));
        assert_ne!(other.upper.color, person.upper.color);
        assert_ne!(other.lower.color, person.lower.color);
        assert_ne!(other.shoes.1, person.shoes.1);
        assert!(other.lower.length > 0.4);
    }
}

#[test]
fn the_held_out_style_changes_the_picture_and_not_the_annotations() {
    let mut differ = 0;
    for index in 0..12 {
        let (person, shot) = person_and_shot(300 + index);
        let other = Shot {
            style: Style::HeldOut,
            ..shot.clone()
        };
        let (a, b) = (
            render(&person, &shot, 128, 64),
            render(&person, &other, 128, 64),
        );
        assert_eq!((&a.parts, a.bbox_xywh), (&b.parts, b.bbox_xywh));
        assert_eq!(a.attributes, b.attributes);
        let changed = { a.image.pixels.iter().zip(&b.image.pixels) }
            .filter(|(a, b)| a.abs_diff(**b) > 12)
            .count();
        differ += usize::from(2 * changed > a.image.pixels.len());
        assert_eq!(b.image, render(&person, &other, 128, 64).image);
    }
    assert!(
        differ >= 10,
        "{differ} of 12 pictures differ in most pixels"
    );
}
