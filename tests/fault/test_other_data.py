"""A run does not go on with other training data than it began with."""

import copy

import pytest

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import loop
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed

pytestmark = pytest.mark.fault


def test_each_change_of_the_training_data_is_refused_by_its_name(tmp_path):
    config = tiny.get_config()
    config.data.dir = str(tmp_path)
    experiment = build(typed(config))
    saved = loop._meta(experiment)
    assert loop._check_same_run(experiment, saved) == {}
    refused = [name for name in saved['data'] if not name.startswith('eval_')]
    assert {'train_name', 'train_examples', 'class_names'} <= set(refused)
    for name in saved['data']:
        meta = copy.deepcopy(saved)
        meta['data'][name] = 'another'
        if name not in refused:
            assert loop._check_same_run(experiment, meta) == {}
            continue
        with pytest.raises(UserError, match=f'has changed: {name} is .* was .another.') as error:
            loop._check_same_run(experiment, meta)
        assert '\n' not in str(error.value)
