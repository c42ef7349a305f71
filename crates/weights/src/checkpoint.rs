//! Checkpoints: safetensors files with metadata.
//!
//! The format is an 8-byte little-endian header length, a JSON header (name → dtype, shape, offsets; and
//! `__metadata__`, text → text), then the tensors. Files are written under a temporary name in the same folder,
//! synced and renamed, so a reader sees the old file or the new one, never half of one. Equal contents give
//! equal bytes.

use crate::error::WeightsError;
use crate::state::{Array, StateDict};
use burn::tensor::f16;
use clasp_data::atomic_write;
use fs_err as fs;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

/// How numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits: exact.
    #[default]
    Full,
    /// 16 bits, rounded to nearest: for weights that are shipped.
    Half,
}

/// Text that travels with the tensors.
pub type Metadata = BTreeMap<String, String>;

/// Writes a state to a safetensors file, in 32 bits.
pub fn write(path: &Path, state: &StateDict, metadata: &Metadata) -> Result<(), WeightsError> {
    write_as(path, state, metadata, Precision::Full)
}

/// Writes a state to a safetensors file in a chosen precision.
pub fn write_as(
    path: &Path,
    state: &StateDict,
    metadata: &Metadata,
    precision: Precision,
) -> Result<(), WeightsError> {
    let (dtype, size) = match precision {
        Precision::Full => ("F32", 4),
        Precision::Half => ("F16", 2),
    };
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
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
                    Precision::Full => out.write_all(&value.to_le_bytes())?,
                    Precision::Half => out.write_all(&f16::from_f32(value).to_le_bytes())?,
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Reads a safetensors file: every float tensor as f32 (from f64, f32, f16 or bf16), and the metadata. Integer
/// and boolean tensors, which no parameter is, are skipped.
///
/// The file's length decides what is allocated: sizes and offsets that its header claims are checked against it
/// first.
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
                "not a whole safetensors file ({error}; {length} bytes)\nhint: copy or download it again"
            ),
        )
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(wrong)?;
    let metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
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
            _ => continue,
        };
        let array = Array {
            shape: view.shape().to_vec(),
            data,
        };
        state.insert(name.to_owned(), array);
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
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER || size > length.saturating_sub(file.stream_position()?) {
        return Err(short());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: Metadata,
        #[serde(flatten)]
        tensors: BTreeMap<String, Tensor>,
    }
    #[derive(serde::Deserialize)]
    struct Tensor {
        data_offsets: [u64; 2],
    }
    let header: Header = serde_json::from_slice(&header)
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
    Ok(header.metadata)
}

fn numbers<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| decode(chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> StateDict {
        let array = |shape: &[usize], data: &[f32]| Array {
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
        write_as(&path, &state(), &Metadata::new(), Precision::Half).unwrap();
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
