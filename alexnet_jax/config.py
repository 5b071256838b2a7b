"""What a configuration may say: the table of fields, durations in steps, what a resume changes."""

import dataclasses
import difflib
import fractions
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')


class UserError(Exception):
    """What the user can mend: one line that names the thing and the remedy. Ends in exit code 2."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one field may be: a test on its value and the words for it."""

    accepts: Callable[[Any], bool]
    words: str


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _integer(low: int) -> Rule:
    return Rule(lambda v: _is_integer(v) and v >= low, f'an integer of at least {low}')


def _number(low: float, high: float = math.inf) -> Rule:
    words = f'a number of at least {low:g}' + ('' if high == math.inf else f' and below {high:g}')
    return Rule(lambda v: _is_number(v) and low <= v < high, words)


def _one_of(*choices: Any) -> Rule:
    kind = type(choices[0])
    words = 'one of ' + ', '.join(map(str, choices))
    return Rule(lambda v: type(v) is kind and v in choices, words)


def _tuple_of(accepts: Callable[[Any], bool], *lengths: int, words: str) -> Rule:
    return Rule(
        lambda v: (
            isinstance(v, tuple) and (not lengths or len(v) in lengths) and all(map(accepts, v))
        ),
        words,
    )


_TEXT = Rule(lambda v: isinstance(v, str), 'a text')
_NAME = Rule(lambda v: isinstance(v, str) and v != '', 'a text that is not empty')
_ANY_NUMBER = Rule(_is_number, 'a number')
_BOOLEAN = Rule(lambda v: isinstance(v, bool), 'true or false')
_CONVOLUTION = {
    'features': _integer(0),
    'kernel': _integer(1),
    'stride': _integer(1),
    'padding': _tuple_of(
        lambda v: _is_integer(v) and v >= 0, 2, words='two integers, zero pixels before and after'
    ),
    'init_std': _number(0.0),
    'init_bias': _ANY_NUMBER,
    'lrn': _BOOLEAN,
    'pool_window': _integer(0),
    'pool_stride': _integer(1),
}
_DENSE = {'features': _integer(1), 'init_std': _number(0.0), 'init_bias': _ANY_NUMBER}

# Every field there is. `configs/alexnet.py` says what each one means.
FIELDS: dict[str, Rule] = {
    'seed': Rule(lambda v: _is_integer(v) and 0 <= v < 2**32, 'an integer of 0 to 2**32 - 1'),
    'model.num_classes': _integer(2),
    'model.towers': _one_of(1, 2),
    **{f'model.{c}.{name}': rule for c in CONVOLUTIONS for name, rule in _CONVOLUTION.items()},
    **{f'model.{c}.sees_both_towers': _BOOLEAN for c in CONVOLUTIONS[1:]},
    **{f'model.{d}.{name}': rule for d in ('fc6', 'fc7') for name, rule in _DENSE.items()},
    'model.fc8.init_std': _number(0.0),
    'model.fc8.init_bias': _ANY_NUMBER,
    'model.lrn.k': _number(0.0),
    'model.lrn.n': Rule(lambda v: _is_integer(v) and v > 0 and v % 2 == 1, 'an odd integer'),
    'model.lrn.alpha': _number(0.0),
    'model.lrn.beta': _number(0.0),
    'model.dropout': _number(0.0, 1.0),
    'model.dtype': _one_of('float32', 'bfloat16', 'float64'),
    'model.precision': _one_of('highest', 'high', 'default'),
    'model.forms': _one_of('auto', 'plain', 'fast'),
    'parallel.data': Rule(
        lambda v: v == -1 or (_is_integer(v) and v > 0), '-1 (all) or 1 and more'
    ),
    'parallel.model': _one_of(1, 2, 4, 8),
    'parallel.backend': _one_of('shard_map', 'pmap'),
    'parallel.cpu_devices': _integer(0),
    'parallel.initialization_timeout_s': _integer(1),
    'parallel.heartbeat_timeout_s': _integer(1),
    'parallel.shutdown_timeout_s': _integer(1),
    'data.name': _NAME,
    'data.dir': _TEXT,
    'data.train_split': _NAME,
    'data.eval_split': _NAME,
    'data.image_shape': _tuple_of(
        lambda v: _is_integer(v) and v > 0, 0, 3, words='(height, width, channels) or ()'
    ),
    'data.train_examples': _integer(0),
    'data.eval_examples': _integer(0),
    'data.read_threads': _integer(1),
    'data.prefetch_batches': _integer(1),
    'augment.crop_px': _integer(1),
    'augment.random_crop': _BOOLEAN,
    'augment.mirror': _BOOLEAN,
    'augment.colour_std': _number(0.0),
    'optim.learning_rate': _number(0.0),
    'optim.momentum': _number(0.0, 1.0),
    'optim.weight_decay': _number(0.0),
    'optim.schedule': _one_of('constant', 'steps', 'plateau'),
    'optim.drop_factor': Rule(lambda v: _is_number(v) and 0 < v < 1, 'between 0 and 1'),
    'optim.drop_epochs': _tuple_of(
        lambda v: _is_number(v) and v > 0, words='a tuple of epochs above 0'
    ),
    'optim.plateau_evaluations': _integer(1),
    'optim.plateau_min_gain': _number(0.0),
    'optim.plateau_drops': _integer(0),
    'training.batch_size': _integer(1),
    'training.accumulation_steps': _integer(1),
    'training.total_epochs': _number(0.0),
    'training.total_steps': _integer(0),
    'training.log_every_steps': _integer(1),
    'training.eval_every_epochs': _number(0.0),
    'training.watchdog_s': _integer(0),
    'training.init_from': _TEXT,
    'training.compilation_cache_dir': _TEXT,
    'evaluation.batch_size': _integer(1),
    'evaluation.views': _one_of(1, 10),
    'evaluation.final_views': _one_of(1, 10),
    'evaluation.checkpoint': _one_of('latest', 'best'),
    'evaluation.ensemble': _tuple_of(
        lambda v: isinstance(v, str) and v != '', words="a tuple such as ('runs/a', 'runs/b')"
    ),
    'evaluation.ensemble_weights': _one_of('mean', 'search'),
    'evaluation.ensemble_search_split': _TEXT,
    'evaluation.ensemble_dir': _TEXT,
    'checkpoint.save_every_steps': _integer(0),
    'checkpoint.keep_latest': _integer(2),  # one is sealed while the next is written
    'checkpoint.keep_best': _integer(0),
    'log.tensorboard': _BOOLEAN,
    'log.progress_bar': _BOOLEAN,
    'log.profile_steps': _tuple_of(
        lambda v: _is_integer(v) and v >= 0, 2, words='(first step, last step); (0, 0) for none'
    ),
}

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
            flat[f'{prefix}{key}'] = tuple(value) if isinstance(value, list) else value
    return flat


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


def _validate_together(config: ml_collections.ConfigDict) -> None:
    model, training, parallel = config.model, config.training, config.parallel
    for name in CONVOLUTIONS:
        if model[name].features % model.towers:
            raise UserError(
                f'config.model.{name}.features = {model[name].features} must divide by '
                f'model.towers = {model.towers}'
            )
    for name in ('fc6', 'fc7'):
        if model[name].features % max(parallel.model, model.towers):
            raise UserError(
                f'config.model.{name}.features = {model[name].features} must divide by '
                f'parallel.model = {parallel.model} and by model.towers = {model.towers}'
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
    if config.log.profile_steps[0] > config.log.profile_steps[1]:
        raise UserError(
            f'config.log.profile_steps = {config.log.profile_steps} must be (first step, last step)'
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
        return math.ceil(fractions.Fraction(epoch) * self.num_examples / self.batch_size)

    def epoch(self, step: int) -> float:
        """Return how many epochs have been seen after `step` steps."""
        return step * self.batch_size / self.num_examples

    def eval_due(self, step: int) -> bool:
        """Say whether the run evaluates after `step` steps: each period, and at the end."""
        if step in (0, self.total_steps):
            return step > 0
        if self.eval_every_epochs == 0:
            return False
        period = fractions.Fraction(self.eval_every_epochs)
        count = math.floor(step * self.batch_size / (period * self.num_examples))
        return count > 0 and step == self.first_step(count * period)


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
    return (
        plan
        if total_steps
        else dataclasses.replace(plan, total_steps=plan.first_step(total_epochs))
    )


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
