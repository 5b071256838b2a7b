"""Mixup and cutmix: each image with its neighbour, labels in the same shares, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alexnet_jax.input.augment import partners
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training.step import loss_and_gradients
from tests import reference

SIDE, COUNT = 24, 600
MIXUP, CUTMIX = {'mixup_alpha': 0.4}, {'cutmix_alpha': 1.0}
BOTH = MIXUP | CUTMIX


def mixed(config, images, first=0, seed=1):
    """Return the mixed images and the shares of their own labels."""
    augment = reference.augment(crop_px=SIDE, **config)
    key = jax.random.key(seed)
    rows = np.arange(first, first + len(images), dtype=np.int32)
    both = jax.jit(lambda x, r: (augment.mix(x, key, r), augment.own_shares(key, r, jnp.float32)))
    return map(np.asarray, both(images, rows))


def numbered(count=COUNT):
    """Images of which every pixel is the number of the image."""
    numbers = np.arange(count, dtype=np.float32)
    return np.broadcast_to(numbers[:, None, None, None], (count, SIDE, SIDE, 3)).copy()


def own_weights(outputs):
    """Return the weight of the image itself in each pixel, from mixed `numbered` images."""
    numbers = np.arange(len(outputs), dtype=np.float32)
    other = numbers.reshape(-1, 2)[:, ::-1].reshape(-1)
    own, other = numbers[:, None, None], other[:, None, None]
    assert np.ptp(outputs, axis=-1).max() == 0, 'the channels are mixed alike'
    return (outputs[..., 0] - other) / (own - other)


def is_whole(weights):
    """Say which images have one weight in all pixels."""
    return np.ptp(weights, axis=(1, 2)) < 1e-3


def test_partners_are_the_pairs_of_neighbours():
    np.testing.assert_array_equal(partners(jnp.arange(6)), [1, 0, 3, 2, 5, 4])


def test_mixup_has_one_weight_an_image_from_its_law():
    outputs, shares = mixed(MIXUP, numbered())
    weights = own_weights(outputs)
    assert is_whole(weights).all()
    np.testing.assert_allclose(weights[:, 0, 0], shares, atol=2e-4)
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(shares[::2], shares[1::2])[0, 1]) < 0.15  # each row draws its own


def test_cutmix_takes_one_box_from_the_partner():
    """The box is Yun's: its sides are sqrt(1 - share) before the edges of the image cut it."""
    outputs, shares = mixed(CUTMIX, numbered())
    weights = np.round(own_weights(outputs), 3)
    assert set(np.unique(weights)) == {0, 1}
    np.testing.assert_allclose(weights.mean(axis=(1, 2)), shares, atol=1e-6)
    for taken in weights == 0:
        y, x = np.nonzero(taken)
        if len(y):
            assert taken.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1), 'a rectangle'
    # A box that reaches no edge is a square, of an even side by its definition.
    inner = [
        np.nonzero(taken)
        for taken in weights == 0
        if taken.any()
        and not (taken[0].any() or taken[-1].any() or taken[:, 0].any() or taken[:, -1].any())
    ]
    assert len(inner) > 50
    sides = np.array([np.ptp(y) + 1 for y, _ in inner])
    np.testing.assert_array_equal(sides, [np.ptp(x) + 1 for _, x in inner])
    assert (sides % 2 == 0).all()
    # Without edges the mean share would be 1/2 less what rounding down to even sides takes.
    random = np.random.default_rng(0)
    half = (SIDE * np.sqrt(random.beta(1, 1, 100_000))).astype(int) // 2
    centre = random.integers(0, SIDE, (2, len(half)))
    low, high = np.clip(centre - half, 0, SIDE), np.clip(centre + half, 0, SIDE)
    want = 1 - np.prod(high - low, axis=0) / SIDE**2
    assert scipy.stats.ks_2samp(shares, want).pvalue > 1e-3


def test_with_both_either_has_half_of_the_images():
    outputs, shares = mixed(BOTH, numbered())
    weights = own_weights(outputs)
    np.testing.assert_allclose(weights.mean(axis=(1, 2)), shares, atol=2e-4)
    # An image whose box is empty counts as mixup here: one in 576 or so.
    whole = is_whole(weights).sum()
    assert scipy.stats.binomtest(int(whole), COUNT).pvalue > 1e-3


@pytest.mark.parametrize('config', [MIXUP, CUTMIX, BOTH])
def test_a_row_is_mixed_alike_wherever_it_is_computed(config):
    """The second half of a batch, alone, as another device has it."""
    images = np.random.default_rng(2).normal(size=(COUNT, SIDE, SIDE, 3)).astype(np.float32)
    outputs, shares = mixed(config, images)
    here, of_here = mixed(config, images[COUNT // 2 :], first=COUNT // 2)
    np.testing.assert_array_equal(outputs[COUNT // 2 :], here)
    np.testing.assert_array_equal(shares[COUNT // 2 :], of_here)
    again, _ = mixed(config, images, seed=2)
    assert np.abs(again - outputs).max() > 0.1, 'another step mixes otherwise'


def test_the_loss_is_that_of_the_mixed_labels(x64):
    """Cross-entropy with both labels in their shares, and smoothed, by a loop."""
    model = AlexNet(reference.small_model_config(dropout=0.0))
    params = reference.draw_parameters(model, reference.SMALL_IMAGE, 3)
    images = reference.smooth_images(4, reference.SMALL_IMAGE, seed=4)
    labels, shares = np.asarray([0, 6, 3, 3], np.int32), np.asarray([0.9, 0.25, 0.5, 0.0])
    rows, smoothing = np.arange(4, dtype=np.int32), 0.1

    def run(params):
        return loss_and_gradients(
            *(params, images, labels, rows, jax.random.key(0)),
            model=model,
            label_smoothing=smoothing,
            own_shares=jnp.asarray(shares),
        )

    run = jax.jit(run, compiler_options=reference.QUICK_COMPILE)
    (loss, logits, _), gradients = jax.device_get(run(params))
    want, slope = 0.0, np.zeros(7)
    for i, scores in enumerate(np.asarray(logits)):
        log_p = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
        target = np.full(7, smoothing / 7)
        target[labels[i]] += (1 - smoothing) * shares[i]
        target[labels[i ^ 1]] += (1 - smoothing) * (1 - shares[i])
        want -= (target * log_p).sum() / 4
        slope += (np.exp(log_p) - target) / 4
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(gradients['fc8']['bias'], slope, rtol=1e-9)
