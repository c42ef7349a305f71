//! The settings of a label store: a run with other settings into the same folder is refused.

use std::collections::BTreeSet;
use std::path::Path;

use clasp_data::atomic_write;

use crate::Error;

/// The file with the settings of a store. Its name begins with `_`, so that readers of folders of
/// Parquet pass over it.
const SETTINGS: &str = "_label.toml";

/// Writes the settings into a new store, or checks that they are those of an old one.
pub(super) fn check_settings(folder: &Path, settings: &toml::Table) -> Result<(), Error> {
    let path = folder.join(SETTINGS);
    let text = match fs_err::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!(
                "# What decided the labels in this folder, besides the vocabulary and the model.\n{settings}"
            );
            return Ok(atomic_write(&path, |out| out.write_all(text.as_bytes()))?);
        }
        text => text?,
    };
    let other = |key: &str, expected: String, found: String| {
        Err(Error::OtherSettings {
            path: path.clone(),
            key: key.to_owned(),
            expected,
            found,
        })
    };
    let there: toml::Table = match toml::from_str(&text) {
        Ok(there) => there,
        Err(error) => return other("the whole file", "TOML".into(), error.to_string()),
    };
    let show =
        |value: Option<&toml::Value>| value.map_or("nothing".to_owned(), ToString::to_string);
    let keys: BTreeSet<&String> = there.keys().chain(settings.keys()).collect();
    match keys
        .into_iter()
        .find(|&key| there.get(key) != settings.get(key))
    {
        Some(key) => other(key, show(there.get(key)), show(settings.get(key))),
        None => Ok(()),
    }
}
