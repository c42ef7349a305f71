#!/usr/bin/env python3
"""Fine-tunes the six tasks from random and from pre-trained weights: the tables and curves of docs/results.md.

    python3 runs/finetune.py real OUT --data DATA --init BACKBONE [--seeds 0 1]
    python3 runs/finetune.py drawn OUT --data PEOPLE --init BACKBONE
    python3 runs/finetune.py overfit OUT --data DATA --init BACKBONE

real: DATA holds pku_reid/, ccp/, lspe/ and pets/. drawn: PEOPLE is a folder that `clasp synth` or `clasp demo` wrote. overfit: the
same few images of DATA train and test; every task must learn them.
Each run is evaluated on the test images after every fifth of its steps. The table takes the last evaluation, so that nothing is
selected on test images. A run that exists is not run again, unless another command, data, weights or commit of the program made it.
OUT/curves.svg shows the evaluations.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import chart
from provenance import ROOT, commit, content_digest, recipe_digest

# Task: metrics of the table, of which the first is drawn; epochs of a fifth of a run.
TASKS = {
    "reid": (["mAP", "rank-1"], 8),
    "attributes": (["mA", "mAP"], 6),
    "parsing": (["mIoU"], 4),
    "pose": (["PCK@0.2"], 6),
    "detection": (["AP.5"], 12),
    "search": (["mAP", "top-1"], 12),
}
REAL = {
    "reid": ("pku_reid", {}),
    "attributes": ("ccp", {}),
    "parsing": ("ccp", {"task.classes": '"ccp_parts"'}),
    "pose": ("lspe", {}),
    "detection": ("pets-detection", {}),
    # Only four frames train, so more epochs.
    "search": ("pets-search", {"run.epochs": 200, "run.eval_every": 40, "run.batch": 4}),
}
# No augmentation, no regularization, a final learning rate of 0.3 times the first; parsing on finer maps.
OVERFIT_LR = {"reid": 1e-3, "attributes": 1e-3, "parsing": 5e-4, "pose": 1e-3, "detection": 5e-4, "search": 5e-4}
OVERFIT = {"run.epochs": 150, "run.eval_every": 30, "run.batch": 8, "optimizer.weight_decay": 0, "task.flip": 0}
end = lambda task: {"optimizer.min_lr": 0.3 * OVERFIT_LR[task]}
SCENES = {"task.scenes.scale": [1.0, 1.0], "task.scenes.brightness": [1.0, 1.0], "task.scenes.flip": 0, "run.batch": 2, "run.epochs": 600, "run.eval_every": 120}
OVERFIT_SETS = {
    "reid": ("reid", OVERFIT | end("reid") | {"task.padding": 0, "task.random_erasing": 0, "task.instances": 2}),
    "attributes": ("attributes", OVERFIT | end("attributes") | {"task.padding": 0}),
    "parsing": ("parsing", OVERFIT | end("parsing") | {"model.size": [256, 128], "run.epochs": 400, "run.eval_every": 80, "task.classes": '"ccp_parts"', "task.rotation_std": 0, "task.scale_std": 0}),
    "pose": ("pose", OVERFIT | end("pose") | {"task.rotation_std": 0, "task.scale_std": 0}),
    "detection": ("scenes", {k: v for k, v in OVERFIT.items() if k != "task.flip"} | end("detection") | SCENES),
    # Whole scenes. With five people, OIM at a high similarity scale has a low loss for embeddings that are hardly similar.
    "search": (
        "scenes",
        {k: v for k, v in (OVERFIT | end("search") | SCENES).items() if k not in ("task.flip", "task.scenes.scale")}
        | {"run.batch": 4, "run.epochs": 100, "run.eval_every": 20, "task.similarity_scale": 6},
    ),
}
# Crops of 200 people; scenes.
SHORT = lambda epochs: {"run.epochs": epochs, "run.eval_every": epochs // 5}
DRAWN = {
    "reid": ("market", SHORT(20)),
    "attributes": ("", SHORT(20)),
    "parsing": ("", SHORT(10)),
    "pose": ("", SHORT(20)),
    "detection": ("scenes", SHORT(40) | {"run.batch": 4}),
    "search": ("drawn-search", SHORT(10) | {"run.batch": 4}),
}


def pets(source, out):
    """Two datasets of the sequence. Detection trains on the boxes of a detector and is tested on the labeled frames;
    search trains on every other labeled frame and is tested on the rest, with the same people: there are no others."""
    truth = json.loads((source / "instances_val.json").read_text())
    found = [d for d in json.loads((source / "detections.json").read_text()) if d["score"] >= 0.7]
    labeled = sorted(image["id"] for image in truth["images"])
    frames = {int(name.stem.split("_")[1]): name.name for name in (source / "images").glob("*.jpg")}
    size = {key: truth["images"][0][key] for key in ("width", "height")}
    image = lambda i: {"id": i, "file_name": frames[i], **size}
    boxes = [
        {"id": n, "image_id": d["image_id"], "category_id": 1, "bbox": d["bbox"], "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0}
        for n, d in enumerate(found, 1)
        if d["image_id"] not in labeled
    ]
    seen = sorted({box["image_id"] for box in boxes})
    splits = {
        "pets-detection": {
            "train": {"images": [image(i) for i in seen], "annotations": boxes, "categories": truth["categories"]},
            "test": truth,
        },
        "pets-search": {"train": part_of(truth, labeled[::2]), "test": part_of(truth, labeled[1::2])},
    }
    for name, parts in splits.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        link(source / "images", folder / "images")
        for split, content in parts.items():
            (folder / f"instances_{split}.json").write_text(json.dumps(content))


def overfit(source, out):
    """Eight or fewer images of each dataset that both train and test."""
    rows = (source / "ccp/parsing.csv").read_text().splitlines()
    tags = (source / "ccp/attributes.csv").read_text().splitlines()
    for name, lines in (("parsing", rows), ("attributes", tags)):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for below in ("images", "masks", "labels.txt"):
            link(source / "ccp" / below, folder / below)
        split = lines[0].split(",").index("split")
        few = [line.split(",") for line in lines[1:] if line.split(",")[split] == "train"][:8]
        if name == "attributes":
            # Attributes that some of the few people have and others do not.
            keep = [j for j in range(len(few[0])) if j < 2 or len({row[j] for row in few}) == 2]
            lines, few = [",".join(lines[0].split(",")[j] for j in keep)], [[row[j] for j in keep] for row in few]
        of = lambda part: [",".join(part if j == split else cell for j, cell in enumerate(row)) for row in few]
        (folder / f"{name}.csv").write_text("\n".join([lines[0], *of("train"), *of("val")]) + "\n")
    images = sorted((source / "pku_reid/bounding_box_train").glob("*.png"))
    people = sorted({image.name[:4] for image in images})[:4]
    for person in people:
        for camera in "12":
            seen = [image for image in images if image.name.startswith(f"{person}_c{camera}")][:2]
            for folder, some in (("bounding_box_train", seen), ("query", seen[:1]), ("bounding_box_test", seen)):
                (out / "reid" / folder).mkdir(parents=True, exist_ok=True)
                for image in some:
                    link(image, out / "reid" / folder / image.name)
    poses = json.loads((source / "lspe/person_keypoints_train.json").read_text())
    scenes = json.loads((source / "pets/instances_val.json").read_text())
    for name, base, whole, stem in (("pose", "lspe", poses, "person_keypoints"), ("scenes", "pets", scenes, "instances")):
        (out / name).mkdir(parents=True, exist_ok=True)
        link(source / base / "images", out / name / "images")
        part = part_of(whole, [image["id"] for image in whole["images"]][:8])
        for split in ("train", "test"):
            (out / name / f"{stem}_{split}.json").write_text(json.dumps(part))


def drawn_scenes(source, out):
    """Synthetic scenes under the names that person search reads; the people of training and test differ."""
    folder = out / "drawn-search"
    folder.mkdir(parents=True, exist_ok=True)
    link(source / "scenes/images", folder / "images")
    for split, name in (("train", "train"), ("test", "val")):
        link(source / f"scenes/{name}.json", folder / f"instances_{split}.json")


def part_of(whole, ids):
    """The images of a COCO file with these ids, and their annotations."""
    images = [image for image in whole["images"] if image["id"] in ids]
    return {**whole, "images": images, "annotations": [one for one in whole["annotations"] if one["image_id"] in ids]}


def link(target, path):
    if not path.is_symlink():
        os.symlink(target.resolve(), path)


def weights(init):
    """The file that `--init` means by the folder of a run, which has others that change nothing."""
    return next((init / name for name in ("backbone.safetensors", "model.safetensors") if (init / name).is_file()), init)


def run(clasp, folder, task, data, init, seed, more, threads=None):
    """One training in `folder`; its evaluations as (step, metrics). One that the same command finished, with the same data and
    weights, is only read; another or an unfinished one is removed and starts again."""
    settings = {"run.checkpoint_selection": '"test"', "run.eval_every": TASKS[task][1], "seed": seed, **more}
    words = ["finetune", task, f"{task}-mini", *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")]]
    # Contents, not paths: a folder that was moved is the same.
    made = {"command": words, "recipe": recipe_digest(ROOT / f"recipes/finetune-{task}-mini.toml"), "commit": commit(clasp)}
    made |= {"data": content_digest(data), "init": content_digest(weights(init)) if init else None}
    note, text = folder / "made.json", json.dumps(made, indent=1) + "\n"
    if not note.exists() or note.read_text() != text:
        if folder.exists():
            print(f"{folder}: expected a finished run of this command, data and weights, found another or an unfinished one; it is made anew", file=sys.stderr)
            # First, so that nothing vouches for a folder that is only partly removed.
            note.unlink(missing_ok=True)
            shutil.rmtree(folder)
        command = [clasp, *words, "--data", str(data), "--out", str(folder), "--quiet"]
        command += ["--threads", str(threads)] if threads else []
        command += ["--init", str(init)] if init else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        note.write_text(text)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row) for row in rows if any(key.startswith("eval/") for key in row)]


def panel(task, metric, curves):
    """Evaluations of a task: random weights gray, pre-trained blue."""
    left = 0
    points = [point for lines in curves.values() for line in lines for point in line]
    most_x, most_y = max(x for x, _ in points), max(max(y for _, y in points) * 1.1, 1e-9)
    at = chart.place(left, most_x, most_y)
    parts = chart.frame(left, task, "steps", f"{metric} in %")
    x0, y0 = at(0, 0)
    for y in (most_y / 1.1, most_y / 2.2):
        parts.append(f'<text x="{x0 - 4}" y="{at(0, y)[1] + 3:.1f}" text-anchor="end">{100 * y:.{0 if y >= 0.1 else 1}f}</text>')
    parts.append(f'<text x="{at(most_x, 0)[0]:.1f}" y="{y0 + 14}" text-anchor="end">{most_x}</text>')
    for start, color in (("fresh", chart.GRAY), ("pretrained", chart.BLUE)):
        for line in curves.get(start, []):
            parts += chart.line([at(x, y) for x, y in line], color, 2.5)
    return "".join(parts)


def cell(values):
    """Mean, with the range if there are several values."""
    if not values:
        return ""
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("which", choices=["real", "drawn", "overfit"])
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--init", type=pathlib.Path, required=True)
    p.add_argument("--seeds", type=int, nargs="*", default=[0])
    p.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--clasp", default="target/release/clasp")
    args = p.parse_args()
    if shutil.which(args.clasp) is None:
        p.error(f"{args.clasp}: no such program; build it with `cargo build --release`, or name another with --clasp")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.which == "real":
        if {"detection", "search"} & set(args.tasks):
            pets(args.data / "pets", args.out)
    if args.which == "overfit":
        overfit(args.data, args.out)
    if args.which == "drawn":
        drawn_scenes(args.data, args.out)
    sets = {"real": REAL, "drawn": DRAWN, "overfit": OVERFIT_SETS}[args.which]
    panels = []
    # The overfit test has no random weights to compare with.
    columns = ["pre-trained"] if args.which == "overfit" else ["random weights", "pre-trained", "gain"]
    print("| task | metric | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for task in args.tasks:
        names = TASKS[task][0]
        below, special = sets[task]
        own = args.out / below
        data = own if below and own.exists() else args.data / below
        starts = {"fresh": None, "pretrained": args.init}
        if args.which == "overfit":
            del starts["fresh"]
        folder = lambda start, seed: args.out / f"{task}-{start}-{seed}"
        rows = {
            start: [run(args.clasp, folder(start, seed), task, data, init, seed, special) for seed in args.seeds]
            for start, init in starts.items()
        }
        for name in names:
            last = {start: [100 * run[-1][1][f"eval/{name}"] for run in runs] for start, runs in rows.items()}
            gains = [b - a for a, b in zip(last.get("fresh", []), last["pretrained"])]
            cells = [cell(last["pretrained"])]
            if args.which != "overfit":
                cells = [cell(last["fresh"]), *cells, cell(gains)]
            print(f"| {task} | {name} | " + " | ".join(cells) + " |", flush=True)
        curve = {start: [[(step, row[f"eval/{names[0]}"]) for step, row in run] for run in runs] for start, runs in rows.items()}
        panels.append(panel(task, names[0], curve))
    with open(args.out / "curves.svg", "w") as file:
        legend = [(chart.GRAY, "random weights"), (chart.BLUE, "pre-trained")]
        legend = legend[1:] if args.which == "overfit" else legend
        file.write(chart.document(panels, "Evaluations in training: random weights gray, pre-trained blue", legend))


if __name__ == "__main__":
    main()
