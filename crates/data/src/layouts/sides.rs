//! Left and right in the names of joints and classes, which swap in a mirrored image.
//!
//! A side is the word `left` or `right`, or `l` or `r`, in any case and wherever words end:
//! `left_ankle`, `Left-arm`, `ankle_l`, `LShoulder`, `RightHip`. Where no word ends (`leftankle`,
//! `lknee`), it is one if the other side is named alike.

use std::collections::HashMap;

/// Names that swap in a mirrored image, and names with a side but no counterpart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sides {
    /// Positions of a left and the right of the same name.
    pub pairs: Vec<[usize; 2]>,
    /// Positions of names with a side whose other side has no name.
    pub alone: Vec<usize>,
}

impl Sides {
    /// Those among some names.
    pub fn among(names: &[String]) -> Self {
        let forms: Vec<Form> = names.iter().map(|name| Form::of(name)).collect();
        let mut place = HashMap::new();
        for (index, form) in forms.iter().enumerate() {
            place.entry(&form.words).or_insert(index);
        }
        let mut sides = Self::default();
        for (index, form) in forms.iter().enumerate() {
            let Some(side) = form.side() else { continue };
            match place.get(&form.mirrored()) {
                Some(other) if side == LEFT => sides.pairs.push([index, *other]),
                Some(_) => {}
                None if form.is_sure => sides.alone.push(index),
                None => {}
            }
        }
        sides
    }
}

/// The position that each of `count` positions becomes in a mirrored image, where `pairs` swap.
pub fn twins(pairs: &[[usize; 2]], count: usize) -> Vec<usize> {
    let mut twins: Vec<usize> = (0..count).collect();
    for [a, b] in pairs {
        twins.swap(*a, *b);
    }
    twins
}

/// Position of the name that is equivalent to `name`: `LShoulder` for `left_shoulder`.
pub fn position(names: &[String], name: &str) -> Option<usize> {
    let wanted = Form::of(name).words;
    names.iter().position(|name| Form::of(name).words == wanted)
}

const LEFT: &str = "left";
const RIGHT: &str = "right";

/// A name as words in lower case, its sides spelled out.
struct Form {
    words: Vec<String>,
    /// Whether the side is a word of its own.
    is_sure: bool,
}

impl Form {
    fn of(name: &str) -> Self {
        let mut words = words(name);
        for word in &mut words {
            match word.as_str() {
                "l" => *word = LEFT.to_owned(),
                "r" => *word = RIGHT.to_owned(),
                _ => {}
            }
        }
        let is_sure = words.iter().any(|word| word == LEFT || word == RIGHT);
        if !is_sure && let Some((side, rest)) = words.first().and_then(|word| split(word)) {
            words = [vec![side.to_owned(), rest.to_owned()], words.split_off(1)].concat();
        }
        Self { words, is_sure }
    }

    fn side(&self) -> Option<&str> {
        let is_side = |word: &&String| [LEFT, RIGHT].contains(&word.as_str());
        self.words.iter().find(is_side).map(String::as_str)
    }

    fn mirrored(&self) -> Vec<String> {
        let other = |word: &String| match word.as_str() {
            LEFT => RIGHT.to_owned(),
            RIGHT => LEFT.to_owned(),
            word => word.to_owned(),
        };
        self.words.iter().map(other).collect()
    }
}

/// A side that is written together with its joint.
fn split(word: &str) -> Option<(&'static str, &str)> {
    for (part, side) in [(LEFT, LEFT), (RIGHT, RIGHT), ("l", LEFT), ("r", RIGHT)] {
        if let Some(rest) = word.strip_prefix(part).filter(|rest| rest.len() > 1) {
            return Some((side, rest));
        }
    }
    None
}

/// The words of a name: separated by characters other than letters and digits, and by capitals.
fn words(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let mut words = vec![String::new()];
    for (i, letter) in letters.iter().enumerate() {
        let (before, after) = (i.checked_sub(1).map(|i| letters[i]), letters.get(i + 1));
        // `aB` and the `Bc` of `ABc`.
        let begins = letter.is_uppercase()
            && (before.is_some_and(char::is_lowercase) || after.is_some_and(|c| c.is_lowercase()));
        if begins || !letter.is_alphanumeric() {
            words.push(String::new());
        }
        if letter.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(names: &[&str]) -> Sides {
        Sides::among(&Vec::from_iter(names.iter().map(|name| (*name).to_owned())))
    }

    #[test]
    fn the_usual_ways_of_naming_a_side() {
        for names in [
            ["left_ankle", "nose", "right_ankle"],
            ["Left_Ankle", "Nose", "Right_Ankle"],
            ["LEFT ANKLE", "NOSE", "RIGHT ANKLE"],
            ["l_ankle", "head_top", "r_ankle"],
            ["LAnkle", "Neck", "RAnkle"],
            ["LeftAnkle", "Nose", "RightAnkle"],
            ["ankle_l", "nose", "ankle_r"],
            ["Ankle.L", "Nose", "Ankle.R"],
            ["leftankle", "lower_leg", "rightankle"],
            ["lankle", "left", "rankle"],
            ["LANK", "ROOT", "RANK"],
            ["Left-arm", "Upper-clothes", "right arm"],
        ] {
            assert_eq!(among(&names).pairs, [[0, 2]], "{names:?}");
        }
        assert_eq!(among(&["right hip", "left hip"]).pairs, [[1, 0]]);
        let corners = ["left eye left corner", "right eye right corner"];
        assert_eq!(among(&corners).pairs, [[0, 1]]);
    }

    #[test]
    fn sides_without_the_other_are_known_and_words_are_not_sides() {
        let sides = among(&[
            "left_arm",
            "right_leg",
            "Lshoe",
            "L_shoe",
            "bright",
            "lower",
            "leg",
        ]);
        assert_eq!((sides.pairs.len(), &sides.alone[..]), (0, &[0, 1, 3][..]));
        assert_eq!(twins(&sides.pairs, 7), [0, 1, 2, 3, 4, 5, 6]);
        // LIP has sides for some of its classes.
        let sides = among(&["Hat", "Left-arm", "Right-arm", "Skirt"]);
        assert_eq!(
            (twins(&sides.pairs, 4), sides.alone),
            (vec![0, 2, 1, 3], vec![])
        );
        assert_eq!(among(&["", "_", "l", "r"]).pairs, [[2, 3]]);
        let names = ["Hip", "RHip", "LHip"].map(str::to_owned);
        assert_eq!(position(&names, "left_hip"), Some(2));
        assert_eq!(position(&names, "left_knee"), None);
    }
}
