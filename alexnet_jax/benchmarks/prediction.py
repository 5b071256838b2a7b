"""Predict the time of a step on a mesh from counted operations and bytes; nothing is measured.

    step = operations / (peak x MFU) + sum over collectives of (bytes sent / bandwidth + latency)

To gather or reduce-scatter an array, each device of a group of p sends (p - 1) / p of its bytes; an
all-reduce sends twice that. Copies in the same node first reduce there, so that a device sends only
its part to the other nodes. The operations are those of `training_flops` and the same for every
mesh, which only changes the bytes. Input, memory and the host are left out.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from alexnet_jax.benchmarks import communication
from alexnet_jax.benchmarks.problem import require_sizes
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import count_macs, training_flops
from alexnet_jax.parallel.collectives import Collectives
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config

_PASSES = {'all_gather': 1, 'reduce_scatter': 1, 'psum': 2}  # around the ring of the group
_LIMIT = 2**16  # devices
_MAY_BE_ZERO = ('images_per_device', 'latency_us', 'overlap', 'device_hour')


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """The assumptions of the prediction; the defaults describe a cluster of H100s."""

    devices: tuple[int, ...] = (8, 64, 512)
    images_per_device: int = 128  # 0: training.batch_size, however many devices there are
    peak_tflops: float = 989.0  # of a device; H100 SXM, bfloat16, dense, by its data sheet
    mfu: float = 0.3  # fraction of the peak that a device reaches between collectives
    devices_per_node: int = 8
    link_gb_s: float = 360.0  # one way, between devices of a node; 80 % of NVLink 4
    network_gb_s: float = 40.0  # one way, a device's share of the network; 80 % of 400 Gbit/s
    latency_us: float = 10.0  # of a collective, for each doubling of its group
    overlap: float = 0.0  # fraction of the gradients' time that overlaps with the arithmetic
    device_hour: float = 2.5  # price of a device for an hour; an example, not a quotation

    @classmethod
    def parse(cls, words: Sequence[str]) -> 'Assumptions':
        """Parse each `name=value`, with `devices=8+64`; raise UserError for an invalid one."""
        given: dict[str, Any] = {}
        defaults = dataclasses.asdict(cls())
        for word in words:
            name, _, value = word.partition('=')
            if name not in defaults:
                raise UserError(f'--assume={word}: the name must be one of {", ".join(defaults)}')
            try:
                kind = type(defaults[name])
                given[name] = tuple(map(int, value.split('+'))) if kind is tuple else kind(value)
            except ValueError as error:
                raise UserError(
                    f'--assume={word}: {value!r} is not a number; write name=value, as in mfu=0.4'
                ) from error
            least = min(given[name]) if name == 'devices' else given[name]
            if not (least > 0 or (least == 0 and name in _MAY_BE_ZERO)):
                limit = 'at least 0' if name in _MAY_BE_ZERO else 'above 0'
                raise UserError(f'--assume={word}: {least} is too small; it must be {limit}')
        return cls(**given)


class _Transfer(NamedTuple):
    """One collective of a step."""

    part: str  # 'images', 'activations' or 'gradients'
    kind: str  # its name in jax.lax
    axes: tuple[str, ...]
    size: int  # bytes of the whole array: after a gather, or before a scatter


def predict(config: Config, assumed: Assumptions) -> dict[str, Any]:
    """Return times, efficiency and cost of data parallelism, two towers and one weird trick.

    The result is flat, with names such as `two_towers/64/step_ms` for 64 devices, and begins with
    the assumptions. `pays_up_to` is the largest number of devices, a power of two, at which each
    device still does at least half as much as one device alone.
    """
    require_sizes(config)
    crop, channels = config.augment.crop_px, config.data.image_shape[-1]
    flops = training_flops(count_macs(AlexNet(config.model), (crop, crop, channels)))
    layouts = {'data_parallel': 1, 'two_towers': config.model.towers, 'one_weird_trick': 8}
    result: dict[str, Any] = {
        'kind': 'PREDICTED, not measured',
        **{f'assumed/{name}': value for name, value in dataclasses.asdict(assumed).items()},
        'gflop_per_image': flops / 1e9,
    }
    for (layout, model), devices in itertools.product(layouts.items(), assumed.devices):
        row = _row(config, flops, assumed, devices, model)
        result |= {f'{layout}/{devices}/{name}': value for name, value in row.items()}
    for layout, model in layouts.items():
        result[f'{layout}/pays_up_to'] = _pays_up_to(config, flops, assumed, model)
    return result


def _transfers(config: Config, mesh: Collectives, batch: int) -> list[_Transfer]:
    """Return the collectives of one training step, with all sums over the same axes combined.

    Raises UserError if the batch does not divide evenly over the devices.
    """
    if batch % (mesh.data * mesh.model):
        raise UserError(
            f'{batch} images do not divide evenly over {mesh.data * mesh.model} devices; set '
            '--config.training.batch_size or --assume=images_per_device'
        )
    training = dataclasses.replace(config.training, batch_size=batch)
    config = dataclasses.replace(config, training=training)
    found, sums = [], dict[str, int]()
    for key, sent in communication.least(config, mesh.data, mesh.model).items():
        if key.part == 'gradients' or key.layer == 'metrics':  # XLA combines these
            sums[key.axis] = sums.get(key.axis, 0) + sent.bytes
        else:
            part = 'images' if key.layer == 'images' else 'activations'
            found.append(_Transfer(part, key.kind, tuple(key.axis.split(' x ')), sent.bytes))
    return found + [
        _Transfer('gradients', 'psum', tuple(axis.split(' x ')), size)
        for axis, size in sums.items()
    ]


def _row(
    config: Config,
    flops: int,
    assumed: Assumptions,
    devices: int,
    model: int,
) -> dict[str, float]:
    """Return the prediction for `devices` devices, at most `model` of them for each copy."""
    model = min(model, devices)
    if devices % model or model not in (1, 2, 4, 8):
        raise UserError(f'--assume=devices={devices} must be 1, 2, 4 or a multiple of 8')
    tower = config.model.towers if model >= config.model.towers else 1
    mesh = Collectives(data=devices // model, tower=tower, shard=model // tower)
    batch = assumed.images_per_device * devices or config.training.batch_size
    arithmetic = flops * batch / devices / (assumed.peak_tflops * 1e12 * assumed.mfu)
    seconds: dict[str, float] = dict.fromkeys(('images', 'activations', 'gradients'), 0.0)
    sent = 0.0
    for transfer in _transfers(config, mesh, batch):
        group = math.prod(getattr(mesh, axis) for axis in transfer.axes)
        sent += _PASSES[transfer.kind] * transfer.size * (group - 1) / group
        seconds[transfer.part] += _seconds(transfer, mesh, assumed)
    seconds['gradients'] -= min(assumed.overlap * seconds['gradients'], arithmetic)
    step = arithmetic + sum(seconds.values())
    hours = config.training.total_epochs * config.data.train_examples / batch * step / 3600
    nodes = math.ceil(devices / assumed.devices_per_node)
    return {
        'batch': batch,
        'step_ms': 1e3 * step,
        'arithmetic_ms': 1e3 * arithmetic,
        **{f'{part}_ms': 1e3 * value for part, value in seconds.items()},
        'sent_mb': sent / 1e6,  # by each device
        'efficiency': arithmetic / step,
        'images_per_second': batch / step,
        'input_gb_s_per_node': batch / step * math.prod(config.data.image_shape) / nodes / 1e9,
        'hours': hours,  # for training.total_epochs
        'cost': hours * devices * assumed.device_hour,
    }


def _seconds(transfer: _Transfer, mesh: Collectives, assumed: Assumptions) -> float:
    """Return the time of one collective."""
    group = math.prod(getattr(mesh, axis) for axis in transfer.axes)
    if group == 1:
        return 0.0
    # The devices of a copy are neighbours, so that whole copies are in other nodes, not parts.
    fit = assumed.devices_per_node // mesh.model if transfer.axes == ('data',) else group
    if transfer.axes != ('data',) and mesh.model > assumed.devices_per_node:
        fit = 1
    near = max(1, math.gcd(group, fit))
    far = group // near
    link = transfer.size * (near - 1) / near / (assumed.link_gb_s * 1e9)
    network = transfer.size / near * (far - 1) / far / (assumed.network_gb_s * 1e9)
    latency = assumed.latency_us * 1e-6 * math.ceil(math.log2(group))
    return _PASSES[transfer.kind] * (link + network + latency)


def _pays_up_to(config: Config, flops: int, assumed: Assumptions, model: int) -> int:
    """Return the largest power of two of devices with an efficiency of one half, up to `_LIMIT`."""
    devices = 1
    while devices < _LIMIT:
        more = 2 * devices
        if (assumed.images_per_device * more or config.training.batch_size) % more:
            break
        if _row(config, flops, assumed, more, model)['efficiency'] < 0.5:
            break
        devices = more
    return devices
