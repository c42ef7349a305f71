//! Tests of Parquet files, written by pyarrow and pandas (tests/golden/parquet.py): image `i` has
//! the color `i`.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet");
    folder.join(format!("{name}.parquet"))
}

fn open(path: &Path) -> Result<Source, SourceError> {
    Source::open(path.to_str().unwrap())
}

fn color(source: &Source, i: usize) -> u8 {
    let image = source.load(i, &Limits::default()).unwrap();
    assert_eq!((image.width, image.height), (2, 2));
    image.pixels[0]
}

fn colors(source: &Source) -> Vec<u8> {
    (0..source.len()).map(|i| color(source, i)).collect()
}

fn keys(source: &Source) -> Vec<&str> {
    source.keys().collect()
}

/// Images whose place in the file is known, without a page to decompress.
fn stored(source: &Source) -> usize {
    let is_stored = |entry: &&Entry| match &entry.place {
        Place::Row(row) => matches!(row.place, RowPlace::Bytes { .. }),
        _ => false,
    };
    source.entries.iter().filter(is_stored).count()
}

#[test]
fn images_of_every_writer_are_read_in_order() {
    for (name, places) in [
        ("datasets", 0),
        ("stored", 0),
        ("plain1", 12),
        ("plain2", 12),
        ("zstd", 0),
        ("gzip", 0),
        ("brotli", 0),
        ("lz4", 0),
        ("pages", 0),
        ("pandas", 0),
        ("required", 0),
    ] {
        let source = open(&golden(name)).unwrap();
        let all: Vec<u8> = (0..12).collect();
        assert_eq!(colors(&source), all, "{name}");
        // In any order.
        for i in [11, 0, 7, 3, 11, 5] {
            assert_eq!(color(&source, i), i as u8, "{name}");
        }
        assert_eq!(stored(&source), places, "{name}");
        let expected: Vec<String> = (0..12)
            .map(|i| match name {
                "pandas" => format!("a/{i}"),
                "required" => format!("required/{i:08}"),
                _ => format!("{i:02}"),
            })
            .collect();
        assert_eq!(keys(&source), expected, "{name}");
        assert_eq!(source.skipped().describe(), Vec::<String>::new(), "{name}");
        for i in 0..12 {
            let bytes = source.read(i).unwrap();
            assert_eq!(source.size(i), Some(bytes.len() as u64), "{name}");
        }
        assert!(source.place(7).ends_with(&format!("{name}.parquet row 7")));
        assert_eq!(source.shards()[0].name, format!("{name}-00000"));
    }
}

#[test]
fn rows_without_an_image_are_left_out_and_counted() {
    for name in ["missing", "uncounted"] {
        let source = open(&golden(name)).unwrap();
        assert_eq!(colors(&source), [0, 2, 3, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(keys(&source)[..4], ["00", "02", "03", "05"]);
        assert!(source.place(3).ends_with("row 5"));
        let notes = source.skipped().describe();
        let expected = "2 rows without bytes in column `image`";
        assert!(notes.len() == 1 && notes[0].contains(expected), "{notes:?}");
    }
    let error = open(&golden("links")).unwrap_err().to_string();
    assert!(error.contains("bytes in none of its 1 rows"), "{error}");
    let source = open(&golden("two")).unwrap();
    assert_eq!(colors(&source), [0, 1]);
    let notes = source.skipped().describe().join("\n");
    assert!(notes.contains("are not read: `mask`"), "{notes}");
}

#[test]
fn keys_are_row_numbers_where_paths_do_not_tell_images_apart() {
    for (name, why) in [
        ("pathless", "row 3 has none"),
        ("repeated", "row 3 repeats `0.png`"),
    ] {
        let source = open(&golden(name)).unwrap();
        let expected: Vec<String> = (0..4).map(|i| format!("{name}/{i:08}")).collect();
        assert_eq!(keys(&source), expected);
        let notes = source.skipped().describe().join("\n");
        assert!(notes.contains(why), "{notes}");
    }
}

#[test]
fn files_with_the_same_paths_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b", "a"] {
        fs::copy(
            golden("datasets"),
            folder.path().join(format!("{name}.parquet")),
        )
        .unwrap();
    }
    let source = open(folder.path()).unwrap();
    assert_eq!((source.len(), color(&source, 15)), (24, 3));
    assert_eq!((source.key(0), source.key(15)), ("a/00", "b/03"));
    // One of them alone has no prefix, nor have several without common paths.
    let both = format!(
        "{},{}",
        golden("datasets").display(),
        golden("pandas").display()
    );
    let source = Source::open(&both).unwrap();
    assert_eq!((source.key(0), source.key(12)), ("00", "a/0"));
    // Beside images they are not read.
    fs::write(folder.path().join("x.png"), source.read(0).unwrap()).unwrap();
    let source = open(folder.path()).unwrap();
    assert_eq!(keys(&source), ["x"]);
    let notes = source.skipped().describe().join("\n");
    assert!(notes.contains("2 x .parquet"), "{notes}");
}

#[test]
fn a_value_that_many_rows_share_is_read_for_each() {
    let source = open(&golden("same")).unwrap();
    assert_eq!(colors(&source), [3, 3, 3, 5]);
    assert_eq!(source.key(2), "same/00000002");
}

#[test]
fn a_file_without_a_column_of_images_says_what_it_has() {
    for (name, parts) in [
        ("none", ["the columns `text`, `list`", "a column `image`"]),
        (
            "unclear",
            ["several columns of bytes, `a`, `b`", "or the only one"],
        ),
    ] {
        let error = open(&golden(name)).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// A damaged copy of a golden file.
fn damaged(name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let mut bytes = fs::read(golden(name)).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn damage_is_reported_with_its_place() {
    for cut in [0, 3, 8, 1000, 3800] {
        let (_folder, path) = damaged("datasets", |bytes| bytes.truncate(cut));
        let error = open(&path).unwrap_err().to_string();
        assert!(
            error.contains("its footer cannot be read"),
            "{cut}: {error}"
        );
    }
    // The header of the first page of the second group.
    let source = open(&golden("plain1")).unwrap();
    let Place::Row(row) = &source.entries[7].place else {
        panic!("not a row");
    };
    let RowPlace::Bytes { offset, .. } = row.place else {
        panic!("not stored");
    };
    let (_folder, path) = damaged("plain1", |bytes| {
        bytes[offset as usize - 4..][..4].copy_from_slice(&[255; 4]);
    });
    let error = open(&path).unwrap_err().to_string();
    for part in [
        "row group 1: row 7",
        "4294967295 bytes",
        "the 7 images before",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let source = Source::open_lenient(path.to_str().unwrap()).unwrap();
    assert_eq!(colors(&source), [0, 1, 2, 3, 4, 5, 6]);
    assert!(source.damage()[0].contains("row group 1"));
    // A page that is decompressed when it is read: only its images are lost, for good.
    let pages = open(&golden("pages")).unwrap();
    let Place::Row(row) = &pages.entries[4].place else {
        panic!("not a row");
    };
    let place = row.column.pages[2].clone();
    let (_folder, path) = damaged("pages", |bytes| {
        let page = &mut bytes[place.offset as usize..][..place.length];
        let frame = page
            .windows(4)
            .position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]);
        page[frame.unwrap()] = 0;
    });
    let source = open(&path).unwrap();
    let unreadable: Vec<usize> = (0..source.len())
        .filter(|i| source.load(*i, &Limits::default()).is_err())
        .collect();
    assert_eq!(unreadable, [4, 5]);
    let failure = source.load(4, &Limits::default()).unwrap_err();
    assert!(
        failure.permanent && failure.reason.contains("row 4"),
        "{failure}"
    );
}

#[test]
fn pages_in_use_are_shared_and_old_ones_dropped() {
    let source = open(&golden("pages")).unwrap();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let source = &source;
            scope.spawn(move || {
                for i in (0..48).map(|i| (start * 5 + i * 7) % 12) {
                    assert_eq!(color(source, i), i as u8);
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn damaged_files_never_panic(file in 0_usize..6, at in 0_usize..5000, value: u8, flip: bool) {
        crate::contained::silence();
        let name = ["datasets", "plain1", "plain2", "zstd", "missing", "pandas"][file];
        let (_folder, path) = damaged(name, |bytes| {
            let at = at % bytes.len();
            bytes[at] = if flip { bytes[at] ^ (1 << (value % 8)) } else { value };
        });
        if let Ok(source) = Source::open_lenient(path.to_str().unwrap()) {
            for i in 0..source.len().min(20) {
                let _ = source.load(i, &Limits::default());
            }
        }
    }
}
