"""Measure the input pipeline alone: reading, decoding and batching records on the host."""

import contextlib
import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax.benchmarks import timing
from alexnet_jax.benchmarks.problem import require_sizes
from alexnet_jax.input import pipeline, sources
from alexnet_jax.preparation import images, records
from alexnet_jax.training import dataset as dataset_lib
from alexnet_jax.training.config import Config

_ROUNDS = 7
_BATCHES = 40  # per round


def measure(config: Config, *, synthetic: int = 0) -> dict[str, Any]:
    """Return images per second, and per second of processor time, for the training batches.

    With `synthetic` > 0 that many generated images, stored as pixels and as JPEG in a temporary
    directory, replace the configuration's data set. Each image is read once before the timing, so
    that the files are in memory if there is room for them.
    """
    if not synthetic:
        dataset, _ = dataset_lib.load(config.data)  # computes the statistics if there are none
        return {'data_set': dataset.full_name, **_measure(dataset, config, '')}
    require_sizes(config, ['data.image_shape'])
    results = {'synthetic_images': synthetic}
    shape = config.data.image_shape
    kinds = {'raw': None} | ({'jpeg': images.encode_jpeg} if shape[-1] == 3 else {})
    with tempfile.TemporaryDirectory() as directory:
        for kind, encode_jpeg in kinds.items():
            records.write_dataset(
                directory,
                name=kind,
                version='1.0.0',
                description='Smooth shapes and a little noise.',
                image_shape=shape,
                class_names=[str(label) for label in range(10)],
                splits={'train': range(synthetic)},
                shards={'train': min(16, synthetic)},
                read_example=lambda item: (_image(item, shape), item % 10),
                encode_jpeg=encode_jpeg,
            )
            data = dataclasses.replace(
                config.data,
                name=kind,
                dir=directory,
                train_split='train',
                eval_split='train',
                train_examples=0,
                eval_examples=0,
            )
            results |= _measure(sources.open_dataset(data), config, f'{kind}_')
    return results


def _measure(dataset: sources.Dataset, config: Config, prefix: str) -> dict[str, Any]:
    batch_size = config.training.batch_size
    for batch in pipeline.eval_batches(dataset.train, batch_size=batch_size):
        del batch  # now in the page cache
    batches = pipeline.train_batches(
        dataset, seed=config.seed, batch_size=batch_size, start_step=0, num_steps=10**9
    )
    processor = []

    def read() -> None:
        began = time.process_time()
        for _ in range(_BATCHES):
            next(batches)
        processor.append(time.process_time() - began)

    with contextlib.closing(batches):
        wall = timing.interleaved({'read': read}, rounds=_ROUNDS)['read']
    number = _BATCHES * batch_size
    return {
        **timing.rates(f'{prefix}images_per_second', number, wall),
        **timing.rates(f'{prefix}images_per_second_per_core', number, processor[1:]),
    }


def _image(item: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return an image whose JPEG file is about as large as that of a photograph."""
    rng = np.random.default_rng(item)
    height, width, channels = shape
    coarse = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((width, height))) for c in range(channels)
    ]
    noise = rng.integers(-8, 9, shape)
    return np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)
