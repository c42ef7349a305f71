"""Pickles as Python and NumPy write them, for crates/data/src/pickle_tests.rs and the readers of zero-shot splits.

    python pickles.py        writes pickles/*.pkl beside this file

Versions: Python 3.11, NumPy 2.4.6. `values*.pkl` hold the same in protocols 2 to 5. The others are miniatures of the splits of
Rethinking_of_PAR, with the fields in its order and with its `label_idx.extra`, which is a range; those of protocols 2 and 3 name NumPy's
modules as NumPy 1 does, with which the published ones were made.
"""
import pathlib
import pickle
import sys
import types

import numpy as np

FOLDER = pathlib.Path(__file__).with_suffix("")


class EasyDict(dict):
    """What of the class of that name is seen in a pickle: values are entries and attributes."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        super().__setitem__(name, value)


EasyDict.__module__ = "easydict"
sys.modules["easydict"] = types.ModuleType("easydict")
sys.modules["easydict"].EasyDict = EasyDict


def save(name, value, protocol):
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pickle.dumps(value, protocol)
    if protocol < 4:
        data = data.replace(b"numpy._core.", b"numpy.core.")
    path.write_bytes(data)


row = [1, 0]
values = {
    "numbers": [0, -1, 300, 70_000, -2**40, 2.5, True], "range": range(79, 85, 2), "backwards": range(3, 0, -1), "long": 2**70, "none": None,
    "names": ["hat", np.str_("Größe"), "hat"], "tuple": (1, 2, 3, 4), "nested": [row, row, [np.int16(-7)]], "bytes": b"\xff\x00",
    "matrix": np.arange(6, dtype=np.uint8).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big": np.array([1, -2], ">i4"), "single": np.array([0.5, -1], np.float32), "logical": np.array([True, False]), "none_there": np.array([], np.int64),
    "objects": np.array(["a", [1]], object), "scalar": np.float64(0.25), "day": np.array(["2026-01-01"], "M8[D]"), "twice": np.array([9], np.int8),
}
for protocol in (2, 3, 4, 5):
    save(f"values{protocol}.pkl", values, protocol)


def split(description, images, label, names, evaluated, extra, partition, several):
    data = EasyDict()
    data.description, data.reorder, data.root = description, "group_order", "/data"
    data.image_name, data.label, data.attr_name = images, label, names
    data.label_idx = EasyDict()
    data.label_idx.eval, data.label_idx.color, data.label_idx.extra = evaluated, [], extra
    data.partition = EasyDict()
    train, val, test = (np.array(part) for part in partition)
    for key, part in dict(train=train, val=val, trainval=np.concatenate((train, val)), test=test).items():
        setattr(data.partition, key, [part, part[::-1]] if several else part)
    data.weight_train = [np.mean(label[train], axis=0).astype(np.float32)]
    return data


images = [f"{i + 1:05}.png" for i in range(4)]
# Image i has the binary digits of i.
label = np.array([[(i >> k) & 1 for k in range(4)] for i in range(4)])
names = [np.str_(f"attribute{k}") for k in range(4)]
zero_shot = ([0, 3], [1], [2])
save("peta/dataset_zs_run0.pkl", split("peta", images, label.astype(np.uint16), names, [1, 0], range(2, 4), zero_shot, False), 3)
save("peta/dataset_all.pkl", split("peta", images, label.astype(np.uint16), names, [1, 0], range(2, 4), ([0, 1], [2], [3]), True), 2)
# Labels of RAP are 0, 1, or 2 for what is not to be seen; a matrix of columns.
seen = np.asfortranarray([[0, 0, 0, 2], [1, 0, 2, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
save("rap2/dataset_zs_run0.pkl", split("rap2", [np.str_(name) for name in images], seen, names, [0, 1, 3], [], zero_shot, False), 4)
save("pa100k/dataset_all.pkl", split("pa100k", images, label.astype(np.uint8), names, [3, 2, 1, 0], [], ([0, 1], [2], [3]), False), 5)
print(sum(p.stat().st_size for p in FOLDER.rglob("*.pkl")), "bytes")
