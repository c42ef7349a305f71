//! Commands that the documents show, for the tests that parse and run them.
//!
//! A command is a line of a code block that begins with `clasp`, or such a part of a pipeline. What
//! stands in backticks in running text is a mention: it may lack arguments.

use std::path::{Path, PathBuf};

/// A command or mention in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentedCommand {
    /// The document, with the line where the command has one.
    pub place: String,
    /// Its words, `clasp` first, without quotes.
    pub words: Vec<String>,
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Names and texts of all files below `folder` of the repository that end with `extension`.
pub fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs_err::read_dir(folder).expect("a folder of the repository");
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs_err::read_to_string(&path).expect("a text");
                found.push((path.display().to_string(), text));
            }
        }
    }
    found.sort();
    found
}

/// Names and texts of all documents that describe the present state, README first; logs and
/// changelogs keep the commands of their time.
pub fn documents() -> Vec<(String, String)> {
    let mut documents = Vec::new();
    for name in ["README.md", "CONTRIBUTING.md"] {
        let path = repository().join(name);
        let text = fs_err::read_to_string(&path).expect("a document");
        documents.push((name.to_owned(), text));
    }
    documents.extend(files("docs", "md"));
    documents.extend(files("assets", "md"));
    documents.retain(|(name, _)| !name.ends_with("LOG.md"));
    documents
}

/// The commands in the code blocks of a Markdown text: lines that are indented by four spaces after
/// an empty line, and fenced blocks.
pub fn commands(name: &str, markdown: &str) -> Vec<DocumentedCommand> {
    let mut found = Vec::new();
    let (mut fenced, mut indented, mut after_empty) = (false, false, true);
    let mut pending = String::new();
    for (index, line) in markdown.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        indented = line.starts_with("    ") && (indented || after_empty);
        after_empty = line.trim().is_empty();
        if !(fenced || indented) {
            pending.clear();
            continue;
        }
        pending.push_str(line.trim());
        if pending.ends_with('\\') {
            pending.pop();
            continue;
        }
        let place = format!("{name}:{}", index + 1);
        found.extend(pipeline(&place, &pending));
        pending.clear();
    }
    found
}

/// The commands of one line of a shell.
pub fn pipeline(place: &str, line: &str) -> Vec<DocumentedCommand> {
    let mut found = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    let mut next = characters.next();
    while let Some(character) = next {
        next = characters.next();
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | ';' | '&' | '>' | '<') => {
                words.extend(word.take());
                found.push(std::mem::take(&mut words));
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    found.push(words);
    found.retain(|words| words.first().is_some_and(|first| first == "clasp"));
    let command = |words| DocumentedCommand {
        place: place.to_owned(),
        words,
    };
    found.into_iter().map(command).collect()
}

/// What begins with `clasp` between backticks, in Markdown, comments and texts of source code.
pub fn mentions(name: &str, text: &str) -> Vec<DocumentedCommand> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("`clasp ") {
        let rest = &text[at + 1..];
        let Some(end) = rest.find('`') else {
            continue;
        };
        let line = text[..at].matches('\n').count() + 1;
        let span = rest[..end].replace("\\|", "|");
        let words = span
            .split_whitespace()
            .filter(|word| !matches!(*word, "///" | "//!" | "//" | "#" | "\\"))
            .map(|word| word.trim_matches(['[', ']', '\\', ',']).to_owned())
            .collect();
        found.push(DocumentedCommand {
            place: format!("{name}:{line}"),
            words,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_mentions_are_found() {
        let markdown = "\
Text `clasp eval
TASK` and `clasp data check\\|pack`.

    find . | clasp embed - --out 'a b'   # clasp comment
    cargo run; clasp label \\
        photos
    text of clasp

```text
clasp synth
```
";
        let words = |commands: Vec<DocumentedCommand>| -> Vec<String> {
            commands
                .iter()
                .map(|command| command.words.join(" "))
                .collect()
        };
        let expected = [
            "clasp embed - --out a b",
            "clasp label photos",
            "clasp synth",
        ];
        assert_eq!(words(commands("a.md", markdown)), expected);
        assert_eq!(
            words(mentions("a.md", markdown)),
            ["clasp eval TASK", "clasp data check|pack"]
        );
    }
}
