"""Compute with the crops that a network sees."""

from collections.abc import Callable
from typing import Any

import numpy as np

from alexnet_jax.inference.network import Network

BATCH = 32  # crops of which gradients are computed at a time


def probabilities(net: Network, crops: np.ndarray) -> np.ndarray:
    """Return the softmax outputs for crops, uint8 [N, S, S, C] -> float [N, classes]."""
    height, width, _ = net.image_shape
    side = crops.shape[1]
    y, x = (height - side) // 2, (width - side) // 2
    around = ((0, 0), (y, height - side - y), (x, width - side - x), (0, 0))
    return net.probabilities(np.pad(crops, around))


def in_batches(
    function: Callable[..., Any], *arrays: np.ndarray, batch_size: int = BATCH
) -> np.ndarray:
    """Apply a jitted function to batches of the rows of arrays [N, ...]; return its rows, [N, ...].

    All batches have the same size, for which the last one is filled up with its last row, so that
    the function is compiled once.
    """
    rows = []
    for start in range(0, len(arrays[0]), batch_size):
        parts = [array[start : start + batch_size] for array in arrays]
        count = len(parts[0])
        missing = batch_size - count
        full = [np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) for p in parts]
        rows.append(np.asarray(function(*full))[:count])
    return np.concatenate(rows)
