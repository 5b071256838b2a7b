"""Measure the training step in images per second, and as a share of the fastest matrix product."""

import contextlib
import dataclasses
import functools
import math
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.benchmarks import timing
from alexnet_jax.benchmarks.problem import Ours, Plain, Torch, assert_same_losses, without_chance
from alexnet_jax.network.parameters import count_macs, training_flops
from alexnet_jax.parallel.mesh import make_mesh
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config

_ROUNDS = 7
_TURN_S = 0.5  # each timing repeats its work to take at least this long
_CHECKED_STEPS = 3
_TOLERANCE = {'float32': 1e-4, 'float64': 1e-9, 'bfloat16': 0.05}  # of losses, relative


def measure(config: Config, *, against: str = '') -> dict[str, Any]:
    """Return the speed of a configuration's training step, without reading data.

    The step is that of a run (augmentation, forward, backward, update) on one batch of noise that
    is already on the device. Each timing begins with a step that is not timed, because in a run the
    memory and the caches are as the previous step left them. `share_of_best_matmul` is images per
    second times the arithmetic per image, divided by the best rate of large matrix products in the
    same rounds: by either framework, with ours on all devices.

    Args:
      config: the configuration; no data set is opened.
      against: '' for no comparison; 'torch' for the same function in PyTorch with torch.compile and
        channels_last, in its own process; 'plain' for Flax and optax with grouped convolutions.
        Both take prepared crops and run on one device. Ours may use several CPU devices, because
        they share the same cores. Before the timing, the losses of a few steps without dropout are
        compared with ours.

    Raises UserError for a configuration that the other program cannot compute, and if its losses
    differ from ours.
    """
    _leave_memory_to(against)
    product = MatrixProduct(config)
    result, rival = _rival(config, against, product.size)
    with contextlib.closing(rival) if isinstance(rival, Torch) else contextlib.nullcontext():
        return result | _compare(config, against, product, rival)


def _compare(
    config: Config,
    against: str,
    product: 'MatrixProduct',
    rival: Plain | Torch | None,
) -> dict[str, Any]:
    """Time our step, the other program's step and the matrix products in turn."""
    ours = Ours(config)
    experiment, batch_size = ours.experiment, config.training.batch_size
    steps = {'ours': ours.train, **({against: rival.train} if rival else {})}
    products: dict[str, Callable[[int], object]] = {'product': product.run}
    if isinstance(rival, Torch):
        products['torch_product'] = lambda times: rival.ask('product', times)
    repeats = _repeats(ours.train)
    cases = {name: functools.partial(_turn, f, repeats) for name, f in steps.items()}
    cases |= {name: functools.partial(_turn, f, product.repeats) for name, f in products.items()}
    seconds = timing.interleaved(cases, rounds=_ROUNDS, warmup=2)
    flops = training_flops(count_macs(experiment.model, experiment.crop_shape))
    peak = _peak(product, seconds)
    images = batch_size * repeats
    rate = timing.rates('images_per_second', images, seconds['ours'])
    result = {
        **_describe(ours),
        'gflop_per_image': flops / 1e9,
        'peak_gflops': peak / 1e9,
        **rate,
        'share_of_best_matmul': rate['images_per_second'] * flops / peak,
    }
    if against:
        result |= timing.rates(f'{against}_images_per_second', images, seconds[against])
        result |= timing.paired_ratio(f'ratio_to_{against}', seconds[against], seconds['ours'])
        rival_rate = result[f'{against}_images_per_second']
        result[f'{against}_share_of_best_matmul'] = rival_rate * flops / peak
    return result


def _peak(product: 'MatrixProduct', seconds: dict[str, list[float]]) -> float:
    """Return the best rate of matrix products in FLOP/s: ours on all devices, torch's on one."""
    flops = {'product': product.flops, 'torch_product': 2 * product.size**3}
    turns = seconds.keys() & flops.keys()
    return max(product.repeats * flops[name] / min(seconds[name]) for name in turns)


def sweep(config: Config, *, against: str = '') -> dict[str, Any]:
    """Measure float32 and bfloat16 with batches of 128, 1024 and then doubled until memory is full.

    The names of `measure` get the dtype and the batch size as a prefix, as in `float32_128_dtype`.
    Above 1024 only our step is measured.
    """
    _leave_memory_to(against)
    if jax.default_backend() == 'cpu':
        raise UserError(
            '--sweep fills the memory of an accelerator; on a CPU leave it out and set '
            'training.batch_size'
        )
    result: dict[str, Any] = {}
    for dtype in ('float32', 'bfloat16'):
        batch_size = 128
        while True:
            case = dataclasses.replace(
                config,
                model=dataclasses.replace(config.model, dtype=dtype),
                training=dataclasses.replace(config.training, batch_size=batch_size),
                evaluation=dataclasses.replace(config.evaluation, batch_size=batch_size),
            )
            try:
                found = measure(case, against=against if batch_size <= 1024 else '')
            except jax.errors.JaxRuntimeError as error:
                if 'RESOURCE_EXHAUSTED' not in str(error):
                    raise
                break
            result |= {f'{dtype}_{batch_size}_{name}': value for name, value in found.items()}
            batch_size = max(1024, 2 * batch_size)
    return result


def _leave_memory_to(against: str) -> None:
    """Leave memory of a GPU to the other process, because JAX would reserve most of it at once."""
    if against == 'torch':
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def _rival(
    config: Config, against: str, product_size: int
) -> tuple[dict[str, Any], Plain | Torch | None]:
    """Return details of the other program, and the program itself, checked against our losses."""
    if not against:
        return {}, None
    fair = without_chance(config)
    ours = Ours(fair, one_device=jax.default_backend() != 'cpu')
    params = jax.device_get(ours.state.params)
    want = ours.train(_CHECKED_STEPS)
    del ours
    tolerance = _TOLERANCE[config.model.dtype]
    if against == 'plain':
        got = Plain(fair, params).train(_CHECKED_STEPS)
        apart = assert_same_losses(against, got, want, tolerance)
        return {'losses_apart': apart}, Plain(config, params)
    rival = Torch(fair, params, product_size)
    got = rival.train(_CHECKED_STEPS)
    apart = assert_same_losses(against, got, want, tolerance)
    rival.restart(dropout=config.model.dropout)
    return {'losses_apart': apart, 'torch': rival.version, 'torch_device': rival.device}, rival


class MatrixProduct:
    """A square matrix product on all devices at once, large enough to reach their full rate."""

    def __init__(self, config: Config):
        self.devices = list(make_mesh(config.parallel, config.model.towers).devices.flat)
        self.size = 1024
        while True:
            side = (self.size, self.size)
            factor = jax.random.normal(jax.random.key(0), side, config.model.dtype)
            self.factors = [jax.device_put(factor, device) for device in self.devices]
            self.product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=config.model.precision))
            self.repeats = _repeats(self.run)
            if self.repeats <= max(1, _TURN_S / 0.05) or self.size == 16384:
                return
            self.size *= 2

    @property
    def flops(self) -> int:
        """The floating point operations of one product on each device."""
        return 2 * self.size**3 * len(self.devices)

    def run(self, times: int) -> None:
        """Multiply `times` times, and wait for the last results."""
        for _ in range(times):
            results = [self.product(factor, factor) for factor in self.factors]
        jax.block_until_ready(results)


def _turn(work: Callable[[int], object], times: int) -> float:
    """Return the seconds of `times` repetitions, after one that restores its memory and caches."""
    work(1)
    began = time.perf_counter()
    work(times)
    return time.perf_counter() - began


def _repeats(work: Callable[[int], object]) -> int:
    """Return how often to repeat some work in one timing; this does it twice."""
    work(1)
    began = time.perf_counter()
    work(1)
    return max(1, math.ceil(_TURN_S / (time.perf_counter() - began)))


def _describe(ours: Ours) -> dict[str, Any]:
    """Return a description of the step that was measured, and its use of memory."""
    experiment, memory = ours.experiment, ours.compiled.memory_analysis()
    config, device = experiment.config, experiment.mesh.devices.flat[0]
    cost = ours.compiled.cost_analysis() or {}
    in_use = (device.memory_stats() or {}).get('peak_bytes_in_use')
    return {
        'device': f'{experiment.mesh.size} x {device.device_kind}',
        'jax': jax.__version__,
        'batch_size': config.training.batch_size,
        'dtype': config.model.dtype,
        'precision': config.model.precision,
        'forms': config.model.forms,
        'bytes_accessed_per_step': cost.get('bytes accessed', math.nan),
        'temporary_bytes': memory.temp_size_in_bytes,
        # The maximum so far, including earlier cases and products: of the device's allocator, or
        # on a CPU of the process.
        'peak_memory_bytes': in_use or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
