//! What an exported file says beside its tensors: `export` writes it, and `import` reads it again.

use clasp_data::image::Filter;
use serde::{Deserialize, Serialize};

use crate::backbone::BackboneMeta;

/// Key in an exported file's metadata: how the backbone's windows lie on a map, as in the metadata
/// of a backbone file.
pub(crate) const WINDOWS: &str = "clasp.windows";

/// Key in an exported file's metadata: its [`Preprocessing`] as JSON.
pub(crate) const PREPROCESSING: &str = "preprocessing";

/// Key in an exported file's metadata: a license line of the backbone's own a line.
pub(crate) const LICENSES: &str = "licenses";

/// What an exported file says of its images.
#[derive(Serialize, Deserialize)]
pub(crate) struct Preprocessing {
    pub height: usize,
    pub width: usize,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub interpolation: Filter,
}

impl Preprocessing {
    /// The preprocessing of a backbone as JSON.
    pub(crate) fn of(meta: &BackboneMeta) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Self {
            height: meta.height,
            width: meta.width,
            mean: meta.mean,
            std: meta.std,
            interpolation: meta.filter,
        })
    }
}

/// Value of [`WINDOWS`].
pub(crate) fn windows_of(meta: &BackboneMeta) -> String {
    match serde_json::to_value(meta.config.padding) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// How a license line ends whose license stands beside the checkpoint.
pub(crate) const STATED_BESIDE: &str = ", as the config.json beside it states";
