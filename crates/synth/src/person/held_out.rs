//! Garments of the held-out style: shades, cuts, patterns and prints that training never shows.

use std::f32::consts::PI;

use clasp_data::Rng;
use rand::RngExt;
use tiny_skia::{Pixmap, Transform};

use super::appearance::{LowerKind, Pattern, SynthPerson, UpperGarment};
use crate::canvas::{Point2, rgba};
use crate::color::{Color, Hue, luminance};
use crate::style::Style;
use tiny_skia::Shader;

/// A person of the standard style in held-out shades and cuts. Attributes stay as they are.
pub(super) fn dress_anew(mut person: SynthPerson, rng: &mut Rng) -> SynthPerson {
    let anew = |color: &mut Color, rng: &mut Rng| {
        *color = Color::sample_in(Style::HeldOut, color.hue, rng);
    };
    let upper = &mut person.upper;
    anew(&mut upper.color, rng);
    anew(&mut upper.second, rng);
    // The second color must still show on the first.
    if (luminance(upper.second.rgb) - luminance(upper.color.rgb)).abs() <= 0.2 {
        let hue = if luminance(upper.color.rgb) > 0.45 {
            Hue::Black
        } else {
            Hue::White
        };
        upper.second = Color::sample_in(Style::HeldOut, hue, rng);
    }
    upper.ease *= 1.7;
    let lower = &mut person.lower;
    if lower.kind == LowerKind::Dress {
        lower.color = upper.color;
    } else {
        anew(&mut lower.color, rng);
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
    for color in others.into_iter().flatten() {
        anew(color, rng);
    }
    person
}

/// Tile of 16 by 16 of a patterned garment, or none where the pattern needs no tile.
pub(super) fn tile(upper: &UpperGarment) -> Option<Pixmap> {
    let mut tile = Pixmap::new(16, 16)?;
    tile.fill(rgba(upper.color.rgb, 1.0));
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

/// Outlines of a print in its own coordinates, -1 to 1 across and down, each with whether it has
/// the garment's second color (otherwise its first).
pub(super) fn print(style: usize) -> Vec<(Vec<Point2>, bool)> {
    let ring = |r: f32| -> Vec<Point2> {
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
