//! A contact sheet of labeled images: the image, its part map over it, its attributes beside it,
//! and a legend.

use clasp_data::image::{self, Filter, Limits, Rgb};
use clasp_data::labels::{
    AttributeConfig, AttributeRule, Calibration, LabelRef, Store, StoreMeta, largest,
};
use clasp_data::rng_for;
use clasp_data::source::Source;

use crate::Error;
use crate::parts::IGNORE;
use clasp_data::font::{self, fill};

/// Height and width of the box for an image, in pixels.
const BOX: [usize; 2] = [288, 168];
/// Width of the text beside, in pixels.
const TEXT: usize = 300;
/// Gaps, in pixels.
const GAP: usize = 12;
/// From one line of text to the next, in pixels.
const LINE: usize = font::NORMAL;
/// How much of a part's color lies over the image.
const ALPHA: f32 = 0.55;

/// Most images that fit on a sheet: one of them takes more than half a megabyte.
pub const MOST_SHOWN: usize = 256;

const PAPER: [u8; 3] = [255, 255, 255];
const INK: [u8; 3] = [24, 24, 28];
/// Of what is not sure.
const PALE: [u8; 3] = [104, 104, 112];
/// The color of positions without a class in the legend.
const UNSURE: [u8; 3] = [60; 3];
const FRAME: [u8; 3] = [232, 232, 236];

/// Settings of a contact sheet.
#[derive(Debug, Clone)]
pub struct ContactSheetConfig {
    /// Images on the sheet, at most; no more than [`MOST_SHOWN`].
    pub count: usize,
    /// Images beside each other.
    pub columns: usize,
    /// Seed of the choice.
    pub seed: u64,
    /// How logits become targets; attributes that training would mask are marked.
    pub attributes: AttributeConfig,
}

impl Default for ContactSheetConfig {
    fn default() -> Self {
        Self {
            count: 16,
            columns: 2,
            seed: 0,
            attributes: AttributeConfig::default(),
        }
    }
}

/// Draws images of `source` that `store` has labels of, chosen by the seed, in the order of the
/// source.
///
/// Without a calibration the attributes are calibrated over `store` itself.
///
/// # Errors
///
/// The store has labels of none of the images.
pub fn contact_sheet(
    source: &Source,
    store: &Store,
    calibration: Option<&Calibration>,
    options: &ContactSheetConfig,
) -> Result<Rgb, Error> {
    let labeled: Vec<usize> = (0..source.len())
        .filter(|&i| store.get(source.key(i)).is_some())
        .collect();
    if labeled.is_empty() {
        return Err(Error::Empty {
            place: "show".into(),
            expected: "images that these labels were made from, given as they were to `clasp label` (a key is the path below \
                       the folder that was given)",
        });
    }
    let own;
    let calibration = match calibration {
        Some(calibration) => calibration,
        None => {
            own = Calibration::of_store(store)?;
            &own
        }
    };
    let rule = AttributeRule::new(calibration, &options.attributes);
    let mut rng = rng_for(options.seed, 0, "show");
    let count = options.count.min(MOST_SHOWN).clamp(1, labeled.len());
    let mut chosen = rand::seq::index::sample(&mut rng, labeled.len(), count).into_vec();
    chosen.sort_unstable();

    let columns = options.columns.clamp(1, count);
    let vocabulary = &store.meta.vocabulary;
    let lines = 1 + match vocabulary.attributes.len() {
        0 => vocabulary.parts.len(),
        attributes => attributes,
    };
    let entry_width = 2 * (BOX[1] + GAP / 2) + GAP + TEXT;
    let entry_height = BOX[0].max(lines * LINE) + GAP;
    let width = columns * (entry_width + GAP) + GAP;
    let legend = Legend::new(&store.meta, width - 2 * GAP);
    let mut sheet = Rgb::filled(
        width,
        legend.height + 2 * GAP + count.div_ceil(columns) * entry_height,
        PAPER,
    );
    legend.draw(&mut sheet);
    for (place, &index) in chosen.iter().enumerate() {
        let x = GAP + place % columns * (entry_width + GAP);
        let y = legend.height + 2 * GAP + place / columns * entry_height;
        let index = labeled[index];
        if let Some(labels) = store.get(source.key(index)) {
            draw_entry(
                &mut sheet,
                [x, y],
                source,
                index,
                labels,
                &store.meta,
                &rule,
            );
        }
    }
    Ok(sheet)
}

/// One image with its labels; an image that cannot be read any more leaves its boxes empty.
fn draw_entry(
    sheet: &mut Rgb,
    [x, y]: [usize; 2],
    source: &Source,
    index: usize,
    labels: LabelRef<'_>,
    meta: &StoreMeta,
    rule: &AttributeRule,
) {
    let second = x + BOX[1] + GAP / 2;
    for x in [x, second] {
        fill(sheet, x, y, BOX[1], BOX[0], FRAME);
    }
    let bytes = source.read(index).ok();
    if let Some(picture) = bytes.and_then(|bytes| image::decode(&bytes, &Limits::default()).ok()) {
        let picture = fitted(&picture);
        let (left, top) = ((BOX[1] - picture.width) / 2, (BOX[0] - picture.height) / 2);
        paste(sheet, &picture, x + left, y + top);
        paste(
            sheet,
            &overlay(&picture, labels.values.parts, [meta.rows, meta.columns]),
            second + left,
            y + top,
        );
    }
    let text = second + BOX[1] + GAP;
    let mut line = y;
    let mut write = |words: &str, color: [u8; 3]| {
        font::draw(
            sheet,
            text,
            line,
            &font::fit(words, TEXT, LINE),
            LINE,
            color,
        );
        line += LINE;
    };
    // The end of a key tells images apart, not its folders.
    write(&end_of(labels.key), INK);
    let vocabulary = &meta.vocabulary;
    let targets = rule.targets(&labels, vocabulary);
    for ((attribute, range), &sure) in vocabulary
        .attributes
        .iter()
        .zip(vocabulary.ranges())
        .zip(&targets.mask)
    {
        let best = range.start + largest(&targets.target[range.clone()]);
        let name = &attribute.values[best - range.start].name;
        let mark = if sure { "" } else { "?" };
        let words = format!(
            "{}: {}{mark} {:.2}",
            plain(&attribute.name),
            plain(name),
            targets.target[best]
        );
        write(&words, if sure { INK } else { PALE });
    }
    if vocabulary.attributes.is_empty() {
        let positions = labels.values.parts.len().max(1);
        for (class, part) in vocabulary.parts.iter().enumerate() {
            let count = labels
                .values
                .parts
                .iter()
                .filter(|&&p| usize::from(p) == class)
                .count();
            write(
                &format!("{}: {} %", part.name, 100 * count / positions),
                INK,
            );
        }
    }
}

/// The end of a key, as much of it as fits beside an image.
fn end_of(key: &str) -> String {
    let mut rest = key;
    while font::width(rest, LINE) > TEXT {
        let Some((_, after)) = rest.split_once('/') else {
            break;
        };
        rest = after;
    }
    rest.to_owned()
}

/// A name of the vocabulary as words.
fn plain(name: &str) -> String {
    name.replace('_', " ")
}

/// The picture at the largest size that fits into the box.
fn fitted(picture: &Rgb) -> Rgb {
    let scale = (BOX[0] as f64 / picture.height as f64).min(BOX[1] as f64 / picture.width as f64);
    let side = |side: usize, most: usize| ((side as f64 * scale).round() as usize).clamp(1, most);
    image::resize(
        picture,
        side(picture.height, BOX[0]),
        side(picture.width, BOX[1]),
        Filter::Bilinear,
    )
}

/// A picture with the colors of its parts over it. Positions without a class stay gray and dark.
///
/// `parts`: [rows, columns] with `grid` = rows and columns
pub fn overlay(picture: &Rgb, parts: &[u8], grid: [usize; 2]) -> Rgb {
    assert_eq!(
        parts.len(),
        grid[0] * grid[1],
        "parts do not fill a grid of {grid:?}"
    );
    let mut out = picture.clone();
    for y in 0..picture.height {
        for x in 0..picture.width {
            let part =
                parts[(y * grid[0] / picture.height) * grid[1] + x * grid[1] / picture.width];
            let pixel = picture.pixel(x, y).map(f32::from);
            // Gray below, so that the colors are those of the parts and not of the clothes.
            let gray = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
            let mixed = match part {
                IGNORE => [0.5 * gray; 3],
                part => color(part).map(|c| ALPHA * f32::from(c) + (1.0 - ALPHA) * gray),
            };
            let at = 3 * (y * picture.width + x);
            out.pixels[at..at + 3].copy_from_slice(&mixed.map(|c| c.round() as u8));
        }
    }
    out
}

/// The color of a part class; classes beyond the table get hues a golden angle apart.
pub fn color(class: u8) -> [u8; 3] {
    const TABLE: [[u8; 3]; 8] = [
        [96, 104, 120],
        [230, 40, 80],
        [60, 180, 75],
        [255, 215, 30],
        [20, 120, 215],
        [245, 130, 48],
        [150, 40, 190],
        [70, 225, 225],
    ];
    match TABLE.get(usize::from(class)) {
        Some(&color) => color,
        None => {
            let hue = (f32::from(class) * 137.508) % 360.0 / 60.0;
            [0.0, 4.0, 2.0].map(|offset| {
                let ramp = ((hue + offset) % 6.0 - 3.0).abs() - 1.0;
                (60.0 + 180.0 * ramp.clamp(0.0, 1.0)) as u8
            })
        }
    }
}

/// How the lines beside an image are read.
const MARKS: &str = "beside each image: its key, then each attribute's likeliest value and its probability; gray with a question mark: \
     not sure, so that nothing is learned from it";

/// The legend: swatches with names, in as many lines as needed.
struct Legend {
    title: String,
    /// Color, name, and where.
    entries: Vec<([u8; 3], String, [usize; 2])>,
    /// How to read the attributes, and its top.
    note: Option<(String, usize)>,
    height: usize,
}

impl Legend {
    fn new(meta: &StoreMeta, width: usize) -> Self {
        let mut title = format!("{} ({}", meta.model, meta.method);
        if !meta.dense.is_empty() {
            title += &format!(", {}", meta.dense);
        }
        title += &format!("), confidence {:.2}", meta.confidence);
        let names = meta
            .vocabulary
            .parts
            .iter()
            .enumerate()
            .map(|(class, part)| {
                let color = u8::try_from(class).map_or(INK, color);
                (color, part.name.clone())
            });
        let (mut x, mut y) = (0, LINE + GAP / 2);
        let mut entries = Vec::new();
        for (color, name) in names.chain([(UNSURE, "not sure".to_owned())]) {
            let name = plain(&name);
            let wide = LINE + GAP / 2 + font::width(&name, LINE) + 2 * GAP;
            if x > 0 && x + wide > width {
                (x, y) = (0, y + LINE + GAP / 2);
            }
            entries.push((color, name, [x, y]));
            x += wide;
        }
        let has_attributes = !meta.vocabulary.attributes.is_empty();
        let note = has_attributes.then(|| {
            y += LINE + GAP / 2;
            (font::fit(MARKS, width, LINE), y)
        });
        Self {
            title: font::fit(&title, width, LINE),
            entries,
            note,
            height: y + LINE + GAP,
        }
    }

    fn draw(&self, sheet: &mut Rgb) {
        font::draw(sheet, GAP, GAP, &self.title, LINE, INK);
        if let Some((note, y)) = &self.note {
            font::draw(sheet, GAP, GAP + y, note, LINE, INK);
        }
        for (color, name, [x, y]) in &self.entries {
            fill(sheet, GAP + x, GAP + y + 2, LINE, LINE - 4, *color);
            let text = GAP + x + LINE + GAP / 2;
            font::draw(sheet, text, GAP + y, name, LINE, INK);
        }
    }
}

fn paste(sheet: &mut Rgb, picture: &Rgb, x: usize, y: usize) {
    for row in 0..picture.height {
        let at = 3 * ((y + row) * sheet.width + x);
        sheet.pixels[at..at + 3 * picture.width].copy_from_slice(picture.row(row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{images, meta};
    use clasp_data::labels::{LabelValues, Labels, write_shard};

    #[test]
    fn the_overlay_follows_the_grid() {
        let picture = Rgb::filled(4, 4, [200; 3]);
        let out = overlay(&picture, &[0, 1, IGNORE, 1], [2, 2]);
        assert_eq!(out.pixel(0, 0), out.pixel(1, 1));
        assert_ne!(out.pixel(1, 0), out.pixel(2, 0));
        assert_eq!(out.pixel(0, 3), [100; 3]);
        assert_eq!(out.pixel(3, 0), out.pixel(3, 3));
    }

    #[test]
    fn text_has_contrast() {
        for color in [INK, PALE] {
            assert!(font::contrast(color, PAPER) >= font::CONTRAST);
        }
    }

    #[test]
    fn a_long_key_is_shown_by_its_end() {
        let key = "market/bounding_box_train/many/folders/0001_c1s1_000151_01";
        let shown = end_of(key);
        assert!(
            shown.ends_with("/0001_c1s1_000151_01") && shown.len() < key.len(),
            "{shown}"
        );
    }

    #[test]
    fn colors_differ() {
        let mut colors: Vec<_> = (0..40).map(color).collect();
        colors.sort();
        colors.dedup();
        assert_eq!(colors.len(), 40);
    }

    #[test]
    fn a_sheet_shows_the_images_of_the_labels_only() {
        let folder = tempfile::tempdir().unwrap();
        let source = images(folder.path(), 1, 5);
        let labels: Vec<Labels> = (0..3)
            .map(|i| Labels {
                key: source.key(i).to_owned(),
                width: 8,
                height: 16,
                image_sha256: String::new(),
                values: LabelValues {
                    parts: vec![0, 1, 2, IGNORE],
                    part_confidence: vec![255; 4],
                    attributes: vec![i as f32, 2.0, 3.0, 1.0, 0.5 * i as f32],
                },
            })
            .collect();
        let out = folder.path().join("labels");
        write_shard(&out, "people", &meta([2, 2]), &labels).unwrap();
        let store = Store::open(&out).unwrap();
        let sheet = contact_sheet(&source, &store, None, &ContactSheetConfig::default()).unwrap();
        // Three images in two columns.
        assert!(
            sheet.height > 2 * BOX[0] && sheet.height < 3 * BOX[0],
            "{}",
            sheet.height
        );
        assert!(sheet.pixels.chunks_exact(3).any(|p| p == INK));
        assert!(image::encode_png(&sheet).starts_with(b"\x89PNG"));
        let again = contact_sheet(&source, &store, None, &ContactSheetConfig::default()).unwrap();
        assert!(sheet == again);

        let error = contact_sheet(
            &source.shard(1, 2),
            &store,
            None,
            &ContactSheetConfig::default(),
        )
        .unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error}");
    }
}
