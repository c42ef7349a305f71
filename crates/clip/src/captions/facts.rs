//! Phrases about a synthetic person; every phrase is true of the picture.

use clasp_data::Rng;
use clasp_synth::{
    Age, BagKind, Carried, Footwear, Gender, Glasses, HairStyle, Headwear, LowerKind, Pattern,
    PlaceKind, Shot, Sleeve, SynthPerson, UpperKind, View,
};
use rand::RngExt;

use super::templates::{a, one};

/// How much of a person a picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyExtent {
    Whole,
    UpperHalf,
    LowerHalf,
}

pub(super) fn subject(person: &SynthPerson, rng: &mut Rng) -> String {
    let words: &[&str] = match (person.gender, person.age) {
        (Gender::Male, Age::Child) => &[
            "a boy",
            "a little boy",
            "a small boy",
            "a child",
            "a kid",
            "a male child",
        ],
        (Gender::Female, Age::Child) => &[
            "a girl",
            "a little girl",
            "a small girl",
            "a child",
            "a kid",
            "a female child",
        ],
        (Gender::Male, Age::Adult) => &[
            "a man",
            "a man",
            "a young man",
            "an adult man",
            "a male person",
            "an adult",
            "a grown-up person",
        ],
        (Gender::Female, Age::Adult) => &[
            "a woman",
            "a woman",
            "a young woman",
            "an adult woman",
            "a female person",
            "an adult",
            "a lady",
        ],
        (Gender::Male, Age::Older) => &[
            "an old man",
            "an elderly man",
            "an older man",
            "a man",
            "an elderly person",
            "a male person",
        ],
        (Gender::Female, Age::Older) => &[
            "an old woman",
            "an elderly woman",
            "an older woman",
            "a woman",
            "an elderly person",
            "a female person",
        ],
    };
    match rng.random_range(0..10u32) {
        0..=6 => one(rng, words).to_owned(),
        7..=8 => "a person".to_owned(),
        _ => one(rng, &["someone", "a pedestrian", "a person"]).to_owned(),
    }
}

/// The upper garment as a noun phrase without article: "red striped short-sleeved shirt".
pub(super) fn upper_noun(person: &SynthPerson, rng: &mut Rng) -> String {
    let upper = &person.upper;
    if person.lower.kind == LowerKind::Dress {
        return dress_noun(person, rng);
    }
    let noun = match upper.kind {
        UpperKind::TShirt => one(rng, &["t-shirt", "tee", "shirt", "top"]),
        UpperKind::Shirt => one(rng, &["shirt", "button-up shirt", "shirt", "top"]),
        UpperKind::Sweater => one(rng, &["sweater", "jumper", "pullover", "top"]),
        UpperKind::Hoodie => one(rng, &["hoodie", "hooded sweatshirt", "sweatshirt", "top"]),
        UpperKind::Jacket => one(rng, &["jacket", "jacket", "top"]),
        UpperKind::Coat => one(rng, &["coat", "long coat", "jacket"]),
    };
    dressed(person, noun, rng)
}

pub(super) fn dress_noun(person: &SynthPerson, rng: &mut Rng) -> String {
    let noun = if person.lower.length > 0.55 {
        one(rng, &["dress", "long dress"])
    } else {
        one(rng, &["dress", "short dress"])
    };
    dressed(person, noun, rng)
}

/// Color, pattern and sleeves around a garment's noun, any of them perhaps left out.
pub(super) fn dressed(person: &SynthPerson, noun: &str, rng: &mut Rng) -> String {
    let upper = &person.upper;
    let mut words: Vec<&str> = Vec::new();
    let mut after = "";
    if rng.random_bool(0.8) {
        words.push(upper.color.hue.name());
    }
    if rng.random_bool(0.65) {
        match (upper.pattern, rng.random_bool(0.6)) {
            (Pattern::Plain, true) => {
                words.insert(0, one(rng, &["plain", "plain", "single-coloured"]))
            }
            (Pattern::Plain, false) => after = one(rng, &["of one colour", "without a pattern"]),
            (Pattern::Striped, true) => words.push(one(rng, &["striped", "stripy"])),
            (Pattern::Striped, false) => after = "with stripes",
            (Pattern::Checked, true) => words.push(one(rng, &["checked", "plaid", "checkered"])),
            (Pattern::Checked, false) => after = "with checks",
            (Pattern::Logo, true) => words.push("printed"),
            (Pattern::Logo, false) => after = one(rng, &["with a logo", "with a print"]),
        }
    }
    if rng.random_bool(0.35) {
        words.push(match upper.sleeve {
            Sleeve::Short => "short-sleeved",
            Sleeve::Long => "long-sleeved",
        });
    }
    words.push(noun);
    if !after.is_empty() {
        words.push(after);
    }
    words.join(" ")
}

/// The lower garment: "blue jeans", "a black skirt".
pub(super) fn lower_noun(person: &SynthPerson, rng: &mut Rng) -> String {
    let lower = &person.lower;
    let color = if rng.random_bool(0.8) {
        format!("{} ", lower.color.hue.name())
    } else {
        String::new()
    };
    match lower.kind {
        LowerKind::Trousers if lower.jeans && rng.random_bool(0.7) => format!("{color}jeans"),
        LowerKind::Trousers => format!(
            "{color}{}",
            one(rng, &["trousers", "pants", "trousers", "long pants"])
        ),
        LowerKind::Shorts => format!("{color}{}", one(rng, &["shorts", "shorts", "short pants"])),
        LowerKind::Skirt => a(&format!("{color}skirt")),
        LowerKind::Dress => a(&dress_noun(person, rng)),
    }
}

pub(super) fn shoe_noun(person: &SynthPerson, rng: &mut Rng) -> String {
    let (kind, color) = person.shoes;
    let noun = match kind {
        Footwear::Shoes => one(rng, &["shoes", "low shoes", "shoes"]),
        Footwear::Sneakers => one(rng, &["sneakers", "shoes", "trainers"]),
        Footwear::Boots => one(rng, &["boots", "high boots", "boots"]),
        Footwear::Sandals => one(rng, &["sandals", "open shoes", "sandals"]),
    };
    if rng.random_bool(0.6) {
        format!("{} {noun}", color.hue.name())
    } else {
        noun.to_owned()
    }
}

pub(super) fn bag_noun(kind: BagKind, rng: &mut Rng) -> &'static str {
    match kind {
        BagKind::Backpack => one(rng, &["backpack", "backpack", "rucksack"]),
        BagKind::Shoulder => one(rng, &["shoulder bag", "shoulder bag", "cross-body bag"]),
        BagKind::Hand => one(rng, &["handbag", "handbag", "hand bag"]),
    }
}

/// Phrases that follow "a person", at most one for each visible attribute. Every phrase is true.
pub(super) fn facts(
    person: &SynthPerson,
    shot: &Shot,
    extent: BodyExtent,
    rng: &mut Rng,
) -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    let view = shot.view();
    if extent != BodyExtent::LowerHalf {
        head_facts(person, view, &mut facts, rng);
        upper_facts(person, &mut facts, rng);
    }
    if extent != BodyExtent::UpperHalf {
        lower_facts(person, &mut facts, rng);
    }
    if extent == BodyExtent::Whole {
        whole_facts(person, shot, &mut facts, rng);
    }
    facts.push(view_fact(view, rng).to_owned());
    facts
}

/// Hair, headwear and, unless seen from behind, glasses.
fn head_facts(person: &SynthPerson, view: View, facts: &mut Vec<String>, rng: &mut Rng) {
    facts.push(hair_fact(person, rng));
    facts.push(match person.headwear {
        Some((kind, color)) => {
            let noun = match kind {
                Headwear::Cap => one(rng, &["cap", "baseball cap", "hat"]),
                Headwear::Beanie => one(rng, &["beanie", "knitted cap", "hat"]),
                Headwear::Hat => one(rng, &["hat", "brimmed hat", "hat"]),
            };
            let colored = if rng.random_bool(0.5) {
                format!("{} {noun}", color.hue.name())
            } else {
                noun.to_owned()
            };
            match rng.random_range(0..3u32) {
                0 => format!("wearing {}", a(&colored)),
                1 => format!("with {} on the head", a(&colored)),
                _ => format!("in {}", a(&colored)),
            }
        }
        None => one(
            rng,
            &[
                "without a hat",
                "with nothing on the head",
                "with a bare head",
            ],
        )
        .to_owned(),
    });
    if view != View::Back {
        facts.push(
            match person.glasses {
                Glasses::None => one(rng, &["without glasses", "wearing no glasses"]),
                Glasses::Clear => one(rng, &["wearing glasses", "with glasses", "with spectacles"]),
                Glasses::Dark => one(
                    rng,
                    &[
                        "wearing sunglasses",
                        "with dark glasses",
                        "wearing glasses",
                        "with sunglasses",
                    ],
                ),
            }
            .to_owned(),
        );
    }
}

/// The upper garment, its sleeves and pattern, and a scarf.
fn upper_facts(person: &SynthPerson, facts: &mut Vec<String>, rng: &mut Rng) {
    let noun = upper_noun(person, rng);
    facts.push(format!(
        "{} {}",
        one(rng, &["wearing", "in", "with", "dressed in"]),
        a(&noun)
    ));
    facts.push(
        match person.upper.sleeve {
            Sleeve::Short => one(
                rng,
                &[
                    "with short sleeves",
                    "with bare arms",
                    "in a short-sleeved top",
                    "wearing a short-sleeved shirt",
                ],
            ),
            Sleeve::Long => one(
                rng,
                &[
                    "with long sleeves",
                    "in a long-sleeved top",
                    "wearing long sleeves",
                    "whose arms are covered by sleeves",
                ],
            ),
        }
        .to_owned(),
    );
    facts.push(
        match person.upper.pattern {
            Pattern::Plain => one(
                rng,
                &[
                    "in a plain top",
                    "wearing a plain shirt",
                    "in a shirt of one colour",
                ],
            ),
            Pattern::Striped => one(
                rng,
                &[
                    "in a striped top",
                    "wearing a striped shirt",
                    "in a shirt with stripes",
                ],
            ),
            Pattern::Checked => one(
                rng,
                &[
                    "in a checked top",
                    "wearing a plaid shirt",
                    "wearing a checked shirt",
                ],
            ),
            Pattern::Logo => one(
                rng,
                &[
                    "in a printed top",
                    "wearing a shirt with a logo",
                    "in a shirt with a print",
                ],
            ),
        }
        .to_owned(),
    );
    if let Some(scarf) = person.scarf {
        facts.push(format!(
            "with {}",
            a(&format!("{} scarf", scarf.hue.name()))
        ));
    }
}

/// The lower garment and the shoes.
fn lower_facts(person: &SynthPerson, facts: &mut Vec<String>, rng: &mut Rng) {
    let noun = lower_noun(person, rng);
    facts.push(format!(
        "{} {noun}",
        one(rng, &["wearing", "in", "with", "dressed in"])
    ));
    facts.push(
        match person.lower.kind {
            LowerKind::Trousers => {
                one(rng, &["wearing trousers", "in long pants", "wearing pants"])
            }
            LowerKind::Shorts => one(rng, &["wearing shorts", "in shorts", "in short pants"]),
            LowerKind::Skirt => one(rng, &["wearing a skirt", "in a skirt"]),
            LowerKind::Dress => one(rng, &["wearing a dress", "in a dress"]),
        }
        .to_owned(),
    );
    let noun = shoe_noun(person, rng);
    facts.push(format!("{} {noun}", one(rng, &["wearing", "in", "with"])));
}

/// What only a picture of the whole person shows: bag, carried object, gait and place.
fn whole_facts(person: &SynthPerson, shot: &Shot, facts: &mut Vec<String>, rng: &mut Rng) {
    facts.push(bag_fact(person, rng));
    let holds_bag = matches!(person.bag, Some((BagKind::Hand, _)));
    match person.carried {
        Some((kind, color)) => facts.push(carried_fact(kind, color.hue.name(), rng)),
        None if !holds_bag => {
            facts.push(
                one(
                    rng,
                    &[
                        "with empty hands",
                        "holding nothing",
                        "with nothing in the hands",
                    ],
                )
                .to_owned(),
            );
        }
        None => {}
    }
    facts.push(
        one(
            rng,
            if shot.pose.walking {
                &["walking", "who walks"]
            } else {
                &["standing", "who stands"]
            },
        )
        .to_owned(),
    );
    if rng.random_bool(0.5) {
        facts.push(
            match shot.camera.place {
                PlaceKind::Street => {
                    one(rng, &["in a street", "on a street", "outdoors in a town"])
                }
                PlaceKind::Wall => one(rng, &["in front of a wall", "by a wall"]),
                PlaceKind::Park => one(rng, &["in a park", "outdoors on grass"]),
                PlaceKind::Indoor => one(rng, &["indoors", "in a hall", "in a room"]),
            }
            .to_owned(),
        );
    }
}

pub(super) fn view_fact(view: View, rng: &mut Rng) -> &'static str {
    match view {
        View::Front => one(
            rng,
            &["seen from the front", "facing the camera", "from the front"],
        ),
        View::Side => one(rng, &["seen from the side", "in profile", "from the side"]),
        View::Back => one(
            rng,
            &[
                "seen from behind",
                "seen from the back",
                "from behind",
                "turned away from the camera",
            ],
        ),
    }
}

pub(super) fn hair_fact(person: &SynthPerson, rng: &mut Rng) -> String {
    let color = person.hair.word;
    match (person.hair.style, rng.random_range(0..3u32)) {
        (HairStyle::Bald, 0) => "with a bald head".to_owned(),
        (HairStyle::Bald, 1) => "without hair".to_owned(),
        (HairStyle::Bald, _) => "with a shaved head".to_owned(),
        (HairStyle::Long, 0) => format!("with long {color} hair"),
        (HairStyle::Long, 1) => "whose hair falls over the shoulders".to_owned(),
        (HairStyle::Long, _) => "with long hair".to_owned(),
        (HairStyle::Ponytail, 0) => format!("with {} ponytail", a(color)),
        (HairStyle::Ponytail, 1) => format!("with long {color} hair in a ponytail"),
        (HairStyle::Ponytail, _) => "with long hair".to_owned(),
        (HairStyle::Afro, 0) => format!("with curly {color} hair"),
        (HairStyle::Bun, 0) => format!("with {color} hair in a bun"),
        (_, 0) => format!("with short {color} hair"),
        (_, 1) => "whose hair is cut short".to_owned(),
        _ => "with short hair".to_owned(),
    }
}

pub(super) fn bag_fact(person: &SynthPerson, rng: &mut Rng) -> String {
    let Some((kind, color)) = person.bag else {
        return one(rng, &["without a bag", "with no bag", "who carries no bag"]).to_owned();
    };
    let noun = bag_noun(kind, rng);
    let noun = if rng.random_bool(0.5) {
        a(&format!("{} {noun}", color.hue.name()))
    } else {
        a(noun)
    };
    match (kind, rng.random_range(0..4u32)) {
        (_, 0) => format!("carrying {noun}"),
        (_, 1) => format!("with {noun}"),
        (BagKind::Backpack, 2) => format!("wearing {noun}"),
        (BagKind::Backpack, _) => format!("with {noun} on the back"),
        (BagKind::Shoulder, 2) => "with a bag over the shoulder".to_owned(),
        (BagKind::Shoulder, _) => format!("wearing {noun}"),
        (BagKind::Hand, 2) => "with a bag in the hand".to_owned(),
        (BagKind::Hand, _) => format!("holding {noun}"),
    }
}

pub(super) fn carried_fact(kind: Carried, hue: &str, rng: &mut Rng) -> String {
    let thing = match kind {
        Carried::Phone => one(
            rng,
            &["a phone", "a mobile phone", "something", "an object"],
        )
        .to_owned(),
        Carried::Umbrella => match rng.random_range(0..3u32) {
            0 => "an umbrella".to_owned(),
            1 => a(&format!("{hue} umbrella")),
            _ => "something".to_owned(),
        },
        Carried::Cup => one(rng, &["a cup", "a coffee cup", "something", "an object"]).to_owned(),
        Carried::Box => {
            one(rng, &["a box", "a cardboard box", "something", "an object"]).to_owned()
        }
        Carried::Paper => one(
            rng,
            &["a paper", "a sheet of paper", "something", "an object"],
        )
        .to_owned(),
    };
    match rng.random_range(0..3u32) {
        0 => format!("carrying {thing}"),
        1 => format!("holding {thing}"),
        _ => format!("with {thing} in the hands"),
    }
}
