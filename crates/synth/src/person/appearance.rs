//! What stays the same about a drawn person from one picture to the next: body, hair, clothes, bag.

use std::collections::BTreeMap;

use rand::RngExt;

use crate::style::{Style, dress_anew, held_out_shade};
use clasp_data::Rng;

/// One of the eleven colour words that garments are described with, in linear order of [`Hue::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Hue {
    Black,
    White,
    Grey,
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
}

impl Hue {
    /// Every colour word.
    pub const ALL: [Hue; 11] = [
        Hue::Black,
        Hue::White,
        Hue::Grey,
        Hue::Red,
        Hue::Orange,
        Hue::Yellow,
        Hue::Green,
        Hue::Blue,
        Hue::Purple,
        Hue::Pink,
        Hue::Brown,
    ];

    /// The word itself, as in the vocabulary.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hue::Black => "black",
            Hue::White => "white",
            Hue::Grey => "grey",
            Hue::Red => "red",
            Hue::Orange => "orange",
            Hue::Yellow => "yellow",
            Hue::Green => "green",
            Hue::Blue => "blue",
            Hue::Purple => "purple",
            Hue::Pink => "pink",
            Hue::Brown => "brown",
        }
    }

    /// Ranges of hue (degrees), saturation and lightness within which the word stays true.
    pub(crate) fn ranges(self) -> ([f32; 2], [f32; 2], [f32; 2]) {
        match self {
            Hue::Black => ([0.0, 360.0], [0.0, 0.12], [0.05, 0.13]),
            Hue::White => ([30.0, 60.0], [0.0, 0.25], [0.88, 0.97]),
            Hue::Grey => ([0.0, 360.0], [0.0, 0.06], [0.38, 0.66]),
            Hue::Red => ([-8.0, 6.0], [0.6, 0.85], [0.34, 0.48]),
            Hue::Orange => ([20.0, 30.0], [0.75, 0.95], [0.48, 0.58]),
            Hue::Yellow => ([46.0, 56.0], [0.7, 0.95], [0.5, 0.66]),
            Hue::Green => ([95.0, 155.0], [0.3, 0.65], [0.2, 0.45]),
            Hue::Blue => ([205.0, 232.0], [0.4, 0.75], [0.22, 0.55]),
            Hue::Purple => ([268.0, 290.0], [0.35, 0.6], [0.3, 0.5]),
            Hue::Pink => ([325.0, 345.0], [0.55, 0.85], [0.68, 0.8]),
            Hue::Brown => ([18.0, 32.0], [0.3, 0.5], [0.2, 0.34]),
        }
    }
}

/// A colour with its word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    /// The word that describes it.
    pub hue: Hue,
    /// The colour itself, 0 to 1.
    pub rgb: [f32; 3],
}

impl Colour {
    /// Some colour that the word describes.
    pub fn sample(hue: Hue, rng: &mut Rng) -> Self {
        Self::sample_in(Style::Standard, hue, rng)
    }

    /// Some colour that the word describes, of those of a style; no colour belongs to both styles.
    pub(crate) fn sample_in(style: Style, hue: Hue, rng: &mut Rng) -> Self {
        let (h, s, l) = match style {
            Style::Standard => hue.ranges(),
            Style::HeldOut => held_out_shade(hue),
        };
        let rgb = from_hsl(between(rng, h), between(rng, s), between(rng, l));
        Colour { hue, rgb }
    }
}

fn between(rng: &mut Rng, [low, high]: [f32; 2]) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// Hue in degrees, saturation and lightness 0 to 1, to red, green, blue 0 to 1.
pub(crate) fn from_hsl(hue: f32, saturation: f32, lightness: f32) -> [f32; 3] {
    let a = saturation * lightness.min(1.0 - lightness);
    [0.0, 8.0, 4.0].map(|n| {
        let k = (n + hue / 30.0).rem_euclid(12.0);
        lightness - a * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0)
    })
}

/// Picks by weight; the weights need not add up to anything.
pub(crate) fn weighted<T: Copy>(rng: &mut Rng, choices: &[(T, f32)]) -> T {
    let total: f32 = choices.iter().map(|c| c.1).sum();
    let mut rest = rng.random::<f32>() * total;
    for &(value, weight) in choices {
        rest -= weight;
        if rest < 0.0 {
            return value;
        }
    }
    choices[choices.len() - 1].0
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),* }
        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// The value's name, as in the vocabulary.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
        }
    };
}

words!(/// How the person presents.
    Gender { Male = "male", Female = "female" });
words!(/// Coarse age.
    Age { Child = "child", Adult = "adult", Older = "older" });
words!(/// Cut of the hair.
    HairStyle { Bald = "bald", Short = "short", Bob = "bob", Long = "long", Ponytail = "ponytail", Bun = "bun", Afro = "afro" });
words!(/// What is worn on the head.
    Headwear { Cap = "cap", Beanie = "beanie", Hat = "hat" });
words!(/// Glasses.
    Glasses { None = "none", Clear = "glasses", Dark = "sunglasses" });
words!(/// Kind of upper garment; the kind decides its shape, not its colour.
    UpperKind { TShirt = "t-shirt", Shirt = "shirt", Sweater = "sweater", Hoodie = "hoodie", Jacket = "jacket", Coat = "coat" });
words!(/// Surface of the upper garment.
    Pattern { Plain = "plain", Striped = "striped", Checked = "checked", Logo = "logo" });
words!(/// Length of the sleeves.
    Sleeve { Short = "short", Long = "long" });
words!(/// Kind of lower garment; a dress is one piece with the upper.
    LowerKind { Trousers = "trousers", Shorts = "shorts", Skirt = "skirt", Dress = "dress" });
words!(/// Kind of footwear.
    Footwear { Shoes = "shoes", Sneakers = "sneakers", Boots = "boots", Sandals = "sandals" });
words!(/// Kind of bag.
    BagKind { Backpack = "backpack", Shoulder = "shoulder_bag", Hand = "handbag" });
words!(/// What is carried besides a bag.
    Carried { Phone = "phone", Umbrella = "umbrella", Cup = "cup", Box = "box", Paper = "paper" });
words!(/// The side of the person that faces the camera.
    View { Front = "front", Side = "side", Back = "back" });

/// Upper garment.
#[derive(Clone, Debug, PartialEq)]
pub struct Upper {
    /// Its cut.
    pub kind: UpperKind,
    /// Main colour.
    pub colour: Colour,
    /// Stripes, checks, the print, or the shirt under an open jacket.
    pub second: Colour,
    /// Surface.
    pub pattern: Pattern,
    /// Sleeves.
    pub sleeve: Sleeve,
    /// A jacket or coat worn open over a shirt of the second colour.
    pub open: bool,
    /// Ease added to the body's radii, in body heights.
    pub ease: f32,
    /// Size of stripes and checks, in body heights.
    pub period: f32,
    /// Stripes run along the body instead of around it.
    pub upright: bool,
}

/// Lower garment.
#[derive(Clone, Debug, PartialEq)]
pub struct Lower {
    /// Its cut.
    pub kind: LowerKind,
    /// Colour; a dress has the upper garment's.
    pub colour: Colour,
    /// Blue or black cotton with seams.
    pub jeans: bool,
    /// 0 = tight, 1 = wide.
    pub width: f32,
    /// Where a skirt, a dress or shorts end: 0 = upper thigh, 1 = ankle.
    pub length: f32,
}

/// Hair.
#[derive(Clone, Debug, PartialEq)]
pub struct Hair {
    /// Its cut.
    pub style: HairStyle,
    /// Word for its colour.
    pub word: &'static str,
    /// Its colour.
    pub rgb: [f32; 3],
    /// Parting and volume, 0 to 1.
    pub volume: f32,
    /// A beard of the same colour.
    pub beard: bool,
}

/// Proportions, relative to an average adult.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Height of the person in metres; scenes use it.
    pub metres: f32,
    /// Girth: 0.85 slim, 1 average, 1.3 heavy.
    pub build: f32,
    /// Head height over body height.
    pub head: f32,
    /// Height of the hip joints over body height.
    pub hip: f32,
    /// Shoulder breadth factor.
    pub shoulders: f32,
    /// Hip breadth factor.
    pub hips: f32,
    /// Forward stoop, radians.
    pub stoop: f32,
}

/// A person: everything that two pictures of the same one share.
///
/// A single garment colour is shared by about one person in ten, so it never gives the identity away;
/// an identity is the whole combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// How the person presents.
    pub gender: Gender,
    /// Coarse age.
    pub age: Age,
    /// Proportions.
    pub body: Body,
    /// Skin colour, 0 to 1.
    pub skin: [f32; 3],
    /// Hair.
    pub hair: Hair,
    /// Cap, beanie or hat with its colour.
    pub headwear: Option<(Headwear, Colour)>,
    /// Glasses.
    pub glasses: Glasses,
    /// Upper garment.
    pub upper: Upper,
    /// Lower garment.
    pub lower: Lower,
    /// Colour of stockings where legs are bare otherwise.
    pub stockings: Option<Colour>,
    /// Footwear with its colour.
    pub shoes: (Footwear, Colour),
    /// A scarf's colour.
    pub scarf: Option<Colour>,
    /// Bag with its colour.
    pub bag: Option<(BagKind, Colour)>,
    /// Something in the hand, with its colour.
    pub carried: Option<(Carried, Colour)>,
    /// Bag and carried object are on the left (+1) and right (-1) side of the person.
    pub bag_side: f32,
}

/// Attribute values of one picture, attribute name to value name; both as in the default vocabulary.
pub type Attributes = BTreeMap<&'static str, &'static str>;

/// Every attribute with its values, in the order of the columns of `attributes.csv`.
pub const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("gender", &["male", "female"]),
    ("age", &["child", "adult", "older"]),
    ("hair_length", &["short", "long"]),
    ("headwear", &["no", "yes"]),
    ("glasses", &["no", "yes"]),
    ("upper_colour", COLOURS),
    ("sleeve_length", &["short", "long"]),
    ("upper_pattern", &["plain", "striped", "checked", "logo"]),
    ("lower_colour", COLOURS),
    ("lower_type", &["trousers", "shorts", "skirt", "dress"]),
    ("footwear", &["shoes", "boots", "sandals"]),
    ("bag", &["none", "backpack", "shoulder_bag", "handbag"]),
    ("carried_object", &["no", "yes"]),
    ("view", &["front", "side", "back"]),
];

const COLOURS: &[&str] = &[
    "black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
];

impl Person {
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
            let colours: &[(Hue, f32)] = match kind {
                Footwear::Sneakers => &[
                    (Hue::White, 3.0),
                    (Hue::Black, 1.0),
                    (Hue::Grey, 1.0),
                    (Hue::Red, 1.0),
                    (Hue::Blue, 1.0),
                    (Hue::Green, 0.5),
                    (Hue::Yellow, 0.5),
                    (Hue::Pink, if female { 1.0 } else { 0.1 }),
                ],
                Footwear::Shoes | Footwear::Boots => &[
                    (Hue::Black, 3.0),
                    (Hue::Brown, 2.5),
                    (Hue::Grey, 0.7),
                    (Hue::Red, 0.4),
                    (Hue::White, 0.4),
                ],
                Footwear::Sandals => &[(Hue::Brown, 2.0), (Hue::Black, 1.5), (Hue::White, 1.0)],
            };
            let hue = weighted(rng, colours);
            (kind, Colour::sample(hue, rng))
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
            kind.map(|kind| (kind, any_colour(rng, 1.5)))
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
            (kind, any_colour(rng, 1.0))
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
            (kind, any_colour(rng, 1.5))
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
                    &[(Hue::Black, 3.0), (Hue::Grey, 1.0), (Hue::White, 0.6)],
                );
                Colour::sample(hue, rng)
            });
        let scarf =
            (upper.sleeve == Sleeve::Long && rng.random_bool(0.16)).then(|| any_colour(rng, 0.5));
        Person {
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

    /// Hair that falls to the shoulders or lower, seen or pinned up in a tail.
    #[must_use]
    pub fn long_hair(&self) -> bool {
        matches!(self.hair.style, HairStyle::Long | HairStyle::Ponytail)
    }

    /// The attribute values of a picture of this person from `view`.
    #[must_use]
    pub fn attributes(&self, view: View) -> Attributes {
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        Attributes::from([
            ("gender", self.gender.name()),
            ("age", self.age.name()),
            (
                "hair_length",
                if self.long_hair() { "long" } else { "short" },
            ),
            ("headwear", yes_no(self.headwear.is_some())),
            ("glasses", yes_no(self.glasses != Glasses::None)),
            ("upper_colour", self.upper.colour.hue.name()),
            ("sleeve_length", self.upper.sleeve.name()),
            ("upper_pattern", self.upper.pattern.name()),
            ("lower_colour", self.lower.colour.hue.name()),
            ("lower_type", self.lower.kind.name()),
            (
                "footwear",
                match self.shoes.0 {
                    Footwear::Shoes | Footwear::Sneakers => "shoes",
                    Footwear::Boots => "boots",
                    Footwear::Sandals => "sandals",
                },
            ),
            ("bag", self.bag.map_or("none", |b| b.0.name())),
            ("carried_object", yes_no(self.carried.is_some())),
            ("view", view.name()),
        ])
    }
}

/// Any colour word, `dull` times as often black, grey, white or brown as another.
fn any_colour(rng: &mut Rng, dull: f32) -> Colour {
    let choices = Hue::ALL.map(|hue| {
        let plain = matches!(hue, Hue::Black | Hue::White | Hue::Grey | Hue::Brown);
        (hue, if plain { dull } else { 1.0 })
    });
    let hue = weighted(rng, &choices);
    Colour::sample(hue, rng)
}

fn sample_upper(rng: &mut Rng) -> Upper {
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
    let colour = any_colour(rng, 1.2);
    // The second colour must show on the first.
    let second = loop {
        let second = if rng.random_bool(0.4) {
            let hue = if luminance(colour.rgb) > 0.45 {
                Hue::Black
            } else {
                Hue::White
            };
            Colour::sample(hue, rng)
        } else {
            any_colour(rng, 1.0)
        };
        if second.hue != colour.hue && (luminance(second.rgb) - luminance(colour.rgb)).abs() > 0.2 {
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
    Upper {
        kind,
        colour,
        second,
        pattern,
        sleeve,
        open: outer && pattern != Pattern::Logo && rng.random_bool(0.5),
        ease: ease * between(rng, [0.7, 1.4]),
        period: between(rng, [0.03, 0.06]),
        upright: rng.random_bool(0.25),
    }
}

fn sample_lower(rng: &mut Rng, female: bool, upper: &Upper) -> Lower {
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
    let colour = if kind == LowerKind::Dress {
        upper.colour
    } else if jeans {
        let hue = weighted(
            rng,
            &[(Hue::Blue, 4.0), (Hue::Black, 1.0), (Hue::Grey, 0.5)],
        );
        Colour::sample(hue, rng)
    } else {
        any_colour(rng, 1.7)
    };
    let length = match kind {
        LowerKind::Shorts => between(rng, [0.18, 0.4]),
        _ => between(rng, [0.15, 0.75]),
    };
    Lower {
        kind,
        colour,
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
        metres: between(rng, if female { [1.54, 1.76] } else { [1.66, 1.92] }),
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
            body.metres = 1.42 - 0.36 * young;
            body.head = 0.155 + 0.03 * young;
            body.hip = 0.5 - 0.03 * young;
            body.shoulders = between(rng, [0.86, 0.93]);
            body.hips = between(rng, [0.88, 0.96]);
            body.build = between(rng, [0.95, 1.15]);
        }
        Age::Older => {
            body.metres -= between(rng, [0.02, 0.08]);
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

/// Rec. 601 luma of a colour.
pub(crate) fn luminance(rgb: [f32; 3]) -> f32 {
    0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
}
