//! The head: skull, face, ears, hair, headwear, glasses.
//!
//! Head coordinates: unit = head height, middle of the head at 0, x to the person's left, y up, z
//! forward.

use std::f32::consts::PI;

use rand::RngExt;
use tiny_skia::Path;

use crate::canvas::{Canvas, Point2, ellipse, gradient, loft, open_line, polygon, smooth, tube};
use crate::color::{SHADOW, darker, towards};
use crate::person::appearance::{Age, Gender, Glasses, HairStyle, Headwear};
use crate::person::figure::{Figure, mix2, table};
use crate::person::group;
use crate::person::pose::{BodyProjection, Point3, add, mix, scaled};
use clasp_data::Rng;
use clasp_data::part;

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
struct HeadGeometry<'a> {
    figure: &'a Figure<'a>,
    frame: BodyProjection,
    bow: f32,
    unit: f32,
    jaw: f32,
}

impl<'a> HeadGeometry<'a> {
    fn new(figure: &'a Figure<'a>) -> Self {
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

    fn section(&self, u: f32) -> [f32; 3] {
        let [a, b, z] = table(&SKULL, u);
        let jaw = if u < 0.0 {
            1.0 + (self.jaw - 1.0) * (-u / 0.3).min(1.0)
        } else {
            1.0
        };
        [a * jaw, b, z]
    }

    /// Pixel and nearness of a point in head coordinates.
    fn place(&self, v: Point3) -> (Point2, f32) {
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

    fn px(&self, heads: f32) -> f32 {
        heads * self.unit * self.frame.scale
    }

    /// Surface point at azimuth and height, `out` above the skin, and how squarely it faces the
    /// camera.
    fn surface(&self, azimuth: f32, u: f32, out: f32) -> (Point2, f32) {
        let [a, b, z] = self.section(u);
        let (sin, cos) = azimuth.sin_cos();
        let (p, _) = self.place([(a + out) * sin, u, z + (b + out) * cos]);
        let (ys, yc) = self.frame.yaw.sin_cos();
        let (nx, nz) = (sin / a, cos / b);
        (p, (-nx * ys + nz * yc) / nx.hypot(nz))
    }

    fn row(&self, u: f32, out: f32) -> (Point2, f32) {
        let [a, b, z] = self.section(u);
        (
            self.place([0.0, u, z]).0,
            self.frame
                .half(self.unit * (a + out), self.unit * (b + out)),
        )
    }

    /// The azimuth at the right edge of the picture of the head.
    fn edge(&self) -> f32 {
        let [a, b, _] = self.section(0.1);
        (a * self.frame.yaw.cos()).atan2(b * self.frame.yaw.sin())
    }

    /// The part of the head above a line `low(azimuth)`, standing `out` off the skin.
    fn cap(&self, low: impl Fn(f32) -> f32, out: f32) -> Option<Path> {
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

    fn shade(&self, canvas: &mut Canvas, path: Option<&Path>, strength: f32) {
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

pub(crate) fn neck(figure: &Figure<'_>, canvas: &mut Canvas) {
    let person = figure.person;
    let s = &figure.skeleton;
    let r = 0.031
        * (0.6 + 0.4 * person.body.build)
        * match (person.gender, person.age) {
            (_, Age::Child) => 0.95,
            (Gender::Male, _) => 1.12,
            (Gender::Female, _) => 0.95,
        };
    let frame = &figure.frame;
    let head = HeadGeometry::new(figure);
    let top = head.place([0.0, -0.2, -0.08]).0;
    let base = frame.point(add(s.neck, [0.0, 0.035, -0.004]));
    let run = [
        (base, figure.px(r * 1.1)),
        (mix2(base, top, 0.5), figure.px(r)),
        (top, figure.px(r)),
    ];
    let path = tube(&run, true, true);
    canvas.solid(
        path.as_ref(),
        person.skin,
        figure.label(part::HEAD, group::HEAD),
    );
    figure.shade(
        canvas,
        path.as_ref(),
        [base[0] - figure.px(r), base[1]],
        [base[0] + figure.px(r), base[1]],
        0.9,
    );
    // The chin shades the throat.
    let shade = gradient(
        top,
        base,
        &[
            (0.0, SHADOW, 0.5),
            (0.45, SHADOW, 0.42),
            (1.0, SHADOW, 0.05),
        ],
    );
    canvas.fill(path.as_ref(), shade, None);
    if let Some(scarf) = person.scarf {
        let center = frame.point(add(s.neck, [0.0, 0.03, 0.008]));
        let (w, h) = (frame.half(0.052, 0.056), figure.px(0.028));
        let path = ellipse(center, w, h, 0.0);
        canvas.solid(
            path.as_ref(),
            scarf.rgb,
            figure.label(part::UPPER_BODY, group::TORSO),
        );
        let (end, facing) = figure.surface(0.85, 0.22, person.upper.ease + 0.01);
        if facing > 0.1 {
            let tail = tube(
                &[(center, figure.px(0.02)), (end, figure.px(0.021))],
                false,
                false,
            );
            canvas.solid(
                tail.as_ref(),
                darker(scarf.rgb, 0.9),
                figure.label(part::UPPER_BODY, group::TORSO),
            );
            figure.contour(canvas, tail.as_ref(), scarf.rgb);
        }
        figure.shade(
            canvas,
            path.as_ref(),
            [center[0] - w, center[1]],
            [center[0] + w, center[1]],
            0.9,
        );
        let fold = open_line(&smooth(
            &[
                [center[0] - 0.9 * w, center[1]],
                [center[0], center[1] + 0.5 * h],
                [center[0] + 0.9 * w, center[1]],
            ],
            4,
        ));
        canvas.line(fold.as_ref(), SHADOW, 0.3, figure.px(0.005), None);
        figure.contour(canvas, path.as_ref(), scarf.rgb);
    }
}

pub(crate) fn head(figure: &Figure<'_>, canvas: &mut Canvas, rng: &mut Rng) {
    let head = HeadGeometry::new(figure);
    let person = figure.person;
    let label = figure.label(part::HEAD, group::HEAD);
    let skin = person.skin;
    let rows: Vec<(Point2, f32)> = [
        0.5, 0.46, 0.39, 0.28, 0.14, 0.0, -0.12, -0.24, -0.36, -0.45, -0.5,
    ]
    .iter()
    .map(|u| head.row(*u, 0.0))
    .collect();
    let skull = loft(&rows, head.px(0.01), head.px(0.02));
    let ear = |canvas: &mut Canvas, side: f32| {
        let (p, facing) = head.surface(side * 1.62, -0.03, 0.025);
        if facing > -0.35
            && !matches!(
                person.hair.style,
                HairStyle::Long | HairStyle::Bob | HairStyle::Afro
            )
        {
            let squash = 0.045 + 0.03 * facing.max(0.0);
            let path = ellipse(p, head.px(squash), head.px(0.095), 0.0);
            canvas.solid(path.as_ref(), skin, label);
            canvas.glaze(path.as_ref(), SHADOW, 0.14, None);
            figure.contour(canvas, path.as_ref(), skin);
        }
    };
    for side in [-1.0, 1.0] {
        if head.surface(side * 1.62, -0.03, 0.0).1 <= 0.3 {
            ear(canvas, side);
        }
    }
    canvas.solid(skull.as_ref(), skin, label);
    // The nose stands out in profile; seen from the front the shape is empty and only its shade
    // shows.
    let [_, b, z] = head.section(-0.13);
    let nose = [
        head.place([
            0.0,
            0.07,
            head.section(0.07)[1] + head.section(0.07)[2] - 0.01,
        ])
        .0,
        head.place([0.0, -0.12, z + b + 0.095]).0,
        head.place([0.0, -0.165, z + b + 0.07]).0,
        head.place([
            0.0,
            -0.19,
            head.section(-0.19)[1] + head.section(-0.19)[2] - 0.01,
        ])
        .0,
    ];
    let front = head.frame.yaw.cos();
    if front > -0.25 {
        canvas.solid(polygon(&nose).as_ref(), skin, label);
    }
    head.shade(canvas, skull.as_ref(), 0.85);
    figure.contour(canvas, skull.as_ref(), skin);
    if front > -0.25 {
        face(&head, canvas, &nose, rng);
    }
    for side in [-1.0, 1.0] {
        if head.surface(side * 1.62, -0.03, 0.0).1 > 0.3 {
            ear(canvas, side);
        }
    }
    hair(&head, canvas);
    glasses(&head, canvas);
}

fn face(head: &HeadGeometry<'_>, canvas: &mut Canvas, nose: &[Point2; 4], rng: &mut Rng) {
    let figure = head.figure;
    let person = figure.person;
    let skin = person.skin;
    let dark = darker(skin, 0.45);
    let old = person.age == Age::Older;
    for side in [-1.0f32, 1.0] {
        let (eye, facing) = head.surface(side * 0.42, 0.02, 0.0);
        if facing < 0.12 {
            continue;
        }
        let squash = facing.clamp(0.35, 1.0);
        // The socket lies in shade; then the white, the iris, the lid.
        let socket = ellipse(
            [eye[0], eye[1] - head.px(0.01)],
            head.px(0.095) * squash,
            head.px(0.06),
            0.0,
        );
        canvas.glaze(socket.as_ref(), dark, 0.22, None);
        let white = ellipse(eye, head.px(0.062) * squash, head.px(0.03), 0.0);
        canvas.solid(white.as_ref(), [0.95, 0.94, 0.92], None);
        let look = head.surface(side * 0.42 + 0.02, 0.02, 0.0).0;
        canvas.solid(
            ellipse(look, head.px(0.032) * squash.max(0.6), head.px(0.034), 0.0).as_ref(),
            [0.13, 0.09, 0.07],
            None,
        );
        let lid: Vec<Point2> = [-0.16, -0.05, 0.06, 0.16]
            .map(|d| {
                head.surface(side * 0.42 + d, 0.055 - 0.12 * d * d * 4.0, 0.0)
                    .0
            })
            .to_vec();
        canvas.line(
            open_line(&lid).as_ref(),
            darker(skin, 0.25),
            0.8,
            head.px(0.018),
            None,
        );
        let brow: Vec<Point2> = [-0.22, 0.0, 0.2]
            .map(|d| {
                head.surface(side * 0.43 + d, 0.125 - 0.15 * d * side * d.abs(), 0.01)
                    .0
            })
            .to_vec();
        let rgb = towards(person.hair.rgb, [0.1, 0.07, 0.05], 0.35);
        canvas.line(
            open_line(&brow).as_ref(),
            rgb,
            0.9,
            head.px(if person.gender == Gender::Male {
                0.036
            } else {
                0.024
            }),
            None,
        );
        if old {
            let line: Vec<Point2> = [(0.25, -0.2), (0.4, -0.3)]
                .map(|(a, u)| head.surface(side * a, u, 0.0).0)
                .to_vec();
            canvas.line(open_line(&line).as_ref(), dark, 0.5, head.px(0.016), None);
        }
    }
    // Side of the nose away from the light, and its underside.
    let dark_side = -figure.light.signum();
    let ridge = [
        head.surface(0.12 * dark_side, 0.04, 0.0).0,
        nose[1],
        head.surface(0.2 * dark_side, -0.17, 0.0).0,
    ];
    if head.frame.yaw.cos() > 0.3 {
        canvas.glaze(polygon(&ridge).as_ref(), dark, 0.3, None);
    }
    let under: Vec<Point2> = [-0.16, 0.0, 0.16]
        .map(|a| head.surface(a, -0.185, 0.02).0)
        .to_vec();
    canvas.line(open_line(&under).as_ref(), dark, 0.55, head.px(0.022), None);
    canvas.line(
        open_line(&nose[0..3]).as_ref(),
        dark,
        0.4 * (1.0 - head.frame.yaw.cos().abs()),
        head.px(0.02),
        None,
    );
    // The mouth; women's lips are drawn fuller.
    let lips = if person.gender == Gender::Female {
        towards(skin, [0.72, 0.2, 0.22], 0.6)
    } else {
        towards(skin, [0.5, 0.2, 0.18], 0.45)
    };
    let smile = rng.random_range(-0.01..0.03f32);
    let mouth: Vec<Point2> = [-0.34, -0.17, 0.0, 0.17, 0.34]
        .iter()
        .map(|a| (head.surface(*a, -0.29 + smile * (a.abs() / 0.34), 0.0), *a))
        .filter(|(s, _)| s.1 > 0.1)
        .map(|(s, _)| s.0)
        .collect();
    canvas.line(
        open_line(&mouth).as_ref(),
        lips,
        0.95,
        head.px(if person.gender == Gender::Female {
            0.05
        } else {
            0.034
        }),
        None,
    );
    canvas.line(
        open_line(&mouth).as_ref(),
        darker(lips, 0.5),
        0.6,
        head.px(0.012),
        None,
    );
    if person.hair.beard {
        let edge = head.edge();
        let mut outline: Vec<Point2> = Vec::new();
        const STEPS: usize = 12;
        let mut low: Vec<Point2> = Vec::new();
        for k in 0..=STEPS {
            let azimuth = edge - PI + PI * k as f32 / STEPS as f32;
            let away = azimuth.sin().atan2(azimuth.cos()).abs();
            if away > 1.5 {
                continue;
            }
            // High on the cheeks, lower around the mouth.
            let high = if away < 0.4 {
                -0.235
            } else {
                -0.235 + 0.26 * ((away - 0.4) / 1.1).powf(1.3)
            };
            outline.push(head.surface(azimuth, high, 0.012).0);
            low.push(head.surface(azimuth, -0.5 + 0.05 * (away / 1.5), 0.03).0);
        }
        low.reverse();
        outline.extend(low);
        if outline.len() > 4 {
            canvas.glaze(polygon(&outline).as_ref(), person.hair.rgb, 0.82, None);
            canvas.line(open_line(&mouth).as_ref(), lips, 0.95, head.px(0.03), None);
        }
    }
}

/// Height of the hair's lower edge by azimuth (degrees from the front).
fn hairline(style: HairStyle, azimuth: f32) -> f32 {
    let away = azimuth.sin().atan2(azimuth.cos()).abs().to_degrees();
    let rows: &[(f32, [f32; 1])] = match style {
        HairStyle::Bald => &[(0.0, [0.6]), (180.0, [0.6])],
        HairStyle::Short | HairStyle::Bun | HairStyle::Ponytail => &[
            (0.0, [0.27]),
            (30.0, [0.25]),
            (52.0, [0.17]),
            (64.0, [0.06]),
            (74.0, [-0.06]),
            (84.0, [-0.03]),
            (96.0, [0.06]),
            (108.0, [-0.04]),
            (125.0, [-0.2]),
            (150.0, [-0.3]),
            (180.0, [-0.33]),
        ],
        HairStyle::Bob => &[
            (0.0, [0.2]),
            (26.0, [0.17]),
            (44.0, [0.02]),
            (56.0, [-0.25]),
            (70.0, [-0.4]),
            (100.0, [-0.46]),
            (180.0, [-0.46]),
        ],
        HairStyle::Long => &[
            (0.0, [0.27]),
            (24.0, [0.22]),
            (44.0, [0.02]),
            (58.0, [-0.3]),
            (75.0, [-0.46]),
            (180.0, [-0.5]),
        ],
        HairStyle::Afro => &[
            (0.0, [0.24]),
            (35.0, [0.2]),
            (55.0, [0.02]),
            (70.0, [-0.2]),
            (100.0, [-0.3]),
            (180.0, [-0.36]),
        ],
    };
    table(rows, away)[0]
}

fn hair(head: &HeadGeometry<'_>, canvas: &mut Canvas) {
    let figure = head.figure;
    let hair = &figure.person.hair;
    let label = figure.label(part::HEAD, group::HEAD);
    if hair.style == HairStyle::Bald {
        let (crown, half) = head.row(0.3, 0.0);
        let shine = ellipse(
            [
                crown[0] + figure.light * half * 0.35,
                crown[1] - head.px(0.05),
            ],
            half * 0.3,
            head.px(0.06),
            0.0,
        );
        canvas.glaze(shine.as_ref(), [1.0; 3], 0.25, None);
        return;
    }
    let out = match hair.style {
        HairStyle::Short => 0.025 + 0.05 * hair.volume,
        HairStyle::Afro => 0.13 + 0.08 * hair.volume,
        HairStyle::Bun | HairStyle::Ponytail => 0.03,
        _ => 0.05 + 0.03 * hair.volume,
    };
    let style = hair.style;
    let path = head.cap(|azimuth| hairline(style, azimuth), out);
    canvas.solid(path.as_ref(), hair.rgb, label);
    head.shade(canvas, path.as_ref(), 0.9);
    // Strands from the crown: lighter and darker lines.
    if let Some(mask) = canvas.mask(path.as_ref()) {
        let edge = head.edge();
        for k in 1..8 {
            let azimuth = edge - PI + PI * k as f32 / 8.0;
            let points: Vec<Point2> = [0.47, 0.3, 0.1, -0.1, -0.35]
                .map(|u| head.surface(azimuth, u, out).0)
                .to_vec();
            let rgb = if k % 2 == 0 {
                towards(hair.rgb, [1.0, 0.95, 0.85], 0.3)
            } else {
                darker(hair.rgb, 0.5)
            };
            canvas.line(
                open_line(&smooth(&points, 3)).as_ref(),
                rgb,
                0.3,
                head.px(0.03),
                Some(&mask),
            );
        }
        let (crown, half) = head.row(0.32, out);
        let shine = ellipse(
            [crown[0] + figure.light * half * 0.35, crown[1]],
            half * 0.42,
            head.px(0.07),
            0.0,
        );
        canvas.glaze(
            shine.as_ref(),
            towards(hair.rgb, [1.0; 3], 0.7),
            0.22,
            Some(&mask),
        );
    }
    figure.contour(canvas, path.as_ref(), hair.rgb);
    if hair.style == HairStyle::Bun {
        let (p, _) = head.place([0.0, 0.36, -0.42]);
        let bun = ellipse(p, head.px(0.17), head.px(0.15), 0.0);
        // From the front only what stands above the crown would show.
        if head.frame.yaw.cos() < 0.75 {
            canvas.solid(bun.as_ref(), hair.rgb, label);
            figure.shade(
                canvas,
                bun.as_ref(),
                [p[0] - head.px(0.17), p[1]],
                [p[0] + head.px(0.17), p[1]],
                0.9,
            );
            figure.contour(canvas, bun.as_ref(), hair.rgb);
        }
    }
}

/// Hair below the head: behind the shoulders, or down the back when seen from there.
pub(crate) fn hair_fall(figure: &Figure<'_>, canvas: &mut Canvas) {
    let hair = &figure.person.hair;
    let head = HeadGeometry::new(figure);
    let label = figure.label(part::HEAD, group::HEAD);
    let s = &figure.skeleton;
    let back = figure.section(0.95, figure.person.upper.ease);
    match hair.style {
        HairStyle::Long => {
            let length = 0.45 + 0.5 * hair.volume;
            let fall = head.unit * length;
            let nape = add(s.neck, [0.0, 0.06, back.z - back.b * 0.55]);
            let end = add(
                s.neck,
                [
                    0.0,
                    0.04 - fall,
                    back.z - back.b - 0.012 - 0.25 * fall * figure.pose.lean.sin(),
                ],
            );
            let width = head.unit * (0.37 + 0.05 * hair.volume);
            let (top, top_half) = head.row(0.05, 0.055);
            let (mid, mid_half) = head.row(-0.3, 0.0);
            let rows = [
                (top, top_half),
                (
                    [mid[0] * 0.6 + figure.frame.point(nape)[0] * 0.4, mid[1]],
                    mid_half.max(figure.frame.half(width, 0.45 * width)) * 0.98,
                ),
                (
                    figure.frame.point(nape),
                    figure.frame.half(width * 1.02, 0.5 * width),
                ),
                (
                    figure.frame.point(mix(nape, end, 0.55)),
                    figure.frame.half(width, 0.4 * width),
                ),
                (
                    figure.frame.point(end),
                    figure.frame.half(width * 0.72, 0.26 * width),
                ),
            ];
            let path = loft(&rows, 0.0, figure.px(0.012));
            canvas.solid(path.as_ref(), hair.rgb, label);
            let left = [rows[2].0[0] - rows[2].1, rows[2].0[1]];
            let right = [rows[2].0[0] + rows[2].1, rows[2].0[1]];
            figure.shade(canvas, path.as_ref(), left, right, 0.8);
            if let Some(mask) = canvas.mask(path.as_ref()) {
                for k in -3..=3 {
                    let u = k as f32 / 3.6;
                    let points: Vec<Point2> =
                        rows.iter().map(|r| [r.0[0] + u * r.1, r.0[1]]).collect();
                    let rgb = if k % 2 == 0 {
                        towards(hair.rgb, [1.0, 0.95, 0.85], 0.3)
                    } else {
                        darker(hair.rgb, 0.45)
                    };
                    canvas.line(
                        open_line(&smooth(&points, 3)).as_ref(),
                        rgb,
                        0.3,
                        head.px(0.03),
                        Some(&mask),
                    );
                }
            }
            if figure.frame.yaw.cos() <= -0.2 {
                // The seam with the cap must not show: only the lower edge gets a contour.
                let edge: Vec<Point2> = rows[2..]
                    .iter()
                    .map(|r| [r.0[0] - r.1, r.0[1]])
                    .chain(rows[2..].iter().rev().map(|r| [r.0[0] + r.1, r.0[1]]))
                    .collect();
                canvas.line(
                    open_line(&smooth(&edge, 4)).as_ref(),
                    darker(hair.rgb, 0.35),
                    0.45,
                    figure.px(0.0032),
                    None,
                );
            } else {
                figure.contour(canvas, path.as_ref(), hair.rgb);
            }
        }
        HairStyle::Ponytail => {
            let root = head.place([0.0, 0.12, -0.44]);
            let tail_end = add(
                s.neck,
                [
                    0.02 * figure.light,
                    0.03 - 0.25 * head.unit * (1.0 + hair.volume),
                    back.z - back.b - 0.025,
                ],
            );
            let end = figure.frame.point(tail_end);
            let out = head.place([0.0, 0.05, -0.62]).0;
            let run = [
                (root.0, head.px(0.07)),
                (out, head.px(0.11)),
                (mix2(out, end, 0.6), head.px(0.13)),
                (end, head.px(0.04)),
            ];
            let path = tube(&run, true, true);
            canvas.solid(path.as_ref(), hair.rgb, label);
            figure.shade(
                canvas,
                path.as_ref(),
                [out[0] - head.px(0.13), out[1]],
                [out[0] + head.px(0.13), out[1]],
                0.8,
            );
            figure.contour(canvas, path.as_ref(), hair.rgb);
        }
        _ => {}
    }
}

fn glasses(head: &HeadGeometry<'_>, canvas: &mut Canvas) {
    let kind = head.figure.person.glasses;
    if kind == Glasses::None || head.frame.yaw.cos() < -0.3 {
        return;
    }
    let frame_rgb = [0.07, 0.06, 0.06];
    let mut rims: Vec<Point2> = Vec::new();
    for side in [-1.0f32, 1.0] {
        let (p, facing) = head.surface(side * 0.4, 0.02, 0.03);
        let (ear, ear_facing) = head.surface(side * 1.55, 0.04, 0.02);
        if ear_facing > -0.15 {
            let hinge = head.surface(side * 0.75, 0.04, 0.02).0;
            canvas.line(
                open_line(&[hinge, ear]).as_ref(),
                frame_rgb,
                1.0,
                head.px(0.03),
                None,
            );
        }
        if facing < 0.1 {
            continue;
        }
        let squash = facing.clamp(0.35, 1.0);
        let lens = ellipse(p, head.px(0.118) * squash, head.px(0.085), 0.0);
        match kind {
            Glasses::Dark => canvas.solid(lens.as_ref(), [0.06, 0.06, 0.08], None),
            _ => canvas.glaze(lens.as_ref(), [0.85, 0.92, 1.0], 0.3, None),
        }
        canvas.line(lens.as_ref(), frame_rgb, 0.95, head.px(0.026), None);
        rims.push(p);
    }
    if rims.len() == 2 {
        canvas.line(
            open_line(&rims).as_ref(),
            frame_rgb,
            0.9,
            head.px(0.024),
            None,
        );
    }
}

pub(crate) fn headwear(figure: &Figure<'_>, canvas: &mut Canvas) {
    let Some((kind, color)) = figure.person.headwear else {
        return;
    };
    let head = HeadGeometry::new(figure);
    let label = figure.label(part::HEAD, group::HEAD);
    let rgb = color.rgb;
    let out = if figure.person.hair.style == HairStyle::Afro {
        0.11
    } else {
        0.075
    };
    let brim = |canvas: &mut Canvas, reach: f32, from: f32, to: f32, u: f32| {
        // A flat ring sector around the head, seen from slightly above.
        let mut points: Vec<Point2> = Vec::new();
        const STEPS: usize = 20;
        for k in 0..=STEPS {
            let azimuth = from + (to - from) * k as f32 / STEPS as f32;
            points.push(head.surface(azimuth, u - 0.03, out + reach).0);
        }
        for k in (0..=STEPS).rev() {
            let azimuth = from + (to - from) * k as f32 / STEPS as f32;
            points.push(head.surface(azimuth, u, out * 0.8).0);
        }
        let path = polygon(&points);
        canvas.solid(path.as_ref(), darker(rgb, 0.78), label);
        canvas.line(
            path.as_ref(),
            darker(rgb, 0.35),
            0.6,
            figure.px(0.004),
            None,
        );
    };
    let front = head.frame.yaw.cos();
    match kind {
        Headwear::Cap => {
            if front < -0.3 {
                brim(canvas, 0.3, -0.75, 0.75, 0.2);
            }
            let crown = head.cap(|a| 0.16 + 0.02 * a.cos(), out);
            canvas.solid(crown.as_ref(), rgb, label);
            head.shade(canvas, crown.as_ref(), 1.0);
            figure.contour(canvas, crown.as_ref(), rgb);
            let seam: Vec<Point2> = [0.18, 0.32, 0.47]
                .map(|u| head.surface(0.0, u, out).0)
                .to_vec();
            if front > 0.1 {
                canvas.line(
                    open_line(&seam).as_ref(),
                    darker(rgb, 0.5),
                    0.4,
                    head.px(0.02),
                    None,
                );
            }
            if front >= -0.3 {
                brim(canvas, 0.3, -0.75, 0.75, 0.2);
            }
        }
        Headwear::Beanie => {
            let crown = head.cap(|a| 0.08 - 0.14 * (1.0 - a.cos()) / 2.0, out);
            canvas.solid(crown.as_ref(), rgb, label);
            head.shade(canvas, crown.as_ref(), 1.0);
            let edge = head.edge();
            let fold: Vec<Point2> = (0..=10)
                .map(|k| {
                    let azimuth = edge - PI + PI * k as f32 / 10.0;
                    head.surface(azimuth, 0.22 - 0.14 * (1.0 - azimuth.cos()) / 2.0, out)
                        .0
                })
                .collect();
            canvas.line(open_line(&fold).as_ref(), SHADOW, 0.4, head.px(0.025), None);
            figure.contour(canvas, crown.as_ref(), rgb);
        }
        Headwear::Hat => {
            let crown = head.cap(|_| 0.17, out + 0.02);
            brim(canvas, 0.24, -PI, PI, 0.18);
            canvas.solid(crown.as_ref(), rgb, label);
            head.shade(canvas, crown.as_ref(), 1.0);
            figure.contour(canvas, crown.as_ref(), rgb);
            let edge = head.edge();
            let band: Vec<Point2> = (0..=10)
                .map(|k| {
                    head.surface(edge - PI + PI * k as f32 / 10.0, 0.23, out + 0.02)
                        .0
                })
                .collect();
            canvas.line(
                open_line(&band).as_ref(),
                darker(rgb, 0.45),
                1.0,
                head.px(0.06),
                None,
            );
        }
    }
}
