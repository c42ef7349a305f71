//! Checkpoints: safetensors files with metadata.
//!
//! The format is an 8-byte little-endian header length, a JSON header (name → dtype, shape,
//! offsets; and `__metadata__`, text → text), then the tensors. Files are written under a temporary
//! name in the same folder, synced and renamed, so a reader sees the old file or the new one, never
//! half of one. Equal contents give equal bytes.
//!
//! The metadata hold `clasp.sha256`, a SHA-256 over the other metadata and over each tensor's name,
//! shape and bytes, so that a flipped bit is noticed. Files without it, as other programs write
//! them, are read as they are.

use crate::error::WeightsError;
use crate::state::{HostTensor, StateDict};
use burn::tensor::f16;
use clasp_data::atomic_write;
use fs_err as fs;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

/// Number format of the stored tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageFormat {
    /// 32 bits: exact.
    #[default]
    F32,
    /// 16 bits, rounded to nearest: for weights that are shipped.
    Fp16,
}

/// Text that travels with the tensors.
pub type Metadata = BTreeMap<String, String>;

/// Writes a state to a safetensors file, in 32 bits.
pub fn write(path: &Path, state: &StateDict, metadata: &Metadata) -> Result<(), WeightsError> {
    write_as(path, state, metadata, StorageFormat::F32)
}

/// Writes a state to a safetensors file in a chosen precision.
pub fn write_as(
    path: &Path,
    state: &StateDict,
    metadata: &Metadata,
    precision: StorageFormat,
) -> Result<(), WeightsError> {
    let (dtype, size) = match precision {
        StorageFormat::F32 => ("F32", 4),
        StorageFormat::Fp16 => ("F16", 2),
    };
    let mut digest = FileContent::new(metadata);
    for (name, array) in state {
        digest.tensor(name, &array.shape);
        for values in array.data.chunks(DIGESTED) {
            let bytes: Vec<u8> = match precision {
                StorageFormat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                StorageFormat::Fp16 => { values.iter() }
                    .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                    .collect(),
            };
            digest.0.update(&bytes);
        }
    }
    let mut metadata = metadata.clone();
    metadata.insert(DIGEST.to_owned(), digest.hex());
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut offset = 0;
    for (name, array) in state {
        let count: usize = array.shape.iter().product();
        assert_eq!(
            count,
            array.data.len(),
            "`{name}` does not fill {:?}",
            array.shape
        );
        let end = offset + count * size;
        let entry = serde_json::json!({
            "dtype": dtype, "shape": array.shape, "data_offsets": [offset, end],
        });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic_write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for array in state.values() {
            for &value in &array.data {
                match precision {
                    StorageFormat::F32 => out.write_all(&value.to_le_bytes())?,
                    StorageFormat::Fp16 => out.write_all(&f16::from_f32(value).to_le_bytes())?,
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// The metadata key of [`FileContent`].
const DIGEST: &str = "clasp.sha256";

/// Numbers that are hashed at a time.
const DIGESTED: usize = 1 << 14;

/// SHA-256 of what a file holds; lengths go in before contents.
struct FileContent(Sha256);

impl FileContent {
    fn new(metadata: &Metadata) -> Self {
        let mut content = Self(Sha256::new());
        for (key, value) in metadata.iter().filter(|(key, _)| *key != DIGEST) {
            content.text(key);
            content.text(value);
        }
        content
    }

    fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.text(name);
        self.0.update((shape.len() as u64).to_le_bytes());
        for axis in shape {
            self.0.update((*axis as u64).to_le_bytes());
        }
    }

    fn hex(self) -> String {
        let hash = self.0.finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a file is that is taken for weights and holds none, by its first bytes.
pub(crate) fn not_weights(beginning: &[u8]) -> Option<&'static str> {
    let text = beginning.trim_ascii_start();
    let starts = |word: &str| {
        let start = text.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    if ["<!doctype", "<html", "<?xml"]
        .iter()
        .any(|word| starts(word))
    {
        return Some(
            "a web page (HTML), as file hosts send it in place of a file that is too large or needs a log-in\n\
             hint: download it again, with a browser or with the host's own tool",
        );
    }
    if starts("version https://git-lfs") {
        return Some(
            "a Git LFS pointer: the file itself was not fetched\nhint: run `git lfs pull` where it was cloned",
        );
    }
    None
}

/// Reads a safetensors file: every float tensor as f32 (from f64, f32, f16 or bf16), and the
/// metadata. Integer and boolean tensors, which no parameter is, are skipped.
///
/// The file's length decides what is allocated: sizes and offsets that its header claims are
/// checked against it first.
pub fn read(path: &Path) -> Result<(StateDict, Metadata), WeightsError> {
    read_bytes(&fs::read(path)?, path)
}

/// As [`read`], from memory; `path` is what errors name.
pub fn read_bytes(bytes: &[u8], path: &Path) -> Result<(StateDict, Metadata), WeightsError> {
    let wrong = |error: safetensors::SafeTensorError| {
        let length = bytes.len();
        WeightsError::format(
            path,
            format!(
                "not a whole safetensors file ({error}; {length} bytes)\nhint: is this the file that was meant? else copy or \
                 download it again"
            ),
        )
    };
    if let Some(found) = not_weights(&bytes[..bytes.len().min(64)]) {
        return Err(WeightsError::format(path, found));
    }
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let mut metadata: Metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let expected = metadata.remove(DIGEST);
    let tensors = SafeTensors::deserialize(bytes).map_err(wrong)?;
    let mut state = StateDict::new();
    for (name, view) in tensors.iter() {
        let bytes = view.data();
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => numbers(bytes, f32::from_le_bytes),
            Dtype::F64 => numbers(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => numbers(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => numbers(bytes, |b: [u8; 2]| {
                f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
            }),
            other if format!("{other:?}").starts_with(['F', 'E']) => {
                let problem = format!(
                    "`{name}`: numbers of the type {other:?} (8-bit floats or smaller), which are not read\n\
                     hint: convert the file to 16 or 32 bits a number"
                );
                return Err(WeightsError::format(path, problem));
            }
            _ => continue,
        };
        let array = HostTensor {
            shape: view.shape().to_vec(),
            data,
        };
        state.insert(name.to_owned(), array);
    }
    if let Some(expected) = expected {
        let mut content = FileContent::new(&metadata);
        let mut views = tensors.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in &views {
            content.tensor(name, view.shape());
            content.0.update(view.data());
        }
        let found = content.hex();
        if found != expected {
            let problem = format!(
                "damaged: its content has SHA-256 {found}, it was written with {expected}\n\
                 hint: copy it again, or take an earlier checkpoint"
            );
            return Err(WeightsError::format(path, problem));
        }
    }
    Ok((state, metadata))
}

/// Only the metadata, without reading the tensors.
pub fn read_metadata(path: &Path) -> Result<Metadata, WeightsError> {
    /// Safetensors' own limit.
    const LONGEST_HEADER: u64 = 100_000_000;
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    let short = || WeightsError::format(path, format!("not a safetensors file ({length} bytes)"));
    file.read_exact(&mut size).map_err(|_| short())?;
    if let Some(found) = not_weights(&size) {
        return Err(WeightsError::format(path, found));
    }
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER || size > length.saturating_sub(file.stream_position()?) {
        return Err(short());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    #[derive(serde::Deserialize)]
    struct SafetensorsHeader {
        #[serde(default, rename = "__metadata__")]
        metadata: Metadata,
        #[serde(flatten)]
        tensors: BTreeMap<String, Tensor>,
    }
    #[derive(serde::Deserialize)]
    struct Tensor {
        data_offsets: [u64; 2],
    }
    let header: SafetensorsHeader = serde_json::from_slice(&header)
        .map_err(|error| WeightsError::format(path, format!("header: {error}")))?;
    let ends = header.tensors.values().map(|tensor| tensor.data_offsets[1]);
    let expected = ends
        .max()
        .unwrap_or(0)
        .saturating_add(size)
        .saturating_add(8);
    if expected > length {
        let problem = format!(
            "cut short: expected {expected} bytes, found {length}\nhint: copy or download it again"
        );
        return Err(WeightsError::format(path, problem));
    }
    let mut metadata = header.metadata;
    metadata.remove(DIGEST);
    Ok(metadata)
}

fn numbers<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| decode(chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_is_noticed_or_harmless() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let metadata = Metadata::from([("step".to_owned(), "7".to_owned())]);
        for precision in [StorageFormat::F32, StorageFormat::Fp16] {
            write_as(&path, &state(), &metadata, precision).unwrap();
            let bytes = fs::read(&path).unwrap();
            let (written, _) = read_bytes(&bytes, &path).unwrap();
            let mut noticed = 0;
            for at in 0..8 * bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at / 8] ^= 1 << (at % 8);
                match read_bytes(&flipped, &path) {
                    Ok(read) => {
                        let same = |a: &StateDict, b: &StateDict| {
                            let bits = |state: &StateDict| -> Vec<_> {
                                let bits = |array: &HostTensor| -> Vec<u32> {
                                    array.data.iter().map(|value| value.to_bits()).collect()
                                };
                                let all = state.iter();
                                all.map(|(name, array)| (name.clone(), bits(array)))
                                    .collect()
                            };
                            bits(a) == bits(b)
                        };
                        // The name of the digest itself, and with it the digest, may be lost.
                        assert!(same(&read.0, &written), "bit {at}");
                    }
                    Err(_) => noticed += 1,
                }
            }
            assert!(noticed > 8 * bytes.len() / 2, "{noticed}");
            let last = bytes.len() - 1;
            let mut flipped = bytes.clone();
            flipped[last] ^= 1;
            let error = read_bytes(&flipped, &path).unwrap_err().to_string();
            assert!(
                error.contains("damaged: its content has SHA-256"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_weights_is_named() {
        let path = Path::new("a.pth");
        for (content, expected) in [
            (&b"<!DOCTYPE html><html></html>"[..], "a web page (HTML)"),
            (b"\n <HTML lang=en>", "a web page (HTML)"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
                "a Git LFS pointer",
            ),
        ] {
            let error = read_bytes(content, path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let header = br#"{"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 4]);
        let error = read_bytes(&bytes, path).unwrap_err().to_string();
        assert!(
            error.contains("`w`: numbers of the type F8_E4M3"),
            "{error}"
        );
    }

    fn state() -> StateDict {
        let array = |shape: &[usize], data: &[f32]| HostTensor {
            shape: shape.to_vec(),
            data: data.to_vec(),
        };
        [
            ("b".to_owned(), array(&[2, 2], &[1.0, -2.5, 3.0e-8, 4.0])),
            ("a".to_owned(), array(&[], &[0.1])),
            ("empty".to_owned(), array(&[0, 3], &[])),
        ]
        .into()
    }

    fn metadata() -> Metadata {
        (0..20)
            .map(|i| (format!("key {i}"), format!("\"{i}\"")))
            .collect()
    }

    #[test]
    fn there_and_back_and_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(&path, &state(), &metadata()).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(read(&path).unwrap(), (state(), metadata()));
        assert_eq!(read_metadata(&path).unwrap(), metadata());
        write(&path, &state(), &metadata()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn half_precision_rounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write_as(&path, &state(), &Metadata::new(), StorageFormat::Fp16).unwrap();
        let (read, _) = read(&path).unwrap();
        assert_eq!(read["b"].data[1], -2.5);
        assert!((read["a"].data[0] - 0.1).abs() < 1e-4);
    }

    #[test]
    fn every_cut_of_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(&path, &state(), &metadata()).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..length]).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains("model.safetensors"), "{message}");
        }
    }

    #[test]
    fn claims_beyond_the_file_are_refused_before_allocating() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let huge = u64::MAX / 8;
        for header in [
            format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},4],"data_offsets":[0,16]}}}}"#),
            format!(r#"{{"a":{{"dtype":"F32","shape":[1000000000],"data_offsets":[0,{huge}]}}}}"#),
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[8,4]}}"#.to_owned(),
            r#"{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}"#.to_owned(),
            "not json".to_owned(),
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend([0; 16]);
            fs::write(&path, &bytes).unwrap();
            assert!(read(&path).is_err(), "{header}");
        }
        fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(read(&path).is_err());
        assert!(read_metadata(&path).is_err());
    }

    #[test]
    fn a_folder_that_does_not_exist_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent").join("model.safetensors");
        let message = write(&path, &state(), &Metadata::new())
            .unwrap_err()
            .to_string();
        assert!(message.contains("absent"), "{message}");
    }
}
