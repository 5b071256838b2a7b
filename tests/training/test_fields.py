"""Every field of the sections that define a run, turned once: something must change by it.

Parameters, the traced program, the data's plan or the rates; or a reason stands here why none does.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.input.augment import Augment
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.runtime.config import fields, flatten
from alexnet_jax.training.config import Config
from alexnet_jax.training.optim import make_optimizer
from alexnet_jax.training.plan import Plan, make_plan
from configs import tiny
from tests.parallel.tiny_run import Run
from tests.typed_config import typed

# What every convolution has here, so that each field of one has something to change.
LAYER = {'features': 8, 'pool_window': 2, 'pool_stride': 1}
LAYER |= {'after': ('activation', 'lrn', 'map_norm', 'bn', 'pool')}
SIDE = 16
NEW: dict[str, Any] = {
    'padding': (2, 1),
    'after': ('pool', 'lrn', 'map_norm', 'bn', 'activation'),
    'initializer': 'he',
    'activation': 'tanh',
    'dtype': 'bfloat16',
    'precision': 'default',
    'forms': 'fast',
    'towers': 1,
    'n': 3,
    'mean': 'centre',
    'resized_crop_area': (0.5, 1.0),
    'schedule': 'constant',
    'milestone_epochs': (3.0,),
    'lr_multipliers': (('bias', 2.0),),
    'weight_decay_multipliers': (('conv1', 0.0),),
    'events': ((2, 'conv1', 0.5),),
}
_OPENED = 'says which data are opened and checked: tests/input/test_sources.py'
_SPEED = 'how fast the data are read, never which: tests/input/test_pipeline.py'
WHY_NOT = {
    **{f'data.{name}': _OPENED for name in ('name', 'dir', 'train_split', 'eval_split')},
    **{f'data.{name}': _OPENED for name in ('image_shape', 'train_examples', 'eval_examples')},
    **{f'data.{name}': _SPEED for name in ('read_threads', 'prefetch_batches')},
    'training.log_every_steps': 'what is written down: tests/training/test_loop.py',
    'training.watchdog_s': 'when a run that hangs is ended: tests/training',
    'training.watchdog_slow_s': 'the same',
    'training.init_from': 'read before the first step, from a checkpoint: tests/training',
    'training.compilation_cache_dir': 'where compiled programs are kept',
}
SECTIONS = ('model.', 'augment.', 'optim.', 'data.', 'training.')
NAMES = [name for name in fields(Config) if name.startswith(SECTIONS)]


def base(field):
    """Return a configuration in which the field has a part to play."""
    config = tiny.get_config()
    for name in CONVOLUTIONS:
        config.model[name].update(LAYER)
    config.model.update(forms='plain')
    config.augment.update(crop_px=7, mirror=True, colour_std=0.1, random_crop=True)
    config.training.update(total_steps=0, total_epochs=1.5)
    config.optim.update(schedule='steps', milestone_epochs=(1.0, 2.0))
    if '.plateau' in field:
        config.optim.update(schedule='plateau', milestone_epochs=(), plateau_patience=2)
    return config


def other(field, value):
    """Return another value that the field may have."""
    name = field.rpartition('.')[2]
    if name in NEW:
        return NEW[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value if 'features' in name or ('batch' in name and value) else value + 1
    assert isinstance(value, float), f'say in NEW what {field} = {value!r} may be turned into'
    return value / 2 if value else 0.5


def text(function, *arguments):
    """Return a traced program as text, with its shapes and constants and without addresses."""
    return re.sub(r'0x[0-9a-f]+', '', str(jax.make_jaxpr(function)(*arguments)))


def model(config):
    """Drawing the parameters and a forward pass in training, traced."""
    network = AlexNet(config.model)
    image, rows = jnp.zeros((2, SIDE, SIDE, 1)), jnp.arange(2, dtype=jnp.int32)
    key = jax.random.key(0)

    def draw_and_run(key, images):
        variables = network.init(key, images, rows, key)
        return variables, network.apply(variables, images, rows, key, mutable=['batch_stats'])

    return text(draw_and_run, key, image)


def augment(config):
    plan = make_plan(config.training, 1000)
    ours = Augment(config.augment, plan.first_step(config.augment.colour_epochs))
    images = jnp.zeros((2, 9, 9, 3), jnp.uint8)
    statistics = Run(2, 1, 1, 'float32').statistics._replace(
        mean_image=jnp.ones((9, 9, 3)), eigenvectors=jnp.eye(3), std=jnp.ones(3)
    )
    rows, step = jnp.arange(2, dtype=jnp.int32), jnp.int32(0)

    def training(key):
        crops = ours.training(images, statistics, key, rows, step)
        return ours.mix(crops, key, rows) if ours.mixes else crops

    return (
        text(training, jax.random.key(0)),
        np.asarray(ours.view_corners((9, 9), 10)[1]).tolist(),
    )


def optim(config):
    ours = make_optimizer(config.optim, Plan(160, 16, 100, 0.0))
    params = {name: {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)} for name in ('conv1', 'fc8')}
    plateau, rates = ours.init_plateau(), []
    for error in (0.9, 0.8, 0.7993, 0.7993, 0.7993, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8):
        plateau = ours.after_evaluation(plateau, error)
        rates.append(float(plateau.scale))

    def update(step, params):
        return ours.rule.update(
            params,
            ours.rule.init(params),
            params,
            learning_rates=ours.learning_rates(step, plateau, params),
            sum_over_mesh=lambda numbers: numbers,
        )

    return text(update, jnp.int32(0), params), rates


def training(config):
    plan = make_plan(config.training, 1000)
    due = [step for step in range(plan.total_steps + 1) if plan.eval_due(step)]
    run = Run(
        *(2, 1, 1, 'float32'),
        accumulation_steps=config.training.accumulation_steps,
        changes=tuple(
            (f'training.{name}', getattr(config.training, name))
            for name in ('label_smoothing', 'ema_decay')
        ),
    )
    traced = text(run.train_step(), run.state, run.batch, run.statistics)
    return plan, due, traced


TRACES = {'model': model, 'augment': augment, 'optim': optim, 'training': training}


@pytest.mark.parametrize('field', NAMES)
def test_turning_a_field_changes_something_or_it_says_why_not(field):
    if field in WHY_NOT:
        assert WHY_NOT[field]
        return
    trace = TRACES[field.partition('.')[0]]
    config, turned = base(field), base(field)
    before = flatten(config.to_dict())[field]
    after = other(field, before)
    assert after != before
    turned.update_from_flattened_dict({field: after})
    same = unturned(trace, plateau='.plateau' in field)
    assert trace(typed(turned)) != same, f'config.{field}: {before!r} -> {after!r}'


@pytest.mark.parametrize('section', TRACES)
def test_the_same_configuration_is_the_same_program(section):
    trace = TRACES[section]
    assert trace(typed(base(''))) == unturned(trace, plateau=False)


@functools.cache
def unturned(trace, plateau):
    return trace(typed(base('.plateau' if plateau else '')))


def test_no_reason_for_a_field_that_is_gone():
    assert set(WHY_NOT) <= set(NAMES)
    assert not set(NEW) - {name.rpartition('.')[2] for name in NAMES}
