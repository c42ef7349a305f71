//! What can go wrong with captions and scores; training has [`crate::train::ClipTrainError`].

use std::path::PathBuf;

use clasp_data::layouts::LayoutError;
use clasp_data::source::UnreadableImage;
use clasp_data::vocabulary::VocabularyError;

/// An error of captioned pictures or zero-shot scores.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder in the layout of CCP cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The built-in vocabulary cannot be read.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A file cannot be read; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] UnreadableImage),
    /// A mask differs in size from its image.
    #[error(
        "{}: expected a mask as large as its image, {} x {} pixels, found {} x {}",
        mask.display(), expected[0], expected[1], found[0], found[1]
    )]
    MaskSize {
        /// The mask.
        mask: PathBuf,
        /// Height and width of the image.
        expected: [usize; 2],
        /// Height and width of the mask.
        found: [usize; 2],
    },
    /// CLIP failed on the images.
    #[error(transparent)]
    Label(#[from] clasp_label::Error),
}
