"""Overlapping max-pooling (Paper 3.4), by XLA's operation and in a form that is fast on the CPU."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def max_pool(x: jax.Array, *, window: int, stride: int, partial: bool, fast: bool) -> jax.Array:
    """Return the maximum of each window x window square, `stride` apart (Paper 3.4).

    The squares overlap if window > stride. There is no padding, so pixels at the edge that no whole
    square covers are ignored. With `partial` they are covered by squares that reach beyond the
    edge, as in the author's programs, and there are ceil((H - window) / stride) + 1 squares. The
    first of equal maxima, in row-major order, gets the gradient.
    [batch, H, W, C] -> [batch, (H - window) // stride + 1, ..., C].
    """
    if partial:
        beyond = [-(side - window) % stride for side in x.shape[1:3]]
        edges = [(0, 0, 0), *((0, more, 0) for more in beyond), (0, 0, 0)]
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    if not fast:
        return nn.max_pool(x, (window, window), (stride, stride), padding='VALID')
    # Axis 2 comes first, so that the first row of equal maxima wins, as in the whole square.
    x = _pool_axis(x, 2, window, stride)
    return _pool_axis(x, 1, window, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool_axis(x: jax.Array, axis: int, window: int, stride: int) -> jax.Array:
    """Return the maximum along one axis, with a gradient that gathers while XLA's scatters."""
    return _forward(x, axis, window, stride)[0]


def _forward(x, axis, window, stride):
    """Return the maxima, and (the index of each in its window, int8; the length of the axis)."""
    count = (x.shape[axis] - window) // stride + 1
    end = (count - 1) * stride + 1
    members = [lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(window)]
    best, place = members[0], jnp.zeros(members[0].shape, jnp.int8)
    for i, member in enumerate(members[1:], start=1):
        place = jnp.where(member > best, jnp.int8(i), place)
        best = jnp.maximum(best, member)
    return best, (place, x.shape[axis])


def _backward(axis, window, stride, residuals, gradient):
    """Return the gradient; element r + stride q is member r + stride m of each window q - m."""
    place, length = residuals
    zero = jnp.zeros((), gradient.dtype)
    count, rows = gradient.shape[axis], -(-length // stride)
    unseen = jnp.zeros((*gradient.shape[:axis], rows, *gradient.shape[axis + 1 :]), gradient.dtype)

    def member_gradient(member):
        edges = [(0, 0, 0)] * gradient.ndim
        edges[axis] = (member // stride, rows - count - member // stride, 0)
        return lax.pad(jnp.where(place == member, gradient, zero), zero, edges)

    def class_gradient(r):
        parts = [member_gradient(member) for member in range(r, window, stride)]
        return functools.reduce(jnp.add, parts) if parts else unseen

    x = jnp.stack([class_gradient(r) for r in range(stride)], axis=axis + 1)
    x = x.reshape(*gradient.shape[:axis], rows * stride, *gradient.shape[axis + 1 :])
    return (lax.slice_in_dim(x, 0, length, axis=axis),)


_pool_axis.defvjp(_forward, _backward)
