"""The layers that have weights, each built from its specification.

Activations of the convolutional part are a tuple with one array for each tower on this device, so a
grouped layer is one plain convolution per tower. `feature_group_count` would compute the same
function 2 to 12 times more slowly on the CPU, and under automatic partitioning would gather the
whole batch.
"""

import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from alexnet_jax.network.convolution import convolve
from alexnet_jax.network.dropout import dropout
from alexnet_jax.network.forms import is_fast
from alexnet_jax.network.specification import FirstConvolution, Hidden, ModelConfig, Output
from alexnet_jax.network.variants import ACTIVATIONS, INITIALIZERS, Towers, drop_inputs
from alexnet_jax.parallel.collectives import MODEL_AXES, Collectives

Features = Towers | jax.Array  # maps of each tower on this device, or its units of fc6 or fc7


class TowerConvolution(nn.Module):
    """Convolve each tower with its own kernels and add the bias (Paper 3.5).

    The kernel is one array for both towers, [kernel, kernel, C_in, features], where C_in is the
    number of channels that one tower sees. Its last axis is split over the towers.
    """

    layer: FirstConvolution
    config: ModelConfig
    collectives: Collectives = Collectives()

    @nn.compact
    def __call__(self, inputs: Towers) -> Towers:
        """Map [batch, H, W, C] of each tower to [batch, H', W', features / towers]."""
        layer, inputs, features = self.layer, self._seen(inputs), self._features(inputs)
        shape = (layer.kernel, layer.kernel, inputs[0].shape[-1], features)
        kernel = parameter(self, 'kernel', shape, (None, None, None, 'tower'))
        bias = parameter(self, 'bias', (features,), ('tower',))
        function = functools.partial(
            convolve,
            stride=layer.stride,
            padding=layer.padding,
            precision=self.config.precision,
            fast=is_fast('convolution', self.config.forms),
        )
        kernel, bias = kernel.astype(self.config.dtype), bias.astype(self.config.dtype)
        bias = bias[None, None, None]
        if all(x is inputs[0] for x in inputs):  # then one convolution is enough
            return tuple(jnp.split(function(inputs[0], kernel) + bias, len(inputs), axis=-1))
        kernels, biases = (jnp.split(part, len(inputs), axis=-1) for part in (kernel, bias))
        return tuple(function(x, k) + b for x, k, b in zip(inputs, kernels, biases, strict=True))

    def _seen(self, towers: Towers) -> Towers:
        """Return the inputs of each tower: its own maps, or those of both towers (Paper 3.2)."""
        if not self.layer.sees_both_towers:
            return towers
        return (self.collectives.join_towers(jnp.concatenate(towers, axis=-1)),) * len(towers)

    def _features(self, towers: Towers) -> int:
        """Return the number of kernels of all towers on this device."""
        return self.layer.features // self.config.towers * len(towers)


class HiddenLayer(nn.Module):
    """A fully connected hidden layer: x W + b (Paper 3.5), ReLU (3.1), dropout (4.2).

    Each device of a copy of the network computes its part of the units.
    """

    layer: Hidden
    config: ModelConfig
    collectives: Collectives = Collectives()

    @nn.compact
    def __call__(self, x: Features, rows: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Return this device's units, [rows of this copy, features / devices of a copy].

        Args:
          x: the maps of each tower on this device, or its units of the previous layer.
          rows: int32 [rows of this copy], each example's index in the global batch.
          dropout_key: typed key of this layer, the same on every device; None at test time.
        """
        config, collectives = self.config, self.collectives
        units, here = self.layer.features, self.layer.features // collectives.model
        both = self.layer.sees_both_towers or config.towers == 1
        drop = functools.partial(
            dropout,
            rate=config.dropout,
            inverted=config.dropout_inverted,
            key=dropout_key,
            rows=rows,
        )
        inputs = _inputs(x, both, config, collectives)
        if config.dropout_inputs:
            inputs = drop_inputs(inputs, drop, both, config, collectives)
        kernel = parameter(self, 'kernel', (inputs[0].shape[-1], here), (None, MODEL_AXES))
        bias = parameter(self, 'bias', (here,), (MODEL_AXES,))
        kernels = jnp.split(kernel.astype(config.dtype), len(inputs), axis=-1)
        products = [
            jnp.matmul(x, k, precision=config.precision, preferred_element_type=config.dtype)
            for x, k in zip(inputs, kernels, strict=True)
        ]
        sums = jnp.concatenate(products, axis=-1) + bias.astype(config.dtype)[None]
        out = ACTIVATIONS[config.activation](sums)
        if config.dropout_inputs:
            return out
        return drop(out, units=units, first=collectives.model_index() * here)


class OutputLayer(nn.Module):
    """fc8: x W + b, the logits of the softmax (Paper 3.5).

    Each device multiplies its inputs by their rows of W, and the products are summed over the
    devices of a copy. The sum has the dtype of the weights, so that no rounded products are summed.
    """

    layer: Output
    config: ModelConfig
    collectives: Collectives = Collectives()

    @nn.compact
    def __call__(self, x: Features) -> jax.Array:
        """Return the logits, float32 or float64 [rows of this copy, classes], on every device."""
        config = self.config
        if isinstance(x, tuple):  # without fc6 and fc7 these are maps, concatenated by tower
            x = jnp.concatenate(_inputs(x, False, config, self.collectives), axis=-1)
        shape, wide = (x.shape[-1], config.num_classes), config.param_dtype
        kernel = parameter(self, 'kernel', shape, (('tower', 'shard'), None))
        bias = parameter(self, 'bias', shape[1:], (None,))
        partial = jnp.matmul(
            x,
            kernel.astype(config.dtype),
            precision=config.precision,
            preferred_element_type=wide,
        )
        return self.collectives.sum_over_model(partial) + bias[None]


def _inputs(
    x: Features, both: bool, config: ModelConfig, collectives: Collectives
) -> tuple[jax.Array, ...]:
    """Gather a layer's inputs: as one array for both towers, or one for each tower on this device.

    Each array is [rows of this copy, inputs]. The channels of a position are adjacent.
    """
    if isinstance(x, tuple):
        if both:
            x = (collectives.join_towers(jnp.concatenate(x, axis=-1)),)
        whole = tuple(map(collectives.join_batch, x))
        return tuple(maps.reshape(maps.shape[0], -1) for maps in whole)
    if both:
        return (collectives.join_features(x),)
    own = collectives.join_features_of_tower(x)
    return tuple(jnp.split(own, config.towers // collectives.tower, axis=-1))


def parameter(
    module: Any, name: str, shape: tuple[int, ...], axes: tuple, positions: tuple[int, ...] = ()
) -> jax.Array:
    """Declare a layer's 'kernel' or 'bias', with the mesh axes that split it.

    A kernel is drawn by the network's `initializer`, and a bias starts at the layer's `init_bias`.
    `positions` are the axes that count kernels instead of the inputs of one kernel.
    """
    layer, config = module.layer, module.config
    if name == 'kernel':
        init = INITIALIZERS[config.initializer](layer.init_std, positions)
    else:
        init = nn.initializers.constant(layer.init_bias)
    value = module.param(name, nn.with_partitioning(init, axes), shape, config.param_dtype)
    return typing.cast(jax.Array, value)
