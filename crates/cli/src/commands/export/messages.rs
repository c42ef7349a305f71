//! What the exports of backbones say.

use std::path::Path;

use anyhow::anyhow;

/// A prompt was asked for where there is nothing to fold it into.
pub fn no_prompts(prompt: &str, model: &Path) -> anyhow::Error {
    anyhow!(
        "--prompt {prompt}: {} has no prompts to fold\nhint: leave out --prompt",
        model.display()
    )
}

/// What a command says of an exported backbone: where it is, the Python that loads it, warnings.
pub fn written_text(first: String, python: &str, warnings: &[String]) -> String {
    let mut text = format!("{first}\n\n{python}\n");
    for warning in warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}
