//! Files of tensors: every tensor of whatever opens is read, and has the shape that it was listed with.
#![no_main]

use std::path::Path;

use clasp_weights::tensors::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = TensorFile::from_bytes(Path::new("fuzz"), bytes.to_vec()) else {
        return;
    };
    for (name, shape) in file.shapes().clone() {
        if let Ok(array) = file.read(&name) {
            assert_eq!(array.shape, shape);
            assert_eq!(array.data.len(), shape.iter().product::<usize>());
        }
    }
});
