"""Dropout (Paper 4.2), with masks that do not depend on the mesh."""

import jax
import jax.numpy as jnp
from jax import lax


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
    """Zero outputs with probability `rate` in training, or scale by 1 - rate at test time.

    This is Paper 4.2. With `inverted`, the outputs are divided by 1 - rate in training instead and
    do not change at test time.

    Args:
      x: [batch, features], the units first .. first + features of a layer of `units` units.
      rate: probability of zero.
      inverted: see above.
      key: typed key, the same on all devices; None at test time.
      rows: int32 [batch], each example's index in the global batch, so that the masks are the same
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
