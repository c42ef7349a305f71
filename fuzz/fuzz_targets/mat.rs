//! MATLAB files: everything in whatever opens is visited, and numbers are as many as the sizes say.
#![no_main]

use clasp_data::mat::{Array, Kind, MatFile};
use libfuzzer_sys::fuzz_target;

/// Deeper than any annotation is nested; the reader itself does not recurse.
const DEPTH: usize = 8;

fn visit(array: Array<'_>, depth: usize) {
    if let Ok(numbers) = array.numbers() {
        assert_eq!(numbers.len(), array.len());
    }
    let _ = array.text();
    if depth == DEPTH {
        return;
    }
    match array.kind() {
        Kind::Cell => {
            if let Ok(cells) = array.cells() {
                cells.flatten().for_each(|cell| visit(cell, depth + 1));
            }
        }
        Kind::Struct => {
            for record in array.records().into_iter().flatten().flatten() {
                let fields = (0..).map_while(|index| record.at(index).ok());
                fields.for_each(|field| visit(field, depth + 1));
            }
        }
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = MatFile::from_bytes(bytes) {
        for (_, array) in file.variables() {
            visit(array, 0);
        }
    }
});
