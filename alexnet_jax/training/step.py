"""The training state and the training step, written for one device and run on any mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from alexnet_jax.input.augment import Augment, partners
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import (
    abstract_variables,
    init_parameters,
    init_statistics,
    join_network,
    split_network,
)
from alexnet_jax.training.optim import Optimizer


class TrainState(struct.PyTreeNode):
    """The state that a run carries from step to step and that a checkpoint holds.

    It has no data order and no random state, because both follow from the seed and the step.
    """

    step: Any  # int32 scalar, number of steps done
    params: Any  # {layer: {kernel, bias}}
    opt_state: Any  # the velocity
    plateau: Any  # state of the plateau rule, whose scale multiplies the learning rate
    # Running averages of batch normalisation, {layer: {mean, var}}.
    batch_stats: Any = struct.field(default_factory=dict)
    ema: Any = struct.field(default_factory=dict)  # moving average of `raw_network`, or {}

    @property
    def raw_network(self) -> Any:
        """The parameters and running averages of the last step, as one tree."""
        return join_network(self.params, self.batch_stats)

    @property
    def network(self) -> Any:
        """What evaluations use: the moving average if there is one, otherwise `raw_network`."""
        return self.ema or self.raw_network

    def with_network(self, network: Any) -> 'TrainState':
        """Return the state with these parameters and running averages, from which it averages."""
        ema = jax.tree.map(jnp.copy, network) if self.ema else {}
        return self.replace(**split_network(network), ema=ema)


def init_key(seed: int) -> jax.Array:
    """Return the key that draws the parameters."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def step_keys(seed: int, step: jax.Array) -> jax.Array:
    """Return the keys of one step for augmentation and dropout, [2]."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step))


def init_state(
    model: AlexNet,
    optimizer: Optimizer,
    image_shape: tuple[int, ...],
    seed: int,
    *,
    ema: bool = False,
) -> TrainState:
    """Return the whole network's state before the first step; `image_shape` is that of a crop."""
    params = init_parameters(model, image_shape, init_key(seed))
    batch_stats = init_statistics(model, image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.rule.init(params),
        plateau=optimizer.init_plateau(),
        batch_stats=batch_stats,
        ema=join_network(params, batch_stats) if ema else {},
    )


def state_specs(
    model: AlexNet, optimizer: Optimizer, image_shape: tuple[int, ...], *, ema: bool = False
) -> TrainState:
    """Return the PartitionSpec of every leaf.

    Each velocity and each moving average is split as its weight is, and the running averages of
    batch normalisation as the towers are.
    """
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
    batch_stats = jax.tree.map(
        lambda _: P('tower'), jax.eval_shape(lambda: init_statistics(model, image_shape))
    )
    return TrainState(
        step=P(),
        params=params,
        opt_state=opt_state,
        plateau=plateau,
        batch_stats=batch_stats,
        ema=join_network(params, batch_stats) if ema else {},
    )


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
    batch_stats: Any = None,
    label_smoothing: float = 0.0,
    own_shares: jax.Array | None = None,
) -> tuple[tuple[jax.Array, jax.Array, Any], Any]:
    """Return ((loss, logits, new batch_stats), gradients) for the rows of this copy of the network.

    The loss is the mean cross-entropy of the softmax (Paper 3.5). Not the paper's: `own_shares`,
    [rows of this copy], gives the rest of each label to that of the partner, and `label_smoothing`
    is spread evenly over all classes. The gradients are those of the loss divided by the number of
    devices of a copy; reduce them with `Collectives.sum_gradients`.
    """

    def loss_fn(params):
        variables = {'params': params, 'batch_stats': batch_stats or {}}
        (logits, _), new = model.apply(
            variables, images, rows, dropout_key, mutable=['batch_stats']
        )
        if label_smoothing or own_shares is not None:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            if own_shares is not None:
                own = own_shares[:, None]
                targets = own * targets + (1 - own) * partners(targets)
            losses = optax.softmax_cross_entropy(
                logits, optax.smooth_labels(targets, label_smoothing)
            )
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = jnp.mean(losses)
        return loss / model.collectives.model, (loss, logits, new.get('batch_stats', {}))

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
    ema_decay: float = 0.0,
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
        rounding, unless the network has batch normalisation.
      label_smoothing: see `loss_and_gradients`.
      ema_decay: of the moving average; 0: none.

    Returns:
      The next state, and the step's `train/loss`, `train/top1_error`, `train/learning_rate`.
    """
    collectives = model.collectives
    augment_key, dropout_key = step_keys(seed, state.step)
    rows = copy_rows(model, batch.labels.shape[0])

    def part_gradients(images, labels, part_rows):
        """Return the loss, the error, the new batch_stats and the gradients of one part.

        `images` are this shard's, the rest is this copy's.
        """
        here = images.shape[0]
        own = jax.lax.dynamic_slice_in_dim(part_rows, collectives.shard_index() * here, here)
        images = augment.training(images, statistics, augment_key, own, state.step)
        own_shares = None
        if augment.mixes:
            images = augment.mix(images, augment_key, own)
            own_shares = augment.own_shares(augment_key, part_rows, images.dtype)
        (loss, logits, batch_stats), gradients = loss_and_gradients(
            state.params,
            images,
            labels,
            part_rows,
            dropout_key,
            model=model,
            batch_stats=state.batch_stats,
            label_smoothing=label_smoothing,
            own_shares=own_shares,
        )
        best = jnp.argmax(logits, axis=-1).astype(labels.dtype)
        error = jnp.mean(best != labels, dtype=loss.dtype)
        return loss, error, batch_stats, gradients

    images = collectives.gather_images(batch.images)
    loss, error, batch_stats, gradients = _mean_over_parts(
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
        batch_stats=batch_stats,
    )
    if ema_decay:
        state = state.replace(ema=_moving_average(state, ema_decay))
    return state, metrics


def _moving_average(state: TrainState, decay: float) -> Any:
    """Return the average of the networks after steps 1 to t = `state.step`.

    Step i has the weight (1 - decay) decay^(t - i) / (1 - decay^t), so the weights add up to 1 and
    the network as drawn has none: that is the average of `optax.ema` with `debias`.
    """
    steps = state.step.astype(jnp.float32)
    newest = (1 - decay) / -jnp.expm1(steps * math.log(decay))
    return jax.tree.map(
        lambda new, old: optax.incremental_update(new, old, newest.astype(new.dtype)),
        state.raw_network,
        state.ema,
    )


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

    Part p has the pairs of rows p, p + count, p + 2 count and so on of each block, which makes the
    parts the same on any mesh. Where the parts have an odd number of rows, single rows take the
    place of pairs. [blocks * count * n, ...] -> [count, blocks * n, ...]
    """
    together = 1 if x.shape[0] // (blocks * count) % 2 else 2
    y = x.reshape(blocks, -1, count, together, *x.shape[1:])
    return jnp.moveaxis(y, 2, 0).reshape(count, -1, *x.shape[1:])
