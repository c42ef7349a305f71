//! Captions for contrastive training, in varied wordings and always true.
//!
//! [`pair`] draws the n-th image-caption pair: whole people in loose crops, halves of people, and crops that one
//! part fills, with a caption about that part. The last kind is what teaches an image tower to tell parts apart, so
//! the eight part classes come equally often. [`ccp_caption`] and [`ccp_pair`] do the same for the photos of
//! Clothing Co-Parsing from their tags and masks, with [`ccp_parts`] as the mapping from its labels to part classes.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use clasp_data::image::{Rgb, crop};
use clasp_data::layouts::ccp::{CcpPart, ccp_part, ccp_parts};
use clasp_data::part;
use clasp_data::vocabulary::IGNORE;
use clasp_data::{Rng, rng_for};
use clasp_synth::{
    Age, Attributes, BagKind, Camera, Carried, Drawn, Footwear, Gender, Glasses, HairStyle,
    Headwear, LowerKind, Occluder, Pattern, Person, Place, Shot, Sleeve, UpperKind, View, draw,
    draw_place, group,
};

/// A picture and a caption that is true of it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The picture, in any size.
    pub image: Rgb,
    /// The caption.
    pub caption: String,
    /// The part class that fills the picture; none for a person or half a person.
    pub part: Option<u8>,
    /// Part class of each pixel, [height, width] as the image; 255 where it is not known.
    pub parts: Vec<u8>,
    /// What is known of a drawn person: all attributes where the whole person is shown, those that can be read off the
    /// shown half where half is shown, `None` for a part.
    pub attributes: Option<Attributes>,
}

/// How much of a person a picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Whole,
    UpperHalf,
    LowerHalf,
}

/// The `index`-th pair of an endless series. The same arguments give the same pair, in any order.
///
/// Of a hundred pairs about 60 show a whole person, 16 a half, 24 a part (three for each of the eight classes).
#[must_use]
pub fn pair(seed: u64, index: u64) -> Pair {
    let mut rng = rng_for(seed, 0, &format!("drawn pair {index}"));
    let share = rng.random_range(0..100u32);
    if share < 76 {
        let shown = match share {
            0..=59 => Shown::Whole,
            60..=70 => Shown::UpperHalf,
            _ => Shown::LowerHalf,
        };
        return person_pair(shown, &mut rng);
    }
    let class = ((share - 76) / 3) as u8;
    // Hardly any drawing fails to show the part that was asked for; another one will.
    for _ in 0..24 {
        if let Some(pair) = part_pair(class, &mut rng) {
            return pair;
        }
    }
    person_pair(Shown::Whole, &mut rng)
}

fn person_pair(shown: Shown, rng: &mut Rng) -> Pair {
    let person = Person::sample(rng);
    let mut shot = Shot::sample(&person, rng);
    // A caption may name anything of the person: only what hides little may stand in front.
    if shown != Shown::Whole
        || !matches!(shot.occluder, Some(Occluder::Pole(_) | Occluder::Edge(_)))
    {
        shot.occluder = None;
    }
    let height = rng.random_range(144..=320usize);
    let drawn = draw(&person, &shot, height, height / 2);
    let (h, w) = (height as f32, height as f32 / 2.0);
    let [x, y, bw, bh] = drawn.bbox_xywh;
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
            (x1 - x0).min(drawn.image.width - x0),
            (y1 - y0).min(drawn.image.height - y0),
        ]
    };
    let loose = |rng: &mut Rng, size: f32| size * rng.random_range(0.0..0.16f32);
    let area = match shown {
        Shown::Whole if rng.random_bool(0.4) => [0, 0, drawn.image.width, drawn.image.height],
        Shown::Whole => cut(
            x - loose(rng, bw),
            y - loose(rng, bh) * 0.5,
            x + bw + loose(rng, bw),
            y + bh + loose(rng, bh) * 0.5,
        ),
        Shown::UpperHalf => {
            let end = y + bh * rng.random_range(0.4..0.5f32);
            cut(
                x - loose(rng, bw),
                y - loose(rng, bh) * 0.5,
                x + bw + loose(rng, bw),
                end,
            )
        }
        Shown::LowerHalf => {
            let start = y + bh * rng.random_range(0.44..0.5f32);
            cut(
                x - loose(rng, bw),
                start,
                x + bw + loose(rng, bw),
                y + bh + loose(rng, bh) * 0.5,
            )
        }
    };
    Pair {
        image: crop(&drawn.image, area),
        caption: describe(&person, &shot, shown, rng),
        part: None,
        parts: crop_labels(&drawn.parts, drawn.image.width, area),
        attributes: Some(seen_attributes(drawn.attributes, shown)),
    }
}

/// The attributes that can be read off what is shown. A bag hangs at either half, so that neither half tells it; and
/// a dress is told from a skirt by both.
fn seen_attributes(mut attributes: Attributes, shown: Shown) -> Attributes {
    const UPPER: &[&str] = &[
        "gender",
        "age",
        "hair_length",
        "headwear",
        "glasses",
        "upper_colour",
        "sleeve_length",
        "upper_pattern",
        "view",
    ];
    const LOWER: &[&str] = &["lower_colour", "lower_type", "footwear", "view"];
    let kept = match shown {
        Shown::Whole => return attributes,
        Shown::UpperHalf => UPPER,
        Shown::LowerHalf => LOWER,
    };
    attributes.retain(|name, value| kept.contains(name) && !matches!(*value, "dress" | "skirt"));
    attributes
}

/// A person that surely has the part, and a crop that the part fills.
fn part_pair(class: u8, rng: &mut Rng) -> Option<Pair> {
    let person = person_with(class, rng)?;
    let mut shot = Shot::sample(&person, rng);
    shot.occluder = None;
    let height = rng.random_range(224..=384usize);
    if class == part::BACKGROUND && rng.random_bool(0.5) {
        // A place without people.
        let camera = Camera::sample(rng);
        let image = draw_place(&camera, height, height / 2, rng);
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
        return Some(Pair {
            image: crop(&image, area),
            caption: background_caption(camera.place, rng),
            part: Some(class),
            parts: vec![part::BACKGROUND; cw * ch],
            attributes: None,
        });
    }
    let drawn = draw(&person, &shot, height, height / 2);
    let area = part_crop(&drawn.parts, drawn.image.width, class, rng)?;
    let caption = part_caption(&person, &shot, &drawn, class, area, rng);
    let (image, parts) = part_image(&drawn.image, &drawn.parts, area, rng);
    Some(Pair {
        image,
        caption,
        part: Some(class),
        parts,
        attributes: None,
    })
}

/// The crop itself, or the whole picture with everything outside the crop in one colour.
///
/// Dense features are asked for on pictures of whole people, where a part is small and elsewhere than in the middle:
/// the second kind shows a part as it looks there.
///
/// Returns the image and its classes; what is painted over is unknown.
fn part_image(image: &Rgb, parts: &[u8], area: [usize; 4], rng: &mut Rng) -> (Rgb, Vec<u8>) {
    if rng.random_bool(0.5) {
        return (crop(image, area), crop_labels(parts, image.width, area));
    }
    let [x, y, w, h] = area;
    let colour: [u8; 3] = if rng.random_bool(0.5) {
        let mut sum = [0u64; 3];
        for pixel in image.pixels.chunks_exact(3) {
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
        let count = (image.width * image.height) as u64;
        sum.map(|s| (s / count) as u8)
    } else {
        [rng.random_range(60..200u8); 3]
    };
    let mut pixels = colour.repeat(image.width * image.height);
    let mut shown = vec![IGNORE; image.width * image.height];
    for row in y..y + h {
        let at = row * image.width + x;
        shown[at..at + w].copy_from_slice(&parts[at..at + w]);
        let (from, to) = (3 * at, 3 * (at + w));
        pixels[from..to].copy_from_slice(&image.pixels[from..to]);
    }
    (Rgb::new(image.width, image.height, pixels), shown)
}

/// A rectangle of a map of classes: labels [rows, width], area x, y, width, height.
fn crop_labels(labels: &[u8], width: usize, [x, y, w, h]: [usize; 4]) -> Vec<u8> {
    (y..y + h)
        .flat_map(|row| &labels[row * width + x..row * width + x + w])
        .copied()
        .collect()
}

/// Some person that shows the class.
fn person_with(class: u8, rng: &mut Rng) -> Option<Person> {
    // Under long sleeves only hands are bare; half of the arms are to be whole.
    let short = rng.random_bool(0.5);
    (0..60)
        .map(|_| Person::sample(rng))
        .find(|person| match class {
            part::BAG => person.bag.is_some(),
            part::LEGS => person.lower.kind != LowerKind::Trousers,
            part::ARMS => !short || person.upper.sleeve == Sleeve::Short,
            _ => true,
        })
}

/// A box that one class fills: at least half of it is the class and no other person's part is a third of it.
/// For the background, nearly all of it.
///
/// parts: [height, width], row-major. Returns x, y, width, height.
fn part_crop(parts: &[u8], width: usize, class: u8, rng: &mut Rng) -> Option<[usize; 4]> {
    let height = parts.len() / width;
    let own: Vec<usize> = (0..parts.len()).filter(|i| parts[*i] == class).collect();
    if own.len() < 40 {
        return None;
    }
    // Integral images of the class and of everybody's other parts.
    let stride = width + 1;
    let mut sums = vec![[0u32; 2]; stride * (height + 1)];
    for y in 0..height {
        let mut row = [0u32; 2];
        for x in 0..width {
            let label = parts[y * width + x];
            row[0] += u32::from(label == class);
            row[1] += u32::from(label != class && label != part::BACKGROUND);
            let above = sums[y * stride + x + 1];
            sums[(y + 1) * stride + x + 1] = [above[0] + row[0], above[1] + row[1]];
        }
    }
    let count = |[x, y, w, h]: [usize; 4], k: usize| {
        let at = |x: usize, y: usize| i64::from(sums[y * stride + x][k]);
        (at(x + w, y + h) - at(x, y + h) - at(x + w, y) + at(x, y)) as f32
    };
    let scale = (own.len() as f32).sqrt();
    let mut best: Option<(f32, [usize; 4])> = None;
    for _ in 0..40 {
        let middle = own[rng.random_range(0..own.len())];
        let size = if class == part::BACKGROUND {
            scale * rng.random_range(0.15..0.6f32)
        } else {
            scale * rng.random_range(0.45..1.5f32)
        };
        let stretch = rng.random_range(0.6..1.7f32).sqrt();
        let (w, h) = (
            ((size * stretch) as usize).clamp(10, width),
            ((size / stretch) as usize).clamp(10, height),
        );
        let x = (middle % width).saturating_sub(w / 2).min(width - w);
        let y = (middle / width).saturating_sub(h / 2).min(height - h);
        let area = [x, y, w, h];
        let total = (w * h) as f32;
        let (share, others) = (count(area, 0) / total, count(area, 1) / total);
        let enough = if class == part::BACKGROUND {
            share > 0.985
        } else {
            share >= 0.5 && others <= 0.3
        };
        // The larger the better, with some luck so that small boxes come too.
        let score = total * rng.random_range(0.3..1.0f32);
        if enough && best.is_none_or(|b| score > b.0) {
            best = Some((score, area));
        }
    }
    best.map(|b| b.1)
}

// ---- words ---------------------------------------------------------------------------------------------------

/// One of the given words.
fn one<'a>(rng: &mut Rng, words: &[&'a str]) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}

/// The phrase with its indefinite article.
fn a(phrase: &str) -> String {
    let vowel = phrase.starts_with(['a', 'e', 'i', 'o']) || phrase.starts_with("umbrella");
    format!("{} {phrase}", if vowel { "an" } else { "a" })
}

fn subject(person: &Person, rng: &mut Rng) -> String {
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
fn upper_noun(person: &Person, rng: &mut Rng) -> String {
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

fn dress_noun(person: &Person, rng: &mut Rng) -> String {
    let noun = if person.lower.length > 0.55 {
        one(rng, &["dress", "long dress"])
    } else {
        one(rng, &["dress", "short dress"])
    };
    dressed(person, noun, rng)
}

/// Colour, pattern and sleeves around a garment's noun, any of them perhaps left out.
fn dressed(person: &Person, noun: &str, rng: &mut Rng) -> String {
    let upper = &person.upper;
    let mut words: Vec<&str> = Vec::new();
    let mut after = "";
    if rng.random_bool(0.8) {
        words.push(upper.colour.hue.name());
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
fn lower_noun(person: &Person, rng: &mut Rng) -> String {
    let lower = &person.lower;
    let colour = if rng.random_bool(0.8) {
        format!("{} ", lower.colour.hue.name())
    } else {
        String::new()
    };
    match lower.kind {
        LowerKind::Trousers if lower.jeans && rng.random_bool(0.7) => format!("{colour}jeans"),
        LowerKind::Trousers => format!(
            "{colour}{}",
            one(rng, &["trousers", "pants", "trousers", "long pants"])
        ),
        LowerKind::Shorts => format!("{colour}{}", one(rng, &["shorts", "shorts", "short pants"])),
        LowerKind::Skirt => a(&format!("{colour}skirt")),
        LowerKind::Dress => a(&dress_noun(person, rng)),
    }
}

fn shoe_noun(person: &Person, rng: &mut Rng) -> String {
    let (kind, colour) = person.shoes;
    let noun = match kind {
        Footwear::Shoes => one(rng, &["shoes", "low shoes", "shoes"]),
        Footwear::Sneakers => one(rng, &["sneakers", "shoes", "trainers"]),
        Footwear::Boots => one(rng, &["boots", "high boots", "boots"]),
        Footwear::Sandals => one(rng, &["sandals", "open shoes", "sandals"]),
    };
    if rng.random_bool(0.6) {
        format!("{} {noun}", colour.hue.name())
    } else {
        noun.to_owned()
    }
}

fn bag_noun(kind: BagKind, rng: &mut Rng) -> &'static str {
    match kind {
        BagKind::Backpack => one(rng, &["backpack", "backpack", "rucksack"]),
        BagKind::Shoulder => one(rng, &["shoulder bag", "shoulder bag", "cross-body bag"]),
        BagKind::Hand => one(rng, &["handbag", "handbag", "hand bag"]),
    }
}

/// Phrases that follow "a person", one set per attribute that can be seen. Every phrase is true.
fn facts(person: &Person, shot: &Shot, shown: Shown, rng: &mut Rng) -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    let view = shot.view();
    let (top, bottom) = (shown != Shown::LowerHalf, shown != Shown::UpperHalf);
    if top {
        facts.push(hair_fact(person, rng));
        facts.push(match person.headwear {
            Some((kind, colour)) => {
                let noun = match kind {
                    Headwear::Cap => one(rng, &["cap", "baseball cap", "hat"]),
                    Headwear::Beanie => one(rng, &["beanie", "knitted cap", "hat"]),
                    Headwear::Hat => one(rng, &["hat", "brimmed hat", "hat"]),
                };
                let coloured = if rng.random_bool(0.5) {
                    format!("{} {noun}", colour.hue.name())
                } else {
                    noun.to_owned()
                };
                match rng.random_range(0..3u32) {
                    0 => format!("wearing {}", a(&coloured)),
                    1 => format!("with {} on the head", a(&coloured)),
                    _ => format!("in {}", a(&coloured)),
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
                    Glasses::Clear => {
                        one(rng, &["wearing glasses", "with glasses", "with spectacles"])
                    }
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
    if bottom {
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
    if shown == Shown::Whole {
        facts.push(bag_fact(person, rng));
        let holds_bag = matches!(person.bag, Some((BagKind::Hand, _)));
        match person.carried {
            Some((kind, colour)) => facts.push(carried_fact(kind, colour.hue.name(), rng)),
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
                    Place::Street => {
                        one(rng, &["in a street", "on a street", "outdoors in a town"])
                    }
                    Place::Wall => one(rng, &["in front of a wall", "by a wall"]),
                    Place::Park => one(rng, &["in a park", "outdoors on grass"]),
                    Place::Indoor => one(rng, &["indoors", "in a hall", "in a room"]),
                }
                .to_owned(),
            );
        }
    }
    facts.push(view_fact(view, rng).to_owned());
    facts
}

fn view_fact(view: View, rng: &mut Rng) -> &'static str {
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

fn hair_fact(person: &Person, rng: &mut Rng) -> String {
    let colour = person.hair.word;
    match (person.hair.style, rng.random_range(0..3u32)) {
        (HairStyle::Bald, 0) => "with a bald head".to_owned(),
        (HairStyle::Bald, 1) => "without hair".to_owned(),
        (HairStyle::Bald, _) => "with a shaved head".to_owned(),
        (HairStyle::Long, 0) => format!("with long {colour} hair"),
        (HairStyle::Long, 1) => "whose hair falls over the shoulders".to_owned(),
        (HairStyle::Long, _) => "with long hair".to_owned(),
        (HairStyle::Ponytail, 0) => format!("with {} ponytail", a(colour)),
        (HairStyle::Ponytail, 1) => format!("with long {colour} hair in a ponytail"),
        (HairStyle::Ponytail, _) => "with long hair".to_owned(),
        (HairStyle::Afro, 0) => format!("with curly {colour} hair"),
        (HairStyle::Bun, 0) => format!("with {colour} hair in a bun"),
        (_, 0) => format!("with short {colour} hair"),
        (_, 1) => "whose hair is cut short".to_owned(),
        _ => "with short hair".to_owned(),
    }
}

fn bag_fact(person: &Person, rng: &mut Rng) -> String {
    let Some((kind, colour)) = person.bag else {
        return one(rng, &["without a bag", "with no bag", "who carries no bag"]).to_owned();
    };
    let noun = bag_noun(kind, rng);
    let noun = if rng.random_bool(0.5) {
        a(&format!("{} {noun}", colour.hue.name()))
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

fn carried_fact(kind: Carried, hue: &str, rng: &mut Rng) -> String {
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

/// Puts a frame around a phrase: often none.
fn framed(phrase: String, rng: &mut Rng) -> String {
    match rng.random_range(0..10u32) {
        0..=3 => phrase,
        4..=6 => format!("a photo of {phrase}"),
        7..=8 => format!("a picture of {phrase}"),
        _ => format!("an image of {phrase}"),
    }
}

/// A caption of a whole person, from one attribute to all of them.
pub fn caption(person: &Person, shot: &Shot, rng: &mut Rng) -> String {
    describe(person, shot, Shown::Whole, rng)
}

fn describe(person: &Person, shot: &Shot, shown: Shown, rng: &mut Rng) -> String {
    let mut facts = facts(person, shot, shown, rng);
    let half = |text: String| match shown {
        Shown::Whole => text,
        Shown::UpperHalf => format!("the upper half of {text}"),
        Shown::LowerHalf => format!("the lower half of {text}"),
    };
    let style = rng.random_range(0..100u32);
    // Short captions about one thing are like the prompts of zero-shot labelling: they come often.
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
    if style < 70 || shown != Shown::Whole {
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

/// Puts a frame around a part, as the vocabulary's part templates do.
fn part_framed(phrase: String, rng: &mut Rng) -> String {
    match rng.random_range(0..10u32) {
        0..=3 => phrase,
        4..=5 => format!("a photo of {phrase}"),
        6..=7 => format!("a close-up of {phrase}"),
        8 if !phrase.contains(" of ") => format!("a picture of {phrase} of a person"),
        _ => format!("a picture of {phrase}"),
    }
}

fn background_caption(place: Place, rng: &mut Rng) -> String {
    let words: &[&str] = match place {
        Place::Street => &[
            "a street",
            "a road",
            "buildings",
            "a street without people",
            "an empty street",
            "houses in a street",
        ],
        Place::Wall => &[
            "a wall",
            "a wall and the ground",
            "a wall without people",
            "an empty place by a wall",
        ],
        Place::Park => &[
            "grass",
            "trees",
            "a park",
            "a park without people",
            "a meadow with trees",
            "trees and grass",
        ],
        Place::Indoor => &[
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
fn part_caption(
    person: &Person,
    shot: &Shot,
    drawn: &Drawn,
    class: u8,
    area: [usize; 4],
    rng: &mut Rng,
) -> String {
    // The limb that most of the crop's pixels of the class belong to.
    let mut limbs = [0usize; 16];
    for y in area[1]..area[1] + area[3] {
        for x in area[0]..area[0] + area[2] {
            let at = y * drawn.image.width + x;
            if drawn.parts[at] == class {
                limbs[usize::from(drawn.limbs[at]) & 15] += 1;
            }
        }
    }
    let on = |first: u8| limbs[usize::from(first)] + limbs[usize::from(first) + 1];
    let total: usize = limbs.iter().sum();
    let whose = |rng: &mut Rng| {
        let who = subject(person, rng);
        if rng.random_bool(0.5) {
            who
        } else {
            "a person".to_owned()
        }
    };
    let phrase = match class {
        part::HEAD => match (shot.view(), rng.random_range(0..6u32)) {
            (View::Back, 0..=1) => "the back of a head".to_owned(),
            (View::Back, 2)
                if person.headwear.is_none() && person.hair.style != HairStyle::Bald =>
            {
                "hair".to_owned()
            }
            (View::Front | View::Side, 0..=1) => format!("the face of {}", whose(rng)),
            (View::Front | View::Side, 2) => "a face".to_owned(),
            (_, 3) => match person.headwear {
                Some((Headwear::Cap, colour)) => {
                    one(rng, &["a head with a cap", "a cap", "a head in a cap"]).to_owned()
                        + &dab(colour.hue.name(), rng)
                }
                Some((_, _)) => {
                    one(rng, &["a head with a hat", "a hat", "a hat on a head"]).to_owned()
                }
                None if person.hair.style == HairStyle::Bald => "a bald head".to_owned(),
                None => format!("a head with {} hair", person.hair.word),
            },
            (_, 4) => format!("the head of {}", whose(rng)),
            _ => one(rng, &["a head", "a head", "a head and a neck"]).to_owned(),
        },
        part::UPPER_BODY => {
            if on(group::ARMS) * 10 > total * 7 {
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
                    2 => format!("the upper body of {}", whose(rng)),
                    3 => format!(
                        "the torso of {} in {}",
                        whose(rng),
                        a(&upper_noun(person, rng))
                    ),
                    _ => a(&upper_noun(person, rng)),
                }
            }
        }
        part::ARMS => {
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
                    4 => format!("an arm of {}", whose(rng)),
                    _ => one(
                        rng,
                        &["an arm and a hand", "an elbow of a bare arm", "bare arms"],
                    )
                    .to_owned(),
                }
            }
        }
        part::LOWER_BODY => match rng.random_range(0..6u32) {
            0 => "a lower body".to_owned(),
            1 => format!("the lower body of {}", whose(rng)),
            2 => format!(
                "the lower body of {} in {}",
                whose(rng),
                lower_noun(person, rng)
            ),
            3 if person.lower.kind == LowerKind::Dress => "the skirt of a dress".to_owned(),
            _ => lower_noun(person, rng),
        },
        part::LEGS => match (person.stockings, rng.random_range(0..6u32)) {
            (Some(colour), 0..=2) => {
                one(rng, &["stockings", "legs in stockings"]).to_owned()
                    + &dab(colour.hue.name(), rng)
            }
            (None, 0..=1) => one(rng, &["bare legs", "a bare leg"]).to_owned(),
            (None, 2) => one(rng, &["knees", "bare legs with knees", "a bare leg"]).to_owned(),
            (_, 3) => "legs".to_owned(),
            (_, 4) => format!("the legs of {}", whose(rng)),
            _ => format!("legs of {} in {}", whose(rng), lower_noun(person, rng)),
        },
        part::FEET => match rng.random_range(0..6u32) {
            0 => "feet".to_owned(),
            1 => format!("the feet of {}", whose(rng)),
            2 => match person.shoes.0 {
                Footwear::Boots => "a boot",
                Footwear::Sandals => "a sandal",
                _ => "a shoe",
            }
            .to_owned(),
            3 => format!("feet in {}", shoe_noun(person, rng)),
            _ => shoe_noun(person, rng),
        },
        part::BAG => match person.bag {
            Some((kind, colour)) => {
                let noun = bag_noun(kind, rng);
                match rng.random_range(0..5u32) {
                    0 => "a bag".to_owned(),
                    1..=2 => a(noun),
                    3 => a(&format!("{} {noun}", colour.hue.name())),
                    _ => format!("the {noun} of {}", whose(rng)),
                }
            }
            None => "a bag".to_owned(),
        },
        _ => return background_caption(shot.camera.place, rng),
    };
    part_framed(phrase, rng)
}

/// A colour added to a noun phrase, or nothing.
fn dab(hue: &str, rng: &mut Rng) -> String {
    if rng.random_bool(0.3) {
        format!(", {hue}")
    } else {
        String::new()
    }
}

// ---- Clothing Co-Parsing -------------------------------------------------------------------------------------

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

/// A caption for a photo of CCP from its tags; what is said is in the tags, but not every tag is said.
pub fn ccp_caption(tags: &[&str], rng: &mut Rng) -> String {
    // Everybody has hair and skin; `accessories` and `null` say nothing.
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

/// A crop of a CCP photo that one part fills, with a caption from the label that fills most of it; none where
/// the part is too small.
///
/// mask: label numbers, [height, width] as the image; labels: names by number; class: the part class wanted.
///
/// # Panics
/// If mask and image differ in size.
pub fn ccp_pair(
    image: &Rgb,
    mask: &[u8],
    labels: &[String],
    class: u8,
    rng: &mut Rng,
) -> Option<Pair> {
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
    Some(Pair {
        image,
        caption,
        part: Some(class),
        parts,
        attributes: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_index_gives_the_same_pair() {
        for index in [0, 17, 4242] {
            let (a, b) = (pair(3, index), pair(3, index));
            assert_eq!((a.image, a.caption, a.part), (b.image, b.caption, b.part));
        }
        assert_ne!(pair(3, 1).image, pair(4, 1).image);
    }

    #[test]
    fn parts_come_equally_often() {
        let mut counts = [0usize; 8];
        let mut people = 0;
        const PAIRS: u64 = 1200;
        for index in 0..PAIRS {
            match pair(1, index).part {
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
    fn claims(person: &Person, view: View) -> Vec<(&'static str, bool)> {
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
    fn what_is_said_is_true() {
        let mut rng = rng_for(8, 0, "captions");
        let mut said = std::collections::BTreeMap::<&str, usize>::new();
        for _ in 0..4000 {
            let person = Person::sample(&mut rng);
            let shot = Shot::sample(&person, &mut rng);
            let text =
                format!(" {} ", caption(&person, &shot, &mut rng)).replace(" dressed", " clad");
            for (word, holds) in claims(&person, shot.view()) {
                if text.contains(word) {
                    *said.entry(word).or_default() += 1;
                    assert!(holds, "`{word}` in `{text}` of {person:?}");
                }
            }
            for hue in clasp_synth::Hue::ALL {
                // A colour before an upper garment's noun is that garment's.
                for noun in ["t-shirt", "sweater", "jacket", "coat"] {
                    if text.contains(&format!(" {} {noun}", hue.name())) {
                        assert_eq!(hue, person.upper.colour.hue, "{text}");
                    }
                }
            }
        }
        // Every claim is made now and then.
        let person = Person::sample(&mut rng);
        for (word, _) in claims(&person, View::Front) {
            assert!(
                said.get(word).copied().unwrap_or(0) >= 5,
                "`{word}` hardly ever: {said:?}"
            );
        }
    }

    #[test]
    fn ccp_captions_say_only_what_is_tagged() {
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
}
