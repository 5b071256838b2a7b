"""The section `training`, and its durations converted from epochs to steps."""

import dataclasses
import fractions
import math

from alexnet_jax.runtime.config import (
    NUMERICS,
    PLACE,
    SCHEDULE,
    Section,
    field,
    integer,
    number,
)
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.storage import path_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """The section `training`."""

    batch_size: int = field(integer(1))
    accumulation_steps: int = field(integer(1), role=NUMERICS)
    label_smoothing: float = field(number(0.0, 1.0), off=0.0)
    ema_decay: float = field(number(0.0, 1.0), off=0.0)
    total_epochs: float = field(number(0.0), role=SCHEDULE)
    total_steps: int = field(integer(0), role=SCHEDULE)
    log_every_steps: int = field(integer(1), role=PLACE)
    eval_every_epochs: float = field(number(0.0), role=SCHEDULE)
    watchdog_s: int = field(integer(0), role=PLACE)
    watchdog_slow_s: int = field(integer(0), role=PLACE, off=18_000)  # ten times 1,800 s, as before
    init_from: str = field(path_field, resume=True)
    compilation_cache_dir: str = field(path_field, role=PLACE)

    def check(self) -> None:
        """Raise UserError for a run that would never end."""
        if self.total_steps == 0 and self.total_epochs == 0:
            raise UserError(
                'config.training.total_epochs and config.training.total_steps are both 0; set one'
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of one run in steps. Epoch e begins at step ceil(e * examples / batch)."""

    num_examples: int
    batch_size: int
    total_steps: int
    eval_every_epochs: float

    def first_step(self, epoch: float | fractions.Fraction) -> int:
        """Return the first step of an epoch; a batch may hold examples of two epochs."""
        return math.ceil(_as_written(epoch) * self.num_examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """Return how many epochs have been seen after `step` steps."""
        return step * self.batch_size / self.num_examples

    def eval_due(self, step: int) -> bool:
        """Say whether the run evaluates after `step` steps: once each period, and at the end."""
        if step in (0, self.total_steps):
            return step > 0
        if self.eval_every_epochs == 0:
            return False
        period = _as_written(self.eval_every_epochs)
        count = math.floor(step * self.batch_size / (period * self.num_examples))
        return count > 0 and step == self.first_step(count * period)


def _as_written(epoch: float | fractions.Fraction) -> fractions.Fraction:
    """Return the exact decimal, 1/10 for 0.1: its float is larger and would begin a step later."""
    return fractions.Fraction(str(epoch))


def make_plan(config: TrainingConfig, num_examples: int) -> Plan:
    """Return the durations in steps; raise UserError for a training split without examples."""
    if num_examples < 1:
        raise UserError('the training split has no examples; name another data.train_split')
    plan = Plan(num_examples, config.batch_size, config.total_steps, config.eval_every_epochs)
    steps = config.total_steps or plan.first_step(config.total_epochs)
    return dataclasses.replace(plan, total_steps=steps)
