//! The tasks that a backbone can be fine-tuned for, one file each: data, targets, loss, evaluation, prediction, picture.
//!
//! | file | head | loss | metric |
//! |---|---|---|---|
//! | [`reid`] | BNNeck | cross-entropy, batch-hard triplets | mAP, CMC, mINP |
//! | [`attributes`] | linear | weighted binary cross-entropy | mA, accuracy, precision, recall, F1 |
//! | [`parsing`] | light, or CE2P's | cross-entropy, Lovász-softmax, edges | mIoU |
//! | [`pose`] | deconvolutions | squared error of heatmaps | PCK, OKS AP |
//! | [`detection`] | CSP | focal, smooth L1 | log-average miss rate, AP |
//! | [`search`] | SeqNet's two stages, or CSP with an embedding | and online instance matching | mAP, top-k |
//!
//! [`scenes`] holds what the last two share, [`two_stage`] and [`regions`] SeqNet, [`heatmaps`] holds the codings of pose, [`picture`] what draws.

pub mod attributes;
pub mod detection;
pub mod heatmaps;
pub mod parsing;
pub mod picture;
pub mod pose;
pub mod regions;
pub mod reid;
pub mod scenes;
pub mod search;
pub mod two_stage;
