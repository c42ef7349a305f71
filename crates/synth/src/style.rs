//! Rendering styles: the standard one, in which all training data is rendered, and one that is held
//! out for tests.
//!
//! A model that was trained on synthetic people is tested on people whose appearance training never
//! showed. Held out are:
//!
//! * **shades**: each color word has a second range of colors, disjoint from the first
//!   ([`crate::Hue`] defines both);
//! * **cuts**: wider upper garments, longer skirts, dresses and shorts;
//! * **patterns**: diagonal stripes, argyle diamonds and coarse checks, and other prints;
//! * **scenery**: a shore and an aisle between shelves;
//! * **rendering**: flat colors with a dark outline, without shading and folds.
//!
//! Bodies, poses, hair, headwear, glasses and bags keep their shapes.

/// The appearance of people and places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// The style of all training data.
    #[default]
    Standard,
    /// Garments, patterns, scenery and rendering of tests only.
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
