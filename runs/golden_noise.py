"""Numbers from a name alone, the same in Python and Rust: weights of golden tests need not be stored.

The Rust side is `noise` in crates/model/tests and crates/weights/src/testing.rs; change all together.
"""

import numpy as np


def noise_array(name, shape):
    """float64 in [-1, 1), row-major: FNV-1a of the name, then SplitMix64."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def noise(name, shape):
    """The same as a tensor of 32-bit floats."""
    import torch

    return torch.from_numpy(noise_array(name, shape)).float()
