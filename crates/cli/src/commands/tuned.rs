//! What the verbs on fine-tuned models share.

use std::path::Path;

use anyhow::{Result, bail};
use clasp_tasks::finetune::{Model, Task};

/// Runs an expression for the type of a task.
macro_rules! with_task {
    ($task:expr, $name:ident => $body:expr) => {
        match $task {
            crate::args::Task::Reid => {
                type $name = clasp_tasks::reid::Reid;
                $body
            }
            crate::args::Task::Attributes => {
                type $name = clasp_tasks::attributes::AttributeTask;
                $body
            }
            crate::args::Task::Parsing => {
                type $name = clasp_tasks::parsing::ParsingTask;
                $body
            }
            crate::args::Task::Pose => {
                type $name = clasp_tasks::pose::PoseTask;
                $body
            }
            crate::args::Task::Detection => {
                type $name = clasp_tasks::detection::DetectionTask;
                $body
            }
            crate::args::Task::Search => {
                type $name = clasp_tasks::search::SearchTask;
                $body
            }
        }
    };
}
pub(crate) use with_task;

/// Loads a model and changes settings of its task: each of `set` is `key=value` with a key of the recipe's `[task]`.
pub fn load<T: Task>(
    path: &Path,
    set: &[String],
    size: Option<[usize; 2]>,
    device: &burn::tensor::Device,
) -> Result<Model<T>> {
    if T::SCENES && size.is_some() {
        bail!(
            "--size: {} looks at whole scenes\n  hint: change their scale with --set views.test_scale=0.5",
            T::NAME
        );
    }
    let mut model = Model::<T>::load(path, device)?;
    if let Some([height, width]) = size {
        (model.preprocess.height, model.preprocess.width) = (height, width);
    }
    if !set.is_empty() {
        let text = clasp_run::recipe::to_toml(model.task.settings());
        let keys: Vec<String> = { set.iter() }
            .map(|one| one.strip_prefix("task.").unwrap_or(one).to_owned())
            .collect();
        *model.task.settings_mut() =
            clasp_run::recipe::parse(&text, "the model's settings", &keys)?;
    }
    model.check()?;
    Ok(model)
}
