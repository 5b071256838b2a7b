"""Mean image and covariance against NumPy in float64 on the whole array; the file of them."""

import logging

import numpy as np
import pytest

from alexnet_jax.input import stats


class Images:
    """A split in memory that counts how often it is read."""

    def __init__(self, images):
        self.images, self.reads = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return {'image': self.images[index], 'label': np.int32(0)}


def photos(count, shape, seed=0):
    """Return images whose channels go together, as those of photographs do, black and white too."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(-60, 320, (count, *shape[:2], 1))
    colour = rng.integers(-25, 25, (count, *shape))
    return np.clip(grey + colour * np.arange(1, shape[2] + 1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize('channels', [1, 2, 3])
@pytest.mark.parametrize('count', [1, 16, 37])
def test_against_numpy(count, channels):
    images = photos(count, (7, 5, channels))
    statistics = stats.compute_statistics(Images(images))
    mean = images.astype(np.float64).mean(0)
    covariance = np.cov(images.reshape(-1, channels).T.astype(np.float64), bias=True)
    covariance = covariance.reshape(channels, channels)
    assert all(array.dtype == np.float32 for array in statistics)
    np.testing.assert_allclose(statistics.mean_image, mean, rtol=1e-7)

    vectors, std = statistics.eigenvectors.astype(np.float64), statistics.std.astype(np.float64)
    assert (np.diff(std) >= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(channels), atol=1e-6)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(vectors * std**2 @ vectors.T, covariance, atol=1e-6 * scale)
    np.testing.assert_allclose(std, np.sqrt(np.linalg.eigvalsh(covariance)), rtol=1e-5)
    assert (vectors.max(0) == np.abs(vectors).max(0)).all()  # the sign


def test_one_colour_has_no_spread():
    statistics = stats.compute_statistics(Images(np.full((3, 4, 4, 3), 255, np.uint8)))
    assert (statistics.mean_image == 255).all()
    assert (statistics.std == 0).all()


def test_large_sums_are_exact():
    # Bright and even: E[x^2] is near 64,000 and the variance near 1, of which float32 loses much.
    images = np.random.default_rng(0).integers(251, 255, (40, 100, 90, 3)).astype(np.uint8)
    covariance = np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True)
    statistics = stats.compute_statistics(Images(images))
    np.testing.assert_allclose(statistics.std**2, np.linalg.eigvalsh(covariance), rtol=1e-6)


@pytest.mark.parametrize('read_threads', [2, 5])
def test_threads_and_order_do_not_matter(read_threads):
    images = photos(50, (9, 8, 3))
    once = stats.compute_statistics(Images(images))
    for again in (images, images[::-1]):
        for a, b in zip(once, stats.compute_statistics(Images(again), read_threads), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def load(split, directory, name='train'):
    fingerprint = {'split': name, 'examples': len(split)}
    return stats.load_or_compute(split, directory=directory, fingerprint=fingerprint)


def equal(a, b):
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def test_kept_beside_the_data(tmp_path):
    split = Images(photos(20, (4, 4, 3)))
    first = load(split, tmp_path)
    (file,) = tmp_path.iterdir()  # no temporary file is left
    assert file.name.startswith('statistics_')
    assert file.suffix == '.npz'
    content, split.reads = file.read_bytes(), 0
    assert equal(load(split, tmp_path), first)
    assert split.reads == 0
    other = Images(photos(20, (4, 4, 3), seed=1))
    assert not equal(load(other, tmp_path, 'train[:50%]'), first)
    assert file.read_bytes() == content
    assert equal(load(split, tmp_path), first)


@pytest.mark.fault
@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'text', 'object'])
def test_a_damaged_file_is_computed_again(tmp_path, caplog, damage):
    split = Images(photos(20, (4, 4, 3)))
    first = load(split, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    damaged = {'cut': content[: len(content) // 2], 'flip': content, 'empty': b'', 'text': b'no'}
    if damage == 'object':
        np.savez(file, mean_image=np.array([{}]), eigenvectors=np.eye(3), std=np.ones(3))
    else:
        file.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING, 'alexnet_jax'):
        assert equal(load(split, tmp_path), first)
    assert [str(file) in message for message in caplog.messages] == [True]
    split.reads = 0
    assert equal(load(split, tmp_path), first)
    assert split.reads == 0


def test_a_directory_that_cannot_be_written(tmp_path, caplog):
    split = Images(photos(20, (4, 4, 3)))
    with caplog.at_level(logging.WARNING, 'alexnet_jax'):
        statistics = load(split, tmp_path / 'gone')  # modes do not stop root, so a missing one
    assert equal(statistics, stats.compute_statistics(split))
    assert ['gone' in message for message in caplog.messages] == [True]
    assert not list(tmp_path.iterdir())
