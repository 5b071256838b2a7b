"""The training error over epochs: means of whole epochs, and when it falls to a given error."""

import numpy as np
import pytest

from alexnet_jax.reports.curves import epoch_means, epochs_to_error, training_error


def test_an_epoch_holds_the_steps_that_end_in_it():
    epochs, values = np.array([0.25, 0.5, 0.75, 1.0, 1.25, 3.0]), np.array([1, 2, 3, 6, 5, 7])
    where, means = epoch_means(epochs, values)
    assert where.tolist() == [0.625, 1.25, 3.0]
    assert means.tolist() == [3.0, 5.0, 7.0]


@pytest.mark.parametrize(
    ('errors', 'epoch'),
    [
        ((0.8, 0.6, 0.4, 0.2, 0.1, 0.1), 1.75 + 0.05 / 0.2),  # 0.7, 0.3, 0.1: between the last two
        ((0.8, 0.6, 0.2, 0.2, 0.9, 0.9), 0.75 + 0.45 / 0.5),  # the first time counts
        ((0.3, 0.2, 0.1, 0.1, 0.1, 0.1), 0.75),  # in the first epoch: its middle
        ((0.8, 0.6, 0.4, 0.2, 0.3, 0.3), None),  # one step of 20 % is no epoch of it
        ((0.8,) * 6 + (0.1,), 2.75 + 0.75 * 0.55 / 0.7),  # half an epoch is one
        ((), None),
    ],
)
def test_the_epoch_at_which_the_training_error_falls_to_25_percent(errors, epoch):
    rows = [{'kind': 'event', 'epoch': 0.0}, {'kind': 'eval', 'epoch': 0.5, 'eval/top1_error': 0.1}]
    rows += [
        {'kind': 'train', 'epoch': (i + 1) / 2, 'train/top1_error': error}
        for i, error in enumerate(errors)
    ]
    assert epochs_to_error(rows, 0.25) == pytest.approx(epoch, abs=1e-12)


def test_a_last_step_that_reaches_into_the_next_epoch_is_no_epoch():
    rows = [
        {'epoch': epoch, 'train/top1_error': error}
        for epoch, error in ((0.34, 0.9), (0.68, 0.7), (1.0, 0.5), (1.02, 0.1))
    ]
    epochs, means = training_error(rows)
    assert means.tolist() == [pytest.approx(0.7)]
    assert epochs.tolist() == [pytest.approx((0.34 + 0.68 + 1.0) / 3)]
    assert epochs_to_error(rows, 0.25) is None
