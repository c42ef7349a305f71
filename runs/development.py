#!/usr/bin/env python3
"""Makes development data of photos: only the training splits of DATA, each cut in two, so that a recipe can be chosen without a test image.

    python3 runs/development.py DATA DEV
    python3 runs/evidence.py OUT --data DEV --tables photos-frozen --seeds 100 101 --arms clasp --set loss.dino_weight=0.1

DATA holds persons/, pku_reid/, ccp/, lspe/ and pets/. In DEV, persons/ is that of DATA. In the others every other person (PKU-Reid) or
image (CCP, LSPE) of the training split trains and the rest tests; the first two images of a tested person and camera 1 are queries.
pets-detection/ has the training frames of runs/finetune.py, whose boxes a detector found: the last 13 test.
persons/ holds crops of all these images, also of those that test: compare pre-trained weights with each other, not with random ones.
Files are linked. Standard library only.
"""

import argparse
import csv
import json
import pathlib
import shutil

from finetune import link, part_of, pets


def reid(source, target):
    images = sorted((source / "bounding_box_train").glob("*.png"))
    people = sorted({image.name.split("_")[0] for image in images})
    tested = set(people[1::2])
    queries = {person: 0 for person in tested}
    for image in images:
        person, camera = image.name.split("_")[:2]
        folder = "bounding_box_train"
        if person in tested:
            folder = "bounding_box_test"
            if camera.startswith("c1") and queries[person] < 2:
                queries[person] += 1
                folder = "query"
        (target / folder).mkdir(exist_ok=True)
        link(image, target / folder / image.name)


def ccp(source, target):
    for name in ("images", "masks", "labels.txt"):
        link(source / name, target / name)
    for name in ("parsing.csv", "attributes.csv"):
        head, *rows = csv.reader((source / name).open(newline=""))
        split = head.index("split")
        rows = [row for row in rows if row[split] == "train"]
        for row in rows[1::2]:
            row[split] = "val"
        with (target / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])


def pose(source, target):
    link(source / "images", target / "images")
    whole = json.loads((source / "person_keypoints_train.json").read_text())
    ids = [image["id"] for image in whole["images"]]
    for split, some in (("train", set(ids[::2])), ("val", set(ids[1::2]))):
        (target / f"person_keypoints_{split}.json").write_text(json.dumps(part_of(whole, some)))


def detection(source, target):
    """`pets` makes training and test frames; the test frames are dropped."""
    pets(source, target)
    shutil.rmtree(target / "pets-search")
    folder = target / "pets-detection"
    whole = json.loads((folder / "instances_train.json").read_text())
    ids = [image["id"] for image in whole["images"]]
    for split, some in (("train", set(ids[:-13])), ("test", set(ids[-13:]))):
        (folder / f"instances_{split}.json").write_text(json.dumps(part_of(whole, some)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("dev", type=pathlib.Path)
    options = parser.parse_args()
    options.dev.mkdir(parents=True)
    link(options.data / "persons", options.dev / "persons")
    for name, split in (("pku_reid", reid), ("ccp", ccp), ("lspe", pose)):
        (options.dev / name).mkdir()
        split(options.data / name, options.dev / name)
    detection(options.data / "pets", options.dev)


if __name__ == "__main__":
    main()
