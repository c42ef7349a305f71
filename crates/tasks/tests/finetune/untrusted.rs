//! The file of a model is untrusted input: its lists and sizes are checked before they are used.

use super::*;

/// Trains a model for a step. Each change of what its file stores is refused, with words of what was
/// expected and found.
fn load_changed<T: DownstreamTask>(
    recipe: &FinetuneRecipe<T::Config>,
    changes: &[(fn(&mut T), &str, &str)],
) {
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let mut control = Control {
        device_name: "cpu",
        threads: 1,
        stop: &stop,
        on_event: &mut |_| {},
    };
    let run = folder.path().join("run");
    train::<T>(recipe, &run, false, &Device::flex(), &mut control).unwrap();
    let model = FinetunedModel::<T>::load(&run, &Device::flex()).unwrap();
    for (change, expected, found) in changes {
        let mut changed = model.clone();
        change(&mut changed.task);
        let path = folder.path().join("changed.safetensors");
        changed.save(&path, None).unwrap();
        let error = match FinetunedModel::<T>::load(&path, &Device::flex()) {
            Ok(_) => panic!("{}: {expected}: accepted", T::NAME),
            Err(error) => error.to_string(),
        };
        let words = ["changed.safetensors: expected ", expected, found];
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// Once they ended the program in the middle of an evaluation.
#[test]
fn lists_of_a_file_that_do_not_fit_are_refused() {
    let recipe_of = recipe::<AttributeTask>(&drawn(), [64, 32], 1, 8, "");
    load_changed::<AttributeTask>(
        &recipe_of,
        &[
            (|task| task.ratios.clear(), "`ratios` of ", "found 0"),
            (
                |task| task.ratios[0] = 1e9,
                "from 0 to 1",
                "found 1000000000",
            ),
            (
                |task| task.names.clear(),
                "`names` of 1 to 10000",
                "found 0",
            ),
        ],
    );
    let light = "head = \"light\"\nwidth = 16\n";
    let recipe_of = recipe::<ParsingTask>(&drawn(), [64, 32], 1, 8, light);
    load_changed::<ParsingTask>(
        &recipe_of,
        &[
            (
                |task| task.flipped[0] = 200,
                "classes from 0 to ",
                "found 200",
            ),
            (|task| task.flipped.clear(), "`flipped` of ", "found 0"),
        ],
    );
    let recipe_of = recipe::<PoseTask>(&drawn(), [64, 32], 1, 8, "width = 16\n");
    load_changed::<PoseTask>(
        &recipe_of,
        &[
            (
                |task| task.flip_pairs = vec![[0, 99]],
                "`flip_pairs` of pairs of joints from 0 to 16",
                "found [0, 99]",
            ),
            (
                |task| task.skeleton.push([17, 0]),
                "`skeleton` of pairs",
                "found [17, 0]",
            ),
            (
                |task| task.sigmas = Some(vec![0.1]),
                "`sigmas` of 17 entries",
                "found 1",
            ),
        ],
    );
}

/// Once the memory of unknown people took 262 GB, and the program was aborted.
#[test]
fn the_memory_that_a_file_asks_for_is_bounded() {
    let one = "head = \"one-stage\"\nwidth = 32\nembedding_dim = 16\nqueue_size = 8\n";
    let scenes = drawn().join("scenes");
    let recipe_of = recipe::<SearchTask>(&scenes, [128, 192], 1, 4, one);
    load_changed::<SearchTask>(
        &recipe_of,
        &[
            (
                |task| {
                    task.config.embedding_dim = 65_536;
                    task.config.queue_size = 1_000_000;
                },
                "task.queue_size times task.embedding_dim",
                "65536000000",
            ),
            (
                |task| {
                    task.config.embedding_dim = 65_536;
                    task.people = (0..5000).collect();
                },
                "`people` of 1 to 4096 entries",
                "found 5000",
            ),
        ],
    );
}
