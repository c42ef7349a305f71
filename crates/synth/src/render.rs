//! Renders one person at one moment, with the ground truth of every pixel.

use clasp_data::Rng;
use clasp_data::image::Rgb;
use rand::{RngExt, SeedableRng};

use crate::camera::Camera;
use crate::canvas::Canvas;
use crate::person::appearance::{AttributeValues, SynthPerson, View};
use crate::person::figure::Figure;
use crate::person::keypoints::keypoints;
use crate::person::pose::{BodyProjection, Pose, Skeleton, sample_yaw, view_of};
use crate::sampling::jitter;
use crate::scenery::objects::{self, Occluder};
use crate::scenery::place::GroundPlane;
use crate::scenery::{backdrop, held_out};
use crate::style::Style;

/// One moment: how the person stands, where the camera is, what else is in the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Shot {
    /// Turn of the body, radians; 0 faces the camera, a quarter turn faces to the right of the
    /// picture.
    pub yaw: f32,
    /// Pose.
    pub pose: Pose,
    /// The camera as it is at this moment.
    pub camera: Camera,
    /// Height of the person over the height of the picture.
    pub fill: f32,
    /// Middle of the person off the middle of the picture, in widths and heights of the picture.
    pub shift: [f32; 2],
    /// Where the camera's place is cut, in widths.
    pub pan: f32,
    /// Something in front of the person.
    pub occluder: Option<Occluder>,
    /// Factor on the camera's exposure at this moment.
    pub moment: f32,
    /// Seed of folds, expression and noise.
    pub seed: u64,
    /// How scenery and person are drawn.
    pub style: Style,
}

impl Shot {
    /// A random moment with a random camera.
    pub fn sample(person: &SynthPerson, rng: &mut Rng) -> Self {
        let camera = Camera::sample(rng);
        Shot::with_camera(person, &camera, rng)
    }

    /// A random moment in front of a given camera, with one of its backgrounds.
    pub fn with_camera(person: &SynthPerson, camera: &Camera, rng: &mut Rng) -> Self {
        Shot {
            yaw: sample_yaw(rng),
            pose: Pose::sample(person, rng),
            camera: camera.moment(rng),
            fill: rng.random_range(0.74..0.97),
            shift: [jitter(rng, 0.0, 0.07), jitter(rng, 0.0, 0.04)],
            pan: jitter(rng, 0.0, 1.0),
            occluder: rng.random_bool(0.1).then(|| Occluder::sample(rng)),
            moment: jitter(rng, 1.0, 0.08),
            seed: rng.random(),
            style: Style::Standard,
        }
    }

    /// A random moment with a random camera, in a style; only garments, scenery and rendering
    /// depend on the style.
    pub fn sample_in(style: Style, person: &SynthPerson, rng: &mut Rng) -> Self {
        Shot {
            style,
            ..Shot::sample(person, rng)
        }
    }

    /// The side of the person that faces the camera.
    #[must_use]
    pub fn view(&self) -> View {
        view_of(self.yaw)
    }
}

/// A rendered picture with its annotations.
#[derive(Clone, Debug)]
pub struct RenderedPerson {
    /// The picture.
    pub image: Rgb,
    /// Part classes: height x width, row-major, see `part`.
    pub parts: Vec<u8>,
    /// COCO's 17 keypoints: x, y in pixels and 0 = not in the picture, 1 = occluded, 2 = visible.
    pub keypoints: [[f32; 3]; 17],
    /// Tight box around the visible pixels of the person; all zero where there are none.
    pub bbox_xywh: [f32; 4],
    /// Number of pixels of the person.
    pub area: u32,
    /// Attribute values.
    pub attributes: AttributeValues,
    /// Limb of each pixel, see [`crate::group`], height x width; distinguishes a sleeve from the
    /// trunk.
    pub limbs: Vec<u8>,
}

/// Renders a person at one moment. The same arguments give the same picture.
///
/// # Panics
/// If a side is 0 or above 8192.
#[must_use]
pub fn render(person: &SynthPerson, shot: &Shot, height: usize, width: usize) -> RenderedPerson {
    let mut canvas = Canvas::new(height, width);
    let (w, h) = (width as f32, height as f32);
    let mut rng = Rng::seed_from_u64(shot.seed);

    let skeleton = Skeleton::new(&person.body, &shot.pose);
    let frame = fit(&skeleton, shot, h, w);
    canvas.transform =
        tiny_skia::Transform::from_rotate_at(shot.camera.tilt.to_degrees(), w / 2.0, h / 2.0);

    let meter = frame.scale / person.body.meters;
    let ground = GroundPlane {
        // The horizon is at the camera's eye level; in a camera that points down it is higher in
        // the picture.
        horizon: frame.foot[1] - meter * (0.25 + 3.2 * shot.camera.pitch),
        meter,
        pan: shot.pan * w,
    };
    let mut place_rng = Rng::seed_from_u64(shot.camera.place_seed);
    match shot.style {
        Style::Standard => backdrop::draw(
            &mut canvas,
            shot.camera.place,
            ground,
            shot.camera.light,
            &mut place_rng,
        ),
        Style::HeldOut => held_out::draw(&mut canvas, ground, &mut place_rng),
    }
    let figure = Figure {
        person,
        pose: &shot.pose,
        skeleton,
        frame,
        instance: 1,
        light: shot.camera.light,
        style: shot.style,
    };
    for i in 0..2 {
        let foot = frame.point([
            figure.skeleton.ankles[i][0],
            0.0,
            figure.skeleton.ankles[i][2] + 0.03,
        ]);
        objects::ground_shadow(&mut canvas, foot, figure.px(0.06), shot.camera.light);
    }
    figure.draw(&mut canvas, &mut rng);
    if let Some(occluder) = shot.occluder {
        occluder.draw(&mut canvas, &mut rng);
    }

    let keypoints = keypoints(&figure, &canvas);
    let (bbox_xywh, area) = canvas.visible_box(1);
    let parts = canvas.labels().map(|l| l.part).collect();
    let limbs = canvas.labels().map(|l| l.group).collect();
    let mut image = canvas.rgb();
    let camera = Camera {
        exposure: shot.camera.exposure * shot.moment,
        ..shot.camera.clone()
    };
    camera.develop(&mut image, &mut rng);
    RenderedPerson {
        image,
        parts,
        keypoints,
        bbox_xywh,
        area,
        attributes: person.attributes(shot.view()),
        limbs,
    }
}

/// Renders the camera's place without people.
///
/// # Panics
/// If a side is 0 or above 8192.
#[must_use]
pub fn render_place(camera: &Camera, height: usize, width: usize, rng: &mut Rng) -> Rgb {
    let mut canvas = Canvas::new(height, width);
    let (w, h) = (width as f32, height as f32);
    canvas.transform =
        tiny_skia::Transform::from_rotate_at(camera.tilt.to_degrees(), w / 2.0, h / 2.0);
    let meter = h * rng.random_range(0.4..0.7f32);
    let ground = GroundPlane {
        horizon: h * rng.random_range(0.35..0.85f32),
        meter,
        pan: jitter(rng, 0.0, 1.0) * w,
    };
    let mut place_rng = Rng::seed_from_u64(camera.place_seed);
    backdrop::draw(
        &mut canvas,
        camera.place,
        ground,
        camera.light,
        &mut place_rng,
    );
    let mut image = canvas.rgb();
    camera.develop(&mut image, rng);
    image
}

/// The projection with which the skeleton fills the picture as `shot.fill` requires.
fn fit(skeleton: &Skeleton, shot: &Shot, height: f32, width: f32) -> BodyProjection {
    let mut frame = BodyProjection {
        scale: 1.0,
        foot: [0.0, 0.0],
        yaw: shot.yaw,
        pitch: shot.camera.pitch,
    };
    let unit = skeleton.head_height;
    let mut points = vec![
        frame.point([
            skeleton.head[0],
            skeleton.head[1] + 0.56 * unit,
            skeleton.head[2],
        ]),
        frame.point([
            skeleton.head[0],
            skeleton.head[1] - 0.5 * unit,
            skeleton.head[2],
        ]),
    ];
    for i in 0..2 {
        let ankle = skeleton.ankles[i];
        points.push(frame.point([ankle[0], ankle[1] - 0.05, ankle[2] - 0.04]));
        points.push(frame.point([ankle[0], ankle[1] - 0.05, ankle[2] + 0.1]));
        points.push(frame.point(skeleton.hands[i]));
        points.push(frame.point(skeleton.elbows[i]));
    }
    let bound = |c: usize| {
        let low = points.iter().map(|p| p[c]).fold(f32::INFINITY, f32::min);
        let high = points
            .iter()
            .map(|p| p[c])
            .fold(f32::NEG_INFINITY, f32::max);
        (low, high)
    };
    let ((x0, x1), (y0, y1)) = (bound(0), bound(1));
    // Limbs have thickness that the joints do not show.
    let (x0, x1) = (x0 - 0.04, x1 + 0.04);
    frame.scale = shot.fill * (height / (y1 - y0)).min(1.02 * width / (x1 - x0));
    let center = [
        width * (0.5 + shot.shift[0]),
        height * (0.5 + shot.shift[1]),
    ];
    frame.foot = [
        center[0] - frame.scale * (x0 + x1) / 2.0,
        center[1] - frame.scale * (y0 + y1) / 2.0,
    ];
    frame
}
