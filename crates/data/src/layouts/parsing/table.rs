//! Label maps of images in a table.
//!
//! ```text
//! parsing.csv          image,mask,split
//!                      images/0001.jpg,masks/0001.png,train
//! labels.txt           one class name a line; the first is class 0, the background
//! ```
//!
//! Paths are relative to the table. A mask is as large as its image; a pixel is the index of its
//! class (the palette's colors do not matter), or the ignore index 255.

use std::path::{Path, PathBuf};

use super::dataset::{MaskedImage, ParsingDataset};
use super::mask::IGNORE;
use crate::layouts::csv::Table;
use crate::layouts::layout::{Layout, LayoutReader};
use crate::layouts::{LayoutError, find};

/// Where the table is looked for.
const FILES: [&str; 3] = ["parsing.csv", "parsing/parsing.csv", "parsing/labels.csv"];

pub(crate) const LAYOUT: Layout = Layout {
    name: "label maps",
    signature: "`parsing.csv` with columns image, mask, split, and `labels.txt` with the classes",
    official: &[],
    reader: LayoutReader::Parsing { find: place, read },
};

/// The table in a folder.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = FILES.map(String::from);
    find(folder, &candidates, LAYOUT.name, LAYOUT.signature)
}

pub(crate) fn read(file: PathBuf) -> Result<ParsingDataset, LayoutError> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let names = folder.join("labels.txt");
    let classes: Vec<String> = crate::text::read_text(&names)?
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    if classes.is_empty() || classes.len() > usize::from(IGNORE) {
        return Err(LayoutError::File {
            file: names.display().to_string(),
            expected: "1 to 255 class names, one a line".into(),
            found: format!("{}", classes.len()),
        });
    }
    if let Some(i) = classes.iter().position(String::is_empty) {
        let (file, expected) = (names.display().to_string(), "a class name".into());
        return Err(LayoutError::Line {
            file,
            line: i + 1,
            expected,
            found: "an empty line".into(),
        });
    }
    let table = Table::read(&file, &["image", "mask", "split"])?;
    let images = { table.rows.iter() }
        .map(|(_, cells)| MaskedImage {
            image: folder.join(cells[0].trim()),
            name: cells[0].trim().to_owned(),
            mask: folder.join(cells[1].trim()),
            split: cells[2].trim().to_owned(),
        })
        .collect();
    Ok(ParsingDataset {
        layout: LAYOUT.name,
        file,
        stored: classes.clone(),
        classes,
        images,
        relabel: None,
    })
}
