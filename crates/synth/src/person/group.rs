//! Which limb or object of a person a pixel belongs to; decides whether a joint is visible.

/// The trunk above the hips.
pub const TORSO: u8 = 1;
/// Left arm; the right arm is the next number.
pub const ARMS: u8 = 2;
/// Left leg; the right leg is the next number.
pub const LEGS: u8 = 4;
/// Head, hair, headwear, neck.
pub const HEAD: u8 = 6;
/// A bag with its straps.
pub const BAG: u8 = 7;
/// The seat, skirts.
pub const HIPS: u8 = 8;
