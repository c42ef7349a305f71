//! Files of tensors by name, whatever wrote them: safetensors or PyTorch, one file or several.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::checkpoint::{self, Metadata};
use crate::error::WeightsError;
use crate::shards;
use crate::state::{HostTensor, StateDict};
use crate::torch::{self, TorchFile};

/// A file whose tensors can be listed and read.
pub struct TensorFile {
    path: PathBuf,
    shapes: BTreeMap<String, Vec<usize>>,
    metadata: Metadata,
    content: TensorContent,
}

enum TensorContent {
    Safetensors(StateDict),
    Torch(Box<TorchFile>),
    /// Several files, each with its own tensors.
    Parts(Vec<TensorFile>),
}

impl TensorFile {
    /// Opens a file of safetensors or of PyTorch, distinguished by its first bytes, or the index or a
    /// part of a checkpoint in several of them.
    ///
    /// # Errors
    ///
    /// It cannot be read, is neither, is broken, or claims more than it holds; a part is missing.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        match shards::parts(path)? {
            Some(parts) => Self::parts(path, &parts),
            None => Self::single(path),
        }
    }

    fn parts(path: &Path, parts: &[PathBuf]) -> Result<Self, WeightsError> {
        let parts: Vec<Self> = { parts.iter() }
            .map(|part| Self::single(part))
            .collect::<Result<_, _>>()?;
        let mut shapes = BTreeMap::new();
        for part in &parts {
            for (name, shape) in &part.shapes {
                if shapes.insert(name.clone(), shape.clone()).is_some() {
                    let problem = format!("`{name}` is in two of its {} files", parts.len());
                    return Err(WeightsError::format(path, problem));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            shapes,
            metadata: Metadata::new(),
            content: TensorContent::Parts(parts),
        })
    }

    fn single(path: &Path) -> Result<Self, WeightsError> {
        let mut file = fs::File::open(path)?;
        let mut beginning = Vec::new();
        file.by_ref().take(64).read_to_end(&mut beginning)?;
        if let Some(found) = checkpoint::not_weights(&beginning) {
            return Err(WeightsError::format(path, found));
        }
        if !torch::is_torch(&beginning) {
            let (state, metadata) = checkpoint::read(path)?;
            return Ok(Self::safetensors(path, state, metadata));
        }
        file.rewind()?;
        Self::torch(path, Box::new(file.into_file()))
    }

    /// As [`TensorFile::open`], from memory; `path` is what errors name.
    ///
    /// # Errors
    ///
    /// As [`TensorFile::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        if torch::is_torch(&bytes) {
            return Self::torch(path, Box::new(Cursor::new(bytes)));
        }
        let (state, metadata) = checkpoint::read_bytes(&bytes, path)?;
        Ok(Self::safetensors(path, state, metadata))
    }

    fn safetensors(path: &Path, state: StateDict, metadata: Metadata) -> Self {
        let shape = |(name, array): (&String, &HostTensor)| (name.clone(), array.shape.clone());
        Self {
            path: path.to_owned(),
            shapes: state.iter().map(shape).collect(),
            metadata,
            content: TensorContent::Safetensors(state),
        }
    }

    fn torch(path: &Path, source: Box<dyn torch::TensorSource>) -> Result<Self, WeightsError> {
        let file =
            TorchFile::open(source).map_err(|problem| WeightsError::format(path, problem))?;
        Ok(Self {
            path: path.to_owned(),
            shapes: file.shapes(),
            metadata: Metadata::new(),
            content: TensorContent::Torch(Box::new(file)),
        })
    }

    /// What wrote it, in words.
    pub fn container(&self) -> &'static str {
        match &self.content {
            TensorContent::Safetensors(_) => "safetensors",
            TensorContent::Torch(file) => file.container(),
            TensorContent::Parts(parts) => parts.first().map_or("safetensors", Self::container),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Text beside the tensors; PyTorch's files have none.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Shapes by name; of safetensors those of floats only.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// A tensor as 32-bit floats, once: what was read is no longer held.
    ///
    /// # Errors
    ///
    /// There is none of that name, or it cannot be read.
    pub fn read(&mut self, name: &str) -> Result<HostTensor, WeightsError> {
        let array = match &mut self.content {
            TensorContent::Safetensors(state) => state.remove(name),
            TensorContent::Torch(file) => file
                .read(name)
                .map_err(|problem| WeightsError::format(&self.path, problem))?,
            TensorContent::Parts(parts) => {
                let mut holding = parts
                    .iter_mut()
                    .filter(|part| part.shapes.contains_key(name));
                holding.next().map(|part| part.read(name)).transpose()?
            }
        };
        array.ok_or_else(|| WeightsError::format(&self.path, format!("no tensor `{name}`")))
    }
}
