"""The host's part alone: records of a data set read, decoded and made into batches."""

import itertools
import time
from typing import Any

import ml_collections

from alexnet_jax.benchmarks import timing
from alexnet_jax.data import pipeline

_BATCHES = 40  # a round
_ROUNDS = 7


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return images a second, and a second of processor time, of the training batches.

    The data set is the config's; its files are read once before, so that they are in memory where
    there is room for them.
    """
    dataset, _ = pipeline.load(**config.data)
    batch_size = config.training.batch_size
    batches = pipeline.train_batches(
        dataset, seed=config.seed, batch_size=batch_size, start_step=0, num_steps=10**9
    )
    wall, cores = [], []
    for number in range(-1, _ROUNDS):
        began, processor = time.perf_counter(), time.process_time()
        for _ in itertools.islice(batches, _BATCHES):
            pass
        if number >= 0:
            wall.append(time.perf_counter() - began)
            cores.append(time.process_time() - processor)
    batches.close()
    images = _BATCHES * batch_size
    return {
        'data_set': dataset.full_name,
        **timing.rates('images_per_second', images, wall),
        **timing.rates('images_per_second_per_core', images, cores),
    }
