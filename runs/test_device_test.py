"""Tests of runs/device_test.py.

    python3 -m unittest discover -s runs
"""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import device_test


def npy(values):
    """A float32 .npy file."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (len(values),)}).encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    data = device_test.array.array("f", values).tobytes()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def write(out, loss=2.0, feature=1.0):
    """Results whose device differs in a loss and a feature."""
    bench = {"limits": {"features": 1e-3}, "features_apart": 1e-6}
    for side in ("cpu", "device"):
        of_device = side == "device"
        for run in ("pretrain", "reid", "parsing"):
            (out / side / run).mkdir(parents=True)
            lines = [{"loss/total": loss if of_device else 2.0}, {"eval/mIoU": 0.5}]
            (out / side / run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for task, name in (("reid", "mAP"), ("parsing", "mIoU")):
            text = json.dumps({"metrics": [{"name": name, "value": 0.25}]})
            (out / side / f"eval {task}.json").write_text(text)
        (out / side / "features.npy").write_bytes(npy([1.0, feature if of_device else 1.0]))
    (out / "device" / "bench.json").write_text(json.dumps(bench))
    labels = {"positions": 1.0, "attributes": [{"name": "age", "clear": 1.0}]}
    (out / "cpu" / "label compare.json").write_text(json.dumps(labels))
    (out / "times.txt").write_text("device finetune reid 12\ncpu embed 1\n")


class DeviceTest(unittest.TestCase):
    def result(self, **changes):
        """Exit status and table."""
        text = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            write(pathlib.Path(folder), **changes)
            arguments = mock.patch.object(sys, "argv", ["device_test.py", folder])
            with arguments, contextlib.redirect_stdout(text), self.assertRaises(SystemExit) as end:
                device_test.main()
        return end.exception.code, text.getvalue()

    def test_equal_results_pass_and_show_the_seconds_of_the_device(self):
        status, table = self.result()
        self.assertEqual(status, 0, table)
        self.assertRegex(table, r"finetune reid, seconds on the device +12\n")
        self.assertNotIn("embed, seconds", table)

    def test_a_difference_is_found(self):
        status, table = self.result(loss=2.1)
        self.assertEqual(status, 1)
        self.assertRegex(table, r"pretrain: loss of the first step .*DIFFERENT")
        status, table = self.result(feature=float("nan"))
        self.assertEqual(status, 1)
        self.assertRegex(table, r"embed: features .*DIFFERENT")


if __name__ == "__main__":
    unittest.main()
