//! The store as a whole: round trips, damage, conflicts.

use std::path::Path;

use fs_err as fs;
use proptest::prelude::*;

use super::*;
use crate::vocabulary::Vocabulary;

fn meta(vocabulary: Vocabulary, rows: usize, columns: usize) -> StoreMeta {
    StoreMeta {
        vocabulary,
        model: "a model".into(),
        model_sha256: "00ff".into(),
        rows,
        columns,
        method: "clip".into(),
        dense: "clear".into(),
        confidence: 0.5,
    }
}

/// Labels that fit `meta` and differ with `seed`.
fn label(key: &str, meta: &StoreMeta, seed: u64) -> Labels {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u32
    };
    let classes = meta.vocabulary.parts.len() as u32;
    let part = |draw: u32| {
        if draw.is_multiple_of(5) {
            255
        } else {
            (draw % classes) as u8
        }
    };
    Labels {
        key: key.into(),
        width: (next() % 65535 + 1) as u16,
        height: (next() % 65535 + 1) as u16,
        image_sha256: match seed % 3 {
            0 => String::new(),
            _ => image_digest(key.as_bytes()),
        },
        values: LabelValues {
            parts: (0..meta.positions()).map(|_| part(next())).collect(),
            part_confidence: (0..meta.positions()).map(|_| next() as u8).collect(),
            attributes: (0..meta.vocabulary.logits())
                .map(|_| next() as f32 / 1e8 - 10.0)
                .collect(),
        },
    }
}

fn standard() -> StoreMeta {
    meta(Vocabulary::standard().unwrap(), 16, 8)
}

fn many(meta: &StoreMeta, prefix: &str, count: u64) -> Vec<Labels> {
    (0..count)
        .map(|i| label(&format!("{prefix}/{i:05}"), meta, i + prefix.len() as u64))
        .collect()
}

#[test]
fn round_trip_over_several_shards() {
    let folder = tempfile::tempdir().unwrap();
    let meta = standard();
    let (first, second) = (many(&meta, "a", 300), many(&meta, "bé", 77));
    write_shard(folder.path(), "people/001", &meta, &second).unwrap();
    let path = write_shard(folder.path(), "people/000", &meta, &first).unwrap();
    assert_eq!(path, folder.path().join("people%2F000.parquet"));
    write_shard(folder.path(), "people/002", &meta, &[]).unwrap();
    // What a killed writer leaves, and files of others.
    fs::write(folder.path().join(".people%2F003.parquet.1-1.tmp"), "half").unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();

    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.meta, meta);
    assert_eq!(store.shards, ["people/000", "people/001", "people/002"]);
    assert_eq!(store.len(), 377);
    let expected: Vec<_> = first.iter().chain(&second).map(Labels::view).collect();
    assert_eq!(store.iter().collect::<Vec<_>>(), expected);
    for label in first.iter().chain(&second) {
        assert_eq!(store.get(&label.key).unwrap().to_labels(), *label);
    }
    assert_eq!(store.get("a/00300"), None);
    let finished = finished_shards(folder.path(), &meta).unwrap();
    assert_eq!(finished.into_iter().collect::<Vec<_>>(), store.shards);
    let keys = shard_keys(folder.path(), "people/000").unwrap();
    assert_eq!(
        keys,
        first
            .iter()
            .map(|label| label.key.clone())
            .collect::<Vec<_>>()
    );
    assert!(matches!(
        shard_keys(folder.path(), "people/003"),
        Err(LabelError::Io(_))
    ));
    // About 0.5 kB an image, as the module says.
    let bytes = fs::metadata(&path).unwrap().len() / 300;
    assert!((400..700).contains(&bytes), "{bytes} bytes an image");
}

#[test]
fn a_folder_that_is_not_there_has_no_finished_shards() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        finished_shards(&folder.path().join("new"), &standard())
            .unwrap()
            .is_empty()
    );
    assert!(matches!(
        Store::open(folder.path()),
        Err(LabelError::Empty { .. })
    ));
    assert!(matches!(
        Store::open(&folder.path().join("new")),
        Err(LabelError::Missing(_))
    ));
}

#[test]
fn labels_without_attributes_and_a_grid_of_one_cell() {
    let folder = tempfile::tempdir().unwrap();
    let meta = StoreMeta {
        method: "kmeans".into(),
        dense: String::new(),
        ..meta(Vocabulary::kmeans(), 1, 1)
    };
    let labels = many(&meta, "k", 5);
    write_shard(folder.path(), "all", &meta, &labels).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(
        store.iter().map(|row| row.to_labels()).collect::<Vec<_>>(),
        labels
    );
    let calibration = Calibration::of_store(&store).unwrap();
    assert_eq!((calibration.count, calibration.mean.len()), (5, 0));
    assert_eq!(Calibration::of_folder(folder.path()).unwrap(), calibration);
}

#[test]
fn a_shard_is_replaced_by_its_second_writing() {
    let folder = tempfile::tempdir().unwrap();
    let meta = standard();
    write_shard(folder.path(), "s", &meta, &many(&meta, "a", 3)).unwrap();
    write_shard(folder.path(), "s", &meta, &many(&meta, "a", 2)).unwrap();
    assert_eq!(Store::open(folder.path()).unwrap().len(), 2);
}

#[test]
fn shards_that_differ_are_a_conflict_that_names_the_field() {
    let base = standard();
    let cases: [(fn(&mut StoreMeta), &str); 8] = [
        (
            |m| m.vocabulary.parts[1].synonyms.push("a chin".into()),
            "vocabulary differs",
        ),
        (
            |m| m.vocabulary = Vocabulary::kmeans(),
            "8 parts, 55 attribute values",
        ),
        (
            |m| m.model = "another".into(),
            "expected a model, found another",
        ),
        (|m| m.model_sha256 = "11".into(), "model SHA-256 differs"),
        (
            |m| m.rows = 8,
            "expected 16 rows x 8 columns, found 8 rows x 8 columns",
        ),
        (|m| m.method = "kmeans".into(), "method differs"),
        (|m| m.dense = "mask".into(), "dense features differs"),
        (|m| m.confidence = 0.4, "expected 0.5, found 0.4"),
    ];
    for (change, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut other = base.clone();
        change(&mut other);
        write_shard(folder.path(), "0", &base, &many(&base, "a", 2)).unwrap();
        write_shard(folder.path(), "1", &other, &many(&other, "b", 2)).unwrap();
        for error in [
            Store::open(folder.path()).unwrap_err(),
            Calibration::of_folder(folder.path()).unwrap_err(),
            finished_shards(folder.path(), &base).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(matches!(error, LabelError::Conflict { .. }), "{text}");
            assert!(
                text.contains(expected) && text.contains("1.parquet"),
                "expected {expected:?} in {text:?}"
            );
        }
    }
}

#[test]
fn a_key_in_two_shards_names_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let meta = standard();
    for (shard, prefix) in [("0", "a"), ("1", "b"), ("2", "c")] {
        write_shard(folder.path(), shard, &meta, &many(&meta, prefix, 3)).unwrap();
    }
    let again = label("b/00002", &meta, 1);
    write_shard(folder.path(), "3", &meta, &[label("d", &meta, 1), again]).unwrap();
    let text = Store::open(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains("\"b/00002\"") && text.contains("1.parquet") && text.contains("3.parquet"),
        "{text}"
    );
}

#[test]
fn labels_that_do_not_fit_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let meta = standard();
    let cases: [(fn(&mut Labels), &str); 8] = [
        (|l| l.key.clear(), "key: expected a name"),
        (|l| l.width = 0, "size: expected at least 1x1, found 0x"),
        (
            |l| l.values.parts.truncate(127),
            "parts: expected 128 patch positions (16 rows x 8 columns), found 127",
        ),
        (
            |l| l.values.part_confidence.push(0),
            "part_confidence: expected 128 patch positions",
        ),
        (
            |l| l.values.attributes.truncate(3),
            "attributes: expected 55 logits, found 3",
        ),
        (
            |l| l.values.parts[5] = 8,
            "parts: expected classes 0 to 7 or 255, found 8",
        ),
        (
            |l| l.values.attributes[0] = f32::NAN,
            "attributes: expected finite logits, found NaN",
        ),
        (|l| l.key = "a/00000".into(), "key: occurs twice"),
    ];
    for (damage, expected) in cases {
        let mut labels = many(&meta, "a", 2);
        damage(&mut labels[1]);
        let text = write_shard(&folder.path().join("out"), "s", &meta, &labels)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(expected) && text.contains("\"s\""),
            "expected {expected:?} in {text:?}"
        );
    }
    for broken in [
        StoreMeta {
            rows: 0,
            ..meta.clone()
        },
        StoreMeta {
            rows: usize::MAX,
            ..meta.clone()
        },
        StoreMeta {
            confidence: f32::NAN,
            ..meta.clone()
        },
    ] {
        assert!(matches!(
            write_shard(&folder.path().join("out"), "s", &broken, &[]),
            Err(LabelError::Invalid { .. })
        ));
    }
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_file_cut_anywhere_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let meta = meta(Vocabulary::kmeans(), 4, 2);
    let path = write_shard(folder.path(), "s", &meta, &many(&meta, "a", 6)).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, LabelError::Damaged { .. }),
            "{length} of {} bytes: {error}",
            whole.len()
        );
        assert!(error.to_string().contains("s.parquet"));
    }
}

#[test]
fn files_of_others_are_damaged_files_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    for content in [
        &b""[..],
        b"PAR1",
        b"key,width\na,1\n",
        b"PAR1\xff\xff\xff\x7fPAR1",
        &[0; 4096],
    ] {
        fs::write(&path, content).unwrap();
        assert!(matches!(
            Store::open(folder.path()),
            Err(LabelError::Damaged { .. })
        ));
    }
}

#[test]
fn calibration_streams_what_the_store_holds() {
    let folder = tempfile::tempdir().unwrap();
    let meta = standard();
    for (shard, count) in [("0", 40), ("1", 1), ("2", 0), ("3", 25)] {
        write_shard(folder.path(), shard, &meta, &many(&meta, shard, count)).unwrap();
    }
    let store = Store::open(folder.path()).unwrap();
    let calibration = Calibration::of_store(&store).unwrap();
    assert_eq!(Calibration::of_folder(folder.path()).unwrap(), calibration);
    assert_eq!(calibration.count, 66);
    for i in 0..meta.vocabulary.logits() {
        let logits: Vec<_> = store
            .iter()
            .map(|row| f64::from(row.values.attributes[i]))
            .collect();
        let mean = logits.iter().sum::<f64>() / 66.0;
        assert!((f64::from(calibration.mean[i]) - mean).abs() < 1e-6);
    }
    assert!(calibration.spread.iter().all(|&spread| spread > 0.0));
    calibration.write(folder.path()).unwrap();
    assert_eq!(
        Calibration::read(folder.path(), &meta.vocabulary).unwrap(),
        calibration
    );
    // The calibration lies beside the shards and is not one.
    assert_eq!(Store::open(folder.path()).unwrap().len(), 66);
}

#[test]
fn a_store_without_images_has_no_calibration() {
    let folder = tempfile::tempdir().unwrap();
    write_shard(folder.path(), "s", &standard(), &[]).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(store.is_empty());
    assert!(Calibration::of_store(&store).is_err());
    assert!(Calibration::of_folder(folder.path()).is_err());
}

/// Opens a folder with one file of these bytes.
fn open_bytes(folder: &Path, bytes: &[u8]) -> Result<Store, LabelError> {
    fs::write(folder.join("s.parquet"), bytes).unwrap();
    Store::open(folder)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_labels_survive(rows in 1_usize..20, columns in 1_usize..20, count in 0_u64..20, seed: u64, with_attributes: bool) {
        let vocabulary = if with_attributes { Vocabulary::standard().unwrap() } else { Vocabulary::kmeans() };
        let meta = meta(vocabulary, rows, columns);
        let labels: Vec<_> = (0..count).map(|i| label(&i.to_string(), &meta, seed ^ i)).collect();
        let folder = tempfile::tempdir().unwrap();
        write_shard(folder.path(), "s", &meta, &labels).unwrap();
        let store = Store::open(folder.path()).unwrap();
        prop_assert_eq!(store.iter().map(|row| row.to_labels()).collect::<Vec<_>>(), labels);
        prop_assert_eq!(store.meta, meta);
    }

    #[test]
    fn a_flipped_byte_is_noticed_or_harmless(places in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let meta = meta(Vocabulary::kmeans(), 4, 2);
        let labels = many(&meta, "a", 6);
        let path = write_shard(folder.path(), "s", &meta, &labels).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (index, flip) in places {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        // No panic; and if it opens, then with the labels that were written, or as edited.
        if let Ok(store) = open_bytes(folder.path(), &bytes) && store.edited.is_empty() {
            prop_assert_eq!(store.iter().map(|row| row.to_labels()).collect::<Vec<_>>(), labels);
        }
    }
}

/// Found by the test above: neither is in the digest of the pages.
#[test]
fn a_damaged_column_name_or_row_count_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let meta = meta(Vocabulary::kmeans(), 4, 2);
    let labels = many(&meta, "a", 6);
    let path = write_shard(folder.path(), "s", &meta, &labels).unwrap();
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for flip in [1, 2, 4, 6, 8] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(shard) = shard::decode(&path, bytes, None)
                && !shard.edited
            {
                let read: Vec<_> = (0..shard.columns.keys.len())
                    .map(|row| shard.columns.row(row, &shard.meta).to_labels())
                    .collect();
                assert_eq!(read, labels, "bit {flip} of byte {at}");
            }
        }
    }
}

/// Labels as `tests/labels/write.py` writes them with other programs.
fn of_others(i: usize) -> Labels {
    let positions = 0..16 * 8;
    let part = |j| match (i + j) % 11 {
        0 => 255,
        _ => ((i + j) % 8) as u8,
    };
    Labels {
        key: format!("a/{i:05}"),
        width: 10 + i as u16,
        height: 20 + i as u16,
        image_sha256: format!("{i:016x}"),
        values: LabelValues {
            parts: positions.clone().map(part).collect(),
            part_confidence: positions.map(|j| (i * j % 256) as u8).collect(),
            attributes: (0..55).map(|k| i as f32 - k as f32 / 4.0).collect(),
        },
    }
}

#[test]
fn files_of_other_programs_are_read_by_names_and_types_and_reported() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labels");
    let meta = standard();
    let expected: Vec<Labels> = (0..6).map(of_others).collect();
    for program in ["pandas", "polars", "version2", "duckdb"] {
        let folder = tempfile::tempdir().unwrap();
        write_shard(folder.path(), "people", &meta, &many(&meta, "b", 2)).unwrap();
        let path = write_shard(folder.path(), "a/b", &meta, &expected).unwrap();
        let own = Store::open(folder.path()).unwrap();
        assert!(own.edited.is_empty());
        fs::copy(files.join(format!("{program}.parquet")), &path).unwrap();
        let store = Store::open(folder.path()).unwrap_or_else(|e| panic!("{program}: {e}"));
        assert_eq!(store.edited, ["a/b"], "{program}");
        assert_eq!(
            (&store.meta, &store.shards),
            (&own.meta, &own.shards),
            "{program}"
        );
        for label in &expected {
            assert_eq!(
                store.get(&label.key).unwrap().to_labels(),
                *label,
                "{program}"
            );
        }
        assert_eq!(store.len(), 8);
        let (labels, edited) = read_shard(folder.path(), "a/b").unwrap();
        assert!(labels == expected && edited, "{program}");
        // Without the sidecar the meaning of the numbers is unknown.
        fs::remove_file(folder.path().join("_store.toml")).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("no `_store.toml` beside it"),
            "{program}: {error}"
        );
    }
}

#[test]
fn an_edited_file_that_does_not_fit_names_column_and_row() {
    let folder = tempfile::tempdir().unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labels");
    // The same file in a store of another grid.
    let other = meta(Vocabulary::standard().unwrap(), 4, 2);
    let path = write_shard(folder.path(), "s", &other, &[]).unwrap();
    fs::copy(files.join("polars.parquet"), path).unwrap();
    let error = Store::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("column `parts`: row 0: expected 8 positions, found 128"),
        "{error}"
    );
}

#[test]
fn a_changed_image_is_known_by_its_size_and_its_bytes() {
    let mut label = of_others(3);
    let bytes = b"the file of an image";
    label.image_sha256 = image_digest(bytes);
    assert_eq!(label.image_sha256.len(), 16);
    let differs = |label: &Labels, bytes: &[u8], size| label.view().difference_from(bytes, size);
    assert_eq!(differs(&label, bytes, [23, 13]), None);
    let told = differs(&label, bytes, [13, 23]).unwrap();
    assert!(
        told.contains("23 x 13 pixels") && told.contains("13 x 23"),
        "{told}"
    );
    assert!(
        differs(&label, b"another", [23, 13])
            .unwrap()
            .contains("another content")
    );
    label.image_sha256.clear();
    assert_eq!(differs(&label, b"another", [23, 13]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What other programs write has no checksum: damage may change labels, but never panics or
    /// takes memory.
    #[test]
    fn damaged_files_of_others_never_panic(
        program in 0_usize..4,
        places in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labels");
        let name = ["pandas", "polars", "version2", "duckdb"][program];
        let mut bytes = fs::read(files.join(format!("{name}.parquet"))).unwrap();
        for (index, flip) in places {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        let folder = tempfile::tempdir().unwrap();
        let meta = standard();
        write_shard(folder.path(), "s", &meta, &[]).unwrap();
        let _ = open_bytes(folder.path(), &bytes);
    }
}
