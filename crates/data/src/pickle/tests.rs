//! Against files that Python and NumPy wrote (`tests/golden/pickles.py`), against traps, and
//! against files that are cut or changed at random.

use proptest::prelude::*;

use super::*;

const FILES: [&[u8]; 4] = [
    include_bytes!("../../tests/golden/pickles/values2.pkl"),
    include_bytes!("../../tests/golden/pickles/values3.pkl"),
    include_bytes!("../../tests/golden/pickles/values4.pkl"),
    include_bytes!("../../tests/golden/pickles/values5.pkl"),
];

#[test]
fn reads_what_python_and_numpy_write() {
    for bytes in FILES {
        let pickle = Pickle::read(bytes).unwrap();
        let get = |key: &str| pickle.root().get(key).unwrap();
        let numbers = |key: &str| get(key).numbers().unwrap();
        let large = -(2_f64.powi(40));
        assert_eq!(
            numbers("numbers"),
            [0.0, -1.0, 300.0, 70e3, large, 2.5, 1.0]
        );
        assert_eq!(numbers("range"), [79.0, 81.0, 83.0]);
        assert_eq!(numbers("backwards"), [3.0, 2.0, 1.0]);
        assert_eq!(get("names").texts().unwrap(), ["hat", "Größe", "hat"]);
        assert_eq!(numbers("tuple"), [1.0, 2.0, 3.0, 4.0]);
        let nested: Vec<_> = get("nested").items().unwrap().collect();
        assert_eq!(nested[1].numbers().unwrap(), [1.0, 0.0]);
        assert_eq!(nested[2].numbers().unwrap(), [-7.0]);
        for key in ["matrix", "fortran"] {
            assert_eq!(get(key).shape().unwrap(), [2, 3]);
            assert_eq!(numbers(key), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{key}");
        }
        assert_eq!(numbers("big"), [1.0, -2.0]);
        assert_eq!(numbers("single"), [0.5, -1.0]);
        assert_eq!(numbers("logical"), [1.0, 0.0]);
        assert!(numbers("none_there").is_empty());
        assert_eq!(numbers("twice"), [9.0]);
        let objects: Vec<_> = get("objects").items().unwrap().collect();
        assert_eq!(objects[0].text(), Some("a"));
        assert_eq!(objects[1].numbers().unwrap(), [1.0]);
        for nothing in ["long", "none", "bytes", "day"] {
            assert!(get(nothing).text().is_none() && get(nothing).numbers().is_none());
        }
        assert!(pickle.root().get("absent").is_none());
    }
}

/// A pickle of protocol 4 of these parts.
fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x04", &parts.concat()[..], b"."].concat()
}

fn problem(parts: &[&[u8]]) -> String {
    let bytes = pickle(parts);
    Pickle::read(&bytes).map(|_| ()).unwrap_err()
}

#[test]
fn calls_of_anything_else_say_nothing() {
    let bytes = pickle(&[b"cos\nsystem\n\x8c\x04true\x85R"]);
    let pickle = Pickle::read(&bytes).unwrap();
    assert!(pickle.root().text().is_none() && pickle.root().items().is_none());
}

#[test]
fn traps_cost_little() {
    // A range as long as the universe is old.
    let bytes = pickle(&[b"cbuiltins\nrange\nK\x00G\x43\xe0\0\0\0\0\0\0K\x01\x87R"]);
    assert!(Pickle::read(&bytes).unwrap().root().numbers().is_none());
    // A list that holds itself; a text of a thousand letters a thousand times.
    let bytes = pickle(&[b"]\x94h\x00a"]);
    assert!(Pickle::read(&bytes).unwrap().root().numbers().is_none());
    let text = [b"X\xe8\x03\0\0".as_slice(), &[b'a'; 1000], b"\x94"].concat();
    let bytes = pickle(&[&text, b"](", &b"h\x00".repeat(1000), b"e"]);
    assert!(Pickle::read(&bytes).unwrap().root().texts().is_none());
    // The same text made bytes again and again.
    let encode = b"c_codecs\nencode\n\x94(h\x00t\x94";
    let again = b"h\x01h\x02R0".repeat(1000);
    let found = problem(&[&text, encode, &again]);
    assert!(
        found.contains("the same bytes are used over and over"),
        "{found}"
    );
    // An array of more values than it has bytes.
    let dtype = b"cnumpy\ndtype\n\x8c\x02i8\x85R\x94";
    let array = b"cnumpy._core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\x7f\x85h\x00\x89C\x08abcdefghtb";
    let found = problem(&[dtype, array]);
    assert!(
        found.contains("an array of shape [2147483647] with 8 bytes"),
        "{found}"
    );
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    assert_eq!(
        problem(&[b"K"]),
        "the pickle breaks off, at byte 4 of the pickle"
    );
    for (parts, expected) in [
        (
            &[b"a".as_slice()][..],
            "a value is used that is not there, at byte 2",
        ),
        (&[b"t"], "a mark is used that is not there"),
        (&[b"K\x01(\x86"], "values are used that are not there"),
        (&[b"}(K\x01u"], "a key and no value"),
        (&[b"K\x01K\x02a"], "added to what is no list"),
        (&[b"h\x07"], "memo 7 is used and was never stored"),
        (&[b"P"], "opcode 0x50"),
        (&[b"\x80\x00"], "protocol 0, expected 2 to 5"),
        (&[b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff"], "breaks off"),
    ] {
        let found = problem(parts);
        assert!(found.contains(expected), "{found}");
    }
    assert!(Pickle::read(b"").is_err());
}

/// Looks at everything, as deep and as long as is bearable.
fn walk(value: PickleValue, depth: usize, budget: &mut usize) {
    if depth > 8 || *budget == 0 {
        return;
    }
    *budget -= 1;
    let _ = (value.text(), value.texts(), value.get("names"));
    if let (Some(shape), Some(numbers)) = (value.shape(), value.numbers()) {
        assert_eq!(shape.iter().product::<usize>(), numbers.len());
    }
    for item in value.items().into_iter().flatten() {
        walk(item, depth + 1, budget);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changed_files_are_refused_or_read(
        file in 0..FILES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cutting in any::<bool>(),
    ) {
        let mut bytes = FILES[file].to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cutting {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(pickle) = Pickle::read(&bytes) {
            let keys = ["numbers", "range", "names", "nested", "matrix", "fortran", "objects", "big"];
            for value in keys.iter().filter_map(|key| pickle.root().get(key)).chain([pickle.root()]) {
                walk(value, 0, &mut 10_000);
            }
        }
    }
}
