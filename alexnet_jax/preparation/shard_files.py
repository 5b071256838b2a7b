"""Write the ArrayRecord files of a split in worker processes, each completely or not at all."""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import tqdm
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

# Each group holds one record, because random access reads one image; nothing is compressed, because
# the pixels of photographs hardly compress. The compressed records of tfds read more slowly.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
NOTES = '.notes.json'  # this file stays beside a shard until the data set is complete
_REFRESH_S = 0.5  # interval of the progress bar, when other processes do the work

Write = Callable[[epath.Path, Sequence[Any], Callable[[int], object]], None]

# In a worker: the shared count of items that all workers have read, and the event that stops them.
_taken: Any = None
_stop: Any = None


class Review(NamedTuple):
    """The outcome of writing the items of a shard or a split."""

    written: int
    left_out: int  # items without an image
    notes: list[tuple[str, str]]  # (kind, text), in the order of the items


def write_shards(layout, splits, write: Write, workers: int, keep_left_out: bool) -> None:
    """Write the shards that are missing or incomplete, with a progress bar on a terminal.

    `layout` has a tfds SplitInfo for each split, and `write` is a partial `write_shard`; the other
    arguments are those of `records.write_dataset`.
    """
    missing = []
    for split, info in layout.items():
        items = iter(splits[split])
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            shard = list(itertools.islice(items, length))
            left_out = read_notes(path).left_out
            whole = path.exists() and _num_records(path) == length - left_out
            if not whole or (left_out and not keep_left_out):
                missing.append((path, shard))
    total = sum(info.num_examples for info in layout.values())
    finished = total - sum(len(shard) for _, shard in missing)
    # disable=None shows no bar if the output is not a terminal.
    with tqdm.tqdm(
        total=total, initial=finished, unit=' images', miniters=1, disable=None
    ) as progress:
        if workers == 1:
            for path, shard in missing:
                write(path, shard, progress.update)
            return
        # Not 'fork', because a JAX process has threads and a fork of it can hang.
        context = multiprocessing.get_context('spawn')
        taken, stop = context.Value('q'), context.Event()
        with futures.ProcessPoolExecutor(workers, context, _start_worker, (taken, stop)) as pool:
            try:
                with _without_ctrl_c():
                    pending = {pool.submit(_write_in_worker, write, *task) for task in missing}
                while pending:
                    done, pending = futures.wait(pending, _REFRESH_S, futures.FIRST_COMPLETED)
                    progress.update(finished + taken.value - progress.n)
                    for future in done:
                        future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    'a worker process was ended from outside, as happens when memory runs out; the '
                    'finished shards are kept: run the same command again, perhaps with fewer '
                    '--workers'
                ) from error
            except BaseException as error:
                if not isinstance(error, Exception):  # Ctrl-C; otherwise shards are finished first
                    stop.set()
                pool.shutdown(cancel_futures=True)
                raise


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C on the terminal does not reach: the parent tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(taken: Any, stop: Any) -> None:
    """Store the arguments, and end this worker if its parent is killed; it would wait for ever."""
    global _taken, _stop
    _taken, _stop = taken, stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_in_worker(write: Write, path: epath.Path, items: Sequence[Any]) -> None:
    write(path, items, _count_in_worker)


def _count_in_worker(items: int) -> None:
    with _taken.get_lock():
        _taken.value += items
    if _stop.is_set():
        raise KeyboardInterrupt


def write_shard(
    read_example,
    shape,
    classes,
    encode_jpeg,
    path: epath.Path,
    items: Sequence[Any],
    count: Callable[[int], object],
) -> None:
    """Write one shard under a temporary name, then rename it; call `count(1)` for each item."""
    temporary = path.with_name(f'{path.name}.tmp')
    with storage.writing(path):
        writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), _WRITER_OPTIONS)
    left_out, notes = 0, []
    for item in items:
        image, label, *more = read_example(item)
        count(1)
        notes += more
        if image is None:
            left_out += 1
            continue
        if image.dtype != np.uint8 or image.shape != shape or not 0 <= label < classes:
            raise UserError(
                f'example {item!r} is {image.dtype} {list(image.shape)} with label {label}; '
                f'it must be uint8 {list(shape)} with a label below {classes}'
            )
        example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
        stored = encode_jpeg(image) if encode_jpeg else image.tobytes()
        example.features.feature['image'].bytes_list.value.append(stored)
        example.features.feature['label'].int64_list.value.append(label)
        # tfds's own serialisation has a random order of features, another in each process.
        record = example.SerializeToString(deterministic=True)
        with storage.writing(path):
            writer.write(record)
    with storage.writing(path):
        writer.close()
        _to_disk(temporary)
        _write_notes(path, Review(len(items) - left_out, left_out, notes))
        temporary.replace(path)


def _to_disk(path: epath.Path) -> None:
    """Wait until a file is on the disk, because after a power cut its name could be empty.

    Then release its pages in the system's cache for the next shard.
    """
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):  # not on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _notes_path(path: epath.Path) -> epath.Path:
    return path.with_name(f'{path.name}{NOTES}')


def _write_notes(path: epath.Path, notes: Review) -> None:
    """Write the notes of a shard before the shard gets its name; if there are none, no file."""
    notes_path = _notes_path(path)
    if not notes.notes and not notes.left_out:
        notes_path.unlink(missing_ok=True)
        return
    temporary = notes_path.with_name(f'{notes_path.name}.tmp')
    temporary.write_text(json.dumps(notes))
    _to_disk(temporary)
    temporary.replace(notes_path)


def read_notes(path: epath.Path) -> Review:
    """Return the notes of a shard."""
    notes_path = _notes_path(path)
    return Review(*json.loads(notes_path.read_text())) if notes_path.exists() else Review(0, 0, [])


def review_split(info: Any) -> Review:
    """Return the notes of all shards of a split together."""
    shards = [read_notes(path) for path in info.filepaths]
    left_out = sum(shard.left_out for shard in shards)
    notes = [(kind, text) for shard in shards for kind, text in shard.notes]
    return Review(info.num_examples - left_out, left_out, notes)


def _num_records(path: epath.Path) -> int:
    """Return the number of records of a shard, which is 0 for a missing or a truncated file."""
    # Without read-ahead, which would read megabytes only to count.
    options = 'readahead_buffer_size:0'
    return array_record_module.ArrayRecordReader(os.fspath(path), options).num_records()
