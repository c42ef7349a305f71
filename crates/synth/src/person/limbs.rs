//! Legs with shoes, arms with sleeves and hands.

use tiny_skia::{Mask, Path, Transform};

use crate::canvas::{Canvas, Point2, ellipse, glow, gradient, loft, open_line, smooth, tube};
use crate::color::{LIGHT, SHADOW, darker};
use crate::person::appearance::{Age, BagKind, Footwear, LowerKind, Sleeve};
use crate::person::figure::{Figure, mix2, table};
use crate::person::group;
use crate::person::pose::{Point3, add, mix, scaled};
use clasp_data::Rng;
use clasp_data::part;

impl Figure<'_> {
    /// Points of a leg from hip (0) over knee (1) to ankle (2), with radii.
    pub(super) fn leg_run(
        &self,
        i: usize,
        from: f32,
        to: f32,
        extra: impl Fn(f32) -> f32,
    ) -> Vec<(Point2, f32)> {
        let places = [0.0, 0.35, 0.7, 1.0, 1.35, 1.7, 2.0];
        let mut run: Vec<f32> = places
            .into_iter()
            .filter(|s| *s > from + 0.05 && *s < to - 0.05)
            .collect();
        run.insert(0, from);
        run.push(to);
        run.into_iter()
            .map(|s| {
                (
                    self.frame.point(self.leg_point(i, s)),
                    self.px(self.leg_radius(s) + extra(s)),
                )
            })
            .collect()
    }

    pub(super) fn leg_point(&self, i: usize, s: f32) -> Point3 {
        let k = &self.skeleton;
        if s <= 1.0 {
            mix(k.hips[i], k.knees[i], s)
        } else {
            mix(k.knees[i], k.ankles[i], s - 1.0)
        }
    }

    pub(super) fn leg_radius(&self, s: f32) -> f32 {
        let rows = [
            (0.0, [0.051]),
            (0.35, [0.052]),
            (0.7, [0.043]),
            (1.0, [0.034]),
            (1.35, [0.036]),
            (1.7, [0.025]),
            (2.0, [0.02]),
        ];
        table(&rows, s)[0] * (0.25 + 0.75 * self.person.body.build)
    }

    pub(super) fn leg(&self, canvas: &mut Canvas, i: usize, rng: &mut Rng) {
        let person = self.person;
        let group = group::LEGS + i as u8;
        let lower = &person.lower;
        if lower.kind != LowerKind::Trousers {
            let rgb = person.stockings.map_or(person.skin, |c| c.rgb);
            let run = self.leg_run(i, 0.1, 2.0, |_| 0.0);
            let path = tube(&run, true, true);
            canvas.solid(path.as_ref(), rgb, self.label(part::LEGS, group));
            self.shade_tube(canvas, path.as_ref(), run[0], run[run.len() - 1], 0.9);
            let knee = self.frame.point(self.skeleton.knees[i]);
            let facing = self.frame.yaw.cos();
            if facing > 0.2 {
                let cap = ellipse(
                    [knee[0], knee[1] + self.px(0.004)],
                    self.px(0.018),
                    self.px(0.014),
                    0.0,
                );
                canvas.glaze(cap.as_ref(), darker(rgb, 0.5), 0.16, None);
            } else if facing < -0.2 {
                let line = open_line(&[
                    [knee[0] - self.px(0.018), knee[1]],
                    [knee[0] + self.px(0.018), knee[1]],
                ]);
                canvas.line(line.as_ref(), darker(rgb, 0.5), 0.35, self.px(0.004), None);
            }
            self.contour(canvas, path.as_ref(), rgb);
        }
        self.shoe(canvas, i);
        let rgb = lower.color.rgb;
        let (end, ease) = match lower.kind {
            LowerKind::Trousers => {
                let boots = person.shoes.0 == Footwear::Boots && lower.width < 0.5;
                (if boots { 1.72 } else { 1.97 }, 0.004 + 0.014 * lower.width)
            }
            LowerKind::Shorts => (0.55 + lower.length, 0.008 + 0.016 * lower.width),
            LowerKind::Skirt | LowerKind::Dress => return,
        };
        let run = self.leg_run(i, 0.0, end, |s| {
            // Cloth hangs straight: below the thigh it is wider than the leg.
            let hang = if lower.kind == LowerKind::Trousers {
                0.018 * lower.width + 0.006
            } else {
                0.01
            };
            ease + hang * ((s - 0.5) / 1.5).max(0.0)
        });
        let path = tube(&run, true, false);
        canvas.solid(path.as_ref(), rgb, self.label(part::LOWER_BODY, group));
        if lower.jeans {
            let thigh = self.frame.point(self.leg_point(i, 0.55));
            let worn = glow(
                thigh,
                self.px(0.09),
                &[
                    (0.0, [0.95, 0.97, 1.0], 0.22),
                    (1.0, [0.95, 0.97, 1.0], 0.0),
                ],
                Transform::identity(),
            );
            canvas.fill(path.as_ref(), worn, None);
        }
        let first = run[0];
        let last = run[run.len() - 1];
        self.shade_tube(canvas, path.as_ref(), first, last, 1.0);
        self.folds(
            canvas,
            path.as_ref(),
            self.frame.point(self.leg_point(i, 1.05)),
            self.px(0.04),
            3,
            rng,
        );
        if lower.kind == LowerKind::Trousers {
            self.folds(
                canvas,
                path.as_ref(),
                self.frame.point(self.leg_point(i, 1.85)),
                self.px(0.03),
                2,
                rng,
            );
        }
        self.contour(canvas, path.as_ref(), rgb);
    }

    pub(super) fn shoe(&self, canvas: &mut Canvas, i: usize) {
        let (kind, color) = self.person.shoes;
        let k = &self.skeleton;
        let group = group::LEGS + i as u8;
        let (ankle, foot) = (k.ankles[i], k.feet[i]);
        let size = if self.person.age == Age::Child {
            1.08
        } else {
            1.0
        };
        let base = add(ankle, [0.0, -0.028, 0.0]);
        let heel = add(base, scaled(foot, -0.028 * size));
        let ball = add(base, scaled(foot, 0.06 * size));
        let toe = add(add(base, scaled(foot, 0.092 * size)), [0.0, -0.004, 0.0]);
        let [pa, ph, pb, pt] = [ankle, heel, ball, toe].map(|v| self.frame.point(v));
        let sole_drop = self.px(0.016);
        let label = self.label(part::FEET, group);
        let rgb = color.rgb;
        if kind == Footwear::Sandals {
            let bare = [
                tube(
                    &[
                        (pa, self.px(0.02)),
                        (pb, self.px(0.018)),
                        (pt, self.px(0.014)),
                    ],
                    true,
                    true,
                ),
                tube(&[(ph, self.px(0.018)), (pt, self.px(0.014))], true, true),
            ];
            for path in &bare {
                canvas.solid(path.as_ref(), self.person.skin, label);
            }
            self.shade_tube(
                canvas,
                bare[0].as_ref(),
                (pa, self.px(0.024)),
                (pt, self.px(0.024)),
                0.6,
            );
            let side = self.px(0.02);
            for (center, drop) in [(pb, 0.004), (mix2(pa, pb, 0.45), 0.0)] {
                let strap = open_line(&[
                    [center[0] - side, center[1] + self.px(0.006 + drop)],
                    [center[0], center[1] - self.px(0.006)],
                    [center[0] + side, center[1] + self.px(0.006 + drop)],
                ]);
                canvas.line(strap.as_ref(), rgb, 1.0, self.px(0.009), None);
            }
            let sole = tube(
                &[
                    ([ph[0], ph[1] + sole_drop], self.px(0.008)),
                    ([pt[0], pt[1] + sole_drop * 0.9], self.px(0.008)),
                ],
                true,
                true,
            );
            canvas.solid(sole.as_ref(), darker(rgb, 0.7), label);
            return;
        }
        if kind == Footwear::Boots {
            let run = self.leg_run(i, 1.55, 2.0, |s| 0.009 - 0.006 * (s - 1.55));
            let shaft = tube(&run, false, true);
            canvas.solid(shaft.as_ref(), rgb, label);
            self.shade_tube(canvas, shaft.as_ref(), run[0], run[run.len() - 1], 1.0);
            self.contour(canvas, shaft.as_ref(), rgb);
            let cuff = open_line(&[
                [run[0].0[0] - run[0].1, run[0].0[1]],
                [run[0].0[0] + run[0].1, run[0].0[1]],
            ]);
            canvas.line(cuff.as_ref(), darker(rgb, 0.5), 0.7, self.px(0.005), None);
        } else if self.person.lower.kind != LowerKind::Trousers && kind == Footwear::Sneakers {
            let run = self.leg_run(i, 1.82, 2.0, |_| 0.003);
            let sock = tube(&run, false, true);
            canvas.solid(sock.as_ref(), [0.9, 0.9, 0.9], label);
            self.shade_tube(canvas, sock.as_ref(), run[0], run[run.len() - 1], 0.9);
        }
        let upper = tube(
            &[
                (pa, self.px(0.023)),
                (mix2(pa, pb, 0.55), self.px(0.022)),
                (pb, self.px(0.022)),
                (pt, self.px(0.017)),
            ],
            true,
            true,
        );
        let base = tube(
            &[
                (ph, self.px(0.021)),
                (pb, self.px(0.021)),
                (pt, self.px(0.017)),
            ],
            true,
            true,
        );
        canvas.solid(upper.as_ref(), rgb, label);
        canvas.solid(base.as_ref(), rgb, label);
        self.shade_tube(
            canvas,
            base.as_ref(),
            (ph, self.px(0.026)),
            (pt, self.px(0.026)),
            0.6,
        );
        self.shade_tube(
            canvas,
            upper.as_ref(),
            (pa, self.px(0.026)),
            (pt, self.px(0.026)),
            0.6,
        );
        let sole_rgb = if kind == Footwear::Sneakers {
            [0.93, 0.93, 0.9]
        } else {
            darker(rgb, 0.45)
        };
        let sole = tube(
            &[
                ([ph[0], ph[1] + sole_drop], self.px(0.0075)),
                ([pb[0], pb[1] + sole_drop], self.px(0.0075)),
                ([pt[0], pt[1] + sole_drop * 0.75], self.px(0.0065)),
            ],
            true,
            true,
        );
        canvas.solid(sole.as_ref(), sole_rgb, label);
        self.contour(canvas, sole.as_ref(), darker(rgb, 0.7));
        if self.frame.yaw.cos() > -0.3 && kind == Footwear::Sneakers {
            let lace = open_line(&[mix2(pa, pb, 0.5), mix2(pa, pb, 0.9)]);
            canvas.line(lace.as_ref(), [0.96, 0.96, 0.96], 0.9, self.px(0.008), None);
        }
    }

    pub(super) fn arm_point(&self, i: usize, s: f32) -> Point3 {
        let k = &self.skeleton;
        if s <= 1.0 {
            mix(k.shoulders[i], k.elbows[i], s)
        } else {
            mix(k.elbows[i], k.wrists[i], s - 1.0)
        }
    }

    pub(super) fn arm_run(&self, i: usize, to: f32, extra: f32) -> Vec<(Point2, f32)> {
        let rows = [
            (0.0, [0.033]),
            (0.3, [0.034]),
            (0.9, [0.026]),
            (1.3, [0.027]),
            (2.0, [0.0175]),
        ];
        let mut places: Vec<f32> = [0.0, 0.3, 0.65, 1.0, 1.35, 1.7]
            .into_iter()
            .filter(|s| *s < to - 0.05)
            .collect();
        places.push(to);
        let girth = 0.35 + 0.65 * self.person.body.build;
        places
            .into_iter()
            .map(|s| {
                let r = table(&rows, s)[0] * girth + extra * (0.25 + 0.75 * s).min(1.0);
                (self.frame.point(self.arm_point(i, s)), self.px(r))
            })
            .collect()
    }

    pub(super) fn arm(&self, canvas: &mut Canvas, i: usize, rng: &mut Rng) {
        let person = self.person;
        let upper = &person.upper;
        let group = group::ARMS + i as u8;
        let skin = person.skin;
        let k = &self.skeleton;
        self.cast_shadow(canvas, i);
        // What the hand holds behind the fingers.
        let carrying = person
            .carried
            .filter(|_| usize::from(person.bag_side > 0.0) == i);
        if upper.sleeve == Sleeve::Short {
            let run = self.arm_run(i, 2.0, 0.0);
            let path = tube(&run, true, true);
            canvas.solid(path.as_ref(), skin, self.label(part::ARMS, group));
            self.shade_tube(canvas, path.as_ref(), run[2], run[run.len() - 1], 0.9);
            self.contour(canvas, path.as_ref(), skin);
        }
        let (wrist, tip) = (self.frame.point(k.wrists[i]), self.frame.point(k.hands[i]));
        if let Some((kind, color)) = carrying {
            self.carried(canvas, i, kind, color);
        }
        let hand = tube(
            &[
                (wrist, self.px(0.0155)),
                (mix2(wrist, tip, 0.45), self.px(0.021)),
                (mix2(wrist, tip, 0.9), self.px(0.0125)),
            ],
            true,
            true,
        );
        canvas.solid(hand.as_ref(), skin, self.label(part::ARMS, group));
        self.shade_tube(
            canvas,
            hand.as_ref(),
            (wrist, self.px(0.02)),
            (tip, self.px(0.02)),
            0.7,
        );
        self.contour(canvas, hand.as_ref(), skin);

        // The sleeve, with its pattern turned along the arm.
        let end = if upper.sleeve == Sleeve::Long {
            1.96
        } else {
            0.62 + 4.0 * upper.period
        };
        let run = self.arm_run(i, end, upper.ease + 0.003);
        let path = tube(&run, true, false);
        let axis = [
            run[run.len() - 1].0[0] - run[0].0[0],
            run[run.len() - 1].0[1] - run[0].0[1],
        ];
        let tile = self.tile();
        self.cloth(
            canvas,
            path.as_ref(),
            tile.as_ref(),
            run[0].0,
            axis,
            self.label(part::UPPER_BODY, group),
        );
        self.shade_sleeve(canvas, path.as_ref(), &run);
        if upper.sleeve == Sleeve::Long {
            self.folds(
                canvas,
                path.as_ref(),
                self.frame.point(self.arm_point(i, 1.0)),
                self.px(0.03),
                3,
                rng,
            );
        }
        if let Some(open) = sleeve_outline(&run) {
            canvas.line(
                Some(&open),
                darker(upper.color.rgb, 0.35),
                0.45,
                self.px(0.0032),
                None,
            );
        }
        if let Some((BagKind::Hand, color)) = person.bag
            && usize::from(person.bag_side < 0.0) == i
        {
            self.handbag(canvas, i, color);
        }
    }

    /// Shades a sleeve but leaves its top to the trunk, so that the shoulder does not look like a
    /// ball.
    pub(super) fn shade_sleeve(
        &self,
        canvas: &mut Canvas,
        path: Option<&Path>,
        run: &[(Point2, f32)],
    ) {
        let Some(mut mask) = canvas.mask(path) else {
            return;
        };
        // Fade the mask in along the upper arm.
        let (top, r) = run[0];
        let below = run[run.len().min(3) - 1].0;
        let d = [below[0] - top[0], below[1] - top[1]];
        let length = d[0].hypot(d[1]).max(1e-3);
        let d = [d[0] / length, d[1] / length];
        let reach = (1.9 * r).max(1.0);
        let width = mask.width() as usize;
        let x_range = |p: &(Point2, f32)| {
            (
                p.0[0] - p.1 - 3.0,
                p.0[0] + p.1 + 3.0,
                p.0[1] - p.1 - 3.0,
                p.0[1] + p.1 + 3.0,
            )
        };
        let (x0, x1, y0, y1) = x_range(&run[0]);
        let (x0, x1) = (x0.max(0.0) as usize, (x1.max(0.0) as usize).min(width));
        let height = mask.height() as usize;
        let (y0, y1) = (
            (y0 - reach).max(0.0) as usize,
            ((y1 + reach).max(0.0) as usize).min(height),
        );
        let (x0, x1) = (
            x0.saturating_sub(reach as usize),
            (x1 + reach as usize).min(width),
        );
        let data = mask.data_mut();
        for y in y0..y1 {
            for x in x0..x1 {
                let along = (x as f32 - top[0]) * d[0] + (y as f32 - top[1]) * d[1];
                let keep = ((along + 0.3 * r) / reach).clamp(0.0, 1.0);
                let at = y * width + x;
                data[at] = (f32::from(data[at]) * keep * keep) as u8;
            }
        }
        let (from, to) = (run[0], run[run.len() - 1]);
        let axis = [to.0[0] - from.0[0], to.0[1] - from.0[1]];
        let length = axis[0].hypot(axis[1]).max(1e-3);
        let mut normal = [-axis[1] / length, axis[0] / length];
        if normal[0] > 0.0 {
            normal = [-normal[0], -normal[1]];
        }
        let middle = mix2(from.0, to.0, 0.5);
        let r = from.1.max(to.1) * 1.05;
        let left = [middle[0] + normal[0] * r, middle[1] + normal[1] * r];
        let right = [middle[0] - normal[0] * r, middle[1] - normal[1] * r];
        let (lit, dark) = if self.light < 0.0 {
            (left, right)
        } else {
            (right, left)
        };
        let stops = [
            (0.0, SHADOW, 0.2),
            (0.12, LIGHT, 0.02),
            (0.28, LIGHT, 0.18),
            (0.5, LIGHT, 0.0),
            (0.52, SHADOW, 0.0),
            (0.8, SHADOW, 0.26),
            (1.0, SHADOW, 0.5),
        ];
        canvas.fill_in(path, gradient(lit, dark, &stops), None, Some(&mask));
    }

    /// A soft dark edge that a near arm throws on what lies behind it.
    pub(super) fn cast_shadow(&self, canvas: &mut Canvas, i: usize) {
        if self.arm_nearness(i) < -0.012 {
            return;
        }
        let run = self.arm_run(i, 2.0, 0.004);
        let shift = -self.light.signum() * self.px(0.008);
        for (grow, alpha) in [(1.15, 0.07), (1.0, 0.1)] {
            let moved: Vec<(Point2, f32)> = run[2..]
                .iter()
                .map(|(p, r)| ([p[0] + shift, p[1] + self.px(0.004)], r * grow))
                .collect();
            let path = tube(&moved, true, true);
            // Only on the person: the wall behind is too far away.
            if let Some(mask) = self.own_mask(canvas) {
                canvas.glaze(path.as_ref(), SHADOW, alpha, Some(&mask));
            }
        }
    }

    /// The trunk of this person as a mask.
    pub(super) fn own_mask(&self, canvas: &Canvas) -> Option<Mask> {
        let rows: Vec<(Point2, f32)> = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0, -0.15]
            .iter()
            .map(|t| self.row(*t, 0.0))
            .collect();
        canvas.mask(loft(&rows, 0.0, 0.0).as_ref())
    }
}

/// The two long edges of a sleeve with its cuff, without the round top.
fn sleeve_outline(run: &[(Point2, f32)]) -> Option<Path> {
    let n = run.len();
    if n < 3 {
        return None;
    }
    let normal = |i: usize| {
        let (a, b) = (run[i.saturating_sub(1)].0, run[(i + 1).min(n - 1)].0);
        let d = [b[0] - a[0], b[1] - a[1]];
        let length = d[0].hypot(d[1]).max(1e-3);
        [-d[1] / length, d[0] / length]
    };
    let edge = |side: f32| -> Vec<Point2> {
        (1..n)
            .map(|i| {
                let m = normal(i);
                [
                    run[i].0[0] + side * m[0] * run[i].1,
                    run[i].0[1] + side * m[1] * run[i].1,
                ]
            })
            .collect()
    };
    let mut points = smooth(&edge(1.0), 4);
    let mut back = smooth(&edge(-1.0), 4);
    back.reverse();
    points.extend(back);
    open_line(&points)
}
