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

/// A person whose pixels are on the canvas.
struct PlacedFigure<'a> {
    figure: Figure<'a>,
    person: usize,
    /// Box and number of pixels without occlusion.
    full: [f32; 4],
    area: u32,
}

/// Perspective of a camera over a flat ground. Distances are in meters.
struct SceneGeometry {
    /// Focal length in pixels.
    focal: f32,
    camera_height: f32,
    /// Row of the horizon.
    horizon: f32,
    near: f32,
    far: f32,
}

impl SceneGeometry {
    /// One camera has one geometry: `fixed` depends on the camera only, not on the moment.
    fn new(camera: &Camera, height: f32, fixed: &mut Rng) -> Self {
        let focal = height * fixed.random_range(1.0..1.35f32);
        let camera_height = 1.5 + 9.0 * camera.pitch;
        let horizon = height * (0.40 - 0.7 * camera.pitch);
        let far = match camera.place {
            PlaceKind::Street | PlaceKind::Park => fixed.random_range(16.0..26.0f32),
            PlaceKind::Wall | PlaceKind::Indoor => fixed.random_range(10.0..16.0f32),
        };
        SceneGeometry {
            focal,
            camera_height,
            horizon,
            // Near enough that a person's feet are still in the picture.
            near: camera_height * focal / (height * 0.95 - horizon),
            far,
        }
    }

    /// Row of the ground at a distance.
    fn row(&self, distance: f32) -> f32 {
        self.horizon + self.camera_height * self.focal / distance
    }

    fn ground(&self, place: PlaceKind) -> GroundPlane {
        // Houses are drawn small for close crops; a scene shows them whole.
        let size = if place == PlaceKind::Street { 2.6 } else { 1.6 };
        let meter = size * self.focal / self.far;
        GroundPlane {
            horizon: self.row(self.far) - 0.1 * meter,
            meter,
            pan: 0.0,
        }
    }

    /// The projection of a person who stands at `x` pixels and a distance.
    fn projection(&self, person: &SynthPerson, distance: f32, x: f32, yaw: f32) -> BodyProjection {
        let meters = person.body.meters;
        BodyProjection {
            scale: self.focal / distance * meters,
            foot: [x, self.row(distance)],
            yaw,
            pitch: ((self.camera_height - 0.5 * meters) / distance)
                .atan()
                .max(0.0),
        }
    }
}

/// Distance, x in pixels and kind of everything in a scene, from the farthest to the nearest.
fn arrange(
    people: usize,
    place: PlaceKind,
    geometry: &SceneGeometry,
    width: f32,
    rng: &mut Rng,
) -> Vec<(f32, f32, SceneObject)> {
    let (near, far) = (geometry.near, geometry.far);
    let mut arranged: Vec<(f32, f32, SceneObject)> = Vec::new();
    let mut companion: Option<(f32, f32)> = None;
    for index in 0..people {
        // Sometimes the next person walks beside or close behind the previous one.
        let (z, x) = match companion {
            Some((z, x)) if rng.random_bool(0.4) => (
                (z + jitter(rng, 0.0, 0.9)).clamp(near, far - 1.0),
                x + jitter(rng, 0.0, 0.9) * geometry.focal / z,
            ),
            _ => {
                // More of them near than a uniform distribution over the ground would give.
                let t = rng.random::<f32>().powf(2.2);
                (
                    near + (far - 1.0 - near).max(0.1) * t,
                    width * rng.random_range(0.03..0.97f32),
                )
            }
        };
        companion = Some((z, x));
        arranged.push((z, x, SceneObject::Person(index)));
    }
    for _ in 0..rng.random_range(1..5u32) {
        let z = near + (far - 2.0 - near).max(0.1) * rng.random_range(0.1..1.0f32);
        let x = width * rng.random::<f32>();
        let object = match (place, rng.random_range(0..3u32)) {
            (PlaceKind::Street, 0..=1) => SceneObject::Car,
            (PlaceKind::Park, 0..=1) => SceneObject::Tree,
            _ => SceneObject::Pole,
        };
        arranged.push((z, x, object));
    }
    arranged.sort_by(|a, b| b.0.total_cmp(&a.0));
    arranged
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

    let mut fixed = Rng::seed_from_u64(camera.place_seed);
    let geometry = SceneGeometry::new(camera, h, &mut fixed);
    let ground = geometry.ground(camera.place);
    backdrop::draw(&mut canvas, camera.place, ground, camera.light, &mut fixed);

    let arranged = arrange(people.len(), camera.place, &geometry, w, &mut rng);
    let poses: Vec<Pose> = people
        .iter()
        .map(|person| Pose::sample(person, &mut rng))
        .collect();
    let mut placed: Vec<PlacedFigure<'_>> = Vec::new();
    for (z, x, object) in arranged {
        let (base, scale) = (geometry.row(z), geometry.focal / z);
        let background = Some(PixelLabel::BACKGROUND);
        match object {
            SceneObject::Car => {
                let length = rng.random_range(3.9..4.6f32) * scale;
                let left = x - length / 2.0;
                objects::car(&mut canvas, left, base, length, background, &mut rng);
            }
            SceneObject::Tree => {
                let height = rng.random_range(3.5..6.0f32) * scale;
                objects::tree(&mut canvas, x, base, height, background, &mut rng);
            }
            SceneObject::Pole => {
                let (height, width) = (4.0 * scale, 0.14 * scale);
                let rgb = [0.35, 0.36, 0.38];
                objects::pole(&mut canvas, x, base, height, width, background, rgb);
            }
            SceneObject::Person(index) => {
                let person = people[index];
                let frame = geometry.projection(person, z, x, sample_yaw(&mut rng));
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

    let visible = placed.iter().filter(|p| p.area > 0);
    let people = visible.map(|p| scene_person(p, &canvas)).collect();
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

/// Annotations of a person when everything is drawn.
fn scene_person(placed: &PlacedFigure<'_>, canvas: &Canvas) -> ScenePerson {
    let (visible_xywh, area) = canvas.visible_box(placed.figure.instance);
    let visible = area as f32 / placed.area as f32;
    ScenePerson {
        person: placed.person,
        bbox_xywh: placed.full,
        visible_xywh,
        visible,
        area,
        keypoints: keypoints(&placed.figure, canvas),
        ignore: placed.full[3] < 20.0 || visible < 0.1,
    }
}
