"""Features, predictions and tensors."""

import json
import subprocess
import sys

import numpy as np
import pytest

import clasp
from conftest import TASKS

Image = pytest.importorskip("PIL.Image")


def test_features_are_those_of_the_program(backbone, run_folder, tmp_path, unlabeled):
    out = tmp_path / "features.npy"
    clasp.run("embed", str(unlabeled), "--model", str(run_folder), "--out", str(out))
    expected = np.load(out)
    found = backbone.embed(unlabeled)
    assert found.dtype == np.float32 and found.shape == (24, backbone.channels)
    assert np.array_equal(found, expected)
    images = clasp.Images([str(unlabeled)])
    assert (tmp_path / "features.npy.keys.txt").read_text().split() == images.keys
    assert np.array_equal(backbone.embed(images), expected)


def test_every_way_to_hand_over_images(backbone, photos):
    paths = [str(path) for path in photos[:4]]
    expected = backbone.embed(paths)
    pictures = [Image.open(path) for path in photos[:4]]
    arrays = [np.asarray(picture) for picture in pictures]
    stacked = np.stack(arrays)
    for images in (photos[:4], pictures, arrays, stacked, iter(paths), np.asfortranarray(stacked)):
        assert np.allclose(backbone.embed(images), expected, atol=2e-2)
    # Decoded by the same decoder and handed over as arrays, they are the same.
    decoded = [clasp.Images([path])[0] for path in paths]
    assert np.array_equal(backbone.embed(decoded), expected)
    for one in (paths[0], pictures[0], arrays[0]):
        assert backbone.embed(one).shape == (1, backbone.channels)
    assert backbone.embed([]).shape == (0, backbone.channels)


def test_prompts_sizes_batches_and_threads(backbone, photos):
    features = backbone.embed(photos[:4])
    assert not np.array_equal(features, backbone.embed(photos[:4], prompt="part"))
    assert not np.array_equal(features, backbone.embed(photos[:4], size=(96, 48)))
    assert np.array_equal(features, backbone.embed(photos[:4], prompt="identity", size=backbone.size, batch=1, threads=2))


def test_mistakes_with_images_are_in_words(backbone, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:200])
    for images, error, message in [
        ([broken], clasp.Error, "broken.jpg"),
        ([tmp_path / "none.jpg"], clasp.Error, "none.jpg"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "uint8"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\[height, width, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "height"),
        ([np.zeros((4, 4, 4), np.uint8)], ValueError, "image 0"),
        ([object()], ValueError, "image 0"),
    ]:
        with pytest.raises(error, match=message):
            backbone.embed(images)
    with pytest.raises(ValueError, match="prompt"):
        backbone.embed(photos[:1], prompt="face")
    with pytest.raises(ValueError, match="size"):
        backbone.embed(photos[:1], size=(0, 4))
    with pytest.raises(ValueError, match="batch"):
        backbone.embed(photos[:1], batch=-1)
    with pytest.raises(ValueError, match="batch"):
        backbone.embed(photos[:1], batch=0)
    with pytest.raises(clasp.Error, match="none"):
        clasp.load(tmp_path / "none")


def test_a_folder_by_any_kind_of_path(unlabeled, photos):
    for place in (unlabeled, str(unlabeled), [unlabeled]):
        assert len(clasp.Images(place)) == 24
    # Names are names, not patterns.
    odd = unlabeled.parent / "a,{b}*.jpg"
    odd.write_bytes(photos[0].read_bytes())
    assert clasp.views(odd, "demo")[0].ndim == 4
    with pytest.raises(TypeError, match="places"):
        clasp.Images(3)


def test_progress_counts_and_may_stop(backbone, photos, capfd):
    seen = []
    backbone.embed(photos, batch=8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(photos), len(photos)) and len(seen) == 3
    backbone.embed(photos, progress=True)
    assert "24 of 24 images" in capfd.readouterr().err

    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        backbone.embed(photos, batch=1, progress=stop)


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_those_of_the_program(task, fine_tuned, photos, tmp_path):
    folder = fine_tuned(task)
    model = clasp.load(folder)
    assert model.task == task
    images = photos[:3]
    out = tmp_path / "found.jsonl"
    clasp.run("predict", task, *map(str, images), "--model", str(folder), "--out", str(out))
    lines = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    found = model.predict(images)
    assert len(found) == len(lines) == 3
    for ours, line in zip(found, lines):
        if task == "reid":
            assert np.allclose(ours.feature, line["feature"], atol=1e-6)
            assert np.linalg.norm(ours.feature) == pytest.approx(1, abs=1e-5)
        elif task == "attributes":
            assert ours.probabilities == line["attributes"]
        elif task == "parsing":
            assert ours.labels.shape == (line["height"], line["width"])
            assert sum(length for _, length in line["runs"]) == ours.labels.size
            assert ours.labels[0, 0] == line["runs"][0][0]
        elif task == "pose":
            assert ours.keypoints.shape == (len(ours.joints), 3)
            assert ours.keypoints[0, 0] == pytest.approx(line["joints"][0]["x"], abs=1e-4)
        else:
            assert ours.boxes.shape == (len(line["boxes"]), 4) and ours.scores.shape == (len(line["boxes"]),)


def test_a_backbone_predicts_nothing(backbone, photos):
    assert backbone.task is None and "backbone" in repr(backbone)
    with pytest.raises(ValueError, match="fine-tune"):
        backbone.predict(photos[:1])


def test_the_state_dict_is_the_exported_file(backbone, run_folder, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "timm.safetensors"
    clasp.run("export", "safetensors", str(run_folder), "--out", str(path), "--prompt", "part")
    expected = safetensors.load_file(path)
    found = backbone.state_dict(names="timm", prompt="part")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert any("moe" in name for name in backbone.state_dict(names="clasp"))
    with pytest.raises(ValueError, match="names"):
        backbone.state_dict(names="torch")


def test_timm_computes_the_same_features(backbone, run_folder, photos, tmp_path):
    pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    path = tmp_path / "timm.safetensors"
    made = clasp.run("export", "safetensors", str(run_folder), "--out", str(path), "--prompt", "identity")
    names: dict[str, object] = {}
    # The lines that the export prints make timm's network.
    exec(made["python"], names)
    network = names["model"]
    state = {name: torch.from_numpy(tensor) for name, tensor in backbone.state_dict().items()}
    network.load_state_dict(state, strict=True)
    image = clasp.Images([str(photos[0])])[0]
    mean, std = (np.array(backbone.meta[key], np.float32) for key in ("mean", "std"))
    assert image.shape == (*backbone.size, 3)
    pixels = torch.from_numpy(((image / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None])
    with torch.no_grad():
        expected = network.eval()(pixels).numpy()
    assert np.allclose(backbone.embed(image), expected, atol=1e-4)


def test_onnx_files_are_written_and_checked(backbone, photos, tmp_path):
    path = tmp_path / "model.onnx"
    backbone.export_onnx(path)
    assert path.stat().st_size > 100_000
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = clasp.Images([str(photos[0])])[0]
    mean, std = (np.array(backbone.meta[key], np.float32) for key in ("mean", "std"))
    pixels = ((image / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    [features] = session.run(["pooled"], {session.get_inputs()[0].name: pixels})
    assert np.allclose(features, backbone.embed(image), atol=1e-4)


def test_the_program_is_installed():
    done = subprocess.run([sys.executable, "-m", "clasp", "--version"], capture_output=True, text=True)
    # A commit may follow, in parentheses.
    assert done.stdout.split()[:2] == ["clasp", clasp.__version__]
    done = subprocess.run([sys.executable, "-m", "clasp", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "nonsense" in done.stderr
