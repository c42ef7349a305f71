#!/usr/bin/env python3
"""Distils a random DINOv3 ViT-S into swin-nano on synthetic people; how much of its features the student explains.

    python3 runs/distill.py OUT [--seeds 0 1 2] [--set KEY=VALUE …]

For each seed: a teacher with random weights (`--teacher-only` writes it alone), people drawn by `clasp synth`, the
recipe `distill-mini`, and features of teacher and student of people that no training saw. The student's features are
mapped to the teacher's by a ridge regression with an intercept, fitted on the people of the training; its strength is
the best of a few on a fifth of these. On the other people

    R² = 1 − Σ‖y − ŷ‖² / Σ‖y − mean y‖²

over all channels together. The same is computed of the student before its first step. Needs NumPy.
"""

import argparse
import json
import pathlib
import struct
import subprocess
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
# DINOv3 ViT-S/16, as published.
WIDTH, HIDDEN, DEPTH, REGISTERS, PATCH = 384, 1536, 12, 4, 16
TRAINED, UNSEEN = 2400, 800
SIZE = "128x64"


def teacher_tensors(seed):
    """Weights as transformers initializes them: normal of standard deviation 0.02, LayerScale 1, biases 0."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return np.clip(rng.normal(size=shape), -2, 2).astype(np.float32) * np.float32(0.02)

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    def ones(*shape):
        return np.ones(shape, np.float32)

    tensors = {
        "embeddings.cls_token": normal(1, 1, WIDTH),
        "embeddings.mask_token": zeros(1, 1, WIDTH),
        "embeddings.register_tokens": normal(1, REGISTERS, WIDTH),
        "embeddings.patch_embeddings.weight": normal(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.bias": zeros(WIDTH),
        "norm.weight": ones(WIDTH),
        "norm.bias": zeros(WIDTH),
    }
    for layer in range(DEPTH):
        block = {"layer_scale1.lambda1": ones(WIDTH), "layer_scale2.lambda1": ones(WIDTH)}
        for norm in ("norm1", "norm2"):
            block |= {f"{norm}.weight": ones(WIDTH), f"{norm}.bias": zeros(WIDTH)}
        for name in ("q", "k", "v", "o"):
            block[f"attention.{name}_proj.weight"] = normal(WIDTH, WIDTH)
            if name != "k":
                block[f"attention.{name}_proj.bias"] = zeros(WIDTH)
        for name, outputs, inputs in (("up", HIDDEN, WIDTH), ("down", WIDTH, HIDDEN)):
            block[f"mlp.{name}_proj.weight"] = normal(outputs, inputs)
            block[f"mlp.{name}_proj.bias"] = zeros(outputs)
        tensors |= {f"layer.{layer}.{name}": value for name, value in block.items()}
    return tensors


def save(path, tensors):
    """A safetensors file."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, value in tensors.items():
        end = offset + value.nbytes
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(value.tobytes())


def solve(features, targets, strength):
    """Ridge regression of centered values: [channels of the student, channels of the teacher]."""
    gram = features.T @ features
    scale = np.trace(gram) / len(gram)
    return np.linalg.solve(gram + strength * scale * np.eye(len(gram)), features.T @ targets)


def explained(features, targets, map_, means):
    """R² of predictions for other images."""
    predicted = (features - means[0]) @ map_ + means[1]
    return 1 - ((targets - predicted) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum()


def ridge(trained, unseen):
    """R² on `unseen` of the regression fitted on `trained`, each student's and teacher's features."""
    fit = len(trained[0]) * 4 // 5

    def fitted(count, strength):
        parts = [values[:count] for values in trained]
        means = [values.mean(0) for values in parts]
        return solve(parts[0] - means[0], parts[1] - means[1], strength), means

    def held_out(strength):
        map_, means = fitted(fit, strength)
        return explained(trained[0][fit:], trained[1][fit:], map_, means)

    strength = max([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], key=held_out)
    return explained(*unseen, *fitted(len(trained[0]), strength))


class Runs:
    def __init__(self, arguments):
        self.out, self.program, self.set = arguments.out, arguments.clasp, arguments.set
        self.threads = ["--threads", str(arguments.threads)]

    def clasp(self, *words):
        done = subprocess.run(
            [self.program, *map(str, words), *self.threads, "--quiet"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"clasp {' '.join(map(str, words))}\n{done.stderr}")

    def people(self, folder, count, seed):
        if not folder.exists():
            few = ["--train-identities", 1, "--test-identities", 1, "--cameras", 2, "--shots", 1, "--scenes", 0]
            self.clasp("synth", "--out", folder, "--size", SIZE, *few, "--unlabeled", count, "--seed", seed)
        return folder / "unlabeled"

    def features(self, images, model):
        out = self.out / "features.npy"
        out.unlink(missing_ok=True)
        self.clasp("embed", images, "--model", model, "--size", SIZE, "--out", out)
        return np.load(out).astype(np.float64)

    def seed(self, seed):
        folder = self.out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        teacher = folder / "teacher.safetensors"
        save(teacher, teacher_tensors(seed))
        # Other seeds draw other people.
        people = [
            self.people(folder / "people", TRAINED, seed),
            self.people(folder / "unseen", UNSEEN, 1000 + seed),
        ]
        targets = [self.features(images, teacher) for images in people]
        found = {"seed": seed}
        for name, steps in (("initialization", ["run.steps=0"]), ("student", [])):
            values = [f"seed={seed}", f"data.images={json.dumps(str(people[0]))}"]
            values += [f"distillation.teacher={json.dumps(str(teacher))}", *self.set, *steps]
            run = folder / name
            begin = time.monotonic()
            if not (run / "backbone.safetensors").exists():
                words = [word for value in values for word in ("--set", value)]
                self.clasp("pretrain", "distill-mini", "--out", run, *words)
                found[f"{name} seconds"] = round(time.monotonic() - begin, 1)
            features = [self.features(images, run) for images in people]
            found[name] = ridge(*zip(features, targets))
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clasp", default=str(ROOT / "target/release/clasp"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--teacher-only", action="store_true", help="write OUT, the teacher of the first seed, and end")
    arguments = parser.parse_args()
    if arguments.teacher_only:
        save(arguments.out, teacher_tensors(arguments.seeds[0]))
        return
    runs = Runs(arguments)
    results = []
    for seed in arguments.seeds:
        results.append(runs.seed(seed))
        print(json.dumps(results[-1]), flush=True)
    for name in ("initialization", "student"):
        values = [100 * result[name] for result in results]
        print(f"R² {name}: {np.mean(values):.1f} % ({min(values):.1f}–{max(values):.1f})")


main()
