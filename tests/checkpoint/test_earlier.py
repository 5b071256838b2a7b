"""Configurations saved under the names that fields had before mean what they meant."""

import copy
import importlib
import json
import pathlib

import numpy as np
import pytest
from etils import epath

from alexnet_jax.checkpoint import earlier
from alexnet_jax.checkpoint.checkpoints import CheckpointConfig, Checkpoints
from alexnet_jax.runtime.config import differences, flatten
from alexnet_jax.training.config import Config
from tests.typed_config import typed

# What runs of each configuration had saved, kept as it was: nothing writes such a file any more.
FILE = pathlib.Path(__file__).parents[1] / 'golden' / 'earlier_configs.json'
EARLIER = json.loads(FILE.read_text())


def configuration(name: str) -> Config:
    """Return a configuration of today with the values that its file had then."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.parallel.heartbeat_timeout_s = 20
    config.training.watchdog_slow_s = 10 * config.training.watchdog_s
    if name == 'caffenet':
        config.augment.mean = 'centre'
    return typed(config)


@pytest.mark.parametrize('name', EARLIER)
def test_a_saved_configuration_means_what_its_file_says_today(name):
    today = configuration(name)
    before = copy.deepcopy(EARLIER[name])
    translated = earlier.in_present_names(EARLIER[name])
    assert Config.from_dict(translated) == today
    assert not differences(Config, translated, today.to_dict())
    assert not today.changes_since(translated)
    assert EARLIER[name] == before, 'what is saved stays as it was'
    assert set(flatten(before)) - set(flatten(translated)), 'it has names of before'


@pytest.mark.parametrize('name', EARLIER)
def test_present_names_stay_as_they_are(name):
    today = importlib.import_module(f'configs.{name}').get_config().to_dict()
    assert earlier.in_present_names(today) == today


@pytest.mark.parametrize(
    ('order', 'lrn', 'map_norm', 'window', 'after', 'window_now'),
    [
        (['activation', 'lrn', 'pool'], False, False, 0, ['activation'], 3),
        (['activation', 'lrn', 'pool'], True, False, 3, ['activation', 'lrn', 'pool'], 3),
        (['activation', 'lrn', 'pool'], False, False, 2, ['activation', 'pool'], 2),
        (['lrn', 'pool', 'activation'], True, True, 0, ['lrn', 'map_norm', 'activation'], 3),
        (['pool', 'activation', 'lrn'], False, True, 2, ['pool', 'activation', 'map_norm'], 2),
    ],
)
def test_the_order_and_what_was_on_are_one_list(order, lrn, map_norm, window, after, window_now):
    layer = {'order': order, 'lrn': lrn, 'map_norm': map_norm, 'pool_window': window, 'kernel': 5}
    now = earlier.in_present_names({'model': {'conv1': layer, 'dropout': 0.5}, 'optim': {}})
    assert now['model'] == {
        'conv1': {'kernel': 5, 'after': after, 'pool_window': window_now},
        'dropout': 0.5,
    }


def test_a_checkpoint_of_before_answers_in_present_names(tmp_path):
    meta = {'config': EARLIER['digits'], 'data': {}}
    config = CheckpointConfig(save_every_steps=1, keep_latest=2, keep_best=0)
    state = {'params': np.zeros(3)}
    with Checkpoints(epath.Path(tmp_path), config) as checkpoints:
        checkpoints.save(1, state, meta)
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        found = checkpoints.find()
        seen: list[dict] = []
        checkpoints.restore(state, seen.append)
    assert found is not None
    for saved in (found[1], *seen):
        assert not configuration('digits').changes_since(saved['config'])
        assert saved['config']['optim']['milestone_epochs'] == [25.0, 35.0]
    assert len(seen) == 1
