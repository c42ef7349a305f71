//! Calibration: statistics of each attribute logit over all images.
//!
//! It is computed from the stored logits when all shards are complete, without running CLIP again.

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
