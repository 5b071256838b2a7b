"""What the `model` section may be, and its tables."""

import dataclasses

import pytest

from alexnet_jax.network.specification import CONVOLUTIONS, OPERATIONS, ModelConfig
from alexnet_jax.network.variants import ACTIVATIONS, AFTER, INITIALIZERS, output_name
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.errors import UserError
from tests import reference


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'num_classes': 1}, 'num_classes = 1 must be an integer of at least 2, or 0 for the num'),
        ({'towers': 3}, 'towers = 3 must be one of 1, 2'),
        ({'conv1.after': ('pool',)}, r"conv1.after = \('pool',\) must be a tuple of 'activation'"),
        ({'conv2.after': ('activation', 'norm')}, 'conv2.after = .* must be a tuple of'),
        ({'conv2.after': ('activation', 'lrn', 'lrn')}, 'conv2.after = .* must be a tuple of'),
        ({'conv2.padding': (1,)}, 'conv2.padding = .* must be two integers'),
        ({'conv5.pool_window': 0}, 'conv5.pool_window = 0 must be an integer of at least 1'),
        ({'lrn.n': 4}, 'lrn.n = 4 must be an odd integer'),
        ({'activation': 'gelu'}, "activation = 'gelu' must be one of relu, tanh, sigmoid"),
        ({'dropout': 1.0}, 'dropout = 1.0 must be a number of at least 0 and below 1'),
        (
            {'conv3.features': 385},
            'config.model.conv3.features = 385 must be a multiple of model.towers = 2',
        ),
        ({'conv1.features': 0}, 'config.model.conv1.features = 0 leaves no first layer'),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        reference.model_config(**fields)


@pytest.mark.parametrize('after', [('activation',), ('lrn', 'pool', 'activation'), OPERATIONS])
def test_operations_follow_in_any_order(after):
    assert reference.model_config(**{'conv1.after': after}).conv1.after == after


def test_the_tables_have_what_the_fields_allow():
    assert tuple(AFTER) == OPERATIONS
    fields = {f.name: f.metadata.get('rule') for f in dataclasses.fields(ModelConfig)}
    for name, table in (('activation', ACTIVATIONS), ('initializer', INITIALIZERS)):
        assert all(map(fields[name].accepts, table))
        assert len(table) == len(fields[name].words.split(','))


def test_a_resumed_run_may_change_how_the_network_is_computed_and_nothing_else():
    declared = sections.fields(ModelConfig)
    free = {name for name, field in declared.items() if field.metadata['resume']}
    assert free == {'precision', 'forms'}
    numerics = {n for n, f in declared.items() if f.metadata['role'] == sections.NUMERICS}
    assert numerics == {*free, 'dtype'}


def test_names_of_what_follows_a_convolution():
    after = ('activation', 'lrn', 'map_norm', 'pool')
    names = [output_name('conv2', after, operation) for operation in after]
    assert names == ['conv2', 'lrn2', 'map_norm2', 'pool2']
    assert output_name('conv1', ('lrn', 'pool', 'activation'), 'activation') == 'relu1'


def test_only_conv1_has_no_towers_to_see():
    config = reference.model_config()
    with_field = [
        c for c in CONVOLUTIONS if 'sees_both_towers' in sections.fields(type(getattr(config, c)))
    ]
    assert with_field == list(CONVOLUTIONS[1:])
    assert not config.conv1.sees_both_towers
