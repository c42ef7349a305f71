//! Shards of labels on disk: whole files, and pieces of shards that are not whole yet.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use clasp_data::labels::{self, Labels, StoreMeta};
use clasp_data::source::{Shard, Source};

use crate::Error;

/// The folder of pieces in that of the labels. Readers of Parquet folders skip names that begin
/// with `_`.
pub(super) const PIECES: &str = "_pieces";

/// A shard that is not complete.
pub(super) struct OpenShard {
    pub shard: Shard,
    /// Batches that are not labeled yet.
    pub waiting: usize,
    /// Its finished pieces.
    pub done: Vec<Piece>,
    /// Finished images that are not saved yet.
    pub unsaved: usize,
}

/// Neighboring images of a shard that are done.
pub(super) struct Piece {
    /// Images of the source.
    pub images: Range<usize>,
    /// Labels of those among them that could be read.
    pub labels: Vec<Labels>,
    /// Whether it is saved.
    pub saved: bool,
}

impl OpenShard {
    /// A shard of which nothing is done.
    pub fn new(shard: Shard) -> Self {
        Self {
            shard,
            waiting: 0,
            done: Vec::new(),
            unsaved: 0,
        }
    }

    /// Saves the finished pieces; neighboring ones become one.
    pub fn save_pieces(&mut self, folder: &Path, meta: &StoreMeta) -> Result<(), Error> {
        self.done.sort_by_key(|piece| piece.images.start);
        let mut joined: Vec<Piece> = Vec::new();
        for piece in std::mem::take(&mut self.done) {
            match joined.last_mut() {
                Some(before)
                    if !before.saved && !piece.saved && before.images.end == piece.images.start =>
                {
                    before.images.end = piece.images.end;
                    before.labels.extend(piece.labels);
                }
                _ => joined.push(piece),
            }
        }
        self.done = joined;
        for at in 0..self.done.len() {
            let name = self.piece_name(&self.done[at].images);
            let piece = &mut self.done[at];
            if !piece.saved {
                labels::write_shard(&folder.join(PIECES), &name, meta, &piece.labels)?;
                piece.saved = true;
            }
        }
        self.unsaved = 0;
        Ok(())
    }

    /// `SHARD@00256-00512` for images 256 to 511 of the shard.
    fn piece_name(&self, images: &Range<usize>) -> String {
        let [from, to] = [images.start, images.end].map(|image| image - self.shard.range.start);
        format!("{}@{from:05}-{to:05}", self.shard.name)
    }

    /// Writes the complete shard and removes its pieces.
    pub fn finish(&mut self, folder: &Path, meta: &StoreMeta) -> Result<usize, Error> {
        self.done.sort_by_key(|piece| piece.images.start);
        let saved = { self.done.iter() }.filter(|piece| piece.saved);
        let saved: Vec<String> = saved.map(|piece| self.piece_name(&piece.images)).collect();
        let labels = std::mem::take(&mut self.done).into_iter();
        let labels: Vec<Labels> = labels.flat_map(|piece| piece.labels).collect();
        labels::write_shard(folder, &self.shard.name, meta, &labels)?;
        for name in saved {
            remove(&folder.join(PIECES).join(labels::shard_file(&name)))?;
        }
        Ok(labels.len())
    }
}

/// Removes the folder of pieces, unless it has pieces or temporary files, which are of other jobs.
pub(super) fn remove_empty(pieces: &Path) -> Result<(), Error> {
    if !pieces.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(pieces)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "parquet" || extension == "tmp")
        {
            return Ok(());
        }
    }
    Ok(fs_err::remove_dir_all(pieces)?)
}

/// Removes a file if it exists.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Labels of an earlier run.
pub(super) struct KeptLabels {
    pub labels: Vec<Labels>,
    /// Images without labels.
    pub missing: Vec<usize>,
    /// Whether another program wrote or changed the file.
    pub edited: bool,
}

/// The labels of a file, after checking that they are of these images.
pub(super) fn read_kept(
    folder: &Path,
    source: &Source,
    shard: &str,
    range: &Range<usize>,
) -> Result<KeptLabels, Error> {
    let (labels, edited) = labels::read_shard(folder, shard)?;
    let mut missing = Vec::new();
    // Labels keep the order of the images, so one walk over both is enough.
    let mut images = range.clone();
    for label in &labels {
        loop {
            match images.next() {
                Some(image) if source.key(image) == label.key => break,
                Some(image) => missing.push(image),
                // Another program may have changed the order.
                None if edited => break,
                None => {
                    return Err(Error::OtherImages {
                        folder: folder.to_owned(),
                        shard: shard.to_owned(),
                        found: format!(
                            "the key `{}`, which is not among the images of this shard or not in their order",
                            label.key
                        ),
                    });
                }
            }
        }
    }
    missing.extend(images);
    Ok(KeptLabels {
        labels,
        missing,
        edited,
    })
}

/// Pieces by their first image, with their images: none where the name is not that of a piece of whole batches.
/// As text, image 100000 comes before 10240.
pub(super) fn pieces_in_order<'a>(
    names: &'a [String],
    shard: &Shard,
    batch: usize,
) -> Vec<(Option<Range<usize>>, &'a str)> {
    let mut pieces: Vec<_> = { names.iter() }
        .map(|name| {
            let place = name.get(shard.name.len() + 1..);
            let images = place.and_then(|place| piece_range(place, &shard.range, batch));
            (images, name.as_str())
        })
        .collect();
    pieces.sort_by_key(|(images, _)| images.as_ref().map(|images| images.start));
    pieces
}

/// The images of a piece `00256-00512` of a shard, if it is made of whole batches.
fn piece_range(name: &str, shard: &Range<usize>, batch: usize) -> Option<Range<usize>> {
    let (from, to) = name.split_once('-')?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    let whole = from < to
        && to <= shard.len()
        && from.is_multiple_of(batch)
        && (to.is_multiple_of(batch) || to == shard.len());
    whole.then(|| shard.start + from..shard.start + to)
}
