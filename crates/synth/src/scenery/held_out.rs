//! Scenery of the held-out style: a shore, and an aisle between shelves.

use clasp_data::Rng;
use rand::RngExt;

use super::place::GroundPlane;
use crate::canvas::{Canvas, ellipse, gradient, open_line, polygon, rect};
use crate::color::{SHADOW, darker, from_hsl, towards};

/// Draws held-out scenery over the whole canvas. The same generator state gives the same place.
pub(crate) fn draw(canvas: &mut Canvas, ground: GroundPlane, rng: &mut Rng) {
    let (w, h) = (canvas.width(), canvas.height());
    // Larger than the picture, so that a tilt shows no corner.
    let [x, y, w, h] = [-0.3 * w, -0.3 * h, 1.6 * w, 1.6 * h];
    if rng.random_bool(0.5) {
        shore(canvas, ground, [x, y, w, h], rng);
    } else {
        shelves(canvas, ground, [x, y, w, h], rng);
    }
}

/// Sky, sea and sand with parasols.
fn shore(canvas: &mut Canvas, ground: GroundPlane, [x, y, w, h]: [f32; 4], rng: &mut Rng) {
    let m = ground.meter;
    let evening = rng.random::<f32>();
    let high = towards([0.35, 0.62, 0.9], [0.86, 0.5, 0.42], evening);
    let low = towards([0.85, 0.93, 0.96], [0.98, 0.82, 0.6], evening);
    let sea_top = ground.horizon - 0.5 * m;
    let sky = gradient(
        [0.0, 0.0],
        [0.0, sea_top.max(1.0)],
        &[(0.0, high, 1.0), (1.0, low, 1.0)],
    );
    canvas.fill(rect(x, y, w, sea_top - y + 1.0).as_ref(), sky, None);
    let water = from_hsl(
        rng.random_range(175.0..215.0),
        0.5,
        rng.random_range(0.3..0.5),
    );
    canvas.solid(rect(x, sea_top, w, 0.7 * m).as_ref(), water, None);
    for k in 0..6 {
        let row = sea_top + 0.1 * m * (k as f32 + 0.5);
        let from = x + ground.pan * 0.2 + w * rng.random_range(0.0..0.5f32);
        let line = open_line(&[[from, row], [from + w * rng.random_range(0.1..0.4f32), row]]);
        canvas.line(line.as_ref(), [1.0; 3], 0.5, 0.02 * m, None);
    }
    let sand = from_hsl(
        rng.random_range(30.0..48.0),
        0.4,
        rng.random_range(0.6..0.78),
    );
    canvas.solid(
        rect(x, ground.horizon + 0.15 * m, w, h).as_ref(),
        sand,
        None,
    );
    for _ in 0..14 {
        let (px, py) = (
            x + w * rng.random::<f32>(),
            ground.horizon + m * rng.random_range(0.25..1.6f32),
        );
        let bow = open_line(&[[px, py], [px + 0.15 * m, py - 0.03 * m], [px + 0.3 * m, py]]);
        canvas.line(bow.as_ref(), darker(sand, 0.75), 0.6, 0.02 * m, None);
    }
    for _ in 0..rng.random_range(1..4u32) {
        let foot = [
            x + w * rng.random::<f32>() + ground.pan,
            ground.horizon + m * rng.random_range(0.15..0.5f32),
        ];
        let (height, half) = (m * rng.random_range(1.1..1.7f32), 0.7 * m);
        let top = foot[1] - height;
        canvas.line(
            open_line(&[foot, [foot[0], top]]).as_ref(),
            [0.9; 3],
            1.0,
            0.05 * m,
            None,
        );
        let color = from_hsl(rng.random_range(0.0..360.0), 0.7, 0.55);
        for k in 0..4 {
            let at = |k: i32| foot[0] - half + half * 0.5 * k as f32;
            let gore = polygon(&[
                [foot[0], top - 0.1 * m],
                [at(k), top + 0.35 * m],
                [at(k + 1), top + 0.35 * m],
            ]);
            let rgb = if k % 2 == 0 { color } else { [0.95; 3] };
            canvas.solid(gore.as_ref(), rgb, None);
        }
    }
}

/// An aisle: shelves with boxes and bottles behind, large tiles before them.
fn shelves(canvas: &mut Canvas, ground: GroundPlane, [x, y, w, h]: [f32; 4], rng: &mut Rng) {
    let m = ground.meter;
    let back = from_hsl(
        rng.random_range(0.0..360.0),
        0.12,
        rng.random_range(0.25..0.85),
    );
    canvas.solid(rect(x, y, w, ground.horizon - y + 1.0).as_ref(), back, None);
    let step = m * rng.random_range(0.35..0.6f32);
    let mut row = ground.horizon;
    while row > y {
        let mut at = x + (ground.pan % step);
        while at < x + w {
            let width = step * rng.random_range(0.25..0.8f32);
            let height = step * rng.random_range(0.4..0.85f32);
            let saturation = rng.random_range(0.2..0.9f32);
            let rgb = from_hsl(
                rng.random_range(0.0..360.0),
                saturation,
                rng.random_range(0.25..0.75),
            );
            if rng.random_bool(0.6) {
                canvas.solid(rect(at, row - height, width, height).as_ref(), rgb, None);
            } else {
                let center = [at + width / 2.0, row - height / 2.0];
                let bottle = ellipse(center, width / 3.0, height / 2.0, 0.0);
                canvas.solid(bottle.as_ref(), rgb, None);
            }
            at += width + step * rng.random_range(0.05..0.3f32);
        }
        canvas.solid(rect(x, row, w, 0.05 * m).as_ref(), darker(back, 0.6), None);
        row -= step;
    }
    let floor = from_hsl(
        rng.random_range(0.0..360.0),
        0.1,
        rng.random_range(0.5..0.85),
    );
    canvas.solid(
        rect(x, ground.horizon + 0.05 * m, w, h).as_ref(),
        floor,
        None,
    );
    let tile = m * rng.random_range(0.5..0.9f32);
    for (i, j) in (0..8).flat_map(|i| (-8..8).map(move |j| (i, j))) {
        if (i + j) % 2 == 0 {
            let depth = |i: i32| ground.horizon + 0.05 * m + tile * 0.22 * (i as f32).powf(1.6);
            let (top, bottom) = (depth(i), depth(i + 1));
            let at = |j: i32, i: i32| {
                canvas.width() / 2.0 + ground.pan + j as f32 * tile * (0.4 + 0.2 * i as f32)
            };
            let path = polygon(&[
                [at(j, i), top],
                [at(j + 1, i), top],
                [at(j + 1, i + 1), bottom],
                [at(j, i + 1), bottom],
            ]);
            canvas.glaze(path.as_ref(), SHADOW, 0.25, None);
        }
    }
}
