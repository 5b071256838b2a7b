"""Resized crops and changes of colour, of today's recipes, against Pillow and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance

from alexnet_jax.input import augment as augment_lib
from alexnet_jax.runtime.errors import UserError
from tests import reference
from tests.input.test_augment import noise, statistics, train

SIDE, SHAPE, AREA = 20, (60, 80, 3), (0.08, 1.0)
COUNT = 400
PLAIN = {'crop_px': SIDE, 'colour_std': 0.0, 'mirror': False}


def mean_image(shape=SHAPE):
    return statistics(np.random.default_rng(3).uniform(60, 180, shape))


@functools.cache
def boxes(shape=SHAPE[:2], area=AREA, count=4000):
    """Return (top, left, height, width) of many draws."""
    draw = jax.jit(jax.vmap(lambda key: augment_lib.resized_crop_box(key, shape, area)))
    return np.stack(draw(jax.random.split(jax.random.key(0), count)), axis=-1)


def test_the_boxes_lie_in_the_image_and_have_their_share_and_ratio():
    top, left, height, width = boxes().T
    assert top.min() == left.min() == 0
    assert (top + height).max() == SHAPE[0]
    assert (left + width).max() == SHAPE[1]
    share, ratio = height * width / (SHAPE[0] * SHAPE[1]), width / height
    half = 0.5 * (1 / height + 1 / width)  # of rounding to whole pixels
    assert np.all(share >= AREA[0] * (1 - 2 * half))
    assert np.all(share <= 1)
    assert np.all(ratio >= 3 / 4 * (1 - 2 * half))
    assert np.all(ratio <= 4 / 3 * (1 + 2 * half))


def test_share_ratio_and_place_are_uniform():
    """Small boxes always fit, so nothing is drawn again."""
    top, left, height, width = boxes((600, 800), (0.08, 0.4)).T
    share = height * width / (600 * 800)
    log_ratio = np.log(width / height)
    span = np.log(4 / 3)
    uniform = scipy.stats.uniform
    for values, law in (
        (share, uniform(0.08, 0.32)),
        (log_ratio, uniform(-span, 2 * span)),
        ((top + 0.5) / (600 - height + 1), uniform()),
        ((left + 0.5) / (800 - width + 1), uniform()),
    ):
        assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(share, log_ratio)[0, 1]) < 0.06


def test_where_no_box_fits_it_is_the_middle_of_the_image():
    """An image of 1 to 9 has no crop of all its area with a ratio from 3/4 to 4/3."""
    assert set(map(tuple, boxes((20, 180), (1.0, 1.0), 50).tolist())) == {(0, 76, 20, 27)}
    assert set(map(tuple, boxes((180, 20), (1.0, 1.0), 50).tolist())) == {(76, 0, 27, 20)}


@pytest.mark.parametrize('box', [(0, 0, 60, 80), (5, 7, 33, 41), (40, 60, 20, 20), (9, 3, 7, 11)])
def test_resizing_is_pillows(box):
    image = noise(1, SHAPE)[0]
    ours = augment_lib.resized_crop(
        jnp.asarray(image), tuple(map(jnp.int32, box)), SIDE, np.float32
    )
    top, left, height, width = box
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        theirs = plane.resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
        np.testing.assert_allclose(ours[..., channel], np.asarray(theirs), atol=2e-3)


@pytest.mark.parametrize('mirror', [False, True])
def test_each_image_of_a_large_batch_is_its_own_crop_less_that_of_the_mean(mirror):
    """The channels are y, x and the number of the image, from which each box can be read."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    images = np.stack(
        [np.stack([y, x, np.full_like(x, n % 256)], -1) for n in range(COUNT)]
    ).astype(np.uint8)
    config = {**PLAIN, 'resized_crop_area': AREA, 'mirror': mirror}
    nothing = statistics(np.zeros(SHAPE))
    outputs = train(reference.augment(**config), images, nothing, 1)
    np.testing.assert_allclose(
        outputs[..., 2],
        (np.arange(COUNT) % 256)[:, None, None] * np.ones((1, SIDE, SIDE)),
        atol=1e-2,
    )
    middle = outputs[:, SIDE // 4 : -SIDE // 4]  # not beside the image's edges
    height = SIDE * np.diff(middle[..., 0], axis=1).mean(axis=(1, 2))
    width = SIDE * np.diff(outputs[:, :, SIDE // 4 : -SIDE // 4, 1], axis=2).mean(axis=(1, 2))
    share = height * np.abs(width) / (SHAPE[0] * SHAPE[1])
    assert 0.07 < share.min() < 0.15
    assert 0.8 < share.max() < 1.01
    assert np.std(share) > 0.15
    assert (width < 0).any() == mirror
    assert (width > 0).any()
    mean = mean_image()
    less = train(reference.augment(**config), images, mean, 1)
    only = np.broadcast_to(mean.mean_image, images.shape).astype(np.float32)
    of_mean = train(reference.augment(**config), np.round(only).astype(np.uint8), nothing, 1)
    np.testing.assert_allclose(outputs - less, of_mean, atol=0.51)  # the mean was rounded


@pytest.mark.parametrize('factor', [0.0, 0.6, 1.0, 1.4, 3.0])
@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (augment_lib.change_brightness, ImageEnhance.Brightness),
        (augment_lib.change_contrast, ImageEnhance.Contrast),
        (augment_lib.change_saturation, ImageEnhance.Color),
    ],
)
def test_changes_of_colour_are_pillows(ours, theirs, factor):
    """Pillow rounds grey and result to whole numbers, so that they differ by 1 + factor at most."""
    image = noise(1, SHAPE)[0]
    got = ours(jnp.asarray(image, jnp.float32), jnp.float32(factor))
    want = np.asarray(theirs(Image.fromarray(image)).enhance(factor), np.float32)
    assert np.abs(got - want).max() <= 1 + abs(1 - factor) / 2


def test_grey_images_are_their_own_grey():
    image = jnp.asarray(noise(1, (6, 5, 1))[0], jnp.float32)
    np.testing.assert_array_equal(augment_lib.change_saturation(image, jnp.float32(0.3)), image)


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_each_image_has_its_own_factor_between_its_bounds(name):
    """Factors are recovered from pixels that neither end of the range has clipped."""
    images = np.random.default_rng(4).integers(100, 130, (COUNT, SIDE, SIDE, 3), np.uint8)
    nothing = statistics(np.zeros((SIDE, SIDE, 3)))
    outputs = train(reference.augment(**PLAIN, **{name: 0.4}), images, nothing, 5)
    grey = images @ np.array([0.299, 0.587, 0.114])
    base = {
        'brightness': np.zeros_like(grey)[..., None],
        'contrast': np.broadcast_to(
            grey.mean(axis=(1, 2))[:, None, None, None], grey[..., None].shape
        ),
        'saturation': grey[..., None],
    }[name]
    difference = images - base
    factors = np.sum((outputs - base) * difference, axis=(1, 2, 3)) / np.sum(
        difference**2, axis=(1, 2, 3)
    )
    residue = outputs - (base + difference * factors[:, None, None, None])
    assert np.abs(residue).max() < 2e-2
    assert scipy.stats.kstest(factors, scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_colours_change_before_the_mean_is_subtracted():
    image, stats = noise(3, (SIDE, SIDE, 3)), mean_image((SIDE, SIDE, 3))
    config = reference.augment(**PLAIN, brightness=0.5)
    nothing = statistics(np.zeros((SIDE, SIDE, 3)))
    less = train(config, image, nothing, 2) - train(config, image, stats, 2)
    np.testing.assert_allclose(less, np.broadcast_to(stats.mean_image, less.shape), atol=1e-3)


def test_a_resized_crop_that_is_not_random_is_refused():
    with pytest.raises(UserError, match='is for random crops'):
        reference.augment(resized_crop_area=AREA, random_crop=False)
