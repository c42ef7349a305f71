//! Kinds of places, and where a place lies in a picture.

use clasp_data::Rng;
use rand::RngExt;

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// A street with houses and cars.
    Street,
    /// A wall close behind.
    Wall,
    /// Grass, a path and trees.
    Park,
    /// A hall or a shop.
    Indoor,
}

impl PlaceKind {
    /// Every kind.
    pub const ALL: [PlaceKind; 4] = [
        PlaceKind::Street,
        PlaceKind::Wall,
        PlaceKind::Park,
        PlaceKind::Indoor,
    ];

    /// A random kind; streets are the most frequent.
    pub fn sample(rng: &mut Rng) -> Self {
        match rng.random_range(0..10u32) {
            0..=3 => PlaceKind::Street,
            4..=5 => PlaceKind::Wall,
            6..=7 => PlaceKind::Park,
            _ => PlaceKind::Indoor,
        }
    }

    /// A few words for captions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PlaceKind::Street => "street",
            PlaceKind::Wall => "wall",
            PlaceKind::Park => "park",
            PlaceKind::Indoor => "hall",
        }
    }
}

/// Where the place lies in the picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroundPlane {
    /// Row of the horizon, or where the wall meets the floor.
    pub horizon: f32,
    /// Pixels per meter at the near edge, for the size of things.
    pub meter: f32,
    /// Shift of the view sideways, pixels.
    pub pan: f32,
}
