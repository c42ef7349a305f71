//! What surrounds people: places, and things in them.

pub(crate) mod backdrop;
pub(crate) mod objects;
