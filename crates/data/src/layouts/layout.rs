//! What a layout is: how it is recognized and read, what published data of it hold, and its row in
//! docs/data.md.

use std::path::{Path, PathBuf};

use super::LayoutError;
use super::attributes::AttributeDataset;
use super::coco::{BoxDataset, KeypointDataset};
use super::parsing::ParsingDataset;
use super::reid::{MsmtVal, ReidDataset};
use super::search::{GallerySize, SearchDataset};

/// A folder layout of annotated images.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    /// The files or folders that it is recognized by, in Markdown.
    pub signature: &'static str,
    /// The published datasets that have it.
    pub official: &'static [OfficialCounts],
    /// How it is found and read.
    pub reader: LayoutReader,
}

/// What a published dataset holds, by its authors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfficialCounts {
    /// Name of the dataset, of the split where each has its own file.
    pub dataset: &'static str,
    /// Words that are all in the path of a folder that holds it, in lower case; none where its
    /// layout or its files' names identify it.
    pub folder_words: &'static [&'static str],
    /// Counts by the names that `clasp data check` gives them.
    pub counts: &'static [(&'static str, u64)],
}

/// Finds the file or folder of a layout in a folder, or [`LayoutError::NotFound`].
pub type FindLayout = fn(&Path) -> Result<PathBuf, LayoutError>;

/// Finds the file of a split in a folder, or [`LayoutError::NotFound`].
pub type FindSplit = fn(&Path, &str) -> Result<PathBuf, LayoutError>;

/// How the layouts of each task are found and read.
#[derive(Clone, Copy, Debug)]
pub enum LayoutReader {
    /// Re-identification.
    Reid {
        /// Finds its folder or table.
        find: FindLayout,
        /// Reads what was found.
        read: fn(PathBuf, MsmtVal) -> Result<ReidDataset, LayoutError>,
    },
    /// Attribute recognition.
    Attributes {
        /// Paths of its files, relative to a folder.
        files: fn() -> Vec<String>,
        /// Reads a file; none where it has another layout.
        read: fn(&Path) -> Result<Option<AttributeDataset>, LayoutError>,
    },
    /// Human parsing.
    Parsing {
        /// Finds its folder or table.
        find: FindLayout,
        /// Reads what was found.
        read: fn(PathBuf) -> Result<ParsingDataset, LayoutError>,
    },
    /// Pose estimation.
    Keypoints {
        /// Finds the file of a split.
        find: FindSplit,
        /// Reads what was found.
        read: fn(&Path) -> Result<KeypointDataset, LayoutError>,
    },
    /// Pedestrian detection.
    Boxes {
        /// Finds the file of a split.
        find: FindSplit,
        /// Reads what was found.
        read: fn(&Path) -> Result<BoxDataset, LayoutError>,
    },
    /// Person search.
    Search {
        /// Finds its folder or file.
        find: FindLayout,
        /// Reads what was found in a folder.
        read: fn(&Path, PathBuf, GallerySize) -> Result<SearchDataset, LayoutError>,
    },
}

impl LayoutReader {
    /// Name of the task.
    pub fn task(&self) -> &'static str {
        match self {
            Self::Reid { .. } => "re-identification",
            Self::Attributes { .. } => "attribute recognition",
            Self::Parsing { .. } => "human parsing",
            Self::Keypoints { .. } => "pose estimation",
            Self::Boxes { .. } => "pedestrian detection",
            Self::Search { .. } => "person search",
        }
    }
}
