//! Drawing styles: the standard one, in which all training data is drawn, and one that is held out for tests.
//!
//! A model that was trained on drawn people is tested on people whose appearance training never showed. Held out are:
//!
//! * **shades**: each colour word has a second range of colours, disjoint from the first ([`Hue`] says which);
//! * **cuts**: wider upper garments, longer skirts, dresses and shorts;
//! * **patterns**: diagonal stripes, argyle diamonds and coarse checks, and other prints;
//! * **scenery**: a shore and an aisle between shelves;
//! * **rendering**: flat colours with a dark outline, without shading and folds.
//!
//! Bodies, poses, hair, headwear, glasses and bags keep their shapes.

use std::f32::consts::PI;

use rand::RngExt;
use tiny_skia::{Pixmap, Shader, Transform};

use crate::canvas::{Canvas, P, ellipse, gradient, open_line, polygon, rect, rgba};
use crate::person::appearance::{
    Colour, Hue, LowerKind, Pattern, Person, Upper, from_hsl, luminance,
};
use crate::person::figure::{SHADOW, darker, towards};
use crate::scenery::backdrop::Ground;
use clasp_data::Rng;

/// How people and places look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Everything that is drawn for training.
    #[default]
    Standard,
    /// Garments, patterns, scenery and rendering that are drawn for tests only.
    HeldOut,
}

impl Style {
    /// Every style.
    pub const ALL: [Style; 2] = [Style::Standard, Style::HeldOut];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Style::Standard => "standard",
            Style::HeldOut => "held-out",
        }
    }
}

impl std::str::FromStr for Style {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        { Self::ALL.into_iter() }
            .find(|style| style.name() == name)
            .ok_or_else(|| format!("style `{name}`: expected standard or held-out"))
    }
}

/// Ranges of hue (degrees), saturation and lightness of a colour word in the held-out style.
pub(super) fn held_out_shade(hue: Hue) -> ([f32; 2], [f32; 2], [f32; 2]) {
    match hue {
        Hue::Black => ([0.0, 360.0], [0.0, 0.12], [0.0, 0.045]),
        Hue::White => ([30.0, 60.0], [0.0, 0.25], [0.975, 1.0]),
        Hue::Grey => ([0.0, 360.0], [0.0, 0.06], [0.67, 0.75]),
        Hue::Red => ([-8.0, 6.0], [0.6, 0.85], [0.49, 0.56]),
        Hue::Orange => ([31.0, 37.0], [0.75, 0.95], [0.48, 0.58]),
        Hue::Yellow => ([57.0, 61.0], [0.7, 0.95], [0.5, 0.66]),
        Hue::Green => ([80.0, 94.0], [0.35, 0.65], [0.25, 0.45]),
        Hue::Blue => ([190.0, 203.0], [0.5, 0.8], [0.3, 0.5]),
        Hue::Purple => ([291.0, 303.0], [0.35, 0.6], [0.3, 0.5]),
        Hue::Pink => ([325.0, 345.0], [0.55, 0.85], [0.81, 0.87]),
        Hue::Brown => ([18.0, 32.0], [0.51, 0.65], [0.2, 0.34]),
    }
}

/// A person of the standard style in held-out shades and cuts. Attributes stay as they are.
pub(super) fn dress_anew(mut person: Person, rng: &mut Rng) -> Person {
    let anew = |colour: &mut Colour, rng: &mut Rng| {
        *colour = Colour::sample_in(Style::HeldOut, colour.hue, rng);
    };
    let upper = &mut person.upper;
    anew(&mut upper.colour, rng);
    anew(&mut upper.second, rng);
    // The second colour must still show on the first.
    if (luminance(upper.second.rgb) - luminance(upper.colour.rgb)).abs() <= 0.2 {
        let hue = if luminance(upper.colour.rgb) > 0.45 {
            Hue::Black
        } else {
            Hue::White
        };
        upper.second = Colour::sample_in(Style::HeldOut, hue, rng);
    }
    upper.ease *= 1.7;
    let lower = &mut person.lower;
    if lower.kind == LowerKind::Dress {
        lower.colour = upper.colour;
    } else {
        anew(&mut lower.colour, rng);
    }
    lower.length = match lower.kind {
        LowerKind::Shorts => rng.random_range(0.42..0.5),
        _ => rng.random_range(0.8..1.0),
    };
    anew(&mut person.shoes.1, rng);
    let others = [
        person.headwear.as_mut().map(|h| &mut h.1),
        person.bag.as_mut().map(|b| &mut b.1),
        person.carried.as_mut().map(|c| &mut c.1),
        person.stockings.as_mut(),
        person.scarf.as_mut(),
    ];
    for colour in others.into_iter().flatten() {
        anew(colour, rng);
    }
    person
}

/// Tile of 16 by 16 of a patterned garment, or none where the pattern needs no tile.
pub(super) fn tile(upper: &Upper) -> Option<Pixmap> {
    let mut tile = Pixmap::new(16, 16)?;
    tile.fill(rgba(upper.colour.rgb, 1.0));
    let second = |x: i32, y: i32| -> f32 {
        match upper.pattern {
            // Diagonal stripes, to one side or the other.
            Pattern::Striped if upper.upright => f32::from((x + y).rem_euclid(16) < 6),
            Pattern::Striped => f32::from((x - y).rem_euclid(16) < 6),
            // Argyle diamonds.
            Pattern::Checked if upper.upright => f32::from((x - 8).abs() + (y - 8).abs() < 7),
            // Quarters, as on a chess board, with a thin line between.
            Pattern::Checked => {
                let line = x % 8 == 0 || y % 8 == 0;
                if line {
                    0.5
                } else {
                    f32::from((x < 8) == (y < 8))
                }
            }
            Pattern::Plain | Pattern::Logo => 0.0,
        }
    };
    if matches!(upper.pattern, Pattern::Plain | Pattern::Logo) {
        return None;
    }
    for (x, y) in (0..16).flat_map(|y| (0..16).map(move |x| (x, y))) {
        let alpha = second(x, y);
        if let Some(pixel) = tiny_skia::Rect::from_xywh(x as f32, y as f32, 1.0, 1.0)
            && alpha > 0.0
        {
            let paint = tiny_skia::Paint {
                shader: Shader::SolidColor(rgba(upper.second.rgb, alpha)),
                anti_alias: false,
                ..tiny_skia::Paint::default()
            };
            tile.fill_rect(pixel, &paint, Transform::identity(), None);
        }
    }
    Some(tile)
}

/// Outlines of a print in its own coordinates, -1 to 1 across and down, each with whether it has the garment's second
/// colour (otherwise its first).
pub(super) fn print(style: usize) -> Vec<(Vec<P>, bool)> {
    let ring = |r: f32| -> Vec<P> {
        (0..24)
            .map(|k| {
                let t = k as f32 / 12.0 * PI;
                [r * t.cos(), 0.8 * r * t.sin()]
            })
            .collect()
    };
    match style {
        0 => vec![
            (vec![[-0.9, 0.8], [0.0, -0.9], [0.9, 0.8]], true),
            (vec![[-0.35, 0.5], [0.0, -0.2], [0.35, 0.5]], false),
        ],
        1 => vec![
            (
                vec![[-0.25, -0.9], [0.25, -0.9], [0.25, 0.9], [-0.25, 0.9]],
                true,
            ),
            (
                vec![[-0.9, -0.25], [0.9, -0.25], [0.9, 0.25], [-0.9, 0.25]],
                true,
            ),
        ],
        2 => vec![(ring(0.95), true), (ring(0.7), false), (ring(0.4), true)],
        _ => vec![
            (
                vec![[-0.9, 0.1], [0.5, -0.9], [0.9, -0.6], [-0.6, 0.5]],
                true,
            ),
            (
                vec![[-0.5, 0.7], [0.8, -0.2], [0.9, 0.2], [-0.2, 0.9]],
                true,
            ),
        ],
    }
}

/// Draws held-out scenery over the whole canvas. The same generator state gives the same place.
pub(super) fn place(canvas: &mut Canvas, ground: Ground, rng: &mut Rng) {
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
fn shore(canvas: &mut Canvas, ground: Ground, [x, y, w, h]: [f32; 4], rng: &mut Rng) {
    let m = ground.metre;
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
        let colour = from_hsl(rng.random_range(0.0..360.0), 0.7, 0.55);
        for k in 0..4 {
            let at = |k: i32| foot[0] - half + half * 0.5 * k as f32;
            let gore = polygon(&[
                [foot[0], top - 0.1 * m],
                [at(k), top + 0.35 * m],
                [at(k + 1), top + 0.35 * m],
            ]);
            let rgb = if k % 2 == 0 { colour } else { [0.95; 3] };
            canvas.solid(gore.as_ref(), rgb, None);
        }
    }
}

/// An aisle: shelves with boxes and bottles behind, large tiles before them.
fn shelves(canvas: &mut Canvas, ground: Ground, [x, y, w, h]: [f32; 4], rng: &mut Rng) {
    let m = ground.metre;
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
                let centre = [at + width / 2.0, row - height / 2.0];
                let bottle = ellipse(centre, width / 3.0, height / 2.0, 0.0);
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
