//! Text to the token numbers that CLIP's text tower reads.
//!
//! The byte-pair encoding and its vocabulary are OpenAI's, from the crate `instant-clip-tokenizer`.
//! This module adds what OpenAI's and OpenCLIP's tokenizers do around it: clean-up, start and end
//! tokens, truncation that keeps the end token, padding with zeros.
//!
//! The clean-up there is `ftfy.fix_text`, then HTML entities resolved twice, then white space
//! collapsed, then lower case. White space makes no difference to the tokens. Of ftfy, the repairs
//! that captions need are done: curly quotes made straight, ligatures and full-width forms spelled
//! out, control characters removed. Not done: the repair of wrongly decoded text ("Ã©" for "é") and
//! composition to Unicode's NFC.

use instant_clip_tokenizer::{Token, Tokenizer};
use std::sync::LazyLock;

/// The number of the token that starts every text.
pub const START: u32 = 49_406;
/// The number of the token that ends every text; the largest there is.
pub const END: u32 = 49_407;

/// Reading the vocabulary takes a good part of a second, so it happens once.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);

/// The tokens of each text: start, text, end, then zeros up to `context` numbers. A longer text is
/// cut, and its last number is the end token.
///
/// # Panics
///
/// If `context` is below 3, which leaves no room for text.
pub fn tokenize<T: AsRef<str>>(texts: &[T], context: usize) -> Vec<Vec<u32>> {
    texts
        .iter()
        .map(|text| {
            let mut tokens = tokenize_one(text.as_ref(), context);
            tokens.resize(context, 0);
            tokens
        })
        .collect()
}

/// The tokens of all texts in one row-major array and its number of columns: the longest text's, at
/// most `context`. What follows the end token is never seen by the text tower, so shorter rows cost
/// less.
///
/// # Panics
///
/// If `context` is below 3, which leaves no room for text.
pub fn tokenize_flat<T: AsRef<str>>(texts: &[T], context: usize) -> (Vec<i64>, usize) {
    let rows: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| tokenize_one(text.as_ref(), context))
        .collect();
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = vec![0i64; rows.len() * length];
    for (index, row) in rows.iter().enumerate() {
        for (place, &token) in row.iter().enumerate() {
            flat[index * length + place] = i64::from(token);
        }
    }
    (flat, length)
}

/// Start, text, end, without padding: at most `context` numbers.
fn tokenize_one(text: &str, context: usize) -> Vec<u32> {
    assert!(
        context >= 3,
        "a context of {context} leaves no room for text"
    );
    let mut tokens = vec![TOKENIZER.start_of_text()];
    TOKENIZER.encode(&clean(text), &mut tokens);
    tokens.truncate(context - 1);
    tokens.push(TOKENIZER.end_of_text());
    tokens
        .into_iter()
        .map(Token::to_u16)
        .map(u32::from)
        .collect()
}

/// The clean-up of the module's doc, but for white space and case.
fn clean(text: &str) -> String {
    if text
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'&')
    {
        return text.to_owned();
    }
    let text = unescape(&unescape(text));
    let mut clean = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\u{2018}'..='\u{201b}' | '\u{2bc}' => clean.push('\''),
            '\u{201c}'..='\u{201f}' => clean.push('"'),
            'ﬀ' => clean.push_str("ff"),
            'ﬁ' => clean.push_str("fi"),
            'ﬂ' => clean.push_str("fl"),
            'ﬃ' => clean.push_str("ffi"),
            'ﬄ' => clean.push_str("ffl"),
            'ﬅ' => clean.push_str("ſt"),
            'ﬆ' => clean.push_str("st"),
            'Ĳ' => clean.push_str("IJ"),
            'ĳ' => clean.push_str("ij"),
            'ŉ' => clean.push_str("ʼn"),
            '\u{3000}' => clean.push(' '),
            // Full-width forms stand at a fixed distance from ASCII.
            '\u{ff01}'..='\u{ff5e}' => {
                clean.extend(char::from_u32(u32::from(letter) - 0xfee0));
            }
            '\t' | '\n' | '\u{c}' | '\r' => clean.push(letter),
            '\0'..='\u{1f}' | '\u{7f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => {}
            '\u{206a}'..='\u{206f}' => {}
            _ => clean.push(letter),
        }
    }
    clean
}

/// The entities that turn up in captions. HTML5 knows 2,231.
const ENTITIES: [(&str, &str); 30] = [
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", "\u{a0}"),
    ("copy", "©"),
    ("reg", "®"),
    ("trade", "™"),
    ("deg", "°"),
    ("middot", "·"),
    ("hellip", "…"),
    ("ndash", "–"),
    ("mdash", "—"),
    ("lsquo", "‘"),
    ("rsquo", "’"),
    ("ldquo", "“"),
    ("rdquo", "”"),
    ("laquo", "«"),
    ("raquo", "»"),
    ("euro", "€"),
    ("pound", "£"),
    ("frac12", "½"),
    ("times", "×"),
    ("eacute", "é"),
    ("egrave", "è"),
    ("agrave", "à"),
    ("auml", "ä"),
    ("ouml", "ö"),
    ("uuml", "ü"),
];

/// HTML entities with their semicolon, and the numeric ones, resolved once.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let name = rest
            .find(';')
            .filter(|&end| end <= 10)
            .map(|end| &rest[..end]);
        let resolved = name.and_then(|name| {
            if let Some(number) = name.strip_prefix('#') {
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                return char::from_u32(code).map(String::from);
            }
            let found = ENTITIES.iter().find(|(entity, _)| *entity == name)?;
            Some(found.1.to_owned())
        });
        match (name, resolved) {
            (Some(name), Some(resolved)) => {
                out.push_str(&resolved);
                rest = &rest[name.len() + 1..];
            }
            _ => out.push('&'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        let tokens = tokenize(&["a photo of a cat"], 9);
        assert_eq!(
            tokens,
            [[START, 320, 1125, 539, 320, 2368, END, 0, 0].to_vec()]
        );
    }

    /// A thousand captions in many scripts against OpenCLIP's tokenizer:
    /// `tests/golden/tokenizer.py`.
    #[test]
    fn a_thousand_captions_agree_with_open_clip() {
        const CONTEXT: usize = 32;
        let captions = include_bytes!("../tests/golden/tokenizer.json");
        let captions: Vec<String> = serde_json::from_slice(captions).unwrap();
        let bytes = include_bytes!("../tests/golden/tokenizer.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let (numbers, rest) = tensors.tensor("tokens").unwrap().data().as_chunks::<4>();
        assert!(rest.is_empty());
        let expected: Vec<u32> = numbers.iter().map(|b| u32::from_le_bytes(*b)).collect();
        assert_eq!((captions.len(), expected.len()), (1000, 1000 * CONTEXT));
        for (caption, expected) in captions.iter().zip(expected.chunks_exact(CONTEXT)) {
            assert_eq!(tokenize(&[caption], CONTEXT)[0], expected, "{caption:?}");
        }
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        let tokens = tokenize(&["a photo of a cat", ""], 4);
        assert_eq!(tokens[0], [START, 320, 1125, END]);
        assert_eq!(tokens[1], [START, END, 0, 0]);
    }

    #[test]
    fn rows_are_as_long_as_the_longest() {
        let (flat, length) = tokenize_flat(&["cat", "a photo of a cat"], 77);
        assert_eq!((flat.len(), length), (14, 7));
        assert_eq!(flat[..4], [49_406, 2368, 49_407, 0]);
        assert_eq!(tokenize_flat::<&str>(&[], 77), (vec![], 0));
    }

    #[test]
    fn entities_are_resolved_twice() {
        assert_eq!(
            clean("a &amp;amp; b &#39;c&#x27; &unknown; &"),
            "a & b 'c' &unknown; &"
        );
    }
}
