#!/usr/bin/env python3
"""Splits of pedestrian attributes from a pickle of Rethinking_of_PAR to the JSON that clasp reads.

    runs/par_split.py dataset_zs_run0.pkl        writes dataset_zs_run0.json beside it; needs NumPy

The pickle holds image_name, label, attr_name and partition. Nothing in it is run: only plain containers and NumPy arrays are made.
Where it has several partitions the first is taken, and where it names the columns to evaluate (label_idx.eval) these.
"""

import json
import pathlib
import pickle
import sys

import numpy as np


class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if name == "EasyDict":
            return type("EasyDict", (dict,), {"__setstate__": lambda self, state: None})
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar", "str_"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"will not make a {module}.{name}")


def first(partition):
    """Of several partitions the first."""
    return partition[0] if len(partition) and np.ndim(partition[0]) else partition


def main(path):
    with open(path, "rb") as file:
        data = Reader(file).load()
    label, names = np.asarray(data["label"]), list(data["attr_name"])
    columns = (data.get("label_idx") or {}).get("eval")
    if columns is not None:
        label = label[:, list(columns)]
        names = [names[i] for i in columns] if len(names) != len(columns) else names
    split = dict(
        image_name=[str(name) for name in data["image_name"]],
        attr_name=[str(name) for name in names],
        label=label.astype(int).tolist(),
        partition={key: [int(i) for i in first(data["partition"][key])] for key in ("train", "val", "test") if key in data["partition"]},
    )
    if "train" not in split["partition"]:
        split["partition"]["train"] = [int(i) for i in first(data["partition"]["trainval"])]
    out = pathlib.Path(path).with_suffix(".json")
    out.write_text(json.dumps(split))
    print(out, {key: len(members) for key, members in split["partition"].items()}, len(names), "attributes")


if __name__ == "__main__":
    main(sys.argv[1])
