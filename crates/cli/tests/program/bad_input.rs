//! What users hand the program by mistake: each gets an error that says what is wrong.

use fs_err as fs;

use crate::{TINY, done, drawn, refused};

#[test]
fn images_that_are_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    fs::create_dir(at.join("empty")).expect("a folder");
    fs::create_dir(at.join("texts")).expect("a folder");
    fs::write(at.join("texts/a.txt"), "not an image").expect("a file");
    fs::write(at.join("texts/b.csv"), "x,y\n1,2\n").expect("a file");
    for base in [&["data", "stats"][..], &["label", "--out", "labels"]] {
        let run = |images: &str, words: &[&str]| {
            let mut arguments = vec![base[0]];
            if base[0] == "data" {
                arguments.push(base[1]);
            }
            arguments.push(images);
            if base[0] == "label" {
                arguments.extend_from_slice(&base[1..]);
            }
            refused(at, &arguments, words);
        };
        run("empty", &["empty"]);
        run("missing", &["missing"]);
        run("texts", &["texts"]);
        run("people-{000..002}.tar", &["people-000.tar"]);
    }
    assert!(
        !at.join("labels").exists()
            || fs::read_dir(at.join("labels"))
                .expect("a folder")
                .next()
                .is_none()
    );
}

/// A PNG of one grey image whose header claims 30,000 x 30,000 pixels.
fn huge_png() -> Vec<u8> {
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |mut crc, byte| {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            }
            crc
        })
    }
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&30_000u32.to_be_bytes());
    header.extend_from_slice(&30_000u32.to_be_bytes());
    header.extend_from_slice(&[8, 0, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d".to_vec();
    png.extend_from_slice(&header);
    png.extend_from_slice(&crc(&header).to_be_bytes());
    png.extend_from_slice(&[0, 0, 0, 0]);
    png.extend_from_slice(b"IEND");
    png.extend_from_slice(&crc(b"IEND").to_be_bytes());
    png
}

#[test]
fn unreadable_images_are_counted_listed_and_skipped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let people = at.join("people");
    fs::create_dir(&people).expect("a folder");
    let mut jpeg = Vec::new();
    for (i, entry) in fs::read_dir(drawn().join("market/bounding_box_train"))
        .expect("synthetic people")
        .enumerate()
    {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "jpg") {
            jpeg = fs::read(&path).expect("an image");
            fs::write(people.join(format!("{i}.jpg")), &jpeg).expect("a file");
        }
    }
    assert!(!jpeg.is_empty(), "expected drawn JPEGs");
    fs::write(people.join("truncated.jpg"), &jpeg[..jpeg.len() / 2]).expect("a file");
    fs::write(people.join("huge.png"), huge_png()).expect("a file");
    fs::write(people.join("text.jpg"), "not an image").expect("a file");

    refused(
        at,
        &["label", "people", "--out", "labels"],
        &["3 of", "--keep-going"],
    );
    done(at, &["label", "people", "--out", "labels", "--keep-going"]);
    let report = done(at, &["data", "stats", "people", "--keep-going", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let failed = report["unreadable"]["failed"].to_string();
    for name in ["truncated", "huge", "text"] {
        assert!(failed.contains(name), "expected {name} in {failed}");
    }
}

#[test]
fn a_picture_of_one_pixel_is_an_image() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    fs::create_dir(at.join("people")).expect("a folder");
    let pixel = clasp_data::image::encode_png(&clasp_data::image::Rgb::new(1, 1, vec![9, 9, 9]));
    fs::write(at.join("people/pixel.png"), pixel).expect("a file");
    done(at, &["label", "people", "--out", "labels"]);
}

#[test]
fn a_tar_that_was_cut() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    done(at, &["data", "pack", &images, "--out", "shards"]);
    let tar = fs::read_dir(at.join("shards"))
        .expect("a folder")
        .next()
        .expect("a shard")
        .expect("an entry")
        .path();
    let bytes = fs::read(&tar).expect("a shard");
    fs::write(at.join("cut.tar"), &bytes[..bytes.len() / 2]).expect("a file");
    refused(at, &["data", "stats", "cut.tar"], &["cut.tar"]);
}

#[test]
fn recipes_that_make_no_sense() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    fs::write(at.join("r.toml"), "method = \"clasp\"\n[run]\nepoch = 3\n").expect("a file");
    refused(at, &["pretrain", "r.toml"], &["r.toml", "epoch", "epochs"]);
    refused(at, &["pretrain", "no-such-recipe"], &["no-such-recipe"]);
    refused(
        at,
        &["pretrain", "swin-tny"],
        &["swin-tny", "vit-small", "did you mean `swin-tiny`?"],
    );
    refused(
        at,
        &["pretrain", "demo", "--set", "run.bach=3"],
        &["bach", "batch"],
    );
    refused(at, &["pretrain", "--resume", "nowhere"], &["nowhere"]);
}

#[test]
fn labels_and_checkpoints_of_something_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    let others = drawn().join("market/query").to_string_lossy().into_owned();
    done(at, &["label", &images, "--out", "labels", "--grid", "8x4"]);

    // Labels of other images, and another vocabulary or grid into the same folder.
    let pretrain = |images: &str, out: &'static str, more: &[&str]| {
        let mut arguments = vec![
            "pretrain".to_owned(),
            "demo".to_owned(),
            "--out".to_owned(),
            out.to_owned(),
        ];
        arguments.extend(TINY.iter().chain(more).map(|text| (*text).to_owned()));
        arguments.extend(["--set".to_owned(), format!("data.images={images:?}")]);
        arguments.extend(["--set".to_owned(), "data.labels=labels".to_owned()]);
        arguments
    };
    let texts = pretrain(&others, "other", &[]);
    refused(
        at,
        &texts.iter().map(String::as_str).collect::<Vec<_>>(),
        &["labels"],
    );
    fs::write(
        at.join("vocabulary.toml"),
        fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../data/src/vocabulary.toml"
        ))
        .expect("the vocabulary")
        .replacen("name = \"upper body\"", "name = \"torso\"", 1),
    )
    .expect("a file");
    refused(
        at,
        &[
            "label",
            &images,
            "--out",
            "labels",
            "--grid",
            "8x4",
            "--vocabulary",
            "vocabulary.toml",
        ],
        &["labels", "vocabulary"],
    );

    // A checkpoint of another architecture.
    let texts = pretrain(&images, "run", &[]);
    done(at, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let texts = pretrain(
        &images,
        "run2",
        &[
            "--set",
            "model.backbone=swin-nano",
            "--set",
            "model.init=run/backbone.safetensors",
        ],
    );
    refused(
        at,
        &texts.iter().map(String::as_str).collect::<Vec<_>>(),
        &["backbone.safetensors", "expected"],
    );
    refused(
        at,
        &[
            "eval",
            "reid",
            "--frozen",
            "--data",
            "labels",
            "--model",
            "run/backbone.safetensors",
        ],
        &["labels"],
    );
}

#[test]
fn numbers_out_of_range_name_their_option() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    for arguments in [
        &["inspect", "mini", "--threads", "300000"][..],
        &["inspect", "mini", "--threads", "0"],
        &["data", "pack", "x", "--out", "y", "--per-shard", "0"],
        &["data", "pack", "x", "--out", "y", "--max-height", "0"],
        &["label", "x", "--out", "y", "--batch", "0"],
        &["label", "show", "x", "y", "--count", "100000"],
        &["bench", "rank", "--identities", "0"],
        &["bench", "rank", "--identities", "1000000000000"],
        &["bench", "rank", "--dim", "0"],
        &["bench", "rank", "--queries", "0"],
        &["bench", "pretrain", "--prototypes", "0"],
        &["bench", "pretrain", "--prototypes", "100000000000000"],
        &["bench", "data", "x", "--limit", "0"],
        &["bench", "coco", "--images", "0"],
        &["bench", "parsing", "--images", "0"],
    ] {
        let (option, value) = (
            arguments[arguments.len() - 2],
            arguments[arguments.len() - 1],
        );
        refused(at, arguments, &[option, value]);
    }
    let arguments = |set: &'static str| {
        let fixed = ["pretrain", "demo", "--out", "run"].map(str::to_owned);
        let sets = [
            format!("data.images={images:?}"),
            "method=dino".to_owned(),
            set.to_owned(),
        ];
        let mut all = fixed.to_vec();
        all.extend(TINY.iter().map(|text| (*text).to_owned()));
        all.extend(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]));
        all
    };
    for set in [
        "data.workers=200000",
        "projection_head.prototypes=0",
        "projection_head.hidden_dim=100000000000",
        "optimizer.lr=-5.0",
        "optimizer.lr=nan",
        "teacher.momentum=3.0",
        "optimizer.warmup_epochs=-1.0",
        "views.mean=[1e30, 0.5, 0.5]",
    ] {
        let texts = arguments(set);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        refused(at, &texts, &[set.split('=').next().unwrap_or_default()]);
        assert!(!at.join("run").exists(), "{set}: a run has begun");
    }
    let data = drawn().to_string_lossy().into_owned();
    let set = ["--set", "data.workers=100000", "--out", "tuned"];
    let first = ["finetune", "reid", "reid-mini", "--data", &data];
    refused(at, &[&first[..], &set].concat(), &["data.workers", "1024"]);
    assert!(!at.join("tuned").exists());
}

#[test]
fn what_does_not_exist_is_named_with_what_was_expected_and_what_is_there_instead() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let data = drawn();
    let market = data.join("market").to_string_lossy().into_owned();
    fs::create_dir(at.join("photos")).expect("a folder");
    fs::write(at.join("photos/a.png"), huge_png()).expect("a file");
    for name in ["labels", "market1501", "run-1"] {
        fs::create_dir(at.join(name)).expect("a folder");
    }
    for name in ["model.safetensors", "boxes.json", "words.toml", "my.toml"] {
        fs::write(at.join(name), "").expect("a file");
    }
    let images = "an image, a folder, a list";
    let cases: &[(&str, &str, &str)] = &[
        ("data stats photo", images, "`photos`"),
        ("data check photo", images, "`photos`"),
        ("data pack photos/a.jpg --out p", images, "`photos/a.png`"),
        ("label phtos --out l", images, "`photos`"),
        (
            "embed phtos/a.png --model m --out f.npy",
            "",
            "`photos/a.png`",
        ),
        (
            "embed photos --model mdel.safetensors --out f.npy",
            "a backbone or published checkpoint",
            "`model.safetensors`",
        ),
        (
            "predict reid photos --model mdel.safetensors --out f",
            "a fine-tuned model",
            "`model.safetensors`",
        ),
        (
            "search --query photos --gallery photos --model mdel.safetensors",
            "a backbone or published checkpoint",
            "`model.safetensors`",
        ),
        (
            "label photos --out l --vocabulary word.toml",
            "a vocabulary",
            "`words.toml`",
        ),
        ("label stats label", "a folder with labels", "`labels`"),
        (
            "label show label photos",
            "a folder with labels",
            "`labels`",
        ),
        (
            "label check label photos",
            "a folder with labels",
            "`labels`",
        ),
        ("label calibrate label", "a folder with labels", "`labels`"),
        (
            "label compare label label",
            "a folder with labels",
            "`labels`",
        ),
        (
            "finetune reid --data market1051",
            "the folder of a dataset",
            "`market1501`",
        ),
        (
            "finetune reid --data MARKET --init mdel.safetensors",
            "a backbone or published checkpoint",
            "`model.safetensors`",
        ),
        (
            "finetune reid myy.toml --data MARKET",
            "the file of a recipe",
            "`my.toml`",
        ),
        (
            "finetune reid --resume run-2",
            "the folder of a run",
            "`run-1`",
        ),
        ("pretrain --resume run-2", "the folder of a run", "`run-1`"),
        ("pretrain myy.toml", "the file of a recipe", "`my.toml`"),
        ("pretrain mini --set data.images=photo", images, "`photos`"),
        (
            "pretrain mini --set data.images=photos --set data.labels=label",
            "a folder with labels",
            "`labels`",
        ),
        (
            "eval reid --data market1051 --model m",
            "the folder of a dataset",
            "`market1501`",
        ),
        (
            "eval reid --data MARKET --model mdel.safetensors",
            "a fine-tuned model",
            "`model.safetensors`",
        ),
        (
            "score pose --data MARKET --predictions bxes.json",
            "predictions",
            "`boxes.json`",
        ),
        ("inspect mdel.safetensors", "a model", "`model.safetensors`"),
        (
            "import mdel.safetensors --out x",
            "a backbone or published checkpoint",
            "`model.safetensors`",
        ),
        (
            "export onnx mdel.safetensors --out x",
            "a backbone or published checkpoint",
            "`model.safetensors`",
        ),
        ("runs run-2", "a folder with runs", "`run-1`"),
        (
            "clip score --clip mdel.safetensors",
            "a folder with a CLIP",
            "`model.safetensors`",
        ),
        (
            "clip train --out x --photos market1051",
            "the folder of a dataset",
            "`market1501`",
        ),
    ];
    for (line, expected, near) in cases {
        let line = line.replace("MARKET", &market);
        let arguments: Vec<&str> = line.split(' ').collect();
        let hint = format!("hint: did you mean {near}?");
        let first = match *expected {
            "" => "expected",
            expected => expected,
        };
        refused(at, &arguments, &["error: ", first, &hint]);
    }
    // Nothing similar: what is there is named.
    refused(
        at,
        &["data", "stats", "zzz"],
        &["zzz: expected", "hint: the current folder", "boxes.json"],
    );
    refused(
        at,
        &["data", "stats", "photos/*.tif"],
        &["no file matches", "hint: photos holds a.png"],
    );
}
