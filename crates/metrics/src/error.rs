//! What makes a metric impossible to compute.

/// Input that no metric can be computed from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// No query has a gallery image of the same person from another camera.
    #[error(
        "none of the {queries} queries has a match among the {gallery} gallery images\n\
         hint: a match is the same person seen by another camera; check that query and gallery are of one dataset"
    )]
    NoValidQuery {
        /// Number of queries.
        queries: usize,
        /// Number of gallery images.
        gallery: usize,
    },
    /// Features of no channel, which all are alike.
    #[error("expected features of at least one channel, found none")]
    NoChannels,
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
    /// A box of negative width or height.
    #[error("{what} {index}: expected a width and a height that are not negative, found {found:?}")]
    NegativeSize {
        /// `true box`, `found box` or `pedestrian`.
        what: &'static str,
        /// Position in the list.
        index: usize,
        /// Width and height.
        found: [f64; 2],
    },
    /// A box on an image that is not evaluated.
    #[error("{what} {index}: image {image} is none of those evaluated")]
    UnknownImage {
        /// `found box` or `pedestrian`.
        what: &'static str,
        /// Position in the list.
        index: usize,
        /// The image.
        image: u64,
    },
    /// Nobody who is searched for is in the gallery.
    #[error(
        "none of the {queries} queries is anywhere in its gallery\n\
         hint: check that query and gallery are of one dataset"
    )]
    NoQueryWithMatch {
        /// Number of queries.
        queries: usize,
    },
    /// No pair of the same, or none of different people.
    #[error(
        "{same} pairs of images show the same and {different} different people, expected both kinds\n\
         hint: pairs of one person under one camera are ignored; a threshold needs people seen by several cameras"
    )]
    OneKindOfPairs {
        /// Pairs of the same person.
        same: u64,
        /// Pairs of two people.
        different: u64,
    },
}

impl MetricError {
    /// The same about another row.
    pub(crate) fn in_row(self, row: usize) -> Self {
        match self {
            Self::NotFinite { what, found, .. } => Self::NotFinite { what, row, found },
            other => other,
        }
    }
}
