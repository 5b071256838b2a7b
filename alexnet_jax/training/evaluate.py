"""Evaluate exact top-1 and top-5 errors, with one centre crop or with the paper's ten views."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import split_network
from alexnet_jax.runtime.config import PLACE, SCHEDULE, Section, field, integer, one_of, text
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.storage import path_field, paths_field
from alexnet_jax.training import guard
from alexnet_jax.training.step import copy_rows

_IN_FLIGHT = 2  # batches on the devices at a time; more would only use up their memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """The section `evaluation`."""

    batch_size: int = field(integer(1), role=PLACE)
    views: int = field(one_of(1, 10), role=SCHEDULE)
    final_views: int = field(one_of(1, 10), role=SCHEDULE)
    checkpoint: str = field(one_of('latest', 'best'), role=SCHEDULE)
    ensemble: tuple[str, ...] = field(paths_field, role=SCHEDULE)
    ensemble_weights: str = field(one_of('mean', 'search'), role=SCHEDULE)
    ensemble_search_split: str = field(text, role=SCHEDULE)
    ensemble_dir: str = field(path_field, role=PLACE)

    def check(self) -> None:
        """Raise UserError if there is a split to search weights on but no search."""
        if self.ensemble_search_split and self.ensemble_weights == 'mean':
            raise UserError(
                'config.evaluation.ensemble_search_split is not used by ensemble_weights = '
                "'mean'; set ensemble_weights='search' or remove the split"
            )


def eval_step(
    network: Any,
    batch: Batch,
    statistics: Statistics,
    *,
    model: AlexNet,
    augment: Augment,
    views: int,
) -> dict[str, jax.Array]:
    """Count the errors of one batch on one device.

    Args:
      network: this device's shards of `TrainState.network`.
      batch: images [rows of this device, H, W, C], labels and mask [rows of this copy].
      statistics: the same on every device.
      model, augment: built from their sections of the configuration.
      views: 1, or 10 to evaluate the mean of ten views' softmax outputs as well (Paper 4.1).

    Returns:
      Sums over the global batch: the number of `examples`, and for the centre crop the errors
      `top1` and `top5` (int32) and the `loss` (float); with ten views also the errors
      `top1_10_views` and `top5_10_views`.
    """
    logits = _logits(network, batch, statistics, model, augment, views)
    real = batch.mask.astype(bool)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[0], batch.labels)
    sums = {
        'examples': jnp.sum(real, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(real, losses, 0)),
        **_errors(logits[0], batch.labels, real, ''),
    }
    if views == 10:
        probabilities = jnp.mean(jax.nn.softmax(logits), axis=0)
        sums |= _errors(probabilities, batch.labels, real, '_10_views')
    return model.collectives.sum_over_data(sums)


def probability_step(
    network: Any,
    batch: Batch,
    statistics: Statistics,
    *,
    model: AlexNet,
    augment: Augment,
    views: int,
) -> dict[str, jax.Array]:
    """Return the softmax outputs of one batch on one device; the arguments are `eval_step`'s.

    Returns:
      float [rows of this copy, classes]: under `''` those of the centre crop, and with ten views
      under `'_10_views'` their mean (Paper 4.1).
    """
    outputs = jax.nn.softmax(_logits(network, batch, statistics, model, augment, views))
    return {'': outputs[0]} | ({'_10_views': jnp.mean(outputs, axis=0)} if views == 10 else {})


def _logits(
    network: Any, batch: Batch, statistics: Statistics, model: AlexNet, augment: Augment, views: int
) -> jax.Array:
    """Return the logits of each view, the centre first: [views, rows of this copy, classes]."""
    images = model.collectives.gather_images(batch.images)
    rows = copy_rows(model, batch.labels.shape[0])

    def logits_of(view):
        crops = augment.view(images, statistics, *view)
        return model.apply(split_network(network), crops, rows)[0]

    return jax.lax.map(logits_of, augment.view_corners(images.shape[1:], views))


def _errors(
    scores: jax.Array, labels: jax.Array, real: jax.Array, suffix: str
) -> dict[str, jax.Array]:
    """Count the top-1 and top-5 errors; of equal scores the lower index ranks first."""
    _, best = jax.lax.top_k(scores, min(5, scores.shape[-1]))
    hits = best == labels[:, None]
    return {
        f'top1{suffix}': jnp.sum(real & ~hits[:, 0], dtype=jnp.int32),
        f'top5{suffix}': jnp.sum(real & ~jnp.any(hits, axis=-1), dtype=jnp.int32),
    }


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    network: Any,
    statistics: Statistics,
    batches: Iterable[Batch],
    num_examples: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluate every example exactly once and return the metrics, `eval/top1_error` and so on.

    Returns None if `stop` returned True midway. Raises AssertionError if the number of examples
    counted is not `num_examples`.
    """
    totals: collections.Counter = collections.Counter()
    pending: collections.deque = collections.deque()
    for batch in itertools.chain(batches, [None] * _IN_FLIGHT):
        guard.expect('a batch of the evaluation', slow=True)
        if stop():
            return None
        if batch is not None:
            pending.append(step(network, batch, statistics))
        if pending and (batch is None or len(pending) > _IN_FLIGHT):
            totals.update({k: v.item() for k, v in jax.device_get(pending.popleft()).items()})
    examples = totals.pop('examples')
    assert examples == num_examples, f'evaluated {examples} examples of {num_examples}'
    loss = totals.pop('loss') / examples
    by_length = sorted(totals.items(), key=lambda item: (len(item[0]), item[0]))  # one crop first
    errors = {f'eval/{name[:4]}_error{name[4:]}': count / examples for name, count in by_length}
    return {'eval/loss': loss, **errors}
