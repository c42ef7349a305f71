//! Loading of fine-tuned models.

use std::path::Path;

use anyhow::{Result, bail};
use clasp_tasks::task::{FinetunedModel, InputKind, Objective};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    model.preprocess.resize(size);
    if !set.is_empty() {
        *model.task.config_mut() =
            changed(model.task.config(), "the configuration of the model", set)?;
    }
    model.check()?;
    Ok(model)
}

/// The configuration of a task with `set`, see [`load`]; errors name its `place`.
pub fn changed<C>(config: &C, place: &str, set: &[String]) -> Result<C>
where
    C: DeserializeOwned + Serialize + Default,
{
    let text = clasp_run::recipe::to_toml(config);
    let keys: Vec<String> = { set.iter() }
        .map(|one| one.strip_prefix("task.").unwrap_or(one).to_owned())
        .collect();
    Ok(clasp_run::recipe::parse(&text, place, &keys)?)
}
