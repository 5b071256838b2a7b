"""`training.init_from`: what fits is loaded bit for bit, the rest is drawn and named."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from alexnet_jax.checkpoint.pretrained import init_network, read_only
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import loop
from alexnet_jax.training.experiment import build
from configs import tiny
from tests.typed_config import typed

pytestmark = pytest.mark.slow


def _config(data_dir, seed=0, conv6=0):
    config = tiny.get_config()
    config.seed = seed
    config.model.conv6.features = conv6
    config.data.dir = str(data_dir)
    config.log.tensorboard = False
    config.training.update(total_steps=2, eval_every_epochs=0.0)
    config.optim.schedule = 'constant'
    config.evaluation.final_views = 1
    return config


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A short run with conv6, one tower on each of two devices."""
    root = tmp_path_factory.mktemp('source')
    config = _config(root / 'data', conv6=8)
    assert loop.train(build(typed(config)), epath.Path(root / 'run')) == 0
    return root


@pytest.fixture(scope='module')
def saved(source):
    """The parameters of that run, read whole on one device."""
    config = _config(source / 'data', conv6=8)
    config.parallel.update(data=1, model=1)
    abstract = build(typed(config)).abstract_state().params
    with read_only(epath.Path(source / 'run')) as (checkpoints, step, _):
        params, others = checkpoints.restore_network(step, abstract)
    assert not others
    return jax.device_get(params)


def _experiment(source, *, classes=10, parallel=None, **config_fields):
    config = _config(source / 'data', seed=5, **config_fields)
    config.parallel.update(parallel or {})
    experiment = build(typed(config))
    model = dataclasses.replace(experiment.config.model, num_classes=classes)
    return dataclasses.replace(experiment, model=experiment.model.clone(config=model))


def _init(source, experiment, place='run', class_names=None):
    drawn = experiment.init_state().params
    wanted = experiment.abstract_state().params
    class_names = class_names or experiment.dataset.fingerprint()['class_names']
    params, event = init_network(wanted, drawn, str(source / place), class_names)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(drawn)]
    assert [leaf.sharding for leaf in jax.tree.leaves(params)] == shardings
    return jax.device_get(drawn), jax.device_get(params), event


def _assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


@pytest.mark.parametrize('parallel', [{'data': 1, 'model': 1}, {'data': 2, 'model': 4}], ids=str)
def test_all_of_the_same_network_is_loaded_on_any_mesh(source, saved, parallel):
    drawn, params, event = _init(source, _experiment(source, conv6=8, parallel=parallel))
    _assert_equal(params, saved)
    assert (drawn['conv1']['kernel'] != saved['conv1']['kernel']).all()
    assert len(event['loaded'].split()) == 18
    assert event['drawn_anew'] == ''
    assert (event['init_step'], event['init_data']) == (2, 'digits/1.0.0')


@pytest.mark.parametrize('classes', [10, 7])
def test_another_head_and_an_absent_layer_are_named_and_drawn(source, saved, classes):
    """With as many classes fc8 would fit by its shape, but its outputs mean other things."""
    drawn, params, event = _init(
        source, _experiment(source, classes=classes), 'run/checkpoints/2', 'others'
    )
    _assert_equal(params['fc8'], drawn['fc8'])
    same = {name: params[name] for name in params if name != 'fc8'}
    _assert_equal(same, {name: saved[name] for name in same})
    assert 'conv6' not in params
    assert 'fc8 (other classes)' in event['drawn_anew']
    assert 'conv6.kernel (float32[3, 3, 8, 8] there, absent here)' in event['drawn_anew']
    assert 'fc8' not in event['loaded']


def test_a_layer_of_another_width_is_drawn(source, saved):
    config = _config(source / 'data', seed=5)
    config.model.fc7.features = 24
    drawn, params, event = _init(source, build(typed(config)))
    for name in ('fc7', 'fc8'):
        _assert_equal(params[name]['kernel'], drawn[name]['kernel'])
    _assert_equal(params['fc6'], saved['fc6'])
    _assert_equal(params['fc8']['bias'], saved['fc8']['bias'])
    assert 'fc7.bias (float32[16] there, float32[24] here)' in event['drawn_anew']


def test_nothing_that_fits_is_an_error(source):
    config = _config(source / 'data')
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        config.model[name].features = 16
    config.model.fc6.features = config.model.fc7.features = 32
    with pytest.raises(UserError, match=r'none of its parameters fits, for example conv1\.bias is'):
        _init(source, build(typed(config)), class_names='others')


def test_no_checkpoint_is_one_line(source):
    with pytest.raises(UserError, match=r'no checkpoint in .*nowhere; name the workdir'):
        _init(source, _experiment(source), 'nowhere')


def test_a_run_begins_from_it_once_and_a_resumed_one_does_not_ask_again(source, saved, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(source / 'run', moved)
    config = _config(source / 'data', seed=1)
    config.training.init_from = str(moved)
    config.training.total_steps = 1
    config.optim.learning_rate = 0.0
    workdir = epath.Path(tmp_path / 'run')
    assert loop.train(build(typed(config)), workdir) == 0
    shutil.rmtree(moved)
    config.training.total_steps = 2
    assert loop.train(build(typed(config)), workdir) == 0
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    started, resumed = (row for row in rows if row['kind'] == 'event')
    assert started['init_step'] == 2
    assert 'conv6.bias (float32[8] there, absent here)' in started['drawn_anew']
    assert 'init_step' not in resumed
    # Nothing was learned: the rate is 0, and the velocity began at 0.
    abstract = build(typed(config)).abstract_state().params
    with read_only(workdir) as (checkpoints, step, _):
        params, _ = checkpoints.restore_network(step, abstract)
    assert step == 2
    _assert_equal(jax.device_get(params), {name: saved[name] for name in params})
