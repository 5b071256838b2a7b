"""Compare training on a data set with training on one batch that is already on the device."""

import collections
import contextlib
import time
from typing import Any

import jax

from alexnet_jax.benchmarks import timing
from alexnet_jax.training import experiment as experiment_lib
from alexnet_jax.training.config import Config

_IN_FLIGHT = 2  # steps dispatched ahead of the one that is waited for, as in training
_ROUND_S = 2.0  # approximate length of a timing


def measure(config: Config) -> dict[str, Any]:
    """Return both speeds, their paired ratio (1: reading costs no time), and the data wait.

    Each timing starts after as many steps as there are prefetched batches, so that batches that
    were read while the other case ran do not count.
    """
    experiment = experiment_lib.build(config)
    batches = experiment.train_batches(range(10**9))
    ahead = config.data.read_threads + config.data.prefetch_batches + 2  # and 2 in transfer
    with contextlib.closing(batches):
        run = _Run(experiment)
        resident = next(batches)
        run.seconds(lambda: resident, steps=1)  # compiles
        step_s = run.seconds(lambda: resident, steps=2) / 2
        steps = max(2, min(300, round(_ROUND_S / step_s)))
        waits = []

        def alone() -> float:
            run.seconds(lambda: resident, ahead)
            return run.seconds(lambda: resident, steps)

        def trained() -> float:
            run.seconds(lambda: next(batches), ahead)
            seconds = run.seconds(lambda: next(batches), steps)
            waits.append(run.waited_s / seconds)
            return seconds

        rounds, warmup = (5, 0) if step_s > 1 else (9, 1)
        cases = {'alone': alone, 'trained': trained}
        seconds = timing.interleaved(cases, rounds=rounds, warmup=warmup)
    images = steps * config.training.batch_size
    return {
        'steps_a_round': steps,
        'rounds': rounds,
        **timing.rates('step_images_per_second', images, seconds['alone']),
        **timing.rates('end_to_end_images_per_second', images, seconds['trained']),
        **timing.paired_ratio('ratio', seconds['alone'], seconds['trained']),
        **timing.spread('data_wait', waits[warmup:]),
    }


class _Run:
    """A training state, and the time of steps on it."""

    def __init__(self, experiment: experiment_lib.Experiment) -> None:
        self._experiment = experiment
        self._state = experiment.init_state()
        self.waited_s = 0.0  # for batches, in the last call of `seconds`

    def seconds(self, next_batch: Any, steps: int) -> float:
        """Return the seconds of some steps, from idle devices until the devices are idle again."""
        jax.block_until_ready(self._state)
        pending = collections.deque()
        self.waited_s = 0.0
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next_batch()
            self.waited_s += time.perf_counter() - asked
            self._state, metrics = self._experiment.train_step(
                self._state, batch, self._experiment.statistics
            )
            pending.append(metrics)
            if len(pending) > _IN_FLIGHT:
                jax.block_until_ready(pending.popleft())
        jax.block_until_ready(self._state)
        return time.perf_counter() - began
