//! A bitmap font for text in pictures: ASCII, 5 × 9 pixels a glyph, the last two rows for descenders;
//! made for this project.
//!
//! `font.txt` is the sheet of glyphs: sixteen in a line, in the order of ASCII from the space to `~`.

use std::sync::LazyLock;

use crate::image::Rgb;

/// Width of a glyph without the gap after it, in pixels at scale 1.
const WIDTH: usize = 5;
/// Height of a glyph, in pixels at scale 1.
pub const HEIGHT: usize = 9;
/// From one glyph to the next, in pixels at scale 1.
pub const ADVANCE: usize = WIDTH + 1;
/// Glyphs in a line of the sheet.
const PER_LINE: usize = 16;

/// Rows of each glyph from the space on; the leftmost pixel is bit 4.
static GLYPHS: LazyLock<Vec<[u8; HEIGHT]>> = LazyLock::new(|| {
    let lines: Vec<&str> = include_str!("font.txt").lines().collect();
    let row = |line: &str, glyph: usize| {
        let pixels = line.bytes().skip(glyph * ADVANCE).take(WIDTH);
        pixels.fold(0, |bits, pixel| bits << 1 | u8::from(pixel == b'#'))
    };
    lines
        .chunks_exact(HEIGHT)
        .flat_map(|lines| {
            let count = lines[0].len().div_ceil(ADVANCE).min(PER_LINE);
            (0..count).map(move |glyph| std::array::from_fn(|y| row(lines[y], glyph)))
        })
        .collect()
});

/// Width of `text` in pixels at `scale`.
pub fn width(text: &str, scale: usize) -> usize {
    text.chars().count() * ADVANCE * scale
}

/// `text`, truncated to at most `pixels` at `scale`; a truncated text ends with `..`.
pub fn fit(text: &str, pixels: usize, scale: usize) -> String {
    let room = pixels / (ADVANCE * scale);
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(room.saturating_sub(2)).collect();
    cut.push_str("..");
    cut
}

/// Draws `text` with its upper left corner at (`x`, `y`), clipped to the picture; letters that are not
/// ASCII become question marks.
pub fn draw(picture: &mut Rgb, x: usize, y: usize, text: &str, scale: usize, color: [u8; 3]) {
    for (place, letter) in text.chars().enumerate() {
        let index = (letter as usize)
            .checked_sub(' ' as usize)
            .filter(|&i| i < GLYPHS.len());
        let Some(glyph) = GLYPHS.get(index.unwrap_or('?' as usize - ' ' as usize)) else {
            continue;
        };
        for (dy, bits) in glyph.iter().enumerate() {
            for dx in (0..WIDTH).filter(|dx| bits >> (WIDTH - 1 - dx) & 1 == 1) {
                let (x, y) = (x + (place * ADVANCE + dx) * scale, y + dy * scale);
                fill(picture, x, y, scale, scale, color);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_of_ascii_has_a_shape_of_its_own() {
        assert_eq!(GLYPHS.len(), 95);
        let mut shapes: Vec<_> = GLYPHS.iter().collect();
        shapes.sort();
        shapes.dedup();
        assert_eq!(shapes.len(), 95);
        assert_eq!(GLYPHS['T' as usize - 32], [0b11111, 4, 4, 4, 4, 4, 4, 0, 0]);
    }

    #[test]
    fn text_is_drawn_scaled_and_clipped() {
        let mut picture = Rgb::filled(20, 16, [255; 3]);
        draw(&mut picture, 1, 1, "T", 2, [0; 3]);
        assert_eq!(picture.pixel(1, 1), [0; 3]);
        assert_eq!(picture.pixel(10, 2), [0; 3]);
        assert_eq!(picture.pixel(1, 3), [255; 3]);
        assert_eq!(picture.pixel(5, 14), [0; 3]);
        // Over the edge, and not in the font.
        draw(&mut picture, 15, 12, "né~", 3, [9; 3]);
        assert_eq!(fit("abcdef", 4 * ADVANCE, 1), "ab..");
        assert_eq!(fit("abcd", 4 * ADVANCE, 1), "abcd");
        assert_eq!(width("abc", 2), 36);
    }
}
