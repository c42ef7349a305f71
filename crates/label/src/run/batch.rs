//! Reads, decodes and labels the images of a batch.

use std::ops::Range;

use clasp_data::image::{self, Limits};
use clasp_data::labels::{Labels, image_digest};
use clasp_data::source::Source;
use rayon::prelude::*;

use crate::Error;
use crate::labeler::Labeler;

/// Reads, decodes and labels a batch. Unreadable images are returned with the reason.
#[allow(clippy::type_complexity)]
pub(super) fn label_batch<L: Labeler>(
    source: &Source,
    labeler: &L,
    images: Range<usize>,
    limits: &Limits,
) -> Result<(Vec<Labels>, Vec<(usize, String)>), Error> {
    let prepared: Vec<_> = images
        .into_par_iter()
        .map(|index| {
            let prepare = |(image, read)| (labeler.prepare(&image), read);
            (index, decode(source, index, limits).map(prepare))
        })
        .collect();
    let mut pixels = Vec::new();
    let (mut read, mut failures) = (Vec::new(), Vec::new());
    for (index, image) in prepared {
        match image {
            Ok((mut values, of_image)) => {
                pixels.append(&mut values);
                read.push((index, of_image));
            }
            Err(reason) => failures.push((index, reason)),
        }
    }
    if read.is_empty() {
        return Ok((Vec::new(), failures));
    }
    let keys: Vec<&str> = read.iter().map(|(index, _)| source.key(*index)).collect();
    let labels = labeler.label(&keys, pixels)?;
    if labels.len() != keys.len() {
        return Err(Error::Network {
            place: "labels of a batch",
            expected: format!("{} of them", keys.len()),
            found: labels.len().to_string(),
        });
    }
    let labels = labels
        .into_iter()
        .zip(&read)
        .map(|(values, (index, of_image))| Labels {
            key: source.key(*index).to_owned(),
            width: of_image.width,
            height: of_image.height,
            values,
            image_sha256: of_image.digest.clone(),
        })
        .collect();
    Ok((labels, failures))
}

/// Size and digest of an image, as stored with its labels.
struct ImageFacts {
    height: u16,
    width: u16,
    digest: String,
}

/// An image with its size and digest, or why it cannot be used.
fn decode(
    source: &Source,
    index: usize,
    limits: &Limits,
) -> Result<(image::Rgb, ImageFacts), String> {
    let bytes = source.read(index).map_err(|error| error.to_string())?;
    let image = image::decode(&bytes, limits).map_err(|error| error.to_string())?;
    match (u16::try_from(image.height), u16::try_from(image.width)) {
        (Ok(height), Ok(width)) => {
            let digest = image_digest(&bytes);
            Ok((
                image,
                ImageFacts {
                    height,
                    width,
                    digest,
                },
            ))
        }
        _ => Err(format!(
            "expected sides of at most {} pixels, found {}x{}",
            u16::MAX,
            image.height,
            image.width
        )),
    }
}

/// Whether an image can be used.
pub(super) fn is_readable(source: &Source, image: usize, limits: &Limits) -> bool {
    decode(source, image, limits).is_ok()
}
