//! Tests of sources of every kind.

use std::io;
use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::image::encode_png;

fn png(color: u8) -> Vec<u8> {
    encode_png(&Rgb::filled(2, 3, [color, 0, 0]))
}

/// A folder with these files, each an image of its own color unless it is a text.
fn folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in names.iter().enumerate() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.ends_with("txt") {
            fs::write(path, "words").unwrap();
        } else {
            fs::write(path, png(i as u8)).unwrap();
        }
    }
    folder
}

fn write_tar(path: &Path, members: &[(&str, Vec<u8>)]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap();
}

fn open(path: &Path) -> Result<Source, SourceError> {
    Source::open(path.to_str().unwrap())
}

fn keys(source: &Source) -> Vec<&str> {
    source.keys().collect()
}

fn colors(source: &Source) -> Vec<u8> {
    let limits = Limits::default();
    (0..source.len())
        .map(|i| decode(&source.read(i).unwrap(), &limits).unwrap().pixels[0])
        .collect()
}

#[test]
fn a_folder_is_sorted_and_read_to_any_depth() {
    let names = ["b.png", "a/z.JPG", "a/b/c.webp", "notes.txt", ".hidden.png"];
    let folder = folder(&names);
    let source = open(folder.path()).unwrap();
    assert_eq!(keys(&source), ["a/b/c", "a/z", "b"]);
    assert_eq!(colors(&source), [2, 1, 0]);
    assert!(source.place(2).ends_with("b.png"));
}

#[cfg(unix)]
#[test]
fn a_folder_linked_into_itself_ends() {
    let folder = folder(&["a/x.png"]);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("gone.png")).unwrap();
    let source = open(folder.path()).unwrap();
    assert_eq!(keys(&source), ["a/x", "gone"]);
    assert!(source.read(1).is_err());
    assert_eq!(source.skipped().linked_folders, 1);
}

#[test]
fn one_file_and_several_parts() {
    let folder = folder(&["a.png", "more/b.png", "no extension", "c,d.png"]);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(keys(&Source::open(&at("a.png")).unwrap()), ["a"]);
    assert_eq!(
        keys(&Source::open(&at("no extension")).unwrap()),
        ["no extension"]
    );
    assert_eq!(keys(&Source::open(&at("c,d.png")).unwrap()), ["c,d"]);
    let joined = Source::open(&format!("{}, {}", at("more"), at("a.png"))).unwrap();
    assert_eq!(keys(&joined), ["b", "a"]);
    assert_eq!(colors(&joined), [1, 0]);
    let braces = Source::open(&format!("{}/{{a,more/b}}.png", folder.path().display()));
    assert_eq!(keys(&braces.unwrap()), ["a", "b"]);
}

#[test]
fn a_list_is_relative_to_itself_and_keeps_its_order() {
    let folder = folder(&["in/b.png", "a.png", "lists/x.txt"]);
    let list = folder.path().join("lists/x.txt");
    let absolute = folder.path().join("a.png");
    let text = format!("# people\n../in/b.png\r\n\n{}\n", absolute.display());
    fs::write(&list, text).unwrap();
    let source = open(&list).unwrap();
    assert_eq!(source.key(0), "in/b");
    assert!(source.key(1).ends_with("/a"));
    assert_eq!(colors(&source), [0, 1]);
}

#[test]
fn tars_keep_their_order_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/z.png", "long".repeat(40));
    for shard in 0..3 {
        let member = |name: &str, i: u8| (format!("{name}{shard}"), png(10 * shard + i));
        let (b, a, l) = (member("b", 0), member("./x/a", 1), member("", 2));
        let l_name = format!("{}/{long}", l.0);
        write_tar(
            &folder.path().join(format!("p-{shard:02}.tar")),
            &[
                (&format!("{}.png", b.0), b.1),
                ("meta.json", b"{}".to_vec()),
                (&format!("{}.png", a.0), a.1),
                (&l_name, l.1),
            ],
        );
    }
    let spec = format!("{}/p-{{00..02}}.tar", folder.path().display());
    let source = Source::open(&spec).unwrap();
    assert_eq!(source.len(), 9);
    assert_eq!(&keys(&source)[..2], ["b0", "x/a0"]);
    assert!(source.key(2).ends_with("long/z"));
    assert_eq!(colors(&source), [0, 1, 2, 10, 11, 12, 20, 21, 22]);
    let shards = source.shards();
    let names: Vec<&str> = shards.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["p-00", "p-01", "p-02"]);
    assert_eq!(shards[1].range, 3..6);
}

#[test]
fn a_tar_cut_anywhere_is_named_and_its_whole_members_usable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("people.tar");
    let names: Vec<String> = (0..6).map(|i| format!("p{i}.png")).collect();
    let members: Vec<_> = names.iter().map(|n| (n.as_str(), png(7))).collect();
    write_tar(&path, &members);
    let whole = fs::read(&path).unwrap();
    let step = whole.len() / 40;
    let end = 6 * 2 * 512;
    for cut in (1..end).step_by(step).chain([512, 1024, 2048, 6 * 1024]) {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = open(&path).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, SourceError::Truncated { .. }),
            "{cut}: {text}"
        );
        assert!(
            text.contains("people.tar") && text.contains("at byte"),
            "{text}"
        );
        // A member is a header block and one block of content, whose padding may be missing.
        let content = png(7).len();
        let complete = (cut + 512 - content) / 1024;
        let lenient = Source::open_lenient(path.to_str().unwrap());
        if complete == 0 {
            assert!(lenient.is_err());
            continue;
        }
        let lenient = lenient.unwrap();
        assert_eq!(lenient.len(), complete, "cut at {cut}");
        assert!(lenient.damage()[0].contains("people.tar"));
        assert!(colors(&lenient).iter().all(|c| *c == 7));
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(&path).unwrap().damage().len(), 0);
}

#[test]
fn a_text_called_tar_and_an_empty_tar_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.tar");
    fs::write(&path, "words, ".repeat(900)).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
    fs::write(&path, "").unwrap();
    assert!(matches!(
        open(&path).unwrap_err(),
        SourceError::Truncated { .. }
    ));
    write_tar(&path, &[]);
    assert!(matches!(
        open(&path).unwrap_err(),
        SourceError::Empty { .. }
    ));
    write_tar(&path, &[("a.json", b"{}".to_vec())]);
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("1 x .json"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_pipes_and_other_kinds_are_read_once_or_counted() {
    use std::os::unix::fs::symlink;
    let names = [
        "in/a.png",
        "in/b.jfif",
        "in/c.jpe",
        "in/d.tif",
        "in/e.gif",
        "in/f.heic",
    ];
    let folder = folder(&names);
    let path = |name: &str| folder.path().join(name);
    fs::write(path("in/._a.png"), "resource fork").unwrap();
    fs::write(path("in/.h.png"), png(1)).unwrap();
    fs::write(path("in/unnamed"), png(1)).unwrap();
    fs::write(path("in/notes"), "words").unwrap();
    fs::hard_link(path("in/a.png"), path("in/hard.png")).unwrap();
    symlink("a.png", path("in/soft.png")).unwrap();
    fs::create_dir_all(path("other/deep")).unwrap();
    fs::write(path("other/deep/x.png"), png(9)).unwrap();
    symlink(path("other"), path("in/l1")).unwrap();
    symlink(path("other"), path("in/l2")).unwrap();
    // A loop of two links, and one to the folder above.
    symlink(path("in"), path("other/back")).unwrap();
    symlink(folder.path(), path("in/up")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("in/s.png")).unwrap();
    let source = open(&path("in")).unwrap();
    assert_eq!(keys(&source), ["a", "b", "c", "hard", "l1/deep/x", "soft"]);
    assert_eq!(colors(&source), [0, 1, 2, 0, 9, 0]);
    let skipped = source.skipped();
    assert_eq!(skipped.kinds.values().sum::<usize>(), 3);
    assert_eq!(
        (skipped.special, skipped.hidden, skipped.unnamed),
        (1, 1, 1)
    );
    assert_eq!(skipped.linked_folders, 3);
    let told = skipped.describe().join("\n");
    assert!(
        told.contains("1 x .heic") && told.contains("skipped 3 files"),
        "{told}"
    );
    let error = open(&path("in/s.png")).unwrap_err();
    assert!(matches!(error, SourceError::Special { .. }), "{error}");
    let listed = Source::from_files("s", [("s".to_owned(), path("in/s.png"))]).unwrap();
    assert!(listed.read(0).unwrap_err().to_string().contains("a device"));
}

#[test]
fn masks_beside_photos_are_skipped() {
    let names = [
        "images/a.jpg",
        "images/a.seg.png",
        "images/a.2.png",
        "images/b.png",
    ];
    let more = [
        "masks/a.png",
        "masks/b.png",
        "masks/c.png",
        "labels/x.jpg",
        "x.jpg",
    ];
    let folder = folder(&[&names[..], &more[..]].concat());
    let source = open(folder.path()).unwrap();
    let expected = [
        "images/a.2",
        "images/a",
        "images/b",
        "labels/x",
        "masks/c",
        "x",
    ];
    assert_eq!(keys(&source), expected);
    assert_eq!((source.skipped().fields, source.skipped().masks), (1, 2));
    // The folder of masks itself may be what is wanted, and a check counts everything.
    assert_eq!(open(&folder.path().join("masks")).unwrap().len(), 3);
    let all = Source::open_all(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(all.len(), 9);
}

#[test]
fn the_image_of_a_sample_is_read_and_its_other_fields_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tar");
    let members = [
        ("00000.png", png(1)),
        ("00000.seg.png", png(2)),
        ("00000.json", b"{}".to_vec()),
        ("a.b/c.png", png(3)),
        ("00001.0.png", png(4)),
        ("00001.png", png(5)),
        ("x.tif", png(6)),
    ];
    write_tar(&path, &members);
    let source = open(&path).unwrap();
    assert_eq!(keys(&source), ["00000", "a.b/c", "00001.0", "00001"]);
    assert_eq!(colors(&source), [1, 3, 4, 5]);
    assert_eq!(
        (source.skipped().fields, source.skipped().kinds["tif"]),
        (1, 1)
    );
}

#[test]
fn links_in_a_tar_and_several_tars_in_one_file_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let add = |tar: &mut tar::Builder<_>, kind, name: &str, to: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        match to {
            "" => tar.append_data(&mut header, name, bytes).unwrap(),
            to => tar.append_link(&mut header, name, to).unwrap(),
        }
    };
    add(
        &mut tar,
        tar::EntryType::Symlink,
        "x/early.png",
        "../x/0.png",
        b"",
    );
    add(&mut tar, tar::EntryType::Regular, "x/0.png", "", &png(7));
    add(&mut tar, tar::EntryType::Link, "x/hard.png", "x/0.png", b"");
    add(
        &mut tar,
        tar::EntryType::Symlink,
        "x/soft.png",
        "hard.png",
        b"",
    );
    add(
        &mut tar,
        tar::EntryType::Symlink,
        "x/gone.png",
        "/elsewhere.png",
        b"",
    );
    add(
        &mut tar,
        tar::EntryType::Symlink,
        "x/loop.png",
        "loop.png",
        b"",
    );
    add(&mut tar, tar::EntryType::Fifo, "x/pipe.png", "", b"");
    tar.into_inner().unwrap();
    let other = folder.path().join("m.tar");
    write_tar(&other, &[("y.png", png(8))]);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(fs::read(&other).unwrap());
    bytes.extend(b"words that are no tar");
    fs::write(&path, bytes).unwrap();
    let source = open(&path).unwrap();
    let expected = ["x/early", "x/0", "x/hard", "x/soft", "y"];
    assert_eq!(keys(&source), expected);
    assert_eq!(colors(&source), [7, 7, 7, 7, 8]);
    let skipped = source.skipped();
    assert_eq!((skipped.broken_links, skipped.special), (2, 1));
    let told = skipped.describe().join("\n");
    assert!(
        told.contains("21 bytes after its end are not a tar"),
        "{told}"
    );
}

#[test]
fn a_name_in_a_tar_is_bounded_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n.tar");
    let size = 40 << 30;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(size);
    header.set_cksum();
    let mut file = fs::File::create(&path).unwrap();
    io::Write::write_all(&mut file, header.as_bytes()).unwrap();
    // A file with holes takes no space; to read the name would take 40 GiB.
    file.set_len(512 + size + 1024).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("a name of 42949672960 bytes"), "{error}");
}

#[test]
fn lists_of_other_systems_are_read_and_repeats_counted() {
    let folder = folder(&["a/0.png", "a/1.png", "a/2.png"]);
    let list = folder.path().join("list.txt");
    let lines = "a\\0.png\r\na\\1.png\r\na/1.png\r\na\\2.png\r\n";
    let wide = "\u{feff}".to_owned() + lines;
    let wide: Vec<u8> = wide.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [format!("\u{feff}{lines}").into_bytes(), wide] {
        fs::write(&list, bytes).unwrap();
        let source = open(&list).unwrap();
        assert_eq!(keys(&source), ["a/0", "a/1", "a/2"]);
        assert_eq!(colors(&source), [0, 1, 2]);
        assert_eq!(source.skipped().repeated_lines, 1);
    }
    fs::write(&list, b"a/0.png\n\xe9.png\n").unwrap();
    let error = open(&list).unwrap_err().to_string();
    assert!(error.contains("line 2: expected text in UTF-8"), "{error}");
}

#[test]
fn several_arguments_and_patterns_are_one_source() {
    let folder = folder(&["b.png", "a.png", "more/a.png", "more/c.png", "x.txt"]);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let several = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| at(name)).collect();
        Source::open_several(&names, false)
    };
    let source = several(&["a.png", "b.png"]).unwrap();
    assert_eq!((keys(&source), source.shards().len()), (vec!["a", "b"], 1));
    let source = several(&["b.png", "more"]).unwrap();
    assert_eq!(keys(&source), ["b", "a", "c"]);
    let source = several(&["a.png", "more/a.png"]).unwrap();
    assert!(source.key(1).ends_with("more/a"), "{}", source.key(1));
    let source = Source::open(&at("more/*.png")).unwrap();
    assert_eq!(keys(&source), ["a", "c"]);
    let error = Source::open(&at("none/*.png")).unwrap_err().to_string();
    assert!(error.contains("no file matches the pattern"), "{error}");
}

#[test]
fn missing_and_empty_sources_are_errors() {
    let texts = folder(&["a.txt", "sub/b.txt", "c"]);
    let error = open(texts.path()).unwrap_err();
    assert!(matches!(error, SourceError::Empty { .. }), "{error}");
    assert!(error.to_string().contains("2 x .txt"), "{error}");

    let empty = tempfile::tempdir().unwrap();
    let error = open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("it is empty"), "{error}");

    let error = open(&empty.path().join("absent.tar")).unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");

    let error = open(&texts.path().join("a.txt")).unwrap_err();
    assert!(
        matches!(error, SourceError::ListedMissing { .. }),
        "{error}"
    );

    fs::write(empty.path().join("data.csv"), "a,b").unwrap();
    let error = open(&empty.path().join("data.csv"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a file .csv that is not an image"),
        "{error}"
    );

    fs::write(empty.path().join("p.tar.gz"), [0x1f, 0x8b]).unwrap();
    let error = open(&empty.path().join("p.tar.gz"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("hint: unpack it"), "{error}");

    fs::write(empty.path().join("p-0.tar"), "").unwrap();
    let error = open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("p-0.tar"), "{error}");
    for nothing in ["", " , "] {
        assert!(Source::open(nothing).is_err());
    }
}

#[test]
fn a_folder_of_tars_is_its_shards_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for (name, key) in [("b.tar", "two.jpg"), ("a.tar", "one.jpg")] {
        write_tar(&folder.path().join(name), &[(key, vec![1])]);
    }
    let source = open(folder.path()).unwrap();
    assert_eq!(source.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(source.shards().len(), 2);
}

#[test]
fn a_key_of_two_images_is_an_error() {
    let folder = folder(&["a.png", "a.jpg"]);
    let error = open(folder.path()).unwrap_err().to_string();
    for part in ["the key `a`", "a.png", "a.jpg"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn braces_expand() {
    let expand = |spec| expand_braces(spec).unwrap();
    assert_eq!(
        expand("p-{08..11}.tar"),
        ["p-08.tar", "p-09.tar", "p-10.tar", "p-11.tar"]
    );
    assert_eq!(expand("{9..11}"), ["9", "10", "11"]);
    assert_eq!(expand("{a,b}/{0..1}"), ["a/0", "a/1", "b/0", "b/1"]);
    assert_eq!(expand("plain"), ["plain"]);
    for wrong in [
        "{0..",
        "0..1}",
        "{{0..1}",
        "{2..1}",
        "{a..z}",
        "{0..99999999}",
        "{+1..2}",
    ] {
        assert!(expand_braces(wrong).is_err(), "{wrong}");
    }
    let many = "{0..999}".repeat(3);
    assert!(expand_braces(&many).is_err());
}

#[test]
fn a_folder_is_cut_into_shards_with_unique_names() {
    let files = |range: Range<usize>| range.map(|i| (format!("{i:05}"), PathBuf::from("x")));
    let source = Source::from_files("all", files(0..TINY_SHARD_SIZE + 3)).unwrap();
    let shards = source.shards();
    assert_eq!(shards[0].name, "all-00000");
    assert_eq!(shards[1].range, TINY_SHARD_SIZE..TINY_SHARD_SIZE + 3);
    let some = Source::from_files("all", files(0..TINY)).unwrap();
    assert_eq!(
        some.shards()[1].range,
        SMALL_SHARD_SIZE..2 * SMALL_SHARD_SIZE
    );
    let many = Source::from_files("all", files(0..SMALL)).unwrap();
    assert_eq!(many.shards()[1].range, SHARD_SIZE..2 * SHARD_SIZE);

    let a = folder(&["same/a.png"]);
    let b = folder(&["same/b.png"]);
    let (a, b) = (a.path().join("same"), b.path().join("same"));
    let source = Source::open(&format!("{},{}", a.display(), b.display())).unwrap();
    let names: Vec<String> = source.shards().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["same-00000", "same.2-00000"]);
}

proptest! {
    #[test]
    fn parts_are_a_partition(images in 1_usize..40_000, count in 1_usize..12) {
        let files = (0..images).map(|i| (i.to_string(), PathBuf::from("x")));
        let source = Source::from_files("s", files).unwrap();
        let mut found = Vec::new();
        for index in 0..count {
            let part = source.shard(index, count);
            for shard in part.shards() {
                let whole = source.shards().into_iter().find(|s| s.name == shard.name).unwrap();
                let keys = |s: &Source, r: Range<usize>| -> Vec<String> {
                    r.map(|i| s.key(i).to_owned()).collect()
                };
                prop_assert_eq!(keys(&part, shard.range), keys(&source, whole.range));
            }
            found.extend(part.keys().map(|k| k.parse::<usize>().unwrap()));
        }
        found.sort_unstable();
        prop_assert_eq!(found, (0..images).collect::<Vec<_>>());
        let parts = (0..count).map(|index| source.part(index, count));
        let (least, most) = (images / count, images.div_ceil(count));
        let mut found = Vec::new();
        for part in parts {
            prop_assert!((least..=most).contains(&part.len()));
            prop_assert_eq!(part.shards().iter().map(|s| s.range.len()).sum::<usize>(), part.len());
            found.extend(part.keys().map(|k| k.parse::<usize>().unwrap()));
        }
        prop_assert_eq!(found, (0..images).collect::<Vec<_>>());
    }

    #[test]
    fn damaged_tars_never_panic(at in 0_usize..2048, value: u8) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        write_tar(&path, &[("a.png", png(1)), ("b.png", png(2))]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = value;
        fs::write(&path, bytes).unwrap();
        if let Ok(source) = open(&path) {
            for i in 0..source.len() {
                let _ = source.read(i);
            }
        }
    }
}

#[test]
fn five_percent_may_be_unreadable() {
    let mut unreadable = UnreadableImages::default();
    assert_eq!(unreadable.check(), Ok(()));
    for i in 0..95 {
        unreadable.ok();
        if i < 5 {
            unreadable.fail(format!("k{i}"), "cut short");
        }
    }
    assert_eq!(unreadable.check(), Ok(()));
    unreadable.fail("k", "no");
    assert!(unreadable.check_early().is_ok());
    let error = unreadable.check().unwrap_err();
    assert_eq!((error.failed, error.seen), (6, 101));
    assert!(error.to_string().contains("`k0`: cut short"), "{error}");
}
