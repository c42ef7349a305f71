//! Retrieval: the gallery images nearest to each query by cosine, and a contact sheet of them.

use clasp_data::font;
use clasp_data::image::{Filter, Rgb, resize};
use serde::Serialize;

use crate::drawing::paste;
use crate::embed::Embeddings;
use crate::index::{FeatureIndex, IndexHit};

/// Height and width of a picture on the sheet.
const TILE: [usize; 2] = [192, 96];
/// Pixels between tiles.
const GAP: usize = 6;
/// Width and color of the frame around the same person.
const FRAME: usize = 2;
const SAME: [u8; 3] = [0, 160, 60];
/// Color of texts.
const INK: [u8; 3] = [0; 3];
/// Most matches of a query on the sheet.
pub const MOST_SHOWN: usize = 20;

/// A gallery image near a query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GalleryMatch {
    /// Its position in the source of the gallery.
    pub item: usize,
    /// Its key.
    pub key: String,
    /// The cosine of both features.
    pub cosine: f32,
    /// Whether it is above the same-person threshold; none without such a threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same: Option<bool>,
}

/// What is known of a query: a line of `matches.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchAnswer {
    /// Key of the query.
    pub query: String,
    /// Its matches, the best first.
    pub matches: Vec<GalleryMatch>,
    /// Whether no match is the same person; none without a same-person threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nobody: Option<bool>,
}

impl SearchAnswer {
    /// The answer to a query; `has_threshold`: matches were compared with a same-person threshold.
    pub fn new(query: String, matches: Vec<GalleryMatch>, has_threshold: bool) -> Self {
        let nobody = has_threshold.then(|| matches.iter().all(|one| one.same != Some(true)));
        Self {
            query,
            matches,
            nobody,
        }
    }
}

/// The `top` nearest gallery images of each query, nearest first, with a cosine of at least
/// `threshold`; ties keep the gallery's order. `same` is the same-person threshold.
///
/// On rayon's threads; memory is bounded by the gallery and the results.
///
/// # Panics
/// When features of both sides differ in length.
pub fn nearest(
    query: &Embeddings,
    gallery: &Embeddings,
    top: usize,
    threshold: f32,
    same: Option<f64>,
) -> Vec<Vec<GalleryMatch>> {
    assert_eq!(
        query.channels, gallery.channels,
        "features of queries and gallery"
    );
    let mut index = FeatureIndex::new(gallery.channels);
    { gallery.features.chunks_exact(gallery.channels.max(1)) }.for_each(|row| {
        index.push(row);
    });
    let found = index.nearest(&query.features, top, threshold, &|_| true);
    let matched = |hit: IndexHit| {
        // Numbers count the features from 0, and so from the first of the gallery.
        let at = hit.id as usize;
        GalleryMatch {
            item: gallery.items[at],
            key: gallery.keys[at].clone(),
            cosine: hit.cosine,
            same: same.map(|same| f64::from(hit.cosine) >= same),
        }
    };
    { found.into_iter() }
        .map(|hits| hits.into_iter().map(matched).collect())
        .collect()
}

/// A row of the contact sheet.
#[derive(Debug, Clone)]
pub struct SheetRow {
    /// The query.
    pub query: SheetPicture,
    /// Its matches, the best first.
    pub matches: Vec<SheetMatch>,
}

/// A picture and the name below it.
#[derive(Debug, Clone)]
pub struct SheetPicture {
    /// A [`tile`].
    pub image: Rgb,
    /// Key of the image.
    pub key: String,
}

/// A match on the contact sheet.
#[derive(Debug, Clone)]
pub struct SheetMatch {
    /// The gallery image.
    pub picture: SheetPicture,
    /// Its cosine to the query.
    pub cosine: f32,
    /// Whether that is above the same-person threshold, if there is one.
    pub same: Option<bool>,
}

/// A picture in the size of the sheet's tiles.
pub fn tile(image: &Rgb) -> Rgb {
    resize(image, TILE[0], TILE[1], Filter::Bicubic)
}

/// The contact sheet: a query a row, its matches to the right with their cosines and names below,
/// in a green frame where they are above the same-person threshold `same`; a legend on top.
///
/// # Panics
/// When a picture is not of a tile's size.
pub fn sheet(rows: &[SheetRow], same: Option<f64>) -> Rgb {
    let [height, width] = TILE;
    let columns = 1 + rows.iter().map(|row| row.matches.len()).max().unwrap_or(0);
    let legend = legend(same);
    let line = height + 2 * font::SMALL + 3 * GAP;
    let head = font::SMALL + 3 * GAP;
    let size = [
        (columns * (width + GAP) + 2 * GAP).max(font::width(&legend, font::SMALL) + 2 * GAP),
        head + rows.len() * line,
    ];
    let mut sheet = Rgb::filled(size[0], size[1], [255; 3]);
    font::draw(&mut sheet, GAP, GAP, &legend, font::SMALL, INK);
    for (index, row) in rows.iter().enumerate() {
        let top = head + index * line;
        put(&mut sheet, &row.query, [GAP, top], "query");
        for (rank, one) in row.matches.iter().enumerate() {
            let left = 2 * GAP + (rank + 1) * (width + GAP);
            if one.same == Some(true) {
                let [x, y] = [left, top].map(|side| side - FRAME);
                let [frame_width, frame_height] = [width, height].map(|side| side + 2 * FRAME);
                font::fill(&mut sheet, x, y, frame_width, frame_height, SAME);
            }
            let text = format!("{}: {:.3}", rank + 1, one.cosine);
            put(&mut sheet, &one.picture, [left, top], &text);
        }
    }
    sheet
}

/// What the numbers and frames of a sheet mean.
fn legend(same: Option<f64>) -> String {
    let frames = match same {
        Some(same) => {
            format!("green frame: cosine {same:.3} or above, the threshold for the same person")
        }
        None => "no same-person threshold (clasp eval reid --calibrate)".to_owned(),
    };
    format!("rank: cosine; {frames}")
}

/// Draws a picture with a text and its name below.
fn put(sheet: &mut Rgb, picture: &SheetPicture, [left, top]: [usize; 2], text: &str) {
    let [height, width] = TILE;
    let image = &picture.image;
    assert_eq!([image.height, image.width], TILE, "size of a tile");
    paste(sheet, image, left, top);
    // Folders are the same for many images.
    let name = picture.key.rsplit('/').next().unwrap_or_default();
    let name = font::fit_middle(name, width, font::SMALL);
    for (index, line) in [text, &name].into_iter().enumerate() {
        let y = top + height + FRAME + 2 + index * (font::SMALL + 1);
        font::draw(sheet, left, y, line, font::SMALL, INK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(features: &[f32]) -> Embeddings {
        Embeddings {
            items: (0..features.len() / 2).map(|i| 10 * i).collect(),
            keys: (0..features.len() / 2).map(|i| i.to_string()).collect(),
            features: features.to_vec(),
            channels: 2,
            ..Embeddings::default()
        }
    }

    #[test]
    fn matches_are_sorted_and_cut_at_the_threshold() {
        let query = embeddings(&[2.0, 0.0]);
        let gallery = embeddings(&[0.0, 1.0, 3.0, 3.0, -1.0, 0.0, 5.0, 0.0, 1.0, 1.0]);
        let found = nearest(&query, &gallery, 10, 0.5, Some(0.9));
        let keys: Vec<&str> = found[0].iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["3", "1", "4"]);
        assert!((found[0][1].cosine - 0.5_f32.sqrt()).abs() < 1e-6);
        // Unreadable images leave gaps in the positions of the source.
        assert_eq!(found[0][1].item, 10);
        let same: Vec<Option<bool>> = found[0].iter().map(|one| one.same).collect();
        assert_eq!(same, [Some(true), Some(false), Some(false)]);
        assert_eq!(nearest(&query, &gallery, 1, -1.0, None)[0].len(), 1);
        let image = tile(&Rgb::filled(3, 9, [7; 3]));
        let picture = SheetPicture {
            image,
            key: "a/b".to_owned(),
        };
        let row = SheetRow {
            query: picture.clone(),
            matches: vec![SheetMatch {
                picture,
                cosine: 0.5,
                same: Some(true),
            }],
        };
        let sheet = sheet(&[row], Some(0.4));
        let top = font::SMALL + 3 * GAP;
        assert_eq!(sheet.pixel(GAP, top), [7; 3]);
        assert_eq!(sheet.pixel(2 * GAP + TILE[1] + GAP - 1, top), SAME);
        // The legend, and below the picture its rank and its name.
        let has_ink = |from: usize, to: usize| {
            let is_dark = |[r, g, b]: [u8; 3]| r.max(g).max(b) < 100 && [r, g, b] != [7; 3];
            (from..to).any(|y| (0..sheet.width).any(|x| is_dark(sheet.pixel(x, y))))
        };
        let below = top + TILE[0] + FRAME;
        assert!(has_ink(0, top) && has_ink(below, below + font::SMALL));
        assert!(has_ink(below + font::SMALL + 3, sheet.height));
    }
}
