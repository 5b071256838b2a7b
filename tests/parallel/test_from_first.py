"""What process 0 makes for all: two threads stand for two processes."""

import threading

import numpy as np
import pytest

from alexnet_jax.input import stats
from alexnet_jax.parallel import processes
from alexnet_jax.runtime.errors import UserError


@pytest.fixture
def both(monkeypatch):
    """Run a function in two threads, each a process; return what each returns or raises."""
    number = threading.local()
    barrier = threading.Barrier(2, timeout=10)
    sent = []

    def broadcast(value):
        if number.value == 0:
            sent[:] = [np.array(value)]
        barrier.wait()
        assert np.shape(value) == sent[0].shape, 'as in JAX, the shapes must agree'
        got = sent[0].copy()
        barrier.wait()
        return got

    monkeypatch.setattr(processes.multihost_utils, 'broadcast_one_to_all', broadcast)
    monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(processes.jax, 'process_index', lambda: number.value)

    def run(function):
        results = {}

        def process(index):
            number.value = index
            try:
                results[index] = function(index)
            except Exception as error:
                results[index] = error
                if not isinstance(error, UserError):
                    barrier.abort()

        threads = [threading.Thread(target=process, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results[0], results[1]

    return run


@pytest.mark.parametrize('answer', [b'', b'd', b'f', b'x' * 1024, bytes(range(256)) * 9])
def test_the_bytes_of_process_0_reach_all(both, answer):
    answers = both(lambda i: processes.bytes_from_first(lambda _: answer if i == 0 else b'other'))
    assert answers == (answer, answer)


def test_a_json_value_and_a_mistake_of_process_0_reach_all(both):
    value = {'a': [1, None, 'ü']}
    assert both(lambda i: processes.from_first(lambda: value)) == (value, value)

    def fail():
        raise UserError('mend it')

    errors = both(lambda i: processes.from_first(fail))
    assert [(type(e), str(e)) for e in errors] == 2 * [(UserError, 'mend it')]


def test_who_waits_hears_that_process_0_gets_on(both, monkeypatch):
    """Without news for 10 s nothing is sent; here each part is news."""
    monkeypatch.setattr(processes, '_NEWS_S', 0.0)
    heard = {0: 0, 1: 0}

    def process(index):
        def note():
            heard[index] += 1

        def make(progress):
            assert index == 0
            for _ in range(5):
                progress()
            return b'done'

        return processes.bytes_from_first(make, note)

    assert both(process) == (b'done', b'done')
    assert heard == {0: 5, 1: 5}


class Images:
    def __init__(self, images):
        self.images, self.reads = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return {'image': self.images[index]}


def test_the_statistics_are_computed_by_process_0_alone(both, tmp_path):
    """Each process has a directory of its own, as on disks of the machines themselves."""
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 4, 3)).astype(np.uint8)
    splits = [Images(images), Images(images)]

    def process(index):
        directory = tmp_path / str(index)
        directory.mkdir(exist_ok=True)
        return stats.load_or_compute(splits[index], directory=directory, fingerprint={'a': 1})

    first, second = both(process)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_allclose(first.mean_image, images.mean(0), rtol=1e-6)
    assert splits[0].reads > 0
    assert splits[1].reads == 0
    assert len(list((tmp_path / '0').iterdir())) == 1
    assert not list((tmp_path / '1').iterdir())
    splits[0].reads = 0
    both(process)
    assert splits[0].reads == 0
