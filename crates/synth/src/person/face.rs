//! The face: eyes, nose, mouth, beard.

use std::f32::consts::PI;

use clasp_data::Rng;
use rand::RngExt;

use super::appearance::{Age, Gender};
use super::head_geometry::HeadGeometry;
use crate::canvas::{Canvas, Point2, ellipse, open_line, polygon};
use crate::color::{darker, towards};

/// Draws the face on a skull that is drawn; `nose` is its outline.
pub(super) fn face(
    head: &HeadGeometry<'_>,
    canvas: &mut Canvas,
    nose: &[Point2; 4],
    rng: &mut Rng,
) {
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
