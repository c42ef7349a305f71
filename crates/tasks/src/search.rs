//! Search through pictures: the gallery images nearest to each query by cosine, and a contact sheet of them.

use clasp_data::font;
use clasp_data::image::{Filter, Rgb, resize};
use clasp_metrics::matmul::{Matrix, matmul};
use serde::Serialize;

use crate::embed::Embeddings;
use crate::tuned::picture::paste;

/// Height and width of a picture on the sheet.
const TILE: [usize; 2] = [128, 64];
/// Pixels between tiles.
const GAP: usize = 6;

/// A gallery image that is near to a query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Match {
    /// Its position in the gallery.
    pub item: usize,
    /// Its key.
    pub key: String,
    /// The cosine of both features.
    pub cosine: f32,
}

/// The `top` nearest gallery images of each query, nearest first, none below `threshold`; ties keep the gallery's order.
///
/// Queries are taken in blocks, so the memory is bounded by the gallery.
///
/// # Panics
/// When features of both sides differ in length.
pub fn nearest(
    query: &Embeddings,
    gallery: &Embeddings,
    top: usize,
    threshold: f32,
) -> Vec<Vec<Match>> {
    const BLOCK: usize = 64;
    assert_eq!(
        query.channels, gallery.channels,
        "features of queries and gallery"
    );
    let (queries, others) = (unit(query), unit(gallery));
    let (channels, count) = (query.channels, gallery.keys.len());
    let right = Matrix::new(&others, count, channels).transposed();
    let mut all = Vec::with_capacity(query.keys.len());
    for rows in queries.chunks(BLOCK * channels) {
        let number = rows.len() / channels;
        let mut cosines = vec![0.0; number * count];
        matmul(Matrix::new(rows, number, channels), right, &mut cosines);
        for row in cosines.chunks_exact(count) {
            let mut order: Vec<usize> = (0..count).filter(|j| row[*j] >= threshold).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(top);
            let matches = order.into_iter().map(|item| Match {
                item,
                key: gallery.keys[item].clone(),
                cosine: row[item],
            });
            all.push(matches.collect());
        }
    }
    all
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
pub struct Row {
    /// The query.
    pub query: Rgb,
    /// What was found, and the cosines.
    pub matches: Vec<(Rgb, f32)>,
}

/// The contact sheet: a query a row, its matches to the right with their cosines below.
pub fn sheet(rows: &[Row]) -> Rgb {
    let [height, width] = TILE;
    let columns = 1 + rows.iter().map(|row| row.matches.len()).max().unwrap_or(0);
    let line = height + font::HEIGHT + 2 * GAP;
    let size = [
        (columns * (width + GAP) + 2 * GAP).max(width + 2 * GAP),
        rows.len() * line + GAP,
    ];
    let mut sheet = Rgb::filled(size[0], size[1], [255; 3]);
    let tile = |image: &Rgb| resize(image, height, width, Filter::Bicubic);
    for (index, row) in rows.iter().enumerate() {
        let top = GAP + index * line;
        paste(&mut sheet, &tile(&row.query), GAP, top);
        font::draw(&mut sheet, GAP, top + height + 2, "query", 1, [0; 3]);
        for (rank, (image, cosine)) in row.matches.iter().enumerate() {
            let left = 2 * GAP + (rank + 1) * (width + GAP);
            paste(&mut sheet, &tile(image), left, top);
            let text = format!("{} {cosine:.3}", rank + 1);
            font::draw(&mut sheet, left, top + height + 2, &text, 1, [0; 3]);
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(features: &[f32]) -> Embeddings {
        Embeddings {
            keys: (0..features.len() / 2).map(|i| i.to_string()).collect(),
            features: features.to_vec(),
            channels: 2,
            unreadable: Default::default(),
        }
    }

    #[test]
    fn the_nearest_come_first_and_the_far_not_at_all() {
        let query = embeddings(&[2.0, 0.0]);
        let gallery = embeddings(&[0.0, 1.0, 3.0, 3.0, -1.0, 0.0, 5.0, 0.0, 1.0, 1.0]);
        let found = nearest(&query, &gallery, 10, 0.5);
        let keys: Vec<&str> = found[0].iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["3", "1", "4"]);
        assert!((found[0][1].cosine - 0.5_f32.sqrt()).abs() < 1e-6);
        assert_eq!(nearest(&query, &gallery, 1, -1.0)[0].len(), 1);
        let image = Rgb::filled(3, 9, [7; 3]);
        let row = Row {
            query: image.clone(),
            matches: vec![(image, 0.5)],
        };
        let sheet = sheet(&[row]);
        assert_eq!(sheet.pixel(GAP, GAP), [7; 3]);
    }
}
