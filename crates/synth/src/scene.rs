//! Several people in one place, at different depths, partly occluded by one another and by objects.

use rand::{RngExt, SeedableRng};

use crate::camera::Camera;
use crate::canvas::{Canvas, PixelLabel};
use crate::person::appearance::SynthPerson;
use crate::person::figure::Figure;
use crate::person::keypoints::keypoints;
use crate::person::pose::{BodyProjection, Pose, Skeleton, sample_yaw};
use crate::sampling::jitter;
use crate::scenery::backdrop::{self};
use crate::scenery::objects;
use crate::scenery::place::{GroundPlane, PlaceKind};
use crate::style::Style;
use clasp_data::Rng;
use clasp_data::image::Rgb;

/// A person in a scene. Boxes are x, y, width, height in pixels, cut at the picture's edge.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenePerson {
    /// Position in the list of people that the scene was drawn from.
    pub person: usize,
    /// Box of the person inside the picture, occluded parts included.
    pub bbox_xywh: [f32; 4],
    /// Box of what is visible; all zero if nothing is.
    pub visible_xywh: [f32; 4],
    /// Share of the person's pixels that are visible, 0 to 1.
    pub visible: f32,
    /// Number of visible pixels.
    pub area: u32,
    /// COCO's 17 keypoints, as in [`crate::RenderedPerson`].
    pub keypoints: [[f32; 3]; 17],
    /// To be ignored in evaluation: lower than 20 pixels, or less than a tenth visible.
    pub ignore: bool,
}

/// A picture of several people.
#[derive(Clone, Debug)]
pub struct RenderedScene {
    /// The picture.
    pub image: Rgb,
    /// The people, from the farthest to the nearest.
    pub people: Vec<ScenePerson>,
    /// Part classes: height x width, row-major, see [`clasp_data::part`].
    pub parts: Vec<u8>,
}

enum SceneObject {
    Person(usize),
    Car,
    Pole,
    Tree,
}

/// Renders all of the given people in front of a camera. The same arguments give the same picture.
///
/// # Panics
/// If there are more than 255 people, or a side is 0 or above 8192.
#[must_use]
pub fn render_scene(
    people: &[&SynthPerson],
    camera: &Camera,
    seed: u64,
    height: usize,
    width: usize,
) -> RenderedScene {
    assert!(
        people.len() <= 255,
        "a scene holds at most 255 people, not {}",
        people.len()
    );
    let mut rng = Rng::seed_from_u64(seed);
    let mut canvas = Canvas::new(height, width);
    let (w, h) = (width as f32, height as f32);
    canvas.transform =
        tiny_skia::Transform::from_rotate_at(0.5 * camera.tilt.to_degrees(), w / 2.0, h / 2.0);

    // One camera has one geometry: all of it comes from the camera, nothing from the moment.
    let mut fixed = Rng::seed_from_u64(camera.place_seed);
    let focal = h * fixed.random_range(1.0..1.35f32);
    let camera_height = 1.5 + 9.0 * camera.pitch;
    let horizon = h * (0.40 - 0.7 * camera.pitch);
    let far = match camera.place {
        PlaceKind::Street | PlaceKind::Park => fixed.random_range(16.0..26.0f32),
        PlaceKind::Wall | PlaceKind::Indoor => fixed.random_range(10.0..16.0f32),
    };
    // Near enough that a person's feet are still in the picture.
    let near = camera_height * focal / (h * 0.95 - horizon);
    let row = |z: f32| horizon + camera_height * focal / z;
    // Houses are drawn small for close crops; a scene shows them whole.
    let meter = if camera.place == PlaceKind::Street {
        2.6
    } else {
        1.6
    } * focal
        / far;
    let ground = GroundPlane {
        horizon: row(far) - 0.1 * meter,
        meter,
        pan: 0.0,
    };
    backdrop::draw(&mut canvas, camera.place, ground, camera.light, &mut fixed);

    let mut things: Vec<(f32, f32, SceneObject)> = Vec::new();
    let mut companion: Option<(f32, f32)> = None;
    for index in 0..people.len() {
        // Sometimes the next person walks beside or close behind the previous one.
        let (z, x) = match companion {
            Some((z, x)) if rng.random_bool(0.4) => (
                (z + jitter(&mut rng, 0.0, 0.9)).clamp(near, far - 1.0),
                x + jitter(&mut rng, 0.0, 0.9) * focal / z,
            ),
            _ => {
                // More of them near than an even spread over the ground would give.
                let t = rng.random::<f32>().powf(2.2);
                (
                    near + (far - 1.0 - near).max(0.1) * t,
                    w * rng.random_range(0.03..0.97f32),
                )
            }
        };
        companion = Some((z, x));
        things.push((z, x, SceneObject::Person(index)));
    }
    for _ in 0..rng.random_range(1..5u32) {
        let z = near + (far - 2.0 - near).max(0.1) * rng.random_range(0.1..1.0f32);
        let x = w * rng.random::<f32>();
        let thing = match (camera.place, rng.random_range(0..3u32)) {
            (PlaceKind::Street, 0..=1) => SceneObject::Car,
            (PlaceKind::Park, 0..=1) => SceneObject::Tree,
            _ => SceneObject::Pole,
        };
        things.push((z, x, thing));
    }
    things.sort_by(|a, b| b.0.total_cmp(&a.0));

    struct PlacedFigure<'a> {
        figure: Figure<'a>,
        person: usize,
        full: [f32; 4],
        area: u32,
    }
    let poses: Vec<Pose> = people
        .iter()
        .map(|person| Pose::sample(person, &mut rng))
        .collect();
    let mut placed: Vec<PlacedFigure<'_>> = Vec::new();
    for (z, x, thing) in things {
        let base = row(z);
        let scale = focal / z;
        match thing {
            SceneObject::Car => {
                let length = rng.random_range(3.9..4.6f32) * scale;
                objects::car(
                    &mut canvas,
                    x - length / 2.0,
                    base,
                    length,
                    Some(PixelLabel::BACKGROUND),
                    &mut rng,
                );
            }
            SceneObject::Tree => objects::tree(
                &mut canvas,
                x,
                base,
                rng.random_range(3.5..6.0f32) * scale,
                Some(PixelLabel::BACKGROUND),
                &mut rng,
            ),
            SceneObject::Pole => {
                objects::pole(
                    &mut canvas,
                    x,
                    base,
                    4.0 * scale,
                    0.14 * scale,
                    Some(PixelLabel::BACKGROUND),
                    [0.35, 0.36, 0.38],
                );
            }
            SceneObject::Person(index) => {
                let person = people[index];
                let frame = BodyProjection {
                    scale: scale * person.body.meters,
                    foot: [x, base],
                    yaw: sample_yaw(&mut rng),
                    pitch: ((camera_height - 0.5 * person.body.meters) / z)
                        .atan()
                        .max(0.0),
                };
                let instance = placed.len() as u8 + 1;
                let pose = &poses[index];
                let figure = Figure {
                    person,
                    pose,
                    skeleton: Skeleton::new(&person.body, pose),
                    frame,
                    instance,
                    light: camera.light,
                    style: Style::Standard,
                };
                objects::ground_shadow(&mut canvas, [x, base], 0.1 * frame.scale, camera.light);
                figure.draw(&mut canvas, &mut rng);
                // The person that was drawn last is not occluded yet: this is the full box.
                let (full, area) = canvas.visible_box(instance);
                placed.push(PlacedFigure {
                    figure,
                    person: index,
                    full,
                    area,
                });
            }
        }
    }

    let people = placed
        .iter()
        .filter(|p| p.area > 0)
        .map(|p| {
            let (visible_xywh, area) = canvas.visible_box(p.figure.instance);
            let visible = area as f32 / p.area as f32;
            ScenePerson {
                person: p.person,
                bbox_xywh: p.full,
                visible_xywh,
                visible,
                area,
                keypoints: keypoints(&p.figure, &canvas),
                ignore: p.full[3] < 20.0 || visible < 0.1,
            }
        })
        .collect();
    let parts = canvas.labels().map(|l| l.part).collect();
    let mut image = canvas.rgb();
    // A scene has more pixels of the same sensor: its blur is not that of an enlarged crop.
    let camera = Camera {
        blur: 0.35 * camera.blur,
        ..camera.clone()
    };
    camera.develop(&mut image, &mut rng);
    RenderedScene {
        image,
        people,
        parts,
    }
}
