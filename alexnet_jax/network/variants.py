"""What a layer may be made of: the paper's choices and those of other networks, in tables.

`AFTER` has the operations that may follow a convolution; the `after` of a layer lists those that
do, in their order. In the paper they are the ReLU, local response normalisation and max-pooling.
What the 2012 source, Caffe, torchvision and the author's networks for CIFAR-10 do otherwise is said
beside each entry.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from alexnet_jax.network.forms import is_fast
from alexnet_jax.network.normalisation import local_response_norm
from alexnet_jax.network.pooling import max_pool
from alexnet_jax.network.specification import FirstConvolution, ModelConfig
from alexnet_jax.parallel.collectives import Collectives

Towers = tuple[jax.Array, ...]  # the maps of each tower that lives on this device

ACTIVATIONS = {
    'relu': nn.relu,  # Paper 3.1
    'tanh': jnp.tanh,  # what the paper compares it with
    'sigmoid': nn.sigmoid,
}

# How a kernel is drawn, from the layer's init_std and the axes that count kernels rather than what
# one kernel sees (those of the positions, in a locally connected layer).
INITIALIZERS: dict[str, Callable[[float, tuple[int, ...]], nn.initializers.Initializer]] = {
    'normal': lambda std, axes: nn.initializers.normal(std),  # N(0, init_std), Paper 5
    # The variance follows from the number of inputs, and of outputs: 2 / (inputs + outputs) for
    # 'xavier' (Glorot, 2010), 2 / inputs for 'he' (He, 2015). PyTorch draws from U(-b, b) with
    # b = inputs^-0.5.
    'xavier': lambda std, axes: nn.initializers.glorot_normal(batch_axis=axes),
    'he': lambda std, axes: nn.initializers.he_normal(batch_axis=axes),
    'pytorch': lambda std, axes: nn.initializers.variance_scaling(
        1 / 3, 'fan_in', 'uniform', batch_axis=axes
    ),
}


def _activation(
    towers: Towers, layer: FirstConvolution, config: ModelConfig, collectives: Collectives
) -> Towers:
    """Apply the network's activation function; conv1 of the 2012 source does so after pooling."""
    return tuple(map(ACTIVATIONS[config.activation], towers))


def _lrn(
    towers: Towers, layer: FirstConvolution, config: ModelConfig, collectives: Collectives
) -> Towers:
    """Normalise across neighbouring maps: of one tower (Paper 3.3), or of both as Caffe does.

    The 2012 source, Caffe and PyTorch divide alpha by n. Caffe normalises after pooling.
    """
    lrn = config.lrn

    def norm(maps: jax.Array) -> jax.Array:
        return local_response_norm(
            maps,
            k=lrn.k,
            n=lrn.n,
            alpha=lrn.alpha / lrn.n if lrn.divide_alpha else lrn.alpha,
            beta=lrn.beta,
            fast=is_fast('lrn', config.forms),
        )

    if not lrn.across_towers or config.towers == 1:
        return tuple(map(norm, towers))
    normed = norm(collectives.join_towers(jnp.concatenate(towers, axis=-1)))
    here = len(towers) * towers[0].shape[-1]
    own = lax.dynamic_slice_in_dim(normed, collectives.tower_index() * here, here, axis=-1)
    return tuple(jnp.split(own, len(towers), axis=-1))


def _map_norm(
    towers: Towers, layer: FirstConvolution, config: ModelConfig, collectives: Collectives
) -> Towers:
    """Normalise within each map, as conv2 of the 2012 source does after the other norm."""
    c = config.map_norm
    return tuple(within_map_norm(maps, k=c.k, n=c.n, alpha=c.alpha, beta=c.beta) for maps in towers)


def _pool(
    towers: Towers, layer: FirstConvolution, config: ModelConfig, collectives: Collectives
) -> Towers:
    """Take the maximum of overlapping squares (Paper 3.4); see `max_pool` for `partial`."""
    return tuple(
        max_pool(
            maps,
            window=layer.pool_window,
            stride=layer.pool_stride,
            partial=layer.pool_partial,
            fast=is_fast('pool', config.forms),
        )
        for maps in towers
    )


# [batch, H, W, channels of a tower] of each tower here -> the same, of another size after pooling.
Operation = Callable[[Towers, FirstConvolution, ModelConfig, Collectives], Towers]
AFTER: dict[str, Operation] = {
    'activation': _activation,
    'lrn': _lrn,
    'map_norm': _map_norm,
    'pool': _pool,
}


def output_name(convolution: str, after: tuple[str, ...], operation: str) -> str:
    """Return the name of an operation's output among the activations, such as 'pool1'.

    An activation function that comes first gives the convolution's own output, 'conv1'; one that
    comes later gives 'relu1', and 'conv1' is what the convolution itself computes.
    """
    if operation == 'activation' and after[0] == 'activation':
        return convolution
    return convolution.replace('conv', 'relu' if operation == 'activation' else operation)


def within_map_norm(a: jax.Array, *, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    """Normalise each activity by those of the n x n square about it in its own map (2012 source).

    b_yx = a_yx / (k + alpha / n^2 * sum of a^2 over the square)^beta, with zeros beyond the edges.
    [batch, H, W, C] -> [batch, H, W, C], of the same dtype; sums in float32 at least.
    """
    wide = a.astype(np.promote_types(a.dtype, np.float32))
    window, strides = (1, n, n, 1), (1, 1, 1, 1)
    zero = np.zeros((), wide.dtype)
    energy = lax.reduce_window(jnp.square(wide), zero, lax.add, window, strides, 'SAME')
    return (wide * (k + alpha / n**2 * energy) ** -beta).astype(a.dtype)


def drop_inputs(
    inputs: tuple[jax.Array, ...],
    drop: Callable[..., jax.Array],
    sees_both_towers: bool,
    config: ModelConfig,
    collectives: Collectives,
) -> tuple[jax.Array, ...]:
    """Drop inputs of a fully connected layer in place of its outputs, as torchvision does.

    Args:
      inputs: [batch, width]; one array of both towers, or one for each tower on this device.
      drop: `dropout` without `units` and `first`.
      sees_both_towers: which of the two.
      config, collectives: of the network.
    """
    width = inputs[0].shape[-1]
    units = width if sees_both_towers else width * config.towers
    first = 0 if sees_both_towers else collectives.tower_index() * len(inputs)
    return tuple(
        drop(x, units=units, first=jnp.int32((first + i) * width)) for i, x in enumerate(inputs)
    )
