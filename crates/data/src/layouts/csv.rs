//! Comma-separated tables: a header and rows of the same width, quotes as in RFC 4180.

use std::path::Path;

use super::LayoutError;
use crate::text::read_text;

/// A table as text.
pub(super) struct Table {
    /// The file, for messages.
    pub file: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// Line on which each row begins, counted from 1, and its cells, as many as the header has.
    pub rows: Vec<(usize, Vec<String>)>,
}

impl Table {
    /// Reads a table whose first columns have the names in `first`.
    pub fn read(path: &Path, first: &[&str]) -> Result<Self, LayoutError> {
        let file = path.display().to_string();
        let text = read_text(path)?;
        let mut rows = records(&text).map_err(|line| LayoutError::Line {
            file: file.clone(),
            line,
            expected: "a closing quote".into(),
            found: "the end of the file".into(),
        })?;
        let named = |cells: &[String]| {
            cells
                .iter()
                .map(|c| c.trim().to_owned())
                .collect::<Vec<_>>()
        };
        let header = if rows.is_empty() {
            Vec::new()
        } else {
            named(&rows.remove(0).1)
        };
        if !header
            .iter()
            .map(String::as_str)
            .take(first.len())
            .eq(first.iter().copied())
        {
            return Err(LayoutError::Line {
                file,
                line: 1,
                expected: format!("a header that begins `{}`", first.join(",")),
                found: format!("`{}`", excerpt(&header.join(","))),
            });
        }
        if let Some((line, cells)) = rows.iter().find(|(_, cells)| cells.len() != header.len()) {
            return Err(LayoutError::Line {
                file,
                line: *line,
                expected: format!("{} cells as in the header", header.len()),
                found: format!("{}: `{}`", cells.len(), excerpt(&cells.join(","))),
            });
        }
        Ok(Self { file, header, rows })
    }
}

/// The header and the rows, each with its line counted from 1, of a table whose first column is
/// called `first`.
///
/// # Errors
/// It is no such table.
pub fn read_columns(
    path: &Path,
    first: &str,
) -> Result<(Vec<String>, Vec<(usize, Vec<String>)>), LayoutError> {
    let table = Table::read(path, &[first])?;
    Ok((table.header, table.rows))
}

/// Faulty lines of a table that are listed one by one.
const LISTED: usize = 20;

/// # Errors
/// If there is any fault: one by itself, several in a list.
pub(super) fn check_lines(mut faults: Vec<LayoutError>) -> Result<(), LayoutError> {
    let count = faults.len();
    if count <= 1 {
        return faults.pop().map_or(Ok(()), Err);
    }
    let mut table = String::new();
    let mut lines = Vec::new();
    for fault in faults.into_iter().take(LISTED) {
        if let LayoutError::Line {
            file,
            line,
            expected,
            found,
        } = fault
        {
            lines.push(format!("line {line}: expected {expected}, found {found}"));
            table = file;
        }
    }
    Err(LayoutError::Lines {
        file: table,
        count,
        lines,
    })
}

/// The start of a text, short enough for a message.
fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short + "..."
    } else {
        short
    }
}

/// Records with the line they begin on; empty lines are skipped. The line of a quote that is never
/// closed is the error.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, usize> {
    let (mut records, mut cells, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut start, mut opened) = (1, 1, None);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if opened.is_some() => {
                if characters.peek() == Some(&'"') {
                    characters.next();
                    cell.push('"');
                } else {
                    opened = None;
                }
            }
            _ if opened.is_some() => cell.push(c),
            '"' if cell.is_empty() => opened = Some(line),
            ',' => cells.push(std::mem::take(&mut cell)),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                cells.push(std::mem::take(&mut cell));
                records.push((start, std::mem::take(&mut cells)));
                start = line;
            }
            _ => cell.push(c),
        }
    }
    if let Some(line) = opened {
        return Err(line);
    }
    if !cell.is_empty() || !cells.is_empty() {
        cells.push(cell);
        records.push((start, cells));
    }
    records.retain(|(_, cells)| cells.iter().any(|cell| !cell.trim().is_empty()));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_newlines_and_lines() {
        let found = records("a,\"b,\"\"c\"\"\nd\",\r\n\ne,f,g").unwrap();
        let expected = vec![
            (
                1,
                vec!["a".to_owned(), "b,\"c\"\nd".to_owned(), String::new()],
            ),
            (4, vec!["e".to_owned(), "f".to_owned(), "g".to_owned()]),
        ];
        assert_eq!(found, expected);
        assert_eq!(records("a\nb,\"c\nd"), Err(2));
        assert_eq!(records(""), Ok(vec![]));
    }
}
