//! The shape of the head: cross-sections of the skull, and points on its surface.
//!
//! Head coordinates: unit = head height, middle of the head at 0, x to the person's left, y up, z
//! forward.

use std::f32::consts::PI;

use tiny_skia::Path;

use super::appearance::{Age, Gender};
use super::figure::{Figure, table};
use super::pose::{BodyProjection, Point3, scaled};
use crate::canvas::{Canvas, Point2, polygon};

/// Half width, half depth and forward shift of the head from chin (-0.5) to crown (0.5).
const SKULL: [(f32, [f32; 3]); 11] = [
    (-0.5, [0.09, 0.1, 0.15]),
    (-0.45, [0.17, 0.19, 0.12]),
    (-0.36, [0.235, 0.26, 0.08]),
    (-0.24, [0.285, 0.33, 0.045]),
    (-0.12, [0.32, 0.39, 0.01]),
    (0.0, [0.342, 0.43, -0.015]),
    (0.14, [0.35, 0.445, -0.025]),
    (0.28, [0.33, 0.42, -0.03]),
    (0.39, [0.275, 0.34, -0.03]),
    (0.46, [0.19, 0.24, -0.03]),
    (0.5, [0.07, 0.1, -0.03]),
];

/// Geometry of the head: its own turn and bow relative to the camera.
pub(super) struct HeadGeometry<'a> {
    pub figure: &'a Figure<'a>,
    pub frame: BodyProjection,
    pub bow: f32,
    pub unit: f32,
    pub jaw: f32,
}

impl<'a> HeadGeometry<'a> {
    pub fn new(figure: &'a Figure<'a>) -> Self {
        let jaw = match (figure.person.gender, figure.person.age) {
            (_, Age::Child) => 1.04,
            (Gender::Male, _) => 1.05,
            (Gender::Female, _) => 0.93,
        };
        HeadGeometry {
            figure,
            frame: figure.frame.turned(figure.pose.head_turn),
            bow: figure.pose.head_bow + 0.4 * figure.pose.lean,
            unit: figure.skeleton.head_height,
            jaw,
        }
    }

    pub fn section(&self, u: f32) -> [f32; 3] {
        let [a, b, z] = table(&SKULL, u);
        let jaw = if u < 0.0 {
            1.0 + (self.jaw - 1.0) * (-u / 0.3).min(1.0)
        } else {
            1.0
        };
        [a * jaw, b, z]
    }

    /// Pixel and nearness of a point in head coordinates.
    pub fn place(&self, v: Point3) -> (Point2, f32) {
        let (sin, cos) = self.bow.sin_cos();
        let bowed = [v[0], v[1] * cos - v[2] * sin, v[2] * cos + v[1] * sin];
        // The head turns about its own axis, not about the body's.
        let (center, near) = self.figure.frame.project(self.figure.skeleton.head);
        let local = BodyProjection {
            foot: center,
            ..self.frame
        };
        let (point, local_near) = local.project(scaled(bowed, self.unit));
        (point, near + local_near)
    }

    pub fn px(&self, heads: f32) -> f32 {
        heads * self.unit * self.frame.scale
    }

    /// Surface point at azimuth and height, `out` above the skin, and how squarely it faces the
    /// camera.
    pub fn surface(&self, azimuth: f32, u: f32, out: f32) -> (Point2, f32) {
        let [a, b, z] = self.section(u);
        let (sin, cos) = azimuth.sin_cos();
        let (p, _) = self.place([(a + out) * sin, u, z + (b + out) * cos]);
        let (ys, yc) = self.frame.yaw.sin_cos();
        let (nx, nz) = (sin / a, cos / b);
        (p, (-nx * ys + nz * yc) / nx.hypot(nz))
    }

    pub fn row(&self, u: f32, out: f32) -> (Point2, f32) {
        let [a, b, z] = self.section(u);
        (
            self.place([0.0, u, z]).0,
            self.frame
                .half(self.unit * (a + out), self.unit * (b + out)),
        )
    }

    /// The azimuth at the right edge of the picture of the head.
    pub fn edge(&self) -> f32 {
        let [a, b, _] = self.section(0.1);
        (a * self.frame.yaw.cos()).atan2(b * self.frame.yaw.sin())
    }

    /// The part of the head above a line `low(azimuth)`, standing `out` off the skin.
    pub fn cap(&self, low: impl Fn(f32) -> f32, out: f32) -> Option<Path> {
        const STEPS: usize = 16;
        let edge = self.edge();
        let mut points: Vec<Point2> = (0..=STEPS)
            .map(|k| {
                let azimuth = edge - PI + PI * k as f32 / STEPS as f32;
                self.surface(azimuth, low(azimuth), out).0
            })
            .collect();
        let right = low(edge);
        let left = low(edge - PI);
        let side = |from: f32, sign: f32| -> Vec<Point2> {
            let mut out_points = Vec::new();
            for k in 0..=8 {
                let u = from + (0.47 - from) * k as f32 / 8.0;
                let (center, half) = self.row(u, out);
                // Hair stands off the crown too.
                let lift = out * ((u - 0.1) / 0.37).clamp(0.0, 1.0);
                out_points.push([center[0] + sign * half, center[1] - self.px(lift)]);
            }
            out_points
        };
        points.extend(side(right, 1.0));
        let (crown, _) = self.row(0.5, 0.0);
        points.push([crown[0], crown[1] - self.px(out)]);
        let mut left_side = side(left, -1.0);
        left_side.reverse();
        points.extend(left_side);
        polygon(&points)
    }

    pub fn shade(&self, canvas: &mut Canvas, path: Option<&Path>, strength: f32) {
        let (center, half) = self.row(0.0, 0.02);
        self.figure.shade(
            canvas,
            path,
            [center[0] - half, center[1]],
            [center[0] + half, center[1]],
            strength,
        );
    }
}

/// Positions in body coordinates of nose, left eye, right eye, left ear, right ear, with how
/// squarely they are seen.
pub(crate) fn face_points(figure: &Figure<'_>) -> [(Point2, f32); 5] {
    let head = HeadGeometry::new(figure);
    let nose = head.surface(0.0, -0.13, 0.07);
    let eye = |side: f32| head.surface(side * 0.42, 0.03, 0.0);
    let ear = |side: f32| head.surface(side * 1.62, -0.02, 0.02);
    [nose, eye(1.0), eye(-1.0), ear(1.0), ear(-1.0)]
}
