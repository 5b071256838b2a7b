"""The paper's update rule and its learning-rate schedules.

Paper 5:  v <- 0.9 v - 0.0005 lr w - lr dL/dw;  w <- w + v

The learning rate is part of the velocity, so after a drop the old velocity keeps the old rate.
`optax.sgd` multiplies the velocity by the rate instead and so departs from the paper at every drop.
Parameters are `{layer: {'kernel': ..., 'bias': ...}}`, and each may have a rate of its own.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.runtime.config import (
    SCHEDULE,
    Rule,
    Section,
    boolean,
    field,
    integer,
    is_number,
    make,
    number,
    one_of,
    tuple_of,
)
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.plan import Plan

_RATES = ('learning_rate', 'reference_batch', 'events')  # the fields that set the rate
# The fields that lower the rate in the course of a run; the cosine begins after the warm-up.
_DROPS = ('schedule', 'drop_factor', 'milestone_epochs', 'warmup_epochs')
_SOME_GAIN = 1e-30  # optax refuses 0, which here means that any gain counts


_LAYERS = (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8')
_NORMS = tuple(name.replace('conv', 'bn') for name in CONVOLUTIONS)
_PARAMETERS = {*_LAYERS, *_NORMS, 'kernel', 'scale', 'bias'} | {
    f'{layer}.{kind}'
    for layers, kinds in ((_LAYERS, ('kernel', 'bias')), (_NORMS, ('scale', 'bias')))
    for layer in layers
    for kind in kinds
}


def _is_rate(value: Any) -> bool:
    return is_number(value) and value >= 0


_multipliers = tuple_of(
    lambda v: isinstance(v, tuple) and len(v) == 2 and v[0] in _PARAMETERS and _is_rate(v[1]),
    words="a tuple of (layer, 'kernel', 'bias', 'scale' or 'conv1.bias', factor), such as "
    "(('bias', 2.0),)",
)
_events = tuple_of(
    lambda v: (
        isinstance(v, tuple)
        and len(v) == 3
        and _is_rate(v[0])
        and v[1] in ('all', *_LAYERS, *_NORMS)
        and _is_rate(v[2])
    ),
    words="a tuple of (epoch, layer or 'all', rate), such as ((25, 'all', 0.001),)",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """The section `optim`; a resumed run may change all of it."""

    learning_rate: float = field(number(0.0), resume=True)
    reference_batch: int = field(integer(0), resume=True)
    warmup_epochs: float = field(number(0.0), resume=True)
    momentum: float = field(number(0.0, below=1.0), resume=True)
    weight_decay: float = field(number(0.0), resume=True)
    rate_inside_velocity: bool = field(boolean, resume=True)
    nesterov: bool = field(boolean, resume=True, off=False)
    lars_trust_coefficient: float = field(number(0.0), resume=True)
    lr_multipliers: tuple[tuple[str, float], ...] = field(_multipliers, resume=True)
    weight_decay_multipliers: tuple[tuple[str, float], ...] = field(_multipliers, resume=True)
    schedule: str = field(one_of('constant', 'steps', 'plateau', 'cosine'), role=SCHEDULE)
    drop_factor: float = field(
        Rule(lambda v: is_number(v) and 0 < v < 1, 'between 0 and 1'), role=SCHEDULE
    )
    milestone_epochs: tuple[float, ...] = field(
        tuple_of(lambda v: is_number(v) and v > 0, words='a tuple of epochs above 0'),
        role=SCHEDULE,
    )
    plateau_patience: int = field(integer(1), role=SCHEDULE)
    plateau_min_delta: float = field(number(0.0), role=SCHEDULE)
    plateau_max_drops: int = field(integer(0), role=SCHEDULE)
    events: tuple[tuple[float, str, float], ...] = field(_events, role=SCHEDULE)

    def check(self) -> None:
        """Raise UserError for a schedule that would never drop the rate, without any other sign."""
        if self.schedule == 'steps' and not self.milestone_epochs:
            raise UserError(
                "config.optim.schedule = 'steps' without config.optim.milestone_epochs never "
                "drops; set those, or schedule='constant'"
            )
        if self.schedule in ('plateau', 'cosine') and self.milestone_epochs:
            raise UserError(
                f'config.optim.milestone_epochs = {self.milestone_epochs} is not used by '
                f"schedule = '{self.schedule}'; set schedule='steps' or milestone_epochs=()"
            )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The update rule, the schedule over steps and the plateau rule over evaluations."""

    rule: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    plateau: optax.GradientTransformationExtraArgs
    uses_plateau: bool
    patience: int
    events: tuple[tuple[int, str, float], ...]  # (first step, layer or 'all', rate), in order
    multipliers: tuple[tuple[str, float], ...]
    warmup_steps: int

    def init_plateau(self) -> ReduceLROnPlateauState:
        """Return the plateau rule's state before the first evaluation."""
        return typing.cast(ReduceLROnPlateauState, self.plateau.init(jnp.zeros((), jnp.float32)))

    def learning_rate(self, step: jax.Array, plateau: ReduceLROnPlateauState) -> jax.Array:
        """Return a step's learning rate for layers without one of their own, float32 scalar."""
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
            factor = _factor(self.multipliers, layer, kind)
            return rate if factor == 1 else rate * factor

        return jax.tree_util.tree_map_with_path(own, params)

    def _after_events(self, rate: jax.Array, layer: str, step: jax.Array) -> jax.Array:
        """Return the rate set by the last event of `layer`, or `rate` before its first event."""
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
            new = self._update_plateau(plateau, jnp.float32(error))
        # The least scale may have been raised by a resumed run, by fewer drops or smaller ones.
        return new._replace(scale=jnp.minimum(new.scale, plateau.scale))

    @functools.cached_property
    def _update_plateau(self) -> Callable[..., ReduceLROnPlateauState]:
        zero = jnp.zeros((), jnp.float32)
        return jax.jit(lambda state, error: self.plateau.update(zero, state, value=error)[1])


def make_optimizer(config: OptimConfig, plan: Plan) -> Optimizer:
    """Build the optimizer of a run.

    The schedule 'constant' keeps the rate; 'steps' multiplies it by drop_factor at each of
    milestone_epochs; 'plateau' does so when the evaluated top-1 error has not improved by
    plateau_min_delta for plateau_patience evaluations in a row, plateau_max_drops times at most;
    'cosine' lowers it from the end of the warm-up to 0 at the end of the run.
    An event (epoch, layer, rate) overrides the schedule: it sets the layer's rate from that epoch
    on. An event for 'all' sets the rate of every layer without an event of its own.

    Raises UserError if the warm-up leaves no step for 'cosine'.
    """
    scale = plan.batch_size / config.reference_batch if config.reference_batch else 1.0
    warmup_steps = plan.first_step(config.warmup_epochs)
    return Optimizer(
        rule=update_rule(config),
        schedule=_schedule(config, plan, config.learning_rate * scale, warmup_steps),
        plateau=reduce_on_plateau(
            factor=config.drop_factor,
            patience=config.plateau_patience,
            rtol=0.0,
            atol=max(config.plateau_min_delta, _SOME_GAIN),
            min_scale=config.drop_factor**config.plateau_max_drops,
        ),
        uses_plateau=config.schedule == 'plateau',
        patience=config.plateau_patience,
        events=tuple(
            (plan.first_step(epoch), layer, rate * scale)
            for epoch, layer, rate in sorted(config.events)
        ),
        multipliers=config.lr_multipliers,
        warmup_steps=warmup_steps,
    )


def _schedule(config: OptimConfig, plan: Plan, rate: float, warmup_steps: int) -> optax.Schedule:
    """Return the schedule over steps, without the factors of warm-up and plateau rule."""
    if config.schedule == 'cosine':
        decay_steps = plan.total_steps - warmup_steps
        if decay_steps < 1:
            raise UserError(
                f'config.optim.warmup_epochs = {config.warmup_epochs} are {warmup_steps} of '
                f"{plan.total_steps} steps and leave none for schedule = 'cosine'; lower them"
            )
        cosine = optax.cosine_decay_schedule(rate, decay_steps)
        return lambda step: cosine(jnp.maximum(step - warmup_steps, 0))
    drops: dict[int, float] = {}
    for epoch in config.milestone_epochs if config.schedule == 'steps' else ():
        step = plan.first_step(epoch)
        drops[step] = drops.get(step, 1.0) * config.drop_factor
    return optax.piecewise_constant_schedule(rate, drops)


def require_no_rise(
    saved: Mapping[str, Any],
    config: OptimConfig,
    plan: Plan,
    step: int,
    plateau: ReduceLROnPlateauState,
) -> None:
    """Raise UserError if another schedule raises the learning rate where a run is resumed.

    `saved` is the section `optim` of the saved run. Where that sets another rate itself, by
    learning_rate, reference_batch or events, any change is meant. The ramp of
    the warm-up is left out.
    """
    known = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in saved.items() if name in known}
    before = make(OptimConfig, dataclasses.asdict(config) | values)
    if any(getattr(before, name) != getattr(config, name) for name in _RATES):
        return
    was, now = (
        float(rule.learning_rate(jnp.int32(step), plateau))
        for rule in (
            dataclasses.replace(make_optimizer(section, plan), warmup_steps=0)
            for section in (before, config)
        )
    )
    if now > was * (1 + 1e-5):
        name = next(n for n in _DROPS if getattr(before, n) != getattr(config, n))
        raise UserError(
            f'config.optim.{name} = {getattr(config, name)!r}, which was {getattr(before, name)!r},'
            f' would raise the learning rate from {was:.3g} to {now:.3g} at step {step}; set it '
            'back, or set config.optim.learning_rate or an event to the rate that you want'
        )


def update_rule(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Return the update rule, by default that of Paper 5.

    `update` takes two extra arguments: `learning_rates`, a tree like the parameters, and
    `sum_over_mesh`, which adds up such a tree of numbers over the devices that split a parameter.
    """
    velocity = [_scale_by_given_rates(), optax.trace(config.momentum, config.nesterov)]
    trust = config.lars_trust_coefficient
    return optax.chain(
        _add_decay(config.weight_decay, config.weight_decay_multipliers),
        *([_scale_by_trust_ratio(trust)] if trust else []),
        *(velocity if config.rate_inside_velocity else velocity[::-1]),
    )


def _factor(factors: tuple[tuple[str, float], ...], layer: str, kind: str) -> float:
    """Return the product of the factors that name this layer, this kind or this parameter."""
    return math.prod(f for name, f in factors if name in (layer, kind, f'{layer}.{kind}'))


def _add_decay(
    weight_decay: float, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Add weight_decay * factor * w; `optax.add_decayed_weights` has one factor for all weights."""

    def add(path: Any, update: jax.Array, w: jax.Array) -> jax.Array:
        return update + weight_decay * _factor(factors, *(key.key for key in path)) * w

    return optax.stateless(lambda updates, w: jax.tree_util.tree_map_with_path(add, updates, w))


def _scale_by_given_rates() -> optax.GradientTransformationExtraArgs:
    """Multiply by -learning_rates, given at each call: a schedule would count the steps again."""

    def update(updates, state, params=None, **extra_args) -> Any:
        del params
        rates = extra_args['learning_rates']
        return jax.tree.map(lambda u, rate: -rate.astype(u.dtype) * u, updates, rates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale_by_trust_ratio(trust: float) -> optax.GradientTransformationExtraArgs:
    """Multiply the update u of each kernel w, decay included, by trust |w| / |u| (LARS, You 2017).

    This is `optax.scale_by_trust_ratio` for kernels that are split over several devices. Updates of
    biases stay as they are, and so do those where either norm is zero.
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
