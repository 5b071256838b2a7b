"""The layers of the paper as functions and small modules, each with its formula.

Activations of the convolutional part are a tuple with one array per tower that lives on this
device, so a grouped layer is a plain convolution per tower. `feature_group_count` computes the same
function 2 to 12 times slower on the CPU; under automatic partitioning it gathers the whole batch.
"""

import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from alexnet_jax.network.convolution import convolve
from alexnet_jax.parallel.collectives import MODEL_AXES

Towers = tuple[jax.Array, ...]


class TowerConvolution(nn.Module):
    """Convolve each tower with its own kernels, add the bias (Paper 3.5).

    The kernel is one array for both towers, [kernel, kernel, C_in, features] with C_in the channels
    that one tower sees, split over the towers on its last axis; see `parameter` for `initializer`.
    `features` counts both towers; `towers_here` of `towers` live on this device.
    Zero pixels are added before and after each spatial axis: `padding = (before, after)`.
    """

    features: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    initializer: str
    init_std: float
    init_bias: float
    towers: int
    towers_here: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    precision: str
    fast: bool

    @nn.compact
    def __call__(self, inputs: Towers) -> Towers:
        """Map one [batch, H, W, C_in] per tower to one [batch, H', W', features / towers]."""
        features = self.features // self.towers * self.towers_here
        shape = (self.kernel, self.kernel, inputs[0].shape[-1], features)
        kernel = parameter(self, 'kernel', shape, (None, None, None, 'tower'))
        bias = parameter(self, 'bias', (features,), ('tower',))
        function = functools.partial(
            convolve,
            stride=self.stride,
            padding=self.padding,
            precision=self.precision,
            fast=self.fast,
        )
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)[None, None, None]
        if all(x is inputs[0] for x in inputs):  # they see the same, so one convolution does
            return tuple(jnp.split(function(inputs[0], kernel) + bias, len(inputs), axis=-1))
        kernels, biases = (jnp.split(part, len(inputs), axis=-1) for part in (kernel, bias))
        return tuple(function(x, k) + b for x, k, b in zip(inputs, kernels, biases, strict=True))


class Dense(nn.Module):
    """One fully connected layer: `x W + b` (Paper 3.5).

    `features` is what this device computes; the axes say how the whole is split over devices.
    """

    features: int
    initializer: str
    init_std: float
    init_bias: float
    dtype: jnp.dtype  # of what is multiplied
    out_dtype: jnp.dtype  # of the sums
    param_dtype: jnp.dtype
    precision: str
    kernel_axes: tuple = (None, MODEL_AXES)
    bias_axes: tuple = (MODEL_AXES,)

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """Return `x W` [batch, features] and the bias [features], which the caller adds.

        One input, [batch, inputs], is what all units see; of several each has its part of them.
        """
        kernel = parameter(self, 'kernel', (inputs[0].shape[-1], self.features), self.kernel_axes)
        bias = parameter(self, 'bias', (self.features,), self.bias_axes)
        kernels = jnp.split(kernel.astype(self.dtype), len(inputs), axis=-1)
        multiply = functools.partial(
            jnp.matmul, precision=self.precision, preferred_element_type=self.out_dtype
        )
        products = [multiply(x, k) for x, k in zip(inputs, kernels, strict=True)]
        return jnp.concatenate(products, axis=-1), bias.astype(self.out_dtype)


def parameter(
    layer: Any, name: str, shape: tuple[int, ...], axes: tuple, positions: tuple[int, ...] = ()
) -> jax.Array:
    """Declare a kernel or a bias, with the mesh axes that split it.

    A bias is constant, `init_bias`. `initializer` draws a kernel: 'normal' from N(0, init_std)
    (Paper 5); 'xavier' (Glorot, 2010) and 'he' (He, 2015) from a normal distribution whose variance
    follows from the numbers of inputs and outputs; 'pytorch' from U(-b, b), b = inputs^-0.5, as
    PyTorch's layers. `positions` are axes that count kernels, not what one kernel sees.
    """
    draw = {
        'normal': lambda: nn.initializers.normal(layer.init_std),
        'xavier': lambda: nn.initializers.glorot_normal(batch_axis=positions),
        'he': lambda: nn.initializers.he_normal(batch_axis=positions),
        'pytorch': lambda: nn.initializers.variance_scaling(
            1 / 3, 'fan_in', 'uniform', batch_axis=positions
        ),
    }
    init = (
        draw[layer.initializer]() if name == 'kernel' else nn.initializers.constant(layer.init_bias)
    )
    value = layer.param(name, nn.with_partitioning(init, axes), shape, layer.param_dtype)
    return typing.cast(jax.Array, value)


def local_response_norm(
    a: jax.Array, *, k: float, n: int, alpha: float, beta: float, fast: bool
) -> jax.Array:
    """Normalise each activity by those of its n neighbouring maps at the same position (Paper 3.3).

    b_i = a_i / (k + alpha * sum_{j = max(0, i - n/2)}^{min(N - 1, i + n/2)} a_j^2)^beta

    N is the number of maps in `a`, those of one tower: windows end at its edge. [..., N] ->
    [..., N], of the same dtype; the sums are taken in float32 at least.
    """
    # DEVIATION: LRN within a tower
    wide = a.astype(np.promote_types(a.dtype, np.float32))
    norm: Any = _fast_norm if fast else _norm
    return norm(wide, k, n, alpha, beta).astype(a.dtype)


def _norm(a: jax.Array, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    return a * (k + alpha * _neighbours(jnp.square(a), n)) ** -beta


def _neighbours(x: jax.Array, n: int) -> jax.Array:
    """Return the sum over the n neighbouring maps, [..., N] -> [..., N]."""
    maps = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)])
    windows = [lax.slice_in_dim(x, i, i + maps, axis=-1) for i in range(n)]
    return functools.reduce(jnp.add, windows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _fast_norm(a: jax.Array, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    """Do the same without powers where beta is 0.75, and keep nothing but `a` for the gradient.

    With s_i = k + alpha sum_j a_j^2 the gradient of g . b is
    g_i s_i^-beta - 2 alpha beta a_i sum_j g_j a_j s_j^(-beta - 1).
    On 2 Zen 4 cores lrn1 of batch 64, forward and backward: 0.11 s, by `_norm` 0.49 s.
    """
    return a * _negative_power(k + alpha * _neighbours(jnp.square(a), n), beta)


def _fast_norm_forward(a, k, n, alpha, beta):
    return _fast_norm(a, k, n, alpha, beta), a


def _fast_norm_backward(k, n, alpha, beta, a, gradient):
    s = k + alpha * _neighbours(jnp.square(a), n)
    scaled = gradient * _negative_power(s, beta)
    return (scaled - (2 * alpha * beta) * a * _neighbours(scaled * a / s, n),)


_fast_norm.defvjp(_fast_norm_forward, _fast_norm_backward)


def _negative_power(s: jax.Array, beta: float) -> jax.Array:
    """Return s ** -beta; square roots are instructions, powers are not."""
    root = lax.rsqrt(s)
    return root * jnp.sqrt(root) if beta == 0.75 else s**-beta


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


def dropout(
    x: jax.Array,
    *,
    rate: float,
    inverted: bool,
    key: jax.Array | None,
    rows: jax.Array,
    units: int,
    first: jax.Array,
) -> jax.Array:
    """Zero outputs with probability `rate` in training, else multiply by 1 - rate (Paper 4.2).

    `inverted` divides by 1 - rate in training instead and leaves the outputs alone at test time.

    Args:
      x: [batch, features], the units first .. first + features of a layer of `units` units.
      rate: probability of zero.
      inverted: see above.
      key: typed key, the same on all devices; None at test time.
      rows: int32 [batch], each example's index in the global batch: with it the masks are the same
        on any mesh.
      units: the layer's width over all devices.
      first: int32 scalar, this device's first unit.
    """
    if key is None:
        return x if inverted else x * (1.0 - rate)
    if rate == 0.0:
        return x
    keep = jax.vmap(
        lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1.0 - rate, (units,))
    )(rows)
    keep = lax.dynamic_slice_in_dim(keep, first, x.shape[-1], axis=1)
    return jnp.where(keep, x / (1.0 - rate) if inverted else x, jnp.zeros_like(x))
