"""MATLAB files as SciPy writes them, for crates/data/src/mat_tests.rs and the readers of published annotations.

    python mat.py        writes mat/*.mat beside this file

Versions: NumPy 2.4.6, SciPy 1.17.1. `values.mat` (deflated) and `values_v6.mat` hold the same; the others are miniatures of the
annotation of CUHK-SYSU, PRW, PA-100K, PETA and RAPv2, with the structure that their public readers expect.
"""
import pathlib

import numpy as np
from scipy.io import savemat
from scipy.sparse import csc_matrix

FOLDER = pathlib.Path(__file__).with_suffix("")
HEADER = b"MATLAB 5.0 MAT-file Platform: posix, Created on: Mon Nov 23 20:38:00 2026"


def save(name, variables, **options):
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, **{"do_compression": True, **options})
    # SciPy writes the time into the header, a text of 116 bytes.
    path.write_bytes(HEADER.ljust(116, b"\0") + path.read_bytes()[116:])


def cell(items, column=True):
    out = np.empty((len(items), 1) if column else (1, len(items)), object)
    for i, item in enumerate(items):
        out.flat[i] = item
    return out


def structs(fields, rows):
    out = np.empty((1, len(rows)), [(f, object) for f in fields])
    for i, row in enumerate(rows):
        out[0, i] = tuple(row)
    return out


def box(*v):
    return np.array([v], float)


EMPTY = np.zeros((0, 0))

values = dict(
    doubles=np.arange(6.0).reshape(2, 3) / 4, whole=np.array([[1, -2, 300]], np.int32), bytes=np.arange(5, dtype=np.uint8),
    single=np.float32(1.5), large=np.array([[-(2 ** 40), 7]], np.int64), logical=np.array([[True, False]]), text="Größe",
    empty=EMPTY, nothing="", cells=cell([np.float64(4), "ab", cell(["inner"])]), records=structs(["name", "value"], [["a", 1.0], ["b", EMPTY]]),
    sparse=csc_matrix(np.array([[0, 2.0], [0, 0], [3, 4]])), cube=np.arange(8.0).reshape(2, 2, 2), complex=np.array([[1 + 2j]]),
)
save("values.mat", values)
save("values_v6.mat", values, do_compression=False)

# CUHK-SYSU: four frames, two of them for training. The box of person p1 in s3 has no size; q1 is also in s4 and not in s3.
frames = {"s1.jpg": [box(1, 2, 10, 30), box(40, 2, 12, 33)], "s2.jpg": [box(5, 5, 20, 40), box(0, 0, 0, 9)],
          "s3.jpg": [box(7, 1, 11, 31), box(30, 1, 9, 28)], "s4.jpg": [box(2, 3, 14, 35)], "s5.jpg": [box(8, 8, 15, 25)]}
images = structs(["imname", "nAppear", "box"], [[n, float(len(b)), structs(["idlocate", "ishard"], [[x, 0.0] for x in b])] for n, b in frames.items()])
save("cuhk_sysu/annotation/Images.mat", dict(Img=images))
save("cuhk_sysu/annotation/pool.mat", dict(pool=cell(["s3.jpg", "s4.jpg", "s5.jpg"])))
scene = ["imname", "idlocate", "ishard"]
train = cell([structs(["idname", "nAppear", "scene"], [["p1", 2.0, structs(scene, [["s1.jpg", box(1, 2, 10, 30), 0.0], ["s2.jpg", box(5, 5, 20, 40), 0.0]])]]),
              structs(["idname", "nAppear", "scene"], [["p2", 1.0, structs(scene, [["s1.jpg", box(40, 2, 12, 33), 0.0]])]])])
save("cuhk_sysu/annotation/test/train_test/Train.mat", dict(Train=train))
query = structs(["imname", "idlocate", "idname", "nAppear", "ishard"], [["s3.jpg", box(7, 1, 11, 31), "q1", 2.0, 0.0]])
for size, gallery in (50, ["s4.jpg"]), (100, ["s4.jpg", "s5.jpg"]):
    rows = [[n, box(2, 3, 14, 35) if n == "s4.jpg" else EMPTY, 0.0] for n in gallery]
    protocol = structs(["Query", "Gallery"], [[query, structs(scene, rows)]])
    save(f"cuhk_sysu/annotation/test/train_test/TestG{size}.mat", {f"TestG{size}": protocol})

# PRW: one frame for training, three for testing; one key of each kind, an unknown person, a box beyond the left edge.
save("prw/frame_train.mat", dict(img_index_train=cell(["c1s1_000001"])))
save("prw/frame_test.mat", dict(img_index_test=cell(["c1s1_000101", "c2s1_000102", "c1s1_000103"])))
save("prw/annotations/c1s1_000001.jpg.mat", dict(box_new=np.array([[5, 10, 20, 30, 60], [-2, 80, 20, 28, 61.5]])))
save("prw/annotations/c1s1_000101.jpg.mat", dict(anno_file=np.array([[9, 10, 20, 30, 60.0]])))
save("prw/annotations/c2s1_000102.jpg.mat", dict(anno_previous=np.array([[9, -3, 20, 30, 60.0], [-2, 50, 20, 30, 60]])))
save("prw/annotations/c1s1_000103.jpg.mat", dict(box_new=np.array([[9, 12, 20, 30, 60], [8, 70, 20, 30, 60.0]])))

# Attributes: three images, two of three attributes in use where there is a selection.
save("pa100k/annotation.mat", dict(
    attributes=cell(["Female", "Hat"]), train_images_name=cell(["000001.jpg", "000002.jpg"]), train_label=np.array([[1, 0], [0, 1]], np.uint8),
    val_images_name=cell(["000003.jpg"]), val_label=np.array([[1, 1]], np.uint8), test_images_name=cell(["000004.jpg"]),
    test_label=np.array([[0, 0]], np.uint8)))
column = lambda *v: np.array(v, float).reshape(-1, 1)
split = structs(["train", "val", "test"], [[column(1, 3), column(2), column(4)]])
labels = np.array([[i + 1, 7 + i, 1, 1] + [(i >> k) & 1 for k in range(2)] + [0] * 34 for i in range(4)], float)
save("peta/PETA.mat", dict(peta=structs(["data", "attribute", "selected_attribute", "partion"], [
    [labels, cell([f"attribute{k}" for k in range(36)]), np.arange(1.0, 36), cell([split] * 5)]])))
rap = structs(["train_index", "val_index", "test_index"], [[column(1).T, column(2).T, column(3).T]])
save("rap2/RAP_annotation/RAP_annotation.mat", dict(RAP_annotation=structs(["name", "data", "attribute", "selected_attribute", "partition_attribute", "pid"], [
    [cell(["a.png", "b.png", "c.png"]), np.array([[1, 5, 0], [0, 6, 2], [2, 7, 1.0]]), cell(["Female", "Weight", "hat"]), np.array([[1.0, 3]]),
     cell([rap] * 5, column=False), column(3, 4, 5)]])))
save("ccp/label_list.mat", dict(label_list=cell(["null", "hat", "hair"], column=False)))
save("ccp/annotations/pixel-level/0001.mat", dict(groundtruth=np.array([[0, 1, 1], [2, 2, 0]], np.uint8)))
print(sum(p.stat().st_size for p in FOLDER.rglob("*.mat")), "bytes")
