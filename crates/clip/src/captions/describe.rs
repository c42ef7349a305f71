//! Captions of synthetic people, of their parts, and of places without people.

use clasp_data::{Rng, part};
use clasp_synth::{
    Footwear, HairStyle, Headwear, LowerKind, PlaceKind, RenderedPerson, Shot, Sleeve, SynthPerson,
    View, group,
};
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use super::facts::{
    BodyExtent, bag_fact, bag_noun, dress_noun, facts, hair_fact, lower_noun, shoe_noun, subject,
    upper_noun, view_fact,
};
use super::templates::{a, framed, one, part_framed};

/// A caption of a whole person, from one attribute to all of them.
pub fn caption(person: &SynthPerson, shot: &Shot, rng: &mut Rng) -> String {
    describe(person, shot, BodyExtent::Whole, rng)
}

pub(super) fn describe(
    person: &SynthPerson,
    shot: &Shot,
    extent: BodyExtent,
    rng: &mut Rng,
) -> String {
    let mut facts = facts(person, shot, extent, rng);
    let half = |text: String| match extent {
        BodyExtent::Whole => text,
        BodyExtent::UpperHalf => format!("the upper half of {text}"),
        BodyExtent::LowerHalf => format!("the lower half of {text}"),
    };
    let style = rng.random_range(0..100u32);
    // Short captions about one thing are like the prompts of zero-shot labeling: they come often.
    if style < 38 {
        if rng.random_bool(0.12) {
            let subject = subject(person, rng);
            return framed(half(subject), rng);
        }
        let fact = facts.choose(rng).cloned().unwrap_or_default();
        let who = if rng.random_bool(0.7) {
            "a person".to_owned()
        } else {
            subject(person, rng)
        };
        return framed(half(format!("{who} {fact}")), rng);
    }
    let who = subject(person, rng);
    if style < 70 || extent != BodyExtent::Whole {
        facts.shuffle(rng);
        let count = rng.random_range(2..=4usize).min(facts.len());
        let (last, first) = (facts[count - 1].clone(), facts[..count - 1].join(", "));
        let joined = if rng.random_bool(0.5) {
            format!("{first} and {last}")
        } else {
            format!("{first}, {last}")
        };
        return framed(half(format!("{who} {joined}")), rng);
    }
    // One whole sentence in the usual order.
    let mut text = who;
    if rng.random_bool(0.7) {
        text += &format!(" {}", hair_fact(person, rng));
    }
    let clothes = if person.lower.kind == LowerKind::Dress {
        a(&dress_noun(person, rng))
    } else {
        format!(
            "{} and {}",
            a(&upper_noun(person, rng)),
            lower_noun(person, rng)
        )
    };
    text += &format!(" {} {clothes}", one(rng, &["in", "wearing", "dressed in"]));
    if rng.random_bool(0.4) {
        text += &format!(" with {}", shoe_noun(person, rng));
    }
    if rng.random_bool(0.5) {
        text += &format!(", {}", bag_fact(person, rng));
    }
    if rng.random_bool(0.6) {
        text += &format!(", {}", view_fact(shot.view(), rng));
    }
    framed(text, rng)
}

pub(super) fn background_caption(place: PlaceKind, rng: &mut Rng) -> String {
    let words: &[&str] = match place {
        PlaceKind::Street => &[
            "a street",
            "a road",
            "buildings",
            "a street without people",
            "an empty street",
            "houses in a street",
        ],
        PlaceKind::Wall => &[
            "a wall",
            "a wall and the ground",
            "a wall without people",
            "an empty place by a wall",
        ],
        PlaceKind::Park => &[
            "grass",
            "trees",
            "a park",
            "a park without people",
            "a meadow with trees",
            "trees and grass",
        ],
        PlaceKind::Indoor => &[
            "a room",
            "an empty hall",
            "a wall and a floor",
            "a room without people",
            "the inside of a building",
        ],
    };
    let phrase = if rng.random_bool(0.4) {
        one(
            rng,
            &[
                "the background",
                "background",
                "the background without people",
                "a place without people",
                "nobody",
            ],
        )
        .to_owned()
    } else if rng.random_bool(0.2) {
        format!("the background, {}", one(rng, words))
    } else {
        one(rng, words).to_owned()
    };
    match rng.random_range(0..10u32) {
        0..=4 => phrase,
        5..=7 => format!("a photo of {phrase}"),
        _ => format!("a picture of {phrase}"),
    }
}

/// A caption of a crop that one part fills.
pub(super) fn part_caption(
    person: &SynthPerson,
    shot: &Shot,
    rendered: &RenderedPerson,
    class: u8,
    area: [usize; 4],
    rng: &mut Rng,
) -> String {
    // The limb that most of the crop's pixels of the class belong to.
    let mut limbs = [0usize; 16];
    for y in area[1]..area[1] + area[3] {
        for x in area[0]..area[0] + area[2] {
            let at = y * rendered.image.width + x;
            if rendered.parts[at] == class {
                limbs[usize::from(rendered.limbs[at]) & 15] += 1;
            }
        }
    }
    let on = |first: u8| limbs[usize::from(first)] + limbs[usize::from(first) + 1];
    let total: usize = limbs.iter().sum();
    let on_arms = on(group::ARMS) * 10 > total * 7;
    let phrase = match class {
        part::HEAD => head_phrase(person, shot, rng),
        part::UPPER_BODY => upper_body_phrase(person, on_arms, rng),
        part::ARMS => arms_phrase(person, rng),
        part::LOWER_BODY => lower_body_phrase(person, rng),
        part::LEGS => legs_phrase(person, rng),
        part::FEET => feet_phrase(person, rng),
        part::BAG => bag_phrase(person, rng),
        _ => return background_caption(shot.camera.place, rng),
    };
    part_framed(phrase, rng)
}

/// The head: its side, hair or headwear.
fn head_phrase(person: &SynthPerson, shot: &Shot, rng: &mut Rng) -> String {
    match (shot.view(), rng.random_range(0..6u32)) {
        (View::Back, 0..=1) => "the back of a head".to_owned(),
        (View::Back, 2) if person.headwear.is_none() && person.hair.style != HairStyle::Bald => {
            "hair".to_owned()
        }
        (View::Front | View::Side, 0..=1) => format!("the face of {}", whose(person, rng)),
        (View::Front | View::Side, 2) => "a face".to_owned(),
        (_, 3) => match person.headwear {
            Some((Headwear::Cap, color)) => {
                one(rng, &["a head with a cap", "a cap", "a head in a cap"]).to_owned()
                    + &with_color(color.hue.name(), rng)
            }
            Some((_, _)) => one(rng, &["a head with a hat", "a hat", "a hat on a head"]).to_owned(),
            None if person.hair.style == HairStyle::Bald => "a bald head".to_owned(),
            None => format!("a head with {} hair", person.hair.word),
        },
        (_, 4) => format!("the head of {}", whose(person, rng)),
        _ => one(rng, &["a head", "a head", "a head and a neck"]).to_owned(),
    }
}

/// The upper body, or a sleeve if most of the crop is on the arms.
fn upper_body_phrase(person: &SynthPerson, on_arms: bool, rng: &mut Rng) -> String {
    if on_arms {
        let noun = a(&upper_noun(person, rng));
        match rng.random_range(0..4u32) {
            0..=1 => "a sleeve".to_owned(),
            2 => format!("the sleeve of {noun}"),
            _ => noun,
        }
    } else {
        match rng.random_range(0..6u32) {
            0 => "an upper body".to_owned(),
            1 => "a torso".to_owned(),
            2 => format!("the upper body of {}", whose(person, rng)),
            3 => format!(
                "the torso of {} in {}",
                whose(person, rng),
                a(&upper_noun(person, rng))
            ),
            _ => a(&upper_noun(person, rng)),
        }
    }
}

/// Bare arms, or hands under long sleeves.
fn arms_phrase(person: &SynthPerson, rng: &mut Rng) -> String {
    if person.upper.sleeve == Sleeve::Long {
        one(
            rng,
            &[
                "a hand",
                "a hand",
                "hands",
                "the hand of a person",
                "a bare hand",
            ],
        )
        .to_owned()
    } else {
        match rng.random_range(0..6u32) {
            0 => "an arm".to_owned(),
            1 => "arms".to_owned(),
            2..=3 => "a bare arm".to_owned(),
            4 => format!("an arm of {}", whose(person, rng)),
            _ => one(
                rng,
                &["an arm and a hand", "an elbow of a bare arm", "bare arms"],
            )
            .to_owned(),
        }
    }
}

/// The lower body or its garment.
fn lower_body_phrase(person: &SynthPerson, rng: &mut Rng) -> String {
    match rng.random_range(0..6u32) {
        0 => "a lower body".to_owned(),
        1 => format!("the lower body of {}", whose(person, rng)),
        2 => format!(
            "the lower body of {} in {}",
            whose(person, rng),
            lower_noun(person, rng)
        ),
        3 if person.lower.kind == LowerKind::Dress => "the skirt of a dress".to_owned(),
        _ => lower_noun(person, rng),
    }
}

/// Legs, bare or in stockings.
fn legs_phrase(person: &SynthPerson, rng: &mut Rng) -> String {
    match (person.stockings, rng.random_range(0..6u32)) {
        (Some(color), 0..=2) => {
            one(rng, &["stockings", "legs in stockings"]).to_owned()
                + &with_color(color.hue.name(), rng)
        }
        (None, 0..=1) => one(rng, &["bare legs", "a bare leg"]).to_owned(),
        (None, 2) => one(rng, &["knees", "bare legs with knees", "a bare leg"]).to_owned(),
        (_, 3) => "legs".to_owned(),
        (_, 4) => format!("the legs of {}", whose(person, rng)),
        _ => format!(
            "legs of {} in {}",
            whose(person, rng),
            lower_noun(person, rng)
        ),
    }
}

/// Feet or shoes.
fn feet_phrase(person: &SynthPerson, rng: &mut Rng) -> String {
    match rng.random_range(0..6u32) {
        0 => "feet".to_owned(),
        1 => format!("the feet of {}", whose(person, rng)),
        2 => match person.shoes.0 {
            Footwear::Boots => "a boot",
            Footwear::Sandals => "a sandal",
            _ => "a shoe",
        }
        .to_owned(),
        3 => format!("feet in {}", shoe_noun(person, rng)),
        _ => shoe_noun(person, rng),
    }
}

/// The bag.
fn bag_phrase(person: &SynthPerson, rng: &mut Rng) -> String {
    match person.bag {
        Some((kind, color)) => {
            let noun = bag_noun(kind, rng);
            match rng.random_range(0..5u32) {
                0 => "a bag".to_owned(),
                1..=2 => a(noun),
                3 => a(&format!("{} {noun}", color.hue.name())),
                _ => format!("the {noun} of {}", whose(person, rng)),
            }
        }
        None => "a bag".to_owned(),
    }
}

/// "a person", or who it is.
fn whose(person: &SynthPerson, rng: &mut Rng) -> String {
    let who = subject(person, rng);
    if rng.random_bool(0.5) {
        who
    } else {
        "a person".to_owned()
    }
}

/// A color added to a noun phrase, or nothing.
pub(super) fn with_color(hue: &str, rng: &mut Rng) -> String {
    if rng.random_bool(0.3) {
        format!(", {hue}")
    } else {
        String::new()
    }
}
