"""Training error over epochs, out of the rows of a run's metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def epoch_means(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each epoch, the mean of where its steps ended and the mean of their values.

    `epochs` [n] is where each step ended, so epoch e (from 0) holds those in (e, e + 1].
    """
    which = np.ceil(epochs).astype(int) - 1
    of_epoch = [which == epoch for epoch in np.unique(which)]
    where, means = (np.array([x[steps].mean() for steps in of_epoch]) for x in (epochs, values))
    return where, means


def training_error(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each epoch and the mean top-1 error of its logged steps.

    It is of the batches as they were learned from, not of one network on the whole set. An epoch
    with less than half of the steps of another is left out: a last step may reach into the next.
    """
    logged = [(row['epoch'], row['train/top1_error']) for row in rows if 'train/top1_error' in row]
    epochs, errors = np.array(logged, float).reshape(-1, 2).T
    _, which, steps = np.unique(np.ceil(epochs), return_inverse=True, return_counts=True)
    whole = (2 * steps >= steps.max(initial=0))[which]
    return epoch_means(epochs[whole], errors[whole])


def epochs_to_error(rows: Sequence[Mapping[str, Any]], error: float) -> float | None:
    """Return the epoch at which `training_error` falls to `error`; None if it does not.

    Between the means of the epochs are straight lines (Paper, Fig. 1).
    """
    epochs, errors = training_error(rows)
    below = np.flatnonzero(errors <= error)
    if not below.size:
        return None
    around = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.interp(-error, -errors[around], epochs[around]))
