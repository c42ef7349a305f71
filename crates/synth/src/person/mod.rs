//! One person: appearance, pose, and how both are drawn.
//!
//! | file | holds |
//! |---|---|
//! | `appearance` | what all pictures of a person share: body, hair, garments, bag; attributes |
//! | `sample`, `held_out` | random people; the held-out style of their garments |
//! | `pose` | poses, the skeleton, the projection into the picture |
//! | `figure` | a person in front of a camera: sections of the trunk, shading, cloth |
//! | `head`, `face`, `hair`, `headwear` | the head, on the shape in `head_geometry` |
//! | `limbs`, `clothes`, `bags` | limbs, garments, bags and carried objects |
//! | `draw` | the order in which it is drawn |
//! | `group`, `keypoints` | which limb a pixel shows; keypoints with their visibility |

pub(crate) mod appearance;
mod bags;
mod clothes;
mod draw;
mod face;
pub(crate) mod figure;
pub mod group;
mod hair;
mod head;
mod head_geometry;
mod headwear;
mod held_out;
pub(crate) mod keypoints;
mod limbs;
pub(crate) mod pose;
mod sample;
