//! Features of any images, and files of them.
//!
//! `.npy` holds a `float32` array [images, channels] in NumPy's format, version 1.0, and `<file>.keys.txt` beside it one key
//! a line. `.parquet` holds the columns `key` (string) and `feature` (list of floats).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clasp_data::atomic_write;
use clasp_data::image::{Limits, decode};
use clasp_data::source::{Source, Unreadable};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::TaskError;
use crate::features::{Extractor, Features, Pass, Preprocess, each_image};
use crate::frozen::{Options, Progress};

/// Features of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Key of each image.
    pub keys: Vec<String>,
    /// Length of a feature.
    pub channels: usize,
    /// [images, channels].
    pub features: Vec<f32>,
    /// Images that could not be read and are left out.
    pub unreadable: Unreadable,
}

/// Pooled features of every image of a source, not normalised. Images that cannot be read are left out and listed.
///
/// # Errors
/// More than 5 % of the images cannot be read, unless `keep_going`; features that are not finite; a stop through
/// `progress`.
pub fn embed<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    source: &Source,
    keep_going: bool,
    options: &Options,
    progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
) -> Result<Embeddings, TaskError> {
    let failed: Mutex<Vec<(usize, String)>> = Mutex::new(Vec::new());
    let load = |i: usize| {
        let image = source.read(i).map_err(|e| e.to_string());
        let image =
            image.and_then(|bytes| decode(&bytes, &Limits::default()).map_err(|e| e.to_string()));
        match image {
            Ok(image) => Ok(Some(preprocess.apply(&image))),
            Err(reason) => {
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((i, reason));
                Ok(None)
            }
        }
    };
    let keep = |_: usize, features: &Features| Ok(features.pooled.to_vec());
    let size = [preprocess.height, preprocess.width];
    let pass = Pass {
        stage: "images",
        count: source.len(),
        size,
        stages: 0,
    };
    let rows = each_image(extractor, pass, options, load, keep, progress)?;

    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_unstable();
    let failed = failed
        .into_iter()
        .map(|(i, reason)| (source.key(i).to_owned(), reason))
        .collect();
    let unreadable = Unreadable {
        seen: source.len() as u64,
        failed,
    };
    if !keep_going {
        unreadable.check()?;
    }
    let channels = rows.iter().flatten().map(Vec::len).next().unwrap_or(0);
    let keys = source
        .keys()
        .zip(&rows)
        .filter(|(_, row)| row.is_some())
        .map(|(key, _)| key.to_owned())
        .collect();
    Ok(Embeddings {
        keys,
        channels,
        features: rows.into_iter().flatten().flatten().collect(),
        unreadable,
    })
}

impl Embeddings {
    /// Writes the features as the file's ending says, `.npy` or `.parquet`. Returns the files written.
    ///
    /// # Errors
    /// Another ending, or a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<Vec<PathBuf>, TaskError> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => {
                let mut keys = path.as_os_str().to_owned();
                keys.push(".keys.txt");
                let keys = PathBuf::from(keys);
                atomic_write(&keys, |out| {
                    self.keys.iter().try_for_each(|key| writeln!(out, "{key}"))
                })?;
                atomic_write(path, |out| out.write_all(&self.npy()))?;
                Ok(vec![path.to_owned(), keys])
            }
            Some("parquet") => {
                let bytes = self.parquet().map_err(std::io::Error::other)?;
                atomic_write(path, |out| out.write_all(&bytes))?;
                Ok(vec![path.to_owned()])
            }
            other => Err(TaskError::Format {
                file: path.display().to_string(),
                found: other.map_or("none".to_owned(), |other| format!(".{other}")),
            }),
        }
    }

    /// NumPy's format: magic, version, length of the header, header padded so that data begin at a multiple of 64, data.
    fn npy(&self) -> Vec<u8> {
        let shape = format!("({}, {})", self.keys.len(), self.channels);
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        let padding = 63 - (10 + header.len()) % 64;
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(((header.len() + padding + 1) as u16).to_le_bytes());
        bytes.extend(
            header
                .bytes()
                .chain(std::iter::repeat_n(b' ', padding))
                .chain([b'\n']),
        );
        bytes.extend(self.features.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }

    fn parquet(&self) -> Result<Vec<u8>, ParquetError> {
        let schema = "message embeddings {
            required binary key (STRING);
            required group feature (LIST) { repeated group list { required float element; } }
        }";
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false);
        let schema = Arc::new(parse_message_type(schema)?);
        let mut writer =
            SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
        let missing = || ParquetError::General("the schema has too few columns".into());
        for start in (0..self.keys.len()).step_by(1 << 14) {
            let rows = start..self.keys.len().min(start + (1 << 14));
            let mut group = writer.next_row_group()?;
            let keys: Vec<ByteArray> = self.keys[rows.clone()]
                .iter()
                .map(|key| key.as_str().into())
                .collect();
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column
                .typed::<ByteArrayType>()
                .write_batch(&keys, None, None)?;
            column.close()?;
            // A list is stored as its elements with a repetition level that is 0 where a list begins.
            let values = &self.features[rows.start * self.channels..rows.end * self.channels];
            let repetition: Vec<i16> = (0..values.len())
                .map(|i| i16::from(i % self.channels != 0))
                .collect();
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column.typed::<FloatType>().write_batch(
                values,
                Some(&vec![1; values.len()]),
                Some(&repetition),
            )?;
            column.close()?;
            group.close()?;
        }
        writer.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, image, quiet};
    use clasp_data::image::encode_jpeg;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    fn folder(good: usize, bad: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..good {
            let picture = image([i as u8 * 20, 50, 90], 32, 64);
            fs_err::write(
                folder.path().join(format!("a{i}.jpg")),
                encode_jpeg(&picture, 90),
            )
            .unwrap();
        }
        for i in 0..bad {
            fs_err::write(folder.path().join(format!("a{i}b.jpg")), b"broken").unwrap();
        }
        folder
    }

    fn run(folder: &Path, keep_going: bool) -> Result<Embeddings, TaskError> {
        let source = Source::open(&folder.display().to_string()).unwrap();
        let options = Options {
            batch: 3,
            ..Options::default()
        };
        embed(
            &Fake::Colours,
            &Preprocess::imagenet(64, 32),
            &source,
            keep_going,
            &options,
            &quiet,
        )
    }

    #[test]
    fn unreadable_images_are_left_out_and_listed() {
        let folder = folder(8, 1);
        assert!(matches!(
            run(folder.path(), false),
            Err(TaskError::Unreadable(_))
        ));
        let found = run(folder.path(), true).unwrap();
        assert_eq!(found.keys, ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"]);
        assert_eq!(found.features.len(), 8 * found.channels);
        assert_eq!(
            (found.unreadable.seen, found.unreadable.failed[0].0.as_str()),
            (9, "a0b")
        );
    }

    #[test]
    fn files_hold_what_was_computed() {
        let folder = folder(5, 0);
        let found = run(folder.path(), false).unwrap();
        let npy = folder.path().join("f.npy");
        assert_eq!(found.write(&npy).unwrap().len(), 2);
        let bytes = fs_err::read(&npy).unwrap();
        let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((header % 64, bytes[header - 1]), (0, b'\n'));
        assert!(
            String::from_utf8_lossy(&bytes[10..header])
                .contains(&format!("(5, {})", found.channels))
        );
        let values: Vec<f32> = bytes[header..]
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(values, found.features);
        let keys = fs_err::read_to_string(folder.path().join("f.npy.keys.txt")).unwrap();
        assert_eq!(keys, "a0\na1\na2\na3\na4\n");

        let path = folder.path().join("f.parquet");
        found.write(&path).unwrap();
        let bytes = bytes::Bytes::from(fs_err::read(&path).unwrap());
        let reader = SerializedFileReader::new(bytes).unwrap();
        let rows: Vec<_> = reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| row.unwrap())
            .collect();
        assert_eq!(
            (rows.len(), rows[3].get_string(0).unwrap().as_str()),
            (5, "a3")
        );
        assert_eq!(rows[3].get_list(1).unwrap().len(), found.channels);
        assert!(
            found
                .write(&folder.path().join("f.csv"))
                .unwrap_err()
                .to_string()
                .contains("found .csv")
        );
    }
}
