//! What a caller may say about a checkpoint.

use super::source::CheckpointSource;

/// What the shapes and names of a file leave open.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Who published it, where that is not to be recognised.
    pub source: Option<CheckpointSource>,
    /// The student of a training checkpoint, rather than the teacher.
    pub student: bool,
    /// Attention heads of a ViT, which its shapes do not show.
    pub heads: Option<usize>,
    /// Height and width of the images it is for. A ViT's position embeddings are resampled to it.
    pub size: Option<[usize; 2]>,
    /// Go on although tensors are missing, left over or of another shape.
    pub lenient: bool,
}
