"""Small runs that the tests share: synthetic people, labels, a backbone, a model of each task."""

import pathlib
import tarfile

import pytest

import clasp

TASKS = ["reid", "attributes", "parsing", "pose", "detection", "search"]
# As small as these go: the tests are about the way in and out, not about what is learned.
RUN = {"steps": 2, "batch": 8}


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def people(work):
    """Synthetic people: `unlabeled/`, `truth/`, and labeled data of every task."""
    folder = work / "people"
    sizes = ["--train-identities", "8", "--test-identities", "4", "--cameras", "2", "--shots", "1"]
    clasp.run("synth", "--out", str(folder), *sizes, "--scenes", "8", "--size", "128x64", "--unlabeled", "24")
    return folder


@pytest.fixture(scope="session")
def unlabeled(work, people):
    """A folder with 24 images of people."""
    folder = work / "photos"
    for shard in (people / "unlabeled").glob("*.tar"):
        with tarfile.open(shard) as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def photos(unlabeled):
    """Paths of the images, in the order of their keys."""
    return [next(unlabeled.glob(f"{key}.*")) for key in clasp.Images([str(unlabeled)]).keys]


@pytest.fixture(scope="session")
def labels(work, unlabeled):
    folder = work / "labels"
    clasp.label(unlabeled, out=folder, threads=2)
    return folder


@pytest.fixture(scope="session")
def run_folder(work, unlabeled, labels):
    folder = work / "pretrained"
    clasp.pretrain("demo", out=folder, images=unlabeled, labels=labels, threads=2, run=RUN, projection_head={"prototypes": 16})
    return folder


@pytest.fixture(scope="session")
def backbone(run_folder):
    return clasp.load(run_folder)


@pytest.fixture(scope="session")
def fine_tuned(work, people, run_folder):
    """Loads a model fine-tuned for a task."""
    made: dict[str, pathlib.Path] = {}

    def of(task):
        if task not in made:
            folder = work / f"tuned-{task}"
            recipe = f"{task}-mini"
            of_scenes = task in ("detection", "search")
            data, batch = (people / "scenes", 4) if of_scenes else (people, 8)
            clasp.finetune(task, recipe, out=folder, data=data, init=run_folder, threads=2, run={"epochs": 1, "batch": batch})
            made[task] = folder
        return made[task]

    return of
