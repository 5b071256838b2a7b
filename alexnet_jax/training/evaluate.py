"""Evaluate exact top-1 and top-5 errors, with one centre crop or with the paper's ten views."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import split_network
from alexnet_jax.parallel import processes
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
    report_dir: str = field(path_field, role=PLACE, off='')

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
    }
    for suffix, best in _rankings(logits).items():
        sums |= _errors(best, batch.labels, real, suffix)
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


def ranking_step(
    network: Any,
    batch: Batch,
    statistics: Statistics,
    *,
    model: AlexNet,
    augment: Augment,
    views: int,
) -> dict[str, jax.Array]:
    """Return the five best classes of each example of one batch; the arguments are `eval_step`'s.

    Returns:
      int32 [rows of this copy, 5], the best class first: under `''` those of the centre crop, and
      with ten views under `'_10_views'` those of the mean of their softmax outputs. `eval_step`
      counts its errors in the same classes. They are fewer where the network has fewer classes.
    """
    return _rankings(_logits(network, batch, statistics, model, augment, views))


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


def _rankings(logits: jax.Array) -> dict[str, jax.Array]:
    """Return the five best classes by the logits of the first view, and by the mean of ten views.

    Of classes with equal scores the one with the lower index ranks first. Where a score is not
    finite, all five are -1, so that the example counts as wrong.
    """
    scores = {'': logits[0]}
    if len(logits) == 10:
        scores['_10_views'] = jnp.mean(jax.nn.softmax(logits), axis=0)

    def best(s: jax.Array) -> jax.Array:
        finite = jnp.all(jnp.isfinite(s), axis=-1, keepdims=True)
        return jnp.where(finite, jax.lax.top_k(s, min(5, s.shape[-1]))[1], jnp.int32(-1))

    return {suffix: best(s) for suffix, s in scores.items()}


def require_finite_outputs(network: str, finite: bool) -> None:
    """Raise UserError, naming the network, unless all of its outputs are finite."""
    if not finite:
        raise UserError(
            f'the outputs of {network} are not finite for some images, so they are no predictions; '
            'choose another checkpoint, or a config.model.dtype with a wider range'
        )


def _errors(
    best: jax.Array, labels: jax.Array, real: jax.Array, suffix: str
) -> dict[str, jax.Array]:
    """Count the top-1 and top-5 errors."""
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


def collect(
    step: Callable[..., dict[str, jax.Array]],
    network: Any,
    statistics: Statistics,
    batches: Iterable[Batch],
    num_examples: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what `step` returns for each example, and the labels, in the order of the split.

    `step` is the compiled `probability_step` or `ranking_step`. Raises AssertionError if the number
    of examples is not `num_examples`.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        guard.expect('a batch of the evaluation', slow=True)
        outputs = step(network, batch, statistics)
        real = processes.whole(batch.mask)
        for name, array in {**outputs, 'labels': batch.labels}.items():
            parts.setdefault(name, []).append(processes.whole(array)[real])
    whole = {name: np.concatenate(rows) for name, rows in parts.items()}
    labels = whole.pop('labels')
    assert len(labels) == num_examples, f'evaluated {len(labels)} examples of {num_examples}'
    return whole, labels


def errors_of(rankings: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Return the errors of the rankings of all examples, named and computed as by `evaluate`."""
    errors: dict[str, float] = {}
    for suffix, best in rankings.items():
        hits = best == labels[:, None]
        errors[f'eval/top1_error{suffix}'] = float(np.mean(~hits[:, 0]))
        errors[f'eval/top5_error{suffix}'] = float(np.mean(~hits.any(axis=1)))
    return errors


def errors_in(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the errors among the metrics of an evaluation without `eval/` in their names."""
    return {name[len('eval/') :]: x for name, x in metrics.items() if name != 'eval/loss'}


def words(metrics: Mapping[str, float]) -> str:
    """Return the errors among the metrics as they are printed: `top1_error X top5_error Y`."""
    return ' '.join(f'{name} {value:.4f}' for name, value in errors_in(metrics).items())
