"""Asks ONNX's checker and ONNX Runtime about exported files.

    CLASP_ONNX=DIR cargo test --release --workspace leave_with_heads
    CLASP_ONNX=DIR cargo test --release --workspace --test finetune
    python3 crates/weights/tests/golden/onnx_runtime.py DIR

The first writes Swin-T and ViT-S with the heads of pre-training, the second small networks with the head of each task.

Prints the largest difference of each output, relative to its largest value where that is above 1, and fails above 1e-4; of files in
half precision the length of the difference over that of the output, and fails above 2e-2. Needs onnx, onnxruntime, numpy and safetensors.
"""

import sys
from pathlib import Path

import numpy
import onnx
import onnxruntime
from safetensors.numpy import load_file

failed = False
for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
    onnx.checker.check_model(str(file), full_check=True)
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    tolerance = 2e-2 if "half" in file.stem else 1e-4
    for batch in [1, 8]:
        values = load_file(file.with_name(f"{file.stem}.{batch}.safetensors"))
        inputs = {}
        for node in session.get_inputs():
            value = values.pop(f"input {node.name}")
            inputs[node.name] = value.astype(numpy.uint8) if "uint8" in node.type else value
        names = sorted(values)
        for name, found in zip(names, session.run(names, inputs)):
            expected = values[name]
            assert found.shape == expected.shape, (file, name, found.shape, expected.shape)
            if "half" in file.stem:
                difference = numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected)
            else:
                difference = numpy.abs(found - expected).max() / max(1.0, numpy.abs(expected).max())
            failed |= not difference <= tolerance
            print(f"{file.stem} batch {batch} {name}: {difference:.1e}")
sys.exit("above the tolerance" if failed else 0)
