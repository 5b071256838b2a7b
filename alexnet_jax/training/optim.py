"""The paper's update rule and its learning-rate schedules.

Paper 5:  v <- 0.9 v - 0.0005 lr w - lr dL/dw;  w <- w + v

The learning rate stands inside the velocity: at a drop the old velocity keeps the old rate.
`optax.sgd` keeps it outside and departs from the paper at every drop.
"""

import dataclasses
import functools
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

    def init_plateau(self) -> ReduceLROnPlateauState:
        """Return the plateau rule's state before the first evaluation."""
        return typing.cast(ReduceLROnPlateauState, self.plateau.init(jnp.zeros((), jnp.float32)))

    def learning_rate(self, step: jax.Array, plateau: ReduceLROnPlateauState) -> jax.Array:
        """Return the learning rate of a step, float32 scalar."""
        with jax.numpy_dtype_promotion('standard'):  # optax mixes Python numbers and int32
            rate = jnp.asarray(self.schedule(step), jnp.float32)
        return rate * plateau.scale if self.uses_plateau else rate

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
    momentum: float,
    weight_decay: float,
    schedule: str,
    drop_factor: float,
    drop_epochs: tuple[float, ...],
    plateau_evaluations: int,
    plateau_min_gain: float,
    plateau_drops: int,
    first_step: Callable[[float], int],
) -> Optimizer:
    """Build the optimizer from the `optim` section.

    `schedule`: 'constant'; 'steps' multiplies the rate by drop_factor at each of drop_epochs;
    'plateau' does so when the evaluated top-1 error has not improved by plateau_min_gain for
    plateau_evaluations evaluations in a row, plateau_drops times at most. `first_step` turns an
    epoch into a step.
    """
    drops: dict[int, float] = {}
    for epoch in drop_epochs if schedule == 'steps' else ():
        step = first_step(epoch)
        drops[step] = drops.get(step, 1.0) * drop_factor
    return Optimizer(
        rule=paper_update_rule(momentum=momentum, weight_decay=weight_decay),
        schedule=optax.piecewise_constant_schedule(learning_rate, drops),
        plateau=reduce_on_plateau(
            factor=drop_factor,
            patience=plateau_evaluations,
            rtol=0.0,
            atol=max(plateau_min_gain, _SOME_GAIN),
            min_scale=drop_factor**plateau_drops,
        ),
        uses_plateau=schedule == 'plateau',
        patience=plateau_evaluations,
    )


def paper_update_rule(
    *, momentum: float, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    """Return the update rule of Paper 5; `update` takes `learning_rate` as an extra argument."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        _scale_by_given_learning_rate(),
        optax.trace(momentum),
    )


def _scale_by_given_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Multiply by -learning_rate, given at each call: a schedule would count steps once more."""

    def update(updates, state, params=None, **extra_args) -> Any:
        del params
        learning_rate = extra_args['learning_rate']
        return jax.tree.map(lambda u: -learning_rate.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
