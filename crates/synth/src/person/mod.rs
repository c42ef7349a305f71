//! One person: appearance, pose, and how both are drawn.
//!
//! | file | holds |
//! |---|---|
//! | `appearance` | what all pictures of a person share: body, hair, garments, bag; the attribute values |
//! | `sample`, `held_out` | random people; the held-out style of their garments |
//! | `pose` | poses, the skeleton, the projection into the picture |
//! | `figure` | a person in front of a camera: sections of the trunk, shading, cloth |
//! | `head`, `limbs`, `clothes`, `bags` | what is drawn on a figure |
//! | `draw` | the order in which it is drawn |
//! | `group`, `keypoints` | which limb a pixel shows; keypoints with their visibility |

pub(crate) mod appearance;
mod bags;
mod clothes;
mod draw;
pub(crate) mod figure;
pub mod group;
pub(crate) mod head;
mod held_out;
pub(crate) mod keypoints;
mod limbs;
pub(crate) mod pose;
mod sample;
