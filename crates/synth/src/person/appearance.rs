//! What all pictures of a synthetic person share: body, hair, clothes, bag.

use std::collections::BTreeMap;

use crate::color::Color;

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
words!(/// Kind of upper garment; the kind decides its shape, not its color.
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
pub struct UpperGarment {
    /// Its cut.
    pub kind: UpperKind,
    /// Main color.
    pub color: Color,
    /// Stripes, checks, the print, or the shirt under an open jacket.
    pub second: Color,
    /// Surface.
    pub pattern: Pattern,
    /// Sleeves.
    pub sleeve: Sleeve,
    /// A jacket or coat worn open over a shirt of the second color.
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
pub struct LowerGarment {
    /// Its cut.
    pub kind: LowerKind,
    /// Color; a dress has the upper garment's.
    pub color: Color,
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
    /// Word for its color.
    pub word: &'static str,
    /// Its color.
    pub rgb: [f32; 3],
    /// Parting and volume, 0 to 1.
    pub volume: f32,
    /// A beard of the same color.
    pub beard: bool,
}

/// Proportions, relative to an average adult.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Height of the person in meters; scenes use it.
    pub meters: f32,
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
/// A single garment color is shared by about one person in ten, so it never gives the identity
/// away; an identity is the whole combination.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthPerson {
    /// How the person presents.
    pub gender: Gender,
    /// Coarse age.
    pub age: Age,
    /// Proportions.
    pub body: Body,
    /// Skin color, 0 to 1.
    pub skin: [f32; 3],
    /// Hair.
    pub hair: Hair,
    /// Cap, beanie or hat with its color.
    pub headwear: Option<(Headwear, Color)>,
    /// Glasses.
    pub glasses: Glasses,
    /// Upper garment.
    pub upper: UpperGarment,
    /// Lower garment.
    pub lower: LowerGarment,
    /// Color of stockings where legs are bare otherwise.
    pub stockings: Option<Color>,
    /// Footwear with its color.
    pub shoes: (Footwear, Color),
    /// A scarf's color.
    pub scarf: Option<Color>,
    /// Bag with its color.
    pub bag: Option<(BagKind, Color)>,
    /// Something in the hand, with its color.
    pub carried: Option<(Carried, Color)>,
    /// Bag and carried object are on the left (+1) and right (-1) side of the person.
    pub bag_side: f32,
}

/// Attribute values of one picture, attribute name to value name; both as in the default
/// vocabulary.
pub type AttributeValues = BTreeMap<&'static str, &'static str>;

/// Every attribute with its values, in the order of the columns of `attributes.csv`.
pub const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("gender", &["male", "female"]),
    ("age", &["child", "adult", "older"]),
    ("hair_length", &["short", "long"]),
    ("headwear", &["no", "yes"]),
    ("glasses", &["no", "yes"]),
    ("upper_color", COLORS),
    ("sleeve_length", &["short", "long"]),
    ("upper_pattern", &["plain", "striped", "checked", "logo"]),
    ("lower_color", COLORS),
    ("lower_type", &["trousers", "shorts", "skirt", "dress"]),
    ("footwear", &["shoes", "boots", "sandals"]),
    ("bag", &["none", "backpack", "shoulder_bag", "handbag"]),
    ("carried_object", &["no", "yes"]),
    ("view", &["front", "side", "back"]),
];

const COLORS: &[&str] = &[
    "black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
];

impl SynthPerson {
    /// Hair that falls to the shoulders or lower, seen or pinned up in a tail.
    #[must_use]
    pub fn long_hair(&self) -> bool {
        matches!(self.hair.style, HairStyle::Long | HairStyle::Ponytail)
    }

    /// The attribute values of a picture of this person from `view`.
    #[must_use]
    pub fn attributes(&self, view: View) -> AttributeValues {
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        AttributeValues::from([
            ("gender", self.gender.name()),
            ("age", self.age.name()),
            (
                "hair_length",
                if self.long_hair() { "long" } else { "short" },
            ),
            ("headwear", yes_no(self.headwear.is_some())),
            ("glasses", yes_no(self.glasses != Glasses::None)),
            ("upper_color", self.upper.color.hue.name()),
            ("sleeve_length", self.upper.sleeve.name()),
            ("upper_pattern", self.upper.pattern.name()),
            ("lower_color", self.lower.color.hue.name()),
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
