//! Images in Parquet files, through every command that reads images without a trained task.

use std::path::Path;

use super::{TINY, done, refused};

/// Files that pyarrow wrote, with images of 2 x 2 pixels.
fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/parquet");
    let path = folder.join(format!("{name}.parquet"));
    path.to_string_lossy().into_owned()
}

#[test]
fn parquet_files_are_labeled_trained_on_embedded_and_packed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let data = golden("datasets");
    let text = done(at, &["data", "stats", &data, "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(stats["images"], 12, "{text}");
    done(at, &["data", "pack", &data, "--out", "shards"]);
    let text = done(at, &["data", "stats", "shards", "--json"]);
    let packed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(packed["images"], 12, "{text}");

    done(at, &["label", &data, "--out", "labels", "--grid", "8x4"]);
    done(at, &["label", "check", "labels", &data]);
    // The same images with the same keys, from tars.
    done(at, &["label", "check", "labels", "shards"]);

    let images = format!("data.images={data:?}");
    let sets = ["method=clasp", &images, "data.labels=labels"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let start = ["pretrain", "demo", "--out", "run"];
    let arguments: Vec<&str> = start
        .into_iter()
        .chain(TINY.iter().copied())
        .chain(sets)
        .collect();
    done(at, &arguments);
    done(at, &["embed", &data, "--model", "run", "--out", "f.npy"]);
    assert!(at.join("f.npy").is_file());

    refused(
        at,
        &["data", "stats", &golden("none")],
        &["a column `image`", "`text`"],
    );
    let bytes = fs_err::read(&data).expect("the file");
    fs_err::write(at.join("cut.parquet"), &bytes[..2000]).expect("a file");
    let words = [
        "cut.parquet",
        "its footer cannot be read",
        "hint: copy it again",
    ];
    refused(at, &["label", "cut.parquet", "--out", "other"], &words);
}
