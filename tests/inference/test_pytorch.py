"""Weights to PyTorch and from it: the logits are PyTorch's own."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from etils import epath
from torch import nn

from alexnet_jax import convert
from alexnet_jax.checkpoint import weights
from configs import alexnet as paper
from configs import batch_norm, caffenet, one_tower, separate_towers, tanh, torchvision
from tests.inference import networks
from tests.reference import relative_error

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'weights.md'


@functools.cache
def page_module():
    """Return the names that the module of docs/weights.md defines."""
    text = re.search(r'^```python\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    names = {}
    exec(compile(text, str(PAGE), 'exec'), names)
    return names


def in_pytorch(path, images):
    """Return the logits of a file by the module of docs/weights.md."""
    network = page_module()['load'](path)
    with torch.no_grad():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()


class Torchvision(nn.Module):
    """What `torchvision.models.alexnet` computes, with its names."""

    def __init__(self, classes=1000):
        super().__init__()
        relu, pool = nn.ReLU, functools.partial(nn.MaxPool2d, 3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), relu(), pool()),
            *(nn.Conv2d(64, 192, 5, padding=2), relu(), pool()),
            *(nn.Conv2d(192, 384, 3, padding=1), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1), relu()),
            *(nn.Conv2d(256, 256, 3, padding=1), relu(), pool()),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(9216, 4096), relu()),
            *(nn.Dropout(), nn.Linear(4096, 4096), relu()),
            nn.Linear(4096, classes),
        )
        for parameter in self.parameters():  # so that the logits are of the order of 1
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ('prefix', 'classes'),
    [pytest.param('', 1000, marks=pytest.mark.slow), ('module.', 12)],
)
def test_a_state_dict_of_torchvision(tmp_path, prefix, classes, capsys):
    torch.manual_seed(0)
    module = Torchvision(classes).eval()
    there, here = tmp_path / 'there.safetensors', tmp_path / 'new' / 'here.safetensors'
    state = {f'{prefix}{name}': value for name, value in module.state_dict().items()}
    safetensors.torch.save_file(state, there)
    assert run(there, here) == 0
    assert f'read {there}: torchvision, not a known file\n' in capsys.readouterr().out
    trained = weights.read(epath.Path(here))
    images = networks.photographs(torchvision.get_config().to_dict())
    x = torch.from_numpy(images[:, 16:240, 16:240]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        want = module((x - mean[:, None, None]) / std[:, None, None]).numpy()
    error = relative_error(networks.logits(trained, images), want)
    assert error < 1e-4
    assert len(trained.class_names) == classes
    assert trained.class_names[0] == ('n01440764' if classes == 1000 else '0')
    assert trained.about['imported_from']['format'] == 'torchvision'


EXPRESSIBLE = {
    'two towers': (paper, {}),
    'one tower': (one_tower, {}),
    'conv6': (paper, {'model.conv6.features': 8}),
    'across towers': (caffenet, {}),
    'batch norm': (batch_norm, {}),
    'tanh': (tanh, {}),
    'partial pooling': (
        paper,
        {'model.conv1.pool_partial': True, 'augment.crop_px': 100, 'augment.mean': 'centre'},
    ),
    'own inputs': (
        separate_towers,
        {
            'model.fc6.sees_both_towers': False,
            'model.fc7.sees_both_towers': False,
            'model.conv2.after': ('activation', 'lrn', 'pool'),
        },
    ),
    'only fc8': (paper, {'model.fc6.features': 0, 'model.fc7.features': 0}),
    'only fc7': (paper, {'model.fc6.features': 0, 'model.fc7.sees_both_towers': False}),
    'torchvision': (torchvision, {}),
    'relu later': (paper, {'model.conv1.after': ('lrn', 'pool', 'activation')}),
}


@pytest.mark.parametrize('name', EXPRESSIBLE)
def test_the_module_of_the_page_computes_the_same(tmp_path, name):
    """There by the module in docs/weights.md, and back to the same bytes."""
    configuration, fields = EXPRESSIBLE[name]
    if configuration is tanh:
        fields = fields | {'model.activation': 'tanh'}
    trained = networks.draw(networks.small(configuration, **fields))
    here, there, back = (tmp_path / f'{name}.safetensors' for name in ('here', 'there', 'back'))
    weights.write(epath.Path(here), trained)
    assert run(here, there, '--to=pytorch') == 0
    images = networks.photographs(trained.config)
    got, want = in_pytorch(there, images), networks.logits(trained, images)
    error = relative_error(got, want)
    assert error < 1e-4
    assert run(there, back) == 0
    assert back.read_bytes() == here.read_bytes()


def test_float16(tmp_path):
    trained = networks.draw(networks.small())
    here, there = tmp_path / 'here.safetensors', tmp_path / 'there.safetensors'
    weights.write(epath.Path(here), trained)
    assert run(here, there, '--to=pytorch', '--dtype=float16') == 0
    assert safetensors.torch.load_file(there)['conv1.weight'].dtype == torch.float16
    images = networks.photographs(trained.config)
    assert relative_error(in_pytorch(there, images), networks.logits(trained, images)) < 1e-2
    assert run(here, there, '--dtype=float16') == 0
    half = weights.read(epath.Path(there)).network['conv3']['kernel']
    np.testing.assert_array_equal(half, np.float16(trained.network['conv3']['kernel']))


@pytest.mark.parametrize('towers', [1, 2])
def test_a_grouped_network_without_a_description(tmp_path, towers):
    """A state dict that PyTorch saved: the sizes are those of the weights, the rest the paper's."""
    config = paper.get_config().to_dict()
    config['model'] |= {'towers': towers, 'num_classes': 5}
    for name, width in networks.WIDTHS.items():
        config['model'][name]['features'] = width
    torch.manual_seed(1)
    module = page_module()['AlexNet'](config, (3, 256, 256)).eval()
    state = {f'module.{name}': tensor for name, tensor in module.state_dict().items()}
    there, here = tmp_path / 'there.safetensors', tmp_path / 'here.safetensors'
    state['module.mean'] = torch.rand(3, 256, 256) * 200
    module.mean.copy_(state['module.mean'])
    safetensors.torch.save_file(state, there)
    names = tmp_path / 'names.txt'
    names.write_text('a\nb\nc\nd\ne\n')
    assert run(there, here, f'--names={names}') == 0
    trained = weights.read(epath.Path(here))
    assert trained.class_names == ('a', 'b', 'c', 'd', 'e')
    assert trained.config['model']['towers'] == towers
    images = networks.photographs(config)
    with torch.no_grad():
        want = module(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    assert relative_error(networks.logits(trained, images), want) < 1e-4


def test_the_configuration_of_a_file_without_a_description(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(
        'from configs import alexnet\n\n\ndef get_config():\n'
        '    config = alexnet.get_config()\n'
        f'    config.update_from_flattened_dict({_flat_small()!r})\n'
        '    config.model.num_classes = 0\n'
        '    return config\n'
    )
    trained = networks.draw(networks.small())
    here, there, back = (tmp_path / f'{name}.safetensors' for name in ('here', 'there', 'back'))
    weights.write(epath.Path(here), trained)
    assert run(here, there, '--to=pytorch') == 0
    safetensors.torch.save_file(safetensors.torch.load_file(there), there)  # without metadata
    assert run(there, back, f'--config={file}') == 0
    got, want = (weights.read(epath.Path(path)) for path in (back, here))
    images = networks.photographs(trained.config)
    np.testing.assert_array_equal(networks.logits(got, images), networks.logits(want, images))


def _flat_small():
    widths = {f'model.{name}.features': width for name, width in networks.WIDTHS.items()}
    return {**widths, 'augment.crop_px': 96, 'data.image_shape': (networks.SIDE,) * 2 + (3,)}


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'model.conv3.local': True}, 'config.model.conv3.local = True'),
        (
            {'model.conv2.after': ('activation', 'map_norm')},
            "config.model.conv2.after = ('activation', 'map_norm')",
        ),
        ({'model.conv1.pool_window': 1}, 'config.model.conv1.pool_window = 1'),
    ],
)
def test_what_the_module_does_not_have(tmp_path, capsys, fields, words):
    here, there = tmp_path / 'here.safetensors', tmp_path / 'there.safetensors'
    weights.write(epath.Path(here), networks.draw(networks.small(**fields)))
    assert run(here, there, '--to=pytorch') == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert not there.exists()
