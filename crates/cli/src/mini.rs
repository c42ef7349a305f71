//! clasp-mini, the tiny CLIP that the program contains, for use without a download.

use anyhow::Result;
use burn::tensor::Device;
use clasp_model::clip::Clip;
use clasp_weights::clip::{self, ClipInfo};

const CONFIG: &[u8] = include_bytes!("../../../assets/clasp-mini/open_clip_config.json");
const MODEL: &[u8] = include_bytes!("../../../assets/clasp-mini/open_clip_model.safetensors");

/// Printed wherever clasp-mini is used.
pub const NOTE: &str = "labels by clasp-mini, a tiny CLIP trained on synthetic people and 1,401 photos; for photos give a published CLIP with --clip";

/// Whether `name` is clasp-mini.
pub fn is_mini(name: &str) -> bool {
    name == "mini"
}

/// The CLIP called `name`: `mini`, a folder, or a name on the hub.
///
/// # Errors
///
/// The folder or name holds no CLIP; the error says which files to put where.
pub fn load(name: &str, device: &Device) -> Result<(Clip, ClipInfo)> {
    Ok(if is_mini(name) {
        clip::from_bytes(CONFIG, MODEL, "clasp-mini", device)?
    } else {
        clip::load_clip(name, device)?
    })
}
