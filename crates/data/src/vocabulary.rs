//! The vocabulary: part classes and attributes, with the texts that describe them to CLIP.
//!
//! A vocabulary is a TOML file that users edit; [`DEFAULT_TOML`] is the default, with
//! every key explained. Its layout:
//!
//! ```toml
//! templates = ["{}", "a photo of {}"]        # filled with the prompts of attributes
//! part_templates = ["{}", "a close-up of {}"] # filled with the synonyms of parts
//!
//! [[parts]]                                   # class 0 is the background
//! name = "background"
//! synonyms = ["the background", "a street"]
//!
//! [[parts]]
//! name = "head"
//! synonyms = ["a head", "hair"]
//!
//! [[attributes]]
//! name = "hair_length"
//! kind = "group"                              # exactly one value is true
//! values = [
//!     { name = "short", prompts = ["a person with short hair"] },
//!     { name = "long", prompts = ["a person with long hair"] },
//! ]
//!
//! [[attributes]]
//! name = "glasses"
//! kind = "pair"                               # true or false: the values are no and yes, in this order
//! values = [
//!     { name = "no", prompts = ["a person without glasses"] },
//!     { name = "yes", prompts = ["a person wearing glasses"] },
//! ]
//! ```
//!
//! The classes and values of the default follow from the method; their wordings are our choice.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::missing::{MissingPath, require};

/// The default vocabulary, as TOML.
pub const DEFAULT_TOML: &str = include_str!("vocabulary.toml");

/// The ignore index of part maps: never a class, ignored by losses and metrics.
pub const IGNORE: u8 = 255;

/// Where a template takes its words.
const PLACE: &str = "{}";

/// Most part classes a vocabulary may have: a label is one byte and 255 is [`IGNORE`].
const MOST_PARTS: usize = IGNORE as usize;

/// Most values a vocabulary may have over all attributes. Far above any sensible vocabulary; it
/// bounds what a row of the label store can claim to hold.
const MOST_VALUES: usize = 4096;

/// The part classes and attributes of pseudo-labels.
///
/// Build one with [`Vocabulary::parse`], [`Vocabulary::read`], [`Vocabulary::standard`] or
/// [`Vocabulary::kmeans`]; code that changes the fields calls [`Vocabulary::check`] after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// Templates for the prompts of attributes; `{}` is replaced by the prompt.
    pub templates: Vec<String>,
    /// Templates for the synonyms of parts; `{}` is replaced by the synonym.
    pub part_templates: Vec<String>,
    /// Part classes; the position is the class number and 0 is the background.
    pub parts: Vec<PartClass>,
    /// Attributes; the logits of their values are stored one after the other in this order.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
}

/// A part class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartClass {
    /// Its name in results.
    pub name: String,
    /// Words for it; the best one counts.
    pub synonyms: Vec<String>,
}

/// An attribute of a person with its possible values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    /// Its name in results.
    pub name: String,
    /// How its values relate.
    pub kind: AttributeKind,
    /// Its values; `[no, yes]` in a pair.
    pub values: Vec<AttributeValue>,
}

/// How the values of an attribute relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributeKind {
    /// Exactly one of two or more values is true: softmax, cross-entropy.
    Group,
    /// True or false, with the values no and yes in this order: sigmoid of the difference,
    /// binary cross-entropy.
    Pair,
}

/// One possible value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeValue {
    /// Its name in results.
    pub name: String,
    /// Phrases that describe a person with this value; their features are averaged.
    pub prompts: Vec<String>,
}

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// There is no such file.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// The file cannot be read; the source names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not TOML, or TOML with other keys than a vocabulary has; the source says at which line.
    #[error("{origin}: not a vocabulary: {source}")]
    Toml {
        /// The file, or a description of the text.
        origin: String,
        /// The line, the column and what is wrong there.
        source: Box<toml::de::Error>,
    },
    /// Valid keys with invalid values.
    #[error("{origin}: {place}: {problem}")]
    Invalid {
        /// The file, or a description of the text.
        origin: String,
        /// The path of the value, such as `attributes[3] "bag".values[0]`.
        place: String,
        /// What is expected and what was found.
        problem: String,
    },
}

/// A place in the vocabulary and what is wrong with it.
struct VocabularyFault {
    place: String,
    problem: String,
}

fn fault(place: impl Into<String>, problem: impl Into<String>) -> Result<(), VocabularyFault> {
    Err(VocabularyFault {
        place: place.into(),
        problem: problem.into(),
    })
}

impl Vocabulary {
    /// The default vocabulary: 8 part classes and 14 attributes.
    ///
    /// # Errors
    ///
    /// None in a build whose tests pass: the text is part of the program.
    pub fn standard() -> Result<Self, VocabularyError> {
        Self::parse(DEFAULT_TOML, "the default vocabulary")
    }

    /// What two-means and three-means find without CLIP: background, head, upper body, lower
    /// body, in the order of SOLIDER's part classes, and no attributes.
    pub fn kmeans() -> Self {
        let part = |name: &str| PartClass {
            name: name.into(),
            synonyms: vec![name.into()],
        };
        Self {
            templates: vec![PLACE.into()],
            part_templates: vec![PLACE.into()],
            parts: ["background", "head", "upper body", "lower body"]
                .map(part)
                .to_vec(),
            attributes: Vec::new(),
        }
    }

    /// Reads and checks a vocabulary file.
    ///
    /// # Errors
    ///
    /// As [`Vocabulary::parse`], or the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, VocabularyError> {
        require(path, "the file of a vocabulary")?;
        Self::parse(&crate::text::read_text(path)?, &path.display().to_string())
    }

    /// Parses and checks a vocabulary; `origin` names it in messages.
    ///
    /// # Errors
    ///
    /// Not TOML, an unknown or missing key, or a rule of [`Vocabulary::check`] broken; each says
    /// where.
    pub fn parse(text: &str, origin: &str) -> Result<Self, VocabularyError> {
        let vocabulary: Self = toml::from_str(text).map_err(|source| VocabularyError::Toml {
            origin: origin.into(),
            source: Box::new(source),
        })?;
        vocabulary.check(origin)?;
        Ok(vocabulary)
    }

    /// Checks the rules that the types do not hold: at least a background and one part, at most
    /// 255 parts; groups of two values or more, pairs of exactly two; every list of words filled,
    /// no empty words, no name twice; every template with exactly one `{}`.
    ///
    /// # Errors
    ///
    /// The first rule that is broken, with its place and `origin`.
    pub fn check(&self, origin: &str) -> Result<(), VocabularyError> {
        self.find_fault().map_err(
            |VocabularyFault { place, problem }| VocabularyError::Invalid {
                origin: origin.into(),
                place,
                problem,
            },
        )
    }

    fn find_fault(&self) -> Result<(), VocabularyFault> {
        check_templates("templates", &self.templates)?;
        check_templates("part_templates", &self.part_templates)?;
        if !(2..=MOST_PARTS).contains(&self.parts.len()) {
            return fault(
                "parts",
                format!(
                    "expected 2 to {MOST_PARTS} classes, the first being the background, found {}",
                    self.parts.len()
                ),
            );
        }
        check_names("parts", self.parts.iter().map(|part| part.name.as_str()))?;
        for (i, part) in self.parts.iter().enumerate() {
            check_words(
                &format!("parts[{i}] {:?}.synonyms", part.name),
                &part.synonyms,
            )?;
        }
        if self.logits() > MOST_VALUES {
            return fault(
                "attributes",
                format!(
                    "expected at most {MOST_VALUES} values in all, found {}",
                    self.logits()
                ),
            );
        }
        check_names(
            "attributes",
            self.attributes
                .iter()
                .map(|attribute| attribute.name.as_str()),
        )?;
        for (i, attribute) in self.attributes.iter().enumerate() {
            let place = format!("attributes[{i}] {:?}.values", attribute.name);
            let count = attribute.values.len();
            match attribute.kind {
                AttributeKind::Group if count < 2 => {
                    return fault(
                        place,
                        format!("a group has two values or more, found {count}"),
                    );
                }
                AttributeKind::Pair if count != 2 => {
                    return fault(
                        place,
                        format!(
                            "a pair has exactly two values, no and yes in this order, found {count}"
                        ),
                    );
                }
                _ => {}
            }
            check_names(
                &place,
                attribute.values.iter().map(|value| value.name.as_str()),
            )?;
            for (j, value) in attribute.values.iter().enumerate() {
                check_words(
                    &format!("{place}[{j}] {:?}.prompts", value.name),
                    &value.prompts,
                )?;
            }
        }
        Ok(())
    }

    /// The vocabulary as TOML: what [`Vocabulary::parse`] reads back, without comments.
    ///
    /// # Errors
    ///
    /// None that is known: every field has a TOML form. The serialiser's signature asks for it.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Number of attribute values, which is the length of a row of attribute logits.
    pub fn logits(&self) -> usize {
        self.attributes
            .iter()
            .map(|attribute| attribute.values.len())
            .sum()
    }

    /// For each attribute, where its values lie in a row of logits.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        self.attributes
            .iter()
            .scan(0, |end, attribute| {
                let start = *end;
                *end += attribute.values.len();
                Some(start..*end)
            })
            .collect()
    }

    /// A name for the content: SHA-256 in hex of the words and their order. Comments and the
    /// layout of the file do not count. Labels of one store and its calibration share it.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        // Lengths go in before contents, so that no two vocabularies feed the hash the same bytes.
        let mut list = |words: &[String]| {
            hash.update((words.len() as u64).to_le_bytes());
            for word in words {
                hash.update((word.len() as u64).to_le_bytes());
                hash.update(word.as_bytes());
            }
        };
        list(&self.templates);
        list(&self.part_templates);
        for part in &self.parts {
            list(std::slice::from_ref(&part.name));
            list(&part.synonyms);
        }
        list(&[]);
        for attribute in &self.attributes {
            let kind = match attribute.kind {
                AttributeKind::Group => "group",
                AttributeKind::Pair => "pair",
            };
            list(&[attribute.name.clone(), kind.into()]);
            for value in &attribute.values {
                list(std::slice::from_ref(&value.name));
                list(&value.prompts);
            }
            list(&[]);
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Fills the template's `{}` with words.
pub fn fill(template: &str, words: &str) -> String {
    template.replacen(PLACE, words, 1)
}

fn check_templates(place: &str, templates: &[String]) -> Result<(), VocabularyFault> {
    check_words(place, templates)?;
    for (i, template) in templates.iter().enumerate() {
        let places = template.matches(PLACE).count();
        if places != 1 {
            return fault(
                format!("{place}[{i}]"),
                format!("expected exactly one {{}}, found {places} in {template:?}"),
            );
        }
    }
    Ok(())
}

fn check_words(place: &str, words: &[String]) -> Result<(), VocabularyFault> {
    if words.is_empty() {
        return fault(place, "expected at least one entry, found none");
    }
    match words.iter().position(|word| word.trim().is_empty()) {
        Some(i) => fault(
            format!("{place}[{i}]"),
            "expected words, found an empty string",
        ),
        None => Ok(()),
    }
}

fn check_names<'a>(
    place: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), VocabularyFault> {
    let mut seen = HashSet::new();
    for (i, name) in names.enumerate() {
        if name.trim().is_empty() {
            return fault(
                format!("{place}[{i}].name"),
                "expected a name, found an empty string",
            );
        }
        if !seen.insert(name) {
            return fault(
                format!("{place}[{i}].name"),
                format!("{name:?} is the name of an earlier entry too"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &str) -> String {
        Vocabulary::parse(text, "mine.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn standard_holds_the_parts_and_attributes_of_the_method() {
        let vocabulary = Vocabulary::standard().unwrap();
        let parts: Vec<_> = vocabulary
            .parts
            .iter()
            .map(|part| part.name.as_str())
            .collect();
        assert_eq!(
            parts,
            [
                "background",
                "head",
                "upper body",
                "arms",
                "lower body",
                "legs",
                "feet",
                "bag"
            ]
        );
        assert_eq!(vocabulary.attributes.len(), 14);
        assert_eq!(vocabulary.logits(), 55);
        let ranges = vocabulary.ranges();
        assert_eq!(ranges.len(), 14);
        assert_eq!(ranges[0], 0..2);
        assert_eq!(ranges[13], 52..55);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    #[test]
    fn text_round_trip_keeps_the_vocabulary_and_its_digest() {
        for vocabulary in [Vocabulary::standard().unwrap(), Vocabulary::kmeans()] {
            let again = Vocabulary::parse(&vocabulary.to_toml().unwrap(), "copy").unwrap();
            assert_eq!(again, vocabulary);
            assert_eq!(again.digest(), vocabulary.digest());
        }
    }

    #[test]
    fn every_change_of_words_or_kind_changes_the_digest() {
        let original = Vocabulary::standard().unwrap();
        let mut digests = HashSet::from([original.digest()]);
        let changes: [fn(&mut Vocabulary); 7] = [
            |v| v.templates.push("a drawing of {}".into()),
            |v| v.part_templates.reverse(),
            |v| v.parts.swap(1, 2),
            |v| v.parts[1].synonyms[0].push('s'),
            |v| v.attributes[3].kind = AttributeKind::Group,
            |v| v.attributes[3].values.reverse(),
            |v| {
                // The same words with a value moved to the next attribute.
                let value = v.attributes[1].values.pop().unwrap();
                v.attributes[2].values.insert(0, value);
            },
        ];
        for change in changes {
            let mut changed = original.clone();
            change(&mut changed);
            assert!(digests.insert(changed.digest()));
        }
        let padded = format!("# a comment\n\n{DEFAULT_TOML}");
        assert_eq!(
            Vocabulary::parse(&padded, "padded").unwrap().digest(),
            original.digest()
        );
    }

    #[test]
    fn errors_say_where() {
        let misspelled = DEFAULT_TOML.replacen("\nsynonyms", "\nsynonims", 1);
        let text = message(&misspelled);
        assert!(text.starts_with("mine.toml: not a vocabulary:"), "{text}");
        assert!(text.contains("synonims") && text.contains("line"), "{text}");

        let unknown = DEFAULT_TOML.replacen("kind = \"pair\"", "kind = \"couple\"", 1);
        let text = message(&unknown);
        assert!(text.contains("couple") && text.contains("pair"), "{text}");

        let cases: [(&str, &str, &str); 6] = [
            (
                "templates = [\"{}\",",
                "templates = [\"a photo\",",
                "mine.toml: templates[0]: expected exactly one {}",
            ),
            (
                "name = \"head\"",
                "name = \"background\"",
                "parts[1].name: \"background\" is the name of an earlier",
            ),
            (
                "synonyms = [\"arms\",",
                "synonyms = [\" \",",
                "parts[3] \"arms\".synonyms[0]: expected words",
            ),
            (
                "prompts = [\"a man\", \"a boy\", \"a male person\"]",
                "prompts = []",
                "attributes[0] \"gender\".values[0] \"male\".prompts: expected at least one",
            ),
            (
                "name = \"headwear\"",
                "name = \"\"",
                "attributes[3].name: expected a name",
            ),
            (
                "kind = \"group\"",
                "kind = \"pair\"",
                "attributes[1] \"age\".values: a pair has exactly two values",
            ),
        ];
        for (old, new, expected) in cases {
            // `kind` of the second attribute, which has three values; else the first match.
            let broken = if old.starts_with("kind") {
                let at = DEFAULT_TOML.find("name = \"age\"").unwrap();
                let (head, tail) = DEFAULT_TOML.split_at(at);
                format!("{head}{}", tail.replacen(old, new, 1))
            } else {
                DEFAULT_TOML.replacen(old, new, 1)
            };
            assert_ne!(
                broken, DEFAULT_TOML,
                "the case for {expected:?} changes nothing"
            );
            let text = message(&broken);
            assert!(text.contains(expected), "expected {expected:?} in {text:?}");
        }
    }

    #[test]
    fn too_few_and_too_many_parts_are_refused() {
        let mut vocabulary = Vocabulary::kmeans();
        vocabulary.parts.truncate(1);
        assert!(
            vocabulary
                .check("v")
                .unwrap_err()
                .to_string()
                .contains("found 1")
        );
        let part = |i: usize| PartClass {
            name: format!("part {i}"),
            synonyms: vec!["a part".into()],
        };
        vocabulary.parts = (0..256).map(part).collect();
        assert!(
            vocabulary
                .check("v")
                .unwrap_err()
                .to_string()
                .contains("found 256")
        );
        vocabulary.parts.truncate(255);
        vocabulary.check("v").unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Vocabulary::read(Path::new("no/such/vocabulary.toml")).unwrap_err();
        assert!(
            error.to_string().contains("no/such/vocabulary.toml"),
            "{error}"
        );
    }

    #[test]
    fn filling_a_template_replaces_its_place_alone() {
        assert_eq!(fill("a photo of {}", "a {} b"), "a photo of a {} b");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = Vocabulary::parse(&text, "any");
        }

        #[test]
        fn no_damage_to_a_vocabulary_makes_the_parser_panic(at in 0..DEFAULT_TOML.len(), byte in 0u8..128) {
            let mut bytes = DEFAULT_TOML.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(vocabulary) = Vocabulary::parse(&String::from_utf8(bytes).unwrap(), "any") {
                prop_assert_eq!(vocabulary.ranges().last().map_or(0, |last| last.end), vocabulary.logits());
            }
        }
    }
}
