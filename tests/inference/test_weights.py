"""Weights files: round trips to the bit, `init_from`, and files that are not whole."""

import dataclasses
import json
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from alexnet_jax.checkpoint import weights
from alexnet_jax.checkpoint.pretrained import init_network
from alexnet_jax.inference import load
from alexnet_jax.inference.trained import read
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.experiment import build
from tests.inference.trained_runs import save_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run on the digits with batch normalisation: (experiment, root)."""
    root = tmp_path_factory.mktemp('run')
    after = {'after': ('activation', 'bn', 'pool')}
    return save_run(root, **{'model.conv1': after}), root


@pytest.fixture(scope='module')
def trained(run):
    return read(epath.Path(run[1] / 'run'))


def _assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def test_a_file_is_all_that_predictions_need(run, trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    weights.write(path, trained)
    again = weights.read(path)
    _assert_equal(again.network, trained.network)
    _assert_equal(again.statistics, trained.statistics)
    assert set(again.network['bn1']) == {'scale', 'bias', 'mean', 'var'}
    for field in ('class_names', 'preparation', 'about'):
        assert getattr(again, field) == getattr(trained, field)
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
    from_run, from_file = load(run[1] / 'run'), load(path)
    assert from_file.config == from_run.config
    np.testing.assert_array_equal(from_file.probabilities(images), from_run.probabilities(images))
    first = path.read_bytes()
    weights.write(path, again)
    assert path.read_bytes() == first
    assert str(run[1]).encode() not in first  # no directory of the machine


def test_float16_rounds_each_weight_to_the_nearest(trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    weights.write(path, trained, 'float16')
    again = weights.read(path)
    want = jax.tree.map(lambda x: np.float32(np.float16(x)), trained.network)
    _assert_equal(again.network, want)
    _assert_equal(again.statistics, trained.statistics)
    big = {k: {n: x * 1e6 if k == 'fc8' else x for n, x in v.items()} for k, v in want.items()}
    with pytest.raises(UserError, match=r'fc8\..* is not finite as float16; write float32'):
        weights.write(path, dataclasses.replace(trained, network=big), 'float16')


def _init(run, source, class_names=None):
    config = dataclasses.replace(run[0].config.parallel, model=2)
    experiment = build(dataclasses.replace(run[0].config, parallel=config))
    class_names = class_names or experiment.dataset.fingerprint()['class_names']
    wanted = experiment.abstract_state().network
    drawn = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), wanted)
    return wanted, *init_network(wanted, drawn, str(source), class_names)


def test_a_training_starts_from_a_file(run, trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    weights.write(path, trained)
    wanted, network, event = _init(run, path)
    _assert_equal(jax.device_get(network), dict(trained.network))
    jax.tree.map(lambda x, w: x.sharding == w.sharding or pytest.fail('moved'), network, wanted)
    assert event['init_step'] == 2
    assert event['init_data'] == 'digits/1.0.0'
    assert event['drawn_anew'] == ''
    _, same, same_event = _init(run, run[1] / 'run')
    _assert_equal(jax.device_get(same), jax.device_get(network))
    assert same_event == event
    _, network, event = _init(run, path, class_names='others')
    assert event['drawn_anew'] == 'fc8 (other classes)'
    assert not np.any(network['fc8']['kernel'])
    _assert_equal(jax.device_get(network['conv1']), dict(trained.network['conv1']))


def test_what_does_not_fit_is_drawn_and_named(run, trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    network = {k: dict(v) for k, v in trained.network.items()}
    network['conv3']['kernel'] = network['conv3']['kernel'][:2]
    del network['conv2']
    weights.write(path, dataclasses.replace(trained, network=network))
    _, _, event = _init(run, path)
    assert 'conv3.kernel (float32[2, 3, 8, 8] there, float32[3, ' in event['drawn_anew']
    assert 'conv2.bias (absent there, float32[8] here)' in event['drawn_anew']
    alien = {'conv9': {'kernel': np.zeros((1, 2), np.float32)}}
    weights.write(path, dataclasses.replace(trained, network=alien))
    with pytest.raises(UserError, match='none of its parameters fits'):
        _init(run, path)


def _damaged(path, trained):
    """Yield (name, bytes of a file that is not whole, words of its error)."""
    weights.write(path, trained)
    good = path.read_bytes()
    length = struct.unpack('<Q', good[:8])[0]
    about = json.loads(json.loads(good[8 : 8 + length])['__metadata__'][weights.KEY])
    tensors = safetensors.numpy.load(good)

    def saved(changes, tensors=tensors):
        return safetensors.numpy.save(tensors, {weights.KEY: json.dumps({**about, **changes})})

    def without(name):
        return {k: x for k, x in tensors.items() if k != name}

    huge = {'a': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}}
    header = json.dumps(huge).encode()
    whole, unread = 'is not a whole weights file', 'is not a safetensors file that can be read'
    yield 'empty', b'', unread
    yield 'text', b'hello' * 1000, unread
    yield 'a pickle', b'\x80\x04cos\nsystem\n(S"true"\ntR.', unread
    yield 'cut', good[:-100], unread
    yield 'cut in the header', good[: length // 2], unread
    yield 'huge', struct.pack('<Q', len(header)) + header + bytes(100), unread
    yield 'of others', safetensors.numpy.save(tensors, {'format': 'pt'}), 'not a weights file of'
    yield 'not JSON', safetensors.numpy.save(tensors, {weights.KEY: '{'}), whole
    yield 'a list', safetensors.numpy.save(tensors, {weights.KEY: '[]'}), whole
    yield 'later', saved({'format': 9, 'version': '9.0'}), 'has format 9, written by .* 9.0'
    yield 'no names', saved({'class_names': None}), whole
    yield 'no configuration', saved({'config': {}}), whole
    yield 'no mean', saved({}, without('statistics.mean_image')), whole
    yield 'no layer', saved({}, {**tensors, 'odd': tensors['fc8.bias']}), whole
    yield 'without fc8', saved({}, without('fc8.bias')), r'fc8\.bias is absent'
    odd = about['config'] | {'model': about['config']['model'] | {'towers': 7}}
    yield 'odd', saved({'config': odd}), r'config\.model\.towers = 7 must be one of 1, 2'
    more = about['config'] | {'model': about['config']['model'] | {'extra': 7}}
    yield 'more', saved({'config': more}), r'config\.model\.extra is not a field'


def test_a_file_that_is_not_whole_is_one_line(trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    cases = list(_damaged(path, trained))
    assert len(cases) == 17
    for name, content, words in cases:
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            load(path)
        assert '\n' not in str(error.value), name


def test_a_file_has_no_other_checkpoint(trained, tmp_path):
    path = epath.Path(tmp_path / 'net.safetensors')
    weights.write(path, trained)
    with pytest.raises(UserError, match='is one file and has no checkpoint best'):
        load(path, 'best')
