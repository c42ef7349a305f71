//! Labels that people corrected: a layer of the store, `_corrections.jsonl`.
//!
//! A JSON object a line, of which the last one of a key counts, so that the file is only ever
//! appended to and earlier answers stay in it:
//!
//! ```json
//! {"key":"party/0017","image_sha256":"90b1…","attributes":{"glasses":"yes","gender":null},"parts":[{"row":3,"column":2,"class":"head"}]}
//! ```
//!
//! Values and classes have the names of the vocabulary; `null` means that nobody can tell: such an
//! attribute or position teaches nothing. A line without `attributes` and `parts` takes back all
//! corrections of the image. The label files stay as the labeler wrote them, and so does the
//! calibration, which is made of their logits.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::error::LabelError;
use super::file_names::CORRECTIONS;
use super::meta::StoreMeta;
use crate::atomic::sync_folder;
use crate::vocabulary::{IGNORE, Vocabulary};

/// What a person says of one image, in the names of the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// The image's key in its source.
    pub key: String,
    /// [`image_digest`](super::image_digest) of the image that was looked at; empty where unknown.
    /// Corrections of another image than the labeled one are not used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_sha256: String,
    /// Value by attribute; none where nobody can tell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Option<String>>,
    /// Classes of single patch positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartCorrection>,
}

/// The class of one patch position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartCorrection {
    /// Row of the part map, from 0.
    pub row: usize,
    /// Column of the part map, from 0.
    pub column: usize,
    /// Name of the class; none where nobody can tell.
    pub class: Option<String>,
}

/// The corrected value of an attribute of one image, by indices of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorrectedAttribute {
    /// Index of the attribute.
    pub attribute: usize,
    /// Index of the value in the attribute; none where nobody can tell.
    pub value: Option<usize>,
}

/// How much of a store is corrected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CorrectionCounts {
    /// Images with a correction.
    pub images: usize,
    /// Attributes of images.
    pub attributes: usize,
    /// Patch positions.
    pub positions: usize,
    /// Keys whose corrections are not used: the store has no such image, or labels of another
    /// image of this key.
    pub unused: Vec<String>,
}

/// A [`Correction`] by indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CorrectedValues {
    pub attributes: Vec<CorrectedAttribute>,
    /// Index in the part map, and class.
    pub parts: Vec<(usize, u8)>,
}

impl Correction {
    /// Whether it corrects nothing.
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.parts.is_empty()
    }

    /// Adds newer answers; those on other attributes and positions stay.
    pub fn merge(&mut self, newer: Self) {
        self.image_sha256 = newer.image_sha256;
        self.attributes.extend(newer.attributes);
        for part in newer.parts {
            (self.parts).retain(|old| (old.row, old.column) != (part.row, part.column));
            self.parts.push(part);
        }
    }

    /// The indices of its names, or what the store does not have.
    pub(super) fn resolve(&self, meta: &StoreMeta) -> Result<CorrectedValues, String> {
        let attributes = self.attributes.iter();
        let attributes = attributes
            .map(|(name, value)| attribute(&meta.vocabulary, name, value.as_deref()))
            .collect::<Result<_, _>>()?;
        let parts = self.parts.iter();
        let parts = parts
            .map(|part| position(meta, part))
            .collect::<Result<_, _>>()?;
        Ok(CorrectedValues { attributes, parts })
    }
}

fn attribute(
    vocabulary: &Vocabulary,
    name: &str,
    value: Option<&str>,
) -> Result<CorrectedAttribute, String> {
    let names = || vocabulary.attributes.iter().map(|a| a.name.as_str());
    let attribute = names().position(|other| other == name);
    let attribute =
        attribute.ok_or_else(|| expected("attributes", "an attribute", names(), name))?;
    let values = || vocabulary.attributes[attribute].values.iter();
    let names = || values().map(|value| value.name.as_str());
    let value = value
        .map(|value| {
            let index = names().position(|other| other == value);
            index.ok_or_else(|| expected(name, "a value", names(), value))
        })
        .transpose()?;
    Ok(CorrectedAttribute { attribute, value })
}

fn position(meta: &StoreMeta, part: &PartCorrection) -> Result<(usize, u8), String> {
    let (row, column) = (part.row, part.column);
    if row >= meta.rows || column >= meta.columns {
        return Err(format!(
            "parts: expected a position in {} rows x {} columns, counted from 0, found row {row}, \
             column {column}",
            meta.rows, meta.columns
        ));
    }
    let names = || meta.vocabulary.parts.iter().map(|part| part.name.as_str());
    let class = match &part.class {
        None => IGNORE,
        Some(class) => {
            let index = names().position(|other| other == class);
            let index = index.ok_or_else(|| expected("parts", "a class", names(), class))?;
            // A vocabulary has fewer classes than the ignore index.
            u8::try_from(index).unwrap_or(IGNORE)
        }
    };
    Ok((row * meta.columns + column, class))
}

fn expected<'a>(
    what: &str,
    kind: &str,
    names: impl Iterator<Item = &'a str>,
    found: &str,
) -> String {
    let names: Vec<&str> = names.collect();
    format!(
        "{what}: expected {kind} of the vocabulary ({}), found {found:?}",
        names.join(", ")
    )
}

/// Where the corrections of a store lie.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(CORRECTIONS)
}

/// The corrections of a folder, the last one of each key, by key; of each its line.
pub(super) fn read(folder: &Path) -> Result<HashMap<String, (usize, Correction)>, LabelError> {
    let path = path(folder);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(LabelError::corrections(&path, "expected UTF-8".into()));
        }
        text => text?,
    };
    let mut corrections = HashMap::new();
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Correction>(line) {
            Ok(correction) => {
                corrections.insert(correction.key.clone(), (number, correction));
            }
            // What is left of a line whose writer was killed.
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => {
                return Err(LabelError::corrections(
                    &path,
                    format!("line {number}: {error}"),
                ));
            }
        }
    }
    Ok(corrections)
}

/// Appends the sum of the newest corrections of an image in the folder and `newer`, without the
/// former where `clear` is set, and waits for the disk. `check` resolves the sum before it is
/// written. Processes take turns: each adds to what the others have written.
pub(super) fn add<T>(
    folder: &Path,
    newer: Correction,
    clear: bool,
    check: impl FnOnce(&Correction) -> Result<T, String>,
) -> Result<(Correction, T), LabelError> {
    let path = path(folder);
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    file.file().lock()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let whole = whole_lines(&mut text);
    let mut sum = Correction {
        key: newer.key.clone(),
        ..Correction::default()
    };
    // Corrections of another image of this key are not used.
    let same = |earlier: &Correction| {
        let [labeled, seen] = [&newer.image_sha256, &earlier.image_sha256];
        labeled.is_empty() || seen.is_empty() || labeled == seen
    };
    if !clear && let Some(earlier) = newest(&text, &newer.key).filter(same) {
        sum.merge(earlier);
    }
    sum.merge(newer);
    let checked = check(&sum)
        .map_err(|problem| LabelError::corrections(&path, format!("{:?}: {problem}", sum.key)))?;
    let is_new = text.is_empty();
    let mut line = text.split_off(whole);
    serde_json::to_writer(&mut line, &sum).map_err(std::io::Error::from)?;
    line.push(b'\n');
    file.set_len(whole as u64)?;
    file.seek(SeekFrom::Start(whole as u64))?;
    file.write_all(&line)?;
    file.sync_data()?;
    if is_new {
        sync_folder(&path);
    }
    Ok((sum, checked))
}

/// Cuts `text` after its last line, and gives the length of what stays in the file. A last line
/// without an end is kept if it is a correction, as some editors leave it: its end is in `text`
/// behind that length. Else it is what is left of a killed writer.
fn whole_lines(text: &mut Vec<u8>) -> usize {
    let ends = text.iter().rposition(|&byte| byte == b'\n');
    let begin = ends.map_or(0, |at| at + 1);
    let rest = &text[begin..];
    if !rest.is_empty() && serde_json::from_slice::<Correction>(rest).is_ok() {
        let whole = text.len();
        text.push(b'\n');
        return whole;
    }
    text.truncate(begin);
    begin
}

/// The last correction of a key in lines.
fn newest(text: &[u8], key: &str) -> Option<Correction> {
    let lines = text.rsplit(|&byte| byte == b'\n');
    let read = |line| serde_json::from_slice::<Correction>(line).ok();
    lines.filter_map(read).find(|line| line.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::{
        AttributeConfig, AttributeRule, Calibration, LabelValues, Labels, Store, write_shard,
    };

    fn meta() -> StoreMeta {
        let vocabulary = "templates = [\"{}\"]\npart_templates = [\"{}\"]\n\
            [[parts]]\nname = \"background\"\nsynonyms = [\"a wall\"]\n\
            [[parts]]\nname = \"head\"\nsynonyms = [\"a head\"]\n\
            [[attributes]]\nname = \"sleeves\"\nkind = \"group\"\n\
            values = [{ name = \"long\", prompts = [\"long sleeves\"] }, { name = \"short\", prompts = [\"short sleeves\"] }]\n\
            [[attributes]]\nname = \"glasses\"\nkind = \"pair\"\n\
            values = [{ name = \"no\", prompts = [\"no glasses\"] }, { name = \"yes\", prompts = [\"glasses\"] }]\n";
        StoreMeta {
            vocabulary: Vocabulary::parse(vocabulary, "test").unwrap(),
            model: "test".into(),
            model_sha256: String::new(),
            rows: 2,
            columns: 2,
            method: "clip".into(),
            dense: String::new(),
            confidence: 0.5,
        }
    }

    /// Four images; `sleeves` varies among them, and `glasses` hardly.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let labels: Vec<Labels> = (0..4)
            .map(|i| Labels {
                key: format!("{i}"),
                width: 8,
                height: 8,
                image_sha256: format!("{i:016}"),
                values: LabelValues {
                    parts: vec![0, 1, 1, IGNORE],
                    part_confidence: vec![200, 150, 140, 10],
                    attributes: vec![i as f32, 0.0, 0.0, if i == 0 { 0.001 } else { 0.0 }],
                },
            })
            .collect();
        write_shard(folder.path(), "people", &meta(), &labels).unwrap();
        folder
    }

    /// As another program appends it.
    fn append(folder: &Path, correction: &Correction) {
        let line = serde_json::to_string(correction).unwrap() + "\n";
        let mut options = fs::OpenOptions::new();
        let mut file = (options.append(true).create(true).open(path(folder))).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    fn glasses(value: Option<&str>) -> Correction {
        Correction {
            key: "1".into(),
            image_sha256: "0000000000000001".into(),
            attributes: [("glasses".to_owned(), value.map(str::to_owned))].into(),
            parts: vec![],
        }
    }

    fn part(row: usize, column: usize, class: Option<&str>) -> PartCorrection {
        PartCorrection {
            row,
            column,
            class: class.map(str::to_owned),
        }
    }

    #[test]
    fn a_correction_is_the_target_now_and_after_it_is_read_again() {
        let folder = folder();
        let mut store = Store::open(folder.path()).unwrap();
        let correction = Correction {
            parts: vec![
                part(0, 1, Some("background")),
                part(1, 0, None),
                part(1, 1, Some("head")),
            ],
            ..glasses(Some("yes"))
        };
        store
            .add_correction(folder.path(), correction.clone(), false)
            .unwrap();
        for store in [&store, &Store::open(folder.path()).unwrap()] {
            let row = store.get("1").unwrap();
            assert_eq!(row.values.parts, [0, 0, IGNORE, 1]);
            assert_eq!(row.values.part_confidence, [200, 255, 255, 255]);
            assert_eq!(store.correction("1"), Some(&correction));
            assert_eq!(store.correction("2"), None);
            let calibration = Calibration::of_store(store).unwrap();
            assert_eq!(calibration, Calibration::of_folder(folder.path()).unwrap());
            let rule = AttributeRule::new(&calibration, &AttributeConfig::default());
            // Glasses vary too little to be learned from the labeler, not from people.
            assert_eq!(rule.weight[1], 0.0);
            let targets = rule.targets(&row, &store.meta.vocabulary);
            assert_eq!(targets.target[2..], [0.0, 1.0]);
            assert_eq!((targets.mask[1], targets.weight[1]), (true, 1.0));
            let other = rule.targets(&store.get("2").unwrap(), &store.meta.vocabulary);
            assert_eq!((other.mask[1], other.weight[1]), (false, 0.0));
            let counts = CorrectionCounts {
                images: 1,
                attributes: 1,
                positions: 3,
                unused: vec![],
            };
            assert_eq!(store.corrections(), counts);
        }
    }

    #[test]
    fn nobody_can_tell_masks_the_attribute() {
        let folder = folder();
        let mut store = Store::open(folder.path()).unwrap();
        let correction = Correction {
            attributes: [("sleeves".to_owned(), None)].into(),
            ..glasses(None)
        };
        store
            .add_correction(folder.path(), correction, false)
            .unwrap();
        let calibration = Calibration::of_store(&store).unwrap();
        let config = AttributeConfig {
            temperature: Some(0.01),
            ..AttributeConfig::default()
        };
        let rule = AttributeRule::new(&calibration, &config);
        let [corrected, other] =
            ["1", "0"].map(|key| rule.targets(&store.get(key).unwrap(), &store.meta.vocabulary));
        assert_eq!((corrected.mask[0], corrected.weight[0]), (false, 0.0));
        assert!(other.mask[0] && other.weight[0] > 0.0);
    }

    #[test]
    fn the_last_correction_of_an_image_counts_and_an_empty_one_takes_all_back() {
        let folder = folder();
        let before = Store::open(folder.path()).unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let parts = |parts: Vec<PartCorrection>| Correction {
            key: "1".into(),
            parts,
            ..Correction::default()
        };
        let twice = vec![part(0, 1, Some("head")), part(0, 1, None)];
        for correction in [twice, vec![part(0, 0, Some("head"))]] {
            store
                .add_correction(folder.path(), parts(correction), true)
                .unwrap();
            assert_eq!(store.corrections().positions, 1);
        }
        for store in [&store, &Store::open(folder.path()).unwrap()] {
            assert_eq!(store.get("1").unwrap().values.parts, [1, 1, 1, IGNORE]);
        }
        store
            .add_correction(folder.path(), parts(vec![]), true)
            .unwrap();
        for store in [&store, &Store::open(folder.path()).unwrap()] {
            assert_eq!(store.get("1"), before.get("1"));
            assert_eq!(store.corrections(), CorrectionCounts::default());
        }
    }

    #[test]
    fn newer_answers_replace_those_on_the_same_attribute_or_position() {
        let mut correction = Correction {
            parts: vec![part(0, 1, Some("background")), part(1, 1, None)],
            ..glasses(Some("yes"))
        };
        correction.merge(Correction {
            parts: vec![part(0, 1, Some("head"))],
            attributes: [("sleeves".to_owned(), None)].into(),
            ..glasses(None)
        });
        assert_eq!(
            correction.parts,
            [part(1, 1, None), part(0, 1, Some("head"))]
        );
        assert_eq!(correction.attributes.len(), 2);
        correction.merge(glasses(Some("no")));
        assert_eq!(correction.attributes["glasses"].as_deref(), Some("no"));
    }

    #[test]
    fn corrections_of_another_image_are_not_used_and_counted() {
        let folder = folder();
        let mut store = Store::open(folder.path()).unwrap();
        let stale = Correction {
            image_sha256: "ffffffffffffffff".into(),
            ..glasses(Some("yes"))
        };
        let refused = store.add_correction(folder.path(), stale.clone(), false);
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("another image"), "{error}");
        append(folder.path(), &stale);
        let gone = Correction {
            key: "gone".into(),
            ..glasses(Some("yes"))
        };
        append(folder.path(), &gone);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.corrections().unused, ["1", "gone"]);
        assert_eq!(store.corrections().images, 0);
    }

    #[test]
    fn a_line_whose_writer_was_killed_is_dropped_and_one_of_an_editor_is_kept() {
        let folder = folder();
        let file = path(folder.path());
        let mut store = Store::open(folder.path()).unwrap();
        let mut correct = |value: &str| {
            store
                .add_correction(folder.path(), glasses(Some(value)), false)
                .unwrap()
        };
        correct("yes");
        let whole = fs::read_to_string(&file).unwrap();
        for cut in 1..whole.len() - 1 {
            fs::write(&file, format!("{whole}{}", &whole[..cut])).unwrap();
            assert_eq!(read(folder.path()).unwrap().len(), 1);
            correct("no");
            let after = fs::read_to_string(&file).unwrap();
            assert_eq!(after.lines().count(), 2, "{after}");
        }
        fs::write(&file, format!("{whole}{}", whole.trim_end())).unwrap();
        correct("no");
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 3);
    }

    #[test]
    fn corrections_of_two_processes_are_both_kept() {
        let folder = folder();
        let mut stores = [(); 2].map(|()| Store::open(folder.path()).unwrap());
        let parts = Correction {
            key: "1".into(),
            parts: vec![part(0, 0, Some("head"))],
            ..Correction::default()
        };
        let mut add = |store: usize, correction: Correction| {
            stores[store]
                .add_correction(folder.path(), correction, false)
                .unwrap()
        };
        add(0, glasses(Some("yes")));
        add(1, parts);
        let sum = add(0, glasses(Some("no")));
        assert_eq!(sum.attributes["glasses"].as_deref(), Some("no"));
        assert_eq!(sum.parts, [part(0, 0, Some("head"))]);
        let read = Store::open(folder.path()).unwrap();
        assert_eq!(read.correction("1"), Some(&sum));
        assert_eq!(stores[0].get("1"), read.get("1"));
    }

    #[test]
    fn what_the_vocabulary_does_not_have_is_named() {
        let folder = folder();
        let file = path(folder.path());
        for (line, words) in [
            (
                "{\"key\":\"1\",\"attributes\":{\"hat\":\"yes\"}}\n",
                "line 1: attributes: expected an attribute of the vocabulary (sleeves, glasses), found \"hat\"",
            ),
            (
                "{\"key\":\"1\",\"attributes\":{\"glasses\":\"maybe\"}}\n",
                "line 1: glasses: expected a value of the vocabulary (no, yes), found \"maybe\"",
            ),
            (
                "\n{\"key\":\"1\",\"parts\":[{\"row\":0,\"column\":0,\"class\":\"tail\"}]}\n",
                "line 2: parts: expected a class of the vocabulary (background, head), found \"tail\"",
            ),
            (
                "{\"key\":\"1\",\"parts\":[{\"row\":2,\"column\":0,\"class\":null}]}\n",
                "line 1: parts: expected a position in 2 rows x 2 columns, counted from 0, found row 2, column 0",
            ),
            (
                "{\"key\":\"1\",\"glasses\":\"yes\"}\n",
                "line 1: unknown field `glasses`",
            ),
            ("[]\n", "line 1: "),
        ] {
            fs::write(&file, line).unwrap();
            let error = Store::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
