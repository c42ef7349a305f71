"""Feature maps of synthetic people from a backbone that learned, with the share of each position that is person.

What `kmeans::golden` tests the foreground of k-means labels with. Made by

    clasp synth --out people --train-identities 24 --test-identities 12 --cameras 2 --shots 1 \
        --unlabelled 1500 --scenes 1 --size 128x64
    clasp pretrain demo --set method=dino --set loss.teacher_temperature=0.015 \
        --set data.images=people/unlabeled --set run.steps=400 --set run.replicas=1 --out dino
    clasp synth --out others --train-identities 300 --test-identities 0 --cameras 4 --shots 1 \
        --scenes 0 --size 128x64
    clasp export onnx dino --out dino.onnx --outputs map --size 128x64
    python foreground.py dino.onnx others 32 foreground.safetensors

with Python 3, NumPy, onnxruntime, Pillow and safetensors. The images are drawn at random from all crops of `others`.
"""

import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors
import safetensors.numpy
from PIL import Image

model, people, count, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

files = sorted((people / "market/bounding_box_train").glob("*.jpg"))
files = [files[i] for i in np.random.RandomState(0).permutation(len(files))[:count]]
images = np.stack([((np.asarray(Image.open(f)) / 255 - MEAN) / STD).transpose(2, 0, 1) for f in files])
session = onnxruntime.InferenceSession(model)
maps = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32)})[0]
_, _, rows, columns = maps.shape
masks = np.stack([np.asarray(Image.open(people / "masks" / f"{f.stem}.png")) > 0 for f in files])
height, width = masks.shape[1:]
person = masks.reshape(count, rows, height // rows, columns, width // columns).mean((2, 4))
safetensors.numpy.save_file(
    {
        "maps": maps.astype(np.float16),
        "person": np.round(255 * person).astype(np.uint8),
    },
    out,
    metadata={
        "script": "foreground.py",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "safetensors": safetensors.__version__,
    },
)
print(maps.shape, Path(out).stat().st_size, "bytes")
