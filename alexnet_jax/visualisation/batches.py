"""Apply a function of the named activations to many images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alexnet_jax.inference.network import Network
from alexnet_jax.inference.pixels import Picture

_SIZE = 32  # images that are computed at a time


def over(
    net: Network,
    images: Sequence[Picture] | np.ndarray,
    function: Callable[[dict[str, jax.Array]], Any],
) -> Any:
    """Return what a function finds in the activations of each image.

    Args:
      net: the network; it computes by `Network.forward`, on one device.
      images: at least one, as `Network.crops` takes them; only a few are in memory at a time.
      function: of the activations by name, [batch, ...]; its result is a tree of arrays with one
        row for each image. JAX compiles it.

    Returns:
      The tree with NumPy arrays, [N, ...].
    """
    run = jax.jit(lambda crops: function(net.forward(crops)))
    size = min(_SIZE, len(images))
    parts = []
    for start in range(0, len(images), size):
        crops = net.crops(images[start : start + size])
        padding = np.zeros((size - len(crops), *crops.shape[1:]), crops.dtype)
        rows = run(np.concatenate([crops, padding]))
        count = len(crops)
        parts.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], rows))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
