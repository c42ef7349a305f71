//! Drawing of predictions: lines, boxes, dots, label maps, text beside a picture.

use clasp_data::font;
use clasp_data::image::Rgb;

/// Distinct colors for classes, bones and boxes.
pub const COLORS: [[u8; 3]; 20] = [
    [230, 25, 75],
    [60, 180, 75],
    [255, 225, 25],
    [0, 130, 200],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 190, 212],
    [0, 128, 128],
    [220, 190, 255],
    [170, 110, 40],
    [255, 250, 200],
    [128, 0, 0],
    [170, 255, 195],
    [128, 128, 0],
    [255, 215, 180],
    [0, 0, 128],
    [128, 128, 128],
];

/// The color of class or box number `index`.
pub fn color(index: usize) -> [u8; 3] {
    COLORS[index % COLORS.len()]
}

/// Line width for a picture of that size, in pixels.
pub fn stroke(image: &Rgb) -> usize {
    (image.width.min(image.height) / 160).clamp(1, 6)
}

/// A line from one point (x, y) to another.
pub fn line(image: &mut Rgb, from: [f64; 2], to: [f64; 2], thick: usize, color: [u8; 3]) {
    let length = (to[0] - from[0]).abs().max((to[1] - from[1]).abs());
    // Points far outside come from wrong predictions; long lines to them are not drawn completely.
    let steps = (length.ceil() as usize).clamp(1, 20_000);
    for step in 0..=steps {
        let share = step as f64 / steps as f64;
        let at = [0, 1].map(|axis| from[axis] + share * (to[axis] - from[axis]));
        dot(image, at, thick, color);
    }
}

/// A square of `side` pixels about a point.
pub fn dot(image: &mut Rgb, [x, y]: [f64; 2], side: usize, color: [u8; 3]) {
    let start = |value: f64| value.round() as i64 - side as i64 / 2;
    for row in start(y)..start(y) + side as i64 {
        for column in start(x)..start(x) + side as i64 {
            let inside = (0..image.height as i64).contains(&row)
                && (0..image.width as i64).contains(&column);
            if inside {
                let at = 3 * (row as usize * image.width + column as usize);
                image.pixels[at..at + 3].copy_from_slice(&color);
            }
        }
    }
}

/// The border of a box (x, y, width, height) with a label above it.
pub fn draw_box(image: &mut Rgb, [x, y, width, height]: [f64; 4], label: &str, color: [u8; 3]) {
    let thick = stroke(image);
    let corners = [
        [x, y],
        [x + width, y],
        [x + width, y + height],
        [x, y + height],
    ];
    for corner in 0..4 {
        line(
            image,
            corners[corner],
            corners[(corner + 1) % 4],
            thick,
            color,
        );
    }
    let top = (y - font::SMALL as f64).max(0.0) as usize;
    font::label(image, x.max(0.0) as usize, top, label, font::SMALL, color);
}

/// A label map `[height, width]` over a picture, half transparent; class 0 and the ignore index 255
/// are not drawn.
pub fn tinted(image: &Rgb, labels: &[u8]) -> Rgb {
    let mut tinted = image.clone();
    for (pixel, &label) in tinted.pixels.chunks_exact_mut(3).zip(labels) {
        if label != 0 && label != 255 {
            let color = color(usize::from(label) - 1);
            for (value, other) in pixel.iter_mut().zip(color) {
                *value = value.midpoint(other);
            }
        }
    }
    tinted
}

/// Space about text beside a picture, in pixels.
pub const GAP: usize = 6;
const INK: [u8; 3] = [20; 3];

/// Lines of text to the right of a picture.
pub fn beside(image: &Rgb, lines: &[String]) -> Rgb {
    let wide = lines
        .iter()
        .map(|line| font::width(line, font::NORMAL))
        .max()
        .unwrap_or(0);
    let height = image.height.max(lines.len() * font::NORMAL + 2 * GAP);
    let mut sheet = Rgb::filled(image.width + wide + 2 * GAP, height, [255; 3]);
    paste(&mut sheet, image, 0, 0);
    for (index, text) in lines.iter().enumerate() {
        let y = GAP + index * font::NORMAL;
        font::draw(&mut sheet, image.width + GAP, y, text, font::NORMAL, INK);
    }
    sheet
}

/// Copies a picture onto another at x, y, as far as it fits.
pub fn paste(sheet: &mut Rgb, image: &Rgb, x: usize, y: usize) {
    let width = image.width.min(sheet.width.saturating_sub(x));
    for row in 0..image.height.min(sheet.height.saturating_sub(y)) {
        let start = 3 * ((y + row) * sheet.width + x);
        sheet.pixels[start..start + 3 * width].copy_from_slice(&image.row(row)[..3 * width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_stays_inside_the_picture() {
        let mut image = Rgb::filled(10, 8, [0; 3]);
        draw_box(&mut image, [-5.0, 2.0, 30.0, 40.0], "person 0.9", [9; 3]);
        line(&mut image, [1e9, -1e9], [0.0, 0.0], 3, [7; 3]);
        dot(&mut image, [9.0, 7.0], 1, [5; 3]);
        assert_eq!(image.pixel(9, 7), [5; 3]);
        assert_eq!(image.pixel(5, 2), [9; 3]);
        let sheet = beside(&image, &["red".to_owned()]);
        assert!(sheet.width > 10 && sheet.pixel(9, 7) == [5; 3]);
        let labels: Vec<u8> = (0..80).map(|i| u8::from(i == 3)).collect();
        assert_eq!(
            tinted(&Rgb::filled(10, 8, [0; 3]), &labels).pixel(3, 0),
            [115, 12, 37]
        );
    }
}
