"""The fields of a configuration, durations in steps, and what a resumed run may change."""

import dataclasses
import fractions
import importlib
import json
import math
import pathlib

import pytest

from alexnet_jax.runtime.config import fields, flatten
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config
from alexnet_jax.training.plan import Plan, TrainingConfig, make_plan
from configs import alexnet, digits, tiny
from tests.typed_config import typed

CONFIGS = [
    path.stem
    for path in sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
    if path.stem != '__init__'
]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_is_valid_and_says_what_it_needs(name):
    module = importlib.import_module(f'configs.{name}')
    Config.from_dict(module.get_config().to_dict())
    assert module.__doc__
    for word in (f'--config=configs/{name}.py', 'Needs:', 'Cost:', 'Expected:'):
        assert word in module.__doc__, f'configs/{name}.py: the docstring lacks {word!r}'


def test_the_sections_and_the_paper_s_config_have_the_same_fields():
    assert set(flatten(alexnet.get_config().to_dict())) == set(fields(Config))


def test_a_configuration_is_the_same_after_a_round_trip():
    config = typed(digits.get_config())
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paper_s_values():
    """Paper 3.3, 4.1, 4.2 and 5, read from the paper, not from the file."""
    config = alexnet.get_config()
    lrn = config.model.lrn
    assert (lrn.k, lrn.n, lrn.alpha, lrn.beta) == (2.0, 5, 1e-4, 0.75)
    assert not lrn.divide_alpha
    assert not lrn.across_towers
    assert (config.model.activation, config.model.initializer) == ('relu', 'normal')
    assert not config.model.dropout_inverted
    assert config.optim.rate_inside_velocity
    assert config.model.dropout == 0.5
    assert (config.augment.crop_px, config.augment.mirror, config.augment.colour_std) == (
        224,
        True,
        0.1,
    )
    optim, training = config.optim, config.training
    assert (optim.learning_rate, optim.momentum, optim.weight_decay) == (0.01, 0.9, 0.0005)
    assert (optim.drop_factor, optim.plateau_max_drops) == (0.1, 3)
    assert (training.batch_size, training.total_epochs) == (128, 90.0)
    flat = flatten(config.to_dict())
    ones = {n.split('.')[1] for n, value in flat.items() if n.endswith('init_bias') and value == 1}
    assert ones == {'conv2', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7'}


def _set(config, name, value):
    """Set `section__field`, type or existence unchecked, as a config file could."""
    *path, last = name.split('__')
    with config.unlocked(), config.ignore_type():
        target = config
        for part in path:
            target = target[part]
        target[last] = value


def _changed(**fields):
    config = digits.get_config()
    for name, value in fields.items():
        _set(config, name, value)
    return config


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'seed': 2**32}, r'seed = 4294967296 must be an integer from 0 to'),
        ({'checkpoint__keep_latest': 1}, 'at least 2'),
        ({'sed': 1}, r'config\.sed is not a field; did you mean config\.seed\?'),
        ({'model__towrs': 1}, r'did you mean config\.model\.towers\?'),
        ({'zzzzzzz': 1}, r'configs/alexnet\.py has all fields'),
        ({'model__towers': 3}, r'config\.model\.towers = 3 must be one of 1, 2'),
        ({'model__towers': True}, r'model\.towers = True'),
        ({'training__batch_size': '128'}, r"batch_size = '128' must be an integer of at least 1"),
        ({'training__batch_size': 0}, 'at least 1'),
        ({'optim__momentum': 1.0}, r'at least 0 and below 1'),
        ({'optim__drop_factor': 0.0}, r'drop_factor = 0\.0 must be between 0 and 1'),
        ({'optim__learning_rate': math.nan}, 'learning_rate = nan'),
        ({'optim__schedule': 'linear'}, 'one of constant, steps, plateau, cosine'),
        ({'optim__milestone_epochs': (3.0, -1.0)}, 'a tuple of epochs above 0'),
        ({'parallel__model': 3}, r'parallel\.model = 3 must be one of 1, 2, 4, 8'),
        ({'parallel__data': 0}, r'-1 \(all\) or at least 1'),
        ({'data__name': ''}, 'a string that is not empty'),
        ({'data__image_shape': (8, 8)}, r'\(height, width, channels\)'),
        ({'model__conv1__padding': (1,)}, 'two integers'),
        ({'model__lrn__n': 4}, 'an odd integer'),
        ({'log__tensorboard': 1}, 'true or false'),
        ({'model__conv2__features': 63}, r'features = 63 must be a multiple of model\.towers = 2'),
        ({'model__fc6__features': 31}, r'fc6\.features = 31 must be a multiple of'),
        ({'model__conv1__features': 0}, 'leaves no first layer'),
        ({'augment__crop_px': 9}, r'larger than the images'),
        ({'training__total_epochs': 0.0}, 'are both 0; set one'),
        (
            {'optim__milestone_epochs': ()},
            "schedule = 'steps' without config.optim.milestone_epochs",
        ),
        (
            {'optim__schedule': 'plateau'},
            r'milestone_epochs = \(25\.0, 35\.0\) is not used by schedule',
        ),
        (
            {
                **{'optim__schedule': 'plateau', 'optim__milestone_epochs': ()},
                **{'training__eval_every_epochs': 0.0},
            },
            'eval_every_epochs = 0 means that there are none; set it above 0, or choose another',
        ),
        (
            {'optim__events': ((3.0, 'conv6', 0.1),)},
            r'events names conv6, but config\.model',
        ),
        (
            {'optim__lr_multipliers': (('conv6.bias', 2.0),)},
            r'lr_multipliers names conv6\.bias, but',
        ),
        (
            {'evaluation__ensemble_search_split': 'train'},
            'is not used by ensemble_weights =',
        ),
        ({'log__profile_steps': (3, 2)}, 'must be \\(first step, last step\\)'),
    ],
)
def test_a_bad_field_is_one_line_that_names_it(fields, words):
    with pytest.raises(UserError, match=words) as error:
        typed(_changed(**fields))
    assert '\n' not in str(error.value)


def test_a_missing_field_is_named():
    config = digits.get_config()
    with config.unlocked():
        del config.model['dropout']
    with pytest.raises(UserError, match=r'config\.model\.dropout is missing'):
        typed(config)


def _plan(examples: int, batch: int, epochs: float, every: float) -> Plan:
    section = tiny.get_config().training
    section.update(batch_size=batch, total_epochs=epochs, eval_every_epochs=every, total_steps=0)
    return make_plan(TrainingConfig(**section.to_dict()), examples)


@pytest.mark.parametrize(
    ('examples', 'batch', 'epochs', 'every'),
    [(1437, 32, 7.0, 2.0), (100, 7, 9.0, 0.5), (10, 64, 20.0, 1.0), (128, 128, 3.0, 1.0)],
)
def test_durations_follow_the_definition(examples, batch, epochs, every):
    """Epoch e begins at step ceil(e N / batch); evaluations stand where a period of epochs ends."""
    plan = _plan(examples, batch, epochs, every)
    assert plan.total_steps == math.ceil(fractions.Fraction(epochs) * examples / batch)
    expected, count = {plan.total_steps}, 1
    while (step := math.ceil(count * fractions.Fraction(every) * examples / batch)) < (
        plan.total_steps
    ):
        expected.add(step)
        count += 1
    assert {step for step in range(plan.total_steps + 1) if plan.eval_due(step)} == expected


@pytest.mark.parametrize(('tenths', 'step'), [(1, 10), (3, 30), (7, 70), (11, 110), (23, 230)])
def test_tenths_of_an_epoch_are_tenths(tenths, step):
    """100 steps an epoch: the double nearest to 0.1 is above it, and ceil would make 11 of it."""
    assert _plan(12_800, 128, tenths / 10, 0.0).total_steps == step
    plan = _plan(12_800, 128, 3.0, tenths / 10)
    due = [s for s in range(300) if plan.eval_due(s)]
    assert due == list(range(step, 300, step))


def test_total_steps_wins_over_epochs_and_no_period_means_the_end():
    plan = make_plan(typed(tiny.get_config()).training, 1437)
    assert plan.total_steps == 12
    plan = _plan(100, 10, 3.0, 0.0)
    assert [step for step in range(31) if plan.eval_due(step)] == [30]
    assert plan.epoch(15) == pytest.approx(1.5)


def test_the_paper_s_run_in_steps():
    config = typed(alexnet.get_config())
    plan = make_plan(config.training, config.data.train_examples)
    assert plan.total_steps == 900_821
    assert plan.first_step(1) == 10_010


@pytest.mark.parametrize(
    'fields',
    [
        {'seed': 1},
        {'model__dropout': 0.4},
        {'model__conv1__kernel': 5},
        {'data__name': 'mnist'},
        {'augment__crop_px': 7},
        {'training__batch_size': 64},
    ],
)
def test_resume_refuses_what_changes_the_meaning(fields):
    (name,) = fields
    words = name.replace('__', r'\.')
    saved = alexnet.get_config().to_dict()
    new = alexnet.get_config()
    _set(new, name, fields[name])
    with pytest.raises(UserError, match=rf'config\.{words} is .* but the run in this workdir has'):
        typed(new).changes_since(saved)


def test_resume_accepts_and_names_mesh_schedule_and_length():
    saved = digits.get_config().to_dict()
    new = _changed(
        parallel__model=1,
        optim__learning_rate=0.5,
        training__total_epochs=99.0,
        model__forms='plain',
        model__precision='default',
    )
    changes = typed(new).changes_since(saved)
    assert set(changes) == {
        'parallel.model',
        'optim.learning_rate',
        'training.total_epochs',
        'model.forms',
        'model.precision',
    }
    assert changes['parallel.model'] == '2 -> 1'
    assert not typed(digits.get_config()).changes_since(saved)


def test_json_round_trip_is_no_change():
    config = typed(digits.get_config())
    assert not config.changes_since(json.loads(json.dumps(config.to_dict())))


def test_the_sections_are_frozen():
    config = typed(digits.get_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.conv1.features = 1  # pyright: ignore[reportAttributeAccessIssue]
