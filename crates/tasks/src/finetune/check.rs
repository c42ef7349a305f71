//! Checks of what a recipe or `--set` says, before any memory is taken.

pub use clasp_run::check::{count, range, within};

use super::recipe::setting;
use crate::TaskError;

/// Largest height and width of an input.
const LARGEST: usize = 8192;
/// Smallest.
const SMALLEST: usize = 8;

/// Checks the height and width of inputs.
///
/// # Errors
/// They are not from 8 to 8192, or no multiples of `multiple`.
pub fn size([height, width]: [usize; 2], multiple: usize) -> Result<(), TaskError> {
    let fits = |side: usize| (SMALLEST..=LARGEST).contains(&side) && side.is_multiple_of(multiple);
    if fits(height) && fits(width) {
        return Ok(());
    }
    let mut expected = format!("height and width from {SMALLEST} to {LARGEST}");
    if multiple > 1 {
        expected.push_str(&format!(", multiples of {multiple}"));
    }
    Err(setting(
        "model.size",
        &expected,
        format!("{height}x{width}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::AttributeTask;
    use crate::detection::DetectionTask;
    use crate::finetune::Task;
    use crate::finetune::recipe::{BUILT_IN, Recipe};
    use crate::parsing::ParsingTask;
    use crate::pose::PoseTask;
    use crate::reid::Reid;
    use crate::search::SearchTask;

    fn check<T: Task>(recipe: &str, overrides: &[String]) -> Result<(), TaskError> {
        T::check(&Recipe::<T::Settings>::load(recipe, overrides)?.task)
    }

    fn of_task(task: &str, recipe: &str, overrides: &[String]) -> Result<(), TaskError> {
        match task {
            "reid" => check::<Reid>(recipe, overrides),
            "attributes" => check::<AttributeTask>(recipe, overrides),
            "parsing" => check::<ParsingTask>(recipe, overrides),
            "pose" => check::<PoseTask>(recipe, overrides),
            "detection" => check::<DetectionTask>(recipe, overrides),
            "search" => check::<SearchTask>(recipe, overrides),
            other => panic!("no task {other}"),
        }
    }

    #[test]
    fn built_in_recipes_are_within() {
        for (name, _) in BUILT_IN {
            let task = name.split('-').next().unwrap_or(name);
            of_task(task, name, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let table: [(&str, &[&str]); 6] = [
            (
                "reid",
                &[
                    "instances=0",
                    "margin=-1",
                    "margin=nan",
                    "identity_weight=-1",
                    "smoothing=2",
                    "erasing=nan",
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
                    "edges=nan",
                    "lovasz=-1",
                    "scale=nan",
                    "scale_limit=-1",
                    "scale_limit=1",
                    "rotation=-5",
                    "rotation=nan",
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
                    "padding=0",
                    "nms=nan",
                    "nms=-1",
                    "box_threshold=nan",
                    "scale=-1",
                    "rotation=nan",
                    "width=0",
                    "blur=100001",
                    "blur=4",
                ],
            ),
            (
                "detection",
                &[
                    "views.scale=[2.0,1.0]",
                    "views.scale=[nan,1.0]",
                    "views.scale=[0.0,0.0]",
                    "views.scale=[1000.0,1000.0]",
                    "views.brightness=[-1.0,1.0]",
                    "views.flip=2",
                    "views.test_scale=100",
                    "views.test_scale=nan",
                    "views.score=nan",
                    "views.nms=nan",
                    "views.test_scale=0",
                    "views.brightness=[2.0,1.0]",
                    "views.most=0",
                    "views.soft_sigma=-1",
                    "centre_weight=-1",
                ],
            ),
            (
                "search",
                &[
                    "queue=100000000",
                    "momentum=2",
                    "scalar=-1",
                    "search_score=nan",
                    "embedding=0",
                    "views.scale=[2.0,1.0]",
                ],
            ),
        ];
        for (task, bad) in table {
            for text in bad {
                let overrides = [format!("task.{text}")];
                let error = match of_task(task, task, &overrides) {
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
        assert!(Reid::check_size([130, 66], &[4, 8, 16, 32]).is_ok());
        for error in [
            PoseTask::check_size([250, 250], &[4, 8, 16, 32]),
            DetectionTask::check_size([250, 256], &[8, 16]),
            SearchTask::check_size([100, 64], &[8, 16]),
            ParsingTask::check_size([1, 1], &[8, 16]),
            Reid::check_size([100_000, 100_000], &[8, 16]),
        ] {
            assert!(error.unwrap_err().to_string().contains("model.size"));
        }
    }
}
