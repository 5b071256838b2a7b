"""The device mesh: how many copies of the network there are, and how each copy is divided.

The mesh has three axes. `data` counts the copies, and each copy is divided over `tower` x `shard`
devices. Along `tower` each device holds one tower, as in 2012 (Paper 3.2). Along `shard` the
convolutions split the batch and the fully connected layers split their weights, as in "One weird
trick" (Krizhevsky, 2014).
"""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.parallel.collectives import AXES, FLAT_AXIS, Collectives
from alexnet_jax.runtime.config import PLACE, Rule, Section, field, integer, is_integer, one_of
from alexnet_jax.runtime.errors import UserError

# Each image is sent to one device only; `gather_images` then gathers the images along `tower`.
IMAGES = P(('data', 'shard', 'tower'))
LABELS = P('data')
REPLICATED = P()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """The section `parallel`: the devices and processes of a run. It changes no result."""

    data: int = field(
        Rule(lambda v: v == -1 or (is_integer(v) and v > 0), '-1 (all) or at least 1'), role=PLACE
    )
    model: int = field(one_of(1, 2, 4, 8), role=PLACE)
    backend: str = field(one_of('shard_map', 'pmap'), role=PLACE)
    cpu_devices: int = field(integer(0), role=PLACE)
    initialization_timeout_s: int = field(integer(1), role=PLACE)
    heartbeat_timeout_s: int = field(integer(1), role=PLACE)
    shutdown_timeout_s: int = field(integer(1), role=PLACE)


def select_platform(cpu_devices: int) -> None:
    """Use the CPU as this many devices, or for 0 what JAX finds; call this before any use of JAX.

    Raises UserError if JAX_PLATFORMS asks for an accelerator, or if JAX is already in use on other
    devices.
    """
    if cpu_devices > 0:
        wanted = _wanted_platforms()
        if wanted.partition(',')[0] not in ('', 'cpu'):
            raise UserError(
                f'config.parallel.cpu_devices = {cpu_devices} is for the CPU, and '
                f'JAX_PLATFORMS={wanted} asks for another device; unset JAX_PLATFORMS, or set '
                '--config.parallel.cpu_devices=0'
            )
        try:
            jax.config.update('jax_platforms', 'cpu')
            jax.config.update('jax_num_cpu_devices', cpu_devices)
        except RuntimeError as error:
            if jax.default_backend() != 'cpu' or jax.device_count() < cpu_devices:
                raise UserError(
                    f'config.parallel.cpu_devices = {cpu_devices} comes too late, because JAX '
                    f'already uses {jax.device_count()} {jax.default_backend()} devices; start a '
                    'new process'
                ) from error


def start_devices() -> list[Any]:
    """Return all devices of JAX, and start them on the first call.

    Raises UserError, with JAX's reason, if the devices that JAX_PLATFORMS names cannot be used.
    """
    wanted = _wanted_platforms()
    reason = 'JAX sees no device of that kind on this machine'
    try:
        devices = jax.devices()
        if wanted.partition(',')[0] in ('', 'cpu') or devices[0].platform != 'cpu':
            return devices  # otherwise jax 0.10.2 has passed over `cuda`
    except AssertionError:  # of jax 0.10.2, where it sees no GPU
        pass
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
    installed = _installed_platforms()
    missing = [p for p in wanted.split(',') if p in _EXTRAS and _EXTRAS[p][0] not in installed]
    remedies = [f'pip install "jax[{_EXTRAS[platform][1]}]"' for platform in missing]
    remedies += ['unset JAX_PLATFORMS to use what JAX finds' if wanted else 'set JAX_PLATFORMS=cpu']
    raise UserError(
        f'the devices that JAX_PLATFORMS={wanted} asks for cannot be used: {reason}; '
        f'installed here: {", ".join(installed)}; {", or ".join(remedies)}'
    )


def _wanted_platforms() -> str:
    """Return JAX_PLATFORMS, unless the program has chosen the platform itself."""
    return jax.config.jax_platforms or ''  # pyright: ignore[reportAttributeAccessIssue]


# The plugin of a platform, and the extra of the package jax that installs it.
_EXTRAS = {'cuda': ('cuda', 'cuda13'), 'gpu': ('cuda', 'cuda13'), 'tpu': ('tpu', 'tpu')}


def _installed_platforms() -> list[str]:
    """Return the names of the platforms for which jaxlib or a plugin is installed."""
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    names = {plugin.name.removeprefix('xla_').rstrip('0123456789') for plugin in plugins}
    names |= {'tpu'} if importlib.util.find_spec('libtpu') else set()
    return ['cpu', *sorted(names)]


def make_mesh(config: ParallelConfig, towers: int) -> Mesh:
    """Return the mesh `('data', 'tower', 'shard')` for a network of `towers` towers.

    There are `data` copies (-1: as many as the devices allow), each on `model` devices.
    Raises UserError if there are too few devices, or if a process would have none.
    """
    data, model, devices = config.data, config.model, start_devices()
    copies = len(devices) // model if data == -1 else data
    if copies * model > len(devices) or copies == 0:
        raise UserError(
            f'config.parallel.data = {data} x parallel.model = {model} needs '
            f'{max(copies, 1) * model} devices and there are {len(devices)}; '
            f'lower one of the two, or try it on the CPU with '
            f'--config.parallel.cpu_devices={max(copies, 1) * model}'
        )
    idle = {d.process_index for d in devices} - {d.process_index for d in devices[: copies * model]}
    if idle:
        raise UserError(
            f'config.parallel.data = {data} x parallel.model = {model} leaves process {min(idle)} '
            f'without a device; set --config.parallel.data=-1, or start fewer processes'
        )
    shape = _shape(copies, model, towers)
    return Mesh(np.asarray(devices[: copies * model]).reshape(shape), AXES)


def abstract_mesh(data: int, model: int, towers: int) -> Any:
    """Return a mesh of any size without devices, on which a step can be traced but not compiled."""
    return AbstractMesh(_shape(data, model, towers), AXES)


def _shape(copies: int, model: int, towers: int) -> tuple[int, int, int]:
    tower = towers if model >= towers else 1
    return copies, tower, model // tower


def check_batch(mesh: Mesh, batch_size: int, accumulation_steps: int, field: str) -> None:
    """Raise UserError unless each part of the batch divides evenly over the devices."""
    parts = mesh.size * accumulation_steps
    if batch_size % parts:
        raise UserError(
            f'config.{field} = {batch_size} must be a multiple of {parts} ({mesh.size} devices x '
            f'{accumulation_steps} accumulation steps), such as {-(-batch_size // parts) * parts}'
        )


def collectives(mesh: Mesh, backend: str) -> Collectives:
    """Return the collectives of a per-device step on this mesh, run by 'shard_map' or 'pmap'."""
    return Collectives(**mesh.shape, flat=backend == 'pmap')


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Return a NamedSharding for each PartitionSpec of a tree."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )


def per_device(
    step: Callable[..., Any],
    mesh: Mesh,
    backend: str,
    in_specs: Any,
    out_specs: Any,
    donate: tuple[int, ...] = (),
) -> Any:
    """Return `step`, which is written for one device, as one jitted function of global arrays.

    `backend` is that of the step's `collectives`. `check_vma` is False because
    `Collectives.sum_gradients` assumes it and because `jax.pmap` works in that way, so that both
    backends give the same numbers.
    """
    if backend == 'pmap':
        return _Pmapped(step, mesh, in_specs, out_specs, donate)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


class _Pmapped:
    """A per-device step under `jax.pmap`, called with the global arrays of `jax.shard_map`.

    The arrays of `pmap` have a leading axis of devices. A small program before it adds that axis to
    each device's part, and one after it removes the axis; donated arrays are not copied.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        mesh: Mesh,
        in_specs: Any,
        out_specs: Any,
        donate: tuple[int, ...],
    ) -> None:
        self._stacked = NamedSharding(mesh, P(AXES))

        def put_on(*args: Any) -> Any:
            return jax.tree.map(lambda x: x[None], args)

        def take_off(out: Any) -> Any:
            return jax.tree.map(lambda x: x[0], out)

        devices = tuple(mesh.devices.flat)
        self.put_on = per_device(put_on, mesh, 'shard_map', in_specs, P(AXES), donate)
        self.step = jax.pmap(step, FLAT_AXIS, devices=devices, donate_argnums=donate)
        self._take_off = per_device(take_off, mesh, 'shard_map', (P(AXES),), out_specs, (0,))

    def __call__(self, *args: Any) -> Any:
        return self._take_off(jax.tree.map(self._of_all, self.step(*self.put_on(*args))))

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lower the step alone, for concrete or abstract arguments."""
        return self.step.lower(*jax.eval_shape(self.put_on, *args))

    def _of_all(self, x: jax.Array) -> jax.Array:
        """Return an output of `pmap`, which has this process's devices, as one global array."""
        shape = (self._stacked.mesh.size, *x.shape[1:])
        parts = [part.data for part in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, self._stacked, parts)
