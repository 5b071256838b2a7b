"""Does a configuration leave chance? A few steps on one batch, and what is odd if it does not."""

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
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import Experiment

_LEFT = 0.8  # of the loss of the best answer that ignores the images
_MEAN_OF = 5  # steps: dropout makes the loss of one step jump
_LOOKED_AT = 128  # images
# Beyond these something is odd.
_PIXEL_STD = (5.0, 500.0)  # photographs less their mean have some 60 on the 0-255 scale
_MAX_LOSS = 3.0  # before the first step, in losses of chance
_DEAD = 0.9  # part of a layer's units
_ALIKE = 1e-3  # how little the outputs of two images differ, relative to the outputs
_UPDATE = (1e-5, 0.1)  # change of a layer's weights by one step, relative to the weights

# Remedies where init_std has no say.
_DIVIDE = 'divide the pixels (config.augment.pixel_divisor, 58 for photographs) or lower the rate'
_OTHER_INITIALIZER = "set config.model.initializer='normal' and each layer's init_std"


class Layer(NamedTuple):
    """What one layer makes of the images."""

    scale: float  # root mean square of its outputs after the ReLU, the logits for fc8
    differ: float  # standard deviation between images, relative to that
    dead: float  # part of its units that are 0 for every image, everywhere; of fc8 none
    gradient: float  # root mean square of its kernel's gradient, relative to the kernel's


class Look(NamedTuple):
    """The network at one moment, without dropout and augmentation."""

    loss: float
    pixel_std: float
    layers: dict[str, Layer]


class Trace(NamedTuple):
    """What some steps on one batch did."""

    losses: list[float]  # of each step, as trained
    blind_loss: float  # of the best answer that ignores the images: the entropy of the labels
    before: Look
    after: Look
    updates: dict[str, float]  # of each kernel by one step, relative; the largest that was seen


def check(experiment: Experiment, steps: int) -> None:
    """Train on the first batch alone, print a table of the layers, and say whether it is learned.

    The configuration leaves chance when the loss falls well below that of the best answer that
    ignores the images, the frequencies of the labels. Nothing is saved. Raises UserError, with the
    first suspicious thing in one line, when it does not.
    """
    if jax.process_count() > 1:
        raise UserError('--mode=check runs in one process; leave out --distributed')
    config = experiment.config
    trace = run(experiment, steps)
    if trace.blind_loss == 0:
        raise UserError(
            f'all {config.training.batch_size} images of the first batch have one label, nothing '
            'to tell apart; raise config.training.batch_size'
        )
    print('\n'.join(_table(trace)))
    loss = min(_mean(trace.losses), trace.after.loss)
    words = (
        f'loss {loss:.3f} after {len(trace.losses)} steps on one batch, {trace.blind_loss:.3f} '
        'without looking at the images'
    )
    if not leaves_chance(trace):
        raise UserError(f'does not leave chance: {words}: {suspect(trace, config)}')
    print(f'leaves chance: {words}')


def run(experiment: Experiment, steps: int) -> Trace:
    """Train on the first batch until it leaves chance, is not finite, or `steps` are done."""
    batch = _first_batch(experiment)
    batches = pipeline.to_device((b for b in [batch]), experiment.batch_shardings)
    with contextlib.closing(batches):
        on_device = next(batches)
    state = experiment.init_state()
    before = _look(experiment, state.params, batch)
    shares = np.unique(batch.labels, return_counts=True)[1] / len(batch.labels)
    blind_loss = float(-np.sum(shares * np.log(shares)))
    losses: list[float] = []
    updates: dict[str, float] = {}
    for step in range(1, steps + 1):
        old = jax.device_get(state.params) if step in (1, steps) else None
        state, metrics = experiment.train_step(state, on_device, experiment.statistics)
        losses.append(metrics['train/loss'].item())
        if old:
            new = _relative_updates(old, jax.device_get(state.params))
            updates = {name: max(size, updates.get(name, 0.0)) for name, size in new.items()}
        if not math.isfinite(losses[-1]) or _is_left(losses, blind_loss):
            break
    after = _look(experiment, state.params, batch)
    return Trace(losses, blind_loss, before, after, updates)


def suspect(trace: Trace, config: Config) -> str:
    """Return the first suspicious thing and its remedy in one line, in the order of the causes."""
    return next(_suspicions(trace, config))


def _suspicions(trace: Trace, config: Config) -> Iterator[str]:
    before, after, rate = trace.before, trace.after, config.optim.learning_rate
    low, high = _PIXEL_STD
    normal = config.model.initializer == 'normal'  # the others set the width by themselves
    if normal and not low < before.pixel_std < high:
        yield (
            f'the pixels that the network sees have a standard deviation of {before.pixel_std:.3g},'
            f' where init_std is made for some 60 on the 0-255 scale; do not divide them '
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
            f'the loss is {before.loss:.3g} before the first step and {chance:.3g} at chance; '
            f'{remedy} ({scales})'
        )
    for name, layer in before.layers.items():
        if layer.differ < _ALIKE:
            yield (
                f'the outputs of {name} differ by {layer.differ:.1g} of their size between images, '
                f'so the images are lost there; '
                + (f'raise config.model.{name}.init_std' if normal else _OTHER_INITIALIZER)
            )
    largest = max(trace.updates, key=lambda name: trace.updates[name])
    size = trace.updates[largest]
    if size == 0:
        yield f'no weight changes; raise config.optim.learning_rate = {rate:g}'
    if size < _UPDATE[0]:
        yield (
            f'a step changes no layer by more than {size:.1g} of its weights ({largest}); raise '
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
                f'{layer.dead:.0%} of the units of {name} died in training; lower '
                f'config.optim.learning_rate = {rate:g}'
            )
    if config.model.dropout > 0:
        yield (
            f'no layer, update or pixel is odd; it may be the noise of config.model.dropout = '
            f'{config.model.dropout:g}: set it to 0 once, or give it more --check_steps'
        )
    yield 'no layer, update or pixel is odd; give it more --check_steps'


def _mean(losses: Sequence[float]) -> float:
    return sum(losses[-_MEAN_OF:]) / len(losses[-_MEAN_OF:])


def _is_left(losses: Sequence[float], blind_loss: float) -> bool:
    return len(losses) >= _MEAN_OF and _mean(losses) < _LEFT * blind_loss


def leaves_chance(trace: Trace) -> bool:
    """Say whether the batch is being learned, in training or as seen without dropout's noise."""
    return _is_left(trace.losses, trace.blind_loss) or (trace.after.loss < _LEFT * trace.blind_loss)


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


def _look(experiment: Experiment, params: Any, batch: Batch) -> Look:
    """Look at the network on one device, at the centre crops of the first images."""
    model = experiment.model.clone(collectives=Collectives())
    images, labels = batch.images[:_LOOKED_AT], batch.labels[:_LOOKED_AT]
    statistics = jax.device_get(experiment.statistics)
    view = [x[0] for x in experiment.augment.view_corners(images.shape[1:], 1)]

    @jax.jit
    def forward_and_back(params: Any, images: Any, labels: Any) -> Any:
        crops = experiment.augment.view(images, statistics, *view)

        def loss_fn(params: Any) -> Any:
            rows = jnp.arange(len(labels), dtype=jnp.int32)
            logits, seen = model.apply({'params': params}, crops, rows)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            units = {name: seen.get(name.replace('conv', 'relu'), seen[name]) for name in params}
            return jnp.mean(losses), units

        (loss, seen), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, jnp.std(crops), seen, gradients

    params = jax.device_get(params)
    loss, pixel_std, seen, gradients = jax.device_get(forward_and_back(params, images, labels))
    return Look(
        loss=float(loss),
        pixel_std=float(pixel_std),
        layers={
            name: _layer(name, seen[name], params[name]['kernel'], gradients[name]['kernel'])
            for name in params
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
        name: _ratio(new[name]['kernel'] - old[name]['kernel'], old[name]['kernel']) for name in old
    }


def _ratio(change: np.ndarray, kernel: np.ndarray) -> float:
    size = _rms(kernel)
    return _rms(change) / size if size else math.inf


def _rms(x: np.ndarray) -> float:
    with np.errstate(over='ignore', invalid='ignore'):  # what is not finite is reported as such
        return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


def _table(trace: Trace) -> Iterator[str]:
    """Describe each layer before the first step."""
    yield f'pixels: standard deviation {trace.before.pixel_std:.3g}'
    yield f'{"layer":<8}{"scale":>10}{"differ":>10}{"dead":>8}{"gradient":>12}{"update":>12}'
    for name, layer in trace.before.layers.items():
        yield (
            f'{name:<8}{layer.scale:>10.3g}{layer.differ:>10.2g}{layer.dead:>8.0%}'
            f'{layer.gradient:>12.2g}{trace.updates[name]:>12.2g}'
        )
