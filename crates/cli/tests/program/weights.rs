//! Published checkpoints in, files for other programs out.

use std::path::PathBuf;

use crate::{done, drawn, refused};

/// A SOLIDER training checkpoint as torch.save writes it, of a tiny Swin.
fn solider() -> String {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../weights/tests/golden/solider_full.pth");
    path.to_string_lossy().into_owned()
}

#[test]
fn a_published_checkpoint_is_imported_inspected_and_used_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let printed = done(
        at,
        &[
            "import",
            &solider(),
            "--size",
            "64x32",
            "-o",
            "b.safetensors",
        ],
    );
    for words in [
        "SOLIDER, training checkpoint",
        "teacher.backbone.",
        "missing          0",
        "outside the backbone",
        "64x32 (height x width)",
        "license        code: SOLIDER, Apache-2.0",
        "license        data: LUPerson",
    ] {
        assert!(printed.contains(words), "expected `{words}` in:\n{printed}");
    }
    let inspected = done(at, &["inspect", "b.safetensors"]);
    assert!(
        inspected.contains("(import)") && inspected.contains("solider_full.pth"),
        "{inspected}"
    );
    let inspected = done(at, &["inspect", &solider()]);
    assert!(
        inspected.contains("checkpoint") && inspected.contains("matched"),
        "{inspected}"
    );
    let json = done(at, &["inspect", &solider(), "--json"]);
    assert!(
        json.contains("\"matched\": [") && json.contains("\"semantic_embed_b.0.bias\""),
        "{json}"
    );

    let images = drawn().join("market/query").to_string_lossy().into_owned();
    let embed = |model: &str, out: &str| {
        done(
            at,
            &[
                "embed", &images, "--model", model, "--size", "64x32", "--out", out,
            ],
        );
        fs_err::read(at.join(out)).expect("features")
    };
    assert_eq!(
        embed(&solider(), "one.npy"),
        embed("b.safetensors", "two.npy")
    );
}

#[test]
fn a_backbone_leaves_in_other_names_and_says_what_that_costs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let export = |more: &[&str]| -> Vec<String> {
        let model = solider();
        let fixed = ["export", "safetensors", &model, "-o", "out.safetensors"];
        fixed
            .iter()
            .chain(more)
            .map(|text| (*text).to_owned())
            .collect()
    };
    let arguments = export(&[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(
        at,
        &arguments,
        &["SOLIDER's controller", "would be lost", "--drop-adapter"],
    );
    for more in [
        &["--drop-adapter", "--precision", "fp16"][..],
        &["--names", "solider"],
    ] {
        let arguments = export(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let printed = done(at, &arguments);
        assert!(
            printed.contains("load_file(\"out.safetensors\")") || more.contains(&"solider"),
            "{printed}"
        );
        assert_eq!(
            printed.contains("warning:"),
            !more.contains(&"solider"),
            "{printed}"
        );
    }
    // It comes back as what it is.
    let inspected = done(at, &["inspect", "out.safetensors"]);
    assert!(inspected.contains("SOLIDER, converted"), "{inspected}");
}

#[test]
fn a_backbone_leaves_as_a_folder_of_the_hub_and_comes_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let metrics = r#"{"task": "reid", "mix": "identity", "protocol": "Market-1501, frozen", "chance": 0.1,
        "metrics": [{"name": "mAP", "value": 0.25, "unit": "fraction", "better": "higher"}]}"#;
    fs_err::write(at.join("eval.json"), metrics).expect("a file");
    let model = solider();
    let export = ["export", "hub", &model, "-o", "people"];
    refused(at, &export, &["SOLIDER's controller", "--drop-adapter"]);
    let more = [
        "--drop-adapter",
        "--size",
        "66x32",
        "--metrics",
        "eval.json",
    ];
    let arguments = [&export[..], &more].concat();
    refused(at, &arguments, &["66x32", "--library transformers"]);
    assert!(!at.join("people").exists());
    let more = ["--drop-adapter", "--metrics", "eval.json"];
    let arguments = [&export[..], &more].concat();
    let printed = done(at, &arguments);
    assert!(printed.contains("local-dir:people"), "{printed}");
    let card = fs_err::read_to_string(at.join("people/README.md")).expect("a card");
    for words in [
        "# people",
        "**reid, frozen backbone, prompt identity**",
        "| mAP | 25.00 % |",
        "Protocol: Market-1501, frozen",
        "- code: SOLIDER, Apache-2.0",
        "license: unknown",
        "of its adapter are left out",
    ] {
        assert!(card.contains(words), "expected `{words}` in:\n{card}");
    }
    refused(at, &arguments, &["another folder"]);
    fs_err::write(at.join("other.json"), "{}").expect("a file");
    let arguments = [
        "export",
        "hub",
        &model,
        "-o",
        "b",
        "--drop-adapter",
        "--metrics",
        "other.json",
    ];
    refused(at, &arguments, &["other.json", "clasp eval TASK --json"]);
    let inspected = done(at, &["inspect", "people"]);
    assert!(
        inspected.contains("256x128 (height x width)"),
        "{inspected}"
    );
    fs_err::create_dir(at.join("run")).expect("a folder");
    fs_err::write(at.join("run/run.toml"), "seed = 1\n").expect("a file");
    let arguments = ["export", "hub", &model, "-o", "run", "--drop-adapter"];
    refused(at, &arguments, &["--out run", "found that of a run"]);
    // transformers' form of the same.
    let library = [
        "--library",
        "transformers",
        "--drop-adapter",
        "--size",
        "66x32",
    ];
    let arguments = [&["export", "hub", &model, "-o", "own"][..], &library].concat();
    let printed = done(at, &arguments);
    assert!(printed.contains("always_partition=True"), "{printed}");
    let images = drawn().join("market/query").to_string_lossy().into_owned();
    let arguments = ["embed", &images, "--model", "own", "--out", "own.npy"];
    done(at, &arguments);
}

#[test]
fn files_that_are_no_backbone_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    fs_err::write(at.join("text.pth"), "not a checkpoint").expect("a file");
    fs_err::write(
        at.join("half.pth"),
        &fs_err::read(solider()).expect("a file")[..40_000],
    )
    .expect("a file");
    for (file, words) in [
        ("text.pth", &["text.pth", "hint"][..]),
        ("half.pth", &["half.pth", "breaks off", "hint"]),
        ("absent.pth", &["absent.pth"]),
    ] {
        refused(at, &["import", file, "-o", "out.safetensors"], words);
        refused(at, &["embed", "x", "--model", file, "--out", "f.npy"], &[]);
    }
    refused(
        at,
        &[
            "import",
            &solider(),
            "--as",
            "resnet",
            "-o",
            "out.safetensors",
        ],
        &["expected one of", "dinov2"],
    );
    refused(
        at,
        &[
            "import",
            &solider(),
            "--as",
            "timm-vit",
            "-o",
            "out.safetensors",
        ],
        &["patch_embed"],
    );
    assert!(!at.join("out.safetensors").exists());
}

#[test]
fn a_backbone_and_its_heads_leave_as_onnx() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let model = solider();
    let export = |more: &[&str]| -> Vec<String> {
        let fixed = [
            "export", "onnx", &model, "-o", "out.onnx", "--size", "64x32",
        ];
        let arguments = fixed.iter().chain(more).map(|word| (*word).to_owned());
        arguments.collect()
    };
    let words = |arguments: &[String]| -> String {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        done(at, &arguments)
    };
    let printed = words(&export(&[
        "--outputs",
        // The map is also the last of the pyramid.
        "pooled,tokens,map,pyramid,pooled",
        "--prompt",
        "input",
    ]));
    for expected in [
        "input images: f32 [batch, 3, 64, 32]",
        "input prompt_weights: f32 [1, 3]",
        "output map: f32 [batch, ",
        "output stage4: f32 [batch, ",
        "checked on 4 synthetic people: largest difference",
    ] {
        assert!(
            printed.contains(expected),
            "expected `{expected}` in:\n{printed}"
        );
    }
    let people = drawn().join("market/query").to_string_lossy().into_owned();
    let printed = words(&export(&["--bytes", "--batch", "2", "--check", &people]));
    assert!(
        printed.contains("input images: u8 [2, 64, 32, 3]"),
        "{printed}"
    );
    assert!(printed.contains("prompt identity"), "{printed}");

    let printed = done(at, &["inspect", "out.onnx"]);
    for expected in [
        "images u8 [2, 64, 32, 3]",
        "opset       17",
        "size        64x32",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    fs_err::write(at.join("torn.onnx"), b"no protobuf").expect("a written file");
    refused(
        at,
        &["inspect", "torn.onnx"],
        &["torn.onnx", "expected an ONNX file"],
    );

    // An export that fails leaves the last good file.
    let before = fs_err::read(at.join("out.onnx")).expect("a file");
    let arguments = export(&["--outputs", "part"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(
        at,
        &arguments,
        &[
            "expected a checkpoint of `clasp pretrain`",
            "heads are in checkpoints/",
        ],
    );
    let arguments = export(&["--check", "nothing-there"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(at, &arguments, &["nothing-there"]);
    assert_eq!(fs_err::read(at.join("out.onnx")).expect("a file"), before);
}
