//! Synthetic people: rendered pictures of people who do not exist, with exact annotations of every
//! pixel.
//!
//! | module | holds |
//! |---|---|
//! | [`write_dataset`] in `dataset` | a whole dataset in the layouts that the tasks read |
//! | [`render`], [`render_scene`] | a picture of one person, of several people in a street |
//! | `person` | appearance, poses, and how both are drawn |
//! | `scenery`, `camera` | places and objects around people; lens, sensor and light |
//! | `ground_truth` | annotations as a label store |
//! | `canvas`, `color`, `sampling` | picture and label map, colors, random draws |
//!
//! [`SynthPerson`] is what stays the same from picture to picture (body, hair, garments, bag),
//! [`Camera`] what a camera adds, [`Shot`] one moment in front of one camera.
//!
//! Part classes of pixels are unsided and follow what is visible, as in LIP and CCP: head (face,
//! hair, neck, headwear, glasses), upper body (the upper garment with its sleeves, a scarf, the top
//! of a dress), arms (bare arms and hands), lower body (trousers, shorts, a skirt, a dress below
//! the waist), legs (bare or stockinged), feet (shoes, boots, socks), bag (with its straps).
//! Carried objects, occluders and scenery are background.

mod camera;
mod canvas;
mod color;
mod dataset;
mod ground_truth;
mod person;
mod render;
mod sampling;
mod scene;
mod scenery;
mod style;
#[cfg(test)]
mod tests;

pub use camera::Camera;
pub use color::{Color, Hue};
pub use dataset::{SynthConfig, SynthError, SynthSummary, unlabeled_jpeg, write_dataset};
pub use ground_truth::{ground_truth_labels, ground_truth_meta, majority};
pub use person::appearance::{
    ATTRIBUTES, Age, AttributeValues, BagKind, Body, Carried, Footwear, Gender, Glasses, Hair,
    HairStyle, Headwear, LowerGarment, LowerKind, Pattern, Sleeve, SynthPerson, UpperGarment,
    UpperKind, View,
};
pub use person::group;
pub use person::pose::{Arm, Leg, Pose, view_of};
pub use render::{RenderedPerson, Shot, render, render_place};
pub use scene::{RenderedScene, ScenePerson, render_scene};
pub use scenery::objects::Occluder;
pub use scenery::place::PlaceKind;
pub use style::Style;
