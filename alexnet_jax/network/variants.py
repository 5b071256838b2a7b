"""The operations and initialisers of the paper and of other networks, in tables.

`AFTER` has the operations that may follow a convolution; the `after` of a layer lists those that
do, in their order. In the paper they are the ReLU, local response normalisation and max-pooling.
Each entry says how the 2012 source, Caffe, torchvision and the author's networks for CIFAR-10
differ. Batch normalisation came later.
"""

import dataclasses
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

Towers = tuple[jax.Array, ...]  # the maps of each tower on this device

ACTIVATIONS = {
    'relu': nn.relu,  # Paper 3.1
    'tanh': jnp.tanh,  # the paper compares ReLU with tanh
    'sigmoid': nn.sigmoid,
}

# The initialisers of a kernel, as functions of the layer's init_std and of the axes that count
# kernels instead of the inputs of one kernel (the positions of a locally connected layer).
INITIALIZERS: dict[str, Callable[[float, tuple[int, ...]], nn.initializers.Initializer]] = {
    'normal': lambda std, axes: nn.initializers.normal(std),  # N(0, init_std), Paper 5
    # The variance depends on the numbers of inputs and outputs: 2 / (inputs + outputs) for 'xavier'
    # (Glorot, 2010) and 2 / inputs for 'he' (He, 2015). PyTorch draws from U(-b, b) with
    # b = inputs^-0.5.
    'xavier': lambda std, axes: nn.initializers.glorot_normal(batch_axis=axes),
    'he': lambda std, axes: nn.initializers.he_normal(batch_axis=axes),
    'pytorch': lambda std, axes: nn.initializers.variance_scaling(
        1 / 3, 'fan_in', 'uniform', batch_axis=axes
    ),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the network an operation stands, and on which devices it runs."""

    name: str  # of the operation's output among the activations
    layer: FirstConvolution
    config: ModelConfig
    collectives: Collectives
    training: bool


def _activation(towers: Towers, place: Place) -> Towers:
    """Apply the activation function; in conv1 the 2012 source does so after pooling."""
    return tuple(map(ACTIVATIONS[place.config.activation], towers))


def _lrn(towers: Towers, place: Place) -> Towers:
    """Normalise across adjacent maps, of one tower (Paper 3.3) or of both as in Caffe.

    The 2012 source, Caffe and PyTorch divide alpha by n. Caffe normalises after pooling.
    """
    config, collectives, lrn = place.config, place.collectives, place.config.lrn

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


def _map_norm(towers: Towers, place: Place) -> Towers:
    """Normalise within each map, as the 2012 source does in conv2 after response normalisation."""
    c = place.config.map_norm
    return tuple(within_map_norm(maps, k=c.k, n=c.n, alpha=c.alpha, beta=c.beta) for maps in towers)


def _bn(towers: Towers, place: Place) -> Towers:
    """Normalise each map over the global batch, in place of LRN (Ioffe and Szegedy, 2015).

    It has the parameters `scale` and `bias` and the running averages `mean` and `var`, each
    [channels]. They are split over the towers as the maps are. Training uses the mean and the
    variance of the rows of all devices that hold these maps; with `training.accumulation_steps`,
    each part of the batch uses its own, and the averages take the mean of the parts.
    """
    maps = jnp.concatenate(towers, axis=-1)
    norm = nn.BatchNorm(
        use_running_average=not place.training,
        momentum=place.config.bn.momentum,
        epsilon=place.config.bn.epsilon,
        dtype=place.config.dtype,
        param_dtype=place.config.param_dtype,
        scale_init=nn.with_partitioning(nn.initializers.ones, ('tower',)),
        bias_init=nn.with_partitioning(nn.initializers.zeros, ('tower',)),
        use_fast_variance=False,  # the mean of squares would lose digits where the mean is large
        name=place.name,
        **place.collectives.over_rows(),
    )
    with jax.numpy_dtype_promotion('standard'):  # flax mixes bfloat16 maps and float32 averages
        normed = norm(maps)
    return tuple(jnp.split(normed, len(towers), axis=-1))


def _pool(towers: Towers, place: Place) -> Towers:
    """Apply overlapping max-pooling (Paper 3.4); see `max_pool` for `partial`."""
    return tuple(
        max_pool(
            maps,
            window=place.layer.pool_window,
            stride=place.layer.pool_stride,
            partial=place.layer.pool_partial,
            fast=is_fast('pool', place.config.forms),
        )
        for maps in towers
    )


# Maps [batch, H, W, channels of a tower] of each tower here -> the same; pooling changes H and W.
Operation = Callable[[Towers, Place], Towers]
AFTER: dict[str, Operation] = {
    'activation': _activation,
    'lrn': _lrn,
    'map_norm': _map_norm,
    'bn': _bn,
    'pool': _pool,
}


def output_name(convolution: str, after: tuple[str, ...], operation: str) -> str:
    """Return the name of an operation's output among the activations, such as 'pool1'.

    The output of an activation function that comes first is 'conv1'. If it comes later, its output
    is 'relu1', and 'conv1' is the convolution's own output.
    """
    if operation == 'activation' and after[0] == 'activation':
        return convolution
    return convolution.replace('conv', 'relu' if operation == 'activation' else operation)


def within_map_norm(a: jax.Array, *, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    """Normalise each activation over the n x n square around it in its own map (2012 source).

    b_yx = a_yx / (k + alpha / n^2 * sum of a^2 over the square)^beta, with zeros beyond the edges.
    [batch, H, W, C] -> [batch, H, W, C] of the same dtype; sums are computed at least in float32.
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
    """Apply dropout to the inputs of a fully connected layer, as torchvision does.

    Args:
      inputs: [batch, width]; one array for both towers, or one for each tower on this device.
      drop: `dropout` with all arguments but `units` and `first` bound.
      sees_both_towers: whether `inputs` is one array for both towers.
      config, collectives: of the network.
    """
    width = inputs[0].shape[-1]
    units = width if sees_both_towers else width * config.towers
    first = 0 if sees_both_towers else collectives.tower_index() * len(inputs)
    return tuple(
        drop(x, units=units, first=jnp.int32((first + i) * width)) for i, x in enumerate(inputs)
    )
