//! Label maps of images in a table.
//!
//! ```text
//! parsing.csv          image,mask,split
//!                      images/0001.jpg,masks/0001.png,train
//! labels.txt           one class name a line; the first is class 0, the background
//! ```
//!
//! Published folders without a table are read by [`folders`].
//!
//! Paths are relative to the table. A mask is a PNG with one channel or a palette, 1 to 8 bits, as large as its image; a
//! pixel is the index of its class (the palette's colours do not matter), or 255 where it does not count. A mask may also be the
//! matrix `groundtruth` of a MATLAB file, as in CCP.

pub mod folders;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rayon::prelude::*;

use super::csv::Table;
use super::sides::Sides;
use super::{LayoutError, distinct, find, in_file, in_split, read_mat};

/// Where the table is looked for.
const FILES: [&str; 3] = ["parsing.csv", "parsing/parsing.csv", "parsing/labels.csv"];
/// Most pixels of a mask.
const MAX_PIXELS: u64 = 100_000_000;
/// The label of pixels that do not count.
pub const IGNORE: u8 = 255;

/// An image and its mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// The image.
    pub image: PathBuf,
    /// What the table calls it, else the file's name.
    pub name: String,
    /// Its label map.
    pub mask: PathBuf,
    /// Name of its split.
    pub split: String,
}

/// A table of label maps.
#[derive(Debug, Clone)]
pub struct Parsing {
    /// Name of the layout.
    pub layout: &'static str,
    /// The table's file, or the folder of a layout without one.
    pub file: PathBuf,
    /// Names of the classes; class 0 is the background.
    pub classes: Vec<String>,
    /// Rows in the order of the file.
    pub images: Vec<Masked>,
    /// Names of the labels in the files.
    stored: Vec<String>,
    /// What makes classes of them, if they are not the classes.
    relabel: Option<Relabel>,
}

/// Makes classes, or 255, of the stored labels of a mask, given its width and the names of the labels.
pub type Relabel = fn(&[u8], usize, &[String]) -> Vec<u8>;

/// A label for each pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Row-major, [height, width].
    pub labels: Vec<u8>,
}

impl LabelMap {
    /// Which labels it has.
    pub fn present(&self) -> [bool; 256] {
        let mut present = [false; 256];
        for label in &self.labels {
            present[usize::from(*label)] = true;
        }
        present
    }
}

impl Parsing {
    /// Opens a table with `labels.txt` beside it, or the one in a folder, or a published folder without one.
    ///
    /// # Errors
    /// If there is none or something in it cannot be. Masks are read later.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        if path.is_file() {
            return Self::table(path.to_owned());
        }
        let mut tried = match table_place(path) {
            Err(LayoutError::NotFound { tried, .. }) => tried,
            file => return Self::table(file?),
        };
        match folders::open(path)? {
            Ok(parsing) => Ok(parsing),
            Err(others) => {
                tried.extend(others);
                Err(LayoutError::NotFound {
                    folder: path.display().to_string(),
                    layout: "label maps",
                    expected: "a table `parsing.csv` with columns image, mask, split and `labels.txt` beside it, or the folders \
                               of LIP, CIHP, ATR or CCP",
                    tried,
                })
            }
        }
    }

    pub(crate) fn table(file: PathBuf) -> Result<Self, LayoutError> {
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
            .map(|(_, cells)| Masked {
                image: folder.join(cells[0].trim()),
                name: cells[0].trim().to_owned(),
                mask: folder.join(cells[1].trim()),
                split: cells[2].trim().to_owned(),
            })
            .collect();
        Ok(Self {
            layout: "label maps",
            file,
            stored: classes.clone(),
            classes,
            images,
            relabel: None,
        })
    }

    /// The same images with other classes, made of the stored labels by `relabel`: for example
    /// [`super::ccp::ccp_parts`] for the parts of the body in CCP.
    ///
    /// # Panics
    /// If there is no class or more than 255.
    pub fn relabelled(self, classes: &[&str], relabel: Relabel) -> Self {
        assert!(
            (1..=usize::from(IGNORE)).contains(&classes.len()),
            "1 to 255 classes, found {}",
            classes.len()
        );
        Self {
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            relabel: Some(relabel),
            ..self
        }
    }

    /// Classes that change places in a mirrored image, and those that should but cannot.
    pub fn sides(&self) -> Sides {
        Sides::among(&self.classes)
    }

    /// Names of the splits, in the order of the file.
    pub fn splits(&self) -> Vec<String> {
        distinct(self.images.iter().map(|image| image.split.as_str()))
    }

    /// The images of a split.
    ///
    /// # Errors
    /// If there is none.
    pub fn split(&self, name: &str) -> Result<Vec<&Masked>, LayoutError> {
        in_split(&self.file, &self.images, |image| &image.split, name)
    }

    /// Reads a mask; its labels are classes of this data set, or 255.
    ///
    /// # Errors
    /// If it is no mask of the form above, or holds a label without a name.
    pub fn read_mask(&self, path: &Path) -> Result<LabelMap, LayoutError> {
        let mut map = read_label_map(path)?;
        let (width, names) = (map.width, self.stored.len());
        let nameless = |label: &u8| *label != IGNORE && usize::from(*label) >= names;
        if let Some(pixel) = map.labels.iter().position(nameless) {
            let (label, row, column) = (map.labels[pixel], pixel / width, pixel % width);
            return Err(LayoutError::File {
                file: path.display().to_string(),
                expected: format!("labels below {names} or 255"),
                found: format!("{label} at row {row}, column {column}"),
            });
        }
        if let Some(relabel) = self.relabel {
            map.labels = relabel(&map.labels, width, &self.stored);
        }
        Ok(map)
    }

    /// Classes without a pixel in some masks, those of which that cannot be read left out; reading ends when all were seen.
    pub fn absent(&self, images: &[Masked]) -> Vec<usize> {
        let mut seen = [false; 256];
        for some in images.chunks(64) {
            let masks = some
                .par_iter()
                .filter_map(|image| self.read_mask(&image.mask).ok());
            let present: Vec<[bool; 256]> = masks.map(|map| map.present()).collect();
            for present in present {
                seen.iter_mut()
                    .zip(present)
                    .for_each(|(seen, there)| *seen |= there);
            }
            if seen[..self.classes.len()].iter().all(|seen| *seen) {
                break;
            }
        }
        (0..self.classes.len())
            .filter(|class| !seen[*class])
            .collect()
    }

    /// Pixels of each label of the classes, over a split: a look at the data before it is used.
    ///
    /// # Errors
    /// As [`Parsing::split`] and [`Parsing::read_mask`].
    pub fn pixels(&self, split: &str) -> Result<BTreeMap<u8, u64>, LayoutError> {
        let mut counts = BTreeMap::new();
        for image in self.split(split)? {
            for label in self.read_mask(&image.mask)?.labels {
                *counts.entry(label).or_default() += 1;
            }
        }
        Ok(counts)
    }
}

/// What is told of masks in which [`is_black_and_white`] holds.
pub const BLACK_AND_WHITE: &str = "the masks hold 0 and 255 alone: 255 is the index of pixels that are ignored, so nothing \
     but class 0 would be learnt; write the class (as 1) in place of 255";

/// Whether masks with these labels are of two colours, black and white, rather than of class indices.
pub fn is_black_and_white(present: &[bool; 256]) -> bool {
    let there = (0..256).filter(|label| present[*label]);
    there.eq([0, 255])
}

/// The table in a folder.
pub(crate) fn table_place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = FILES.map(String::from);
    find(folder, &candidates, "label maps", "`parsing.csv`")
}

/// Reads the indices of a PNG with one channel or a palette, or of the matrix `groundtruth` of a MATLAB file.
///
/// # Errors
/// If it is another kind of file, or larger than 100 million pixels.
pub fn read_label_map(path: &Path) -> Result<LabelMap, LayoutError> {
    if path.extension().is_some_and(|extension| extension == "mat") {
        return read_label_matrix(path);
    }
    label_map(fs::read(path)?, &path.display().to_string())
}

/// As [`read_label_map`], of the bytes of a PNG; `place` is for messages.
///
/// # Errors
/// As [`read_label_map`].
pub fn label_map(bytes: Vec<u8>, place: &str) -> Result<LabelMap, LayoutError> {
    let error = |expected: &str, found: String| LayoutError::File {
        file: place.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let expected = "a PNG of class indices (one channel or palette, 1 to 8 bits)";
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Indices as stored: a palette must not become colours, nor 1 bit become 0 and 255.
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder
        .read_info()
        .map_err(|e| error(expected, e.to_string()))?;
    let info = reader.info();
    let (width, height, colour) = (info.width as usize, info.height as usize, info.color_type);
    let bits = info.bit_depth as usize;
    if !matches!(colour, png::ColorType::Grayscale | png::ColorType::Indexed) || bits > 8 {
        return Err(error(expected, format!("{colour:?} of {bits} bits")));
    }
    if width as u64 * height as u64 > MAX_PIXELS {
        return Err(error(
            "at most 100 million pixels",
            format!("{width} x {height} (width x height)"),
        ));
    }
    let row_bytes = (width * bits).div_ceil(8);
    let mut packed = vec![0; row_bytes * height];
    reader
        .next_frame(&mut packed)
        .map_err(|e| error(expected, e.to_string()))?;
    let mut labels = Vec::with_capacity(width * height);
    let mask = ((1_u16 << bits) - 1) as u8;
    for row in packed.chunks_exact(row_bytes) {
        // Several indices in a byte, the first in the highest bits.
        labels.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
    }
    Ok(LabelMap {
        height,
        width,
        labels,
    })
}

fn read_label_matrix(path: &Path) -> Result<LabelMap, LayoutError> {
    let mat = read_mat(path)?;
    let matrix = mat.get("groundtruth").map_err(in_file(path))?;
    let ([height, width], values) = (matrix.shape(), matrix.numbers().map_err(in_file(path))?);
    if let Some(odd) = values
        .iter()
        .find(|value| !(0.0..=255.0).contains(*value) || value.fract() != 0.0)
    {
        return Err(LayoutError::File {
            file: path.display().to_string(),
            expected: "labels 0 to 255".to_owned(),
            found: odd.to_string(),
        });
    }
    // Column by column in the file.
    let pixel = |i: usize| values[i % width * height + i / width] as u8;
    Ok(LabelMap {
        height,
        width,
        labels: (0..values.len()).map(pixel).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_png(
        path: &Path,
        width: u32,
        height: u32,
        colour: png::ColorType,
        depth: png::BitDepth,
        data: &[u8],
    ) {
        let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if colour == png::ColorType::Indexed {
            encoder.set_palette(vec![200; 3 * 16]);
        }
        encoder
            .write_header()
            .unwrap()
            .write_image_data(data)
            .unwrap();
    }

    fn folder(labels: &str, csv: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("labels.txt"), labels).unwrap();
        fs::write(folder.path().join("parsing.csv"), csv).unwrap();
        folder
    }

    #[test]
    fn indices_come_as_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write_png(
            &path,
            3,
            2,
            png::ColorType::Grayscale,
            png::BitDepth::Eight,
            &[0, 1, 2, 255, 4, 5],
        );
        assert_eq!(
            read_label_map(&path).unwrap(),
            LabelMap {
                height: 2,
                width: 3,
                labels: vec![0, 1, 2, 255, 4, 5]
            }
        );
        write_png(
            &path,
            3,
            2,
            png::ColorType::Indexed,
            png::BitDepth::Four,
            &[0x12, 0x30, 0x45, 0x60],
        );
        assert_eq!(read_label_map(&path).unwrap().labels, [1, 2, 3, 4, 5, 6]);
        write_png(
            &path,
            3,
            1,
            png::ColorType::Grayscale,
            png::BitDepth::One,
            &[0b1010_0000],
        );
        assert_eq!(read_label_map(&path).unwrap().labels, [1, 0, 1]);
        write_png(
            &path,
            1,
            1,
            png::ColorType::Rgb,
            png::BitDepth::Eight,
            &[1, 2, 3],
        );
        let error = read_label_map(&path).unwrap_err().to_string();
        assert!(
            error.contains("a.png: expected a PNG of class indices") && error.contains("Rgb"),
            "{error}"
        );
        fs::write(&path, b"\x89PNG\r\n\x1a\nnot").unwrap();
        assert!(read_label_map(&path).is_err());
    }

    #[test]
    fn labels_must_have_names_and_can_be_made_other_classes() {
        let folder = folder("null\nhat\nhair\n", "image,mask,split\nb.jpg,a.png,train\n");
        let path = folder.path().join("a.png");
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!(
            (data.classes.len(), data.splits()),
            (3, vec!["train".to_owned()])
        );
        assert_eq!(data.split("train").unwrap()[0].mask, path);
        write_png(
            &path,
            4,
            1,
            png::ColorType::Grayscale,
            png::BitDepth::Eight,
            &[0, 1, 2, 255],
        );
        assert_eq!(data.read_mask(&path).unwrap().labels, [0, 1, 2, 255]);
        let heads = |labels: &[u8], _: usize, names: &[String]| -> Vec<u8> {
            let class = |label: &u8| match names.get(usize::from(*label)).map(String::as_str) {
                Some("null") => 0,
                Some("hair") => 1,
                _ => IGNORE,
            };
            labels.iter().map(class).collect()
        };
        let merged = data.clone().relabelled(&["background", "head"], heads);
        assert_eq!(merged.read_mask(&path).unwrap().labels, [0, 255, 1, 255]);
        assert_eq!(
            merged.pixels("train").unwrap(),
            BTreeMap::from([(0, 1), (1, 1), (255, 2)])
        );
        write_png(
            &path,
            2,
            2,
            png::ColorType::Grayscale,
            png::BitDepth::Eight,
            &[0, 0, 0, 3],
        );
        let error = data.read_mask(&path).unwrap_err().to_string();
        assert!(
            error.contains("expected labels below 3 or 255, found 3 at row 1, column 1"),
            "{error}"
        );
    }

    #[test]
    fn tables_and_names_are_checked() {
        let error = Parsing::open(Path::new("nowhere")).unwrap_err().to_string();
        assert!(error.contains("nowhere/parsing.csv"), "{error}");
        for (labels, csv, expected) in [
            (
                "a\n\nb\n",
                "image,mask,split\n",
                "labels.txt, line 2: expected a class name",
            ),
            ("", "image,mask,split\n", "expected 1 to 255 class names"),
            (
                "a\n",
                "image,split\n",
                "parsing.csv, line 1: expected a header that begins `image,mask,split`",
            ),
        ] {
            let error = Parsing::open(folder(labels, csv).path())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
