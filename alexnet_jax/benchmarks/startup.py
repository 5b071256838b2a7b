"""Measure the parts of the start of training."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from alexnet_jax.benchmarks import timing
from alexnet_jax.training import experiment as experiment_lib
from alexnet_jax.training.config import Config


def measure(config: Config) -> dict[str, Any]:
    """Return the seconds of imports, build, initial state, first batch, first and second step.

    `first_step_s` includes the compilation, and `total_s` is the sum without the second step. The
    data set is opened with its statistics, which the very first start computes.
    """
    result = timing.spread('imports_s', [_import_s() for _ in range(3)])
    experiment, result['build_s'] = _timed(lambda: experiment_lib.build(config))
    state, result['init_s'] = _timed(experiment.init_state)
    batches = experiment.train_batches(range(2))
    with contextlib.closing(batches):
        batch, result['first_batch_s'] = _timed(lambda: next(batches))
        for name in ('first_step_s', 'second_step_s'):
            step = experiment.train_step
            (state, _), result[name] = _timed(step, state, batch, experiment.statistics)
    parts = ('imports_s', 'build_s', 'init_s', 'first_batch_s', 'first_step_s')
    return {'total_s': sum(result[part] for part in parts), **result}


def _import_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, '-c', 'import alexnet_jax.main'], check=True)
    return time.perf_counter() - began


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = function(*arguments)
    if not isinstance(result, experiment_lib.Experiment):
        jax.block_until_ready(result)
    return result, time.perf_counter() - began
