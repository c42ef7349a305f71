//! Checkpoints: whatever is imported is a backbone whose parameters were in the file.
#![no_main]

use std::path::Path;

use burn::tensor::Device;
use clasp_weights::import::{ImportOptions, import_tensors};
use clasp_weights::tensors::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = TensorFile::from_bytes(Path::new("fuzz"), bytes.to_vec()) else {
        return;
    };
    let options = ImportOptions {
        lenient: bytes.len() % 2 == 0,
        ..ImportOptions::default()
    };
    if let Ok(imported) = import_tensors(file, &options, &Device::flex()) {
        assert!(!imported.report.loaded.is_empty());
    }
});
