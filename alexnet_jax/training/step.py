"""The training state and the training step, written for one device and run on any mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import abstract_variables, init_parameters
from alexnet_jax.training.optim import Optimizer


class TrainState(struct.PyTreeNode):
    """The state that a run carries from step to step and that a checkpoint holds.

    It has no data order and no random state, because both follow from the seed and the step.
    """

    step: Any  # int32 scalar, number of steps done
    params: Any  # {layer: {kernel, bias}}
    opt_state: Any  # the velocity
    plateau: Any  # state of the plateau rule, whose scale multiplies the learning rate


def init_key(seed: int) -> jax.Array:
    """Return the key that draws the parameters."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def step_keys(seed: int, step: jax.Array) -> jax.Array:
    """Return the keys of one step for augmentation and dropout, [2]."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step))


def init_state(
    model: AlexNet, optimizer: Optimizer, image_shape: tuple[int, ...], seed: int
) -> TrainState:
    """Return the whole network's state before the first step; `image_shape` is that of a crop."""
    params = init_parameters(model, image_shape, init_key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.rule.init(params),
        plateau=optimizer.init_plateau(),
    )


def state_specs(model: AlexNet, optimizer: Optimizer, image_shape: tuple[int, ...]) -> TrainState:
    """Return the PartitionSpec of every leaf; each velocity is split as its weight is."""
    boxed = abstract_variables(model, image_shape)
    params = nn.get_partition_spec(boxed)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer.rule,
        lambda _, spec: spec,
        jax.eval_shape(optimizer.rule.init, nn.meta.unbox(boxed)),
        params,
        transform_non_params=lambda _: P(),
    )
    plateau = jax.tree.map(lambda _: P(), jax.eval_shape(optimizer.init_plateau))
    return TrainState(step=P(), params=params, opt_state=opt_state, plateau=plateau)


def copy_rows(model: AlexNet, rows_of_copy: int) -> jax.Array:
    """Return the rows of the global batch that this copy of the network computes, int32."""
    return model.collectives.data_index() * rows_of_copy + jnp.arange(rows_of_copy, dtype=jnp.int32)


def loss_and_gradients(
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    dropout_key: jax.Array,
    *,
    model: AlexNet,
    label_smoothing: float = 0.0,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Return ((loss, logits), gradients) for the rows of this copy of the network.

    The loss is the mean cross-entropy of the softmax (Paper 3.5), for labels of which
    `label_smoothing` is spread evenly over all classes (not the paper's). The gradients are those
    of the loss divided by the number of devices of a copy; reduce them with
    `Collectives.sum_gradients`.
    """

    def loss_fn(params):
        logits, _ = model.apply({'params': params}, images, rows, dropout_key)
        if label_smoothing:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            losses = optax.softmax_cross_entropy(
                logits, optax.smooth_labels(targets, label_smoothing)
            )
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = jnp.mean(losses)
        return loss / model.collectives.model, (loss, logits)

    (_, aux), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return aux, gradients


def train_step(
    state: TrainState,
    batch: Batch,
    statistics: Statistics,
    *,
    model: AlexNet,
    optimizer: Optimizer,
    augment: Augment,
    param_specs: Any,
    seed: int,
    accumulation_steps: int,
    label_smoothing: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Do one training step on one device (Paper 5).

    Args:
      state: this device's shards.
      batch: images [rows of this device, H, W, C], labels [rows of this copy].
      statistics: the same on every device.
      model, optimizer, augment: built from their sections of the configuration.
      param_specs: PartitionSpec of every parameter.
      seed: the run's seed.
      accumulation_steps: number of parts into which the batch is divided. They are computed one
        after the other and their gradients averaged, which equals the undivided batch up to
        rounding.
      label_smoothing: see `loss_and_gradients`.

    Returns:
      The next state, and the step's `train/loss`, `train/top1_error`, `train/learning_rate`.
    """
    collectives = model.collectives
    augment_key, dropout_key = step_keys(seed, state.step)
    rows = copy_rows(model, batch.labels.shape[0])

    def part_gradients(images, labels, part_rows):
        """Return (loss, error) and gradients; `images` are this shard's, the rest this copy's."""
        here = images.shape[0]
        own = jax.lax.dynamic_slice_in_dim(part_rows, collectives.shard_index() * here, here)
        images = augment.training(images, statistics, augment_key, own, state.step)
        (loss, logits), gradients = loss_and_gradients(
            state.params,
            images,
            labels,
            part_rows,
            dropout_key,
            model=model,
            label_smoothing=label_smoothing,
        )
        best = jnp.argmax(logits, axis=-1).astype(labels.dtype)
        return (loss, jnp.mean(best != labels, dtype=loss.dtype)), gradients

    images = collectives.gather_images(batch.images)
    (loss, error), gradients = _mean_over_parts(
        part_gradients,
        _parts(images, accumulation_steps, blocks=1),
        _parts(batch.labels, accumulation_steps, blocks=collectives.shard),
        _parts(rows, accumulation_steps, blocks=collectives.shard),
    )
    gradients = collectives.sum_gradients(gradients, param_specs)
    updates, opt_state = optimizer.rule.update(
        gradients,
        state.opt_state,
        state.params,
        learning_rates=optimizer.learning_rates(state.step, state.plateau, state.params),
        sum_over_mesh=lambda numbers: collectives.sum_over_parts(numbers, param_specs),
    )
    with jax.named_scope('metrics'):
        loss, error = collectives.mean_over_data((loss, error))
    metrics = {
        'train/loss': loss,
        'train/top1_error': error,
        'train/learning_rate': optimizer.learning_rate(state.step, state.plateau),
    }
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, metrics


def _mean_over_parts(function: Callable[..., Any], *parts: jax.Array) -> Any:
    """Average `function` over the first axis of its arguments, one index at a time."""
    count = parts[0].shape[0]
    if count == 1:
        return function(*(part[0] for part in parts))
    like = jax.eval_shape(function, *(part[0] for part in parts))
    total, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, function(*part)), None),
        jax.tree.map(jnp.zeros_like, like),
        parts,
    )
    return jax.tree.map(lambda x: x / count, total)


def _parts(x: jax.Array, count: int, blocks: int) -> jax.Array:
    """Split rows, which lie in `blocks` equal blocks, into `count` parts with rows of every block.

    [blocks * count * n, ...] -> [count, blocks * n, ...]
    """
    x = x.reshape(blocks, count, -1, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(count, -1, *x.shape[3:])
