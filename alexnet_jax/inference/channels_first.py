"""Weights in the layout of PyTorch and Caffe, which put channels first, and in ours.

| | there | here |
|---|---|---|
| kernel of a convolution | [outputs, inputs, height, width] | [height, width, inputs, outputs] |
| kernel of a fully connected layer | [outputs, inputs] | [inputs, outputs] |
| inputs of the first of these | map by map | pixel by pixel, all maps of each |

A kernel of two towers has the outputs of the first tower first in both. A fully connected layer
whose towers see only their own inputs has one kernel [inputs of a tower, outputs] here; there it is
a whole matrix whose other blocks are zero. `fc8` directly after the convolutions takes the pixels
of the first tower and then those of the second here.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import abstract_variables, init_statistics, join_network
from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig
from alexnet_jax.runtime.errors import UserError

Network = Mapping[str, Mapping[str, np.ndarray]]  # {layer: {kernel, bias}}, in either layout
Shapes = dict[str, dict[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The inputs of a fully connected layer."""

    maps: int  # the number of maps that they are the pixels of; 0: they are units
    parts: int  # towers whose inputs follow each other here
    blocks: int  # towers that see only their own inputs, or 1


def shapes(model: ModelConfig, image_shape: tuple[int, ...]) -> Shapes:
    """Return the shape of each parameter and each running average, in our layout."""
    network = AlexNet(dataclasses.replace(model, dtype='float32'))
    try:
        params = nn.meta.unbox(abstract_variables(network, image_shape))
        averages = jax.eval_shape(functools.partial(init_statistics, network, image_shape))
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise UserError(
            'no network has these sizes: a layer is too wide, or a kernel larger than its maps; '
            'name another file'
        ) from error
    joined = join_network(params, averages)
    return {
        layer: {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        for layer, leaves in joined.items()
    }


def shapes_there(model: ModelConfig, image_shape: tuple[int, ...]) -> Shapes:
    """Return the shapes of `shapes` in the layout with channels first."""
    return {
        layer: {name: _shape_there(layer, shape, model) for name, shape in leaves.items()}
        for layer, leaves in shapes(model, image_shape).items()
    }


def check_shapes(path: Any, network: Network, expected: Shapes, spell: Any) -> None:
    """Raise UserError unless the weights are those expected, finite and of these shapes.

    `spell` makes the name in the file of a layer and of a leaf. The error names the first that is
    missing, unknown, of another shape or not finite.
    """
    wanted = {spell(layer, leaf): s for layer, x in expected.items() for leaf, s in x.items()}
    found = {spell(layer, leaf): a for layer, x in network.items() for leaf, a in x.items()}
    for name, shape in wanted.items():
        if name not in found:
            raise UserError(f'{path} has no {name}, which should be {shape}; name another file')
        array = found[name]
        if array.shape != shape:
            raise UserError(f'{path}: {name} should be {shape}, and is {array.shape}')
        if array.dtype.kind != 'f':
            raise UserError(f'{path}: {name} should be floating-point numbers, not {array.dtype}')
        if not np.isfinite(array).all():
            raise UserError(f'{path}: {name} has numbers that are not finite; name another file')
    if unknown := sorted(found.keys() - wanted.keys()):
        raise UserError(
            f'{path} has {unknown[0]}, which this network does not have; name another file'
        )


def from_channels_first(network: Network, model: ModelConfig) -> dict[str, dict[str, np.ndarray]]:
    """Return weights in our layout; their shapes must be those of `shapes_there`.

    Raises UserError if a block that should be zero is not.
    """
    return {
        layer: {
            name: _kernel_from(layer, leaf, model) if name == 'kernel' else leaf
            for name, leaf in leaves.items()
        }
        for layer, leaves in network.items()
    }


def to_channels_first(network: Network, model: ModelConfig) -> dict[str, dict[str, np.ndarray]]:
    """Return weights in the layout with channels first."""
    return {
        layer: {
            name: _kernel_to(layer, leaf, model) if name == 'kernel' else leaf
            for name, leaf in leaves.items()
        }
        for layer, leaves in network.items()
    }


def _inputs(layer: str, model: ModelConfig) -> _Inputs:
    """Return what reaches a fully connected layer."""
    last = [name for name in CONVOLUTIONS if getattr(model, name).features][-1]
    dense = [name for name in ('fc6', 'fc7') if getattr(model, name).features]
    first = layer == [*dense, 'fc8'][0]
    own = layer != 'fc8' and not getattr(model, layer).sees_both_towers
    return _Inputs(
        maps=getattr(model, last).features if first else 0,
        parts=model.towers if first and layer == 'fc8' else 1,
        blocks=model.towers if own else 1,
    )


def _shape_there(layer: str, shape: tuple[int, ...], model: ModelConfig) -> tuple[int, ...]:
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    if len(shape) == 2:
        return shape[1], shape[0] * _inputs(layer, model).blocks
    return shape


def _kernel_to(layer: str, kernel: np.ndarray, model: ModelConfig) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    inputs = _inputs(layer, model)
    own = [_rows_to(part, inputs).T for part in np.split(kernel, inputs.blocks, axis=1)]
    if len(own) == 1:
        return own[0]
    (outputs, width), whole = own[0].shape, np.zeros(_shape_there(layer, kernel.shape, model))
    for i, part in enumerate(own):
        whole[i * outputs : (i + 1) * outputs, i * width : (i + 1) * width] = part
    return whole.astype(kernel.dtype)


def _kernel_from(layer: str, kernel: np.ndarray, model: ModelConfig) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    inputs = _inputs(layer, model)
    rows = [np.split(row, inputs.blocks, axis=1) for row in np.split(kernel, inputs.blocks)]
    if any(block.any() for i, row in enumerate(rows) for j, block in enumerate(row) if i != j):
        raise UserError(
            f'a tower has weights for inputs of the other one in {layer}, but '
            f'model.{layer}.sees_both_towers = False'
        )
    own = [_rows_from(rows[i][i].T, inputs) for i in range(inputs.blocks)]
    return np.concatenate(own, axis=1)


def _rows_to(kernel: np.ndarray, inputs: _Inputs) -> np.ndarray:
    """Reorder the inputs of a kernel [inputs, outputs] from pixel by pixel to map by map."""
    if not inputs.maps:
        return kernel
    maps = inputs.maps // (inputs.parts * inputs.blocks)
    by_pixel = kernel.reshape(inputs.parts, -1, maps, kernel.shape[1])
    return by_pixel.transpose(0, 2, 1, 3).reshape(kernel.shape)


def _rows_from(kernel: np.ndarray, inputs: _Inputs) -> np.ndarray:
    """Reorder the inputs of a kernel [inputs, outputs] from map by map to pixel by pixel."""
    if not inputs.maps:
        return kernel
    maps = inputs.maps // (inputs.parts * inputs.blocks)
    by_map = kernel.reshape(inputs.parts, maps, -1, kernel.shape[1])
    return by_map.transpose(0, 2, 1, 3).reshape(kernel.shape)
