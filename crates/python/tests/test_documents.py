"""The Python of README.md and docs/python.md runs."""

import pathlib
import re

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
        (tmp_path / "labels").symlink_to(labels)
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
