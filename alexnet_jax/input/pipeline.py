"""Read batches in threads, as a function of (seed, step), and copy them to the devices as uint8."""

import collections
import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import grain
import jax
import numpy as np

from alexnet_jax.input import sources
from alexnet_jax.input.batch import Batch


def train_order(num_examples: int, seed: int) -> Sequence[int]:
    """Return the endless order of the training examples, a sequence of their indices.

    Every epoch is another permutation. Row r of step s with batches of B is `order[s * B + r]`, so
    a batch may hold examples of two epochs, and the step is all that has to be saved.
    """
    order = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    return cast(Sequence[int], order)


def train_batches(
    dataset: sources.Dataset,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
    rows: slice = slice(None),
) -> Generator[Batch, None, None]:
    """Yield the batches of the steps from `start_step` on, the same for any number of threads.

    `rows` is the part of the global batch to read (see `local_rows`). Close the generator to end
    its threads. It raises the exceptions of its threads.
    """
    order = train_order(len(dataset.train), seed)

    def read(step: int) -> Batch:
        chosen = range(step * batch_size, (step + 1) * batch_size)[rows]
        return _read(dataset.train, [order[position] for position in chosen])

    steps = range(start_step, start_step + num_steps)
    return _in_threads(read, steps, dataset.read_threads, dataset.prefetch_batches)


def eval_batches(
    split: sources.Split,
    *,
    batch_size: int,
    rows: slice = slice(None),
    read_threads: int = 1,
    prefetch_batches: int = 2,
) -> Generator[Batch, None, None]:
    """Yield every example exactly once, in order; the last batch is padded, with a mask of False.

    `rows`, closing and exceptions are as in `train_batches`.
    """

    def read(step: int) -> Batch:
        chosen = range(step * batch_size, (step + 1) * batch_size)[rows]
        return _read(split, [index for index in chosen if index < len(split)], len(chosen))

    steps = range(-(-len(split) // batch_size))
    return _in_threads(read, steps, read_threads, prefetch_batches)


def _read(split: sources.Split, indices: Sequence[int], batch_size: int = 0) -> Batch:
    """Return the examples as one batch in new arrays, padded to `batch_size`."""
    size = max(batch_size, len(indices))
    images = np.zeros((size, *split.image_shape), np.uint8)
    labels = np.zeros(size, np.int32)
    for row, index in enumerate(indices):
        example = split[index]
        images[row], labels[row] = example['image'], example['label']
    return Batch(images, labels, np.arange(size) < len(indices))


def _in_threads(
    read: Callable[[int], Batch], steps: range, read_threads: int, prefetch_batches: int
) -> Generator[Batch, None, None]:
    """Yield `read(step)` for each step, in order; each thread reads whole batches in advance."""
    options = grain.ReadOptions(
        num_threads=read_threads, prefetch_buffer_size=max(read_threads, prefetch_batches)
    )
    batches = grain.MapDataset.range(steps.start, steps.stop).map(read).to_iter_dataset(options)
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator


def local_rows(shardings: Batch, batch_size: int) -> slice:
    """Return the rows of the global batch that this process's devices need, as one slice.

    If the towers of one copy are in different processes, images and labels need different rows, and
    the slice covers both.
    """
    needed = [
        index[0].indices(batch_size)[:2]
        for sharding in shardings
        for index in sharding.addressable_devices_indices_map((batch_size,)).values()
    ]
    return slice(min(start for start, _ in needed), max(stop for _, stop in needed))


def to_device(
    batches: Generator[Batch, None, None],
    shardings: Batch,
    size: int = 2,
    *,
    batch_size: int = 0,
    rows: slice = slice(None),
) -> Generator[Batch, None, None]:
    """Yield the batches as global arrays, with `size` of them in transfer to the devices.

    Args:
      batches: host batches, closed when this generator is closed.
      shardings: a Batch of NamedShardings.
      size: with 2, one batch is transferred while the devices compute on another.
      batch_size, rows: the size of the global batch and the part of it that `batches` holds, if
        that is not all of it.
    """

    def put(local: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        total = batch_size or len(local)
        first = rows.indices(total)[0]

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            return local[start - first : stop - first]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, shard)

    queue = collections.deque()
    with contextlib.closing(batches):
        for batch in batches:
            queue.append(Batch(*map(put, batch, shardings)))
            if len(queue) == size:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
