//! Losses: functions of tensors, with their state passed in and out.
//!
//! | file | for |
//! |---|---|
//! | [`dino`], [`ibot`], [`koleo`], [`part`], [`attribute`], [`distillation`] | pre-training |
//! | [`identity`] | re-identification: cross-entropy, batch-hard triplets |
//! | [`weighted_bce`](mod@weighted_bce) | attribute recognition |
//! | [`parsing`] | cross-entropy, Lovász-softmax, edges |
//! | [`heatmap`] | pose |
//! | [`detection`] | pedestrian detection |
//! | [`regions`], [`oim`] | person search |

pub mod attribute;
pub mod detection;
pub mod dino;
pub mod distillation;
pub mod heatmap;
pub mod ibot;
pub mod identity;
pub mod koleo;
pub mod oim;
pub mod parsing;
pub mod part;
pub mod regions;
pub mod weighted_bce;

pub use attribute::attribute_loss;
pub use detection::{DetectionLosses, DetectionTargets, detection_losses};
pub use dino::{Temperatures, center_update, dino_loss, sinkhorn_knopp};
pub use distillation::{dense_distillation_loss, pooled_distillation_loss};
pub use heatmap::heatmap_loss;
pub use ibot::{ibot_loss, patch_targets};
pub use identity::{batch_hard_triplet, cross_entropy};
pub use koleo::koleo_loss;
pub use oim::OimMemory;
pub use parsing::{edge_loss, edges_of, lovasz_softmax, pixel_cross_entropy, refined_divergence};
pub use part::part_loss;
pub use regions::{box_loss, objectness_loss};
pub use weighted_bce::weighted_bce;
