//! Text files: UTF-8 with or without a byte order mark, and
//! UTF-16 with one, as PowerShell and spreadsheets write it.

use std::io;
use std::path::Path;

use fs_err as fs;

/// Reads a text file without its byte order mark.
///
/// # Errors
/// The file cannot be read, or is in another encoding.
pub fn read_text(path: &Path) -> io::Result<String> {
    decode_text(fs::read(path)?).map_err(|reason| {
        let message = format!("{}: {reason}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// The text of bytes, without a byte order mark.
///
/// # Errors
/// They are neither UTF-8 nor UTF-16 with a byte order mark.
pub fn decode_text(bytes: Vec<u8>) -> Result<String, String> {
    let wide = |order: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|pair| order(*pair)).collect();
        let text = String::from_utf16(&units).ok().filter(|_| rest.is_empty());
        text.ok_or_else(|| {
            "its byte order mark says UTF-16, but it is not valid UTF-16\n  hint: save it as UTF-8"
                .to_owned()
        })
    };
    match bytes.get(..2) {
        Some([0xff, 0xfe]) => return wide(u16::from_le_bytes),
        Some([0xfe, 0xff]) => return wide(u16::from_be_bytes),
        _ => {}
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        format!(
            "line {}: expected text in UTF-8, or UTF-16 with a byte order mark, found another \
             encoding\n  hint: save it as UTF-8",
            line + 1
        )
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Text for a terminal: control characters, with which a file's name could move the cursor or set
/// the title, are written as escapes (`\u{1b}`); line breaks and tabs stay.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            // C0, DEL, C1, and the marks that reverse the direction of writing.
            c if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

/// A word of a command line as a POSIX shell takes it, quoted where that is needed. Control
/// characters are shown as `?`.
///
/// ```
/// use clasp_data::text::shell_word;
///
/// assert_eq!(shell_word("runs/a-1"), "runs/a-1");
/// assert_eq!(shell_word("my runs/it's"), r"'my runs/it'\''s'");
/// ```
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let escaped = word.replace('\'', r"'\''");
    let shown: String = { escaped.chars() }
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    format!("'{shown}'")
}

/// As [`shell_word`], of a path.
pub fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

/// Letters to change, insert, remove, or swap with the next (optimal string alignment distance).
pub fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let changed = last[j] + usize::from(a[i] != b[j]);
            let mut least = changed.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("reid-min", "reid-mini", 1),
            ("ab", "ba", 1),
            ("abc", "ca", 3),
        ] {
            assert_eq!((edits(a, b), edits(b, a)), (count, count), "{a} and {b}");
        }
    }

    #[test]
    fn byte_order_marks_are_removed() {
        let utf16 = |mark: [u8; 2], order: fn(u16) -> [u8; 2]| {
            let units = "a/é.png\r\n".encode_utf16().flat_map(order);
            mark.into_iter().chain(units).collect::<Vec<u8>>()
        };
        let cases = [
            "a/é.png\r\n".as_bytes().to_vec(),
            "\u{feff}a/é.png\r\n".as_bytes().to_vec(),
            utf16([0xff, 0xfe], u16::to_le_bytes),
            utf16([0xfe, 0xff], u16::to_be_bytes),
        ];
        for bytes in cases {
            assert_eq!(decode_text(bytes).unwrap(), "a/é.png\r\n");
        }
        assert_eq!(decode_text(Vec::new()).unwrap(), "");
    }

    #[test]
    fn other_encodings_are_named_with_the_line() {
        let latin = decode_text(b"a.png\ncaf\xe9.png\n".to_vec()).unwrap_err();
        assert!(
            latin.starts_with("line 2: expected text in UTF-8"),
            "{latin}"
        );
        let odd = decode_text(vec![0xff, 0xfe, b'a']).unwrap_err();
        assert!(odd.contains("UTF-16"), "{odd}");
    }

    #[test]
    fn control_characters_are_escaped() {
        let name = "\u{1b}]0;title\u{7}\u{1b}[2J a\u{202e}gnp.é\u{9b}\n\tx";
        let shown = printable(name);
        assert_eq!(
            shown,
            "\\u{1b}]0;title\\u{7}\\u{1b}[2J a\\u{202e}gnp.é\\u{9b}\n\tx"
        );
        assert_eq!(printable("plain é"), "plain é");
    }
}
