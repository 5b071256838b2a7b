"""Local response normalisation (Paper 3.3), as its formula and in a form that suits the CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def local_response_norm(
    a: jax.Array, *, k: float, n: int, alpha: float, beta: float, fast: bool
) -> jax.Array:
    """Normalise each activation over n adjacent maps at the same position (Paper 3.3).

    b_i = a_i / (k + alpha * sum_{j = max(0, i - n/2)}^{min(N - 1, i + n/2)} a_j^2)^beta

    N is the number of maps in `a`, which are those of one tower, and windows end at the first and
    last map. [..., N] -> [..., N] of the same dtype; sums are computed at least in float32.
    """
    # DEVIATION: LRN within a tower
    wide = a.astype(np.promote_types(a.dtype, np.float32))
    norm: Any = _fast_norm if fast else _norm
    return norm(wide, k, n, alpha, beta).astype(a.dtype)


def _norm(a: jax.Array, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    return a * (k + alpha * _neighbours(jnp.square(a), n)) ** -beta


def _neighbours(x: jax.Array, n: int) -> jax.Array:
    """Return the sum over n adjacent maps, [..., N] -> [..., N]."""
    maps = x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)])
    windows = [lax.slice_in_dim(x, i, i + maps, axis=-1) for i in range(n)]
    return functools.reduce(jnp.add, windows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _fast_norm(a: jax.Array, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    """Compute `_norm` without powers if beta is 0.75, and keep only `a` for the gradient.

    With s_i = k + alpha sum_j a_j^2, the gradient of g . b is
    g_i s_i^-beta - 2 alpha beta a_i sum_j g_j a_j s_j^(-beta - 1).
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
    """Return s ** -beta, from square roots if beta is 0.75: these are instructions of the CPU."""
    root = lax.rsqrt(s)
    return root * jnp.sqrt(root) if beta == 0.75 else s**-beta
