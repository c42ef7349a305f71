//! Hair on the head, and long hair below it.

use std::f32::consts::PI;

use clasp_data::part;

use super::appearance::HairStyle;
use super::figure::{Figure, mix2, table};
use super::group;
use super::head_geometry::HeadGeometry;
use super::pose::{add, mix};
use crate::canvas::{Canvas, Point2, ellipse, loft, open_line, smooth, tube};
use crate::color::{darker, towards};

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

/// Draws the hair on the head.
pub(super) fn hair(head: &HeadGeometry<'_>, canvas: &mut Canvas) {
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
