//! Captions of photos of Clothing Co-Parsing, from their tags and masks.

use clasp_data::image::Rgb;
use clasp_data::layouts::ccp::{CcpPart, ccp_part, ccp_parts};
use clasp_data::{Rng, part};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::captioned_image::CaptionedImage;
use super::crops::{part_crop, part_image};
use super::templates::{a, framed, one, part_framed};

/// The noun phrase for a tag of CCP: "a jacket", "jeans".
fn ccp_noun(tag: &str) -> String {
    let plural = matches!(
        tag,
        "hair"
            | "glasses"
            | "sunglasses"
            | "pants"
            | "jeans"
            | "shorts"
            | "stockings"
            | "tights"
            | "leggings"
            | "gloves"
            | "earrings"
            | "panties"
            | "intimate"
            | "swimwear"
            | "accessories"
    ) || matches!(ccp_part(tag), CcpPart::One(part::FEET));
    if plural { tag.to_owned() } else { a(tag) }
}

/// A caption for a photo of CCP from its tags; it names only tagged things, but not all of them.
pub fn ccp_caption(tags: &[&str], rng: &mut Rng) -> String {
    // Hair and skin are in every photo; `accessories` and `null` name nothing.
    let dull = ["null", "skin", "accessories", "intimate"];
    let mut nouns: Vec<String> = tags
        .iter()
        .filter(|tag| !dull.contains(tag))
        .map(|tag| ccp_noun(tag))
        .collect();
    nouns.shuffle(rng);
    let who = one(
        rng,
        &[
            "a person",
            "a person",
            "someone",
            "a person in a street",
            "a fashion model",
        ],
    );
    if nouns.is_empty() {
        return framed(who.to_owned(), rng);
    }
    let count = if rng.random_bool(0.35) {
        1
    } else {
        rng.random_range(2..=5usize)
    }
    .min(nouns.len());
    nouns.truncate(count);
    let listed = match nouns.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => nouns.join(""),
    };
    match rng.random_range(0..8u32) {
        0..=4 => framed(
            format!("{who} {} {listed}", one(rng, &["wearing", "with", "in"])),
            rng,
        ),
        5 => framed(format!("an outfit with {listed}"), rng),
        6 => nouns.join(", "),
        _ => framed(listed, rng),
    }
}

/// A crop of a CCP photo that one part fills, with a caption from the label that fills most of it;
/// none where the part is too small.
///
/// mask: label numbers, [height, width] as the image; labels: names by number; class: the part
/// class wanted.
///
/// # Panics
/// If mask and image differ in size.
pub fn ccp_pair(
    image: &Rgb,
    mask: &[u8],
    labels: &[String],
    class: u8,
    rng: &mut Rng,
) -> Option<CaptionedImage> {
    assert!(
        mask.len() == image.width * image.height,
        "a mask of {} pixels for an image of {}x{}",
        mask.len(),
        image.height,
        image.width
    );
    let parts = ccp_parts(mask, image.width, labels);
    let area = part_crop(&parts, image.width, class, rng)?;
    let mut counts = [0usize; 256];
    for y in area[1]..area[1] + area[3] {
        for x in area[0]..area[0] + area[2] {
            let at = y * image.width + x;
            if parts[at] == class {
                counts[usize::from(mask[at])] += 1;
            }
        }
    }
    let label = counts
        .iter()
        .enumerate()
        .max_by_key(|(_, n)| **n)
        .map_or(0, |(k, _)| k);
    let name = labels.get(label).map_or("", String::as_str);
    let plain: &[&str] = match class {
        part::BACKGROUND => &[
            "the background",
            "a street",
            "the background without people",
            "a place without people",
            "a wall",
        ],
        part::HEAD => &["a head", "the head of a person"],
        part::UPPER_BODY => &["an upper body", "a torso", "the upper body of a person"],
        part::ARMS => &["an arm", "arms", "a bare arm", "a hand"],
        part::LOWER_BODY => &["a lower body", "the lower body of a person"],
        part::LEGS => &["legs", "the legs of a person", "a leg"],
        part::FEET => &["feet", "a shoe", "shoes", "the feet of a person"],
        _ => &["a bag", "the bag of a person"],
    };
    let phrase = match name {
        _ if class == part::BACKGROUND => one(rng, plain).to_owned(),
        "skin" if class == part::HEAD => {
            one(rng, &["a face", "a head", "the face of a person"]).to_owned()
        }
        "skin" if class == part::LEGS => one(
            rng,
            &["bare legs", "a bare leg", "legs", "the legs of a person"],
        )
        .to_owned(),
        "skin" => one(rng, plain).to_owned(),
        name if rng.random_bool(0.6) => ccp_noun(name),
        _ => one(rng, plain).to_owned(),
    };
    let caption = if class == part::BACKGROUND {
        framed(phrase, rng)
    } else {
        part_framed(phrase, rng)
    };
    let (image, parts) = part_image(image, &parts, area, rng);
    Some(CaptionedImage {
        image,
        caption,
        part: Some(class),
        parts,
        attributes: None,
    })
}
