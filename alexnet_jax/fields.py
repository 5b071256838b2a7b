"""The table of fields: what each field of a configuration may be."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one field may be: a test on its value and the words for it."""

    accepts: Callable[[Any], bool]
    words: str


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _is_rate(value: Any) -> bool:
    return _is_number(value) and value >= 0


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
_LAYER = (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8')
_PARAMETERS = {*_LAYER, 'kernel', 'bias', *(f'{x}.{k}' for x in _LAYER for k in ('kernel', 'bias'))}
_ANY_NUMBER = Rule(_is_number, 'a number')
_BOOLEAN = Rule(lambda v: isinstance(v, bool), 'true or false')
_FACTORS = _tuple_of(
    lambda v: isinstance(v, tuple) and len(v) == 2 and v[0] in _PARAMETERS and _is_rate(v[1]),
    words="a tuple of (layer, 'kernel', 'bias' or 'conv1.bias', factor), such as (('bias', 2.0),)",
)
_ODD = Rule(lambda v: _is_integer(v) and v > 0 and v % 2 == 1, 'an odd integer')
_CONVOLUTION = {
    'features': _integer(0),
    'kernel': _integer(1),
    'stride': _integer(1),
    'padding': _tuple_of(
        lambda v: _is_integer(v) and v >= 0, 2, words='two integers, zero pixels before and after'
    ),
    'init_std': _number(0.0),
    'init_bias': _ANY_NUMBER,
    'local': _BOOLEAN,
    'order': Rule(
        lambda v: isinstance(v, tuple) and sorted(map(str, v)) == ['activation', 'lrn', 'pool'],
        "'activation', 'lrn' and 'pool' in some order",
    ),
    'lrn': _BOOLEAN,
    'map_norm': _BOOLEAN,
    'pool_window': _integer(0),
    'pool_stride': _integer(1),
    'pool_partial': _BOOLEAN,
}
_DENSE = {'features': _integer(0), 'init_std': _number(0.0), 'init_bias': _ANY_NUMBER}

# Every field there is. `configs/alexnet.py` says what each one means.
FIELDS: dict[str, Rule] = {
    'seed': Rule(lambda v: _is_integer(v) and 0 <= v < 2**32, 'an integer of 0 to 2**32 - 1'),
    'model.num_classes': _integer(2),
    'model.towers': _one_of(1, 2),
    **{f'model.{c}.{name}': rule for c in CONVOLUTIONS for name, rule in _CONVOLUTION.items()},
    **{f'model.{c}.sees_both_towers': _BOOLEAN for c in CONVOLUTIONS[1:]},
    **{f'model.{d}.{name}': rule for d in ('fc6', 'fc7') for name, rule in _DENSE.items()},
    **{f'model.{d}.sees_both_towers': _BOOLEAN for d in ('fc6', 'fc7')},
    'model.fc8.init_std': _number(0.0),
    'model.fc8.init_bias': _ANY_NUMBER,
    **{f'model.{norm}.k': _number(0.0) for norm in ('lrn', 'map_norm')},
    **{f'model.{norm}.n': _ODD for norm in ('lrn', 'map_norm')},
    **{f'model.{norm}.alpha': _number(0.0) for norm in ('lrn', 'map_norm')},
    **{f'model.{norm}.beta': _number(0.0) for norm in ('lrn', 'map_norm')},
    'model.lrn.divide_alpha': _BOOLEAN,
    'model.lrn.across_towers': _BOOLEAN,
    'model.activation': _one_of('relu', 'tanh', 'sigmoid'),
    'model.initializer': _one_of('normal', 'xavier', 'he', 'pytorch'),
    'model.dropout': _number(0.0, 1.0),
    'model.dropout_inverted': _BOOLEAN,
    'model.dropout_inputs': _BOOLEAN,
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
    'augment.images_per_crop': _integer(1),
    'augment.mean': _one_of('at_crop', 'centre', 'channels'),
    'augment.pixel_divisor': Rule(lambda v: _is_number(v) and v > 0, 'a number above 0'),
    'augment.colour_std': _number(0.0),
    'augment.colour_divisor': Rule(lambda v: _is_number(v) and v > 0, 'a number above 0'),
    'augment.colour_epochs': _number(0.0),
    'augment.rotation_degrees': _number(0.0),
    'optim.learning_rate': _number(0.0),
    'optim.reference_batch': _integer(0),
    'optim.warmup_epochs': _number(0.0),
    'optim.momentum': _number(0.0, 1.0),
    'optim.weight_decay': _number(0.0),
    'optim.rate_inside_velocity': _BOOLEAN,
    'optim.lars_trust': _number(0.0),
    'optim.rate_factors': _FACTORS,
    'optim.decay_factors': _FACTORS,
    'optim.schedule': _one_of('constant', 'steps', 'plateau'),
    'optim.drop_factor': Rule(lambda v: _is_number(v) and 0 < v < 1, 'between 0 and 1'),
    'optim.drop_epochs': _tuple_of(
        lambda v: _is_number(v) and v > 0, words='a tuple of epochs above 0'
    ),
    'optim.plateau_evaluations': _integer(1),
    'optim.plateau_min_gain': _number(0.0),
    'optim.plateau_drops': _integer(0),
    'optim.events': _tuple_of(
        lambda v: (
            isinstance(v, tuple)
            and len(v) == 3
            and _is_rate(v[0])
            and v[1] in ('all', *_LAYER)
            and _is_rate(v[2])
        ),
        words="a tuple of (epoch, layer or 'all', rate), such as ((25, 'all', 0.001),)",
    ),
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
