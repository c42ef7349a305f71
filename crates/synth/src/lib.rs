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
//! of a dress), arms (bare arms and hands), lower body (trousers, shorts, a skirt, a dress below the
//! waist), legs (bare or stockinged), feet (shoes, boots, socks), bag (with its straps). Carried
//! objects, occluders and scenery are background.

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
pub use dataset::{SynthConfig, SynthError, SynthSummary, unlabelled, write_dataset};
pub use ground_truth::{majority, truth_labels, truth_meta};
pub use person::appearance::{
    ATTRIBUTES, Age, Attributes, BagKind, Body, Carried, Footwear, Gender, Glasses, Hair,
    HairStyle, Headwear, Lower, LowerKind, Pattern, Person, Sleeve, Upper, UpperKind, View,
};
pub use person::group;
pub use person::pose::{Arm, Leg, Pose, view_of};
pub use render::{Drawn, Shot, draw, draw_place};
pub use scene::{Pedestrian, Scene, draw_scene};
pub use scenery::objects::Occluder;
pub use scenery::place::Place;
pub use style::Style;
