//! Runs that are resumed, killed, split and refused.

use super::*;
use crate::config::LabelConfig;
use crate::labeler::KMeansLabeler;
use crate::testing::{files, images, labeler};
use burn::tensor::Device;
use clasp_data::labels::{LabelError, Store};
use clasp_data::source::TINY;
use fs_err as fs;
use std::time::Duration;

const CONTINUE: fn(LabelProgress<'_>) -> ControlFlow<()> = |_| ControlFlow::Continue(());

/// The files of a run that nothing disturbed.
fn undisturbed(source: &Source, folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let report = run(
        source,
        &labeler(&LabelConfig::default()),
        &LabelRunConfig::new(folder, 1),
        &mut { CONTINUE },
    )
    .unwrap();
    assert_eq!(
        (report.labeled, report.kept, report.unreadable),
        (source.len(), 0, 0)
    );
    assert!(!report.stopped);
    files(folder)
}

#[test]
fn labels_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 3, 7);
    let expected = undisturbed(&source, &folder.path().join("one"));
    assert_eq!(expected.len(), 5, "{:?}", expected.keys());
    let three = folder.path().join("three");
    run(
        &source,
        &labeler(&LabelConfig::default()),
        &LabelRunConfig::new(&three, 3),
        &mut { CONTINUE },
    )
    .unwrap();
    assert!(files(&three) == expected);
    // The sizes of the images are stored.
    let store = Store::open(&three).unwrap();
    assert_eq!(store.len(), 21);
    let (key, last) = (source.key(20), store.get(source.key(20)).unwrap());
    assert_eq!(
        (last.width, last.height, last.values.parts.len()),
        (16, 32, 8),
        "{key}"
    );
    // A random CLIP has low confidence, but different images have different logits.
    let first = store.get(source.key(0)).unwrap();
    assert_ne!(first.values.attributes, last.values.attributes);
}

#[test]
fn an_interrupted_run_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 12, 7);
    let expected = undisturbed(&source, &folder.path().join("whole"));
    let out = folder.path().join("interrupted");
    let labeler = labeler(&LabelConfig::default());
    let mut stop_after_a_shard = |progress: LabelProgress<'_>| match progress {
        LabelProgress::Written { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let report = run(
        &source,
        &labeler,
        &LabelRunConfig::new(&out, 2),
        &mut stop_after_a_shard,
    )
    .unwrap();
    assert!(
        report.stopped && (1..12).contains(&report.shards),
        "{report:?}"
    );
    let whole = report.shards;
    assert!(files(&out).len() == 2 + whole);
    let mut resumed = None;
    let mut note = |progress: LabelProgress<'_>| {
        if let LabelProgress::Resumed { shards, images } = progress {
            resumed = Some((shards, images));
        }
        ControlFlow::Continue(())
    };
    let report = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut note).unwrap();
    assert_eq!((report.kept + report.labeled, report.shards), (84, 12));
    // The batches that were under way when it was stopped are kept too.
    assert!(report.kept >= 7, "{report:?}");
    assert_eq!(resumed, Some((whole, report.kept)));
    assert!(files(&out) == expected);
    // And once more: there is nothing to do.
    let report = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut {
        CONTINUE
    })
    .unwrap();
    assert_eq!((report.kept, report.labeled), (84, 0));
}

#[test]
fn finished_batches_are_saved_within_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    // Fewer images have shards that are smaller than a piece.
    let source = images(&folder.path().join("images"), 1, TINY + PIECE / 2);
    assert_eq!(source.shards().len(), 5);
    let expected = undisturbed(&source, &folder.path().join("whole"));
    let out = folder.path().join("interrupted");
    let labeler = labeler(&LabelConfig::default());
    let (mut runs, mut labeled) = (0, 0);
    loop {
        let mut seen = 0;
        // Stop long before the shard is whole, then later.
        let mut stop = |progress: LabelProgress<'_>| match progress {
            LabelProgress::Images { .. } => {
                seen += 1;
                match seen {
                    ..5 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            }
            _ => ControlFlow::Continue(()),
        };
        let report = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut stop).unwrap();
        assert_eq!(report.kept, labeled);
        labeled += report.labeled;
        runs += 1;
        if !report.stopped {
            break;
        }
        // The batches that were under way count too, and none is lost.
        assert!(report.labeled >= 5 * labeler.batch().min(16), "{report:?}");
    }
    assert!(runs > 2, "{runs}");
    assert_eq!(labeled, source.len());
    assert!(files(&out) == expected && !out.join(PIECES).exists());
}

#[test]
fn missing_images_are_labeled_by_the_next_run_and_edited_files_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 1, 40);
    let expected = undisturbed(&source, &folder.path().join("whole"));
    let out = folder.path().join("labels");
    let labeler = labeler(&LabelConfig::default());
    let (place, away) = (source.place(7), folder.path().join("away"));
    fs_err::rename(&place, &away).unwrap();
    let options = LabelRunConfig::new(&out, 1);
    let report = run(&source, &labeler, &options, &mut { CONTINUE }).unwrap();
    assert_eq!((report.labeled, report.unreadable), (39, 1));
    // Still away: nothing to do.
    let report = run(&source, &labeler, &options, &mut { CONTINUE }).unwrap();
    assert_eq!((report.labeled, report.kept, report.unreadable), (0, 39, 1));
    fs_err::rename(&away, &place).unwrap();
    let report = run(&source, &labeler, &options, &mut { CONTINUE }).unwrap();
    // Its shard of 16 images.
    assert_eq!(
        (report.labeled, report.kept, report.unreadable),
        (16, 24, 0)
    );
    assert!(files(&out) == expected);
}

#[test]
fn a_part_without_images_is_reported_and_a_part_has_one_job_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 2, 4);
    let labeler = labeler(&LabelConfig::default());
    let out = folder.path().join("labels");
    let mut options = LabelRunConfig::new(&out, 1);
    options.shard = (2, 3);
    let mut empty = None;
    let mut note = |progress: LabelProgress<'_>| {
        if let LabelProgress::Empty { shards, jobs } = progress {
            empty = Some((shards, jobs));
        }
        ControlFlow::Continue(())
    };
    let report = run(&source, &labeler, &options, &mut note).unwrap();
    assert_eq!((empty, report.images), (Some((2, 3)), 0));
    let _lock = FolderLock::named(&out, ".lock-2-of-3").unwrap();
    let error = run(&source, &labeler, &options, &mut { CONTINUE }).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    options.shard = (0, 3);
    run(&source, &labeler, &options, &mut { CONTINUE }).unwrap();
}

/// Not a test of its own: what [`a_killed_run_resumes_to_the_same_bytes`] starts as a process and
/// kills.
#[test]
fn child() {
    let Ok(folder) = std::env::var("CLASP_LABEL_TEST_CHILD") else {
        return;
    };
    let source = source_of(Path::new(&folder));
    let mut slowly = |_: LabelProgress<'_>| {
        std::thread::sleep(Duration::from_millis(30));
        ControlFlow::Continue(())
    };
    let options = LabelRunConfig::new(&Path::new(&folder).join("labels"), 2);
    run(
        &source,
        &labeler(&LabelConfig::default()),
        &options,
        &mut slowly,
    )
    .unwrap();
}

fn source_of(folder: &Path) -> Source {
    let shards: Vec<String> = (0..4)
        .map(|i| {
            folder
                .join(format!("images/shard{i}"))
                .display()
                .to_string()
        })
        .collect();
    Source::open(&shards.join(",")).unwrap()
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    for whole_shards in [0, 1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let source = images(&folder.path().join("images"), 4, 7);
        let expected = undisturbed(&source, &folder.path().join("whole"));
        let out = folder.path().join("labels");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["run::tests::child", "--exact"])
            .env("CLASP_LABEL_TEST_CHILD", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let written = || {
            let names = fs_err::read_dir(&out)
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().file_name());
            names
                .filter(|name| !name.as_encoded_bytes().starts_with(b"."))
                .count()
        };
        // The settings' file is the first.
        while written() < whole_shards + 1 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SIGKILL on Unix.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(written() < 5, "killed too late to test anything");
        run(
            &source,
            &labeler(&LabelConfig::default()),
            &LabelRunConfig::new(&out, 2),
            &mut { CONTINUE },
        )
        .unwrap();
        assert!(files(&out) == expected, "after {whole_shards} whole shards");
    }
}

#[test]
fn the_parts_of_a_source_make_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 3, 4);
    let expected = undisturbed(&source, &folder.path().join("whole"));
    let out = folder.path().join("parts");
    for index in [2, 0, 1, 3] {
        let options = LabelRunConfig {
            shard: (index, 4),
            ..LabelRunConfig::new(&out, 1)
        };
        let report = run(&source, &labeler(&LabelConfig::default()), &options, &mut {
            CONTINUE
        })
        .unwrap();
        assert_eq!(report.images, if index < 3 { 4 } else { 0 });
    }
    assert!(files(&out) == expected);
}

#[test]
fn other_settings_vocabularies_and_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 1, 4);
    let out = folder.path().join("labels");
    let before = undisturbed(&source, &out);
    let again = |source: &Source, config: &LabelConfig| {
        run(
            source,
            &labeler(config),
            &LabelRunConfig::new(&out, 1),
            &mut { CONTINUE },
        )
        .unwrap_err()
    };

    let config = LabelConfig {
        image_size: Some([48, 24]),
        ..LabelConfig::default()
    };
    let error = again(&source, &config);
    assert!(
        matches!(&error, Error::OtherSettings { key, .. } if key == "image_size"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("expected [32, 32], found [48, 24]"),
        "{error}"
    );

    // Images of the same names and number of shards with one that was not there.
    let other = tempfile::tempdir().unwrap();
    let others = images(other.path(), 1, 4);
    fs_err::rename(
        other.path().join("shard0/0-001.png"),
        other.path().join("shard0/0-0010.png"),
    )
    .unwrap();
    drop(others);
    let others = Source::open(&other.path().join("shard0").display().to_string()).unwrap();
    let error = again(&others, &LabelConfig::default());
    assert!(matches!(error, Error::OtherImages { .. }), "{error}");
    assert!(error.to_string().contains("0-001"), "{error}");

    // Another vocabulary.
    let mut changed = labeler(&LabelConfig::default());
    changed.meta_mut().vocabulary.parts[1].name = "face".into();
    let error = run(&source, &changed, &LabelRunConfig::new(&out, 1), &mut {
        CONTINUE
    })
    .unwrap_err();
    assert!(
        matches!(error, Error::Labels(LabelError::Conflict { .. })),
        "{error}"
    );
    assert!(files(&out) == before);
}

#[test]
fn unreadable_images_are_listed_and_more_than_a_twentieth_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path(), 1, 20);
    let place = folder.path().join("shard0");
    fs_err::write(place.join("0-003.png"), b"not an image").unwrap();
    let source = Source::open(&place.display().to_string()).unwrap();
    let labeler = labeler(&LabelConfig::default());
    let out = folder.path().join("one");
    // One of 20 is just right.
    let report = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut {
        CONTINUE
    })
    .unwrap();
    assert_eq!((report.labeled, report.unreadable), (19, 1));
    assert!(
        report.failures[0].0.ends_with("0-003"),
        "{:?}",
        report.failures
    );
    // Going on counts what an earlier run could not read.
    let report = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut {
        CONTINUE
    })
    .unwrap();
    assert_eq!((report.kept, report.unreadable), (19, 1));

    let half = fs_err::read(place.join("0-010.png")).unwrap();
    fs_err::write(place.join("0-010.png"), &half[..half.len() / 2]).unwrap();
    let out = folder.path().join("two");
    let error = run(&source, &labeler, &LabelRunConfig::new(&out, 2), &mut {
        CONTINUE
    })
    .unwrap_err();
    assert!(matches!(error, Error::TooManyUnreadable(_)), "{error}");
    let mut keys = Vec::new();
    let mut note = |progress: LabelProgress<'_>| {
        if let LabelProgress::Unreadable { key, .. } = progress {
            keys.push(key.to_owned());
        }
        ControlFlow::Continue(())
    };
    let options = LabelRunConfig {
        skip_unreadable: true,
        ..LabelRunConfig::new(&out, 1)
    };
    let report = run(&source, &labeler, &options, &mut note).unwrap();
    // The finished batches of the earlier run were saved.
    assert_eq!((report.kept + report.labeled, report.unreadable), (18, 2));
    assert!(report.kept > 0 && !keys.is_empty());
    assert_eq!(Store::open(&out).unwrap().len(), 18);
}

#[test]
fn kmeans_labels_are_stored_alike() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 2, 5);
    let device = Device::flex();
    // The image itself, shrunk to 8 × 4, as a feature map: it has three channels.
    let features = |images: burn::tensor::Tensor<4>| {
        let [batch, channels, ..] = images.dims();
        images
            .reshape([batch, channels, 8, 4, 4, 4])
            .mean_dim(3)
            .mean_dim(5)
            .reshape([batch, channels, 8, 4])
    };
    let config = LabelConfig {
        grid: [8, 4],
        batch: 2,
        ..LabelConfig::default()
    };
    let labeler =
        KMeansLabeler::new(features, [32, 16], "squares", "", &config, 0, &device).unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let report = run(&source, &labeler, &LabelRunConfig::new(&one, 1), &mut {
        CONTINUE
    })
    .unwrap();
    run(&source, &labeler, &LabelRunConfig::new(&two, 2), &mut {
        CONTINUE
    })
    .unwrap();
    assert!(files(&one) == files(&two));
    let store = Store::open(&one).unwrap();
    assert_eq!(
        (
            store.len(),
            store.meta.method.as_str(),
            store.meta.vocabulary.parts.len()
        ),
        (10, "kmeans", 4)
    );
    let skipped = store
        .iter()
        .filter(|labels| labels.values.parts.iter().all(|&part| part == IGNORE))
        .count();
    assert_eq!(skipped, report.without_parts);
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 1, 2);
    let file = folder.path().join("file");
    fs_err::write(&file, b"in the way").unwrap();
    let error = run(
        &source,
        &labeler(&LabelConfig::default()),
        &LabelRunConfig::new(&file, 1),
        &mut { CONTINUE },
    )
    .unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

/// Those of `NAME0`, at which another machine may be at work, once went with those of `NAME`.
#[test]
fn temporary_files_of_shards_with_longer_names_stay() {
    let folder = tempfile::tempdir().unwrap();
    let source = images(&folder.path().join("images"), 1, 4);
    let out = folder.path().join("labels");
    let pieces = out.join(PIECES);
    fs::create_dir_all(&pieces).unwrap();
    let shard = &source.shards()[0].name;
    let left = |name: &str| format!(".{}.{}-0.tmp", labels::shard_file(name), u32::MAX);
    let [own, other] = [shard.clone(), format!("{shard}0")].map(|name| out.join(left(&name)));
    let [own_piece, other_piece] = [
        format!("{shard}@00000-00002"),
        format!("{shard}0@00000-00002"),
    ]
    .map(|name| pieces.join(left(&name)));
    for file in [&own, &other, &own_piece, &other_piece] {
        fs::write(file, b"").unwrap();
    }
    let options = LabelRunConfig::new(&out, 1);
    let labeler = labeler(&LabelConfig::default());
    run(&source, &labeler, &options, &mut { CONTINUE }).unwrap();
    assert!(other.exists() && other_piece.exists());
    if Path::new("/proc/self").exists() {
        assert!(!own.exists() && !own_piece.exists());
    }
}

/// Sorted as text, 90,000 labeled images of a tar file with 150,000 used to be dropped when a run was resumed.
#[test]
fn pieces_of_shards_beyond_100000_images_are_in_order() {
    let shard = Shard {
        name: "train".to_owned(),
        range: 7..150_007,
    };
    let sorted = [
        "train@x",
        "train@00000-10240",
        "train@10240-99840",
        "train@99840-100096",
        "train@100096-110080",
    ];
    let mut names: Vec<String> = sorted.iter().map(|&name| name.to_owned()).collect();
    names.sort();
    assert_ne!(names, sorted);
    let pieces = pieces_in_order(&names, &shard, 256);
    let in_order: Vec<&str> = pieces.into_iter().map(|(_, name)| name).collect();
    assert_eq!(in_order, sorted);
}
