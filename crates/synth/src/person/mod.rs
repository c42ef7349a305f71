//! One person: appearance, pose, and how both are drawn.

pub(crate) mod appearance;
mod bags;
mod clothes;
pub(crate) mod figure;
pub(crate) mod head;
mod limbs;
pub(crate) mod pose;
