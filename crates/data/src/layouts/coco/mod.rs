//! COCO's JSON: keypoints with any skeleton, boxes of people, results of detectors.

pub(crate) mod boxes;
mod dataset;
mod image;
pub(super) mod json;
pub(crate) mod keypoints;
mod results;
mod skeleton;

pub use dataset::{BoxAnnotation, BoxDataset, KeypointAnnotation, KeypointDataset};
pub(crate) use dataset::{is_outside, share_inside};
pub use image::CocoImage;
pub use results::{DetectedBox, DetectedPose, read_boxes, read_poses};
pub use skeleton::{COCO_JOINTS, COCO_SIGMAS};
