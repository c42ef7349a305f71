#!/usr/bin/env python3
"""Counts the kernels that a step of pre-training launches on a GPU, by name.

    python3 runs/launches.py CLASP DEVICE OUT [-- OPTIONS of clasp bench pretrain]

Runs `clasp bench pretrain` for one and for two timed steps with CubeCL's log of launches on, and counts
what the longer run has more; with clasp's kernels, and by Burn's graph alone (--graph). The first run of
each tunes and is not counted. Standard library only.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clasp", type=pathlib.Path, help="the program, built for the device")
    parser.add_argument("device", help="as --device of clasp")
    parser.add_argument("out", type=pathlib.Path, help="folder for the logs")
    parser.add_argument("options", nargs="*", help="options of clasp bench pretrain")
    options = parser.parse_args()
    clasp, out = options.clasp.resolve(), options.out.resolve()

    def launches(steps, way):
        """Kernels that a run of so many timed steps launches, with their counts."""
        folder = out / f"{'graph' if way else 'kernels'}-{steps}"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "launches.log"
        log.unlink(missing_ok=True)
        logger = f'{{ level = "minimal", file = {json.dumps(str(log))}, append = false }}'
        (folder / "cubecl.toml").write_text(f"[profiling]\nlogger = {logger}\n")
        command = [clasp, "bench", "pretrain", "--device", options.device, "--iters", str(steps)]
        subprocess.run([*command, *way, *options.options], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        # What follows the name are types, and a number for each kernel that was compiled.
        return collections.Counter(re.findall(r"Executing (\w+?)(?:_[0-9a-f]{8})?\b", log.read_text(errors="replace")))

    for way in [], ["--graph"]:
        launches(1, way)
        step = launches(2, way) - launches(1, way)
        print(f"{'by the graph' if way else 'with kernels'}: {sum(step.values())} launches a step", flush=True)
        for name, count in step.most_common():
            print(f"{count:6} {name}", flush=True)


if __name__ == "__main__":
    main()
