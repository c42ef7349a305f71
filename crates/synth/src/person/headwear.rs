//! Glasses, caps, beanies and hats.

use std::f32::consts::PI;

use clasp_data::part;

use super::appearance::{Glasses, HairStyle, Headwear};
use super::figure::Figure;
use super::group;
use super::head_geometry::HeadGeometry;
use crate::canvas::{Canvas, Point2, ellipse, open_line, polygon};
use crate::color::{SHADOW, darker};

/// Draws the glasses, unless the head is turned away.
pub(super) fn glasses(head: &HeadGeometry<'_>, canvas: &mut Canvas) {
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

/// Draws the headwear.
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
