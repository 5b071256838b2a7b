"""`--mode=check`: a sound configuration beats chance, and the cause of an unsound one is named."""

import math
import re

import numpy as np
import pytest

from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import check
from alexnet_jax.training.experiment import build
from configs import digits
from tests import reference
from tests.typed_config import typed

STEPS = 100


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def _config(data_dir, **fields):
    """The digits' configuration with narrower layers; `section__field` changes it."""
    config = digits.get_config()
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        config.model[name].update(features=16, init_std=0.12)
    config.model.fc6.update(features=64, init_std=0.1)
    config.model.fc7.update(features=64, init_std=0.15)
    config.data.dir = str(data_dir)
    config.parallel.update(data=1, model=1, cpu_devices=0)
    config.optim.learning_rate = 0.01
    for name, value in fields.items():
        *path, last = name.split('__')
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    return config


@pytest.mark.slow
def test_a_sound_configuration_beats_chance(data_dir, capsys):
    check.check(build(_typed(data_dir, parallel__model=2)), STEPS)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r'the network beats chance: the loss is \d\.\d+ after \d+ steps on one batch, '
        r'and [12]\.\d+ for a prediction that ignores the images',
        lines[-1],
    )
    layers = [line.split()[0] for line in lines[2:-1]]
    assert layers == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8']


def _typed(*arguments, **fields):
    return typed(_config(*arguments, **fields))


def _small_weights(config):
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8'):
        config.model[name].init_std = 0.01
    return typed(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'optim__learning_rate': 0.0, 'optim__weight_decay': 0.0}, 'no weight changes in a step'),
        ({'optim__learning_rate': 1e-9}, r'one step changes no layer by more than .*learning_rate'),
        ({'optim__learning_rate': 1e3}, r'the loss ends at .*; lower config\.optim\.learning_rate'),
        (
            {'model__conv3__init_bias': -1e4},
            r'100% of the units of conv3 are 0 .*raise config\.model\.conv3\.init_bias',
        ),
        ({'model__fc7__init_std': 5.0}, r'loss is .* before the first step, .*lower init_std'),
    ],
    ids=str,
)
def test_what_keeps_it_at_chance_is_named(data_dir, fields, words, capsys):
    steps = STEPS if fields.get('optim__learning_rate') == 1e3 else 8
    with pytest.raises(UserError, match='the network barely beats chance: the loss is ') as error:
        check.check(build(_typed(data_dir, **fields)), steps)
    assert re.search(words, str(error.value)), error.value
    assert '\n' not in str(error.value)
    assert 'pixels: standard deviation 70.6' in capsys.readouterr().out


@pytest.mark.slow
def test_pixels_divided_by_255_are_named(data_dir):
    """With weights of N(0, 0.01) such pixels are the known cause of a loss that stays."""
    config = _small_weights(_config(data_dir, augment__pixel_divisor=255.0))
    trace = check.run(build(config), 12)
    assert not check.beats_chance(trace)
    assert trace.before.pixel_std == pytest.approx(70.6 / 255, rel=0.01)
    assert re.match(
        r'the pixels .* standard deviation of 0\.277.*do not divide the pixels',
        check.diagnose(trace, config),
    )


@pytest.mark.slow
def test_images_that_are_lost_on_the_way_are_named(data_dir):
    """On the right scale, but through layers that let nearly nothing through."""
    config = _typed(data_dir, model__conv2__init_std=1e-6)
    trace = check.run(build(config), 1)
    assert re.match(
        r'the outputs of conv2 differ by .* raise config\.model\.conv2\.init_std',
        check.diagnose(trace, config),
    )


@pytest.mark.slow
def test_the_numbers_are_those_of_numpy(data_dir):
    """conv1 by the slow convolution: scale, difference between images, units that are 0."""
    fields = {'model__conv1__init_bias': -9.0, 'model__conv1__features': 4}
    experiment = build(_typed(data_dir, training__batch_size=6, **fields))
    state = experiment.init_state()
    params = state.params
    batch = check._first_batch(experiment)
    look = check._snapshot(experiment, state, batch)
    mean = experiment.host_statistics.mean_image
    crops = batch.images.astype(np.float64) - mean
    assert look.pixel_std == pytest.approx(crops.std(), rel=1e-5)
    kernel, bias = (np.asarray(params['conv1'][name], np.float64) for name in ('kernel', 'bias'))
    outputs = np.maximum(reference.convolve(crops, kernel, bias, stride=1, padding=(1, 1)), 0.0)
    layer = look.layers['conv1']
    scale = math.sqrt((outputs**2).mean())
    assert layer.scale == pytest.approx(scale, rel=1e-5)
    spread = math.sqrt(outputs.var(axis=0).mean())
    assert layer.differ == pytest.approx(spread / scale, rel=1e-5)
    assert layer.dead == np.mean(outputs.max(axis=(0, 1, 2)) == 0)


def _trace(**changes):
    layer = check.Layer(scale=1.0, differ=0.5, dead=0.0, gradient=0.1)
    look = check.Snapshot(loss=2.3, pixel_std=60.0, layers={'conv1': layer, 'fc8': layer})
    trace = check.Trace([2.3] * 20, 2.2, look, look, {'conv1': 1e-3, 'fc8': 1e-2})
    return trace._replace(**changes)


def test_where_all_is_normal_the_dropout_or_more_steps_are_named(data_dir):
    with_dropout = check.diagnose(_trace(), _typed(data_dir))
    assert 'the noise of config.model.dropout = 0.5' in with_dropout
    assert check.diagnose(_trace(), _typed(data_dir, model__dropout=0.0)) == (
        'the pixels, layers and updates look normal; raise --check_steps'
    )


def test_other_initialisers_have_remedies_of_their_own(data_dir):
    """They make the width of the inputs' number: neither pixels of 1 nor init_std is the cause."""
    config = _typed(data_dir, model__initializer='pytorch', model__dropout=0.0)
    look = _trace().before
    normal = check.diagnose(_trace(before=look._replace(pixel_std=1.0)), config)
    assert normal.startswith('the pixels, layers and updates look normal')
    assert 'divide the pixels (config.augment.pixel_divisor' in check.diagnose(
        _trace(before=look._replace(loss=87.0)), config
    )
    lost = look._replace(layers={**look.layers, 'fc8': look.layers['fc8']._replace(differ=0.0)})
    words = check.diagnose(_trace(before=lost), config)
    assert "set config.model.initializer='normal'" in words
    assert 'raise' not in words


@pytest.mark.slow
def test_a_batch_of_one_class_is_refused(data_dir):
    with pytest.raises(UserError, match='all 1 images of the first batch have the same label'):
        check.check(build(_typed(data_dir, training__batch_size=1)), 1)


@pytest.mark.slow
def test_units_are_looked_at_behind_the_relu(data_dir):
    """Where that stands last, as in the 2012 source: a bias that kills all is seen all the same."""
    fields = {'model__conv1__init_bias': -1e6, 'model__conv1__after': ('pool', 'activation')}
    config = _typed(data_dir, **fields)
    assert check.run(build(config), 1).before.layers['conv1'].dead == 1.0


def test_units_that_die_in_training_are_named(data_dir):
    look = _trace().before
    dead = look._replace(layers={**look.layers, 'conv1': look.layers['conv1']._replace(dead=1.0)})
    words = check.diagnose(_trace(after=dead), _typed(data_dir))
    assert words.startswith('100% of the units of conv1 are dead after training; lower config.opt')


def test_to_know_the_labels_frequencies_is_not_to_beat_chance():
    """A batch of few labels lets a network without images below log(classes)."""
    assert not check.beats_chance(_trace(losses=[1.8] * 20))
    assert check.beats_chance(_trace(losses=[2.3] * 15 + [1.7] * 5))
    assert not check.beats_chance(_trace(losses=[1.0] * 4))
    clean = _trace().after._replace(loss=1.7)
    assert check.beats_chance(_trace(after=clean))
    assert not check.beats_chance(_trace(losses=[math.nan] * 5))
