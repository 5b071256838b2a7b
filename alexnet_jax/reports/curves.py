"""Compute the training error over epochs from the rows of a run's metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def epoch_means(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean position of the steps of each epoch, and the mean of their values.

    `epochs` [n] gives the position at the end of each step, so that epoch e (from 0) has the steps
    in (e, e + 1].
    """
    which = np.ceil(epochs).astype(int) - 1
    of_epoch = [which == epoch for epoch in np.unique(which)]
    where, means = (np.array([x[steps].mean() for steps in of_epoch]) for x in (epochs, values))
    return where, means


def training_error(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each epoch and the mean top-1 error of its logged steps.

    The error is measured during training, not by one network on the whole data set. An epoch with
    less than half of the steps of the longest is left out, because the last step may reach into
    another epoch.
    """
    logged = [(row['epoch'], row['train/top1_error']) for row in rows if 'train/top1_error' in row]
    epochs, errors = np.array(logged, float).reshape(-1, 2).T
    _, which, steps = np.unique(np.ceil(epochs), return_inverse=True, return_counts=True)
    whole = (2 * steps >= steps.max(initial=0))[which]
    return epoch_means(epochs[whole], errors[whole])


def epochs_to_error(rows: Sequence[Mapping[str, Any]], error: float) -> float | None:
    """Return the epoch at which `training_error` falls to `error`, or None if it does not.

    The means of the epochs are interpolated linearly (Paper, Fig. 1).
    """
    epochs, errors = training_error(rows)
    below = np.flatnonzero(errors <= error)
    if not below.size:
        return None
    around = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.interp(-error, -errors[around], epochs[around]))
