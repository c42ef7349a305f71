"""Label stores, views, and processes that fork."""

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

import clasp


def test_a_store_is_a_sequence_and_a_mapping(labels):
    store = clasp.LabelStore(labels)
    assert len(store) == 24 and len(list(store)) == 24
    first = store[0]
    assert first.key == store.keys[0] and store[first.key].key == first.key and store[-1].key == store.keys[-1]
    assert first.key in store and "nobody" not in store
    assert first.parts.shape == store.grid and first.parts.dtype == np.uint8
    classes = set(np.unique(np.stack([row.parts for row in store]))) - {255}
    assert max(classes) < len(store.parts)
    assert first.attributes.shape == (len(store.values),) == (sum(map(len, store.attributes.values())),)
    assert (first.width, first.height) == (64, 128)
    with pytest.raises(IndexError):
        store[24]
    with pytest.raises(KeyError):
        store["nobody"]
    with pytest.raises(clasp.Error, match="nowhere"):
        clasp.LabelStore("nowhere")



def test_corrections_are_read_again(labels, tmp_path):
    folder = shutil.copytree(labels, tmp_path / "labels")
    store = clasp.LabelStore(folder)
    key, head = store.keys[2], store.parts.index("head")
    store.correct(key, {"glasses": "yes", "gender": None}, {(1, 2): "head", (0, 0): None})
    for opened in (store, clasp.LabelStore(folder)):
        assert opened[key].corrected == {"glasses": "yes", "gender": None}
        assert (opened[key].parts[1, 2], opened[key].parts[0, 0]) == (head, clasp.labels.IGNORE)
        assert opened[store.keys[0]].corrected == {}
    for wrong in ({"hat": "yes"}, {"glasses": "maybe"}):
        with pytest.raises(clasp.Error, match="of the vocabulary"):
            store.correct(key, wrong)
    with pytest.raises(ValueError, match="from 0 up"):
        store.correct(key, parts={(-1, 0): "head"})
    store.correct(key, clear=True)
    assert clasp.LabelStore(folder)[key].corrected == {}


def test_a_store_as_a_table(labels):
    pytest.importorskip("pandas")
    store = clasp.LabelStore(labels)
    table = store.to_pandas()
    assert list(table.index) == store.keys
    assert np.array_equal(table[store.values].to_numpy(np.float32)[3], store[3].attributes)
    assert np.array_equal(table["parts"].iloc[5], store[5].parts)


def test_views_are_those_of_the_recipe(photos):
    image = clasp.Images([str(photos[0])])[0]
    large, small = clasp.views(image, "demo", seed=3, key="a", views={"local": 2})
    assert large.ndim == small.ndim == 4 and small.shape[:2] == (2, 3) and large.dtype == np.float32
    again = clasp.views(photos[0], "demo", seed=3, key="a", views={"local": 2})
    assert np.array_equal(large, again[0]) and np.array_equal(small, again[1])
    for other in ({"seed": 4, "key": "a"}, {"seed": 3, "key": "b"}, {"seed": 3, "key": "a", "epoch": 1}):
        assert not np.array_equal(large, clasp.views(image, "demo", views={"local": 2}, **other)[0])
    with pytest.raises(clasp.Error, match="views.local"):
        clasp.views(image, "demo", views={"local": -1})
    with pytest.raises(clasp.Error, match="nothing"):
        clasp.views(image, "demo", nothing=1)


def test_a_dataset_gives_what_pre_training_sees(labels, unlabeled):
    data = clasp.ViewDataset(unlabeled, labels, "demo", seed=5)
    assert len(data) == 24
    sample = data[2]
    views = sample.global_views.shape[0]
    assert sample.parts.shape[0] == views and sample.parts.dtype == np.uint8
    assert sample.attributes.shape == (len(clasp.LabelStore(labels).values),)
    assert sample.attribute_weights.shape == (len(clasp.LabelStore(labels).attributes),)
    data.set_epoch(1)
    assert not np.array_equal(sample.global_views, data[2].global_views)
    plain = clasp.ViewDataset(unlabeled, recipe="demo", seed=5)
    assert np.array_equal(plain[2].global_views, sample.global_views) and plain[2].parts is None
    copied = pickle.loads(pickle.dumps(plain))
    assert np.array_equal(copied[2].global_views, sample.global_views)
    with pytest.raises(IndexError):
        data[24]
    with pytest.raises(ValueError, match="epoch"):
        data.set_epoch(-1)


def test_an_image_that_cannot_be_read_is_named(photos, tmp_path):
    for name in ("a.jpg", "z.jpg"):
        (tmp_path / name).write_bytes(photos[0].read_bytes()[:300])
    data = clasp.ViewDataset(tmp_path, recipe="demo")
    for index, key in [(1, "z: "), (0, "a: ")]:
        with pytest.raises(clasp.Error, match=key):
            data[index]


def _work_of_a_child(queue, run_folder, photos, folder):
    model = clasp.load(run_folder)
    queue.put(model.embed(photos))
    queue.put(clasp.ViewDataset(folder, recipe="demo")[0].global_views)


def _inherited(queue, model, data, photos):
    queue.put(model.embed(photos))
    queue.put(data[0].global_views)
    features = np.eye(4, dtype=np.float32)
    queue.put(clasp.metrics.reid(features, features, range(4), range(4), [0] * 4, [1] * 4)["map"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_work(method, backbone, run_folder, photos, unlabeled):
    # Threads of the parent are gone in a fork: what waits for them waits forever.
    expected = backbone.embed(photos)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    data = clasp.ViewDataset(unlabeled, recipe="demo")
    views = data[0].global_views
    if method == "fork":
        clasp.metrics.reid(expected, expected, range(24), range(24), [0] * 24, [1] * 24)
        child = context.Process(target=_inherited, args=(queue, backbone, data, photos))
    else:
        child = context.Process(target=_work_of_a_child, args=(queue, run_folder, photos, unlabeled))
    child.start()
    try:
        assert np.array_equal(queue.get(timeout=120), expected)
        assert np.array_equal(queue.get(timeout=120), views)
        if method == "fork":
            assert queue.get(timeout=120) == 1.0
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_a_data_loader_with_workers(unlabeled):
    torch_data = pytest.importorskip("torch.utils.data")
    data = clasp.ViewDataset(unlabeled, recipe="demo")
    loader = torch_data.DataLoader(data, batch_size=4, num_workers=2, timeout=120, collate_fn=lambda items: [one.key for one in items])
    assert [key for batch in loader for key in batch] == clasp.Images([str(unlabeled)]).keys
