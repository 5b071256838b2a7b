"""The collectives that a per-device step may use, by name.

A step is written for one device: it calls these collectives and never mentions a mesh axis. On an
axis of one device each collective is the identity, so the same step runs on one device without
communication. `jax.shard_map` names the three axes. `jax.pmap` has one axis of all devices, where
groups of device indices stand for an axis.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

AXES = ('data', 'tower', 'shard')
MODEL_AXES = ('tower', 'shard')
FLAT_AXIS = 'device'


@dataclasses.dataclass(frozen=True)
class Collectives:
    """The collectives on a mesh of `data` x `tower` x `shard` devices; by default one device.

    With `flat` they run under `jax.pmap` over `FLAT_AXIS`, with the devices in mesh order.
    """

    data: int = 1
    tower: int = 1
    shard: int = 1
    flat: bool = False

    @property
    def model(self) -> int:
        """The number of devices that hold one copy of the network."""
        return self.tower * self.shard

    def gather_images(self, images: jax.Array) -> jax.Array:
        """Gather the images [rows, H, W, C], uint8, of the devices along `tower`; forward only."""
        with jax.named_scope('images'):
            return self._gather(images, ('tower',), axis=0)

    def join_towers(self, x: jax.Array) -> jax.Array:
        """Concatenate the towers' channels: [rows, H, W, C / tower] -> [rows, H, W, C]."""
        return self._gather(x, ('tower',), axis=-1)

    def join_batch(self, x: jax.Array) -> jax.Array:
        """Concatenate the shards' rows, between convolutions and fully connected layers."""
        return self._gather(x, ('shard',), axis=0)

    def join_features(self, x: jax.Array) -> jax.Array:
        """Concatenate the units of a fully connected layer: [rows, F / model] -> [rows, F]."""
        return self._gather(x, MODEL_AXES, axis=-1)

    def join_features_of_tower(self, x: jax.Array) -> jax.Array:
        """Concatenate one tower's units of a fully connected layer: -> [rows, F / tower]."""
        return self._gather(x, ('shard',), axis=-1)

    def sum_over_model(self, x: jax.Array) -> jax.Array:
        """Sum the partial logits [rows, classes] over the devices of one copy.

        The backward pass sends nothing: each device has the same gradient of (loss / model), so the
        sum of the gradients is `model` times its own.
        """

        @jax.custom_vjp
        def total(x: jax.Array) -> jax.Array:
            return self._sum(x, MODEL_AXES)

        total.defvjp(lambda x: (total(x), None), lambda _, gradient: (gradient * self.model,))
        return total(x)

    def sum_gradients(self, gradients: Any, specs: Any) -> Any:
        """Reduce gradients of (local loss / model) to those of the global mean loss.

        Each gradient is summed over every model axis that its PartitionSpec does not name, then
        averaged over `data`. The loss must be divided by `model` and must not be reduced inside
        `jax.grad`, because without replication checks the transpose of psum is psum.
        """

        def reduce(path: Any, gradient: jax.Array, spec: P) -> jax.Array:
            with jax.named_scope(_scope('gradients', path)):
                summed = self._sum(gradient, [a for a in MODEL_AXES if a not in _named(spec)])
                return self.mean_over_data(summed)

        return jax.tree_util.tree_map_with_path(reduce, gradients, specs)

    def sum_over_parts(self, numbers: Any, specs: Any) -> Any:
        """Sum one number per parameter over the mesh axes that split it, as its spec says."""

        def over_parts(path: Any, number: jax.Array, spec: P) -> jax.Array:
            with jax.named_scope(_scope('norms', path)):
                return self._sum(number, [a for a in MODEL_AXES if a in _named(spec)])

        return jax.tree_util.tree_map_with_path(over_parts, numbers, specs)

    def mean_over_data(self, tree: Any) -> Any:
        """Average every leaf over the copies of the network."""
        return lax.pmean(tree, **self._over(('data',))) if self.data > 1 else tree

    def sum_over_data(self, tree: Any) -> Any:
        """Sum every leaf over the copies of the network."""
        return self._sum(tree, ('data',))

    def over_rows(self) -> dict[str, Any]:
        """Return the arguments of a collective over the devices with other rows, such as `pmean`.

        Along `data` are the rows of other copies, and along `shard`, in the convolutions, the other
        rows of this copy. Without such devices there are no arguments.
        """
        axes = self._real(('data', 'shard'))
        return self._over(axes) if axes else {}

    def data_index(self) -> jax.Array:
        """Return the index of this device's copy, int32 scalar."""
        return self._index('data')

    def shard_index(self) -> jax.Array:
        """Return the index of this device along `shard`, int32 scalar."""
        return self._index('shard')

    def tower_index(self) -> jax.Array:
        """Return the index of this device along `tower`, int32 scalar."""
        return self._index('tower')

    def model_index(self) -> jax.Array:
        """Return the index of this device's units in a fully connected layer, int32 scalar."""
        return self._index('tower') * self.shard + self._index('shard')

    def _index(self, axis: str) -> jax.Array:
        if getattr(self, axis) == 1:
            return jnp.int32(0)
        if not self.flat:
            return lax.axis_index(axis)
        stride = math.prod(getattr(self, a) for a in AXES[AXES.index(axis) + 1 :])
        return lax.axis_index(FLAT_AXIS) // stride % getattr(self, axis)

    def _sum(self, tree: Any, axes: Sequence[str]) -> Any:
        axes = self._real(axes)
        return lax.psum(tree, **self._over(axes)) if axes else tree

    def _gather(self, x: jax.Array, axes: Sequence[str], axis: int) -> jax.Array:
        axes = self._real(axes)
        return lax.all_gather(x, axis=axis % x.ndim, tiled=True, **self._over(axes)) if axes else x

    def _real(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Return the axes that have more than one device."""
        return tuple(a for a in axes if getattr(self, a) > 1)

    def _over(self, axes: tuple[str, ...]) -> dict[str, Any]:
        """Return the arguments of a `jax.lax` collective over these axes, in mesh order."""
        if not self.flat:
            return {'axis_name': axes}
        sizes = [getattr(self, a) for a in AXES]
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        last = np.moveaxis(ids, [AXES.index(a) for a in axes], range(-len(axes), 0))
        groups = last.reshape(-1, math.prod(getattr(self, a) for a in axes))
        return {'axis_name': FLAT_AXIS, 'axis_index_groups': groups.tolist()}


def _named(spec: P) -> set[str]:
    """Return the mesh axes that a PartitionSpec names."""
    return {a for part in spec for a in ((part,) if isinstance(part, str) else part or ())}


def _scope(purpose: str, path: Any) -> str:
    """Return the name scope of a collective for one parameter, as 'gradients/conv1/kernel'."""
    return f'{purpose}/{jax.tree_util.keystr(path, simple=True, separator="/")}'
