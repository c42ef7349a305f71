//! A network's configuration in readable lines.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

/// One line for each field of `config`, indented, with the names of nested fields joined by dots.
///
/// # Errors
///
/// The configuration cannot be serialized.
pub fn config_lines(config: &impl Serialize) -> Result<String> {
    let mut fields = Vec::new();
    collect("", &serde_json::to_value(config)?, &mut fields);
    let lines = fields
        .iter()
        .map(|(name, value)| format!("    {name:<24} {value}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn collect(name: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    let text = match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = match name {
                    "" => key.clone(),
                    name => format!("{name}.{key}"),
                };
                collect(&name, value, fields);
            }
            return;
        }
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        value => plain(value),
    };
    fields.push((name.to_owned(), text));
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_fields_have_a_line_each() {
        let config = json!({ "kind": "swin", "adapter": { "depths": [2, 2], "bias": null } });
        let lines = config_lines(&config).unwrap();
        let words: Vec<Vec<&str>> = lines
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                vec!["adapter.bias", "none"],
                vec!["adapter.depths", "2,", "2"],
                vec!["kind", "swin"]
            ]
        );
    }
}
