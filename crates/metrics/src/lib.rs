//! Published metrics of the human-centric tasks, as free functions on slices.
//!
//! Nothing here reads a file or knows a network: numbers go in, numbers come out, in `f64`.
//!
//! | module | metric | follows |
//! |---|---|---|
//! | [`metric`] | name, value, unit and direction of a metric that is quoted | - |
//! | [`reid`] | mAP, CMC, mINP | the Market-1501 evaluation |
//! | [`rerank`] | k-reciprocal re-ranking | Zhong et al., CVPR 2017 |
//! | [`attributes`] | mA, accuracy, precision, recall, F1 | Li et al., RAP, 2016 |
//! | [`parsing`] | pixel and mean accuracy, mIoU | the LIP evaluation |
//! | [`verify`] | ROC, same-person threshold | - |
//! | [`pose`] | PCK, OKS AP, OKS-NMS | FLIC/LSP practice, the COCO keypoint evaluation |
//! | [`detection`] | box AP, MR⁻², hard and soft NMS | the COCO box evaluation, Caltech and CityPersons |
//! | [`search`] | mAP, top-k, detection recall and AP | the CUHK-SYSU and PRW evaluation |
//! | [`matmul`] | the matrix product under the distances, also used by linear probes | - |
//!
//! # Degenerate input, decided once
//!
//! - Slices whose lengths disagree are a mistake of the caller: panic, with both lengths.
//! - Values that come from outside and make no sense (not finite, a label out of range) are a
//!   [`MetricError`].
//! - A metric over nothing is an error where the published evaluator stops
//!   ([`MetricError::NoValidQuery`]), else `None` in a field, never a NaN.
//! - Ties are broken by position: what comes first in the input comes first in the ranking.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod attributes;
mod coco;
pub mod detection;
mod error;
pub mod matmul;
pub mod metric;
pub mod parsing;
pub mod pose;
pub mod reid;
pub mod rerank;
pub mod search;
pub mod verify;

pub use error::MetricError;
pub use metric::{Direction, Metric, MetricUnit};

/// Mean of the values that are there; `None` when there is none.
fn mean_of(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_usize);
    for value in values.into_iter().flatten() {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}
