#!/usr/bin/env python3
"""How the cost of a pre-training step grows: one quantity at a time, the others as in `BASE`.

    python3 runs/cost.py --out docs/cost.svg

Prints a table and draws it. Costs are processor seconds of a step, which other work on the machine hardly changes: those of a run
of three timed steps minus those of a run of one, divided by two. Threads are drawn in wall-clock seconds and need an idle machine.
"""

import argparse
import json
import resource
import shutil
import subprocess

import chart

BASE = ["--batch", "4", "--prototypes", "65536"]
MERGED = ["--set", 'model.adapter="merged"']
AXES = {
    "images in a batch": [(n, ["--batch", str(n)]) for n in (2, 4, 8, 16)],
    "rows of a global view": [
        (n, ["--set", f"views.global_size=[{n}, {n // 2}]", "--set", f"views.local_size=[{n // 2}, {n // 4}]"])
        for n in (128, 192, 256, 384)
    ],
    "prototypes, K": [(k, ["--prototypes", str(k)]) for k in (4096, 16384, 65536, 131072)],
    "merged experts (0: none)": [(0, [])] + [(e, MERGED + ["--set", f"model.experts={e}"]) for e in (4, 6, 12)],
    "threads": [(t, ["--threads", str(t)]) for t in (1, 2)],
}


def run(clasp, words, iters):
    """Seconds a step on the clock, and processor seconds of the whole run."""
    command = [clasp, "bench", "pretrain", "--iters", str(iters), "--quiet", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(out.splitlines()[-1])["s_per_step"], after.ru_utime - before.ru_utime


def cost(clasp, name, words):
    if name == "threads":
        return run(clasp, words, 3)[0]
    return (run(clasp, words, 3)[1] - run(clasp, words, 1)[1]) / 2


def panel(title, points):
    """A small line chart of its own scale, from zero."""
    left = 0
    most_x, most_y = max(x for x, _ in points), 1.1 * max(y for _, y in points)
    at = chart.place(left, most_x, most_y)
    unit = "seconds" if title == "threads" else "processor seconds"
    parts = chart.frame(left, f"by {title}", title, unit)
    parts += chart.line([at(x, y) for x, y in points], chart.BLUE, 3)
    before = -chart.STEP
    for x, y in points:
        a, b = at(x, y)
        # Below the line where the one before is too near.
        near = a - before < 30
        before = -chart.STEP if near else a
        parts.append(f'<text x="{a:.1f}" y="{b + 15 if near else b - 7:.1f}" text-anchor="middle">{y:.1f} s</text>')
    ticks = [points[0], *(p for p in points[1:] if p[0] >= most_x / 3.5)]
    y0 = at(0, 0)[1]
    parts += [f'<text x="{at(x, 0)[0]:.1f}" y="{y0 + 14}" text-anchor="middle">{x}</text>' for x, _ in ticks]
    return "".join(parts)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True)
    p.add_argument("--clasp", default="target/release/clasp")
    args = p.parse_args()
    if shutil.which(args.clasp) is None:
        p.error(f"{args.clasp}: no such program; build it with `cargo build --release`, or name another with --clasp")
    panels = []
    print("| quantity | value | s |\n|---|---|---|")
    for name, values in AXES.items():
        points = []
        for value, words in values:
            took = cost(args.clasp, name, combine(words))
            print(f"| {name} | {value} | {took:.2f} |", flush=True)
            points.append((value, took))
        panels.append(panel(name, points))
    with open(args.out, "w") as file:
        file.write(chart.document(panels, "Processor seconds of a pre-training step"))


def combine(words):
    """`BASE` with the words of one value in its place: an option may be given once."""
    base = [pair for pair in zip(BASE[::2], BASE[1::2]) if pair[0] not in words]
    return [word for pair in base for word in pair] + words


if __name__ == "__main__":
    main()
