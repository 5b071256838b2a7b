"""What differs from the paper's augmentation, field by field, against loops and SciPy."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from alexnet_jax.input.augment import rotate
from tests import reference
from tests.input.test_augment import CORNERS, CROP, SHAPE, noise, statistics, train, views_of

PLAIN = {'crop_px': CROP, 'colour_std': 0.0}


def slow(image, stats, corner, mirror, mean):
    """Cut, mirror and subtract in the order of `mean`, pixel by pixel."""
    out = np.zeros((CROP, CROP, 3))
    centre = ((SHAPE[0] - CROP) // 2, (SHAPE[1] - CROP) // 2)
    for r, c, channel in np.ndindex(CROP, CROP, 3):
        column = CROP - 1 - c if mirror else c
        value = float(image[corner[0] + r, corner[1] + column, channel])
        if mean == 'at_crop':
            value -= float(stats.mean_image[corner[0] + r, corner[1] + column, channel])
        elif mean == 'centre':
            value -= float(stats.mean_image[centre[0] + r, centre[1] + c, channel])
        else:
            value -= float(np.mean(stats.mean_image[..., channel], dtype=np.float64))
        out[r, c, channel] = value
    return out


def draw(output, image, stats, mean):
    """Return the only (corner, mirror) of which the output is the crop."""
    [found] = [
        (corner, mirror)
        for corner, mirror in itertools.product(CORNERS, (False, True))
        if np.abs(output - slow(image, stats, corner, mirror, mean)).max() < 1e-3
    ]
    return found


@pytest.mark.parametrize('mean', ['at_crop', 'centre', 'channels'])
def test_each_mean_in_training_and_in_views(mean):
    augment, stats, images = reference.augment(**PLAIN, mean=mean), statistics(), noise(8)
    draws = {
        draw(output, image, stats, mean)
        for output, image in zip(train(augment, images, stats, 1), images, strict=True)
    }
    assert len(draws) > 4
    y, x = SHAPE[0] - CROP, SHAPE[1] - CROP
    five = [(y // 2, x // 2), (0, 0), (0, x), (y, 0), (y, x)]
    views = views_of(augment, images[:2], stats, 10)
    for view, (mirror, corner) in zip(views, itertools.product((False, True), five), strict=True):
        for output, image in zip(view, images[:2], strict=True):
            np.testing.assert_allclose(output, slow(image, stats, corner, mirror, mean), atol=1e-4)


@pytest.mark.parametrize('first', [0, 64])
def test_consecutive_images_share_crop_and_mirror_and_no_colour(first):
    stats, images = statistics(), noise(64)
    rows = first + np.arange(64)
    augment = reference.augment(**PLAIN, images_per_crop=32)
    outputs = train(augment, images, stats, 2, rows=rows)
    draws = [draw(o, i, stats, 'at_crop') for o, i in zip(outputs, images, strict=True)]
    assert len(set(draws[:32])) == len(set(draws[32:])) == 1
    assert draws[0] != draws[32]
    coloured = reference.augment(crop_px=CROP, images_per_crop=32)
    colours = (train(coloured, images, stats, 2, rows=rows) - outputs)[:, 0, 0]
    assert len(np.unique(np.round(colours, 3), axis=0)) == 64


def test_colour_noise_ends_at_its_epoch_and_its_divisor_with_it():
    stats, images = statistics(), noise(4)
    plain = train(reference.augment(**PLAIN), images, stats, 3)
    coloured = train(reference.augment(crop_px=CROP), images, stats, 3)
    augment = reference.augment(crop_px=CROP, colour_divisor=1.1, colour_epochs=2.0)  # 20 steps
    for step in (0, 19):
        np.testing.assert_allclose(
            train(augment, images, stats, 3, step=step), coloured / 1.1, rtol=1e-5, atol=1e-4
        )
    for step in (20, 21, 1000):
        np.testing.assert_array_equal(train(augment, images, stats, 3, step=step), plain)
    assert np.abs(coloured - plain).max() > 1
    [view] = views_of(augment, images, stats, 1)
    [want] = views_of(reference.augment(crop_px=CROP), images, stats, 1)
    np.testing.assert_array_equal(view, want)


def test_the_pixels_divisor_is_the_same_in_training_and_in_tests():
    stats, images = statistics(), noise(4)
    whole, divided = (reference.augment(crop_px=CROP, pixel_divisor=d) for d in (1.0, 58.0))
    np.testing.assert_allclose(
        train(divided, images, stats, 4), train(whole, images, stats, 4) / 58, rtol=1e-6
    )
    np.testing.assert_allclose(
        views_of(divided, images, stats, 10),
        np.asarray(views_of(whole, images, stats, 10)) / 58,
        rtol=1e-6,
    )


@pytest.mark.parametrize('degrees', [0.0, 90.0, 17.0, -130.0])
def test_a_rotation_is_scipys(degrees):
    image = noise(1)[0].astype(np.float32)
    got = np.asarray(rotate(image, np.float32(math.radians(degrees))))
    middle = (np.asarray(SHAPE[:2]) - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.asarray([[cos, sin], [-sin, cos]])
    for channel in range(3):
        want = scipy.ndimage.affine_transform(
            np.pad(image[..., channel].astype(np.float64), 1),  # beyond the edge SciPy has no blend
            turn,
            offset=middle + 1 - turn @ (middle + 1),
            order=1,
        )[1:-1, 1:-1]
        np.testing.assert_allclose(got[..., channel], want, atol=0.02)


def test_each_image_is_turned_by_an_angle_of_its_own_within_the_bound():
    """An image whose pixels grow along y shows its angle by its slopes."""
    ramp = np.broadcast_to(10 * np.arange(SHAPE[0])[:, None, None], SHAPE).astype(np.uint8)
    stats = statistics(mean_image=np.zeros(SHAPE))
    images = np.broadcast_to(ramp, (2000, *SHAPE))
    augment = reference.augment(**PLAIN, mirror=False, random_crop=False, rotation_degrees=15.0)
    outputs = train(augment, images, stats, 5)[:, 2:5, 2:5, 0]
    down = (outputs[:, 2, 1] - outputs[:, 0, 1]) / 20
    across = (outputs[:, 1, 2] - outputs[:, 1, 0]) / 20
    angles = np.degrees(np.arctan2(across, down))
    assert np.abs(angles).max() < 15 + 1e-2
    assert scipy.stats.kstest(angles, 'uniform', args=(-15, 30)).pvalue > 0.01
    part = train(augment, images[:40], stats, 5)[:, 2:5, 2:5, 0]
    np.testing.assert_allclose(part, outputs[:40], atol=1e-3)


def test_colour_deviations_are_those_stated_for_imagenet():
    """cuda-convnet2's constants: the noise along each component is a tenth of its deviation."""
    std = np.asarray([19.7208, 37.0939, 121.7801])
    components = np.asarray(
        [(0.41796, -0.81698, 0.39731), (-0.71258, -0.02354, 0.70120), (-0.56351, -0.57618, -0.592)]
    ).T
    stats = statistics(mean_image=np.zeros(SHAPE))
    stats = stats._replace(eigenvectors=components.astype(np.float32), std=std.astype(np.float32))
    n = 20_000
    images = np.broadcast_to(np.uint8(100), (n, *SHAPE))
    colours = train(reference.augment(crop_px=CROP), images, stats, 6)[:, 0, 0] - 100.0
    amounts = colours.astype(np.float64) @ components
    np.testing.assert_allclose(amounts.std(axis=0), 0.1 * std, rtol=4 / math.sqrt(2 * n) + 1e-3)
    covariance = components @ np.diag((0.1 * std) ** 2) @ components.T
    np.testing.assert_allclose(np.cov(colours.T), covariance, atol=0.04 * covariance.max())


def test_groups_are_the_same_on_any_part_of_the_batch():
    stats, images = statistics(), noise(64)
    augment = reference.augment(crop_px=CROP, images_per_crop=32, rotation_degrees=10.0)
    whole = train(augment, images, stats, 7)
    for start in range(0, 64, 16):
        part = slice(start, start + 16)
        got = train(augment, images[part], stats, 7, rows=np.arange(64)[part])
        np.testing.assert_allclose(got, whole[part], atol=1e-4)
