"""Compares a pre-training in several processes with one process of as many replicas.

    python3 runs/ranks.py CLASP OUT                    # processes connected by TCP
    python3 runs/ranks.py CLASP OUT --mpiexec mpiexec  # of MPI; CLASP is built with --features mpi

Draws people, labels them, and trains 20 steps (1) in one process with two replicas, (2) in two
processes, (3) in two processes of which one is killed after the eleventh step and that are resumed,
(4) the same resumed in one process. Prints the largest differences from the first in losses, other
metrics, and the tensors of the last checkpoint, and how the processes ended. Ends with 1 if losses or
weights differ by more than 1e-6. With --rounds N it then measures speed: one process of one and of two
replicas and two processes, N times in turn, 20 steps each; medians of images/s over the steps from the
fifth on, and of processor seconds of the whole run. Needs Python alone.
"""

import argparse
import array
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

STEPS = 20
KILL_AFTER = 11
TOLERANCE = 1e-6


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clasp", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mpiexec", help="start the processes by it")
    parser.add_argument("--rounds", type=int, default=0, help="measure speed, so many times")
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(options, folder, resume):
    base = [str(options.clasp.resolve()), "pretrain", "--quiet", "--device", "cpu"]
    if resume:
        return base + ["--resume", folder]
    settings = [
        "data.images=list.txt",
        "data.labels=labels",
        f"run.steps={STEPS}",
        "run.batch=16",
        "run.replicas=2",
        "run.log_every=1",
        "run.save_every=8",
        *options.set,
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    return base + [options.recipe, "--out", folder, *sets]


def start(options, folder, ranks, resume=False):
    """The processes of a run; with mpiexec that alone."""
    work = command(options, folder, resume)
    run = lambda words: subprocess.Popen(words, cwd=options.out, stderr=subprocess.PIPE, text=True)
    if ranks == 1:
        threads = "1" if "run.replicas=1" in options.set else "2"
        return [run([*work, "--threads", threads])]
    work += ["--threads", "1"]
    if options.mpiexec:
        return [run([options.mpiexec, "-n", str(ranks), *work, "--mpi"])]
    master = f"127.0.0.1:{free_port()}"
    each = [["--ranks", str(ranks), "--rank", str(rank), "--master", master] for rank in range(ranks)]
    return [run([*work, *more]) for more in each]


def measure(options):
    """Prints images/s and processor seconds of several ways to train, measured in turn."""
    ways = {
        "one process, one replica": (1, ["run.replicas=1"]),
        "one process, two replicas": (1, []),
        "two processes": (2, []),
        "two processes, bf16": (2, ["run.exchange=bf16"]),
    }
    found = {name: [] for name in ways}
    given = list(options.set)
    for _ in range(options.rounds):
        for name, (ranks, more) in ways.items():
            options.set = [*given, "run.save_every=1000", *more]
            shutil.rmtree(options.out / "speed", ignore_errors=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            statuses, errors = end(start(options, "speed", ranks))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert not any(statuses), errors
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            speeds = [line["speed/images_per_second"] for line in metrics(options.out / "speed")[4:]]
            found[name].append((statistics.median(speeds), seconds))
    print(f"load average {os.getloadavg()[0]:.1f}")
    for name, rows in found.items():
        speed, seconds = (statistics.median(column) for column in zip(*rows))
        print(f"| {name} | {speed:.1f} | {seconds:.1f} |")


def end(processes):
    """Exit statuses and last lines of standard error."""
    texts = [process.communicate()[1].strip().splitlines() for process in processes]
    return [process.returncode for process in processes], [text[0] if text else "" for text in texts]


def kill_one(options, processes, folder):
    log = options.out / folder / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < KILL_AFTER:
        time.sleep(0.01)
    if options.mpiexec:
        own = processes[0].pid
        found = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True)
        rows = [line.split(None, 2) for line in found.stdout.splitlines()]
        parents = {int(pid): int(parent) for pid, parent, _ in rows}

        def is_ours(pid):
            while pid in parents and pid != own:
                pid = parents[pid]
            return pid == own

        name = str(options.clasp.resolve())
        ranks = [int(pid) for pid, _, words in rows if words.startswith(name) and is_ours(int(pid))]
        os.kill(max(ranks), signal.SIGKILL)
    else:
        processes[1].send_signal(signal.SIGKILL)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder):
    path = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    values = {}
    for name, tensor in header.items():
        start, stop = tensor["data_offsets"]
        values[name] = array.array("f", data[8 + length + start : 8 + length + stop])
    return values


def compare(one, other):
    """Largest differences of losses, of all metrics (relative above 1), and of tensors."""
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert len(pairs) == STEPS, f"{len(pairs)} steps"
    apart = {}
    for a, b in pairs:
        assert a.keys() == b.keys()
        for key in a:
            if not key.startswith("speed"):
                apart[key] = max(apart.get(key, 0.0), abs(a[key] - b[key]) / max(1.0, abs(a[key])))
    losses = max(value for key, value in apart.items() if key.startswith("loss"))
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    weights = max(max(map(lambda a, b: abs(a - b), one[name], other[name])) for name in one)
    return losses, max(apart.values()), weights


def main():
    options = parse()
    if options.out.exists():
        sys.exit(f"{options.out}: exists")
    options.out.mkdir(parents=True)
    clasp = [str(options.clasp.resolve())]
    run = lambda words: subprocess.run(clasp + words, cwd=options.out, check=True, stdout=subprocess.DEVNULL)
    run(["synth", "--out", "people", "--seed", "1", "--scenes", "0", "--quiet"])
    images = sorted((options.out / "people" / "market").rglob("*.jpg"))[:256]
    (options.out / "list.txt").write_text("".join(f"{path.resolve()}\n" for path in images))
    run(["label", "list.txt", "--out", "labels", "--quiet"])

    statuses, errors = end(start(options, "alone", 1))
    assert statuses == [0], errors
    begun = time.monotonic()
    print(f"one process, two replicas: status {statuses}")
    failed = False
    for name, resumed in (("together", None), ("killed, resumed in two", 2), ("killed, resumed in one", 1)):
        folder = name.replace(", ", "-").replace(" ", "-")
        processes = start(options, folder, 2)
        if resumed:
            kill_one(options, processes, folder)
            began = time.monotonic()
            statuses, errors = end(processes)
            seconds = time.monotonic() - began
            print(f"{name}: after the kill statuses {statuses} in {seconds:.1f} s: {max(errors, key=len)}")
            assert 0 not in statuses, "a rank ended well although another was killed"
            processes = start(options, folder, resumed, resume=True)
        statuses, errors = end(processes)
        assert not any(statuses), (statuses, errors)
        losses, all_metrics, weights = compare(options.out / "alone", options.out / folder)
        failed |= max(losses, weights) > TOLERANCE
        print(
            f"{name}: {STEPS} steps; largest difference of losses {losses:.1e}, of all metrics "
            f"{all_metrics:.1e}, of weights and optimizer state {weights:.1e}"
        )
    print(f"{time.monotonic() - begun:.0f} s")
    if options.rounds:
        measure(options)
    for folder in ("people", "labels"):
        shutil.rmtree(options.out / folder)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
