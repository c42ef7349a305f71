//! Against files that SciPy wrote (`tests/golden/mat.py`), and against files that are cut or
//! changed at random.

use proptest::prelude::*;

use super::*;

const VALUES: &[u8] = include_bytes!("../tests/golden/mat/values.mat");
const PLAIN: &[u8] = include_bytes!("../tests/golden/mat/values_v6.mat");

/// An element of a file: its type, its length and the padded data.
fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let size = (data.len() as u32).to_le_bytes();
    let padding = vec![0; data.len().next_multiple_of(8) - data.len()];
    [&kind.to_le_bytes(), &size[..], data, &padding].concat()
}

/// A file with one matrix of bytes, whatever sizes it claims.
pub(crate) fn file_of_matrix(name: &str, dims: [u32; 2], values: &[u8]) -> Vec<u8> {
    let array = [
        element(6, &[9, 0, 0, 0, 0, 0, 0, 0]),
        element(5, &dims.map(u32::to_le_bytes).concat()),
        element(1, name.as_bytes()),
        element(2, values),
    ];
    let mut header = [b' '; 128];
    header[124..].copy_from_slice(&[0, 1, b'I', b'M']);
    [&header[..], &element(14, &array.concat())].concat()
}

#[test]
fn reads_what_scipy_writes() {
    for bytes in [VALUES, PLAIN] {
        let file = MatFile::from_bytes(bytes).unwrap();
        let get = |name: &str| file.get(name).unwrap();
        let numbers = |name: &str| get(name).numbers().unwrap();
        // Column by column.
        assert_eq!(numbers("doubles"), [0.0, 0.75, 0.25, 1.0, 0.5, 1.25]);
        assert_eq!(get("doubles").shape(), [2, 3]);
        assert_eq!(numbers("whole"), [1.0, -2.0, 300.0]);
        assert_eq!(numbers("bytes"), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(get("single").number().unwrap(), 1.5);
        assert_eq!(numbers("large"), [-(2_f64.powi(40)), 7.0]);
        assert_eq!(numbers("logical"), [1.0, 0.0]);
        assert_eq!(get("text").text().unwrap(), "Größe");
        assert!(numbers("empty").is_empty());
        assert_eq!(get("nothing").text().unwrap(), "");
        assert_eq!(numbers("sparse"), [0.0, 0.0, 3.0, 2.0, 0.0, 4.0]);
        assert_eq!(get("cube").shape(), [2, 4]);
        assert_eq!(numbers("cube"), [0.0, 4.0, 2.0, 6.0, 1.0, 5.0, 3.0, 7.0]);

        let cells: Vec<Array> = get("cells").cells().unwrap().map(Result::unwrap).collect();
        assert_eq!(cells.len(), 3);
        assert_eq!(cells[0].number().unwrap(), 4.0);
        assert_eq!(cells[1].text().unwrap(), "ab");
        let inner = cells[2].cells().unwrap().next().unwrap().unwrap();
        assert_eq!(inner.text().unwrap(), "inner");

        let records: Vec<Record> = get("records")
            .records()
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(records[0].get("name").unwrap().text().unwrap(), "a");
        assert_eq!(records[0].at(1).unwrap().number().unwrap(), 1.0);
        assert!(records[1].get("value").unwrap().is_empty());
        assert_eq!(records.len(), 2);
    }
}

#[test]
fn errors_say_what_is_there() {
    let file = MatFile::from_bytes(VALUES).unwrap();
    let message = |error: MatError| error.to_string();
    let error = message(file.get("Img").unwrap_err());
    assert!(
        error.starts_with("file: expected a variable `Img`, found `doubles`, `whole`"),
        "{error}"
    );
    let doubles = file.get("doubles").unwrap();
    for error in [
        message(doubles.number().unwrap_err()),
        message(doubles.text().unwrap_err()),
        message(doubles.cells().err().unwrap()),
        message(doubles.records().err().unwrap()),
    ] {
        assert!(error.starts_with("variable doubles: expected "), "{error}");
        assert!(error.ends_with("found numbers of 2 x 3"), "{error}");
    }
    assert!(file.get("complex").unwrap().numbers().is_err());
    let record = file.get("records").unwrap().record().unwrap();
    let error = message(record.get("box").unwrap_err());
    assert_eq!(
        error,
        "structure: expected a field `box`, found `name`, `value`"
    );
    assert!(record.at(2).is_err());

    let mut hdf = VALUES.to_vec();
    hdf[125] = 2;
    let error = message(MatFile::from_bytes(&hdf).unwrap_err());
    assert!(
        error.contains("-v7.3") && error.contains("hint: save it again with -v7"),
        "{error}"
    );
    assert!(MatFile::from_bytes(b"no").is_err());
    assert!(MatFile::from_bytes(&[0; 200]).is_err());
}

#[test]
fn inflating_stops_at_the_limit() {
    let error = MatFile::with_limit(VALUES, 300).unwrap_err().to_string();
    assert!(error.contains("expected zlib data of at most"), "{error}");
    // A file of 100 kB that inflates to 100 MB.
    let zeros = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; 100 << 20], 9);
    let mut bomb = VALUES[..128].to_vec();
    bomb.extend(15_u32.to_le_bytes());
    bomb.extend((zeros.len() as u32).to_le_bytes());
    bomb.extend(zeros);
    assert!(MatFile::with_limit(&bomb, 1 << 20).is_err());
}

/// Such starts let each column go through all entries: hours for a file of a megabyte.
#[test]
fn starts_of_sparse_columns_ascend() {
    let numbers = |starts: &[u8]| {
        let dims = [1_u32, starts.len() as u32 - 1]
            .map(u32::to_le_bytes)
            .concat();
        let body = [&[0, 0][..], starts, &[7, 8]]
            .map(|part| element(2, part))
            .concat();
        let array = Array {
            kind: Kind::Sparse,
            dims: &dims,
            name: b"sparse",
            complex: false,
            body: &body,
        };
        array.numbers().map_err(|error| error.to_string())
    };
    assert_eq!(numbers(&[0, 1, 1, 2]), Ok(vec![7.0, 0.0, 8.0]));
    for starts in [[0, 2, 0, 2], [0, 1, 2, 3], [2, 1, 1, 1]] {
        let error = numbers(&starts).unwrap_err();
        assert!(error.contains("expected starts that ascend"), "{error}");
    }
}

/// The message used to be as long as the file.
#[test]
fn sizes_without_end_are_told_in_a_line() {
    let sizes = [1, 0, 0, 0].repeat(100_000);
    let flags = [6_u32, 8, 4, 0].map(u32::to_le_bytes).concat();
    let tag = [5, sizes.len() as u32].map(u32::to_le_bytes).concat();
    let error = Array::parse(&[&flags[..], &tag, &sizes].concat(), "array").unwrap_err();
    let error = error.to_string();
    assert_eq!(
        error,
        "array: expected 2 to 32 sizes, found 400000 bytes of type 5"
    );
    let error = super::error("array", "one", "x".repeat(1 << 20)).to_string();
    assert!(error.len() < 1100, "{}", error.len());
}

/// Sizes that claim more than there is.
#[test]
fn claims_of_size_allocate_nothing() {
    let file = MatFile::from_bytes(PLAIN).unwrap();
    for data in &file.variables {
        let mut data = data.clone();
        // The dims follow the flags of 16 bytes: a tag, then the sizes.
        data[24..32].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]);
        let array = Array::parse(&data, "array").unwrap();
        walk(array, 0, &mut 10_000);
    }
}

/// Reads everything; each array counts against `budget`.
fn walk(array: Array, depth: usize, budget: &mut usize) {
    if depth > 8 || *budget == 0 {
        return;
    }
    *budget -= 1;
    let _ = (
        array.numbers(),
        array.text(),
        array.shape(),
        array.record().map(|r| r.at(0)),
    );
    for cell in array.cells().into_iter().flatten().map_while(Result::ok) {
        walk(cell, depth + 1, budget);
    }
    for record in array.records().into_iter().flatten().map_while(Result::ok) {
        let _ = record.get("name");
        record
            .values
            .iter()
            .for_each(|value| walk(*value, depth + 1, budget));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changed_files_are_refused_or_read(
        compressed in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cutting in any::<bool>(),
    ) {
        let mut bytes = if compressed { VALUES } else { PLAIN }.to_vec();
        for (at, value) in changes {
            let at = 128 + at.index(bytes.len() - 128);
            bytes[at] = value;
        }
        if cutting {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = MatFile::with_limit(&bytes, 1 << 20) {
            file.variables().for_each(|(_, array)| walk(array, 0, &mut 10_000));
        }
    }
}
