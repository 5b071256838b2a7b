"""Batches as a function of (seed, step): order, restarts, threads, rows, padding, the devices."""

import contextlib
import itertools
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.input import pipeline
from alexnet_jax.input.batch import Batch
from alexnet_jax.input.sources import DataConfig, open_dataset
from alexnet_jax.preparation import records
from alexnet_jax.runtime.errors import UserError

COUNTS = {'train': 103, 'test': 23}  # neither divides by the batches below
SHAPE = (4, 3, 3)


def image_of(item):
    return np.random.default_rng(item).integers(0, 256, SHAPE, dtype=np.uint8)


def label_of(item):
    return item % 7


def section(dir, name='tiny', **changes) -> DataConfig:
    given: dict[str, Any] = dict(
        name=name,
        dir=str(dir),
        train_split='train',
        eval_split='test',
        image_shape=(),
        train_examples=0,
        eval_examples=0,
        read_threads=2,
        prefetch_batches=2,
    )
    return DataConfig(**given | changes)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('data')
    records.write_dataset(
        data_dir,
        name='tiny',
        version='1.0.0',
        description='random',
        image_shape=SHAPE,
        class_names=list('abcdefg'),
        splits={'train': range(103), 'test': range(1000, 1023)},
        shards={'train': 4, 'test': 2},
        read_example=lambda item: (image_of(item), label_of(item)),
    )
    return data_dir


@pytest.fixture(scope='module')
def dataset(data_dir):
    return open_dataset(section(data_dir))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5  # a thread ends after the batch it is reading
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def batches(dataset, start_step=0, num_steps=20, **changes):
    given: dict[str, Any] = dict(seed=3, batch_size=8, start_step=start_step, num_steps=num_steps)
    return list(pipeline.train_batches(dataset, **given | changes))


def assert_equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


# The order.


@pytest.mark.parametrize('count', [1, 2, 103, 1437])
def test_each_epoch_is_a_permutation_of_its_own(count):
    order = pipeline.train_order(count, seed=5)
    epochs = [[order[e * count + i] for i in range(count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 2:
        assert not any(a == b for a, b in itertools.combinations(epochs, 2))
        assert epochs[0] != list(range(count))


def test_seeds_differ_and_no_seed_repeats_another_one_epoch_later():
    def epoch(seed, number):
        order = pipeline.train_order(100, seed)
        return tuple(order[number * 100 + i] for i in range(100))

    epochs = [epoch(seed, number) for seed in range(4) for number in range(4)]
    assert len(set(epochs)) == len(epochs)
    assert epoch(2, 3) == epoch(2, 3)


def test_the_order_of_releases_before():
    # A resumed run relies on it: if grain changes its shuffle, pin the grain that does not.
    order = pipeline.train_order(10, 3)
    assert bytes(order[i] for i in range(12)) == bytes([4, 6, 9, 7, 5, 3, 1, 8, 2, 0, 8, 1])
    order = pipeline.train_order(1281167, 0)
    assert [order[i] for i in (0, 1, 10**7)] == [854407, 163112, 1259188]


# Training batches.


def test_train_batches(dataset):
    order = pipeline.train_order(103, 3)
    got = batches(dataset)
    assert len(got) == 20
    for step, batch in enumerate(got):
        items = [order[step * 8 + row] for row in range(8)]
        np.testing.assert_array_equal(batch.images, np.stack([image_of(i) for i in items]))
        np.testing.assert_array_equal(batch.labels, [label_of(i) for i in items])
        assert (batch.images.dtype, batch.labels.dtype) == (np.uint8, np.int32)
        assert batch.mask.dtype == bool
        assert batch.mask.all()
    seen = [label for batch in got for label in batch.labels]  # 160: across the end of an epoch
    want = np.bincount([label_of(i) for i in range(103)])
    np.testing.assert_array_equal(np.bincount(seen[:103]), want)


@pytest.mark.parametrize('read_threads', [1, 2, 4])
@pytest.mark.parametrize('start_step', [0, 7, 13])
def test_threads_and_restarts_change_nothing(data_dir, dataset, read_threads, start_step):
    again = open_dataset(section(data_dir, read_threads=read_threads, prefetch_batches=3))
    assert_equal(batches(again, start_step, 20 - start_step), batches(dataset)[start_step:])


def test_no_step(dataset):
    assert batches(dataset, 5, 0) == []


@pytest.mark.parametrize('parts', [2, 4])
def test_rows_are_parts_of_the_batch(dataset, parts):
    size = 8 // parts
    pieces = [
        batches(dataset, num_steps=15, rows=slice(i * size, (i + 1) * size)) for i in range(parts)
    ]
    joined = [
        Batch(*(np.concatenate(leaf) for leaf in zip(*step, strict=True)))
        for step in zip(*pieces, strict=True)
    ]
    assert_equal(joined, batches(dataset, num_steps=15))


# Evaluation batches.


@pytest.mark.parametrize('batch_size', [1, 8, 23, 40])
@pytest.mark.parametrize('read_threads', [1, 3])
def test_each_example_is_evaluated_once(dataset, batch_size, read_threads):
    got = list(
        pipeline.eval_batches(dataset.eval, batch_size=batch_size, read_threads=read_threads)
    )
    assert all(len(leaf) == batch_size for batch in got for leaf in batch)
    images, labels, mask = (np.concatenate(leaf) for leaf in zip(*got, strict=True))
    assert mask.sum() == 23
    assert mask[:23].all()
    np.testing.assert_array_equal(images[:23], [image_of(i) for i in range(1000, 1023)])
    np.testing.assert_array_equal(labels[:23], [label_of(i) for i in range(1000, 1023)])
    assert not images[23:].any()
    assert not labels[23:].any()


def test_rows_of_evaluation(dataset):
    whole = list(pipeline.eval_batches(dataset.eval, batch_size=8))
    for rows in (slice(0, 4), slice(4, 8), slice(7, 8)):
        part = list(pipeline.eval_batches(dataset.eval, batch_size=8, rows=rows))
        assert_equal(part, [Batch(*(leaf[rows] for leaf in batch)) for batch in whole])


# Errors and threads.


class Broken:
    """A split whose example 41 cannot be read."""

    image_shape = SHAPE

    def __len__(self):
        return 103

    def __getitem__(self, index):
        if index == 41:
            raise UserError('example 41 is broken')
        return {'image': image_of(index), 'label': np.int32(0)}


@pytest.mark.parametrize('read_threads', [1, 4])
def test_an_error_of_a_thread_comes_out(read_threads):
    split: Any = Broken()
    got = []
    with pytest.raises(UserError, match='example 41 is broken'):
        got.extend(pipeline.eval_batches(split, batch_size=8, read_threads=read_threads))
    got = []
    on_device = to_one_device(pipeline.eval_batches(split, batch_size=8, read_threads=read_threads))
    with pytest.raises(UserError, match='example 41 is broken'):
        got.extend(on_device)


@pytest.mark.parametrize('read_threads', [1, 4])
def test_a_file_removed_under_a_run_is_named(data_dir, tmp_path, read_threads):
    copy = shutil.copytree(data_dir, tmp_path / 'data')
    opened = open_dataset(section(copy, read_threads=read_threads))
    removed = copy / 'tiny' / '1.0.0' / 'tiny-test.array_record-00001-of-00002'
    training = pipeline.train_batches(opened, seed=3, batch_size=8, start_step=0, num_steps=1000)
    with contextlib.closing(training):
        next(training)
        for path in removed.parent.glob('tiny-*'):
            path.unlink()
        with pytest.raises(UserError, match=rf'^{removed.parent}/tiny-train.* removed or changed'):
            list(training)
    shutil.copytree(data_dir, copy, dirs_exist_ok=True)
    opened = open_dataset(section(copy))
    removed.unlink()
    with pytest.raises(UserError, match=rf'^{removed}: example 11 of tiny/1\.0\.0 test'):
        list(pipeline.eval_batches(opened.eval, batch_size=8, read_threads=read_threads))


@pytest.mark.parametrize('taken', [0, 1, 5])
def test_closing_midway_ends_the_threads(dataset, taken):
    steps = pipeline.train_batches(dataset, seed=0, batch_size=8, start_step=0, num_steps=10**6)
    with contextlib.closing(to_one_device(steps)) as on_device:
        assert len(list(itertools.islice(on_device, taken))) == taken
    assert taken == 0 or next(steps, None) is None  # closed; and `no_thread_is_left`


# To the devices.


def shardings(data, tower, shard):
    devices = np.asarray(jax.devices()[: data * tower * shard]).reshape(data, tower, shard)
    mesh = Mesh(devices, ('data', 'tower', 'shard'))
    rows = NamedSharding(mesh, P('data'))
    return Batch(NamedSharding(mesh, P(('data', 'shard', 'tower'))), rows, rows)


def to_one_device(steps, size=2):
    return pipeline.to_device(steps, shardings(1, 1, 1), size)


@pytest.mark.parametrize('size', [1, 2, 3, 50])
def test_on_the_device(dataset, size):
    steps = pipeline.train_batches(dataset, seed=3, batch_size=8, start_step=0, num_steps=20)
    on_device = list(to_one_device(steps, size))
    assert all(isinstance(leaf, jax.Array) for batch in on_device for leaf in batch)
    assert_equal([jax.device_get(batch) for batch in on_device], batches(dataset))


@pytest.mark.parametrize('mesh', [(8, 1, 1), (4, 2, 1), (1, 2, 4)])
def test_each_device_gets_its_rows(dataset, mesh):
    steps = pipeline.train_batches(dataset, seed=3, batch_size=8, start_step=0, num_steps=3)
    want = shardings(*mesh)
    for got, batch in zip(
        pipeline.to_device(steps, want), batches(dataset, num_steps=3), strict=True
    ):
        for array, leaf, sharding in zip(got, batch, want, strict=True):
            assert array.sharding == sharding
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, leaf[shard.index])


# Two processes that hold a tower each (MESH 0), or two copies whose rows alternate (MESH 1): each
# reads what its devices need and checks the rows on its devices; the sum is over all of them.
TWO_PROCESSES = """
import sys
import jax
import numpy as np
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
rank, port = map(int, sys.argv[1:])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, rank)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from alexnet_jax.input import pipeline
from alexnet_jax.input.batch import Batch
from alexnet_jax.input.sources import open_dataset
from tests.input.test_pipeline import section

dataset = open_dataset(section(%r))
arguments = dict(seed=3, batch_size=8, start_step=2, num_steps=2)
whole = list(pipeline.train_batches(dataset, **arguments))
devices = np.array(jax.devices())
for devices, expected in (
    (devices.reshape(1, 2, 2), slice(0, 8)),
    (devices.reshape(2, 2, 1), slice(4 * rank, 4 * rank + 4)),
    (devices.reshape(2, 2).T.reshape(2, 2, 1), slice(0, 8)),
):
    mesh = Mesh(devices, ('data', 'tower', 'shard'))
    labels = NamedSharding(mesh, P('data'))
    shardings = Batch(NamedSharding(mesh, P(('data', 'shard', 'tower'))), labels, labels)
    rows = pipeline.local_rows(shardings, 8)
    assert rows == expected, rows
    steps = pipeline.train_batches(dataset, rows=rows, **arguments)
    got = list(pipeline.to_device(steps, shardings, batch_size=8, rows=rows))
    for batch, want in zip(got, whole, strict=True):
        for array, leaf in zip(batch, want, strict=True):
            assert array.shape == leaf.shape
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, leaf[shard.index])
    sums = jax.jit(lambda batch: batch.images.astype(float).sum())(got[1])
    assert float(sums) == whole[1].images.sum(dtype=float)
print('rank', rank, 'is right')
"""


@pytest.mark.multiprocess
def test_two_processes_read_their_rows(data_dir, dataset):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', TWO_PROCESSES % str(data_dir), str(rank), str(port)],
            cwd=pathlib.Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, output in enumerate(outputs):
        assert f'rank {rank} is right' in output, output


def test_the_next_batch_is_on_its_way():
    made = []

    def steps():
        for step in range(5):
            made.append(step)
            yield Batch(np.full((8, *SHAPE), step, np.uint8), *2 * [np.zeros(8, np.int32)])

    for step, batch in enumerate(to_one_device(steps())):
        assert made[-1] == min(step + 1, 4)
        assert (np.asarray(batch.images) == step).all()
