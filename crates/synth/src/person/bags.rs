//! Bags with their straps, and what a hand carries.

use std::f32::consts::PI;

use crate::canvas::{Canvas, PixelLabel, Point2, ellipse, loft, open_line, polygon, smooth, tube};
use crate::color::{Color, darker, towards};
use crate::person::appearance::{BagKind, Carried};
use crate::person::figure::{Figure, mix2, rect_at};
use crate::person::group;
use crate::person::pose::{Point3, add, mix};
use clasp_data::part;

impl Figure<'_> {
    pub(super) fn handbag(&self, canvas: &mut Canvas, i: usize, color: Color) {
        let k = &self.skeleton;
        let hand = self.frame.point(mix(k.wrists[i], k.hands[i], 0.75));
        let rgb = color.rgb;
        let (w, h) = (self.frame.half(0.045, 0.07), self.px(0.1));
        let top = hand[1] + self.px(0.05);
        for side in [-1.0f32, 1.0] {
            let handle = smooth(
                &[
                    [hand[0] + side * 0.55 * w, top + self.px(0.006)],
                    [hand[0] + side * 0.35 * w, hand[1] + self.px(0.01)],
                    [hand[0], hand[1]],
                ],
                4,
            );
            canvas.line(
                open_line(&handle).as_ref(),
                darker(rgb, 0.7),
                1.0,
                self.px(0.008),
                None,
            );
        }
        let path = polygon(&[
            [hand[0] - 0.82 * w, top],
            [hand[0] + 0.82 * w, top],
            [hand[0] + w, top + 0.9 * h],
            [hand[0] + 0.9 * w, top + h],
            [hand[0] - 0.9 * w, top + h],
            [hand[0] - w, top + 0.9 * h],
        ]);
        canvas.solid(path.as_ref(), rgb, self.label(part::BAG, group::BAG));
        self.shade(
            canvas,
            path.as_ref(),
            [hand[0] - w, top],
            [hand[0] + w, top],
            0.8,
        );
        let flap = open_line(&[
            [hand[0] - 0.8 * w, top + 0.32 * h],
            [hand[0], top + 0.42 * h],
            [hand[0] + 0.8 * w, top + 0.32 * h],
        ]);
        canvas.line(flap.as_ref(), darker(rgb, 0.5), 0.7, self.px(0.004), None);
        let clasp = ellipse(
            [hand[0], top + 0.42 * h],
            self.px(0.007),
            self.px(0.007),
            0.0,
        );
        canvas.solid(clasp.as_ref(), [0.85, 0.75, 0.4], None);
        self.contour(canvas, path.as_ref(), rgb);
    }

    pub(super) fn backpack(&self, canvas: &mut Canvas) {
        let Some((BagKind::Backpack, color)) = self.person.bag else {
            return;
        };
        let rgb = color.rgb;
        let depth = 0.052;
        let rows: Vec<(Point2, f32)> = [
            (1.02, 0.05, 0.6),
            (0.95, 0.078, 0.9),
            (0.75, 0.086, 1.0),
            (0.45, 0.09, 1.05),
            (0.25, 0.088, 1.0),
            (0.2, 0.075, 0.9),
        ]
        .into_iter()
        .map(|(t, a, b)| {
            let s = self.section(0.6, self.person.upper.ease);
            let center = add(self.spine(t), [0.0, 0.0, s.z - s.b - depth * 0.75]);
            (self.frame.point(center), self.frame.half(a, depth * b))
        })
        .collect();
        let path = loft(&rows, self.px(0.012), self.px(0.008));
        canvas.solid(path.as_ref(), rgb, self.label(part::BAG, group::BAG));
        let (center, half) = rows[2];
        self.shade(
            canvas,
            path.as_ref(),
            [center[0] - half, center[1]],
            [center[0] + half, center[1]],
            1.0,
        );
        self.contour(canvas, path.as_ref(), rgb);
        if self.frame.yaw.cos() < 0.1 {
            let low = rows[4];
            let squash = low.1 / self.px(0.09);
            let pocket = rect_at(
                [low.0[0], low.0[1] - self.px(0.03)],
                self.px(0.06) * squash,
                self.px(0.04),
            );
            canvas.line(pocket.as_ref(), darker(rgb, 0.5), 0.8, self.px(0.005), None);
            let zip = smooth(
                &[
                    [center[0] - half * 0.8, center[1] + self.px(0.02)],
                    [center[0] - half * 0.6, center[1] - self.px(0.045)],
                    [center[0] + half * 0.6, center[1] - self.px(0.045)],
                    [center[0] + half * 0.8, center[1] + self.px(0.02)],
                ],
                4,
            );
            canvas.line(
                open_line(&zip).as_ref(),
                darker(rgb, 0.5),
                0.8,
                self.px(0.005),
                None,
            );
        }
    }

    /// Draws a strap on the trunk: color, shade and label.
    pub(super) fn strap(
        &self,
        canvas: &mut Canvas,
        points: &[(f32, f32)],
        width: f32,
        rgb: [f32; 3],
    ) {
        let ease = self.person.upper.ease + 0.004;
        // Edges of the band rather than a stroke, so that the label map gets it too.
        let seen: Vec<(Point2, f32)> = points
            .iter()
            .map(|(t, azimuth)| self.surface(*t, *azimuth, ease))
            .filter(|s| s.1 > 0.0)
            .map(|s| (s.0, self.px(width) / 2.0))
            .collect();
        if seen.len() < 2 {
            return;
        }
        let path = tube(&seen, false, false);
        canvas.solid(path.as_ref(), rgb, self.label(part::BAG, group::BAG));
        canvas.line(path.as_ref(), darker(rgb, 0.4), 0.6, self.px(0.003), None);
    }

    pub(super) fn straps(&self, canvas: &mut Canvas) {
        match self.person.bag {
            Some((BagKind::Backpack, color)) => {
                for side in [-1.0f32, 1.0] {
                    let run = [
                        (1.08, 0.95),
                        (1.0, 0.72),
                        (0.88, 0.66),
                        (0.72, 0.74),
                        (0.6, 0.95),
                        (0.52, 1.2),
                    ];
                    self.strap(
                        canvas,
                        &run.map(|(t, azimuth)| (t, side * azimuth)),
                        0.026,
                        darker(color.rgb, 0.85),
                    );
                }
            }
            Some((BagKind::Shoulder, color)) => {
                // From the far shoulder across the chest, and across the back.
                let side = self.person.bag_side;
                let rgb = darker(color.rgb, 0.85);
                let run = [
                    (1.06, -0.75),
                    (0.96, -0.55),
                    (0.8, -0.3),
                    (0.6, 0.1),
                    (0.4, 0.55),
                    (0.22, 0.95),
                    (0.08, 1.35),
                ];
                self.strap(
                    canvas,
                    &run.map(|(t, azimuth)| (t, side * azimuth)),
                    0.017,
                    rgb,
                );
                self.strap(
                    canvas,
                    &run.map(|(t, azimuth)| (t, side * (PI - azimuth))),
                    0.017,
                    rgb,
                );
            }
            _ => {}
        }
    }

    pub(super) fn side_bag_center(&self) -> Point3 {
        let s = self.section(0.05, self.person.upper.ease);
        add(
            self.spine(0.0),
            [self.person.bag_side * (s.a + 0.018), 0.012, -0.01],
        )
    }

    pub(super) fn side_bag_nearness(&self) -> Option<f32> {
        matches!(self.person.bag, Some((BagKind::Shoulder, _)))
            .then(|| self.frame.near(self.side_bag_center()))
    }

    pub(super) fn side_bag(&self, canvas: &mut Canvas) {
        let Some((_, color)) = self.person.bag else {
            return;
        };
        let rgb = color.rgb;
        let center = self.frame.point(self.side_bag_center());
        let (w, h) = (self.frame.half(0.034, 0.075), self.px(0.055));
        let path = loft(
            &[
                ([center[0], center[1] - h], w * 0.86),
                ([center[0], center[1] - 0.5 * h], w * 0.97),
                ([center[0], center[1] + 0.5 * h], w),
                ([center[0], center[1] + 0.95 * h], w * 0.92),
            ],
            self.px(0.006),
            self.px(0.008),
        );
        canvas.solid(path.as_ref(), rgb, self.label(part::BAG, group::BAG));
        self.shade(
            canvas,
            path.as_ref(),
            [center[0] - w, center[1]],
            [center[0] + w, center[1]],
            0.9,
        );
        let flap = smooth(
            &[
                [center[0] - 0.9 * w, center[1] - 0.7 * h],
                [center[0], center[1] + 0.15 * h],
                [center[0] + 0.9 * w, center[1] - 0.7 * h],
            ],
            5,
        );
        canvas.line(
            open_line(&flap).as_ref(),
            darker(rgb, 0.45),
            0.7,
            self.px(0.004),
            None,
        );
        self.contour(canvas, path.as_ref(), rgb);
    }

    pub(super) fn carried(&self, canvas: &mut Canvas, i: usize, kind: Carried, color: Color) {
        let k = &self.skeleton;
        let hand = self.frame.point(mix(k.wrists[i], k.hands[i], 0.6));
        let rgb = color.rgb;
        let label = Some(PixelLabel::BACKGROUND);
        let half = |a: f32, b: f32| self.frame.half(a, b);
        let path = match kind {
            Carried::Phone => {
                let tip = self.frame.point(k.hands[i]);
                let w = half(0.02, 0.008);
                let path = rect_at([tip[0], tip[1] - self.px(0.012)], w, self.px(0.034));
                canvas.solid(path.as_ref(), [0.08, 0.08, 0.1], label);
                let screen = rect_at([tip[0], tip[1] - self.px(0.012)], w * 0.75, self.px(0.028));
                if self.frame.yaw.cos() < 0.2 {
                    canvas.solid(screen.as_ref(), [0.6, 0.75, 0.9], None);
                }
                path
            }
            Carried::Cup => {
                let (w, h) = (self.px(0.02), self.px(0.034));
                let top = [hand[0], hand[1] - h];
                let path = polygon(&[
                    [top[0] - w, top[1]],
                    [top[0] + w, top[1]],
                    [top[0] + 0.72 * w, hand[1] + h],
                    [top[0] - 0.72 * w, hand[1] + h],
                ]);
                canvas.solid(path.as_ref(), rgb, label);
                let lid = rect_at(top, w * 1.1, self.px(0.005));
                canvas.solid(lid.as_ref(), [0.95, 0.95, 0.93], label);
                path
            }
            Carried::Paper => {
                let w = half(0.05, 0.035);
                let path = rect_at([hand[0], hand[1] - self.px(0.02)], w, self.px(0.045));
                canvas.solid(path.as_ref(), towards(rgb, [0.97, 0.97, 0.94], 0.75), label);
                for line in 0..4 {
                    let y = hand[1] - self.px(0.05 - 0.018 * line as f32);
                    let row = open_line(&[[hand[0] - 0.7 * w, y], [hand[0] + 0.6 * w, y]]);
                    canvas.line(row.as_ref(), [0.3, 0.3, 0.35], 0.7, self.px(0.004), None);
                }
                path
            }
            Carried::Umbrella => {
                // Closed, held in the middle.
                let d = [self.light.signum() * self.px(0.01), self.px(0.2)];
                let run = [
                    (
                        [hand[0] - 0.35 * d[0], hand[1] - 0.35 * d[1]],
                        self.px(0.008),
                    ),
                    ([hand[0], hand[1]], self.px(0.016)),
                    ([hand[0] + 0.5 * d[0], hand[1] + 0.5 * d[1]], self.px(0.017)),
                    ([hand[0] + d[0], hand[1] + d[1]], self.px(0.004)),
                ];
                let path = tube(&run, true, true);
                canvas.solid(path.as_ref(), rgb, label);
                self.shade_tube(canvas, path.as_ref(), run[1], run[3], 0.8);
                let top = run[0].0;
                let hook = [
                    top,
                    [top[0], top[1] - self.px(0.02)],
                    [top[0] + self.px(0.014), top[1] - self.px(0.03)],
                    [top[0] + self.px(0.024), top[1] - self.px(0.016)],
                ];
                canvas.line(
                    open_line(&smooth(&hook, 4)).as_ref(),
                    [0.3, 0.2, 0.12],
                    1.0,
                    self.px(0.008),
                    None,
                );
                path
            }
            Carried::Box => {
                let other = self.frame.point(mix(k.wrists[1 - i], k.hands[1 - i], 0.6));
                let center = mix2(hand, other, 0.5);
                let w = half(0.085, 0.06);
                let card = towards(rgb, [0.72, 0.55, 0.36], 0.6);
                let path = rect_at([center[0], center[1] - self.px(0.02)], w, self.px(0.055));
                canvas.solid(path.as_ref(), card, label);
                self.shade(
                    canvas,
                    path.as_ref(),
                    [center[0] - w, center[1]],
                    [center[0] + w, center[1]],
                    0.6,
                );
                let tape = rect_at([center[0], center[1] - self.px(0.02)], w, self.px(0.007));
                canvas.solid(tape.as_ref(), towards(card, [0.95, 0.9, 0.75], 0.5), None);
                path
            }
        };
        self.contour(canvas, path.as_ref(), rgb);
    }
}
