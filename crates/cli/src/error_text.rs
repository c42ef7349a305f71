//! How an error is shown: what is wrong, its causes, then what to do about it.
//!
//! Libraries and commands put a hint on a line of its own that begins with `hint: `, anywhere in a
//! message. Here the hints of all causes come last, each once and without indentation.

/// The text of an error on standard error, `error: ` included.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // An error that quotes its cause is not followed by it.
        if !message.contains(&cause) {
            message = format!("{message}\n  because: {cause}");
        }
    }
    let mut lines = Vec::new();
    let mut hints = Vec::new();
    for line in message.lines() {
        let hint = line.trim();
        if !hint.starts_with("hint: ") {
            lines.push(line);
        } else if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    lines.extend(hints);
    format!("error: {}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_last_once_and_not_indented() {
        let cause = anyhow::anyhow!("the file is damaged\n  hint: copy it again\n  found 3 bytes");
        let error = cause.context("model.safetensors: no backbone\nhint: copy it again");
        let expected = "error: model.safetensors: no backbone\n  because: the file is damaged\n  found 3 bytes\n\
                        hint: copy it again";
        assert_eq!(error_text(&error), expected);
    }

    #[test]
    fn a_cause_that_the_error_quotes_is_not_repeated() {
        let error = anyhow::anyhow!("no such file").context("a.toml: no such file");
        assert_eq!(error_text(&error), "error: a.toml: no such file");
    }
}
