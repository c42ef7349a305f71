"""Weights and images from names, as `crates/weights/src/testing.rs` has them."""

import numpy as np
from golden_noise import noise


def parameter(name, shape):
    """Norms near 1, biases small, tables and tokens of half a unit, weights of variance 1 / inputs."""
    u = noise(name, shape)
    if "norm" in name and name.endswith("weight"):
        return 1.0 + 0.1 * u
    if name.endswith("bias"):
        return 0.1 * u
    if name.endswith(("relative_position_bias_table", "pos_embed", "_pos", "_token", "_tokens")) or "part_token" in name:
        return 0.5 * u
    return u * (3.0 / int(np.prod(shape[1:]))) ** 0.5


def shapes_of(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def images(height, width):
    return noise(f"images {height}x{width}", (1, 3, height, width)) * 2.0
