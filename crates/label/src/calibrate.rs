//! Calibration: how each attribute logit lies over the whole corpus.
//!
//! It is taken from the stored logits when all shards are there, and may be taken again at any time; CLIP does not run.

use std::path::Path;

use clasp_data::labels::Calibration;

use crate::Error;

/// Computes the calibration of the labels in `folder` and writes it beside them.
///
/// # Errors
///
/// No labels, labels that do not belong together, or the file cannot be written.
pub fn calibrate(folder: &Path) -> Result<Calibration, Error> {
    let calibration = Calibration::of_folder(folder)?;
    calibration.write(folder)?;
    Ok(calibration)
}
