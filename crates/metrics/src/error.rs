//! What makes a metric impossible to compute.

/// Input that no metric can be computed from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// No query has a gallery image of the same person from another camera.
    #[error(
        "none of the {queries} queries has a match among the {gallery} gallery images\n\
         hint: a match is the same person seen by another camera; check that query and gallery are of one data set"
    )]
    NoValidQuery {
        /// Number of queries.
        queries: usize,
        /// Number of gallery images.
        gallery: usize,
    },
    /// A NaN or an infinity.
    #[error("{what} {row}: expected finite numbers, found {found}")]
    NotFinite {
        /// What the row belongs to, for example `query features`.
        what: &'static str,
        /// Row of the value.
        row: usize,
        /// The value.
        found: f64,
    },
    /// A class label beyond the number of classes.
    #[error(
        "pixel {pixel}: expected a {what} label below {classes} (255 is ignored), found {found}"
    )]
    LabelOutOfRange {
        /// `true` or `predicted`.
        what: &'static str,
        /// Position in the label map.
        pixel: usize,
        /// Number of classes.
        classes: usize,
        /// The label.
        found: u8,
    },
    /// A pose with another number of joints than the others.
    #[error("{what} {index}: expected {expected} joints, found {found}")]
    Joints {
        /// `true pose` or `predicted pose`.
        what: &'static str,
        /// Position in the list.
        index: usize,
        /// Number of joints of the skeleton.
        expected: usize,
        /// Number of joints of this pose.
        found: usize,
    },
}
