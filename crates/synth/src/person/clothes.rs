//! Garments of the trunk: trousers' seat, skirts and dresses below; shirts, knitwear, jackets and
//! coats above.

use std::f32::consts::PI;

use rand::RngExt;
use tiny_skia::{Path, Shader};

use crate::canvas::{Canvas, Point2, ellipse, gradient, loft, open_line, polygon, rgba};
use crate::color::{LIGHT, SHADOW, darker, luminance, towards};
use crate::person::appearance::{LowerKind, Pattern, UpperKind};
use crate::person::figure::{Figure, TrunkSection, rect_at};
use crate::person::group;
use crate::person::held_out;
use crate::person::pose::add;
use crate::style::Style;
use clasp_data::Rng;
use clasp_data::part;

impl Figure<'_> {
    /// Row of a garment that hangs around the legs at height `y`: as wide as the legs need, at
    /// least `least`.
    pub(super) fn hanging_row(&self, y: f32, ease: f32, least: TrunkSection) -> (Point2, f32, f32) {
        let (mut left, mut right, mut front, mut back) =
            (least.a, -least.a, least.z + least.b, least.z - least.b);
        for i in 0..2 {
            // The place on the leg at this height; legs run downwards in every pose here.
            let (hip, knee, ankle) = (
                self.skeleton.hips[i],
                self.skeleton.knees[i],
                self.skeleton.ankles[i],
            );
            let s = if y >= knee[1] {
                ((hip[1] - y) / (hip[1] - knee[1]).max(0.01)).clamp(0.0, 1.0)
            } else {
                1.0 + ((knee[1] - y) / (knee[1] - ankle[1]).max(0.01)).clamp(0.0, 1.0)
            };
            let p = self.leg_point(i, s);
            let r = self.leg_radius(s) + ease;
            left = left.max(p[0] + r);
            right = right.min(p[0] - r);
            front = front.max(p[2] + r);
            back = back.min(p[2] - r);
        }
        let (a, b) = ((left - right) / 2.0, (front - back) / 2.0);
        let center = [(left + right) / 2.0, y, (front + back) / 2.0];
        (
            self.frame.point(center),
            self.frame.half(a, b),
            self.frame.bulge(a, b),
        )
    }

    /// Rows of a skirt or a coat's tail from the hips to height `end`.
    pub(super) fn tail(&self, end: f32, ease: f32, flare: f32) -> (Vec<(Point2, f32)>, f32) {
        let top = self.skeleton.pelvis[1];
        let mut rows = Vec::new();
        let mut hem = 0.0;
        for k in 1..=4 {
            let t = k as f32 / 4.0;
            let y = top + (end - top) * t;
            let mut least = self.section(0.0, ease);
            least.a += flare * t;
            least.b += flare * t;
            least.z *= 1.0 - t;
            let (center, half, bulge) = self.hanging_row(y, ease * 0.6, least);
            rows.push((center, half));
            hem = bulge;
        }
        (rows, hem)
    }

    /// Height of the hem of a skirt, a dress or a coat for a length 0 to 1.
    pub(super) fn hem_height(&self, length: f32) -> f32 {
        let s = &self.skeleton;
        let knee = (s.knees[0][1] + s.knees[1][1]) / 2.0;
        let thigh = knee + 0.5 * (s.pelvis[1] - knee);
        let shin = 0.3 * knee;
        if length < 0.5 {
            thigh + (knee - thigh) * length * 2.0
        } else {
            knee + (shin - knee) * (length * 2.0 - 1.0)
        }
    }

    pub(super) fn lower(&self, canvas: &mut Canvas, rng: &mut Rng) {
        let lower = &self.person.lower;
        let rgb = lower.color.rgb;
        let label = self.label(part::LOWER_BODY, group::HIPS);
        if matches!(lower.kind, LowerKind::Skirt | LowerKind::Dress) {
            let ease = 0.008;
            let (tail, hem) = self.tail(
                self.hem_height(lower.length),
                ease,
                0.012 + 0.055 * lower.width,
            );
            let mut rows = vec![
                self.row(0.42, ease),
                self.row(0.2, ease),
                self.row(0.0, ease),
            ];
            rows.extend(tail);
            let path = loft(&rows, 0.0, hem);
            if lower.kind == LowerKind::Dress {
                let tile = self.tile();
                self.cloth(
                    canvas,
                    path.as_ref(),
                    tile.as_ref(),
                    rows[0].0,
                    [0.0, 1.0],
                    label,
                );
            } else {
                canvas.solid(path.as_ref(), rgb, label);
            }
            let last = rows[rows.len() - 1];
            let left = [last.0[0] - last.1, rows[2].0[1]];
            let right = [last.0[0] + last.1, rows[2].0[1]];
            self.shade(canvas, path.as_ref(), left, right, 1.0);
            // Pleats run from the waist to the hem.
            for _ in 0..5 {
                let u = rng.random_range(-0.85..0.85f32);
                let top = rows[2];
                let from = [
                    top.0[0] + u * top.1 * 0.9,
                    top.0[1] + 0.4 * (last.0[1] - top.0[1]),
                ];
                let to = [
                    last.0[0] + u * last.1,
                    last.0[1] + hem * (1.0 - u * u).sqrt() * 0.9,
                ];
                let alpha = if lower.width > 0.4 { 0.22 } else { 0.1 };
                canvas.line(
                    open_line(&[from, to]).as_ref(),
                    SHADOW,
                    alpha,
                    self.px(0.006),
                    None,
                );
            }
            self.contour(canvas, path.as_ref(), rgb);
            return;
        }
        // The seat of trousers or shorts.
        let ease = 0.006 + 0.004 * lower.width;
        let rows = [
            self.row(0.4, ease),
            self.row(0.2, ease),
            self.row(0.02, ease),
            self.row(-0.14, ease * 0.7),
        ];
        let mut seat = rows.to_vec();
        let crotch = self
            .frame
            .point(add(self.skeleton.pelvis, [0.0, -0.055, 0.0]));
        seat[3].1 *= 0.92;
        let path = loft(&seat, 0.0, (crotch[1] - seat[3].0[1]).max(self.px(0.008)));
        canvas.solid(path.as_ref(), rgb, label);
        let (center, half) = seat[2];
        self.shade(
            canvas,
            path.as_ref(),
            [center[0] - half, center[1]],
            [center[0] + half, center[1]],
            0.85,
        );
        if self.frame.yaw.cos().abs() > 0.3 {
            let fly = open_line(&[self.frame.point(self.spine(0.2)), crotch]);
            canvas.line(fly.as_ref(), SHADOW, 0.25, self.px(0.005), None);
        }
        if self.frame.yaw.cos() < -0.3 {
            for side in [-1.0f32, 1.0] {
                let (p, facing) = self.surface(0.06, PI + side * 0.5, ease);
                if facing < 0.45 {
                    continue;
                }
                let w = self.px(0.026) * facing;
                let pocket = rect_at(p, w, self.px(0.03));
                canvas.line(pocket.as_ref(), darker(rgb, 0.5), 0.4, self.px(0.003), None);
            }
        }
    }

    pub(super) fn upper(&self, canvas: &mut Canvas, rng: &mut Rng) {
        let upper = &self.person.upper;
        let ease = upper.ease;
        let rgb = upper.color.rgb;
        let dress = self.person.lower.kind == LowerKind::Dress;
        let label = self.label(part::UPPER_BODY, group::TORSO);
        let tile = self.tile();
        let hem_at = match upper.kind {
            _ if dress => 0.4,
            UpperKind::TShirt => -0.03,
            UpperKind::Shirt => -0.06,
            UpperKind::Sweater | UpperKind::Hoodie => 0.0,
            UpperKind::Jacket => -0.05,
            UpperKind::Coat => 0.0,
        };
        let mut rows: Vec<(Point2, f32)> = [1.17, 1.07, 0.96, 0.84, 0.68, 0.52, 0.36, 0.18]
            .into_iter()
            .filter(|t| *t > hem_at + 0.05)
            .map(|t| self.row(t, self.drape(t)))
            .collect();
        let section = self.section(hem_at, ease);
        let mut hem = self.frame.bulge(section.a, section.b);
        rows.push(self.row(hem_at, self.drape(hem_at)));
        if upper.kind == UpperKind::Coat {
            let (tail, bulge) = self.tail(
                self.hem_height(0.1 + 0.5 * upper.period * 20.0 - 0.3),
                ease,
                0.02,
            );
            rows.extend(tail);
            hem = bulge;
        }
        let path = loft(&rows, self.px(0.004), hem);
        self.cloth(
            canvas,
            path.as_ref(),
            tile.as_ref(),
            rows[0].0,
            [0.0, 1.0],
            label,
        );
        let Some(mask) = canvas.mask(path.as_ref()) else {
            return;
        };

        // The shirt under an open jacket: the strip around the front's middle.
        if upper.open {
            let edge = |side: f32| {
                [1.15, 1.0, 0.8, 0.5, 0.2, hem_at]
                    .map(|t| self.surface(t, side * (0.16 + 0.3 * (1.0 - t).max(0.0)), ease))
            };
            let (left, right) = (edge(1.0), edge(-1.0));
            let facing = left[2].1.max(right[2].1);
            if facing > 0.0 {
                let mut outline: Vec<Point2> = left.iter().map(|p| p.0).collect();
                let end = rows[rows.len() - 1].0;
                outline.push([left[5].0[0], end[1] + hem]);
                outline.push([right[5].0[0], end[1] + hem]);
                outline.extend(right.iter().rev().map(|p| p.0));
                if upper.kind == UpperKind::Coat {
                    // Below the shirt the trousers show.
                    canvas.fill_in(
                        polygon(&outline).as_ref(),
                        Shader::SolidColor(rgba(self.person.lower.color.rgb, 1.0)),
                        None,
                        Some(&mask),
                    );
                }
                let mut shirt: Vec<Point2> = left.iter().map(|p| p.0).collect();
                shirt.extend(right.iter().rev().map(|p| p.0));
                canvas.fill_in(
                    polygon(&shirt).as_ref(),
                    Shader::SolidColor(rgba(upper.second.rgb, 1.0)),
                    None,
                    Some(&mask),
                );
                canvas.line(
                    polygon(&outline).as_ref(),
                    darker(rgb, 0.4),
                    0.6,
                    self.px(0.005),
                    Some(&mask),
                );
            }
        }
        if upper.pattern == Pattern::Logo {
            self.print(canvas, ease);
        }
        self.front_details(canvas, hem_at, ease);

        // Chest rows decide the direction of the light, so that a wide hem does not flatten it.
        let chest = rows[3.min(rows.len() - 1)];
        let half = chest.1 * 1.08;
        self.shade(
            canvas,
            path.as_ref(),
            [chest.0[0] - half, chest.0[1]],
            [chest.0[0] + half, chest.0[1]],
            1.0,
        );
        // The chest catches light, the waist lies in shade.
        let (top, bottom) = (rows[0].0, rows[rows.len() - 1].0);
        let fall = gradient(
            top,
            bottom,
            &[
                (0.0, LIGHT, 0.1),
                (0.35, LIGHT, 0.03),
                (0.5, SHADOW, 0.0),
                (1.0, SHADOW, 0.16),
            ],
        );
        canvas.fill(path.as_ref(), fall, None);
        let waist = self.frame.point(self.spine(0.4));
        self.folds(
            canvas,
            path.as_ref(),
            waist,
            self.frame.half(0.09, 0.07),
            4,
            rng,
        );
        self.folds(
            canvas,
            path.as_ref(),
            self.frame.point(self.spine(0.75)),
            self.frame.half(0.1, 0.07),
            2,
            rng,
        );
        if dress {
            let belt = rows[rows.len() - 1];
            let line = open_line(&[
                [belt.0[0] - belt.1, belt.0[1]],
                [belt.0[0], belt.0[1] + hem],
                [belt.0[0] + belt.1, belt.0[1]],
            ]);
            canvas.line(line.as_ref(), SHADOW, 0.35, self.px(0.006), Some(&mask));
        } else {
            self.contour(canvas, path.as_ref(), rgb);
        }
        if matches!(upper.kind, UpperKind::Sweater | UpperKind::Hoodie) {
            let cuff = rows[rows.len() - 1];
            let line = open_line(&[
                [cuff.0[0] - cuff.1, cuff.0[1] - self.px(0.014)],
                [cuff.0[0], cuff.0[1] + hem - self.px(0.014)],
                [cuff.0[0] + cuff.1, cuff.0[1] - self.px(0.014)],
            ]);
            canvas.line(line.as_ref(), SHADOW, 0.3, self.px(0.004), Some(&mask));
        }
    }

    /// Loose cloth stands off the body most at the waist.
    pub(super) fn drape(&self, t: f32) -> f32 {
        let ease = self.person.upper.ease;
        let slack = if self.person.lower.kind == LowerKind::Dress {
            0.2
        } else {
            1.0
        };
        ease * (1.0 + slack * (1.0 - ((t - 0.35) / 0.5).powi(2)).max(0.0))
            * if t > 0.9 { 0.6 } else { 1.0 }
    }

    /// Placket, zip, buttons, collar, pocket: whatever of it faces the camera.
    pub(super) fn front_details(&self, canvas: &mut Canvas, hem_at: f32, ease: f32) {
        let upper = &self.person.upper;
        let rgb = upper.color.rgb;
        let ink = if luminance(rgb) > 0.25 {
            darker(rgb, 0.5)
        } else {
            towards(rgb, [1.0; 3], 0.25)
        };
        let middle = |from: f32, to: f32| {
            self.surface_line(
                (0..=6).map(|k| (from + (to - from) * k as f32 / 6.0, 0.0)),
                ease,
            )
        };
        match upper.kind {
            UpperKind::Shirt => {
                canvas.line(
                    middle(1.1, hem_at).as_ref(),
                    ink,
                    0.55,
                    self.px(0.004),
                    None,
                );
                for k in 0..6 {
                    let (p, facing) = self.surface(1.0 - 0.18 * k as f32, 0.03, ease);
                    if facing > 0.1 {
                        canvas.solid(
                            ellipse(p, self.px(0.005), self.px(0.005), 0.0).as_ref(),
                            ink,
                            None,
                        );
                    }
                }
                self.collar(canvas, towards(rgb, [1.0; 3], 0.18));
            }
            UpperKind::Jacket | UpperKind::Coat if !upper.open => {
                canvas.line(
                    middle(1.12, hem_at).as_ref(),
                    ink,
                    0.7,
                    self.px(0.006),
                    None,
                );
                self.collar(canvas, darker(rgb, 0.8));
            }
            UpperKind::Jacket | UpperKind::Coat => self.collar(canvas, darker(rgb, 0.8)),
            UpperKind::Hoodie => {
                for side in [-1.0f32, 1.0] {
                    let line = self.surface_line(
                        [(0.12, side * 0.6), (0.2, side * 0.6), (0.34, side * 0.38)].into_iter(),
                        ease,
                    );
                    canvas.line(line.as_ref(), ink, 0.5, self.px(0.005), None);
                    let string = self.surface_line(
                        [(1.06, side * 0.1), (0.95, side * 0.1), (0.82, side * 0.12)].into_iter(),
                        ease,
                    );
                    canvas.line(
                        string.as_ref(),
                        towards(rgb, [1.0; 3], 0.6),
                        0.9,
                        self.px(0.005),
                        None,
                    );
                }
                let rim: Vec<Point2> = (0..9)
                    .map(|k| {
                        self.surface(
                            1.1,
                            (k as f32 / 8.0 - 0.5) * PI * 1.2 - self.frame.yaw,
                            ease + 0.012,
                        )
                        .0
                    })
                    .collect();
                canvas.line(
                    open_line(&rim).as_ref(),
                    darker(rgb, 0.75),
                    1.0,
                    self.px(0.022),
                    None,
                );
            }
            UpperKind::TShirt | UpperKind::Sweater => {
                let ring: Vec<Point2> = (0..9)
                    .map(|k| {
                        self.surface(
                            1.14,
                            (k as f32 / 8.0 - 0.5) * PI - self.frame.yaw,
                            ease * 0.5,
                        )
                        .0
                    })
                    .collect();
                canvas.line(
                    open_line(&ring).as_ref(),
                    darker(rgb, 0.7),
                    0.8,
                    self.px(0.007),
                    None,
                );
            }
        }
    }

    pub(super) fn collar(&self, canvas: &mut Canvas, rgb: [f32; 3]) {
        for side in [-1.0f32, 1.0] {
            let corners = [
                (1.2, side * 1.2),
                (1.14, side * 0.12),
                (1.0, side * 0.3),
                (1.06, side * 0.9),
            ]
            .map(|(t, azimuth)| self.surface(t, azimuth, 0.006));
            if corners[2].1 > 0.1 {
                let path = polygon(&corners.map(|c| c.0));
                canvas.solid(path.as_ref(), rgb, None);
                self.contour(canvas, path.as_ref(), rgb);
            }
        }
    }

    /// A print on the chest and on the back.
    pub(super) fn print(&self, canvas: &mut Canvas, ease: f32) {
        let upper = &self.person.upper;
        let design = (upper.period * 4000.0) as usize % 4;
        for back in [0.0, PI] {
            let spot = |u: f32, v: f32| {
                // u, v: -1 to 1 across and down the print.
                let (p, facing) = self.surface(0.72 - 0.17 * v, back + 0.62 * u, ease);
                (p, facing)
            };
            if spot(0.0, 0.0).1 < 0.05 && spot(1.0, 0.0).1 < 0.1 && spot(-1.0, 0.0).1 < 0.1 {
                continue;
            }
            let shape = |points: &[Point2]| -> Option<Path> {
                let seen: Vec<Point2> = points
                    .iter()
                    .map(|p| spot(p[0], p[1]))
                    .filter(|s| s.1 > -0.02)
                    .map(|s| s.0)
                    .collect();
                if seen.len() < 3 { None } else { polygon(&seen) }
            };
            let circle = |r: f32| -> Vec<Point2> {
                (0..24)
                    .map(|k| {
                        let t = k as f32 / 12.0 * PI;
                        [r * t.cos(), r * t.sin()]
                    })
                    .collect()
            };
            let bar = |x0: f32, y0: f32, x1: f32, y1: f32| -> Vec<Point2> {
                let n = 6;
                let mut out: Vec<Point2> = (0..=n)
                    .map(|k| [x0 + (x1 - x0) * k as f32 / n as f32, y0])
                    .collect();
                out.extend(
                    (0..=n)
                        .rev()
                        .map(|k| [x0 + (x1 - x0) * k as f32 / n as f32, y1]),
                );
                out
            };
            if self.style == Style::HeldOut {
                for (outline, second) in held_out::print(design) {
                    let color = if second { upper.second } else { upper.color };
                    canvas.solid(shape(&outline).as_ref(), color.rgb, None);
                }
                continue;
            }
            match design {
                0 => {
                    canvas.solid(shape(&circle(0.85)).as_ref(), upper.second.rgb, None);
                    canvas.solid(shape(&circle(0.45)).as_ref(), upper.color.rgb, None);
                }
                1 => {
                    canvas.solid(
                        shape(&bar(-0.9, -0.7, 0.9, -0.25)).as_ref(),
                        upper.second.rgb,
                        None,
                    );
                    canvas.solid(
                        shape(&bar(-0.7, 0.0, 0.7, 0.3)).as_ref(),
                        upper.second.rgb,
                        None,
                    );
                    canvas.solid(
                        shape(&bar(-0.5, 0.5, 0.5, 0.8)).as_ref(),
                        upper.second.rgb,
                        None,
                    );
                }
                2 => {
                    let star: Vec<Point2> = (0..10)
                        .map(|k| {
                            let t = k as f32 / 5.0 * PI - PI / 2.0;
                            let r = if k % 2 == 0 { 1.0 } else { 0.45 };
                            [r * t.cos(), r * t.sin()]
                        })
                        .collect();
                    canvas.solid(shape(&star).as_ref(), upper.second.rgb, None);
                }
                _ => {
                    canvas.solid(
                        shape(&bar(-0.85, -0.8, 0.85, 0.8)).as_ref(),
                        upper.second.rgb,
                        None,
                    );
                    canvas.solid(
                        shape(&bar(-0.55, -0.45, 0.55, -0.1)).as_ref(),
                        upper.color.rgb,
                        None,
                    );
                    canvas.solid(
                        shape(&bar(-0.2, 0.1, 0.2, 0.55)).as_ref(),
                        upper.color.rgb,
                        None,
                    );
                }
            }
        }
    }

    /// The hood that lies on the back.
    pub(super) fn hood(&self, canvas: &mut Canvas) {
        if self.person.upper.kind != UpperKind::Hoodie {
            return;
        }
        let rgb = darker(self.person.upper.color.rgb, 0.88);
        let (p, _) = self.surface(1.0, PI, 0.012);
        let path = ellipse(
            [p[0], p[1]],
            self.frame.half(0.062, 0.04),
            self.px(0.05),
            0.0,
        );
        canvas.solid(
            path.as_ref(),
            rgb,
            self.label(part::UPPER_BODY, group::TORSO),
        );
        self.shade(
            canvas,
            path.as_ref(),
            [p[0] - self.px(0.06), p[1]],
            [p[0] + self.px(0.06), p[1]],
            0.8,
        );
        self.contour(canvas, path.as_ref(), rgb);
    }
}
