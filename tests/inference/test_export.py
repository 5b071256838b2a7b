"""StableHLO and ONNX: the outputs of programs that are not ours are those of the evaluation."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from etils import epath

from alexnet_jax.inference import Network, onnx_model, stablehlo
from alexnet_jax.runtime.errors import UserError
from configs import alexnet as paper
from configs import batch_norm, caffenet, one_tower, torchvision
from tests.inference import networks

CONFIGURATIONS = (paper, one_tower, caffenet, torchvision, batch_norm)


def _in_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return dict(
        zip(('logits', 'probabilities'), session.run(None, {'images': images}), strict=True)
    )


@pytest.mark.parametrize('configuration', CONFIGURATIONS, ids=lambda m: m.__name__.split('.')[-1])
def test_onnx(configuration, tmp_path):
    config = networks.small(configuration)
    trained, images = networks.draw(config), networks.photographs(config)
    path = epath.Path(tmp_path / 'net.onnx')
    onnx_model.write(path, trained)
    found = _in_onnxruntime(path, images)
    want = networks.logits(trained, images)
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(found['logits'], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found['probabilities'], jax.nn.softmax(want), atol=1e-5)
    for count in (1, 2):
        part = _in_onnxruntime(path, images[:count])['logits']
        np.testing.assert_allclose(part, want[:count], rtol=1e-4, atol=1e-4)
    [named] = onnx.load(str(path)).metadata_props
    assert (named.key, json.loads(named.value)) == ('class_names', list(trained.class_names))


def test_onnx_of_towers_that_never_meet_and_of_other_fields(tmp_path):
    fields = {'activation': 'tanh', 'dropout_inverted': True, 'fc7.features': 0}
    fields |= {f'{name}.sees_both_towers': False for name in ('conv3', 'fc6')}
    fields = {f'model.{name}': value for name, value in fields.items()}
    config = networks.small(**fields, **{'augment.mean': 'channels'})
    trained, images = networks.draw(config), networks.photographs(config)
    path = epath.Path(tmp_path / 'net.onnx')
    onnx_model.write(path, trained)
    want = networks.logits(trained, images)
    np.testing.assert_allclose(_in_onnxruntime(path, images)['logits'], want, rtol=1e-4, atol=1e-4)


def test_what_onnx_cannot_express_is_refused(tmp_path, monkeypatch):
    config = networks.small(**{'model.conv4.local': True})
    with pytest.raises(UserError, match=r'config\.model\.conv4\.local = True'):
        onnx_model.write(epath.Path(tmp_path / 'net.onnx'), networks.draw(config))
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match='needs the package onnx; pip install onnx'):
        onnx_model.write(epath.Path(tmp_path / 'net.onnx'), networks.draw(networks.small()))
    assert not list(tmp_path.iterdir())


RELOAD = """
import sys
import jax, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
images = np.load(sys.argv[2])
print(*exported.platforms)
np.save(sys.argv[3], exported.call(images))
np.save(sys.argv[4], exported.call(images[:1]))
assert not any('alexnet_jax' in name for name in sys.modules)
"""


@pytest.mark.parametrize('configuration', [paper, batch_norm], ids=lambda m: m.__name__)
def test_stablehlo_is_loaded_without_this_package(configuration, tmp_path):
    config = networks.small(configuration)
    trained, images = networks.draw(config), networks.photographs(config)
    path = epath.Path(tmp_path / 'net.stablehlo')
    stablehlo.write(path, trained)
    np.save(tmp_path / 'images.npy', images)
    names = ('net.stablehlo', 'images.npy', 'all.npy', 'one.npy')
    done = subprocess.run(
        [sys.executable, '-c', RELOAD, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['cpu', 'cuda', 'tpu']
    want = jax.nn.softmax(networks.logits(trained, images))
    found, one = np.load(tmp_path / 'all.npy'), np.load(tmp_path / 'one.npy')
    np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_allclose(one, want[:1], atol=1e-5)
    np.testing.assert_allclose(Network(trained).probabilities(images), want, atol=1e-5)


def test_what_does_not_fit_is_not_exported(tmp_path):
    trained = dataclasses.replace(networks.draw(networks.small()), class_names=('one',))
    for module in (onnx_model, stablehlo):
        with pytest.raises(UserError, match='1 names for 7 classes'):
            module.write(epath.Path(tmp_path / 'net'), trained)
    assert not list(tmp_path.iterdir())
