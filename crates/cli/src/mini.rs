//! The small CLIP that the binary carries: a stand-in for where no published CLIP is at hand.

use anyhow::Result;
use burn::tensor::Device;
use clasp_model::clip::Clip;
use clasp_weights::clip::{self, ClipInfo};

const CONFIG: &[u8] = include_bytes!("../../../assets/clasp-mini/open_clip_config.json");
const MODEL: &[u8] = include_bytes!("../../../assets/clasp-mini/open_clip_model.safetensors");

/// Said wherever the stand-in is used.
pub const NOTE: &str = "labels by clasp-mini, a small stand-in trained on drawn people; for photos give a published CLIP with --clip";

/// Whether `name` is the stand-in's.
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
