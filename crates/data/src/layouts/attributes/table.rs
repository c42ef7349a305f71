//! Attributes of images in a table.
//!
//! ```text
//! image,split,hat,upper_color=red
//! images/0001.jpg,train,0,1
//! ```
//!
//! The first two columns are `image`, a path relative to the table, and `split`, any name; each
//! other column is an attribute with values 0 or 1 (also `1.0`, `true`; -1 for 0 where the table
//! has no 0).

use std::path::{Path, PathBuf};

use super::dataset::{AttributeDataset, AttributeImage};
use crate::layouts::LayoutError;
use crate::layouts::coco::json::whole;
use crate::layouts::csv::{Table, check_lines};
use crate::layouts::layout::{Layout, LayoutReader};

/// Where the table is looked for.
const FILES: [&str; 3] = [
    "attributes.csv",
    "attributes/attributes.csv",
    "attributes/labels.csv",
];

pub(crate) const LAYOUT: Layout = Layout {
    name: "attribute table",
    signature: "`attributes.csv` with columns image, split and a column of 0 and 1 for each attribute",
    official: &[],
    reader: LayoutReader::Attributes {
        files: || FILES.map(String::from).to_vec(),
        read: |file| match file.extension().is_some_and(|extension| extension == "csv") {
            true => read(file.to_owned()).map(Some),
            false => Ok(None),
        },
    },
};

fn read(file: PathBuf) -> Result<AttributeDataset, LayoutError> {
    let table = Table::read(&file, &["image", "split"])?;
    let names: Vec<String> = table.header[2..].to_vec();
    let line_error = |line, expected: String, found: String| LayoutError::Line {
        file: table.file.clone(),
        line,
        expected,
        found,
    };
    if names.is_empty() {
        return Err(line_error(
            1,
            "at least one attribute after `image,split`".into(),
            "none".into(),
        ));
    }
    if let Some((i, name)) = names
        .iter()
        .enumerate()
        .find(|(i, name)| names[..*i].contains(name))
    {
        let first = names.iter().position(|n| n == name).unwrap_or(0) + 3;
        let found = format!("`{name}` in columns {first} and {}", i + 3);
        return Err(line_error(1, "every attribute once".into(), found));
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut images = Vec::with_capacity(table.rows.len());
    // Some tables write -1 for 0 (as CelebA's does); beside 0 it may mean unknown.
    let cells = || table.rows.iter().flat_map(|(_, cells)| &cells[2..]);
    let signed = !cells().any(|cell| whole(cell) == Some(0));
    let mut faults = Vec::new();
    for (line, cells) in &table.rows {
        let mut values = Vec::with_capacity(names.len());
        for (name, cell) in names.iter().zip(&cells[2..]) {
            let value = match (whole(cell), cell.trim()) {
                (Some(0), _) | (None, "false" | "False" | "FALSE") => Some(false),
                (Some(1), _) | (None, "true" | "True" | "TRUE") => Some(true),
                (Some(-1), _) if signed => Some(false),
                _ => None,
            };
            if value.is_none() {
                let expected = match cell.trim() {
                    "-1" | "-1.0" => format!("0 or 1, or -1 or 1, in column `{name}`"),
                    _ => format!("0 or 1 in column `{name}`"),
                };
                faults.push(line_error(*line, expected, format!("`{}`", cell.trim())));
            }
            values.push(value.unwrap_or(false));
        }
        images.push(AttributeImage {
            path: folder.join(cells[0].trim()),
            name: cells[0].trim().to_owned(),
            split: cells[1].trim().to_owned(),
            values,
        });
    }
    check_lines(faults)?;
    Ok(AttributeDataset {
        layout: LAYOUT.name,
        file,
        others: Vec::new(),
        names,
        images,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::tests::in_folder;

    fn open(text: &str) -> Result<AttributeDataset, LayoutError> {
        in_folder("attributes.csv", text, AttributeDataset::open)
    }

    #[test]
    fn reads_a_table() {
        let data =
            open("\u{feff}image,split,hat,\"bag, big\"\r\na/1.jpg,train,0,1\r\n2.jpg,val,1,0\r\n")
                .unwrap();
        assert_eq!(data.names, ["hat", "bag, big"]);
        assert_eq!(data.images[0].values, [false, true]);
        assert!(data.images[0].path.ends_with("a/1.jpg") && data.images[0].path.parent().is_some());
        assert_eq!(data.splits(), ["train", "val"]);
        assert_eq!(data.split("val").unwrap().len(), 1);
        let error = data.split("test").unwrap_err().to_string();
        assert!(
            error.contains("`test`") && error.contains("train, val"),
            "{error}"
        );
    }

    #[test]
    fn values_as_other_tools_write_them() {
        let values = |text: &str| -> Vec<Vec<bool>> {
            let data = open(&format!("image,split,hat,bag\n{text}")).unwrap();
            data.images.into_iter().map(|image| image.values).collect()
        };
        let expected = vec![vec![true, false], vec![false, true]];
        assert_eq!(values("a,train,1.0,0.0\nb,train,0.0,1\n"), expected);
        assert_eq!(values("a,train,true,False\nb,train,FALSE,True\n"), expected);
        assert_eq!(values("a,train,1,-1\nb,train,-1.0,1\n"), expected);
        let error =
            open("image,split,hat,bag\na,train,0,-1\nb,train,,2\nc,train,0.5,1\n").unwrap_err();
        let told = error.to_string();
        for part in [
            "4 lines cannot be used",
            "line 2: expected 0 or 1, or -1 or 1, in column `bag`, found `-1`",
            "line 3: expected 0 or 1 in column `hat`, found ``",
            "line 3: expected 0 or 1 in column `bag`, found `2`",
            "line 4: expected 0 or 1 in column `hat`, found `0.5`",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, expected) in [
            ("", "line 1: expected a header"),
            (
                "file,split,hat\n",
                "line 1: expected a header that begins `image,split`, found `file,split,hat`",
            ),
            ("image,split\n", "line 1: expected at least one attribute"),
            ("image,split,hat,hat\n", "`hat` in columns 3 and 4"),
            (
                "image,split,hat\na,train,0\nb,train,yes\n",
                "line 3: expected 0 or 1 in column `hat`, found `yes`",
            ),
            (
                "image,split,hat\na,train\n",
                "line 2: expected 3 cells as in the header, found 2: `a,train`",
            ),
            (
                "image,split,hat\n\"a,train,0\n",
                "line 2: expected a closing quote",
            ),
        ] {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let error = AttributeDataset::open(Path::new("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nowhere/attributes/attributes.csv"),
            "{error}"
        );
    }
}
