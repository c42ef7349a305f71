#!/usr/bin/env python3
"""Stops the program at random moments and compares its results with an uninterrupted run, byte by byte.

python runs/kills.py target/release/clasp [--kills 60] [--seed 0] [--only label,pack]

For each command a reference is made on one thread without a stop. Then the same work is started and
stopped by SIGKILL, SIGINT or SIGTERM after a random time, until it finishes. Weights, labels, features,
predictions, pictures and logs (without times) must equal the reference. Exits with 1 if anything
differs, if a stop by SIGINT or SIGTERM has another status than 130 or 143, or if a temporary file
remains. Needs Python 3.9 only; takes minutes.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = {
    "model.backbone": '"swin-pico"',
    "views.global_size": "[64,32]",
    "views.local_size": "[32,32]",
    "views.local": "2",
    "projection_head.prototypes": "64",
    "projection_head.hidden_dim": "32",
    "projection_head.bottleneck_dim": "16",
    "run.batch": "4",
    "run.steps": "40",
    "run.log_every": "1",
    "run.save_every": "3",
}
# Not compared: they depend on time, speed and process.
LEFT_OUT = (".lock", "events.out", "run.toml", "unreadable.txt")


def sets(values):
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def content(folder):
    """Digest of every file below a folder by its path; logs without speeds."""
    found = {}
    paths = sorted(folder.rglob("*"))
    # A stop writes a checkpoint of its own, so which of the earlier ones are still there differs.
    last = {path.parent: path for path in paths if path.parent.name == "checkpoints"}
    for path in paths:
        if path.parent in last and path != last[path.parent]:
            continue
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(LEFT_OUT):
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            rows = [{k: v for k, v in row.items() if "speed" not in k} for row in rows]
            data = json.dumps(rows, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


class Campaign:
    def __init__(self, clasp, root, seed):
        self.clasp, self.root, self.draw = clasp, root, random.Random(seed)
        self.faults = []

    def fault(self, text):
        self.faults.append(text)
        print("fault:", text, flush=True)

    def run(self, arguments, folder):
        return subprocess.run(
            [self.clasp, "--quiet", "--threads", "1", *arguments],
            cwd=folder, capture_output=True, text=True,
        )

    def whole(self, name, start, folder):
        folder.mkdir()
        began = time.monotonic()
        result = self.run(start, folder)
        if result.returncode != 0:
            sys.exit(f"{name}: the reference ended with {result.returncode}: {result.stderr}")
        return time.monotonic() - began

    def verb(self, name, start, resume, kills):
        """`resume` gives the arguments that go on, or none where there is nothing to go on with."""
        seconds = self.whole(name, start, self.root / f"{name}-whole")
        expected = content(self.root / f"{name}-whole")
        done = rounds = 0
        statuses = {"KILL": 0, "INT": 0, "TERM": 0, "too late": 0}
        while done < kills:
            folder = self.root / f"{name}-{rounds}"
            folder.mkdir()
            rounds += 1
            while True:
                arguments = resume(folder) or start
                if done >= kills:
                    result = self.run(arguments, folder)
                    if result.returncode != 0:
                        self.fault(f"{name}: ended with {result.returncode}: {result.stderr}")
                    break
                kind = self.draw.choice(["KILL", "INT", "TERM"])
                child = subprocess.Popen(
                    [self.clasp, "--quiet", "--threads", "1", *arguments],
                    cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                )
                try:
                    child.wait(self.draw.uniform(0, 1.1 * seconds))
                    statuses["too late"] += 1
                    if child.returncode != 0:
                        self.fault(f"{name}: ended with {child.returncode}: {child.stderr.read()}")
                    break
                except subprocess.TimeoutExpired:
                    child.send_signal(getattr(signal, f"SIG{kind}"))
                done += 1
                statuses[kind] += 1
                status = child.wait()
                # Before the handler is there a signal ends the program as signals do.
                right = {"KILL": [-9], "INT": [130, -2, 0], "TERM": [143, -15, 0]}[kind]
                if status not in right:
                    self.fault(f"{name}: SIG{kind} gave {status}: {child.stderr.read()}")
            found = content(folder)
            differing = [k for k in sorted(set(expected) | set(found)) if expected.get(k) != found.get(k)]
            if differing:
                self.fault(f"{name}, round {rounds}: {', '.join(differing[:5])} differ")
            shutil.rmtree(folder)
        print(f"{name}: {done} stops in {rounds} rounds ({statuses}), {seconds:.1f} s unbroken", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("clasp")
    parser.add_argument("--kills", type=int, default=60, help="stops of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands, separated by commas")
    options = parser.parse_args()
    clasp = str(Path(options.clasp).resolve())
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        campaign = Campaign(clasp, root, options.seed)
        drawn = campaign.run(
            ["synth", "--out", "drawn", "--size", "64x32", "--train-identities", "12",
             "--test-identities", "8", "--unlabeled", "700", "--scenes", "0"], root)
        if drawn.returncode != 0:
            sys.exit(drawn.stderr)
        images, data = f"{root}/drawn/unlabeled", f"{root}/drawn"
        pretrain = ["pretrain", "mini", "--out", "run",
                    *sets({**TINY, "method": "dino", "data.images": f'"{images}"'})]
        finetune = ["finetune", "attributes", "attributes-mini", "--data", data, "--out", "run",
                    *sets({"model.backbone": '"swin-pico"', "model.size": "[64,32]", "run.batch": "8",
                           "run.steps": "30", "run.save_every": "3", "run.eval_every": "5"})]
        for folder, arguments in (("backbone", pretrain), ("model", finetune)):
            (root / folder).mkdir()
            made = campaign.run(arguments, root / folder)
            if made.returncode != 0:
                sys.exit(made.stderr)

        def same(_):
            return None

        def going_on(verb):
            return lambda folder: (
                [*verb, "--resume", "run"] if (folder / "run/run.toml").is_file() else None
            )

        verbs = {
            "label": (["label", images, "--out", "labels"], same),
            "pretrain": (pretrain, going_on(["pretrain"])),
            "finetune": (finetune, going_on(["finetune", "attributes"])),
            "embed": (["embed", images, "--model", f"{root}/backbone/run", "--out", "f.npy"], same),
            "predict": (["predict", "attributes", images, "--model", f"{root}/model/run",
                         "--out", "p.jsonl", "--draw", "drawn"], same),
            "pack": (["data", "pack", images, "--out", "packed", "--per-shard", "40"], same),
        }
        only = [verb for verb in options.only.split(",") if verb] or list(verbs)
        for verb in only:
            start, resume = verbs[verb]
            campaign.verb(verb, start, resume, options.kills)
        print(f"{len(campaign.faults)} faults")
        sys.exit(bool(campaign.faults))


if __name__ == "__main__":
    main()
