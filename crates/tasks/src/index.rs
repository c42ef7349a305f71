//! Exact search by cosine over features that are added and removed one by one.
//!
//! Features lie normalized in blocks, so that adding one never copies the others and removing one
//! moves at most a block. A search computes the cosines of a block with one matrix product, keeps
//! the best of it, and merges what the blocks gave: memory is bounded by the number of results.

use clasp_metrics::matmul::{MatrixView, matmul_here};
use rayon::prelude::*;

/// Features in a block.
const BLOCK: usize = 1024;
/// Queries that are compared at a time.
const QUERIES: usize = 64;

/// A feature near a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IndexHit {
    /// The number that [`FeatureIndex::push`] gave it.
    pub id: u64,
    /// Its cosine to the query.
    pub cosine: f32,
}

/// Features of one length, searched exactly.
#[derive(Debug, Clone, Default)]
pub struct FeatureIndex {
    channels: usize,
    blocks: Vec<IndexBlock>,
    next: u64,
    len: usize,
}

/// Some features that follow each other.
#[derive(Debug, Clone)]
struct IndexBlock {
    /// Their numbers, ascending.
    ids: Vec<u64>,
    /// `[ids, channels]`, of length 1 each.
    rows: Vec<f32>,
}

impl FeatureIndex {
    /// An index of features of that length.
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            ..Self::default()
        }
    }

    /// Length of a feature.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a feature, which is normalized, and returns its number: one more than that of the
    /// feature added before.
    ///
    /// # Panics
    /// When it has another length than the index.
    pub fn push(&mut self, feature: &[f32]) -> u64 {
        assert_eq!(feature.len(), self.channels, "length of a feature");
        if self
            .blocks
            .last()
            .is_none_or(|last| last.ids.len() == BLOCK)
        {
            self.blocks.push(IndexBlock {
                ids: Vec::with_capacity(BLOCK),
                rows: Vec::new(),
            });
        }
        let id = self.next;
        if let Some(block) = self.blocks.last_mut() {
            block.ids.push(id);
            block.rows.extend(unit(feature));
        }
        self.next += 1;
        self.len += 1;
        id
    }

    /// A feature, normalized.
    pub fn get(&self, id: u64) -> Option<&[f32]> {
        let (block, row) = self.place(id)?;
        let start = row * self.channels;
        Some(&self.blocks[block].rows[start..start + self.channels])
    }

    /// Block and row of a feature.
    fn place(&self, id: u64) -> Option<(usize, usize)> {
        let after = { &self.blocks }.partition_point(|block| block.ids.first() <= Some(&id));
        let block = after.checked_sub(1)?;
        let row = self.blocks[block].ids.binary_search(&id).ok()?;
        Some((block, row))
    }

    /// Removes a feature; false where there is none of that number.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some((at, row)) = self.place(id) else {
            return false;
        };
        let block = &mut self.blocks[at];
        block.ids.remove(row);
        block
            .rows
            .drain(row * self.channels..(row + 1) * self.channels);
        self.len -= 1;
        self.merge(at);
        true
    }

    /// Joins a block that became small with the one before it, so that many removals leave few
    /// blocks.
    fn merge(&mut self, at: usize) {
        let small = self.blocks[at].ids.len();
        if small == 0 {
            self.blocks.remove(at);
        } else if at > 0 && self.blocks[at - 1].ids.len() + small <= BLOCK / 2 {
            let block = self.blocks.remove(at);
            let before = &mut self.blocks[at - 1];
            before.ids.extend(block.ids);
            before.rows.extend(block.rows);
        }
    }

    /// The `top` nearest features of each query, `[queries, channels]`, nearest first, with a cosine
    /// of at least `threshold`, among those that `keep` accepts; ties in the order of addition. On
    /// rayon's threads.
    ///
    /// # Panics
    /// When `queries` is no multiple of the length of a feature.
    pub fn nearest(
        &self,
        queries: &[f32],
        top: usize,
        threshold: f32,
        keep: &(dyn Fn(u64) -> bool + Sync),
    ) -> Vec<Vec<IndexHit>> {
        let channels = self.channels.max(1);
        assert!(
            queries.len().is_multiple_of(channels),
            "{} values as queries of {channels}",
            queries.len()
        );
        let queries: Vec<f32> = queries.chunks_exact(channels).flat_map(unit).collect();
        let chunks = queries.chunks(QUERIES * channels);
        let of_chunk = |rows: &[f32]| {
            let found: Vec<Vec<Vec<IndexHit>>> = { self.blocks.par_iter() }
                .map(|block| block.nearest(rows, channels, top, threshold, keep))
                .collect();
            let of_query = |query: usize| {
                let hits = found.iter().flat_map(|block| &block[query]).copied();
                first(hits.collect(), top)
            };
            (0..rows.len() / channels).map(of_query).collect::<Vec<_>>()
        };
        chunks.flat_map(of_chunk).collect()
    }
}

impl IndexBlock {
    /// As [`FeatureIndex::nearest`], of this block.
    fn nearest(
        &self,
        queries: &[f32],
        channels: usize,
        top: usize,
        threshold: f32,
        keep: &(dyn Fn(u64) -> bool + Sync),
    ) -> Vec<Vec<IndexHit>> {
        let (count, number) = (self.ids.len(), queries.len() / channels);
        let mut cosines = vec![0.0; number * count];
        let rows = MatrixView::new(&self.rows, count, channels).transposed();
        matmul_here(
            MatrixView::new(queries, number, channels),
            rows,
            &mut cosines,
        );
        let of_query = |cosines: &[f32]| {
            let hits = self.ids.iter().zip(cosines);
            let hits = hits.filter(|(id, cosine)| **cosine >= threshold && keep(**id));
            let hits = hits.map(|(&id, &cosine)| IndexHit { id, cosine });
            first(hits.collect(), top)
        };
        cosines.chunks_exact(count).map(of_query).collect()
    }
}

/// The `top` hits of the largest cosines, largest first, ties by number.
fn first(mut hits: Vec<IndexHit>, top: usize) -> Vec<IndexHit> {
    // With the number as tie-break the order is total, so that the unstable selection is
    // deterministic.
    let nearer = |a: &IndexHit, b: &IndexHit| b.cosine.total_cmp(&a.cosine).then(a.id.cmp(&b.id));
    if top < hits.len() {
        hits.select_nth_unstable_by(top, nearer);
        hits.truncate(top);
    }
    hits.sort_unstable_by(nearer);
    hits
}

/// A row of length 1.
fn unit(row: &[f32]) -> impl Iterator<Item = f32> {
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    row.iter().map(move |v| v / norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_model::layers::Rng;
    use rand::RngExt;
    use rand_chacha::rand_core::SeedableRng;

    fn numbers(hits: &[IndexHit]) -> Vec<u64> {
        hits.iter().map(|hit| hit.id).collect()
    }

    #[test]
    fn the_best_of_many_equal_those_of_a_full_sort() {
        // Many ties, which are ordered by number.
        let cosine = |i: u64| ((i * 37) % 50) as f32 / 50.0;
        let hits = |from| {
            (from..500).map(|id| IndexHit {
                id,
                cosine: cosine(id),
            })
        };
        for top in [0, 1, 7, 500, usize::MAX] {
            let mut expected: Vec<u64> = (0..500).collect();
            expected.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
            expected.truncate(top);
            assert_eq!(numbers(&first(hits(0).collect(), top)), expected, "{top}");
        }
    }

    #[test]
    fn an_index_that_changes_finds_what_a_comparison_with_all_finds() {
        let mut rng = Rng::seed_from_u64(1);
        let (channels, mut index, mut kept) = (7, FeatureIndex::new(7), Vec::new());
        let row = |rng: &mut Rng| -> Vec<f32> {
            // Few different values: ties.
            (0..channels)
                .map(|_| f32::from(rng.random_range(-2_i8..3)))
                .collect()
        };
        for round in 0..6000 {
            if round % 5 == 4 || (3000..4000).contains(&round) {
                let at = rng.random_range(0..kept.len());
                let (id, _) = kept.remove(at);
                assert!(index.remove(id) && !index.remove(id));
            } else {
                let feature = row(&mut rng);
                kept.push((index.push(&feature), feature));
            }
        }
        assert_eq!(index.len(), kept.len());
        assert!(index.blocks.len() <= 2 * kept.len().div_ceil(BLOCK) + 2);
        for (id, row) in &kept {
            assert!(unit(row).eq(index.get(*id).unwrap().iter().copied()));
        }
        let queries: Vec<f32> = (0..70).flat_map(|_| row(&mut rng)).collect();
        let odd = |id: u64| id % 2 == 1;
        let found = index.nearest(&queries, 9, 0.1, &odd);
        for (query, hits) in queries.chunks(channels).zip(&found) {
            let cosine = |row: &[f32]| {
                let (a, b): (Vec<f32>, Vec<f32>) = (unit(query).collect(), unit(row).collect());
                a.iter().zip(&b).map(|(a, b)| f64::from(a * b)).sum::<f64>()
            };
            let mut all: Vec<(f64, u64)> = { kept.iter() }
                .filter(|(id, _)| odd(*id))
                .map(|(id, row)| (cosine(row), *id))
                .filter(|(cosine, _)| *cosine >= 0.1)
                .collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            assert_eq!(hits.len(), all.len().min(9));
            for (hit, (expected, _)) in hits.iter().zip(&all) {
                assert!((f64::from(hit.cosine) - expected).abs() < 1e-5);
                let of_hit = kept.iter().find(|(id, _)| *id == hit.id).unwrap();
                assert!((cosine(&of_hit.1) - expected).abs() < 1e-5);
            }
        }
        assert_eq!(FeatureIndex::new(7).nearest(&queries, 9, 0.1, &odd)[3], []);
    }
}
