//! What surrounds people: places, and objects in them.
//!
//! | file | holds |
//! |---|---|
//! | `place` | kinds of places, the ground plane |
//! | `backdrop` | streets, walls, parks, rooms |
//! | `held_out` | the places of the held-out style |
//! | `objects` | houses, trees, cars, poles, signs; occluders |

pub(crate) mod backdrop;
pub(crate) mod held_out;
pub(crate) mod objects;
pub(crate) mod place;
