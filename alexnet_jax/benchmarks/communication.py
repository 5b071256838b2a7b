"""List the collectives of a training step, and compare their bytes with the least possible.

Nothing runs and no device is needed, because the step is only traced, for a mesh of any size. In a
ring of n devices, each device sends (n - 1) / n of an array that is gathered or scattered, and
twice that of an array that is summed; fewer bytes are not possible (Patarasuk and Yuan, 2009). XLA
may combine sums but adds no bytes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.benchmarks.problem import require_sizes
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.parallel.collectives import AXES, FLAT_AXIS, MODEL_AXES
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import build

_TIMES_SENT = {'all_gather': 1, 'reduce_scatter': 1, 'psum': 2}


class Key(NamedTuple):
    """The position of a collective in the step."""

    axis: str  # 'data', 'tower', 'shard' or 'tower x shard'
    layer: str  # a layer, 'images' or 'metrics'
    part: str  # 'forward', 'backward', 'gradients', 'norms' (of LARS) or '-'
    kind: str  # its name in jax.lax


class Sent(NamedTuple):
    """The number and size of all collectives with one key in one step."""

    count: int
    bytes: int  # of the whole array on one device, which is gathered, scattered or summed
    sent_bytes: float  # sent by one device


Table = dict[Key, Sent]


def measure(config: Config) -> dict[str, Any]:
    """Return the collectives of one training step, and totals for each axis.

    `parallel.data` may be any number; -1 stands for the devices of this machine. `rows` has one
    entry for each axis, layer, part and kind: `count`, the `bytes` of the arrays, the `sent_bytes`
    of each device, and the `least_bytes` that the scheme needs, which are computed from the
    configuration alone.
    """
    data, model = config.parallel.data, config.parallel.model
    if data == -1:
        data = max(1, jax.device_count() // model)
    traced, needed = of_step(config, data, model), least(config, data, model)
    nothing = Sent(0, 0, 0.0)
    rows = [
        {
            **key._asdict(),
            **traced.get(key, nothing)._asdict(),
            'least_bytes': needed.get(key, nothing).sent_bytes,
        }
        for key in sorted(traced.keys() | needed.keys(), key=_order)
    ]
    sizes = mesh_lib.abstract_mesh(data, model, config.model.towers).shape
    result: dict[str, Any] = {
        'mesh': ' x '.join(f'{axis} {size}' for axis, size in sizes.items()),
        'batch_size': config.training.batch_size,
        'rows': rows,
    }
    for axis in dict.fromkeys(row['axis'] for row in rows):
        here = [row for row in rows if row['axis'] == axis]
        for name in ('count', 'sent_bytes', 'least_bytes'):
            result[f'{axis}/{name}'] = sum(row[name] for row in here)
    return result


def of_step(config: Config, data: int, model: int) -> Table:
    """Return the collectives of the traced training step on `data` x `model` devices.

    They are read from the step of `jax.shard_map`; that of `jax.pmap` has the same ones. Raises
    UserError as `experiment.build` does, and if the configuration lacks the sizes of the data.
    """
    require_sizes(config)
    parallel = dataclasses.replace(config.parallel, backend='shard_map')
    config = dataclasses.replace(config, parallel=parallel)
    mesh = mesh_lib.abstract_mesh(data, model, config.model.towers)
    experiment = build(config, with_data=False, mesh=mesh)
    traced = experiment.train_step.trace(*experiment.abstract_arguments())
    return in_jaxpr(traced.jaxpr.jaxpr, mesh.shape)


def in_jaxpr(jaxpr: Any, sizes: dict[str, int]) -> Table:
    """Return the collectives of a traced step; `sizes` are those of the mesh's axes."""
    table: Table = {}
    for equation, stack, times in _equations(jaxpr, '', 1):
        axes = _axes(equation, sizes)
        if not axes:
            continue
        kind = equation.primitive.name
        arrays = equation.outvars if kind == 'all_gather' else equation.invars
        key = Key(' x '.join(axes), *_layer_and_part(stack), kind)
        size = times * sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in arrays)
        _add(table, key, times * len(arrays), size, math.prod(sizes[axis] for axis in axes))
    return table


def least(config: Config, data: int, model: int) -> Table:
    """Return the collectives that the scheme needs, from the configuration's layer table alone.

    Each image is sent to one device and gathered over `tower`. The towers exchange activations
    where a layer sees both, in fc6 and fc7 (gathered forward, scattered backward) and at the logits
    (summed forward). Along `shard` the convolutions split the rows and the fully connected layers
    split the units. Each gradient is summed over the devices that hold the same weight. Batch
    normalisation sums means and variances, forward and backward, over the devices with other rows.
    """
    sizes = dict(mesh_lib.abstract_mesh(data, model, config.model.towers).shape)
    rows = config.training.batch_size // data  # of one copy
    rows_of_shard = rows // sizes['shard']
    parts = config.training.accumulation_steps
    float_bytes = jnp.dtype(config.model.dtype).itemsize
    wide = max(4, float_bytes)  # of weights, gradients and logits
    table: Table = {}

    def need(axes: tuple[str, ...], layer: str, part: str, kind: str, count: int, size: int):
        axes = tuple(axis for axis in axes if sizes[axis] > 1)
        if axes:
            devices = math.prod(sizes[axis] for axis in axes)
            _add(table, Key(' x '.join(axes), layer, part, kind), count, size, devices)

    def exchange(axes: tuple[str, ...], layer: str, values: int, count: int = 1):
        """Add the gather of `values` values forward, and the scatter of their gradients."""
        need(axes, layer, 'forward', 'all_gather', count * parts, values * float_bytes)
        need(axes, layer, 'backward', 'reduce_scatter', count * parts, values * float_bytes)

    images = rows_of_shard * math.prod(config.data.image_shape)
    need(('tower',), 'images', '-', 'all_gather', 1, images)
    for layer in _layer_table(config):
        name, convolution = layer.name, layer.name.startswith('conv')
        both, own = layer.sees_both_towers, rows * layer.inputs // sizes['tower']
        if layer.of_maps and both:
            exchange(('tower',), name, rows_of_shard * layer.inputs)
        if layer.normed:
            exchange(('tower',), name.replace('conv', 'lrn'), rows_of_shard * layer.normed)
        if 'bn' in layer.after:
            maps = layer.features // sizes['tower'] * wide
            bn, others = name.replace('conv', 'bn'), ('data', 'shard')
            need(others, bn, 'forward', 'psum', 2 * parts, 2 * parts * maps)
            need(others, bn, 'backward', 'psum', 2 * parts, 2 * parts * maps)
            for axis in others:  # of scale and bias
                need((axis,), bn, 'gradients', 'psum', 2, 2 * maps)
        if name in ('fc6', 'fc7'):
            if layer.of_maps and both:
                exchange(('shard',), name, rows * layer.inputs)
            elif layer.of_maps:  # a separate gather for each tower on this device
                exchange(('shard',), name, own, config.model.towers // sizes['tower'])
            elif both:
                exchange(MODEL_AXES, name, rows * layer.inputs)
            else:
                exchange(('shard',), name, own)
        if name == 'fc8':
            need(MODEL_AXES, name, 'forward', 'psum', parts, rows * layer.features * wide)
        split = sizes['tower'] if convolution else model
        weights = layer.weights // split * wide
        # fc8 splits its inputs, so each device has all of its biases.
        biases = (layer.biases if name == 'fc8' else layer.biases // split) * wide
        if convolution:
            need(('shard',), name, 'gradients', 'psum', 2, weights + biases)
        if name == 'fc8':
            need(MODEL_AXES, name, 'gradients', 'psum', 1, biases)
        need(('data',), name, 'gradients', 'psum', 2, weights + biases)
        if config.optim.lars_trust_coefficient:  # of the weights and of their gradients
            axes = ('tower',) if convolution else MODEL_AXES
            need(axes, name, 'norms', 'psum', 2, 2 * wide)
    need(('data',), 'metrics', '-', 'psum', 2, 2 * wide)  # loss and error
    return table


class _Layer(NamedTuple):
    name: str
    inputs: int  # number of values of one image, over all towers
    sees_both_towers: bool
    weights: int
    features: int
    biases: int
    normed: int  # number of values of one image that are normalised across towers
    of_maps: bool  # whether its inputs are maps instead of units of a fully connected layer
    after: tuple[str, ...] = ()  # the operations that follow a convolution


def _layer_table(config: Config) -> Iterator[_Layer]:
    """Yield the layers of the configuration's network, with the sizes of Paper 3.5."""
    model, side, maps = config.model, config.augment.crop_px, config.data.image_shape[-1]
    for name in CONVOLUTIONS:
        layer = getattr(model, name)
        if not layer.features:
            continue
        both = layer.sees_both_towers
        seen = maps if both or name == 'conv1' else maps // model.towers
        inputs, weights = side**2 * maps, layer.kernel**2 * seen * layer.features
        side = (side + sum(layer.padding) - layer.kernel) // layer.stride + 1
        places = side**2 if layer.local else 1
        maps, normed = layer.features, 0
        for operation in layer.after:
            if operation == 'lrn' and model.lrn.across_towers and model.towers > 1:
                normed = side**2 * maps
            if operation == 'pool':
                beyond = layer.pool_stride - 1 if layer.pool_partial else 0
                side = (side - layer.pool_window + beyond) // layer.pool_stride + 1
        yield _Layer(
            name, inputs, both, weights * places, maps, maps * places, normed, True, layer.after
        )
    units, of_maps = side**2 * maps, True
    for name in ('fc6', 'fc7'):
        layer = getattr(model, name)
        features, both = layer.features, layer.sees_both_towers
        if features:
            weights = (units if both else units // model.towers) * features
            yield _Layer(name, units, both, weights, features, features, 0, of_maps)
            units, of_maps = features, False
    classes = model.num_classes  # fc8 gathers no inputs: each device computes partial sums
    yield _Layer('fc8', units, False, units * classes, classes, classes, 0, False)


def _equations(jaxpr: Any, stack: str, times: int) -> Iterator[tuple[Any, str, int]]:
    """Yield each equation, also of inner programs, with its name stack and how often it runs."""
    for equation in jaxpr.eqns:
        here = f'{stack}/{equation.source_info.name_stack}'
        yield equation, here, times
        repeats = times * equation.params.get('length', 1)  # of a scan
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from _equations(inner, here, repeats)


def _axes(equation: Any, sizes: dict[str, int]) -> tuple[str, ...]:
    """Return the mesh axes over which an equation sends, except those with one device."""
    if equation.primitive.name == 'axis_index':
        return ()
    names = equation.params.get('axes') or equation.params.get('axis_name') or ()
    names = names if isinstance(names, tuple) else (names,)
    if names == (FLAT_AXIS,):  # of `jax.pmap`; the group's devices differ along the axes wanted
        group = equation.params['axis_index_groups'][0]
        places = np.array(np.unravel_index(group, tuple(sizes[axis] for axis in AXES)))
        return tuple(axis for axis, place in zip(AXES, places, strict=True) if np.ptp(place))
    return tuple(name for name in names if isinstance(name, str) and sizes[name] > 1)


def _layer_and_part(stack: str) -> tuple[str, str]:
    """Return the layer and the part that the named scopes give, such as ('conv3', 'backward')."""
    layer = re.search(r'(conv|lrn|bn|fc)\d', stack)
    if not layer:
        return next(name for name in ('images', 'metrics') if name in stack), '-'
    for part in ('gradients', 'norms'):
        if part in stack:
            return layer.group(), part
    return layer.group(), 'backward' if 'transpose' in stack else 'forward'


def _add(table: Table, key: Key, count: int, size: int, devices: int) -> None:
    before = table.get(key, Sent(0, 0, 0.0))
    sent = _TIMES_SENT[key.kind] * size * (devices - 1) / devices
    table[key] = Sent(before.count + count, before.bytes + size, before.sent_bytes + sent)


def _order(key: Key) -> tuple[Any, ...]:
    parts = ('-', 'forward', 'backward', 'gradients', 'norms')
    return key.axis, parts.index(key.part), key.layer, key.kind
