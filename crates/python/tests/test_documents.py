"""The Python of README.md, docs/python.md and the notebook runs."""

import json
import pathlib
import re
import shutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


def blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_documented_lines_run(name, labels, run_folder, tmp_path, monkeypatch, capsys, unlabeled):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(unlabeled)
    if name != "README.md":
        shutil.copytree(labels, tmp_path / "labels")  # its lines may write to it, and others share these
        (tmp_path / "run").symlink_to(run_folder)
    some = next(path for path in unlabeled.rglob("*") if path.is_file())
    found = blocks(name)
    assert found
    names: dict[str, object] = {}
    for block in found:
        # The same work in fewer and smaller steps, on a photo that is there.
        block = block.replace('"steps": 500', '"steps": 2, "batch": 8').replace('"log_every": 10', '"log_every": 1')
        block = block.replace("photos/a.jpg", f"photos/{some.relative_to(unlabeled)}")
        exec(compile(block, name, "exec"), names)
    features = names["features"]
    assert features.shape[0] == 24


def test_the_notebook_runs(tmp_path, monkeypatch):
    plots = pytest.importorskip("matplotlib")
    plots.use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs/notebooks/photos.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        # The same work on fewer people, in fewer steps.
        sizes = '"--unlabeled", "24", "--train-identities", "4", "--test-identities", "4", "--scenes", "1"'
        cell = cell.replace('"--unlabeled", "1200"', sizes)
        cell = cell.replace('run={"steps": 300}', 'run={"steps": 2, "batch": 8}, projection_head={"prototypes": 16}')
        exec(compile(cell, "photos.ipynb", "exec"), names)
    assert names["features"].shape[0] == len(names["images"]) == 24
    assert len(names["losses"]) > 0
