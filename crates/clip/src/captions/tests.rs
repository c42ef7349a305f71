//! Captions are true of their pictures.

use clasp_data::rng_for;
use clasp_synth::{
    Age, BagKind, Carried, Footwear, Gender, Glasses, HairStyle, Headwear, LowerKind, Pattern,
    Shot, Sleeve, SynthPerson, UpperKind, View,
};

use super::*;

#[test]
fn the_same_index_gives_the_same_pair() {
    for index in [0, 17, 4242] {
        let (a, b) = (synthetic_pair(3, index), synthetic_pair(3, index));
        assert_eq!((a.image, a.caption, a.part), (b.image, b.caption, b.part));
    }
    assert_ne!(synthetic_pair(3, 1).image, synthetic_pair(4, 1).image);
}

#[test]
fn parts_come_equally_often() {
    let mut counts = [0usize; 8];
    let mut people = 0;
    const PAIRS: u64 = 1200;
    for index in 0..PAIRS {
        match synthetic_pair(1, index).part {
            Some(class) => counts[usize::from(class)] += 1,
            None => people += 1,
        }
    }
    let expected = PAIRS as usize * 3 / 100;
    assert!(
        counts
            .iter()
            .all(|n| (expected / 2..expected * 3 / 2).contains(n)),
        "{counts:?}, {people} people"
    );
    assert!((840..980).contains(&people), "{people} people");
}

/// Words that claim something, with what must hold for the claim.
fn claims(person: &SynthPerson, view: View) -> Vec<(&'static str, bool)> {
    let lower = person.lower.kind;
    let bag = person.bag.map(|b| b.0);
    vec![
        ("woman", person.gender == Gender::Female),
        (" man", person.gender == Gender::Male),
        (
            "girl",
            person.gender == Gender::Female && person.age == Age::Child,
        ),
        (
            "boy",
            person.gender == Gender::Male && person.age == Age::Child,
        ),
        ("child", person.age == Age::Child),
        ("elderly", person.age == Age::Older),
        ("long hair", person.long_hair()),
        (
            "short hair",
            !person.long_hair() && person.hair.style != HairStyle::Bald,
        ),
        ("bald", person.hair.style == HairStyle::Bald),
        ("ponytail", person.hair.style == HairStyle::Ponytail),
        ("sunglasses", person.glasses == Glasses::Dark),
        ("without glasses", person.glasses == Glasses::None),
        (
            "wearing glasses",
            person.glasses != Glasses::None && view != View::Back,
        ),
        (
            "beanie",
            matches!(person.headwear, Some((Headwear::Beanie, _))),
        ),
        ("without a hat", person.headwear.is_none()),
        ("striped", person.upper.pattern == Pattern::Striped),
        ("plaid", person.upper.pattern == Pattern::Checked),
        ("logo", person.upper.pattern == Pattern::Logo),
        ("plain", person.upper.pattern == Pattern::Plain),
        ("short-sleeved", person.upper.sleeve == Sleeve::Short),
        ("long-sleeved", person.upper.sleeve == Sleeve::Long),
        ("hoodie", person.upper.kind == UpperKind::Hoodie),
        ("jeans", person.lower.jeans && lower == LowerKind::Trousers),
        ("trousers", lower == LowerKind::Trousers),
        ("shorts", lower == LowerKind::Shorts),
        ("skirt", lower == LowerKind::Skirt),
        (" dress", lower == LowerKind::Dress),
        ("boots", person.shoes.0 == Footwear::Boots),
        ("sandals", person.shoes.0 == Footwear::Sandals),
        ("backpack", bag == Some(BagKind::Backpack)),
        ("shoulder bag", bag == Some(BagKind::Shoulder)),
        ("handbag", bag == Some(BagKind::Hand)),
        ("without a bag", bag.is_none()),
        (
            "umbrella",
            matches!(person.carried, Some((Carried::Umbrella, _))),
        ),
        (
            "empty hands",
            person.carried.is_none() && bag != Some(BagKind::Hand),
        ),
        ("from the front", view == View::Front),
        ("in profile", view == View::Side),
        ("from behind", view == View::Back),
    ]
}

#[test]
fn captions_are_true() {
    let mut rng = rng_for(8, 0, "captions");
    let mut said = std::collections::BTreeMap::<&str, usize>::new();
    for _ in 0..4000 {
        let person = SynthPerson::sample(&mut rng);
        let shot = Shot::sample(&person, &mut rng);
        let text = format!(" {} ", caption(&person, &shot, &mut rng)).replace(" dressed", " clad");
        for (word, holds) in claims(&person, shot.view()) {
            if text.contains(word) {
                *said.entry(word).or_default() += 1;
                assert!(holds, "`{word}` in `{text}` of {person:?}");
            }
        }
        for hue in clasp_synth::Hue::ALL {
            // A color before an upper garment's noun is that garment's.
            for noun in ["t-shirt", "sweater", "jacket", "coat"] {
                if text.contains(&format!(" {} {noun}", hue.name())) {
                    assert_eq!(hue, person.upper.color.hue, "{text}");
                }
            }
        }
    }
    // Every claim is made now and then.
    let person = SynthPerson::sample(&mut rng);
    for (word, _) in claims(&person, View::Front) {
        assert!(
            said.get(word).copied().unwrap_or(0) >= 5,
            "`{word}` hardly ever: {said:?}"
        );
    }
}

#[test]
fn ccp_captions_name_only_tagged_things() {
    let mut rng = rng_for(1, 0, "ccp");
    let tags = ["skin", "hair", "jacket", "jeans", "boots"];
    for _ in 0..200 {
        let text = ccp_caption(&tags, &mut rng);
        assert!(tags[1..].iter().any(|t| text.contains(t)), "{text}");
        assert!(!text.contains("skin") && !text.contains("dress"), "{text}");
        assert!(
            !text.contains("a jeans") && !text.contains("a boots"),
            "{text}"
        );
    }
    assert!(!ccp_caption(&[], &mut rng).is_empty());
}
