#!/usr/bin/env python3
"""Makes development data of photos: only the training splits of DATA, each cut in two, so that a recipe can be chosen without a test image.

    python3 runs/development.py DATA DEV
    python3 runs/evidence.py OUT --data DEV --tables photos-frozen --seeds 100 101 --arms clasp --set loss.dino_weight=0.1

DATA holds persons/, pku_reid/, ccp/, lspe/ and pets/. Of the last four, every other person (PKU-Reid) or
image (CCP, LSPE) of the training split trains and the rest tests; the first two images of a tested person and camera 1 are queries.
pets-detection/ has the training frames of runs/finetune.py, whose boxes a detector found: the last 13 test.
In DEV, persons/ lacks the crops of everything that tests: of those people, images and frames, and of frames less than 20 before them.
Other files are linked. Standard library only.
"""

import argparse
import csv
import json
import pathlib
import shutil
import tarfile

from finetune import link, part_of, pets


def reid(source, target):
    """Like the others, returns what tells a key of persons/ that shows something tested."""
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
    return lambda key: key.startswith("pku_") and key.split("_")[1] in tested


def ccp(source, target):
    tested = set()
    for name in ("images", "masks", "labels.txt"):
        link(source / name, target / name)
    for name in ("parsing.csv", "attributes.csv"):
        head, *rows = csv.reader((source / name).open(newline=""))
        split = head.index("split")
        rows = [row for row in rows if row[split] == "train"]
        for row in rows[1::2]:
            row[split] = "val"
            tested.add(pathlib.Path(row[0]).stem)
        with (target / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return lambda key: key.startswith("ccp_") and key.removeprefix("ccp_") in tested


def pose(source, target):
    """persons/ has none of these images."""
    link(source / "images", target / "images")
    whole = json.loads((source / "person_keypoints_train.json").read_text())
    ids = [image["id"] for image in whole["images"]]
    for split, some in (("train", set(ids[::2])), ("val", set(ids[1::2]))):
        (target / f"person_keypoints_{split}.json").write_text(json.dumps(part_of(whole, some)))
    return lambda key: False


def detection(source, target):
    """`pets` makes training and test frames; the test frames are dropped."""
    pets(source, target)
    shutil.rmtree(target / "pets-search")
    folder = target / "pets-detection"
    whole = json.loads((folder / "instances_train.json").read_text())
    ids = [image["id"] for image in whole["images"]]
    for split, some in (("train", set(ids[:-13])), ("test", set(ids[-13:]))):
        (folder / f"instances_{split}.json").write_text(json.dumps(part_of(whole, some)))
    return lambda key: key.startswith("pets_") and int(key.split("_")[1]) > ids[-13] - 20


def persons(source, target, tested):
    """Copies the shards without the crops whose key one of `tested` accepts."""
    target.mkdir()
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as read, tarfile.open(target / shard.name, "w") as write:
            for member in read:
                key = pathlib.Path(member.name).stem
                if not any(test(key) for test in tested):
                    write.addfile(member, read.extractfile(member))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("dev", type=pathlib.Path)
    options = parser.parse_args()
    options.dev.mkdir(parents=True)
    tested = []
    for name, split in (("pku_reid", reid), ("ccp", ccp), ("lspe", pose)):
        (options.dev / name).mkdir()
        tested.append(split(options.data / name, options.dev / name))
    tested.append(detection(options.data / "pets", options.dev))
    persons(options.data / "persons", options.dev / "persons", tested)


if __name__ == "__main__":
    main()
