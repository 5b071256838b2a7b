"""Check that a configuration can learn one batch, and name the likely cause if it cannot."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.input import pipeline
from alexnet_jax.input.batch import Batch
from alexnet_jax.parallel.collectives import Collectives
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import guard
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import Experiment
from alexnet_jax.training.step import TrainState

_BETTER_THAN_CHANCE = 0.8  # of the loss of the best prediction that ignores the images
_MEAN_OF = 5  # steps, because dropout makes the loss of a single step jump
_INSPECTED = 128  # images
# The limits beyond which a value is suspicious.
_PIXEL_STD = (5.0, 500.0)  # it is about 60 for photographs less their mean, on the 0-255 scale
_MAX_LOSS = 3.0  # before the first step, as a multiple of the loss at chance
_DEAD = 0.9  # fraction of a layer's units
_MIN_SPREAD = 1e-3  # standard deviation of the outputs between images, relative to the outputs
_UPDATE = (1e-5, 0.1)  # change of a layer's weights in one step, relative to the weights

# The remedies for initializers that do not use init_std.
_DIVIDE = 'divide the pixels (config.augment.pixel_divisor, 58 for photographs) or lower the rate'
_OTHER_INITIALIZER = "set config.model.initializer='normal' and each layer's init_std"


class Layer(NamedTuple):
    """The statistics of one layer's outputs and gradient."""

    scale: float  # root mean square of its outputs: after the ReLU, or the logits for fc8
    differ: float  # standard deviation of the outputs between images, relative to `scale`
    dead: float  # fraction of its units that are 0 for every image at every position; 0 for fc8
    gradient: float  # root mean square of its kernel's gradient, relative to the kernel's


class Snapshot(NamedTuple):
    """The statistics of the network at one step, without dropout and augmentation."""

    loss: float
    pixel_std: float
    layers: dict[str, Layer]


class Trace(NamedTuple):
    """The course of training on one batch."""

    losses: list[float]  # of each step, as trained
    chance_loss: float  # of the best prediction that ignores the images: the labels' entropy
    before: Snapshot
    after: Snapshot
    updates: dict[str, float]  # the largest relative change of each kernel in one step


def check(experiment: Experiment, steps: int) -> None:
    """Train on the first batch only, print a table of the layers, and say whether the loss falls.

    The network does better than chance when its loss falls well below that of the best prediction
    that ignores the images, which is the frequencies of the labels. Nothing is saved.

    Raises UserError, with the most likely cause in one line, when the loss does not fall so far.
    """
    if jax.process_count() > 1:
        raise UserError('--mode=check runs in one process; leave out --distributed')
    config = experiment.config
    trace = run(experiment, steps)
    if trace.chance_loss == 0:
        raise UserError(
            f'all {config.training.batch_size} images of the first batch have the same label, so '
            'there is nothing to learn; raise config.training.batch_size'
        )
    print('\n'.join(_table(trace)))
    loss = min(_mean(trace.losses), trace.after.loss)
    words = (
        f'the loss is {loss:.3f} after {len(trace.losses)} steps on one batch, and '
        f'{trace.chance_loss:.3f} for a prediction that ignores the images'
    )
    if not beats_chance(trace):
        raise UserError(f'the network barely beats chance: {words}; {diagnose(trace, config)}')
    print(f'the network beats chance: {words}')


def run(experiment: Experiment, steps: int) -> Trace:
    """Train on the first batch until the loss beats chance or is not finite, or for `steps`."""
    batch = _first_batch(experiment)
    batches = pipeline.to_device((b for b in [batch]), experiment.batch_shardings)
    with contextlib.closing(batches):
        on_device = next(batches)
    state = experiment.init_state()
    before = _snapshot(experiment, state, batch)
    shares = np.unique(batch.labels, return_counts=True)[1] / len(batch.labels)
    chance_loss = float(-np.sum(shares * np.log(shares)))
    losses: list[float] = []
    updates: dict[str, float] = {}
    for step in range(1, steps + 1):
        guard.expect(f'step {step} of the check', slow=True)
        old = jax.device_get(state.params) if step in (1, steps) else None
        state, metrics = experiment.train_step(state, on_device, experiment.statistics)
        losses.append(metrics['train/loss'].item())
        if old:
            new = _relative_updates(old, jax.device_get(state.params))
            updates = {name: max(size, updates.get(name, 0.0)) for name, size in new.items()}
        if not math.isfinite(losses[-1]) or _beats(losses, chance_loss):
            break
    after = _snapshot(experiment, state, batch)
    return Trace(losses, chance_loss, before, after, updates)


def diagnose(trace: Trace, config: Config) -> str:
    """Return the first finding and its remedy in one line; causes come before their effects."""
    return next(_findings(trace, config))


def _findings(trace: Trace, config: Config) -> Iterator[str]:
    before, after, rate = trace.before, trace.after, config.optim.learning_rate
    low, high = _PIXEL_STD
    normal = config.model.initializer == 'normal'  # the other initializers ignore init_std
    if normal and not low < before.pixel_std < high:
        yield (
            f'the pixels that the network sees have a standard deviation of {before.pixel_std:.3g},'
            f' but init_std is chosen for about 60 on the 0-255 scale; do not divide the pixels '
            f'(config.augment.pixel_divisor), or raise config.model.conv1.init_std'
        )
    for name, layer in before.layers.items():
        if layer.dead > _DEAD:
            yield (
                f'{layer.dead:.0%} of the units of {name} are 0 for every image before the first '
                f'step; raise config.model.{name}.init_bias'
                + (', or change its init_std' if normal else '')
            )
    chance = math.log(config.model.num_classes)
    if not before.loss < _MAX_LOSS * chance:
        scales = ', '.join(f'{name} {layer.scale:.3g}' for name, layer in before.layers.items())
        remedy = 'lower init_std where the outputs grow' if normal else _DIVIDE
        yield (
            f'the loss is {before.loss:.3g} before the first step, but chance is {chance:.3g}; '
            f'{remedy} (root mean square of the outputs: {scales})'
        )
    for name, layer in before.layers.items():
        if layer.differ < _MIN_SPREAD:
            yield (
                f'the outputs of {name} differ by only {layer.differ:.1g} of their size between '
                f'images, so this layer loses the images; '
                + (f'raise config.model.{name}.init_std' if normal else _OTHER_INITIALIZER)
            )
    largest = max(trace.updates, key=lambda name: trace.updates[name])
    size = trace.updates[largest]
    if size == 0:
        yield f'no weight changes in a step; raise config.optim.learning_rate = {rate:g}'
    if size < _UPDATE[0]:
        yield (
            f'one step changes no layer by more than {size:.1g} of its weights ({largest}); raise '
            f'config.optim.learning_rate = {rate:g}'
        )
    if not math.isfinite(trace.losses[-1]) or not size < _UPDATE[1]:
        yield (
            f'the loss ends at {trace.losses[-1]:.3g}, and one step changes {largest} by '
            f'{size:.2g} of its weights; lower config.optim.learning_rate = {rate:g}'
        )
    for name, layer in after.layers.items():
        if layer.dead > _DEAD:
            yield (
                f'{layer.dead:.0%} of the units of {name} are dead after training; lower '
                f'config.optim.learning_rate = {rate:g}'
            )
    if config.model.dropout > 0:
        yield (
            f'the pixels, layers and updates look normal; the cause may be the noise of '
            f'config.model.dropout = {config.model.dropout:g}: set it to 0 for this check, or '
            f'raise --check_steps'
        )
    yield 'the pixels, layers and updates look normal; raise --check_steps'


def _mean(losses: Sequence[float]) -> float:
    return sum(losses[-_MEAN_OF:]) / len(losses[-_MEAN_OF:])


def _beats(losses: Sequence[float], chance_loss: float) -> bool:
    return len(losses) >= _MEAN_OF and _mean(losses) < _BETTER_THAN_CHANCE * chance_loss


def beats_chance(trace: Trace) -> bool:
    """Say whether the loss is well below chance, in training or evaluated without dropout."""
    evaluated = trace.after.loss < _BETTER_THAN_CHANCE * trace.chance_loss
    return evaluated or _beats(trace.losses, trace.chance_loss)


def _first_batch(experiment: Experiment) -> Batch:
    """Return the batch of the first step, on the host."""
    assert experiment.dataset is not None
    config = experiment.config
    batches = pipeline.train_batches(
        experiment.dataset,
        seed=config.seed,
        batch_size=config.training.batch_size,
        start_step=0,
        num_steps=1,
    )
    with contextlib.closing(batches):
        return next(batches)


def _snapshot(experiment: Experiment, state: TrainState, batch: Batch) -> Snapshot:
    """Compute the statistics on one device, from the centre crops of the first images."""
    model = experiment.model.clone(collectives=Collectives())
    images, labels = batch.images[:_INSPECTED], batch.labels[:_INSPECTED]
    params, batch_stats = jax.device_get((state.params, state.batch_stats))
    layers = [name for name, leaves in params.items() if 'kernel' in leaves]
    statistics = jax.device_get(experiment.statistics)
    view = [x[0] for x in experiment.augment.view_corners(images.shape[1:], 1)]

    @jax.jit
    def forward_and_back(params: Any, images: Any, labels: Any) -> Any:
        crops = experiment.augment.view(images, statistics, *view)

        def loss_fn(params: Any) -> Any:
            rows = jnp.arange(len(labels), dtype=jnp.int32)
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, seen = model.apply(variables, crops, rows)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            units = {name: seen.get(name.replace('conv', 'relu'), seen[name]) for name in layers}
            return jnp.mean(losses), units

        (loss, seen), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, jnp.std(crops), seen, gradients

    loss, pixel_std, seen, gradients = jax.device_get(forward_and_back(params, images, labels))
    return Snapshot(
        loss=float(loss),
        pixel_std=float(pixel_std),
        layers={
            name: _layer(name, seen[name], params[name]['kernel'], gradients[name]['kernel'])
            for name in layers
        },
    )


def _layer(name: str, outputs: np.ndarray, kernel: np.ndarray, gradient: np.ndarray) -> Layer:
    outputs = outputs.astype(np.float64)
    scale = _rms(outputs)
    idle = np.all(outputs == 0, axis=tuple(range(outputs.ndim - 1)))
    return Layer(
        scale=scale,
        differ=_rms(outputs - outputs.mean(axis=0)) / scale if scale else 0.0,
        dead=0.0 if name == 'fc8' else float(np.mean(idle)),
        gradient=_ratio(gradient, kernel),
    )


def _relative_updates(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: _ratio(new[name]['kernel'] - old[name]['kernel'], old[name]['kernel'])
        for name in old
        if 'kernel' in old[name]
    }


def _ratio(change: np.ndarray, kernel: np.ndarray) -> float:
    size = _rms(kernel)
    return _rms(change) / size if size else math.inf


def _rms(x: np.ndarray) -> float:
    with np.errstate(over='ignore', invalid='ignore'):  # a value that is not finite is reported
        return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


def _table(trace: Trace) -> Iterator[str]:
    """Yield the lines of a table: each layer before the first step, and its largest update."""
    yield f'pixels: standard deviation {trace.before.pixel_std:.3g}'
    yield f'{"layer":<8}{"scale":>10}{"differ":>10}{"dead":>8}{"gradient":>12}{"update":>12}'
    for name, layer in trace.before.layers.items():
        yield (
            f'{name:<8}{layer.scale:>10.3g}{layer.differ:>10.2g}{layer.dead:>8.0%}'
            f'{layer.gradient:>12.2g}{trace.updates[name]:>12.2g}'
        )
