"""The layers of the paper as functions and small modules, each with its formula.

Activations of the convolutional part are a tuple with one array per tower that lives on this
device, so a grouped layer is a plain convolution per tower. `feature_group_count` computes the same
function 2 to 12 times slower on the CPU; under automatic partitioning it gathers the whole batch.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from alexnet_jax.parallel.collectives import MODEL_AXES

Towers = tuple[jax.Array, ...]


class TowerConvolution(nn.Module):
    """Convolve each tower with its own kernels, add the bias (Paper 3.5).

    The kernel is one array for both towers, [kernel, kernel, C_in, features] with C_in the channels
    that one tower sees, split over the towers on its last axis; weights N(0, init_std), constant
    biases (Paper 5). `features` counts both towers; `towers_here` of `towers` live on this device.
    Zero pixels are added before and after each spatial axis: `padding = (before, after)`.
    """

    features: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    init_std: float
    init_bias: float
    towers: int
    towers_here: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Towers) -> Towers:
        """Map one [batch, H, W, C_in] per tower to one [batch, H', W', features / towers]."""
        features = self.features // self.towers * self.towers_here
        shape = (self.kernel, self.kernel, inputs[0].shape[-1], features)
        kernel = _parameter(self, 'kernel', shape, (None, None, None, 'tower'))
        bias = _parameter(self, 'bias', (features,), ('tower',))
        kernels = jnp.split(kernel.astype(self.dtype), self.towers_here, axis=-1)
        biases = jnp.split(bias.astype(self.dtype), self.towers_here)
        return tuple(
            convolve(x, k, stride=self.stride, padding=self.padding) + b[None, None, None]
            for x, k, b in zip(inputs, kernels, biases, strict=True)
        )


class Dense(nn.Module):
    """One fully connected layer that sees both towers: `x W + b` (Paper 3.5).

    `features` is what this device computes; the axes say how the whole is split over devices.
    """

    features: int
    init_std: float
    init_bias: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    kernel_axes: tuple = (None, MODEL_AXES)
    bias_axes: tuple = (MODEL_AXES,)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return `x W` [batch, features] and the bias [features], which the caller adds."""
        kernel = _parameter(self, 'kernel', (x.shape[-1], self.features), self.kernel_axes)
        bias = _parameter(self, 'bias', (self.features,), self.bias_axes)
        return x @ kernel.astype(self.dtype), bias.astype(self.dtype)


def _parameter(
    layer: TowerConvolution | Dense, name: str, shape: tuple[int, ...], axes: tuple
) -> jax.Array:
    """Declare a kernel, N(0, init_std), or a bias, constant, with the mesh axes that split it."""
    init = (
        nn.initializers.normal(layer.init_std)
        if name == 'kernel'
        else nn.initializers.constant(layer.init_bias)
    )
    value = layer.param(name, nn.with_partitioning(init, axes), shape, layer.param_dtype)
    return typing.cast(jax.Array, value)


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple[int, int]
) -> jax.Array:
    """Return the cross-correlation of x [batch, H, W, C] with kernel [h, w, C, features]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def local_response_norm(a: jax.Array, *, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    """Normalise each activity by those of its n neighbouring maps at the same position (Paper 3.3).

    b_i = a_i / (k + alpha * sum_{j = max(0, i - n/2)}^{min(N - 1, i + n/2)} a_j^2)^beta

    N is the number of maps of one tower: windows end at the tower's edge. [..., N] -> [..., N], of
    the same dtype; the sums are taken in float32 at least.
    """
    wide = np.promote_types(a.dtype, np.float32)
    squares = jnp.square(a.astype(wide))
    squares = jnp.pad(squares, [(0, 0)] * (a.ndim - 1) + [(n // 2, n // 2)])
    maps = a.shape[-1]
    energy = sum(lax.slice_in_dim(squares, i, i + maps, axis=-1) for i in range(1, n))
    energy = energy + lax.slice_in_dim(squares, 0, maps, axis=-1)
    return (a.astype(wide) * (k + alpha * energy) ** -beta).astype(a.dtype)


def max_pool(x: jax.Array, *, window: int, stride: int) -> jax.Array:
    """Return the maximum of each window x window square, `stride` apart (Paper 3.4).

    The squares overlap where window > stride. No padding: an edge that a whole square no longer
    fits is left out. [batch, H, W, C] -> [batch, (H - window) // stride + 1, ..., C].
    """
    return nn.max_pool(x, (window, window), (stride, stride), padding='VALID')


def dropout(
    x: jax.Array,
    *,
    rate: float,
    key: jax.Array | None,
    rows: jax.Array,
    units: int,
    first: jax.Array,
) -> jax.Array:
    """Zero outputs with probability `rate` in training, else multiply by 1 - rate (Paper 4.2).

    Args:
      x: [batch, features], the units first .. first + features of a layer of `units` units.
      rate: probability of zero.
      key: typed key, the same on all devices; None at test time.
      rows: int32 [batch], each example's index in the global batch: with it the masks are the same
        on any mesh.
      units: the layer's width over all devices.
      first: int32 scalar, this device's first unit.
    """
    if key is None:
        return x * (1.0 - rate)
    if rate == 0.0:
        return x
    keep = jax.vmap(
        lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1.0 - rate, (units,))
    )(rows)
    keep = lax.dynamic_slice_in_dim(keep, first, x.shape[-1], axis=1)
    return jnp.where(keep, x, jnp.zeros_like(x))
