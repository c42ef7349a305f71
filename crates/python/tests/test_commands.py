"""Labeling, pre-training, fine-tuning and evaluation as functions."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import clasp
from clasp.commands import assignments


def test_values_of_a_recipe():
    assert assignments({"run": {"steps": 5, "name": "a b"}, "seed": 1, "skip": None, "views": {"size": [256, 128], "flip": False}}) == [
        "run.steps=5", 'run.name="a b"', "seed=1", "views.size=[256, 128]", "views.flip=false",
    ]
    assert assignments({"a": np.float64(1e-3), "b": np.int64(3), "c": "p😀h\n"}) == ["a=0.001", "b=3", 'c="p😀h\\n"']
    with pytest.raises(ValueError, match="expected a number"):
        assignments({"a": object()})


def test_metrics_of_a_run_are_handed_on(work, unlabeled):
    seen = []
    out = work / "listened"
    done = clasp.pretrain(
        "demo", out=out, images=unlabeled, method="dino", threads=2, run={"steps": 3, "batch": 8, "log_every": 1},
        projection_head={"prototypes": 16}, progress=seen.append,
    )
    assert done["steps"] == 3
    assert [line["step"] for line in seen if "step" in line][-1] == 3


def test_evaluation_gives_metrics_and_chance(run_folder, people):
    [found] = clasp.evaluate("reid", model=run_folder, data=people, frozen=True)
    assert found["metrics"][0]["name"] == "mAP" and 0 < found["metrics"][0]["value"] <= 1
    assert 0 < found["chance"] < 1


def test_errors_are_in_the_words_of_the_program(tmp_path, unlabeled):
    with pytest.raises(clasp.Error, match="did you mean|unknown|expected"):
        clasp.pretrain("demo", out=tmp_path / "x", images=unlabeled, method="dino", optimizer={"learning": 1})
    with pytest.raises(clasp.Error, match="nowhere"):
        clasp.label("nowhere", out=tmp_path / "labels")
    assert not (tmp_path / "labels").exists() or not any((tmp_path / "labels").glob("*.parquet"))


def test_an_interrupt_stops_and_the_run_goes_on(tmp_path, unlabeled):
    out = tmp_path / "run"
    script = textwrap.dedent(
        f"""
        import signal
        import clasp
        # A shell that starts the tests in the background has SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            clasp.pretrain("demo", out={str(out)!r}, images={str(unlabeled)!r}, method="dino", threads=2,
                           run={{"steps": 2000, "batch": 8}}, projection_head={{"prototypes": 16}})
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.2)
    time.sleep(2)
    os.kill(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=120)
    assert output.strip() == "interrupted"
    assert any((out / "checkpoints").iterdir())
    logged = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    # As after a kill, the log is ahead of the checkpoint; the listener gets what is logged from there on.
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": logged[-1] + 1000, "loss/total": 0.0}) + "\n")
    seen = []

    def listen(line):
        seen.append(line["step"])
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clasp.pretrain(out=out, resume=True, progress=listen)
    assert seen == sorted(set(seen)) and logged[-1] < seen[0] < logged[-1] + 1000


def test_json_is_parsed_and_what_is_no_json_is_text():
    assert clasp.run("recipes", "mini")["method"] == "clasp"
    assert "complete" in clasp.run("completions", "bash")
    assert clasp.run("--version").startswith("clasp ")
