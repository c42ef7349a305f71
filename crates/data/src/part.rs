//! Numbers of the part classes on a mask, as in the default vocabulary.

/// Everything that belongs to no person.
pub const BACKGROUND: u8 = 0;
/// Face, hair, neck, headwear, glasses.
pub const HEAD: u8 = 1;
/// The upper garment with its sleeves.
pub const UPPER_BODY: u8 = 2;
/// Bare arms and hands.
pub const ARMS: u8 = 3;
/// Trousers, shorts, skirt.
pub const LOWER_BODY: u8 = 4;
/// Bare or stockinged legs.
pub const LEGS: u8 = 5;
/// Shoes, boots, socks.
pub const FEET: u8 = 6;
/// A bag with its straps.
pub const BAG: u8 = 7;
/// Names, by number.
pub const NAMES: [&str; 8] = [
    "background",
    "head",
    "upper body",
    "arms",
    "lower body",
    "legs",
    "feet",
    "bag",
];
