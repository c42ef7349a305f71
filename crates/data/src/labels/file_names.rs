//! Names of the files of a label store.

use std::fmt::Write as _;

/// The file beside the shards with what all labels share. Its name begins with `_`, as readers of
/// Parquet folders ignore such names.
pub(super) const SIDECAR: &str = "_store.toml";

/// The file with the labels that people corrected.
pub(super) const CORRECTIONS: &str = "_corrections.jsonl";

/// The file of a shard. Characters that are not safe in a file name on every system are
/// written as `%` and two hex digits, so different shards have different files.
pub fn shard_file(shard: &str) -> String {
    let mut name = String::with_capacity(shard.len() + 8);
    for (i, byte) in shard.bytes().enumerate() {
        let safe = byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && i > 0);
        if safe {
            name.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name + ".parquet"
}

/// The shard whose file has a name, without its ending.
pub(super) fn shard_name(stem: &str) -> String {
    let mut bytes = Vec::with_capacity(stem.len());
    let mut rest = stem.as_bytes();
    while let [first, others @ ..] = rest {
        let code = (*first == b'%').then(|| others.get(..2)).flatten();
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_safe_and_differ_as_the_shards_do() {
        assert_eq!(shard_file("people-000"), "people-000.parquet");
        assert_eq!(shard_file("a/b c"), "a%2Fb%20c.parquet");
        assert_eq!(shard_file("../x"), "%2E.%2Fx.parquet");
        assert_eq!(shard_file("a%2Fb"), "a%252Fb.parquet");
        assert_eq!(shard_file("é"), "%C3%A9.parquet");
        for name in ["people-000", "a/b c", "../x", "a%2Fb", "é"] {
            let file = shard_file(name);
            assert_eq!(shard_name(file.strip_suffix(".parquet").unwrap()), name);
        }
    }
}
