//! A person in front of a camera: cross-sections of the trunk, shading, cloth.
//!
//! The body is a stack of elliptical sections, so one description serves every turn: an ellipse
//! with half axes a (sideways) and b (forward) seen from the angle t is hypot(a cos t, b sin t)
//! wide on each side.

use rand::RngExt;
use tiny_skia::{Path, Pixmap, Shader, Transform};

use crate::canvas::{Canvas, PixelLabel, Point2, gradient, open_line, rect, rgba, smooth, tiled};
use crate::color::{LIGHT, SHADOW, darker};
use crate::person::appearance::{Age, Gender, Pattern, SynthPerson};
use crate::person::held_out;
use crate::person::pose::{BodyProjection, Point3, Pose, Skeleton, add, mix};
use crate::style::Style;
use clasp_data::Rng;

/// One person in front of one camera.
pub(crate) struct Figure<'a> {
    pub person: &'a SynthPerson,
    pub pose: &'a Pose,
    pub skeleton: Skeleton,
    pub frame: BodyProjection,
    /// Number of the person on the label map.
    pub instance: u8,
    /// Where the light comes from, in the picture: -1 left, +1 right.
    pub light: f32,
    /// How it is drawn.
    pub style: Style,
}

/// Linear interpolation in a table of (place, values), clamped at the ends.
pub(crate) fn table<const N: usize>(rows: &[(f32, [f32; N])], place: f32) -> [f32; N] {
    let Some(next) = rows.iter().position(|r| r.0 >= place) else {
        return rows[rows.len() - 1].1;
    };
    if next == 0 {
        return rows[0].1;
    }
    let (low, high) = (&rows[next - 1], &rows[next]);
    let t = (place - low.0) / (high.0 - low.0);
    std::array::from_fn(|i| low.1[i] + (high.1[i] - low.1[i]) * t)
}

/// Cross-section of the trunk, an ellipse: half width, half depth, shift forward.
#[derive(Clone, Copy)]
pub(crate) struct TrunkSection {
    pub a: f32,
    pub b: f32,
    pub z: f32,
}

impl Figure<'_> {
    pub(super) fn by_nearness(&self, near: impl Fn(usize) -> f32) -> [usize; 2] {
        if near(0) <= near(1) { [0, 1] } else { [1, 0] }
    }

    pub(super) fn arm_nearness(&self, i: usize) -> f32 {
        let s = &self.skeleton;
        let weights = [
            (s.shoulders[i], 0.3),
            (s.elbows[i], 0.35),
            (s.wrists[i], 0.35),
        ];
        weights.iter().map(|(v, w)| w * self.frame.near(*v)).sum()
    }

    pub fn label(&self, part: u8, group: u8) -> Option<PixelLabel> {
        Some(PixelLabel {
            part,
            instance: self.instance,
            group,
        })
    }

    /// Pixels per body height.
    pub fn px(&self, heights: f32) -> f32 {
        heights * self.frame.scale
    }

    /// Cross-section of the trunk at `t`: 0 = hip joints, 1 = shoulder joints, below 0 the seat.
    pub fn section(&self, t: f32, ease: f32) -> TrunkSection {
        let body = &self.person.body;
        let female = self.person.gender == Gender::Female;
        let child = self.person.age == Age::Child;
        let bust = if female && !child { 0.013 } else { 0.0 };
        let waist = if female && !child { 0.94 } else { 1.03 };
        let (sh, hp) = (body.shoulders, body.hips);
        let rows: [(f32, [f32; 3]); 9] = [
            (-0.2, [0.090 * hp, 0.074, -0.01]),
            (0.0, [0.099 * hp, 0.08, -0.012]),
            (0.22, [0.093 * hp, 0.072, -0.004]),
            (0.45, [0.082 * waist, 0.063, 0.004]),
            (
                0.68,
                [
                    0.09 * (0.5 + 0.5 * sh),
                    0.068 + 0.7 * bust,
                    0.004 + 0.5 * bust,
                ],
            ),
            (0.82, [0.099 * sh, 0.07 + bust, 0.004 + bust]),
            (0.96, [0.108 * sh, 0.054, -0.004]),
            (1.07, [0.082 * sh, 0.046, -0.008]),
            (1.17, [0.042, 0.04, -0.006]),
        ];
        let [a, b, z] = table(&rows, t);
        let girth = if t > 0.9 {
            1.0 + 0.35 * (body.build - 1.0)
        } else {
            body.build
        };
        let belly = (body.build - 1.05).max(0.0) * (1.0 - ((t - 0.35) / 0.35).powi(2)).max(0.0);
        TrunkSection {
            a: a * girth + ease,
            b: b * girth + ease + 0.1 * belly,
            z: z + 0.16 * belly,
        }
    }

    /// A point on the spine at `t`.
    pub(super) fn spine(&self, t: f32) -> Point3 {
        let s = &self.skeleton;
        if t < 0.0 {
            let trunk = s.neck[1] - s.pelvis[1];
            return add(s.pelvis, [0.0, t * trunk, 0.0]);
        }
        mix(s.pelvis, s.neck, t)
    }

    /// Row of the outline of a garment on the trunk.
    pub(super) fn row(&self, t: f32, ease: f32) -> (Point2, f32) {
        let section = self.section(t, ease);
        let center = add(self.spine(t), [0.0, 0.0, section.z]);
        (
            self.frame.point(center),
            self.frame.half(section.a, section.b),
        )
    }

    /// Pixel of the trunk's surface at `t` and azimuth (0 = front, + to the person's left), and how
    /// squarely it faces the camera (negative: turned away).
    pub fn surface(&self, t: f32, azimuth: f32, ease: f32) -> (Point2, f32) {
        let s = self.section(t, ease);
        let (sin, cos) = azimuth.sin_cos();
        let point = add(self.spine(t), [s.a * sin, 0.0, s.z + s.b * cos]);
        let normal = [sin / s.a, 0.0, cos / s.b];
        let length = normal[0].hypot(normal[2]);
        let (ys, yc) = self.frame.yaw.sin_cos();
        (
            self.frame.point(point),
            (-normal[0] * ys + normal[2] * yc) / length,
        )
    }

    /// A line on the trunk, cut to what faces the camera.
    pub(super) fn surface_line(
        &self,
        points: impl Iterator<Item = (f32, f32)>,
        ease: f32,
    ) -> Option<Path> {
        let seen: Vec<Point2> = points
            .filter_map(|(t, azimuth)| {
                let (p, facing) = self.surface(t, azimuth, ease);
                (facing > 0.02).then_some(p)
            })
            .collect();
        (seen.len() > 1)
            .then(|| open_line(&smooth(&seen, 3)))
            .flatten()
    }

    /// Light on one side and shade on the other, across a shape from `left` to `right`.
    pub fn shade(
        &self,
        canvas: &mut Canvas,
        path: Option<&Path>,
        left: Point2,
        right: Point2,
        strength: f32,
    ) {
        if self.style == Style::HeldOut {
            return;
        }
        let (lit, dark) = if self.light < 0.0 {
            (left, right)
        } else {
            (right, left)
        };
        let stops = [
            (0.0, SHADOW, 0.16 * strength),
            (0.1, LIGHT, 0.02),
            (0.26, LIGHT, 0.2 * strength),
            (0.5, LIGHT, 0.0),
            (0.52, SHADOW, 0.0),
            (0.8, SHADOW, 0.26 * strength),
            (1.0, SHADOW, 0.5 * strength),
        ];
        canvas.fill(path, gradient(lit, dark, &stops), None);
    }

    pub(super) fn shade_tube(
        &self,
        canvas: &mut Canvas,
        path: Option<&Path>,
        from: (Point2, f32),
        to: (Point2, f32),
        strength: f32,
    ) {
        let d = [to.0[0] - from.0[0], to.0[1] - from.0[1]];
        let length = d[0].hypot(d[1]).max(1e-3);
        let mut normal = [-d[1] / length, d[0] / length];
        if normal[0] > 0.0 {
            normal = [-normal[0], -normal[1]];
        }
        let middle = [(from.0[0] + to.0[0]) / 2.0, (from.0[1] + to.0[1]) / 2.0];
        let r = from.1.max(to.1);
        let left = [middle[0] + normal[0] * r, middle[1] + normal[1] * r];
        let right = [middle[0] - normal[0] * r, middle[1] - normal[1] * r];
        self.shade(canvas, path, left, right, strength);
    }

    pub fn contour(&self, canvas: &mut Canvas, path: Option<&Path>, rgb: [f32; 3]) {
        let (ink, alpha, width) = match self.style {
            Style::Standard => (darker(rgb, 0.35), 0.45, 0.0032),
            Style::HeldOut => ([0.08, 0.07, 0.1], 1.0, 0.007),
        };
        canvas.line(path, ink, alpha, self.px(width), None);
    }

    /// The upper garment's tile, or none where it is of one color.
    pub(super) fn tile(&self) -> Option<Pixmap> {
        let upper = &self.person.upper;
        if self.style == Style::HeldOut {
            return held_out::tile(upper);
        }
        let mut tile = Pixmap::new(16, 16)?;
        tile.fill(rgba(upper.color.rgb, 1.0));
        let mut band = |x: f32, y: f32, w: f32, h: f32, alpha: f32| {
            let paint = tiny_skia::Paint {
                shader: Shader::SolidColor(rgba(upper.second.rgb, alpha)),
                anti_alias: false,
                ..tiny_skia::Paint::default()
            };
            if let Some(rect) = tiny_skia::Rect::from_xywh(x, y, w, h) {
                tile.fill_rect(rect, &paint, Transform::identity(), None);
            }
        };
        match upper.pattern {
            Pattern::Striped if upper.upright => band(0.0, 0.0, 6.0, 16.0, 1.0),
            Pattern::Striped => band(0.0, 0.0, 16.0, 7.0, 1.0),
            Pattern::Checked => {
                band(0.0, 0.0, 16.0, 7.0, 0.62);
                band(0.0, 0.0, 7.0, 16.0, 0.62);
            }
            Pattern::Plain | Pattern::Logo => return None,
        }
        Some(tile)
    }

    /// Fills with the upper garment's cloth, the pattern turned along `axis` (pixels) and starting
    /// at `origin`.
    pub(super) fn cloth(
        &self,
        canvas: &mut Canvas,
        path: Option<&Path>,
        tile: Option<&Pixmap>,
        origin: Point2,
        axis: Point2,
        label: Option<PixelLabel>,
    ) {
        match tile {
            None => canvas.solid(path, self.person.upper.color.rgb, label),
            Some(tile) => {
                let size = self.px(self.person.upper.period).max(2.5) / 16.0;
                let turn = axis[0].atan2(axis[1]).to_degrees();
                let lay = Transform::from_scale(size, size)
                    .post_rotate(-turn)
                    .post_translate(origin[0], origin[1]);
                canvas.fill(path, tiled(tile, lay), label);
            }
        }
    }

    /// A few soft folds between two points, within a mask.
    pub(super) fn folds(
        &self,
        canvas: &mut Canvas,
        path: Option<&Path>,
        at: Point2,
        radius: f32,
        count: usize,
        rng: &mut Rng,
    ) {
        if self.style == Style::HeldOut {
            return;
        }
        let Some(mask) = canvas.mask(path) else {
            return;
        };
        for _ in 0..count {
            let angle =
                rng.random_range(-0.7..0.7f32) + if rng.random_bool(0.5) { 0.35 } else { -0.35 };
            let (sin, cos) = angle.sin_cos();
            let off = rng.random_range(-0.6..0.6f32) * radius;
            let reach = radius * rng.random_range(0.4..1.0f32);
            let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
            let start = [at[0] + side * radius * 0.9, at[1] + off];
            let end = [start[0] - side * reach * cos, start[1] + reach * sin];
            let bend = [
                (start[0] + end[0]) / 2.0,
                (start[1] + end[1]) / 2.0 + 0.15 * reach,
            ];
            let path = open_line(&smooth(&[start, bend, end], 4));
            canvas.line(path.as_ref(), SHADOW, 0.11, self.px(0.007), Some(&mask));
        }
    }
}

/// A rectangle around a point.
pub(crate) fn rect_at(center: Point2, half_width: f32, half_height: f32) -> Option<Path> {
    rect(
        center[0] - half_width,
        center[1] - half_height,
        2.0 * half_width,
        2.0 * half_height,
    )
}

pub(crate) fn mix2(a: Point2, b: Point2, t: f32) -> Point2 {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t]
}
