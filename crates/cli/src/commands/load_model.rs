//! Loading of fine-tuned models.

use std::path::Path;

use anyhow::{Result, bail};
use clasp_tasks::task::{FinetunedModel, InputKind, Objective};

/// Loads a model and changes the configuration of its task: each of `set` is `key=value` with a key
/// of the recipe's `[task]`.
pub fn load<T: Objective>(
    path: &Path,
    set: &[String],
    size: Option<[usize; 2]>,
    device: &burn::tensor::Device,
) -> Result<FinetunedModel<T>> {
    if T::INPUT == InputKind::Scene && size.is_some() {
        bail!(
            "--size: inputs of {} are whole scenes\nhint: change their scale with --set scenes.test_scale=0.5",
            T::NAME
        );
    }
    let mut model = FinetunedModel::<T>::load(path, device)?;
    if let Some([height, width]) = size {
        (model.preprocess.height, model.preprocess.width) = (height, width);
    }
    if !set.is_empty() {
        let text = clasp_run::recipe::to_toml(model.task.config());
        let keys: Vec<String> = { set.iter() }
            .map(|one| one.strip_prefix("task.").unwrap_or(one).to_owned())
            .collect();
        *model.task.config_mut() =
            clasp_run::recipe::parse(&text, "the configuration of the model", &keys)?;
    }
    model.check()?;
    Ok(model)
}
