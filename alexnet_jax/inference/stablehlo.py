"""Export a trained network as StableHLO, which JAX alone can load and run.

exported = jax.export.deserialize(bytearray(open('net.stablehlo', 'rb').read()))
probabilities = exported.call(images)  # uint8 [N, H, W, C] -> float [N, classes]
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export

from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference.trained import require_fit
from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import split_network
from alexnet_jax.runtime import storage

SUFFIX = '.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path: epath.Path, trained: TrainedNetwork) -> None:
    """Write the function from images to probabilities, with its weights, for all `PLATFORMS`.

    Its argument is uint8 [N, height, width, channels], any number of images of the size that the
    data had; its result are the softmax outputs for the centre crops, [N, classes]. The layers have
    their plain forms, which are those of no platform in particular.
    """
    config = require_fit(trained)
    model = AlexNet(dataclasses.replace(config.model, forms='plain'))
    augment = Augment(config.augment, 0)
    dtype = config.model.param_dtype
    statistics = Statistics(*(np.asarray(x, dtype) for x in trained.statistics))
    shape = trained.statistics.mean_image.shape

    def probabilities(images: jax.Array) -> jax.Array:
        corners, mirrors = augment.view_corners(shape, 1)
        crops = augment.view(images, statistics, corners[0], mirrors[0])
        rows = jnp.arange(images.shape[0], dtype=jnp.int32)
        outputs: Any = model.apply(split_network(trained.network), crops, rows)
        return jax.nn.softmax(outputs[0])

    with jax.enable_x64(config.model.dtype == 'float64'):
        batch = export.symbolic_shape('N', constraints=('N >= 1',))
        images = jax.ShapeDtypeStruct((*batch, *shape), np.uint8)
        exported = export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)
    with storage.writing(path):
        storage.replace(path, bytes(exported.serialize()))
