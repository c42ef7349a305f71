//! Choice of wordings, articles, and the templates around a phrase.

use clasp_data::Rng;
use rand::RngExt;
use rand::seq::IndexedRandom;

/// One of the given words.
pub(super) fn one<'a>(rng: &mut Rng, words: &[&'a str]) -> &'a str {
    words.choose(rng).copied().unwrap_or_default()
}

/// The phrase with its indefinite article.
pub(super) fn a(phrase: &str) -> String {
    let vowel = phrase.starts_with(['a', 'e', 'i', 'o']) || phrase.starts_with("umbrella");
    format!("{} {phrase}", if vowel { "an" } else { "a" })
}

/// Puts a frame around a phrase: often none.
pub(super) fn framed(phrase: String, rng: &mut Rng) -> String {
    match rng.random_range(0..10u32) {
        0..=3 => phrase,
        4..=6 => format!("a photo of {phrase}"),
        7..=8 => format!("a picture of {phrase}"),
        _ => format!("an image of {phrase}"),
    }
}

/// Puts a frame around a part, as the vocabulary's part templates do.
pub(super) fn part_framed(phrase: String, rng: &mut Rng) -> String {
    match rng.random_range(0..10u32) {
        0..=3 => phrase,
        4..=5 => format!("a photo of {phrase}"),
        6..=7 => format!("a close-up of {phrase}"),
        8 if !phrase.contains(" of ") => format!("a picture of {phrase} of a person"),
        _ => format!("a picture of {phrase}"),
    }
}
