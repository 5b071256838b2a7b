"""Counted errors against sorted scores in NumPy: padding, ties, ten views, missing batches."""

import functools
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.network.model import AlexNet
from alexnet_jax.parallel.collectives import Collectives
from alexnet_jax.training.evaluate import collect, errors_of, eval_step, evaluate, ranking_step
from tests import reference

SHAPE, CROP = (7, 8, 1), 5
AUGMENT = reference.augment(crop_px=CROP)


class Batch(NamedTuple):
    images: Any
    labels: Any
    mask: Any


class Statistics(NamedTuple):
    mean_image: Any
    eigenvectors: Any
    std: Any


class Pixels(NamedTuple):
    """A network whose logits are the crop's first pixels: it can be given any scores, and ties."""

    num_classes: int
    scale: float = 1.0
    collectives: Collectives = Collectives()

    def apply(self, variables, crops, rows):
        del variables
        assert rows.shape == crops.shape[:1]
        pixels = crops.reshape(crops.shape[0], -1)[:, : self.num_classes]
        return pixels * self.scale, {}


def statistics(shape=SHAPE, dtype='float32') -> Statistics:
    mean_image = np.random.default_rng(0).uniform(100, 150, shape).astype(dtype)
    channels = shape[-1]
    return Statistics(mean_image, np.eye(channels, dtype=dtype), np.ones(channels, dtype))


def make_batch(n: int, num_classes: int, levels: int, seed: int, shape=SHAPE) -> Batch:
    """Return random images of a few grey levels, a third of them padding."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, (n, *shape)).astype(np.uint8)
    labels = rng.integers(0, num_classes, n).astype(np.int32)
    return Batch(images, labels, rng.random(n) < 2 / 3)


def count(model, batch, stats, views, augment=AUGMENT, network=()):
    step = functools.partial(eval_step, model=model, augment=augment, views=views)
    jitted = jax.jit(step, compiler_options=reference.QUICK_COMPILE)
    return {
        name: x.item() for name, x in jax.device_get(jitted(dict(network), batch, stats)).items()
    }


def slow_crops(images, mean_image, crop_px):
    """Return [view, image, y, x, channel], the plain centre first."""
    views = [[crop for *_, crop in reference.ten_views(i, mean_image, crop_px)] for i in images]
    return np.swapaxes(np.asarray(views), 0, 1)


def cross_entropy(logits, labels):
    return -np.log(reference.softmax(logits)[np.arange(len(labels)), labels])


def slow_count(logits, batch):
    """Return the sums due to the logits [10, n, classes] of ten views, the centre first."""
    _, labels, mask = batch
    mean = reference.softmax(logits).mean(axis=0)
    return {
        'examples': int(mask.sum()),
        'loss': float(np.sum(cross_entropy(logits[0], labels)[mask])),
        'top1': reference.errors(logits[0], labels, mask, 1),
        'top5': reference.errors(logits[0], labels, mask, 5),
        'top1_10_views': reference.errors(mean, labels, mask, 1),
        'top5_10_views': reference.errors(mean, labels, mask, 5),
    }


def assert_counts(got, want):
    want = {name: want[name] for name in got}
    assert got.pop('loss') == pytest.approx(want.pop('loss'), rel=1e-5)
    assert got == want


def test_errors_are_those_of_sorted_scores_with_ties_by_index():
    batch = make_batch(300, num_classes=12, levels=4, seed=1)  # of 12 scores about 3 share the best
    zero = statistics()._replace(mean_image=np.zeros(SHAPE, np.float32))
    logits = slow_crops(batch.images, zero.mean_image, CROP).reshape(10, 300, -1)[..., :12]
    want = slow_count(logits, batch)
    got = count(Pixels(12), batch, zero, views=1)
    assert got.keys() == {'examples', 'loss', 'top1', 'top5'}
    assert_counts(got, want)
    # The data can tell: other orders of equal scores count other errors.
    reverse = logits[0, :, ::-1], 11 - batch.labels
    assert reference.errors(*reverse, batch.mask, 1) != want['top1']
    assert reference.errors(*reverse, batch.mask, 5) != want['top5']


def test_ten_views_average_the_softmax_outputs():
    batch, stats = make_batch(300, num_classes=12, levels=256, seed=2), statistics()
    crops = slow_crops(batch.images, stats.mean_image, CROP)
    logits = crops.reshape(10, 300, -1)[..., :12] * 0.05
    want = slow_count(logits, batch)
    assert_counts(count(Pixels(12, scale=0.05), batch, stats, views=10), want)
    # The data can tell the mean of the outputs from the mean of the logits and from the centre.
    mean_of_logits = reference.errors(logits.mean(axis=0), batch.labels, batch.mask, 1)
    assert mean_of_logits != want['top1_10_views']
    assert want['top1'] != want['top1_10_views']


def test_padding_is_never_counted():
    batch, stats = make_batch(60, num_classes=12, levels=256, seed=3), statistics()
    model = Pixels(12, scale=0.05)
    centre = slow_crops(batch.images, stats.mean_image, CROP)[0].reshape(60, -1)[:, :12]
    best, worst = centre.argmax(axis=1), centre.argmin(axis=1)
    counts = []
    for padding in (best, worst):
        labels = np.where(batch.mask, batch.labels, padding).astype(np.int32)
        counts.append(count(model, batch._replace(labels=labels), stats, views=10))
    assert counts[0] == counts[1]
    assert counts[0]['examples'] == batch.mask.sum() < 60
    # All labels wrong, real rows and padding: only the real ones are errors. Then all right.
    wrong = batch._replace(labels=worst.astype(np.int32))
    assert count(model, wrong, stats, views=10)['top1'] == batch.mask.sum()
    right = count(model, batch._replace(labels=best.astype(np.int32)), stats, views=10)
    assert right['top1'] == right['top5'] == 0
    nothing = count(model, batch._replace(mask=np.zeros(60, bool)), stats, views=10)
    assert set(nothing.values()) == {0}


def test_what_is_collected_of_each_example_gives_the_errors_that_are_counted():
    """With ties, ten views and padding; the batches keep their order."""
    stats = statistics()._replace(mean_image=np.zeros(SHAPE, np.float32))
    parts = [make_batch(60, num_classes=12, levels=4, seed=seed) for seed in range(3)]
    model: Any = Pixels(12)
    step = jax.jit(functools.partial(ranking_step, model=model, augment=AUGMENT, views=10))
    counts = [count(model, batch, stats, views=10) for batch in parts]
    real = sum(c['examples'] for c in counts)
    rankings, labels = collect(step, {}, typing.cast(Any, stats), parts, real)
    want = np.concatenate([batch.labels[batch.mask] for batch in parts])
    np.testing.assert_array_equal(labels, want)
    got = errors_of(rankings, labels)
    assert list(got) == [f'eval/top{k}_error{views}' for views in ('', '_10_views') for k in (1, 5)]
    for name, error in got.items():
        assert error == sum(c[name[len('eval/') :].replace('_error', '')] for c in counts) / real
    for views, best in rankings.items():
        assert best.shape == (real, 5)
        assert got[f'eval/top1_error{views}'] == np.mean(best[:, 0] != labels)
    with pytest.raises(AssertionError, match=f'evaluated {real} examples of 180'):
        collect(step, {}, typing.cast(Any, stats), parts, 180)


def test_the_mask_may_be_numbers():
    batch, stats = make_batch(60, num_classes=12, levels=256, seed=3), statistics()
    model = Pixels(12, scale=0.05)
    numbers = batch._replace(mask=batch.mask.astype(np.float32))
    assert count(model, numbers, stats, views=1) == count(model, batch, stats, views=1)


def test_fewer_than_five_classes():
    batch, stats = make_batch(60, num_classes=3, levels=256, seed=4), statistics()
    logits = slow_crops(batch.images, stats.mean_image, CROP).reshape(10, 60, -1)[..., :3] * 0.05
    want = slow_count(logits, batch)
    assert want['top5'] == want['top5_10_views'] == 0
    assert want['top1'] > 0
    assert_counts(count(Pixels(3, scale=0.05), batch, stats, views=10), want)


def test_alexnet_is_evaluated_on_the_ten_crops(x64):
    """NumPy cuts the crops and counts; the network only says its logits."""
    shape, crop_px, n = (90, 96, 3), 64, 24
    model = AlexNet(reference.small_model_config())
    params = reference.draw_parameters(model, (crop_px, crop_px, 3), seed=5)
    batch, stats = make_batch(n, 7, levels=256, seed=6, shape=shape), statistics(shape, 'float64')
    augment = reference.augment(crop_px=crop_px)
    crops = slow_crops(batch.images, stats.mean_image, crop_px)
    rows = np.arange(n, dtype=np.int32)
    forward = jax.jit(lambda images: model.apply({'params': params}, images, rows)[0])
    logits = np.asarray([forward(view) for view in crops])
    mean = logits.mean(axis=(0, 1))  # taken away, lest one class be the best of every image
    logits, params['fc8']['bias'] = logits - mean, params['fc8']['bias'] - mean
    batch = batch._replace(labels=logits[0].argmax(axis=1).astype(np.int32))
    want = slow_count(logits, batch)
    assert want['top1'] == 0 < want['top1_10_views'] < 12, 'the data can tell'
    got = count(model, batch, stats, views=10, augment=augment, network=params)
    assert got.pop('loss') == pytest.approx(want.pop('loss'), rel=1e-9)
    assert got == want


# Many batches.


def batches(sizes, padded_to=4):
    """Yield batches that hold `sizes` real examples; `counted` below counts them."""
    for size in sizes:
        yield Batch(None, None, np.arange(padded_to) < size)


def counted(params, batch, stats):
    """Stand in for a compiled evaluation: `params` says how many of a batch are wrong."""
    del stats
    real = int(batch.mask.sum())
    wrong = min(real, params)
    sums = {'examples': real, 'top1': wrong, 'top5': 0, 'loss': 0.5 * real, 'top1_10_views': 1}
    return {name: jnp.asarray(value) for name, value in {**sums, 'top5_10_views': 0}.items()}


@pytest.mark.parametrize('sizes', [[4], [4, 4], [4, 4, 4], [4, 4, 4, 4, 4, 4, 1]])
def test_every_batch_counts_once(sizes):
    metrics = evaluate(counted, 1, None, batches(sizes), num_examples=sum(sizes))
    assert metrics == {
        'eval/loss': 0.5,
        'eval/top1_error': len(sizes) / sum(sizes),
        'eval/top5_error': 0.0,
        'eval/top1_error_10_views': len(sizes) / sum(sizes),
        'eval/top5_error_10_views': 0.0,
    }


@pytest.mark.parametrize('sizes', [[4, 4], [4, 4, 4, 4], [4, 4, 3, 0]], ids=str)
def test_another_number_of_examples_is_refused(sizes):
    with pytest.raises(AssertionError, match=f'evaluated {sum(sizes)} examples of 12'):
        evaluate(counted, 1, None, batches(sizes), num_examples=12)


@pytest.mark.parametrize('after', [0, 1, 3])
def test_a_stop_ends_the_evaluation_without_a_result(after):
    asked = []
    taken = []

    def stop():
        asked.append(None)
        return len(asked) > after

    def many():
        for _ in range(20):
            taken.append(None)
            yield from batches([4])

    assert evaluate(counted, 1, None, many(), num_examples=12, stop=stop) is None
    assert len(taken) == after + 1


def test_real_steps_over_batches_give_the_errors_of_the_whole():
    """Seven examples in batches of three, the last padded with labels that would be right."""
    whole, stats = make_batch(7, num_classes=12, levels=256, seed=7), statistics()
    model, real = Pixels(12, scale=0.05), np.ones(7, bool)
    logits = slow_crops(whole.images, stats.mean_image, CROP).reshape(10, 7, -1)[..., :12] * 0.05
    want = slow_count(logits, whole._replace(mask=real))
    padded = [0, 1, 2, 3, 4, 5, 6, 6, 6]
    labels = np.concatenate([whole.labels, [logits[0, 6].argmax()] * 2]).astype(np.int32)
    parts = [
        Batch(whole.images[padded[i : i + 3]], labels[i : i + 3], np.arange(i, i + 3) < 7)
        for i in (0, 3, 6)
    ]
    step = jax.jit(
        functools.partial(eval_step, model=typing.cast(Any, model), augment=AUGMENT, views=10)
    )
    metrics = evaluate(step, {}, stats, parts, num_examples=7)
    assert metrics is not None
    assert metrics.pop('eval/loss') == pytest.approx(want['loss'] / 7, rel=1e-5)
    assert metrics == {
        'eval/top1_error': want['top1'] / 7,
        'eval/top5_error': want['top5'] / 7,
        'eval/top1_error_10_views': want['top1_10_views'] / 7,
        'eval/top5_error_10_views': want['top5_10_views'] / 7,
    }
