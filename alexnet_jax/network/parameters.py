"""The parameters of the whole network: their shapes, their initial values and their arithmetic."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from alexnet_jax.network.model import AlexNet
from alexnet_jax.parallel.collectives import Collectives


def abstract_variables(model: AlexNet, image_shape: tuple[int, ...]) -> Any:
    """Return the shapes, dtypes and partitioning of the whole network's parameters."""
    init = functools.partial(_init, model, image_shape)
    return jax.eval_shape(init, jax.random.key(0))[1]['params']


def init_parameters(model: AlexNet, image_shape: tuple[int, ...], key: jax.Array) -> Any:
    """Draw the parameters of the whole network: `{layer: {kernel, bias}}`, the same on any mesh."""
    return nn.meta.unbox(_init(model, image_shape, key)[1]['params'])


def init_statistics(model: AlexNet, image_shape: tuple[int, ...]) -> Any:
    """Return the running averages of batch normalisation, `{layer: {mean, var}}`; {} without it."""
    variables = _init(model, image_shape, jax.random.key(0))[1]
    averages = variables.get('batch_stats', {})  # flax makes them float32
    return jax.tree.map(lambda x: x.astype(model.config.param_dtype), averages)


def join_network(params: Any, batch_stats: Any) -> Any:
    """Join parameters and running averages to one tree, `{layer: {kernel, bias}}` and so on.

    With batch normalisation it has `{bn1: {scale, bias, mean, var}}`, too. It is all that an
    evaluation needs.
    """
    return {layer: {**leaves, **batch_stats.get(layer, {})} for layer, leaves in params.items()}


def split_network(network: Any) -> dict[str, Any]:
    """Return the variables for `AlexNet.apply`, `{'params': ..., 'batch_stats': ...}`."""
    variables: dict[str, dict[str, Any]] = {'params': {}, 'batch_stats': {}}
    for layer, leaves in network.items():
        for name, leaf in leaves.items():
            kind = 'batch_stats' if name in ('mean', 'var') else 'params'
            variables[kind].setdefault(layer, {})[name] = leaf
    return variables


def _init(model: AlexNet, image_shape: tuple[int, ...], key: jax.Array) -> Any:
    """Return the outputs for one image and the variables, with the whole network on one device."""
    whole = model.clone(collectives=Collectives())
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return whole.init_with_output(key, images, jnp.zeros(1, jnp.int32))


def count_macs(model: AlexNet, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of one image's forward pass, by layer."""
    init = functools.partial(_init, model, image_shape)
    (_, seen), variables = jax.eval_shape(init, jax.random.key(0))
    params = nn.meta.unbox(variables['params'])

    def positions(name: str) -> int:
        """Return how often a layer uses its kernel: a local one has a kernel for each position."""
        local = name.startswith('conv') and getattr(model.config, name).local
        return 1 if local else math.prod(seen[name].shape[1:-1])

    return {
        name: math.prod(layer['kernel'].shape) * positions(name)
        for name, layer in params.items()
        if 'kernel' in layer
    }


def training_flops(macs: Mapping[str, int]) -> int:
    """Return the floating point operations of one image's training step, 2 for each MAC.

    They are those of the forward pass, the gradient of the weights and the gradient of the input,
    which the first layer does not need.
    """
    first = next(iter(macs))
    return 2 * (3 * sum(macs.values()) - macs[first])
