"""Compares the results of runs/device-test.sh on a device with those on the CPU.

    python3 runs/device_test.py OUT

prints a table, and exits with status 1 if a difference is above its limit. The limits hold for devices that multiply f32 with
11 significant bits (tf32); the table shows how far the device is below them.
"""

import array
import ast
import json
import pathlib
import sys


def features(path):
    """The values of a float32 .npy file."""
    data = path.read_bytes()
    size = int.from_bytes(data[8:10], "little")
    header = ast.literal_eval(data[10 : 10 + size].decode("latin-1"))
    if data[:8] != b"\x93NUMPY\x01\x00" or header["descr"] != "<f4" or header["fortran_order"]:
        raise SystemExit(f"{path}: not an array of float32: {header}")
    values = array.array("f", data[10 + size :])
    if sys.byteorder == "big":
        values.byteswap()
    return values


def losses(run):
    """The total loss of each step that a run has logged."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss/total"] for line in lines if "loss/total" in line]


def apart(one, other):
    """The largest difference over the largest value; infinite where the sizes differ or a value is no number."""
    if len(one) != len(other) or not one or any(value != value for value in [*one, *other]):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other)) / max(abs(value) for value in one)


def metric(path):
    return {entry["name"]: entry["value"] for entry in json.loads(path.read_text())["metrics"]}


def measurements(out):
    """Rows of (what is compared, difference, limit)."""
    cpu, device = out / "cpu", out / "device"
    bench = json.loads((device / "bench.json").read_text())
    # The limits of `bench compare` itself.
    for name, limit in bench["limits"].items():
        yield f"bench compare: {name}", bench[f"{name}_apart"], limit
    labels = json.loads((cpu / "label compare.json").read_text())
    yield "label: other part class, share of positions", 1 - labels["positions"], 0.01
    worst = min(attribute["clear"] for attribute in labels["attributes"])
    yield "label: other clear attribute, share of images", 1 - worst, 0.02
    yield "embed: features", apart(features(cpu / "features.npy"), features(device / "features.npy")), 5e-3
    for run in ("pretrain", "reid", "parsing"):
        one, other = losses(cpu / run), losses(device / run)
        name = run if run == "pretrain" else f"finetune {run}"
        yield f"{name}: loss of the first step", apart(one[:1], other[:1]), 2e-3
        # AdamW's first steps are as long for a gradient of nearly 0 as for others: rounding decides where they go.
        yield f"{name}: losses of {len(one)} steps", apart(one, other), 5e-2
    for task, name in (("reid", "mAP"), ("parsing", "mIoU")):
        one, other = (metric(side / f"eval {task}.json")[name] for side in (cpu, device))
        yield f"eval {task}: {name}", abs(one - other), 0.01


def seconds(out):
    """Seconds by (side, command)."""
    rows = (line.split(" ", 1) for line in (out / "times.txt").read_text().splitlines())
    return {(side, *rest.rsplit(" ", 1)[:1]): int(rest.rsplit(" ", 1)[1]) for side, rest in rows}


def main():
    out = pathlib.Path(sys.argv[1])
    rows = list(measurements(out))
    failed = 0
    print(f"{'compared':<48} {'difference':>10}  {'limit':>6}")
    for name, value, limit in rows:
        # Not `value > limit`: what is no number fails too.
        fails = not value <= limit
        failed += fails
        print(f"{name:<48} {value:>10.1e}  {limit:>6.0e}{'  DIFFERENT' if fails else ''}")
    for (side, name), value in seconds(out).items():
        if side == "device":
            print(f"{name + ', seconds on the device':<48} {value:>10}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
