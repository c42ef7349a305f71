//! Objects around people: houses, trees, cars, poles, signs; shadows; occluders.

use std::f32::consts::PI;

use rand::RngExt;

use crate::canvas::{
    Canvas, PixelLabel, Point2, ellipse, gradient, open_line, polygon, rect, smooth,
};
use crate::color::{SHADOW, darker, dull, from_hsl, gray, towards};
use crate::sampling::jitter;
use clasp_data::Rng;

pub(super) fn house(
    canvas: &mut Canvas,
    x: f32,
    base: f32,
    width: f32,
    height: f32,
    rng: &mut Rng,
) {
    let rgb = from_hsl(
        rng.random_range(8.0..50.0),
        rng.random_range(0.03..0.35),
        rng.random_range(0.4..0.8),
    );
    canvas.solid(rect(x, base - height, width, height).as_ref(), rgb, None);
    let shade = gradient(
        [x, 0.0],
        [x + width, 0.0],
        &[(0.0, SHADOW, 0.0), (1.0, SHADOW, 0.2)],
    );
    canvas.fill(rect(x, base - height, width, height).as_ref(), shade, None);
    let columns = rng.random_range(2..5u32);
    let rows = rng.random_range(3..6u32);
    let (cell_w, cell_h) = (width / columns as f32, height / rows as f32);
    let glass = towards([0.25, 0.32, 0.4], gray(0.65), rng.random());
    let lit = rng.random_range(0.4..0.62f32);
    for r in 0..rows {
        for c in 0..columns {
            let (wx, wy) = (
                x + (c as f32 + 0.22) * cell_w,
                base - height + (r as f32 + 0.2) * cell_h,
            );
            let ground_floor = r + 1 == rows;
            let (ww, wh) = (cell_w * 0.56, cell_h * if ground_floor { 0.8 } else { lit });
            let rgb = if ground_floor {
                darker(glass, 0.75)
            } else {
                glass
            };
            canvas.solid(rect(wx, wy, ww, wh).as_ref(), rgb, None);
            canvas.line(
                rect(wx, wy, ww, wh).as_ref(),
                darker(rgb, 0.6),
                0.6,
                0.8,
                None,
            );
            canvas.glaze(
                polygon(&[[wx, wy], [wx + 0.5 * ww, wy], [wx, wy + 0.7 * wh]]).as_ref(),
                [1.0; 3],
                0.16,
                None,
            );
        }
    }
    canvas.solid(
        rect(x, base - height * 1.0 / rows as f32 - 1.5, width, 2.5).as_ref(),
        darker(rgb, 0.75),
        None,
    );
}

pub(crate) fn tree(
    canvas: &mut Canvas,
    x: f32,
    base: f32,
    height: f32,
    label: Option<PixelLabel>,
    rng: &mut Rng,
) {
    let bark = [0.33, 0.25, 0.18];
    let w = height * 0.035;
    let trunk = polygon(&[
        [x - w, base],
        [x - 0.6 * w, base - 0.6 * height],
        [x + 0.6 * w, base - 0.6 * height],
        [x + w, base],
    ]);
    canvas.solid(trunk.as_ref(), bark, label);
    let hue = rng.random_range(70.0..130.0);
    for k in 0..9 {
        let angle = k as f32 * 2.4;
        let r = height * rng.random_range(0.1..0.17);
        let spread = height * 0.17 * (k as f32 / 9.0).sqrt() * 1.4;
        let center = [
            x + spread * angle.cos(),
            base - 0.74 * height + 0.8 * spread * angle.sin(),
        ];
        let rgb = from_hsl(hue, 0.35, 0.2 + 0.14 * rng.random::<f32>());
        canvas.solid(ellipse(center, r, r * 0.9, 0.0).as_ref(), rgb, label);
        canvas.glaze(
            ellipse(
                [center[0] - 0.3 * r, center[1] - 0.35 * r],
                0.5 * r,
                0.4 * r,
                0.0,
            )
            .as_ref(),
            [0.9, 1.0, 0.6],
            0.12,
            None,
        );
    }
}

pub(crate) fn car(
    canvas: &mut Canvas,
    x: f32,
    base: f32,
    length: f32,
    label: Option<PixelLabel>,
    rng: &mut Rng,
) {
    let rgb = from_hsl(
        rng.random_range(0.0..360.0),
        rng.random_range(0.05..0.7),
        rng.random_range(0.2..0.75),
    );
    let h = 0.33 * length;
    let at = |u: f32, v: f32| [x + u * length, base - v * h];
    canvas.glaze(
        ellipse([x + 0.5 * length, base], 0.5 * length, 0.06 * length, 0.0).as_ref(),
        SHADOW,
        0.4,
        None,
    );
    let shell = smooth(
        &[
            at(0.0, 0.2),
            at(0.01, 0.5),
            at(0.16, 0.62),
            at(0.28, 0.95),
            at(0.45, 1.02),
            at(0.66, 0.98),
            at(0.8, 0.66),
            at(0.97, 0.54),
            at(1.0, 0.2),
            at(0.5, 0.14),
        ],
        4,
    );
    let path = polygon(&shell);
    let paint = gradient(
        at(0.5, 1.0),
        at(0.5, 0.1),
        &[
            (0.0, towards(rgb, [1.0; 3], 0.3), 1.0),
            (0.5, rgb, 1.0),
            (1.0, darker(rgb, 0.5), 1.0),
        ],
    );
    canvas.fill(path.as_ref(), paint, label);
    let window = polygon(&[
        at(0.22, 0.64),
        at(0.31, 0.9),
        at(0.48, 0.94),
        at(0.65, 0.9),
        at(0.75, 0.64),
    ]);
    canvas.solid(window.as_ref(), [0.2, 0.25, 0.3], None);
    canvas.line(
        open_line(&[at(0.49, 0.94), at(0.5, 0.25)]).as_ref(),
        darker(rgb, 0.5),
        0.8,
        1.2,
        None,
    );
    for u in [0.2, 0.8] {
        let r = 0.085 * length;
        canvas.solid(
            ellipse(at(u, 0.2), r, r, 0.0).as_ref(),
            [0.08, 0.08, 0.09],
            label,
        );
        canvas.solid(
            ellipse(at(u, 0.2), 0.5 * r, 0.5 * r, 0.0).as_ref(),
            gray(0.6),
            None,
        );
    }
}

pub(crate) fn pole(
    canvas: &mut Canvas,
    x: f32,
    base: f32,
    height: f32,
    width: f32,
    label: Option<PixelLabel>,
    rgb: [f32; 3],
) {
    let shape = rect(x - width / 2.0, base - height, width, height);
    canvas.solid(shape.as_ref(), rgb, label);
    let shade = gradient(
        [x - width / 2.0, 0.0],
        [x + width / 2.0, 0.0],
        &[
            (0.0, [1.0; 3], 0.25),
            (0.4, [1.0; 3], 0.0),
            (1.0, SHADOW, 0.5),
        ],
    );
    canvas.fill(shape.as_ref(), shade, None);
}

pub(super) fn lamp(canvas: &mut Canvas, x: f32, base: f32, height: f32) {
    pole(canvas, x, base, height, height * 0.016, None, gray(0.28));
    let head = ellipse([x, base - height], height * 0.035, height * 0.03, 0.0);
    canvas.solid(head.as_ref(), [0.95, 0.92, 0.78], None);
}

pub(super) fn sign(canvas: &mut Canvas, x: f32, base: f32, height: f32, rng: &mut Rng) {
    pole(canvas, x, base, height, height * 0.025, None, gray(0.55));
    let rgb = [[0.78, 0.1, 0.1], [0.1, 0.25, 0.65], [0.9, 0.75, 0.1]][rng.random_range(0..3usize)];
    let center = [x, base - height * 0.92];
    canvas.solid(
        ellipse(center, height * 0.1, height * 0.1, 0.0).as_ref(),
        rgb,
        None,
    );
    canvas.solid(
        rect(
            x - height * 0.055,
            center[1] - height * 0.015,
            height * 0.11,
            height * 0.03,
        )
        .as_ref(),
        [0.95; 3],
        None,
    );
}

/// The shadow on the ground under a person.
pub(crate) fn ground_shadow(canvas: &mut Canvas, at: Point2, width: f32, light: f32) {
    for (grow, alpha) in [(1.5, 0.1), (1.15, 0.14), (0.8, 0.18)] {
        let center = [at[0] - light * 0.35 * width * grow, at[1]];
        canvas.glaze(
            ellipse(center, width * grow, 0.2 * width * grow, 0.0).as_ref(),
            SHADOW,
            alpha,
            None,
        );
    }
}

/// An object between the camera and the person.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Occluder {
    /// A pole at a share of the width.
    Pole(f32),
    /// A car whose roof is at a share of the height.
    Car(f32),
    /// A hedge up to a share of the height.
    Hedge(f32),
    /// A low wall or a counter up to a share of the height.
    Counter(f32),
    /// A wide edge from the left (negative) or the right, covering a share of the width.
    Edge(f32),
}

impl Occluder {
    /// A random occluder that leaves most of the person visible.
    pub fn sample(rng: &mut Rng) -> Self {
        match rng.random_range(0..5u32) {
            0 => Occluder::Pole(rng.random_range(0.15..0.85)),
            1 => Occluder::Car(rng.random_range(0.62..0.85)),
            2 => Occluder::Hedge(rng.random_range(0.65..0.88)),
            3 => Occluder::Counter(rng.random_range(0.62..0.88)),
            _ => {
                let share = rng.random_range(0.12..0.32);
                Occluder::Edge(if rng.random_bool(0.5) { share } else { -share })
            }
        }
    }

    pub(crate) fn draw(self, canvas: &mut Canvas, rng: &mut Rng) {
        let (w, h) = (canvas.width(), canvas.height());
        let label = Some(PixelLabel::BACKGROUND);
        match self {
            Occluder::Pole(at) => pole(
                canvas,
                at * w,
                1.2 * h,
                1.5 * h,
                0.07 * w,
                label,
                gray(rng.random_range(0.25..0.6)),
            ),
            Occluder::Car(roof) => {
                let length = 2.9 * (1.0 - roof) * h + 0.5 * h;
                car(
                    canvas,
                    jitter(rng, 0.5 * w - 0.5 * length, 0.3 * length),
                    roof * h + 0.33 * length,
                    length,
                    label,
                    rng,
                );
            }
            Occluder::Hedge(top) => {
                let hue = rng.random_range(80.0..125.0);
                canvas.solid(
                    rect(-0.2 * w, top * h, 1.4 * w, h).as_ref(),
                    from_hsl(hue, 0.35, 0.25),
                    label,
                );
                for _ in 0..40 {
                    let r = rng.random_range(0.05..0.12) * w;
                    let center = [
                        rng.random_range(-0.1..1.1) * w,
                        top * h + rng.random::<f32>() * (1.05 - top) * h,
                    ];
                    let rgb = from_hsl(
                        hue + jitter(rng, 0.0, 10.0),
                        0.35,
                        rng.random_range(0.18..0.36),
                    );
                    canvas.solid(
                        ellipse(center, r, 0.8 * r, PI * rng.random::<f32>()).as_ref(),
                        rgb,
                        label,
                    );
                }
            }
            Occluder::Counter(top) => {
                let rgb = dull(rng);
                canvas.solid(rect(-0.2 * w, top * h, 1.4 * w, h).as_ref(), rgb, label);
                canvas.solid(
                    rect(-0.2 * w, top * h, 1.4 * w, 0.025 * h).as_ref(),
                    towards(rgb, [1.0; 3], 0.35),
                    None,
                );
                canvas.glaze(
                    rect(-0.2 * w, (top + 0.025) * h, 1.4 * w, 0.02 * h).as_ref(),
                    SHADOW,
                    0.3,
                    None,
                );
            }
            Occluder::Edge(share) => {
                let rgb = dull(rng);
                let width = share.abs() * w;
                let x = if share < 0.0 { -0.3 * w } else { w - width };
                let width = width + 0.3 * w;
                canvas.solid(rect(x, -0.2 * h, width, 1.4 * h).as_ref(), rgb, label);
                let shade = gradient(
                    [x, 0.0],
                    [x + width, 0.0],
                    &[(0.0, SHADOW, 0.0), (1.0, SHADOW, 0.3)],
                );
                canvas.fill(rect(x, -0.2 * h, width, 1.4 * h).as_ref(), shade, None);
            }
        }
    }
}
