"""The trained network of the repository is what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from alexnet_jax.inference import load

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / 'networks' / 'imagenette_small.safetensors'


@pytest.fixture(scope='module')
def net():
    return load(FILE)


def test_the_card_is_true(net):
    card = (FILE.parent / 'README.md').read_text()
    assert sum(leaf.size for layer in net.params.values() for leaf in layer.values()) == 1_475_690
    assert '1,475,690' in card
    assert FILE.stat().st_size < 4e6
    assert ', '.join(net.readable_names) in ' '.join(card.split())
    run = ROOT / 'results' / 'imagenette_small' / 'paper_seed0'
    last = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert net.trained.about['step'] == last['step']
    for name in ('eval/top1_error', 'eval/top5_error'):
        assert f'{100 * last[name]:.2f} %' in card
        assert f'{100 * last[f"{name}_10_views"]:.2f} %' in card
    config = json.loads((run / 'config.json').read_text())
    config['data']['dir'] = ''
    assert net.trained.config == config


def test_it_sees_a_photograph(net):
    """Neither photograph shows one of its classes; the outputs were looked at when it was made."""
    images = datasets.load_sample_images().images
    outputs = net.probabilities(list(images))
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)
    temple, flower = net.predict(list(images))
    assert temple[0].name == 'church'
    assert temple[0].probability == pytest.approx(0.600, abs=0.002)
    assert [p.name for p in flower[:2]] == ['church', 'French horn']
