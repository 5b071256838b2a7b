"""The paper's update rule and its learning-rate schedules.

Paper 5:  v <- 0.9 v - 0.0005 lr w - lr dL/dw;  w <- w + v

The learning rate stands inside the velocity: at a drop the old velocity keeps the old rate.
`optax.sgd` keeps it outside and departs from the paper at every drop. Parameters are
`{layer: {'kernel': ..., 'bias': ...}}`, and each of them may have a rate of its own.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

_SOME_GAIN = 1e-30  # optax refuses 0, which here means: any gain at all


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The update rule, the schedule over steps and the plateau rule over evaluations."""

    rule: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    plateau: optax.GradientTransformationExtraArgs
    uses_plateau: bool
    patience: int
    events: tuple[tuple[int, str, float], ...]  # (first step, layer or 'all', rate), in order
    factors: tuple[tuple[str, float], ...]
    warmup_steps: int

    def init_plateau(self) -> ReduceLROnPlateauState:
        """Return the plateau rule's state before the first evaluation."""
        return typing.cast(ReduceLROnPlateauState, self.plateau.init(jnp.zeros((), jnp.float32)))

    def learning_rate(self, step: jax.Array, plateau: ReduceLROnPlateauState) -> jax.Array:
        """Return a step's learning rate, float32 scalar, where no layer has one of its own."""
        with jax.numpy_dtype_promotion('standard'):  # optax mixes Python numbers and int32
            rate = jnp.asarray(self.schedule(step), jnp.float32)
        rate = rate * plateau.scale if self.uses_plateau else rate
        return self._after_events(self._warm_up(rate, step), 'all', step)

    def learning_rates(
        self, step: jax.Array, plateau: ReduceLROnPlateauState, params: Any
    ) -> dict[str, dict[str, jax.Array]]:
        """Return the learning rate of each parameter in a step, float32 scalars."""
        common = self.learning_rate(step, plateau)

        def own(path: Any, _: Any) -> jax.Array:
            layer, kind = (key.key for key in path)
            rate = self._after_events(common, layer, step)
            factor = _factor(self.factors, layer, kind)
            return rate if factor == 1 else rate * factor

        return jax.tree_util.tree_map_with_path(own, params)

    def _after_events(self, rate: jax.Array, layer: str, step: jax.Array) -> jax.Array:
        """Return the rate that the last event of `layer` gave it, before its first one `rate`."""
        for start, name, new in self.events:
            if name == layer:
                new_rate = self._warm_up(jnp.float32(new), step)
                rate = jnp.where(step >= start, new_rate, rate)
        return rate

    def _warm_up(self, rate: jax.Array, step: jax.Array) -> jax.Array:
        if self.warmup_steps == 0:
            return rate
        return rate * jnp.minimum(1.0, (step + 1).astype(jnp.float32) / self.warmup_steps)

    def after_evaluation(
        self, plateau: ReduceLROnPlateauState, error: float
    ) -> ReduceLROnPlateauState:
        """Return the plateau rule's state after an evaluation with this error."""
        if not self.uses_plateau:
            return plateau
        # optax waits for the count to equal the patience, which a resumed run may have lowered.
        count = jnp.minimum(plateau.plateau_count, self.patience - 1)
        plateau = plateau._replace(plateau_count=count)
        with jax.numpy_dtype_promotion('standard'):  # optax multiplies int32 by float32
            return self._update_plateau(plateau, jnp.float32(error))

    @functools.cached_property
    def _update_plateau(self) -> Callable[..., ReduceLROnPlateauState]:
        zero = jnp.zeros((), jnp.float32)
        return jax.jit(lambda state, error: self.plateau.update(zero, state, value=error)[1])


def make_optimizer(
    *,
    learning_rate: float,
    reference_batch: int,
    warmup_epochs: float,
    momentum: float,
    weight_decay: float,
    decay_factors: tuple[tuple[str, float], ...],
    rate_inside_velocity: bool,
    lars_trust: float,
    rate_factors: tuple[tuple[str, float], ...],
    schedule: str,
    drop_factor: float,
    drop_epochs: tuple[float, ...],
    plateau_evaluations: int,
    plateau_min_gain: float,
    plateau_drops: int,
    events: tuple[tuple[float, str, float], ...],
    batch_size: int,
    first_step: Callable[[float], int],
) -> Optimizer:
    """Build the optimizer from the `optim` section.

    `schedule`: 'constant'; 'steps' multiplies the rate by drop_factor at each of drop_epochs;
    'plateau' does so when the evaluated top-1 error has not improved by plateau_min_gain for
    plateau_evaluations evaluations in a row, plateau_drops times at most. Whatever the schedule
    says, an event (epoch, layer, rate) sets a layer's rate from that epoch on; one for 'all' sets
    that of the layers without an event of their own. `first_step` turns an epoch into a step.
    """
    scale = batch_size / reference_batch if reference_batch else 1.0
    drops: dict[int, float] = {}
    for epoch in drop_epochs if schedule == 'steps' else ():
        step = first_step(epoch)
        drops[step] = drops.get(step, 1.0) * drop_factor
    return Optimizer(
        rule=update_rule(
            momentum=momentum,
            weight_decay=weight_decay,
            decay_factors=decay_factors,
            rate_inside_velocity=rate_inside_velocity,
            lars_trust=lars_trust,
        ),
        schedule=optax.piecewise_constant_schedule(learning_rate * scale, drops),
        plateau=reduce_on_plateau(
            factor=drop_factor,
            patience=plateau_evaluations,
            rtol=0.0,
            atol=max(plateau_min_gain, _SOME_GAIN),
            min_scale=drop_factor**plateau_drops,
        ),
        uses_plateau=schedule == 'plateau',
        patience=plateau_evaluations,
        events=tuple((first_step(e), layer, rate * scale) for e, layer, rate in sorted(events)),
        factors=tuple(rate_factors),
        warmup_steps=first_step(warmup_epochs),
    )


def update_rule(
    *,
    momentum: float,
    weight_decay: float,
    decay_factors: tuple[tuple[str, float], ...],
    rate_inside_velocity: bool,
    lars_trust: float,
) -> optax.GradientTransformationExtraArgs:
    """Return the update rule, by default that of Paper 5.

    `update` takes two extra arguments: `learning_rates`, a tree like the parameters, and
    `sum_over_mesh`, which adds up such a tree of numbers over the devices that split a parameter.
    """
    velocity = [_scale_by_given_rates(), optax.trace(momentum)]
    return optax.chain(
        _add_decay(weight_decay, decay_factors),
        *([_scale_by_trust_ratio(lars_trust)] if lars_trust else []),
        *(velocity if rate_inside_velocity else velocity[::-1]),
    )


def _factor(factors: tuple[tuple[str, float], ...], layer: str, kind: str) -> float:
    """Return the product of the factors that name this layer, this kind or this parameter."""
    return math.prod(f for name, f in factors if name in (layer, kind, f'{layer}.{kind}'))


def _add_decay(
    weight_decay: float, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Add weight_decay * factor * w, which `optax.add_decayed_weights` does with one factor."""

    def add(path: Any, update: jax.Array, w: jax.Array) -> jax.Array:
        return update + weight_decay * _factor(factors, *(key.key for key in path)) * w

    return optax.stateless(lambda updates, w: jax.tree_util.tree_map_with_path(add, updates, w))


def _scale_by_given_rates() -> optax.GradientTransformationExtraArgs:
    """Multiply by -learning_rates, given at each call: a schedule would count steps once more."""

    def update(updates, state, params=None, **extra_args) -> Any:
        del params
        rates = extra_args['learning_rates']
        return jax.tree.map(lambda u, rate: -rate.astype(u.dtype) * u, updates, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale_by_trust_ratio(trust: float) -> optax.GradientTransformationExtraArgs:
    """Multiply the update u of each kernel w, decay included, by trust |w| / |u| (LARS, You 2017).

    That is `optax.scale_by_trust_ratio` for kernels that several devices share; a bias, or a norm
    of zero, leaves the update as it is.
    """

    def update(updates, state, params=None, **extra_args) -> Any:
        def squares(tree: Any) -> Any:
            return extra_args['sum_over_mesh'](jax.tree.map(lambda x: jnp.sum(x * x), tree))

        def scale(path, u, u2, w2) -> jax.Array:
            ratio = trust * jnp.sqrt(w2 / jnp.where(u2 > 0, u2, 1))
            is_kernel = path[-1].key == 'kernel'
            return u * jnp.where((u2 > 0) & (w2 > 0), ratio, 1) if is_kernel else u

        sums = squares(updates), squares(params)
        return jax.tree_util.tree_map_with_path(scale, updates, *sums), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
