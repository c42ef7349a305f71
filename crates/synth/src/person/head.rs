//! Neck and head, with everything on them.

use clasp_data::{Rng, part};

use super::appearance::{Age, Gender, HairStyle};
use super::face::face;
use super::figure::{Figure, mix2};
use super::group;
use super::hair::hair;
use super::head_geometry::HeadGeometry;
use super::headwear::glasses;
use super::pose::add;
use crate::canvas::{Canvas, Point2, ellipse, gradient, loft, open_line, polygon, smooth, tube};
use crate::color::{SHADOW, darker};

/// Draws the neck and a scarf.
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

/// Draws the head: ears, skull, face, hair, glasses.
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
