"""Convolution (Paper 3.5), by XLA's operation and in a form that is fast on the CPU."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_POSITIONS_OF_A_PART = 1500  # positions in each part of a kernel's gradient, but at least an image
_FEW_FEATURES, _PARTS, _FEWEST_POSITIONS = 96, 4, 1500


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    padding: tuple[int, int],
    precision: str,
    fast: bool,
) -> jax.Array:
    """Return the cross-correlation of x [batch, H, W, C] with kernel [h, w, C, features].

    `fast` divides the batch if that is faster on a CPU; `forms.py` has the measurements.
    """
    function = _fast_convolve if fast else _convolve
    return function(x, kernel, stride, padding, precision)


def _convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int], precision: str
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _fast_convolve(x, kernel, stride, padding, precision):
    return _divided(lambda x: _convolve(x, kernel, stride, padding, precision), x, kernel.shape[3])


def _fast_convolve_forward(x, kernel, stride, padding, precision):
    return _fast_convolve(x, kernel, stride, padding, precision), (x, kernel)


def _fast_convolve_backward(stride, padding, precision, residuals, gradient):
    x, kernel = residuals

    def to_x(gradient):
        part = jax.ShapeDtypeStruct((len(gradient), *x.shape[1:]), x.dtype)
        forward = functools.partial(
            _convolve, kernel=kernel, stride=stride, padding=padding, precision=precision
        )
        return jax.linear_transpose(forward, part)(gradient)[0]

    to_kernel = _kernel_gradient(x, gradient, kernel.shape[0], stride, padding, precision)
    return _divided(to_x, gradient, kernel.shape[2]), to_kernel


_fast_convolve.defvjp(_fast_convolve_forward, _fast_convolve_backward)


def _divided(function: Callable[[jax.Array], jax.Array], x: jax.Array, features: int) -> jax.Array:
    """Compute a convolution of x [batch, ...] in parts of the batch if it has few features.

    XLA divides one convolution over the cores by its features, 64 per core, but runs several
    convolutions at once. In the paper's network, parts are faster for conv1 and for the gradient of
    conv2's input. Small parts, with few positions, are not.
    """
    images, rest = divmod(len(x), _PARTS)
    small = images * x.shape[1] * x.shape[2] < _FEWEST_POSITIONS
    if features > _FEW_FEATURES or rest or small:
        return function(x)
    return jnp.concatenate([function(part) for part in jnp.split(x, _PARTS)])


def _kernel_gradient(
    x: jax.Array,
    gradient: jax.Array,
    size: int,
    stride: int,
    padding: tuple[int, int],
    precision: str,
) -> jax.Array:
    """Return the gradient of the kernel, [size, size, C, features], summed over the batch.

    It is the convolution of x with the gradient over all positions of all images, with the batch as
    the channels. It is computed for one part of the batch at a time, so that the part fits into a
    core's cache.
    """
    batch, rows, columns, features = gradient.shape
    many = max(1, _POSITIONS_OF_A_PART // (rows * columns))
    images = max(n for n in range(1, min(many, batch) + 1) if batch % n == 0)
    before = padding[0]
    edges = [  # negative padding crops pixels that no kernel reaches
        (before, stride * (n - 1) + size - before - length)
        for n, length in ((rows, x.shape[1]), (columns, x.shape[2]))
    ]

    def add_part(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, gradient = part
        return total + lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0),
            gradient.transpose(1, 2, 0, 3),
            window_strides=(1, 1),
            padding=edges,
            rhs_dilation=(stride, stride),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision=precision,
            preferred_element_type=total.dtype,
        ), None

    wide = np.promote_types(x.dtype, np.float32)
    zeros = jnp.zeros((x.shape[-1], size, size, features), wide)
    xs, gradients = (a.reshape(-1, images, *a.shape[1:]) for a in (x, gradient))
    total, _ = lax.scan(add_part, zeros, (xs, gradients))
    return total.transpose(1, 2, 0, 3).astype(x.dtype)
