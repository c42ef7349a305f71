//! Kinds of places, and where a place lies in a picture.

use clasp_data::Rng;
use rand::RngExt;

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A street with houses and cars.
    Street,
    /// A wall close behind.
    Wall,
    /// Grass, a path and trees.
    Park,
    /// A hall or a shop.
    Indoor,
}

impl Place {
    /// Every kind.
    pub const ALL: [Place; 4] = [Place::Street, Place::Wall, Place::Park, Place::Indoor];

    /// Some kind; streets are the most frequent.
    pub fn sample(rng: &mut Rng) -> Self {
        match rng.random_range(0..10u32) {
            0..=3 => Place::Street,
            4..=5 => Place::Wall,
            6..=7 => Place::Park,
            _ => Place::Indoor,
        }
    }

    /// A few words for captions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Place::Street => "street",
            Place::Wall => "wall",
            Place::Park => "park",
            Place::Indoor => "hall",
        }
    }
}

/// Where the place lies in the picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground {
    /// Row of the horizon, or where the wall meets the floor.
    pub horizon: f32,
    /// Pixels per metre at the near edge, for the size of things.
    pub metre: f32,
    /// Shift of the view sideways, pixels.
    pub pan: f32,
}
