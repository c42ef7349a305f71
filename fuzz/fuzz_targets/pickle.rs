//! Pickles of NumPy arrays: everything in whatever opens is visited, and arrays have as many values as their sizes say.
#![no_main]

use clasp_data::pickle::{Pickle, PickleValue};
use libfuzzer_sys::fuzz_target;

/// Deeper than any split is nested; the reader itself does not recurse.
const DEPTH: usize = 8;

fn visit(value: PickleValue<'_>, depth: usize, budget: &mut usize) {
    if depth == DEPTH || *budget == 0 {
        return;
    }
    *budget -= 1;
    let _ = (value.text(), value.texts(), value.get("partition"));
    if let (Some(shape), Some(numbers)) = (value.shape(), value.numbers()) {
        assert_eq!(shape.iter().product::<usize>(), numbers.len());
    }
    for item in value.items().into_iter().flatten() {
        visit(item, depth + 1, budget);
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = Pickle::read(bytes) {
        let root = pickle.root();
        let keys = ["image_name", "label", "attr_name", "label_idx", "partition"];
        for value in keys.iter().filter_map(|key| root.get(key)).chain([root]) {
            visit(value, 0, &mut 100_000);
        }
    }
});
