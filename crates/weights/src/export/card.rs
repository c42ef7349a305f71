//! The model card of a folder of the hub.

use std::fmt::Write;

use clasp_metrics::{Metric, MetricUnit};

use crate::backbone::BackboneMeta;
use crate::exported::STATED_BESIDE;

/// Metrics of a model under one protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct CardMetrics {
    /// What was evaluated, in words.
    pub title: String,
    /// The metrics.
    pub metrics: Vec<Metric>,
    /// The protocol, in words; none where it is not known.
    pub protocol: Option<String>,
}

/// What a model card says besides what stands in the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelCard {
    /// Name of the model.
    pub name: String,
    /// Prompt weights that are folded in, in words.
    pub prompt: Option<String>,
    /// Its metrics.
    pub metrics: Vec<CardMetrics>,
}

/// What writes the files.
pub(super) fn written_by() -> String {
    format!("clasp {}", env!("CARGO_PKG_VERSION"))
}

/// The license of the weights as the hub names it, where their publisher states it beside them;
/// that a file has the names of a source does not prove its license.
pub(super) fn license(meta: &BackboneMeta) -> &str {
    { meta.licenses.iter() }
        .find_map(|line| line.strip_prefix("weights: ")?.strip_suffix(STATED_BESIDE))
        .unwrap_or("unknown")
}

/// The text of `README.md`.
pub(super) fn text(
    meta: &BackboneMeta,
    card: &ModelCard,
    python: &str,
    note: &str,
    warnings: &[String],
) -> String {
    let library = match python.contains("timm") {
        true => "timm",
        false => "transformers",
    };
    let mut text = format!(
        "---\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\nlicense: {}\ntags:\n- clasp\n- {library}\n- \
         image-feature-extraction\n---\n\n# {}\n\n",
        license(meta),
        card.name
    );
    let _ = writeln!(
        text,
        "A backbone for images of people, written by {}.\n",
        written_by()
    );
    text.push_str("| | |\n|---|---|\n");
    let mut row = |what: &str, value: String| {
        let value = value.replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(text, "| {what} | {value} |");
    };
    row("network", network(meta));
    row(
        "images",
        format!(
            "{}x{} pixels (height x width), {}",
            meta.height, meta.width, meta.filter
        ),
    );
    row(
        "mean, std",
        format!("{}; {}", colors(meta.mean), colors(meta.std)),
    );
    row("method", format!("{}, {} steps", meta.method, meta.step));
    if !meta.heads.is_empty() {
        row("heads in training", meta.heads.join(", "));
    }
    if let Some(prompt) = &card.prompt {
        row("prompt folded in", prompt.clone());
    }
    if !meta.origin.is_empty() {
        row("origin", meta.origin.clone());
    }
    let _ = write!(text, "\n## Use\n\n```python\n{python}\n```\n\n{note}\n");
    for warning in warnings {
        let _ = write!(text, "\n**Note:** {warning}.\n");
    }
    text.push_str(
        "\nImages are resized to the size above without regard to the ratio of their sides, divided by 255, less the \
         mean, over the standard deviation.\n\n## Metrics\n\n",
    );
    text.push_str(&metrics(&card.metrics));
    text.push_str("\n## Licenses\n\n");
    if meta.stage == "import" {
        text.push_str(
            "As recorded for the source that the weights were recognized as by the names of their tensors, which does not \
             prove them.\n\n",
        );
    }
    text.push_str(&licenses(meta));
    text
}

fn network(meta: &BackboneMeta) -> String {
    let count = meta.config.parameters().unwrap_or_default();
    format!(
        "{}, {:.1} M parameters",
        meta.config.name,
        count as f64 / 1e6
    )
}

fn colors(values: [f32; 3]) -> String {
    values.map(|value| value.to_string()).join(", ")
}

fn metrics(all: &[CardMetrics]) -> String {
    if all.is_empty() {
        return "None are known to the program that wrote this folder.\n".to_owned();
    }
    let mut text = String::new();
    for one in all {
        let _ = write!(
            text,
            "**{}**\n\n| metric | value |\n|---|---:|\n",
            one.title
        );
        for metric in &one.metrics {
            let unit = match metric.unit {
                MetricUnit::Fraction => " %",
                MetricUnit::Number => "",
            };
            let _ = writeln!(text, "| {} | {}{unit} |", metric.name, metric.printed());
        }
        let protocol = match &one.protocol {
            Some(protocol) => protocol.trim(),
            None => "not recorded",
        };
        let _ = write!(text, "\nProtocol: {protocol}\n\n");
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// The lines of the file, and `unknown` for what it does not say.
fn licenses(meta: &BackboneMeta) -> String {
    let mut text = String::new();
    // Backbones of this program name it `program`.
    for (kind, starts) in [
        ("code", &["code: ", "program: "][..]),
        ("weights", &["weights: "]),
        ("data", &["data: "]),
    ] {
        let rest = |line: &'_ String| {
            { starts.iter() }.find_map(|start| line.strip_prefix(start).map(str::to_owned))
        };
        let lines: Vec<String> = meta.licenses.iter().filter_map(rest).collect();
        let value = match lines.as_slice() {
            [] => "unknown".to_owned(),
            lines => lines.join("; "),
        };
        let _ = writeln!(text, "- {kind}: {value}");
    }
    text
}
