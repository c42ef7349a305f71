//! Why a source cannot be opened or read.

use std::io;

use crate::missing::MissingPath;

/// Largest file or tar member that is read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Why images cannot be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is nothing at the path.
    #[error(transparent)]
    NotFound(#[from] MissingPath),
    /// The path exists but holds no images.
    #[error(
        "`{path}`: expected an image, a folder, a list (.txt, .lst), a tar or a Parquet file, found {found}"
    )]
    Unknown {
        /// The path.
        path: String,
        /// What was found, with a hint where there is one.
        found: String,
    },
    /// There is no image in it.
    #[error("`{place}` holds no image (.jpg, .jpeg, .png, .webp, .bmp): {found}")]
    Empty {
        /// The folder, list or tar.
        place: String,
        /// What was found.
        found: String,
    },
    /// The tar ends inside a member or without its end marker.
    #[error(
        "`{archive}` is truncated: {what} at byte {offset} needs {need} bytes, found {have}\n\
         hint: copy it again; with --keep-going (in a recipe: data.skip_unreadable = true) the \
         {complete} complete images before that are used"
    )]
    Truncated {
        /// The tar.
        archive: String,
        /// What is incomplete.
        what: String,
        /// Where it begins in the tar.
        offset: u64,
        /// Bytes that it needs from there.
        need: u64,
        /// Bytes that the file has from there.
        have: u64,
        /// Complete images before it.
        complete: usize,
    },
    /// The content is not that of a tar.
    #[error(
        "`{archive}` is not a readable tar: {reason} at byte {offset}\n\
         hint: copy it again; with --keep-going (in a recipe: data.skip_unreadable = true) the \
         {complete} complete images before that are used"
    )]
    Damaged {
        /// The tar.
        archive: String,
        /// End of what could be read.
        offset: u64,
        /// What is wrong.
        reason: String,
        /// Complete images before it.
        complete: usize,
    },
    /// A Parquet file cannot be read, or only its beginning.
    #[error(
        "`{file}` is not a readable Parquet file: {reason}\n\
         hint: copy it again; with --keep-going (in a recipe: data.skip_unreadable = true) the \
         {complete} images before that are used"
    )]
    DamagedParquet {
        /// The file.
        file: String,
        /// What is wrong, with the row group.
        reason: String,
        /// Images before it.
        complete: usize,
    },
    /// A row of a Parquet file has no readable bytes.
    #[error("`{file}`, row {row}: {reason}")]
    Row {
        /// The file.
        file: String,
        /// Number of the row, from 0.
        row: u64,
        /// What is wrong.
        reason: String,
    },
    /// Tars that `clasp data pack` has not finished.
    #[error(
        "`{place}` is not packed completely: {done} of {total} images so far\n  \
         hint: run the same `clasp data pack` again to complete it"
    )]
    Unfinished {
        /// The tar or its folder.
        place: String,
        /// Images that are packed.
        done: usize,
        /// Images that are to be packed.
        total: usize,
    },
    /// The path is a pipe, a socket or a device.
    #[error("`{place}`: expected a file, found a named pipe, a socket or a device")]
    Special {
        /// The path.
        place: String,
    },
    /// Two images would have the same key.
    #[error(
        "two images have the key `{key}`: `{first}` and `{second}`\n  \
         hint: a key is the path without extension; rename one, or give a list file of the images to read"
    )]
    Duplicate {
        /// The key.
        key: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// None of the listed files that were checked exist.
    #[error(
        "`{list}`: none of the listed files exist, for example `{example}`\n\
         hint: paths in a list are relative to the list's folder"
    )]
    ListedMissing {
        /// The list.
        list: String,
        /// The first listed path.
        example: String,
    },
    /// The braces of a specification are malformed.
    #[error("`{spec}`: {reason}\nhint: a range is written {{000..099}}")]
    Braces {
        /// The specification.
        spec: String,
        /// What is wrong.
        reason: String,
    },
    /// A pattern that no file matches, or that is malformed.
    #[error("`{pattern}`: {reason}\n  hint: {hint}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
        /// What its folder holds.
        hint: String,
    },
    /// A file is larger than any image should be.
    #[error("`{place}` has {bytes} bytes, more than the {MAX_FILE_BYTES} allowed for an image")]
    TooLarge {
        /// The file or member.
        place: String,
        /// Its size.
        bytes: u64,
    },
    /// The file system failed; the message names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
}
