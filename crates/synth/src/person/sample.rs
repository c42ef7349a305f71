//! Draws people: every attribute value is frequent enough to be learned, and none gives an identity
//! away.

use clasp_data::Rng;
use rand::RngExt;

use super::appearance::{
    Age, BagKind, Body, Carried, Footwear, Gender, Glasses, Hair, HairStyle, Headwear,
    LowerGarment, LowerKind, Pattern, Sleeve, SynthPerson, UpperGarment, UpperKind,
};
use super::held_out::dress_anew;
use crate::color::{Color, Hue, luminance};
use crate::sampling::{between, weighted};
use crate::style::Style;

impl SynthPerson {
    /// A new person in garments of a style. In either style the attributes are as frequent.
    pub fn sample_in(style: Style, rng: &mut Rng) -> Self {
        let person = Self::sample(rng);
        match style {
            Style::Standard => person,
            Style::HeldOut => dress_anew(person, rng),
        }
    }

    /// A new person of the standard style.
    pub fn sample(rng: &mut Rng) -> Self {
        let gender = weighted(rng, &[(Gender::Male, 1.0), (Gender::Female, 1.0)]);
        let age = weighted(
            rng,
            &[(Age::Child, 0.2), (Age::Adult, 0.55), (Age::Older, 0.25)],
        );
        let female = gender == Gender::Female;
        let upper = sample_upper(rng);
        let lower = sample_lower(rng, female, &upper);
        let shoes = {
            let bare = lower.kind != LowerKind::Trousers;
            let warm = upper.sleeve == Sleeve::Short;
            let kind = weighted(
                rng,
                &[
                    (Footwear::Shoes, 0.3),
                    (Footwear::Sneakers, 0.35),
                    (Footwear::Boots, if bare && warm { 0.2 } else { 0.3 }),
                    (Footwear::Sandals, if warm { 0.3 } else { 0.06 }),
                ],
            );
            let colors: &[(Hue, f32)] = match kind {
                Footwear::Sneakers => &[
                    (Hue::White, 3.0),
                    (Hue::Black, 1.0),
                    (Hue::Gray, 1.0),
                    (Hue::Red, 1.0),
                    (Hue::Blue, 1.0),
                    (Hue::Green, 0.5),
                    (Hue::Yellow, 0.5),
                    (Hue::Pink, if female { 1.0 } else { 0.1 }),
                ],
                Footwear::Shoes | Footwear::Boots => &[
                    (Hue::Black, 3.0),
                    (Hue::Brown, 2.5),
                    (Hue::Gray, 0.7),
                    (Hue::Red, 0.4),
                    (Hue::White, 0.4),
                ],
                Footwear::Sandals => &[(Hue::Brown, 2.0), (Hue::Black, 1.5), (Hue::White, 1.0)],
            };
            let hue = weighted(rng, colors);
            (kind, Color::sample(hue, rng))
        };
        let bag = {
            let kind = weighted(
                rng,
                &[
                    (None, 0.37),
                    (Some(BagKind::Backpack), 0.24),
                    (Some(BagKind::Shoulder), 0.21),
                    (Some(BagKind::Hand), if female { 0.24 } else { 0.14 }),
                ],
            );
            kind.map(|kind| (kind, any_color(rng, 1.5)))
        };
        let carried = rng.random_bool(0.33).then(|| {
            let kind = weighted(
                rng,
                &[
                    (Carried::Phone, 1.0),
                    (Carried::Umbrella, 0.8),
                    (Carried::Cup, 0.7),
                    (
                        Carried::Box,
                        if bag.is_some_and(|b| b.0 == BagKind::Hand) {
                            0.0
                        } else {
                            0.7
                        },
                    ),
                    (Carried::Paper, 0.7),
                ],
            );
            (kind, any_color(rng, 1.0))
        });
        let hair = sample_hair(rng, gender, age);
        let headwear = rng.random_bool(0.27).then(|| {
            let kind = weighted(
                rng,
                &[
                    (Headwear::Cap, 1.2),
                    (Headwear::Beanie, 0.9),
                    (Headwear::Hat, 0.9),
                ],
            );
            (kind, any_color(rng, 1.5))
        });
        let glasses = weighted(
            rng,
            &[
                (Glasses::None, 0.66),
                (Glasses::Clear, 0.2),
                (Glasses::Dark, 0.14),
            ],
        );
        let stockings =
            (lower.kind != LowerKind::Trousers && female && rng.random_bool(0.3)).then(|| {
                let hue = weighted(
                    rng,
                    &[(Hue::Black, 3.0), (Hue::Gray, 1.0), (Hue::White, 0.6)],
                );
                Color::sample(hue, rng)
            });
        let scarf =
            (upper.sleeve == Sleeve::Long && rng.random_bool(0.16)).then(|| any_color(rng, 0.5));
        SynthPerson {
            gender,
            age,
            body: sample_body(rng, gender, age),
            skin: sample_skin(rng),
            hair,
            headwear,
            glasses,
            upper,
            lower,
            stockings,
            shoes,
            scarf,
            bag,
            carried,
            bag_side: if rng.random_bool(0.5) { 1.0 } else { -1.0 },
        }
    }
}

/// Any color word, `dull` times as often black, gray, white or brown as another.
fn any_color(rng: &mut Rng, dull: f32) -> Color {
    let choices = Hue::ALL.map(|hue| {
        let plain = matches!(hue, Hue::Black | Hue::White | Hue::Gray | Hue::Brown);
        (hue, if plain { dull } else { 1.0 })
    });
    let hue = weighted(rng, &choices);
    Color::sample(hue, rng)
}

fn sample_upper(rng: &mut Rng) -> UpperGarment {
    let kind = weighted(
        rng,
        &[
            (UpperKind::TShirt, 0.32),
            (UpperKind::Shirt, 0.2),
            (UpperKind::Sweater, 0.14),
            (UpperKind::Hoodie, 0.12),
            (UpperKind::Jacket, 0.13),
            (UpperKind::Coat, 0.09),
        ],
    );
    let sleeve = match kind {
        UpperKind::TShirt if rng.random_bool(0.85) => Sleeve::Short,
        UpperKind::Shirt if rng.random_bool(0.5) => Sleeve::Short,
        _ => Sleeve::Long,
    };
    let outer = matches!(kind, UpperKind::Jacket | UpperKind::Coat);
    let pattern = weighted(
        rng,
        &[
            (Pattern::Plain, if outer { 0.75 } else { 0.3 }),
            (Pattern::Striped, if outer { 0.08 } else { 0.26 }),
            (Pattern::Checked, if outer { 0.15 } else { 0.2 }),
            (
                Pattern::Logo,
                if outer || kind == UpperKind::Shirt {
                    0.06
                } else {
                    0.34
                },
            ),
        ],
    );
    let color = any_color(rng, 1.2);
    // The second color must show on the first.
    let second = loop {
        let second = if rng.random_bool(0.4) {
            let hue = if luminance(color.rgb) > 0.45 {
                Hue::Black
            } else {
                Hue::White
            };
            Color::sample(hue, rng)
        } else {
            any_color(rng, 1.0)
        };
        if second.hue != color.hue && (luminance(second.rgb) - luminance(color.rgb)).abs() > 0.2 {
            break second;
        }
    };
    let ease = match kind {
        UpperKind::TShirt => 0.006,
        UpperKind::Shirt => 0.008,
        UpperKind::Sweater => 0.012,
        UpperKind::Hoodie => 0.016,
        UpperKind::Jacket => 0.016,
        UpperKind::Coat => 0.02,
    };
    UpperGarment {
        kind,
        color,
        second,
        pattern,
        sleeve,
        open: outer && pattern != Pattern::Logo && rng.random_bool(0.5),
        ease: ease * between(rng, [0.7, 1.4]),
        period: between(rng, [0.03, 0.06]),
        upright: rng.random_bool(0.25),
    }
}

fn sample_lower(rng: &mut Rng, female: bool, upper: &UpperGarment) -> LowerGarment {
    let outer = matches!(
        upper.kind,
        UpperKind::Jacket | UpperKind::Coat | UpperKind::Hoodie
    );
    let kind = weighted(
        rng,
        &[
            (LowerKind::Trousers, 0.52),
            (
                LowerKind::Shorts,
                if upper.sleeve == Sleeve::Short {
                    0.4
                } else {
                    0.12
                },
            ),
            (LowerKind::Skirt, if female { 0.3 } else { 0.0 }),
            (LowerKind::Dress, if female && !outer { 0.4 } else { 0.0 }),
        ],
    );
    let jeans = matches!(
        kind,
        LowerKind::Trousers | LowerKind::Shorts | LowerKind::Skirt
    ) && rng.random_bool(0.35);
    let color = if kind == LowerKind::Dress {
        upper.color
    } else if jeans {
        let hue = weighted(
            rng,
            &[(Hue::Blue, 4.0), (Hue::Black, 1.0), (Hue::Gray, 0.5)],
        );
        Color::sample(hue, rng)
    } else {
        any_color(rng, 1.7)
    };
    let length = match kind {
        LowerKind::Shorts => between(rng, [0.18, 0.4]),
        _ => between(rng, [0.15, 0.75]),
    };
    LowerGarment {
        kind,
        color,
        jeans,
        width: rng.random(),
        length,
    }
}

fn sample_hair(rng: &mut Rng, gender: Gender, age: Age) -> Hair {
    let female = gender == Gender::Female;
    let style = if female {
        weighted(
            rng,
            &[
                (HairStyle::Short, 0.14),
                (HairStyle::Bob, 0.14),
                (HairStyle::Long, 0.42),
                (HairStyle::Ponytail, 0.18),
                (HairStyle::Bun, 0.08),
                (HairStyle::Afro, 0.06),
            ],
        )
    } else {
        let bald = if age == Age::Older { 0.25 } else { 0.06 };
        weighted(
            rng,
            &[
                (HairStyle::Bald, if age == Age::Child { 0.0 } else { bald }),
                (HairStyle::Short, 0.68),
                (HairStyle::Bob, 0.05),
                (HairStyle::Long, 0.12),
                (HairStyle::Ponytail, 0.04),
                (HairStyle::Afro, 0.08),
            ],
        )
    };
    let old = age == Age::Older;
    let (word, rgb) = weighted(
        rng,
        &[
            (("black", [0.09, 0.08, 0.08]), if old { 0.15 } else { 1.0 }),
            (
                ("dark brown", [0.2, 0.13, 0.09]),
                if old { 0.15 } else { 1.0 },
            ),
            (("brown", [0.36, 0.23, 0.13]), if old { 0.15 } else { 1.0 }),
            (("blond", [0.8, 0.64, 0.36]), if old { 0.15 } else { 1.0 }),
            (("red", [0.56, 0.24, 0.1]), if old { 0.05 } else { 0.5 }),
            (("grey", [0.6, 0.6, 0.6]), if old { 2.0 } else { 0.05 }),
            (("white", [0.88, 0.88, 0.86]), if old { 2.0 } else { 0.03 }),
        ],
    );
    let shade = between(rng, [0.85, 1.12]);
    Hair {
        style,
        word,
        rgb: rgb.map(|v| (v * shade).min(0.95)),
        volume: rng.random(),
        beard: gender == Gender::Male && age != Age::Child && rng.random_bool(0.33),
    }
}

fn sample_body(rng: &mut Rng, gender: Gender, age: Age) -> Body {
    let female = gender == Gender::Female;
    let mut body = Body {
        meters: between(rng, if female { [1.54, 1.76] } else { [1.66, 1.92] }),
        build: between(rng, [0.88, 1.22]),
        head: between(rng, [0.128, 0.138]),
        hip: between(rng, [0.505, 0.535]),
        shoulders: between(rng, if female { [0.88, 0.95] } else { [1.0, 1.1] }),
        hips: between(rng, if female { [1.02, 1.14] } else { [0.92, 1.0] }),
        stoop: between(rng, [0.0, 0.04]),
    };
    match age {
        Age::Child => {
            // Five to ten years: the younger the smaller, with a larger head and shorter legs.
            let young = rng.random::<f32>();
            body.meters = 1.42 - 0.36 * young;
            body.head = 0.155 + 0.03 * young;
            body.hip = 0.5 - 0.03 * young;
            body.shoulders = between(rng, [0.86, 0.93]);
            body.hips = between(rng, [0.88, 0.96]);
            body.build = between(rng, [0.95, 1.15]);
        }
        Age::Older => {
            body.meters -= between(rng, [0.02, 0.08]);
            body.build += between(rng, [0.0, 0.1]);
            body.stoop = between(rng, [0.06, 0.26]);
        }
        Age::Adult => {}
    }
    body
}

fn sample_skin(rng: &mut Rng) -> [f32; 3] {
    // Measured skin tones lie near one curve from light to dark; the place on it is uniform.
    const TONES: [[f32; 3]; 6] = [
        [0.97, 0.85, 0.77],
        [0.92, 0.76, 0.64],
        [0.83, 0.64, 0.5],
        [0.68, 0.48, 0.35],
        [0.49, 0.33, 0.24],
        [0.31, 0.21, 0.16],
    ];
    let place = rng.random::<f32>() * 4.999;
    let index = place as usize;
    let t = place - index as f32;
    std::array::from_fn(|c| TONES[index][c] * (1.0 - t) + TONES[index + 1][c] * t)
}
