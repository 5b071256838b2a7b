"""Exact parameters and FLOPs of every configuration: one that has no entry fails."""

import importlib
import json
import math
import pathlib

import jax
import pytest
from flax import linen as nn

from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import abstract_variables, count_macs, training_flops
from alexnet_jax.reports import paper
from alexnet_jax.training.config import Config

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / 'tests' / 'golden' / 'configs.json'
NAMES = sorted(file.stem for file in (ROOT / 'configs').glob('*.py') if file.stem != '__init__')
HOW = 'if that is meant, write the table anew: python -m tests.network.test_golden'


def counts(name):
    """Return what one configuration's network has; nothing is drawn or computed."""
    values = importlib.import_module(f'configs.{name}').get_config().to_dict()
    values['model']['num_classes'] = values['model']['num_classes'] or 1000  # 0: those of the data
    config = Config.from_dict(values)
    network = AlexNet(config.model)
    channels = config.data.image_shape[-1]
    shape = (config.augment.crop_px, config.augment.crop_px, channels)
    parameters = jax.tree.leaves(nn.meta.unbox(abstract_variables(network, shape)))
    macs = count_macs(network, shape)
    return {
        'parameters': sum(math.prod(leaf.shape) for leaf in parameters),
        'macs': sum(macs.values()),
        'training_flops': training_flops(macs),
    }


@pytest.mark.parametrize('name', NAMES)
def test_counts_are_those_of_the_table(name):
    table = json.loads(FILE.read_text())
    assert name in table, f'configs/{name}.py has no entry in {FILE.name}; {HOW}'
    assert counts(name) == table[name], f'configs/{name}.py has changed; {HOW}'


def test_no_entry_without_a_configuration():
    assert sorted(json.loads(FILE.read_text())) == NAMES, HOW


def test_the_table_has_the_published_counts():
    """Paper 3.5; the 2012 source, #145-half; torchvision's documentation; One weird trick."""
    table = {name: row['parameters'] for name, row in json.loads(FILE.read_text()).items()}
    assert table['alexnet'] == table['krizhevsky_2012'] == paper.TOTAL_PARAMETERS
    assert table['cnn_star'] == paper.TOTAL_PARAMETERS_WITH_CONV6
    assert table['one_tower'] == paper.TOTAL_PARAMETERS_ONE_TOWER
    assert table['one_gpu'] == 59_798_312
    assert table['torchvision'] == 61_100_840
    assert table['one_weird_trick'] == 61_838_248
    # layers-conv-local-13pct.cfg by hand: 5*5*3*64, 5*5*64*64, 6*6 places of 3*3*64*32 and
    # 3*3*32*32, 6*6*32*10, and biases at each place.
    local = [36 * (9 * 64 * 32 + 32), 36 * (9 * 32 * 32 + 32)]
    assert table['cifar10_13pct'] == 4_864 + 102_464 + sum(local) + 11_530


if __name__ == '__main__':
    FILE.write_text(json.dumps({name: counts(name) for name in NAMES}, indent=2) + '\n')
