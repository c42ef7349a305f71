//! Retrieval: the gallery images nearest to each query by cosine, and a contact sheet of them.

use clasp_data::font;
use clasp_data::image::{Filter, Rgb, resize};
use clasp_metrics::matmul::{MatrixView, matmul};
use rayon::prelude::*;
use serde::Serialize;

use crate::drawing::paste;
use crate::embed::Embeddings;

/// Height and width of a picture on the sheet.
const TILE: [usize; 2] = [128, 64];
/// Pixels between tiles.
const GAP: usize = 6;
/// Width and color of the frame around the same person.
const FRAME: usize = 2;
const SAME: [u8; 3] = [0, 160, 60];
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

/// The `top` nearest gallery images of each query, nearest first, with a cosine of at least
/// `threshold`; ties keep the gallery's order. `same` is the same-person threshold.
///
/// Queries are processed in blocks on all threads, so that memory is bounded by the gallery.
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
    const BLOCK: usize = 64;
    assert_eq!(
        query.channels, gallery.channels,
        "features of queries and gallery"
    );
    let (queries, others) = (unit(query), unit(gallery));
    let (channels, count) = (query.channels, gallery.keys.len());
    let right = MatrixView::new(&others, count, channels).transposed();
    let mut all = Vec::with_capacity(query.keys.len());
    for rows in queries.chunks(BLOCK * channels) {
        let number = rows.len() / channels;
        let mut cosines = vec![0.0; number * count];
        matmul(MatrixView::new(rows, number, channels), right, &mut cosines);
        let found = cosines.par_chunks_exact(count).map(|row| {
            let matches = best(row, top, threshold)
                .into_iter()
                .map(|at| GalleryMatch {
                    item: gallery.items[at],
                    key: gallery.keys[at].clone(),
                    cosine: row[at],
                    same: same.map(|same| f64::from(row[at]) >= same),
                });
            matches.collect::<Vec<_>>()
        });
        all.par_extend(found);
    }
    all
}

/// Positions of the `top` largest of `cosines` of at least `threshold`, largest first, ties in
/// order.
fn best(cosines: &[f32], top: usize, threshold: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cosines.len())
        .filter(|at| cosines[*at] >= threshold)
        .collect();
    // With the position as tie-break the order is total, so that the unstable selection is
    // deterministic.
    let nearer = |a: &usize, b: &usize| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b));
    if top < order.len() {
        order.select_nth_unstable_by(top, nearer);
        order.truncate(top);
    }
    order.sort_unstable_by(nearer);
    order
}

/// Rows of length 1.
fn unit(embeddings: &Embeddings) -> Vec<f32> {
    let rows = embeddings.features.chunks_exact(embeddings.channels.max(1));
    rows.flat_map(|row| {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter().map(move |v| v / norm)
    })
    .collect()
}

/// A row of the contact sheet.
#[derive(Debug, Clone)]
pub struct SheetRow {
    /// The query, a [`tile`].
    pub query: Rgb,
    /// Its matches, [`tile`]s with their cosines and whether they are above the same-person
    /// threshold.
    pub matches: Vec<(Rgb, f32, Option<bool>)>,
}

/// A picture in the size of the sheet's tiles.
pub fn tile(image: &Rgb) -> Rgb {
    resize(image, TILE[0], TILE[1], Filter::Bicubic)
}

/// The contact sheet: a query a row, its matches to the right with their cosines below, in a green
/// frame where they are above the same-person threshold.
///
/// # Panics
/// When a picture is not of a tile's size.
pub fn sheet(rows: &[SheetRow]) -> Rgb {
    let [height, width] = TILE;
    let columns = 1 + rows.iter().map(|row| row.matches.len()).max().unwrap_or(0);
    let line = height + font::SMALL + 2 * GAP;
    let size = [
        (columns * (width + GAP) + 2 * GAP).max(width + 2 * GAP),
        rows.len() * line + GAP,
    ];
    let mut sheet = Rgb::filled(size[0], size[1], [255; 3]);
    let put = |sheet: &mut Rgb, image: &Rgb, left: usize, top: usize, text: &str| {
        assert_eq!([image.height, image.width], TILE, "size of a tile");
        paste(sheet, image, left, top);
        font::draw(sheet, left, top + height + 2, text, font::SMALL, [0; 3]);
    };
    for (index, row) in rows.iter().enumerate() {
        let top = GAP + index * line;
        put(&mut sheet, &row.query, GAP, top, "query");
        for (rank, (image, cosine, same)) in row.matches.iter().enumerate() {
            let left = 2 * GAP + (rank + 1) * (width + GAP);
            let text = format!("{} {cosine:.3}", rank + 1);
            if *same == Some(true) {
                let (x, y) = (left - FRAME, top - FRAME);
                font::fill(
                    &mut sheet,
                    x,
                    y,
                    width + 2 * FRAME,
                    height + 2 * FRAME,
                    SAME,
                );
            }
            put(&mut sheet, image, left, top, &text);
        }
    }
    sheet
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
            unreadable: Default::default(),
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
        let row = SheetRow {
            query: image.clone(),
            matches: vec![(image, 0.5, Some(true))],
        };
        let sheet = sheet(&[row]);
        assert_eq!(sheet.pixel(GAP, GAP), [7; 3]);
        assert_eq!(sheet.pixel(2 * GAP + TILE[1] + GAP - 1, GAP), SAME);
    }

    #[test]
    fn the_best_of_many_equal_those_of_a_full_sort() {
        // Many ties, which are ordered by position.
        let cosines: Vec<f32> = (0..500).map(|i| ((i * 37) % 50) as f32 / 50.0).collect();
        for (top, threshold) in [
            (0, -1.0),
            (1, -1.0),
            (7, 0.3),
            (500, -1.0),
            (usize::MAX, 0.9),
        ] {
            let mut expected: Vec<usize> = (0..500).filter(|i| cosines[*i] >= threshold).collect();
            expected.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
            expected.truncate(top);
            assert_eq!(best(&cosines, top, threshold), expected, "{top}");
        }
    }
}
