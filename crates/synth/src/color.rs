//! Colors: the words that describe garments, and the shading of what is drawn.

use clasp_data::Rng;
use rand::RngExt;

use crate::sampling::between;
use crate::style::Style;

/// Color of shadows.
pub(crate) const SHADOW: [f32; 3] = [0.03, 0.03, 0.07];
/// Color of light.
pub(crate) const LIGHT: [f32; 3] = [1.0, 0.99, 0.94];

/// The color scaled by a factor.
pub(crate) fn darker(rgb: [f32; 3], by: f32) -> [f32; 3] {
    rgb.map(|v| v * by)
}

/// Linear interpolation from one color (`t` = 0) to another (`t` = 1).
pub(crate) fn towards(rgb: [f32; 3], other: [f32; 3], t: f32) -> [f32; 3] {
    std::array::from_fn(|c| rgb[c] + (other[c] - rgb[c]) * t)
}

/// A nearly neutral gray of the brightness `v`, 0 to 1.
pub(crate) fn gray(v: f32) -> [f32; 3] {
    [v, v, v * 0.98]
}

/// A random muted color for objects that no caption describes.
pub(crate) fn dull(rng: &mut Rng) -> [f32; 3] {
    from_hsl(
        rng.random_range(0.0..360.0),
        rng.random_range(0.03..0.3),
        rng.random_range(0.3..0.75),
    )
}

/// Hue in degrees, saturation and lightness 0 to 1, to red, green, blue 0 to 1.
pub(crate) fn from_hsl(hue: f32, saturation: f32, lightness: f32) -> [f32; 3] {
    let a = saturation * lightness.min(1.0 - lightness);
    [0.0, 8.0, 4.0].map(|n| {
        let k = (n + hue / 30.0).rem_euclid(12.0);
        lightness - a * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0)
    })
}

/// Rec. 601 luma of a color.
pub(crate) fn luminance(rgb: [f32; 3]) -> f32 {
    0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
}

/// One of the eleven color words that garments are described with, in linear order of [`Hue::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Hue {
    Black,
    White,
    Gray,
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
}

impl Hue {
    /// Every color word.
    pub const ALL: [Hue; 11] = [
        Hue::Black,
        Hue::White,
        Hue::Gray,
        Hue::Red,
        Hue::Orange,
        Hue::Yellow,
        Hue::Green,
        Hue::Blue,
        Hue::Purple,
        Hue::Pink,
        Hue::Brown,
    ];

    /// The word itself, as in the vocabulary.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hue::Black => "black",
            Hue::White => "white",
            Hue::Gray => "grey",
            Hue::Red => "red",
            Hue::Orange => "orange",
            Hue::Yellow => "yellow",
            Hue::Green => "green",
            Hue::Blue => "blue",
            Hue::Purple => "purple",
            Hue::Pink => "pink",
            Hue::Brown => "brown",
        }
    }

    /// Ranges of hue (degrees), saturation and lightness within which the word stays true.
    pub(crate) fn ranges(self) -> ([f32; 2], [f32; 2], [f32; 2]) {
        match self {
            Hue::Black => ([0.0, 360.0], [0.0, 0.12], [0.05, 0.13]),
            Hue::White => ([30.0, 60.0], [0.0, 0.25], [0.88, 0.97]),
            Hue::Gray => ([0.0, 360.0], [0.0, 0.06], [0.38, 0.66]),
            Hue::Red => ([-8.0, 6.0], [0.6, 0.85], [0.34, 0.48]),
            Hue::Orange => ([20.0, 30.0], [0.75, 0.95], [0.48, 0.58]),
            Hue::Yellow => ([46.0, 56.0], [0.7, 0.95], [0.5, 0.66]),
            Hue::Green => ([95.0, 155.0], [0.3, 0.65], [0.2, 0.45]),
            Hue::Blue => ([205.0, 232.0], [0.4, 0.75], [0.22, 0.55]),
            Hue::Purple => ([268.0, 290.0], [0.35, 0.6], [0.3, 0.5]),
            Hue::Pink => ([325.0, 345.0], [0.55, 0.85], [0.68, 0.8]),
            Hue::Brown => ([18.0, 32.0], [0.3, 0.5], [0.2, 0.34]),
        }
    }

    /// Ranges of hue (degrees), saturation and lightness of a color word in the held-out style.
    pub(crate) fn held_out_ranges(self) -> ([f32; 2], [f32; 2], [f32; 2]) {
        match self {
            Hue::Black => ([0.0, 360.0], [0.0, 0.12], [0.0, 0.045]),
            Hue::White => ([30.0, 60.0], [0.0, 0.25], [0.975, 1.0]),
            Hue::Gray => ([0.0, 360.0], [0.0, 0.06], [0.67, 0.75]),
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
}

/// A color with its word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Color {
    /// The word that describes it.
    pub hue: Hue,
    /// The color itself, 0 to 1.
    pub rgb: [f32; 3],
}

impl Color {
    /// A random color that the word describes.
    pub fn sample(hue: Hue, rng: &mut Rng) -> Self {
        Self::sample_in(Style::Standard, hue, rng)
    }

    /// A random color that the word describes, in the shades of a style; the styles share no shade.
    pub(crate) fn sample_in(style: Style, hue: Hue, rng: &mut Rng) -> Self {
        let (h, s, l) = match style {
            Style::Standard => hue.ranges(),
            Style::HeldOut => hue.held_out_ranges(),
        };
        let rgb = from_hsl(between(rng, h), between(rng, s), between(rng, l));
        Color { hue, rgb }
    }
}
