#!/usr/bin/env python3
"""clasp demo with several seeds, and the table of docs/results.md: mean and range of the first figure of each task.

    python3 runs/demo-seeds.py OUT [--seeds 0 1 2] [--clasp target/release/clasp]

A seed whose OUT/seed-N/results.json exists is not run again.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

NAMES = {"reid": "mAP", "attributes": "mA", "parsing": "mIoU", "pose": "PCK@0.2"}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path)
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--clasp", default="target/release/clasp")
    args = p.parse_args()
    runs = []
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        if not (folder / "results.json").exists():
            subprocess.run([args.clasp, "demo", "--out", str(folder), "--seed", str(seed)], check=True)
        runs.append(json.loads((folder / "results.json").read_text()))

    print("| | " + " | ".join(f"{task} {name}" for task, name in NAMES.items()) + " |")
    print("|---" * (1 + len(NAMES)) + "|")

    def cells(values):
        of = lambda v: f"{100 * statistics.mean(v):.2f} ({100 * min(v):.2f}–{100 * max(v):.2f})"
        return " | ".join(of(v) for v in values)

    for row in range(len(runs[0])):
        tasks = [run[row]["tasks"] for run in runs]
        values = [[t[task]["figures"][name] for t in tasks] for task, name in NAMES.items()]
        print(f"| {runs[0][row]['name'].strip()} | {cells(values)} |")
    chance = [[run[0]["tasks"][task]["chance"] for run in runs] for task in NAMES]
    print(f"| chance | {cells(chance)} |")
    gains = [
        [run[1]["tasks"][task]["figures"][name] - run[0]["tasks"][task]["figures"][name] for run in runs]
        for task, name in NAMES.items()
    ]
    print(f"| gain of pre-training | {cells(gains)} |")


if __name__ == "__main__":
    main()
