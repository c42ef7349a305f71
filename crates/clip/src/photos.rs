//! Photos with tags and masks in the layout of Clothing Co-Parsing: `attributes.csv` names tagged
//! photos, `parsing.csv` photos with masks.

use std::collections::BTreeMap;
use std::path::Path;

use clasp_data::image::{Limits, Rgb};
use clasp_data::layouts::attributes::AttributeDataset;
use clasp_data::layouts::parsing::ParsingDataset;
use clasp_data::source::load_file;

use crate::error::Error;

/// A folder with `attributes.csv` and `parsing.csv` that have CCP's tags and labels. Images are
/// decoded when an iterator reaches them.
pub(crate) struct CcpPhotos {
    attributes: AttributeDataset,
    parsing: ParsingDataset,
}

/// A photo with the names of its tags.
pub(crate) struct TaggedPhoto {
    pub image: Rgb,
    pub tags: Vec<String>,
}

impl TaggedPhoto {
    /// The tags as slices.
    pub fn tags(&self) -> Vec<&str> {
        self.tags.iter().map(String::as_str).collect()
    }
}

/// A photo with the label number of each pixel, `[height, width]` as the image.
pub(crate) struct MaskedPhoto {
    pub image: Rgb,
    pub labels: Vec<u8>,
}

impl CcpPhotos {
    /// Reads both tables of a folder.
    ///
    /// # Errors
    ///
    /// A table is missing or broken; the message names it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        Ok(Self {
            attributes: AttributeDataset::open(folder)?,
            parsing: ParsingDataset::open(folder)?,
        })
    }

    /// Names of the labels of masks, by number.
    pub fn classes(&self) -> &[String] {
        &self.parsing.classes
    }

    /// The tagged photos of a split.
    ///
    /// # Errors
    ///
    /// The split does not exist; for an item, its image cannot be read.
    pub fn tagged(
        &self,
        split: &str,
    ) -> Result<impl Iterator<Item = Result<TaggedPhoto, Error>> + '_, Error> {
        let photos = self.attributes.split(split)?;
        Ok(photos.into_iter().map(|photo| {
            let tags = self.attributes.names.iter().zip(&photo.values);
            Ok(TaggedPhoto {
                image: read_image(&photo.path)?,
                tags: tags
                    .filter(|(_, tagged)| **tagged)
                    .map(|(name, _)| name.clone())
                    .collect(),
            })
        }))
    }

    /// The photos of a split that have a mask.
    ///
    /// # Errors
    ///
    /// The split does not exist; for an item, its image or mask cannot be read, or they differ in
    /// size.
    pub fn masked(
        &self,
        split: &str,
    ) -> Result<impl Iterator<Item = Result<MaskedPhoto, Error>> + '_, Error> {
        let photos = self.parsing.split(split)?;
        Ok(photos.into_iter().map(|photo| {
            let image = read_image(&photo.image)?;
            let mask = self.parsing.read_mask(&photo.mask)?;
            let (expected, found) = ([image.height, image.width], [mask.height, mask.width]);
            if found != expected {
                return Err(Error::MaskSize {
                    mask: photo.mask.clone(),
                    expected,
                    found,
                });
            }
            Ok(MaskedPhoto {
                image,
                labels: mask.labels,
            })
        }))
    }
}

fn read_image(path: &Path) -> Result<Rgb, Error> {
    Ok(load_file(path, &Limits::default())?)
}

/// The attributes that CCP's tags determine: lower type and footwear where exactly one kind is
/// tagged, headwear and glasses by the presence of their tags (a forgotten tag counts as absent).
pub(crate) fn attributes_of_tags(tags: &[&str]) -> BTreeMap<String, String> {
    const LOWER: [(&str, &[&str]); 4] = [
        ("trousers", &["pants", "jeans", "leggings"]),
        ("shorts", &["shorts"]),
        ("skirt", &["skirt"]),
        ("dress", &["dress"]),
    ];
    const SHOES: [(&str, &[&str]); 3] = [
        (
            "shoes",
            &[
                "shoes", "flats", "heels", "loafers", "pumps", "sneakers", "wedges",
            ],
        ),
        ("boots", &["boots"]),
        ("sandals", &["sandals"]),
    ];
    let has = |any: &[&str]| any.iter().any(|tag| tags.contains(tag));
    let mut truth = BTreeMap::new();
    for (name, kinds) in [
        ("lower_type", LOWER.as_slice()),
        ("footwear", SHOES.as_slice()),
    ] {
        let mut worn = kinds.iter().filter(|(_, names)| has(names));
        if let (Some((kind, _)), None) = (worn.next(), worn.next()) {
            truth.insert(name.to_owned(), (*kind).to_owned());
        }
    }
    for (name, names) in [
        ("headwear", ["hat"].as_slice()),
        ("glasses", &["glasses", "sunglasses"]),
    ] {
        let answer = if has(names) { "yes" } else { "no" };
        truth.insert(name.to_owned(), answer.to_owned());
    }
    truth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_determine_some_attributes() {
        let truth = attributes_of_tags(&["jeans", "t-shirt", "hat", "boots", "sneakers"]);
        assert_eq!(truth["lower_type"], "trousers");
        assert_eq!(truth["headwear"], "yes");
        assert_eq!(truth["glasses"], "no");
        assert!(!truth.contains_key("footwear"), "two kinds");
        assert!(!attributes_of_tags(&["top"]).contains_key("lower_type"));
    }
}
