"""What a configuration may say as a whole: durations in steps, what a resume changes."""

import dataclasses
import difflib
import fractions
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from alexnet_jax.fields import CONVOLUTIONS, FIELDS
from alexnet_jax.runtime.errors import UserError

# A resumed run keeps these; all else may change and is logged (mesh, schedule, epochs, logs).
_MEANING = (
    'seed',
    'model.',
    'data.name',
    'data.train_split',
    'augment.',
    'training.batch_size',
)
_NOT_MEANING = ('model.precision', 'model.forms')  # how it is computed, as on another platform


def flatten(
    config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ''
) -> dict[str, Any]:
    """Return `{'section.field': value}` for a nested mapping or a ConfigDict."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = _tuples(value)
    return flat


def _tuples(value: Any) -> Any:
    """Return lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def check_field_name(name: str) -> None:
    """Raise UserError, with the nearest name, for a name that is not a field."""
    if name not in FIELDS:
        close = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f'did you mean config.{close[0]}?' if close else 'configs/alexnet.py has all fields'
        raise UserError(f'config.{name} is not a field; {hint}')


def validate(config: ml_collections.ConfigDict) -> None:
    """Check every field on its own and the fields against each other; raise UserError."""
    flat = flatten(config)
    for name in flat:
        check_field_name(name)
    for name, rule in FIELDS.items():
        if name not in flat:
            raise UserError(
                f'config.{name} is missing; start from configs/alexnet.py, which has it'
            )
        if not rule.accepts(flat[name]):
            raise UserError(f'config.{name} = {flat[name]!r} must be {rule.words}')
    _validate_together(config)
    _validate_rates(config)


def _validate_together(config: ml_collections.ConfigDict) -> None:
    model, training, parallel = config.model, config.training, config.parallel
    for name in CONVOLUTIONS:
        if model[name].features % model.towers:
            raise UserError(
                f'config.model.{name}.features = {model[name].features} must be a multiple of '
                f'model.towers = {model.towers}'
            )
    for name in ('fc6', 'fc7'):
        if model[name].features % max(parallel.model, model.towers):
            raise UserError(
                f'config.model.{name}.features = {model[name].features} must be a multiple of '
                f'parallel.model = {parallel.model} and of model.towers = {model.towers}'
            )
    if model.fc6.features == model.fc7.features == 0 and parallel.model > model.towers:
        raise UserError(
            f'config.parallel.model = {parallel.model} splits fully connected layers and there is '
            f'none before fc8; set --config.parallel.model={model.towers}'
        )
    if model.conv1.features == 0:
        raise UserError('config.model.conv1.features = 0 leaves no first layer; set it above 0')
    if config.data.image_shape and config.augment.crop_px > min(config.data.image_shape[:2]):
        raise UserError(
            f'config.augment.crop_px = {config.augment.crop_px} is larger than the images, '
            f'data.image_shape = {config.data.image_shape}'
        )
    if training.total_steps == 0 and training.total_epochs == 0:
        raise UserError(
            'config.training.total_epochs and config.training.total_steps are both 0; set one'
        )
    if config.evaluation.ensemble_search_split and config.evaluation.ensemble_weights == 'mean':
        raise UserError(
            'config.evaluation.ensemble_search_split is not used by ensemble_weights = '
            "'mean'; set ensemble_weights='search' or take the split away"
        )
    if config.log.profile_steps[0] > config.log.profile_steps[1]:
        raise UserError(
            f'config.log.profile_steps = {config.log.profile_steps} must be (first step, last step)'
        )


def _validate_rates(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for drops that would never come and for rates of layers that are not there.

    A run that forgets its drops trains on and looks well.
    """
    optim, every = config.optim, config.training.eval_every_epochs
    if optim.schedule == 'steps' and not optim.drop_epochs:
        raise UserError(
            "config.optim.schedule = 'steps' without config.optim.drop_epochs never drops; set "
            "those, or schedule='constant'"
        )
    if optim.schedule == 'plateau' and optim.drop_epochs:
        raise UserError(
            f"config.optim.drop_epochs = {optim.drop_epochs} is not used by schedule = 'plateau'; "
            "set schedule='steps' or drop_epochs=()"
        )
    if optim.schedule == 'plateau' and optim.plateau_drops and not every:
        raise UserError(
            "config.optim.schedule = 'plateau' drops after evaluations, and "
            'config.training.eval_every_epochs = 0 makes none; set that or another schedule'
        )
    named = [('events', layer) for _, layer, _ in optim.events]
    named += [(f, name) for f in ('rate_factors', 'decay_factors') for name, _ in optim[f]]
    for field, name in named:
        layer = name.partition('.')[0]
        if config.model.get(layer, {}).get('features') == 0:
            raise UserError(
                f'config.optim.{field} names {name}, and config.model.{layer}.features = 0 leaves '
                f'that layer out; take it from {field}'
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of one run in steps. Epoch e begins at step ceil(e * examples / batch)."""

    num_examples: int
    batch_size: int
    total_steps: int
    eval_every_epochs: float

    def first_step(self, epoch: float | fractions.Fraction) -> int:
        """Return the first step of an epoch; batches run across the end of an epoch."""
        return math.ceil(_as_written(epoch) * self.num_examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """Return how many epochs have been seen after `step` steps."""
        return step * self.batch_size / self.num_examples

    def eval_due(self, step: int) -> bool:
        """Say whether the run evaluates after `step` steps: each period, and at the end."""
        if step in (0, self.total_steps):
            return step > 0
        if self.eval_every_epochs == 0:
            return False
        period = _as_written(self.eval_every_epochs)
        count = math.floor(step * self.batch_size / (period * self.num_examples))
        return count > 0 and step == self.first_step(count * period)


def _as_written(epoch: float | fractions.Fraction) -> fractions.Fraction:
    """Return 1/10 for 0.1, which as a binary fraction is more and would begin a step later."""
    return fractions.Fraction(str(epoch))


def make_plan(
    *,
    num_examples: int,
    batch_size: int,
    accumulation_steps: int,
    total_epochs: float,
    total_steps: int,
    log_every_steps: int,
    eval_every_epochs: float,
    watchdog_s: int,
    init_from: str,
    compilation_cache_dir: str,
) -> Plan:
    """Turn the training section into steps, once the number of examples is known."""
    del accumulation_steps, log_every_steps, watchdog_s, init_from, compilation_cache_dir
    if num_examples < 1:
        raise UserError('the training split has no example; name another data.train_split')
    plan = Plan(num_examples, batch_size, total_steps, eval_every_epochs)
    return dataclasses.replace(plan, total_steps=total_steps or plan.first_step(total_epochs))


def to_json(config: Mapping[str, Any] | ml_collections.ConfigDict) -> str:
    """Return a nested config as JSON text, the form that is saved with a run."""
    as_dict = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return json.dumps(as_dict, indent=2, sort_keys=True)


def differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ as `{field: (saved value, value now)}`, None for absent."""
    old, new = flatten(saved), flatten(config)
    both = {name: (old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())}
    return {name: (before, after) for name, (before, after) in both.items() if before != after}


def changes_on_resume(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that differ from the saved run as `{field: 'old -> new'}`.

    Raises UserError for a field that changes what the run means (seed, model, batch, data set,
    augmentation), naming it. A field that one of the two does not know is no such change.
    """
    changed = differences(saved, config)
    for name, (before, after) in changed.items():
        free = name in _NOT_MEANING or before is None or after is None
        if name.startswith(_MEANING) and not free:
            raise UserError(
                f'config.{name} is {after!r}, but the run in this workdir has {before!r}; '
                f'set it back or choose another --workdir'
            )
    return {name: f'{before!r} -> {after!r}' for name, (before, after) in changed.items()}


def data_directory(flag: str, field: str) -> str:
    """Return --data_dir, else data.dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = flag or field or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    if '://' in chosen:
        raise UserError(
            f'{chosen}: array_record reads and writes files only; mount the object store '
            f'(gcsfuse, mount-s3), or copy the data set'
        )
    return os.path.expanduser(chosen)
