//! The one list of downstream tasks. What the command line accepts, the built-in recipes, `eval`,
//! `predict`, `score`, the tests of recipes and the table of docs/finetune.md are all derived from
//! it.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use clasp_model::Precision;
use clasp_weights::finetuned;

use crate::TaskError;
use crate::people::{Finder, finder_of};
use crate::task::{Evaluate, FinetunedModel, InputKind, Task};

/// Defines [`TaskKind`] and [`with_task!`](crate::with_task) from a list of variants and types.
macro_rules! register {
    ($dollar:tt $($kind:ident: $module:ident::$task:ident,)*) => {
        /// A downstream task.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum TaskKind {
            $(
                #[doc = concat!("[`crate::", stringify!($module), "`]")]
                $kind,
            )*
        }

        impl TaskKind {
            /// All tasks.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];
        }

        /// Evaluates an expression with a type parameter bound to the type of a [`TaskKind`]:
        /// `with_task!(kind, T => T::NAME)`.
        #[macro_export]
        macro_rules! with_task {
            ($dollar kind:expr, $dollar name:ident => $dollar body:expr) => {
                match $dollar kind {
                    $(
                        $crate::TaskKind::$kind => {
                            type $dollar name = $crate::$module::$task;
                            $dollar body
                        }
                    )*
                }
            };
        }

        /// The description of a task.
        fn describe(kind: TaskKind) -> TaskDescription {
            match kind {
                $(TaskKind::$kind => TaskDescription::of::<crate::$module::$task>(),)*
            }
        }
    };
}

register! { $
    Reid: reid::ReidTask,
    Attributes: attributes::AttributeTask,
    Parsing: parsing::ParsingTask,
    Pose: pose::PoseTask,
    Detection: detection::DetectionTask,
    Search: search::SearchTask,
}

/// The description of a task for the help and the documentation.
#[derive(Clone, Copy, Debug)]
pub struct TaskDescription {
    /// Name on the command line.
    pub name: &'static str,
    /// The task and its metrics in a few words.
    pub about: &'static str,
    /// The head or heads.
    pub head: &'static str,
    /// The metrics.
    pub metrics: &'static str,
    /// Built-in recipes, name and text; the first is the default.
    pub recipes: &'static [(&'static str, &'static str)],
    /// Whether frozen backbones can be evaluated.
    pub frozen: bool,
    /// Whether the dataset has splits to choose from.
    pub has_splits: bool,
}

impl TaskDescription {
    fn of<T: Task + Evaluate>() -> Self {
        Self {
            name: T::NAME,
            about: T::ABOUT,
            head: T::HEAD,
            metrics: T::METRICS,
            recipes: T::RECIPES,
            frozen: T::FROZEN.is_some(),
            has_splits: T::HAS_SPLITS,
        }
    }
}

impl TaskKind {
    /// Its description.
    pub fn describe(self) -> TaskDescription {
        describe(self)
    }

    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        self.describe().name
    }

    /// The task of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|task| task.name() == name)
    }

    /// The task that a built-in recipe is for.
    pub fn of_recipe(recipe: &str) -> Option<Self> {
        let has = |task: &Self| {
            task.describe()
                .recipes
                .iter()
                .any(|(name, _)| *name == recipe)
        };
        Self::ALL.iter().copied().find(has)
    }
}

/// A finder of people by a fine-tuned model of detection or search.
///
/// # Errors
/// [`TaskError::Mismatch`] for a file of another kind; the file cannot be loaded.
pub fn finder(path: &Path, device: &Device, precision: Precision) -> Result<Finder, TaskError> {
    let task = finetuned::read_meta(path)?.map(|meta| meta.task);
    let kind = task.as_deref().and_then(TaskKind::named);
    let finder = kind.and_then(|kind| {
        with_task!(kind, T => {
            let finds_people = <T as Task>::INPUT == InputKind::Scene;
            finds_people.then(|| {
                let mut model = FinetunedModel::<T>::load(path, device)?;
                model.precision = precision;
                Ok(finder_of(Arc::new(model)))
            })
        })
    });
    finder.unwrap_or_else(|| {
        Err(TaskError::Mismatch {
            file: path.display().to_string(),
            expected: "a fine-tuned model of detection or search".to_owned(),
            found: task.map_or("no fine-tuned model".to_owned(), |task| {
                format!("one of {task}")
            }),
        })
    })
}

/// The built-in recipes of all tasks, name and text.
pub fn built_in_recipes() -> Vec<(&'static str, &'static str)> {
    TaskKind::ALL
        .iter()
        .flat_map(|task| task.describe().recipes)
        .copied()
        .collect()
}

/// The table of docs/finetune.md.
pub fn table() -> String {
    let mut table = String::from("| task | recipes | head | metrics |\n|---|---|---|---|\n");
    for task in TaskKind::ALL {
        let of = task.describe();
        let recipes: Vec<String> = of
            .recipes
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        table.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            of.name,
            recipes.join(", "),
            of.head,
            of.metrics
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::DetectionTask;
    use crate::finetune::FinetuneRecipe;
    use crate::parsing::ParsingTask;
    use crate::pose::PoseTask;
    use crate::reid::ReidTask;
    use crate::search::SearchTask;

    #[test]
    fn the_table_of_the_documentation_is_current() {
        let text = include_str!("../../../docs/finetune.md");
        assert!(
            text.contains(&table()),
            "docs/finetune.md: expected between the markers:\n{}",
            table()
        );
    }

    #[test]
    fn names_of_recipes_begin_with_their_task() {
        for task in TaskKind::ALL {
            assert_eq!(TaskKind::named(task.name()), Some(*task));
            assert_eq!(task.describe().recipes[0].0, task.name());
            for (name, _) in task.describe().recipes {
                assert!(name.starts_with(task.name()), "{name}");
                assert_eq!(TaskKind::of_recipe(name), Some(*task));
            }
        }
    }

    fn check(task: TaskKind, recipe: &str, overrides: &[String]) -> Result<(), TaskError> {
        with_task!(task, T => {
            type Config = <T as Task>::Config;
            T::check(&FinetuneRecipe::<Config>::load(recipe, overrides)?.task)
        })
    }

    #[test]
    fn built_in_recipes_are_valid() {
        for (name, _) in built_in_recipes() {
            let task = TaskKind::of_recipe(name).unwrap();
            check(task, name, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn values_out_of_range_are_errors() {
        let table: [(&str, &[&str]); 6] = [
            (
                "reid",
                &[
                    "instances=0",
                    "triplet_margin=-1",
                    "triplet_margin=nan",
                    "identity_weight=-1",
                    "label_smoothing=2",
                    "random_erasing=nan",
                    "holdout=-1",
                    "flip=2",
                    "flip=nan",
                    "padding=100000",
                ],
            ),
            (
                "attributes",
                &["threshold=nan", "threshold=5", "flip=-1", "padding=100000"],
            ),
            (
                "parsing",
                &[
                    "edge_weight=nan",
                    "lovasz_weight=-1",
                    "scale_std=nan",
                    "scale_limit=-1",
                    "scale_limit=1",
                    "rotation_std=-5",
                    "rotation_std=nan",
                    "test_scales=[]",
                    "test_scales=[1000.0]",
                    "test_scales=[0.0]",
                    "test_scales=[nan]",
                    "width=0",
                    "flip=2",
                ],
            ),
            (
                "pose",
                &[
                    "sigma=0",
                    "sigma=-1",
                    "box_padding=0",
                    "oks_nms=nan",
                    "oks_nms=-1",
                    "box_threshold=nan",
                    "scale_std=-1",
                    "rotation_std=nan",
                    "width=0",
                    "blur_kernel=100001",
                    "blur_kernel=4",
                ],
            ),
            (
                "detection",
                &[
                    "scenes.scale=[2.0,1.0]",
                    "scenes.scale=[nan,1.0]",
                    "scenes.scale=[0.0,0.0]",
                    "scenes.scale=[1000.0,1000.0]",
                    "scenes.brightness=[-1.0,1.0]",
                    "scenes.flip=2",
                    "scenes.test_scale=100",
                    "scenes.test_scale=nan",
                    "scenes.score_threshold=nan",
                    "scenes.nms_threshold=nan",
                    "scenes.test_scale=0",
                    "scenes.brightness=[2.0,1.0]",
                    "scenes.max_boxes=0",
                    "scenes.soft_nms_sigma=-1",
                    "center_weight=-1",
                ],
            ),
            (
                "search",
                &[
                    "queue_size=100000000",
                    "queue_size=0",
                    "memory_momentum=2",
                    "similarity_scale=-1",
                    "search_threshold=nan",
                    "embedding_dim=0",
                    "scenes.scale=[2.0,1.0]",
                ],
            ),
        ];
        for (task, bad) in table {
            for text in bad {
                let overrides = [format!("task.{text}")];
                let error = match check(TaskKind::named(task).unwrap(), task, &overrides) {
                    Ok(()) => panic!("{task}: {text} is accepted"),
                    Err(error) => error.to_string(),
                };
                let key = text.split('=').next().unwrap();
                assert!(error.contains(key), "{task}: {text}: {error}");
            }
        }
    }

    #[test]
    fn sizes_are_checked_against_strides() {
        assert!(PoseTask::check_size([256, 192], &[4, 8, 16, 32]).is_ok());
        assert!(DetectionTask::check_size([256, 256], &[8, 16]).is_ok());
        assert!(ReidTask::check_size([130, 66], &[4, 8, 16, 32]).is_ok());
        for error in [
            PoseTask::check_size([250, 250], &[4, 8, 16, 32]),
            DetectionTask::check_size([250, 256], &[8, 16]),
            SearchTask::check_size([100, 64], &[8, 16]),
            ParsingTask::check_size([1, 1], &[8, 16]),
            ReidTask::check_size([100_000, 100_000], &[8, 16]),
        ] {
            assert!(error.unwrap_err().to_string().contains("model.size"));
        }
    }
}
