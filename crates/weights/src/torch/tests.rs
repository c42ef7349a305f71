//! Files that torch wrote, against what torch reads in them; and files that are broken or hostile.

use std::io::Cursor;

use fs_err as fs;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::checkpoint;
use crate::state::StateDict;
use crate::testing::golden;

fn open(bytes: Vec<u8>) -> Result<TorchFile> {
    TorchFile::open(Box::new(Cursor::new(bytes)))
}

fn file(name: &str) -> Vec<u8> {
    fs::read(golden("torch").join(name)).unwrap()
}

/// Every tensor of a file.
fn read_all(bytes: Vec<u8>) -> Result<StateDict> {
    let mut file = open(bytes)?;
    let mut state = StateDict::new();
    for name in file.shapes().into_keys() {
        let array = file.read(&name)?.ok_or("listed and not there")?;
        assert_eq!(array.shape.iter().product::<usize>(), array.data.len());
        state.insert(name, array);
    }
    Ok(state)
}

#[test]
fn tensors_are_those_that_torch_reads() {
    let (expected, _) = checkpoint::read(&golden("torch_files.safetensors")).unwrap();
    for name in ["zip.pth", "legacy.pth", "protocol4.pth"] {
        let found = read_all(file(name)).unwrap();
        let names: Vec<_> = found.keys().collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, array) in &found {
            assert_eq!(array, &expected[tensor], "{name}: {tensor}");
        }
    }
}

#[test]
fn a_tensor_alone_a_repeating_view_and_a_whole_object() {
    let alone = read_all(file("tensor.pth")).unwrap();
    assert_eq!(alone[""].shape, [2, 3]);
    let mut expanded = open(file("expanded.pth")).unwrap();
    assert_eq!(expanded.shapes()["expanded"], [1000]);
    assert_eq!(expanded.read("w").unwrap().unwrap().data, [1.0, 1.0]);
    let message = expanded.read("expanded").unwrap_err();
    assert!(message.contains("repeats its storage"), "{message}");
    assert!(expanded.read("nothing").unwrap().is_none());
    // Objects are not built: of a pickled module there is nothing to read.
    assert!(open(file("object.pth")).unwrap().shapes().is_empty());
}

#[test]
fn every_cut_of_a_file_is_an_error() {
    for name in ["zip.pth", "legacy.pth", "protocol4.pth"] {
        let bytes = file(name);
        for length in 0..bytes.len() {
            assert!(
                read_all(bytes[..length].to_vec()).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut pick = |below: usize| (rng.next_u64() % below as u64) as usize;
    let mut refused = 0;
    for name in [
        "zip.pth",
        "legacy.pth",
        "protocol4.pth",
        "expanded.pth",
        "tensor.pth",
    ] {
        let original = file(name);
        for _ in 0..4000 {
            let mut bytes = original.clone();
            for _ in 0..=pick(4) {
                let (place, kind) = (pick(bytes.len()), pick(4));
                match kind {
                    0 => bytes[place] = pick(256) as u8,
                    1 => bytes[place] ^= 1 << pick(8),
                    2 => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][pick(5)],
                    // A piece of the file where another was: opcodes among opcodes.
                    _ => {
                        let from = pick(bytes.len());
                        let length = pick(16).min(bytes.len() - from.max(place));
                        bytes.copy_within(from..from + length, place);
                    }
                }
            }
            refused += usize::from(read_all(bytes).is_err());
        }
    }
    // Most changes fall into what matters.
    assert!(refused > 5000, "{refused} of 20000");
}

/// A ZIP archive as torch writes them: stored, without checksums.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let place = out.len() as u32;
        let sizes = [content.len() as u32; 2].map(u32::to_le_bytes).concat();
        let name_length = (name.len() as u16).to_le_bytes();
        out.extend(b"PK\x03\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
        out.extend(&sizes);
        out.extend(name_length);
        out.extend([0, 0]);
        out.extend(name.as_bytes());
        out.extend(*content);
        directory.extend(b"PK\x01\x02\x00\x00");
        directory.extend([0; 14]);
        directory.extend(&sizes);
        directory.extend(name_length);
        directory.extend([0; 12]);
        directory.extend(place.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size) = (out.len() as u32, directory.len() as u32);
    let count = (entries.len() as u16).to_le_bytes();
    out.extend(&directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend(count);
    out.extend(count);
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A file whose values are this pickle, with a storage `0` of eight numbers.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), ("a/data/0", &[0; 32])])
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn number(pickle: &mut Vec<u8>, number: i64) {
    pickle.extend([0x8a, 8]);
    pickle.extend(number.to_le_bytes());
}

/// `{name: tensor}` of a shape, strides and an offset in a storage that claims a length.
fn tensor(key: &str, length: i64, offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    let mut pickle = vec![0x80, 2, b'}'];
    text(&mut pickle, "w");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
    pickle.push(b'(');
    text(&mut pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    text(&mut pickle, key);
    text(&mut pickle, "cpu");
    number(&mut pickle, length);
    pickle.extend(b"tQ");
    number(&mut pickle, offset);
    for sizes in [shape, stride] {
        pickle.push(b'(');
        for size in sizes {
            number(&mut pickle, *size);
        }
        pickle.push(b't');
    }
    pickle.extend([0x89, b'}', b't', b'R', b's', b'.']);
    pickle
}

#[test]
fn claims_beyond_the_file_are_refused_before_allocating() {
    let fine = read_all(with_pickle(&tensor("0", 8, 0, &[2, 4], &[4, 1]))).unwrap();
    assert_eq!(fine["w"].data, [0.0; 8]);
    let huge = i64::MAX;
    for (key, length, offset, shape, stride) in [
        ("0", 8, 0, vec![huge, 4], vec![1, 1]),
        ("0", 8, 0, vec![huge, huge], vec![0, 0]),
        ("0", huge, 0, vec![huge], vec![1]),
        ("0", huge, huge - 1, vec![1], vec![1]),
        ("0", 8, 8, vec![1], vec![1]),
        ("0", 8, 0, vec![2], vec![huge]),
        ("0", 8, -1, vec![1], vec![1]),
        ("0", 8, 0, vec![-1], vec![1]),
        ("0", 9, 0, vec![9], vec![1]),
        ("1", 8, 0, vec![8], vec![1]),
        ("0", 8, 0, vec![2, 2], vec![1]),
        ("0", 8, 0, vec![1; 40], vec![1; 40]),
        ("0", 8, 0, vec![0, huge], vec![1, 1]),
        // Within its storage, but more numbers than it has.
        ("0", 8, 0, vec![1 << 40], vec![0]),
        ("0", 8, 0, vec![4, 4], vec![1, 1]),
    ] {
        let result = read_all(with_pickle(&tensor(key, length, offset, &shape, &stride)));
        assert!(
            result.is_err(),
            "{key} {length} {offset} {shape:?} {stride:?}: {result:?}"
        );
    }
}

#[test]
fn tensors_that_overlap_may_not_outgrow_the_file() {
    // Three views of one storage are fine, as tied weights are; thousands of them are not.
    for (views, fits) in [(3, true), (20_000, false)] {
        let one = tensor("0", 8, 0, &[8], &[1]);
        // Without the dictionary around it, the name and the end.
        let rebuilt = &one[9..one.len() - 2];
        let mut pickle = vec![0x80, 2, b'('];
        pickle.extend(rebuilt);
        pickle.extend([b'q', 0]);
        for _ in 1..views {
            pickle.extend([b'h', 0]);
        }
        pickle.extend(b"l.");
        let result = read_all(with_pickle(&pickle));
        assert_eq!(result.is_ok(), fits, "{views}");
        if let Err(problem) = result {
            assert!(problem.contains("overlap"), "{problem}");
        }
    }
}

#[test]
fn hostile_pickles_are_errors() {
    let mut pickles: Vec<(&str, Vec<u8>)> = Vec::new();
    // A dictionary that holds itself.
    let mut circle = vec![0x80, 2, b'}', b'q', 0];
    text(&mut circle, "self");
    circle.extend(b"h\x00s.");
    pickles.push(("a circle", circle));
    // Each list holds the one before twice: 2^30 paths in a hundred bytes.
    let mut doubling = vec![0x80, 2, b']', b'q', 0];
    for _ in 0..30 {
        doubling.extend(b"0(h\x00h\x00lq\x00");
    }
    doubling.push(b'.');
    pickles.push(("doubling", doubling));
    pickles.push((
        "deep",
        [vec![b'('; 4000], vec![b'l'; 4000], vec![b'.']].concat(),
    ));
    pickles.push((
        "deep lists",
        [vec![b']'; 1], vec![0x85; 100_000], vec![b'.']].concat(),
    ));
    pickles.push(("many values", [vec![b'N'; 5 << 20], vec![b'.']].concat()));
    pickles.push(("many references", {
        let mut pickle = b"Nq\x00".to_vec();
        pickle.extend(b"h\x00".repeat(17 << 20));
        pickle.push(b'.');
        pickle
    }));
    pickles.push((
        "a long text",
        [b"\x8d".as_slice(), &u64::MAX.to_le_bytes(), b"x."].concat(),
    ));
    pickles.push((
        "long bytes",
        [b"B".as_slice(), &u32::MAX.to_le_bytes(), b"x."].concat(),
    ));
    pickles.push(("no value", b".".to_vec()));
    pickles.push(("no mark", b"Nt.".to_vec()));
    pickles.push(("mark on top", b"(0(.".to_vec()));
    pickles.push(("no memo", b"h\x05.".to_vec()));
    pickles.push(("half a pair", b"(Nd.".to_vec()));
    pickles.push(("no end", b"N".to_vec()));
    pickles.push(("extension", b"\x82\x01.".to_vec()));
    pickles.push(("protocol", b"\x80\x09N.".to_vec()));
    pickles.push(("storage of nothing", b"NQ.".to_vec()));
    pickles.push((
        "tensor of nothing",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.".to_vec(),
    ));
    for (name, pickle) in pickles {
        let result = read_all(with_pickle(&pickle));
        assert!(result.is_err(), "{name}");
    }
    // What would run a command in Python is a value without meaning here.
    let command = b"cposix\nsystem\n(S'touch /tmp/never'\ntR.";
    assert!(read_all(with_pickle(command)).unwrap().is_empty());
    assert!(!std::path::Path::new("/tmp/never").exists());
}

/// One long key around one tensor that a list names many times: each name used to be a copy, 33 GB
/// from 648 kB.
#[test]
fn long_names_that_repeat_are_refused() {
    let mut pickle = tensor("0", 8, 0, &[8], &[1]);
    // The tensor into the memo before it becomes the value of `w`.
    assert_eq!(pickle.split_off(pickle.len() - 2), b"s.");
    pickle.extend(b"q\x00s");
    text(&mut pickle, &"k".repeat(4096));
    pickle.push(b'(');
    pickle.extend(b"h\x00".repeat(1 << 15));
    pickle.extend(b"ls.");
    let problem = read_all(with_pickle(&pickle)).unwrap_err();
    assert!(
        problem.contains("names of tensors of more than 64 MiB"),
        "{problem}"
    );
    let long = tensor(&"0".repeat(257), 8, 0, &[8], &[1]);
    let problem = read_all(with_pickle(&long)).unwrap_err();
    assert!(problem.contains("storage that is none"), "{problem}");
}

/// The same archive with its sizes and places in the long form, as files of 4 GB and more have
/// them.
fn long_form(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.len() - 22;
    let u32_of = |place: usize| u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap());
    let (size, start) = (u32_of(end + 12) as usize, u32_of(end + 16) as usize);
    let mut out = bytes[..start].to_vec();
    let (mut place, mut count) = (start, 0u64);
    while place < start + size {
        let name = usize::from(u16::from_le_bytes([bytes[place + 28], bytes[place + 29]]));
        let mut entry = bytes[place..place + 46 + name].to_vec();
        let long = [place + 24, place + 20, place + 42].map(|field| u64::from(u32_of(field)));
        for field in [20, 24, 42] {
            entry[field..field + 4].fill(0xff);
        }
        entry[30] = 28;
        entry.extend([1, 0, 24, 0]);
        entry.extend(long.map(u64::to_le_bytes).concat());
        out.extend(entry);
        place += 46 + name;
        count += 1;
    }
    let record = out.len() as u64;
    out.extend(b"PK\x06\x06");
    out.extend([0; 20]);
    for value in [count, count, record - start as u64, start as u64] {
        out.extend(value.to_le_bytes());
    }
    out.extend(b"PK\x06\x07\x00\x00\x00\x00");
    out.extend(record.to_le_bytes());
    out.extend([1, 0, 0, 0]);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([0xff; 12]);
    out.extend([0, 0]);
    out
}

#[test]
fn archives_in_the_long_form_are_the_same() {
    let short = with_pickle(&tensor("0", 8, 2, &[3, 2], &[2, 1]));
    let long = long_form(&short);
    assert!(long.len() > short.len());
    assert_eq!(read_all(long.clone()).unwrap(), read_all(short).unwrap());
    for length in 0..long.len() {
        assert!(
            read_all(long[..length].to_vec()).is_err(),
            "cut to {length}"
        );
    }
}

#[test]
fn hostile_archives_are_errors() {
    let pickle = tensor("0", 8, 0, &[8], &[1]);
    let good = with_pickle(&pickle);
    assert!(read_all(good.clone()).is_ok());
    let refused = |bytes: Vec<u8>, words: &str| {
        let message = read_all(bytes).unwrap_err();
        assert!(message.contains(words), "expected `{words}` in: {message}");
    };
    refused(zip(&[("a/other", b"x")]), "data.pkl");
    refused(zip(&[("a/data.pkl", &pickle)]), "not in the file");
    refused(
        zip(&[
            ("a/data.pkl", &pickle),
            ("a/constants.pkl", b"N."),
            ("a/data/0", &[0; 32]),
        ]),
        "TorchScript",
    );
    refused(
        zip(&[
            ("a/byteorder", b"big"),
            ("a/data.pkl", &pickle),
            ("a/data/0", &[0; 32]),
        ]),
        "big-endian",
    );
    refused(
        zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 31])]),
        "31",
    );
    // The directory's fields: method, sizes and place of an entry, its own size and place.
    let end = good.len() - 22;
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    let changed = |place: usize, value: u32, words: &str| {
        let mut bytes = good.clone();
        bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
        refused(bytes, words);
    };
    changed(directory + 10, 8, "compressed");
    changed(directory + 24, u32::MAX - 1, "compressed");
    changed(directory + 42, u32::MAX - 1, "outside");
    changed(end + 12, u32::MAX, "directory");
    changed(end + 16, u32::MAX, "directory");
    refused(b"PK\x03\x04".to_vec(), "breaks off");
    refused(b"not a file of torch".to_vec(), "neither");
    // A checksum that does not fit.
    let mut bytes = file("tensor.pth");
    let data = bytes.windows(6).position(|w| w == b"data/0").unwrap();
    let end = bytes.windows(4).skip(data).position(|w| w == b"PK\x07\x08");
    bytes[data + end.unwrap() - 1] ^= 1;
    refused(bytes, "checksum");
}
