"""Crops, mirrors, colours and test views against slow NumPy loops; statistics of the draws."""

import functools
import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from alexnet_jax.input.batch import Statistics
from tests import reference

SHAPE = (10, 12, 3)  # not square: y and x cannot be exchanged unseen
CROP = 7
CORNERS = list(itertools.product(range(10 - CROP + 1), range(12 - CROP + 1)))  # 4 x 6
PAPER = reference.augment(crop_px=CROP)
PLAIN = reference.augment(crop_px=CROP, colour_std=0.0)


def statistics(mean_image=None, std=(0.0, 37.0, 121.0), dtype='float32') -> Statistics:
    """Return a mean image, three orthonormal eigenvectors and the given deviations."""
    rng = np.random.default_rng(8)
    mean_image = rng.uniform(60, 180, SHAPE) if mean_image is None else mean_image
    eigenvectors, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return Statistics(*(np.asarray(x, dtype) for x in (mean_image, eigenvectors, std)))


def noise(n: int, shape=SHAPE) -> np.ndarray:
    """Return images in which no two crops are alike, with zeros and 255s."""
    images = np.random.default_rng(9).integers(0, 256, (n, *shape), np.uint8)
    images[:, ::3, ::4], images[:, 1::3, ::4] = 0, 255
    return images


@functools.cache
def jitted(augment):
    return jax.jit(augment.training)


def train(augment, images, stats, seed, rows=None, step=0):
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    key = jax.random.key(seed)
    return np.asarray(jitted(augment)(images, stats, key, rows.astype(np.int32), np.int32(step)))


def explain(output, image, stats, colour):
    """Return all (corner, mirror, residue) for which the output is that crop plus one colour."""
    found = []
    for corner, mirror in itertools.product(CORNERS, (False, True)):
        residue = output - reference.view(image, stats.mean_image, corner, mirror, CROP)
        flat = residue.reshape(-1, 3)
        spread = np.max(np.abs(flat - (flat[0] if colour else 0.0)))
        if spread < 1e-3:
            found.append((corner, mirror, flat.mean(axis=0)))
    return found


def test_a_training_image_is_one_crop_less_the_mean_there_plus_one_colour():
    stats, images = statistics(), noise(12)
    outputs = train(PAPER, images, stats, seed=1)
    assert outputs.shape == (12, CROP, CROP, 3)
    assert outputs.dtype == np.float32
    colours = []
    for image, output in zip(images, outputs, strict=True):
        [(_, _, colour)] = explain(output, image, stats, colour=True)
        colours.append(colour)
    # The first deviation is 0: no colour along the first eigenvector, all of it along the others.
    amounts = np.asarray(colours) @ stats.eigenvectors
    np.testing.assert_allclose(amounts[:, 0], 0, atol=1e-3)
    assert np.all(np.abs(amounts[:, 1:]).max(axis=0) > 1)
    assert len(np.unique(np.round(colours, 3), axis=0)) == 12


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('random_crop', [False, True])
def test_what_is_switched_off_is_left_out(random_crop, mirror):
    augment = reference.augment(
        crop_px=CROP, random_crop=random_crop, mirror=mirror, colour_std=0.0
    )
    stats, images = statistics(), noise(24)
    outputs = train(augment, images, stats, seed=2)
    drawn = []
    for image, output in zip(images, outputs, strict=True):
        [(corner, mirrored, _)] = explain(output, image, stats, colour=False)
        drawn.append((corner, mirrored))
    corners, mirrors = zip(*drawn, strict=True)
    assert set(mirrors) == ({False, True} if mirror else {False})
    if random_crop:
        assert len(set(corners)) > 6
    else:
        assert set(corners) == {(1, 2)}, 'the centre, rounded up and to the left'


def test_bytes_do_not_wrap():
    extremes = np.stack([np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)])
    outputs = train(PLAIN, extremes, statistics(mean_image=np.full(SHAPE, 200.5)), seed=3)
    np.testing.assert_array_equal(outputs[0], -200.5)
    np.testing.assert_array_equal(outputs[1], 54.5)


def test_an_image_depends_on_its_row_and_the_key_alone():
    stats, images = statistics(), noise(6)
    rows = np.asarray([4, 900, 0, 17, 3, 2])
    whole = train(PAPER, images, stats, seed=4, rows=rows)
    turned = train(PAPER, images[::-1], stats, seed=4, rows=rows[::-1])
    np.testing.assert_array_equal(turned[::-1], whole)
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        got = train(PAPER, images[part], stats, seed=4, rows=rows[part])
        np.testing.assert_array_equal(got, whole[part])
    same_image = np.repeat(images[:1], 6, axis=0)
    differ = [train(PAPER, same_image, stats, seed=seed, rows=rows) for seed in (4, 5)]
    assert len(np.unique(np.concatenate(differ).reshape(12, -1), axis=0)) == 12


def test_an_image_does_not_depend_on_how_many_are_made_at_once():
    # A compiler's bug, jax issue 39103, gave the images of large batches one another's colours.
    stats, images = statistics(), noise(1024)
    rows = np.arange(1024)
    whole = train(PAPER, images, stats, seed=11)
    for start in range(0, 1024, 128):
        part = slice(start, start + 128)
        got = train(PAPER, images[part], stats, seed=11, rows=rows[part])
        np.testing.assert_allclose(whole[part], got, atol=1e-4)


# Statistics of the draws: images that name their own pixels, so that each draw can be read off.

N = 20_000
SMALL_STD = np.asarray([0.15, 0.6, 1.0])  # colours stay below half a step of the pixels' code


@pytest.fixture(scope='module')
def draws():
    """Return (corners [N, 2], mirrors [N], amounts [N, 3]) of N images of one step."""
    code = np.zeros(SHAPE, np.uint8)
    code[..., 0] = np.arange(120).reshape(10, 12)
    code[..., 1:] = 100
    stats = statistics(mean_image=np.zeros(SHAPE), std=SMALL_STD)
    outputs = train(PAPER, np.broadcast_to(code, (N, *SHAPE)), stats, seed=6)
    first = np.round(outputs[:, 0, :, 0]).astype(int)
    mirrors = first[:, 0] > first[:, 1]
    corners = np.stack(np.divmod(first.min(axis=1), 12), axis=1)
    pixel = np.where(mirrors, first[:, 0], first.min(axis=1))
    colours = outputs[:, 0, 0] - np.stack([pixel, np.full(N, 100), np.full(N, 100)], axis=1)
    assert np.abs(colours).max() < 0.49
    return corners, mirrors, colours.astype(np.float64) @ stats.eigenvectors


def test_all_corners_and_mirrors_are_equally_probable(draws):
    corners, mirrors, _ = draws
    cells = (corners[:, 0] * 6 + corners[:, 1]) * 2 + mirrors
    counts = np.bincount(cells, minlength=48)
    assert len(counts) == 48
    assert np.all(counts > 0)
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    assert abs(np.mean(mirrors) - 0.5) < 4 * 0.5 / np.sqrt(N)


def test_colour_amounts_are_normal_with_a_tenth_of_each_standard_deviation(draws):
    _, _, amounts = draws
    z = amounts / (0.1 * SMALL_STD)
    standard_error = 1 / np.sqrt(N)
    assert np.all(np.abs(np.mean(z, axis=0)) < 4 * standard_error)
    assert np.all(np.abs(np.std(z, axis=0) - 1) < 4 * standard_error / np.sqrt(2))
    assert np.all(np.abs(np.corrcoef(z.T) - np.eye(3)) < 4 * standard_error)
    for column in z.T:
        assert scipy.stats.kstest(column, 'norm').pvalue > 0.01


def test_colour_crop_and_mirror_are_independent(draws):
    corners, mirrors, amounts = draws
    columns = np.column_stack([corners, mirrors, amounts])
    correlations = np.corrcoef(columns.T) - np.eye(6)
    assert np.all(np.abs(correlations) < 4.5 / np.sqrt(N))


# Test views, Paper 4.1.


def views_of(augment, images, stats, views):
    corners, mirrors = augment.view_corners(images.shape[1:], views)
    assert corners.shape == (views, 2)
    assert mirrors.shape == (views,)
    view = jax.jit(augment.view)
    return [np.asarray(view(images, stats, *v)) for v in zip(corners, mirrors, strict=True)]


def test_ten_views_are_centre_corners_and_their_mirror_images():
    stats, images = statistics(), noise(3)
    outputs = views_of(PAPER, images, stats, 10)
    for i, image in enumerate(images):
        slow = [crop for *_, crop in reference.ten_views(image, stats.mean_image, CROP)]
        assert len({crop.tobytes() for crop in slow}) == 10
        for output, crop in zip(outputs, slow, strict=True):
            np.testing.assert_allclose(output[i], crop, atol=1e-4)
    assert outputs[0].dtype == np.float32


def test_one_view_is_the_plain_centre():
    stats, images = statistics(), noise(3)
    [centre] = views_of(PAPER, images, stats, 1)
    for image, output in zip(images, centre, strict=True):
        slow = reference.view(image, stats.mean_image, (1, 2), False, CROP)
        np.testing.assert_allclose(output, slow, atol=1e-4)


def test_ten_views_without_mirrors_are_five_crops_twice():
    stats, images = statistics(), noise(2)
    augment = reference.augment(crop_px=CROP, mirror=False)
    outputs = views_of(augment, images, stats, 10)
    for i, image in enumerate(images):
        slow = [crop for *_, crop in reference.ten_views(image, stats.mean_image, CROP)][:5] * 2
        np.testing.assert_allclose([output[i] for output in outputs], slow, atol=1e-4)


def test_float64_statistics_give_float64_images(x64):
    stats, images = statistics(dtype='float64'), noise(2)
    outputs = train(PLAIN, images, stats, seed=7)
    assert outputs.dtype == np.float64
    for image, output in zip(images, outputs, strict=True):
        [(corner, mirror, _)] = explain(output, image, stats, colour=False)
        slow = reference.view(image, stats.mean_image, corner, mirror, CROP)
        np.testing.assert_array_equal(output, slow)
    assert train(PAPER, images, stats, seed=7).dtype == np.float64
    slow = [[crop for *_, crop in reference.ten_views(i, stats.mean_image, CROP)] for i in images]
    np.testing.assert_array_equal(
        views_of(PAPER, images, stats, 10), np.swapaxes(np.asarray(slow), 0, 1)
    )
