//! Text in pictures: Open Sans, which `font/OFL.txt` licenses, in any size.
//!
//! Sizes are heights of a line in pixels. Text on plain paper is drawn by [`draw`], text on a photo
//! by [`label`], whose ground is a color of its own.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, ScaleFont};

use crate::image::Rgb;

/// Height of a line beside or below small pictures, in pixels.
pub const SMALL: usize = 16;
/// Height of a line of other text, in pixels.
pub const NORMAL: usize = 20;
/// The contrast between text and ground that readers with low vision need (WCAG 2.1, 1.4.3).
pub const CONTRAST: f64 = 4.5;

static FONT: LazyLock<Option<FontRef<'static>>> =
    LazyLock::new(|| FontRef::try_from_slice(include_bytes!("font/OpenSans-Regular.ttf")).ok());

/// Width of `text` in lines of `size` pixels, in pixels.
pub fn width(text: &str, size: usize) -> usize {
    let mut end = 0.0;
    each_glyph(text, size, |_, _, advance| end += advance);
    f32::ceil(end) as usize
}

/// `text`, truncated to at most `pixels` in lines of `size` pixels; a truncated text ends with `…`.
pub fn fit(text: &str, pixels: usize, size: usize) -> String {
    if width(text, size) <= pixels {
        return text.to_owned();
    }
    let mut cut: Vec<char> = text.chars().collect();
    loop {
        cut.pop();
        let short = cut.iter().collect::<String>() + "…";
        if cut.is_empty() || width(&short, size) <= pixels {
            return short;
        }
    }
}

/// As [`fit`], truncated in its middle: names of images begin with a person and end with a number.
pub fn fit_middle(text: &str, pixels: usize, size: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    let with = |kept: usize| -> String {
        let (first, last) = (kept.div_ceil(2), kept / 2);
        let (start, end) = (&all[..first], &all[all.len() - last..]);
        start.iter().chain(&['…']).chain(end).collect()
    };
    if width(text, size) <= pixels {
        return text.to_owned();
    }
    let fits = |kept: &usize| width(&with(*kept), size) <= pixels;
    with((1..all.len()).rev().find(fits).unwrap_or(0))
}

/// Draws `text` with the upper left corner of its line at (`x`, `y`), clipped to the picture.
pub fn draw(picture: &mut Rgb, x: usize, y: usize, text: &str, size: usize, color: [u8; 3]) {
    let Some(font) = FONT.as_ref() else { return };
    let font = font.as_scaled(size as f32);
    let base = y as f32 + font.ascent();
    let mut at = x as f32;
    each_glyph(text, size, |glyph, kern, advance| {
        let point = ab_glyph::point(at + kern, base);
        at += advance;
        let glyph = glyph.with_scale_and_position(size as f32, point);
        let Some(outline) = font.outline_glyph(glyph) else {
            return;
        };
        let bounds = outline.px_bounds();
        outline.draw(|dx, dy, coverage| {
            let (x, y) = (
                bounds.min.x as i64 + i64::from(dx),
                bounds.min.y as i64 + i64::from(dy),
            );
            blend(picture, x, y, coverage.clamp(0.0, 1.0), color);
        });
    });
}

/// Draws `text` on a ground of the color `ground`, in black or white, with the upper left corner of
/// the ground at (`x`, `y`), clipped to the picture; nothing for an empty text.
pub fn label(picture: &mut Rgb, x: usize, y: usize, text: &str, size: usize, ground: [u8; 3]) {
    if text.is_empty() {
        return;
    }
    const MARGIN: usize = 2;
    fill(picture, x, y, width(text, size) + 2 * MARGIN, size, ground);
    draw(picture, x + MARGIN, y, text, size, ink_on(ground));
}

/// Black or white, whichever has the higher contrast to a ground; it is at least [`CONTRAST`].
pub fn ink_on(ground: [u8; 3]) -> [u8; 3] {
    let inks = [[0; 3], [255; 3]];
    match contrast(inks[0], ground) >= contrast(inks[1], ground) {
        true => inks[0],
        false => inks[1],
    }
}

/// The contrast ratio of two colors, from 1 to 21 (WCAG 2.1).
pub fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let luminance = |color: [u8; 3]| {
        let [r, g, b] = color.map(|value| {
            let value = f64::from(value) / 255.0;
            match value <= 0.04045 {
                true => value / 12.92,
                false => ((value + 0.055) / 1.055).powf(2.4),
            }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

/// Fills a rectangle with a color, clipped to the picture.
pub fn fill(picture: &mut Rgb, x: usize, y: usize, width: usize, height: usize, color: [u8; 3]) {
    let right = (x + width).min(picture.width);
    for y in y..(y + height).min(picture.height) {
        for x in x..right {
            let at = 3 * (y * picture.width + x);
            picture.pixels[at..at + 3].copy_from_slice(&color);
        }
    }
}

/// Calls `f` with each glyph, the kerning before it, and how far the next one is, in pixels.
fn each_glyph(text: &str, size: usize, mut f: impl FnMut(ab_glyph::GlyphId, f32, f32)) {
    let Some(font) = FONT.as_ref() else { return };
    let font = font.as_scaled(size as f32);
    let mut last = None;
    for letter in text.chars().filter(|letter| !letter.is_control()) {
        let glyph = font.glyph_id(letter);
        let kern = last.map_or(0.0, |last| font.kern(last, glyph));
        f(glyph, kern, kern + font.h_advance(glyph));
        last = Some(glyph);
    }
}

fn blend(picture: &mut Rgb, x: i64, y: i64, coverage: f32, color: [u8; 3]) {
    let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
        return;
    };
    if x >= picture.width || y >= picture.height {
        return;
    }
    let at = 3 * (y * picture.width + x);
    for (below, above) in picture.pixels[at..at + 3].iter_mut().zip(color) {
        let mixed = coverage * f32::from(above) + (1.0 - coverage) * f32::from(*below);
        *below = mixed.round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_is_there_and_letters_have_shapes_and_widths_of_their_own() {
        assert!(FONT.is_some());
        let shape = |letter: char| {
            let mut picture = Rgb::filled(40, 40, [255; 3]);
            draw(&mut picture, 8, 8, &letter.to_string(), 24, [0; 3]);
            let darkest = picture.pixels.iter().min();
            assert!(darkest < Some(&128), "`{letter}` is not drawn");
            picture.pixels
        };
        let mut shapes: Vec<Vec<u8>> = ('!'..='~').chain("éüßŁж".chars()).map(shape).collect();
        let count = shapes.len();
        shapes.sort();
        shapes.dedup();
        assert_eq!(shapes.len(), count);
        assert!(width("iii", 20) < width("mmm", 20));
        assert!((3..=6).contains(&(width("mmmm", 40) / width("mmmm", 10))));
    }

    #[test]
    fn text_stays_in_its_line_and_in_the_picture() {
        let mut picture = Rgb::filled(200, 60, [255; 3]);
        draw(&mut picture, 10, 20, "Agjpq Éß_|", 20, [0; 3]);
        let is_inked = |y: usize| (0..200).any(|x| picture.pixel(x, y) != [255; 3]);
        assert!(
            (0..60)
                .filter(|y| is_inked(*y))
                .all(|y| (20..40).contains(&y))
        );
        assert!((20..40).filter(|y| is_inked(*y)).count() > 14);
        let right = 10 + width("Agjpq Éß_|", 20);
        assert!((0..200).all(|x| x < 9 || x > right || picture.pixel(x, 0) == [255; 3]));
        // Over the edges.
        draw(&mut picture, 190, 50, "wide\u{7}", 40, [9; 3]);
        label(&mut picture, 195, 55, "wide", 40, [9; 3]);
    }

    #[test]
    fn text_that_is_too_long_is_cut() {
        let cut = fit("bounding_box_train/0001_c1s1_000151_01", 120, SMALL);
        assert!(cut.ends_with('…') && cut.starts_with("bounding"), "{cut}");
        assert!(width(&cut, SMALL) <= 120);
        assert_eq!(fit("short", 120, SMALL), "short");
        assert_eq!(fit("long", 0, SMALL), "…");
    }

    #[test]
    fn labels_are_readable_on_every_ground() {
        assert!((contrast([0; 3], [255; 3]) - 21.0).abs() < 1e-9);
        // WebAIM's checker gives 4.54 for #767676 on white.
        assert!((contrast([0x76; 3], [255; 3]) - 4.54).abs() < 0.005);
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(15) {
                    let ground = [r, g, b];
                    assert!(contrast(ink_on(ground), ground) >= CONTRAST, "{ground:?}");
                }
            }
        }
    }
}
