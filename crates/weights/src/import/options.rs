//! Options of an import.

use super::source::CheckpointSource;

/// What the names and shapes of a file do not determine.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Who published it, where that is not to be recognized.
    pub source: Option<CheckpointSource>,
    /// The student of a training checkpoint, rather than the teacher.
    pub student: bool,
    /// Attention heads of a ViT, which its shapes do not show.
    pub heads: Option<usize>,
    /// Height and width of the images it is for. A ViT's position embeddings are resampled to it.
    pub size: Option<[usize; 2]>,
    /// Accept missing and unexpected keys and other shapes.
    pub lenient: bool,
}
