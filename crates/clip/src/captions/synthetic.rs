//! Image-caption pairs of synthetic people.

use clasp_data::image::crop;
use clasp_data::{Rng, part, rng_for};
use clasp_synth::{
    AttributeValues, Camera, LowerKind, Occluder, Shot, Sleeve, SynthPerson, render, render_place,
};
use rand::RngExt;

use super::captioned_image::CaptionedImage;
use super::crops::{crop_labels, part_crop, part_image};
use super::describe::{background_caption, describe, part_caption};
use super::facts::BodyExtent;

/// The `index`-th pair of an unlimited series. The same arguments give the same pair, in any order.
///
/// Of a hundred pairs about 60 show a whole person, 16 a half, 24 a part (three for each of the
/// eight classes).
#[must_use]
pub fn synthetic_pair(seed: u64, index: u64) -> CaptionedImage {
    let mut rng = rng_for(seed, 0, &format!("drawn pair {index}"));
    let share = rng.random_range(0..100u32);
    if share < 76 {
        let extent = match share {
            0..=59 => BodyExtent::Whole,
            60..=70 => BodyExtent::UpperHalf,
            _ => BodyExtent::LowerHalf,
        };
        return person_pair(extent, &mut rng);
    }
    let class = ((share - 76) / 3) as u8;
    // A picture rarely lacks the wanted part; then another one is rendered.
    for _ in 0..24 {
        if let Some(pair) = part_pair(class, &mut rng) {
            return pair;
        }
    }
    person_pair(BodyExtent::Whole, &mut rng)
}

fn person_pair(extent: BodyExtent, rng: &mut Rng) -> CaptionedImage {
    let person = SynthPerson::sample(rng);
    let mut shot = Shot::sample(&person, rng);
    // A caption may name anything about the person: only narrow occluders are allowed.
    if extent != BodyExtent::Whole
        || !matches!(shot.occluder, Some(Occluder::Pole(_) | Occluder::Edge(_)))
    {
        shot.occluder = None;
    }
    let height = rng.random_range(144..=320usize);
    let rendered = render(&person, &shot, height, height / 2);
    let (h, w) = (height as f32, height as f32 / 2.0);
    let [x, y, bw, bh] = rendered.bbox_xywh;
    let cut = |x0: f32, y0: f32, x1: f32, y1: f32| -> [usize; 4] {
        let (x0, y0) = (
            x0.clamp(0.0, w - 8.0) as usize,
            y0.clamp(0.0, h - 8.0) as usize,
        );
        let (x1, y1) = (
            (x1.min(w) as usize).max(x0 + 8),
            (y1.min(h) as usize).max(y0 + 8),
        );
        [
            x0,
            y0,
            (x1 - x0).min(rendered.image.width - x0),
            (y1 - y0).min(rendered.image.height - y0),
        ]
    };
    let loose = |rng: &mut Rng, size: f32| size * rng.random_range(0.0..0.16f32);
    let area = match extent {
        BodyExtent::Whole if rng.random_bool(0.4) => {
            [0, 0, rendered.image.width, rendered.image.height]
        }
        BodyExtent::Whole => cut(
            x - loose(rng, bw),
            y - loose(rng, bh) * 0.5,
            x + bw + loose(rng, bw),
            y + bh + loose(rng, bh) * 0.5,
        ),
        BodyExtent::UpperHalf => {
            let end = y + bh * rng.random_range(0.4..0.5f32);
            cut(
                x - loose(rng, bw),
                y - loose(rng, bh) * 0.5,
                x + bw + loose(rng, bw),
                end,
            )
        }
        BodyExtent::LowerHalf => {
            let start = y + bh * rng.random_range(0.44..0.5f32);
            cut(
                x - loose(rng, bw),
                start,
                x + bw + loose(rng, bw),
                y + bh + loose(rng, bh) * 0.5,
            )
        }
    };
    CaptionedImage {
        image: crop(&rendered.image, area),
        caption: describe(&person, &shot, extent, rng),
        part: None,
        parts: crop_labels(&rendered.parts, rendered.image.width, area),
        attributes: Some(seen_attributes(rendered.attributes, extent)),
    }
}

/// The attributes that can be determined from what is shown. A bag may hang at either half, so
/// neither half determines it; a dress differs from a skirt only by both halves.
fn seen_attributes(mut attributes: AttributeValues, extent: BodyExtent) -> AttributeValues {
    const UPPER: &[&str] = &[
        "gender",
        "age",
        "hair_length",
        "headwear",
        "glasses",
        "upper_color",
        "sleeve_length",
        "upper_pattern",
        "view",
    ];
    const LOWER: &[&str] = &["lower_color", "lower_type", "footwear", "view"];
    let kept = match extent {
        BodyExtent::Whole => return attributes,
        BodyExtent::UpperHalf => UPPER,
        BodyExtent::LowerHalf => LOWER,
    };
    attributes.retain(|name, value| kept.contains(name) && !matches!(*value, "dress" | "skirt"));
    attributes
}

/// A person that has the part, and a crop that the part fills.
fn part_pair(class: u8, rng: &mut Rng) -> Option<CaptionedImage> {
    let person = person_with(class, rng)?;
    let mut shot = Shot::sample(&person, rng);
    shot.occluder = None;
    let height = rng.random_range(224..=384usize);
    if class == part::BACKGROUND && rng.random_bool(0.5) {
        // A place without people.
        let camera = Camera::sample(rng);
        let image = render_place(&camera, height, height / 2, rng);
        let side = rng.random_range(0.3..1.0f32);
        let (ch, cw) = (
            (height as f32 * side) as usize,
            (height as f32 * 0.5 * side) as usize,
        );
        let area = [
            rng.random_range(0..=image.width - cw),
            rng.random_range(0..=image.height - ch),
            cw,
            ch,
        ];
        return Some(CaptionedImage {
            image: crop(&image, area),
            caption: background_caption(camera.place, rng),
            part: Some(class),
            parts: vec![part::BACKGROUND; cw * ch],
            attributes: None,
        });
    }
    let rendered = render(&person, &shot, height, height / 2);
    let area = part_crop(&rendered.parts, rendered.image.width, class, rng)?;
    let caption = part_caption(&person, &shot, &rendered, class, area, rng);
    let (image, parts) = part_image(&rendered.image, &rendered.parts, area, rng);
    Some(CaptionedImage {
        image,
        caption,
        part: Some(class),
        parts,
        attributes: None,
    })
}

/// A random person that shows the class.
fn person_with(class: u8, rng: &mut Rng) -> Option<SynthPerson> {
    // Under long sleeves only hands are bare; half of the arms are to be whole.
    let short = rng.random_bool(0.5);
    (0..60)
        .map(|_| SynthPerson::sample(rng))
        .find(|person| match class {
            part::BAG => person.bag.is_some(),
            part::LEGS => person.lower.kind != LowerKind::Trousers,
            part::ARMS => !short || person.upper.sleeve == Sleeve::Short,
            _ => true,
        })
}
