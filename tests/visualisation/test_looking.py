"""Kernels, neighbours, predictions and activations: their numbers, and the commands' errors."""

import json

import numpy as np
import pytest
from etils import epath

from alexnet_jax import figures
from alexnet_jax.inference import load
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.runtime.config import make
from alexnet_jax.visualisation import activations, kernels, neighbours, receptive_field, subjects
from configs import alexnet, caffenet, digits
from tests.inference.trained_runs import save_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return the workdir of a tiny run on the digits, its network and its split."""
    root = tmp_path_factory.mktemp('run')
    experiment = save_run(root)
    workdir = epath.Path(root / 'run')
    config = experiment.config.to_dict()
    (workdir / 'config.json').write_text(json.dumps(config))
    return workdir, load(workdir), experiment.dataset


def test_the_share_of_colour():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(11, 11, 1))
    grey = np.repeat(one, 3, axis=-1)
    red = one * [1, 0, 0]
    blind = one * [1, -2, 1]  # its colours sum to 0 at each position
    shares = kernels.colour_share(np.stack([grey, red, blind, 0 * grey]))
    np.testing.assert_allclose(shares, [0, 2 / 3, 1, 0], atol=1e-12)
    random = kernels.colour_share(rng.normal(size=(500, 11, 11, 3)))
    assert random.mean() == pytest.approx(kernels.RANDOM_COLOUR, abs=0.01)


def test_the_mosaic_has_each_kernel_in_its_place():
    weights = np.random.default_rng(0).normal(size=(18, 2, 2, 3)).astype(np.float32)
    pixels = kernels.mosaic(weights)
    cell = 2 * kernels._ZOOM + 2
    for index in (0, 15, 16, 17):
        y, x = (place * cell for place in divmod(index, 16))
        want = weights[index] / (2 * np.abs(weights[index]).max()) + 0.5
        found = pixels[y : y + cell - 2 : kernels._ZOOM, x : x + cell - 2 : kernels._ZOOM]
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_neighbours_are_the_nearest_of_all(run):
    workdir, net, _ = run
    chosen = subjects.of_split(net, workdir, 4)
    training = subjects.of_split(net, workdir, 300, split='train')
    found = neighbours.find(net, chosen, training)
    ours, theirs = (net.activations(s.images, 'fc7').astype(np.float64) for s in (chosen, training))
    for row, feature in enumerate(ours):
        distances = np.array([np.sqrt(np.sum((feature - other) ** 2)) for other in theirs])
        np.testing.assert_allclose(found.distances[row], np.sort(distances)[:6], rtol=1e-4)
        np.testing.assert_allclose(distances[found.indices[row]], found.distances[row], rtol=1e-4)
        assert found.nearest_labels[row].tolist() == training.labels[found.indices[row]].tolist()
        side = net.config.augment.crop_px
        start = (8 - side) // 2
        crops = training.images[found.indices[row]][:, start : start + side, start : start + side]
        np.testing.assert_array_equal(found.nearest[row], crops)


def test_the_share_of_zeros_is_numpys(run):
    workdir, net, _ = run
    chosen = subjects.of_split(net, workdir, 40)
    found = activations.find(net, chosen)
    for name in ('conv1', 'conv4', 'fc6'):
        values = net.activations(chosen.images, name)
        for tower, part in enumerate(np.split(values, 2, axis=-1), 1):
            (row,) = (r for r in found.silence if (r.layer, r.tower) == (name, tower))
            assert row.units == part.shape[-1]
            assert row.zeros == pytest.approx(np.mean(part == 0), abs=1e-6)
            silent = [np.all(part[..., unit] == 0) for unit in range(row.units)]
            assert row.never == sum(silent)
    assert 0 < np.mean([row.zeros for row in found.silence]) < 1


@pytest.mark.parametrize('module', [alexnet, caffenet, digits])
def test_the_receptive_field_is_all_that_a_unit_reaches(module):
    """By sets of pixels, from the layers one after another."""
    config = make(ModelConfig, module.get_config().model.to_dict())
    fields = receptive_field.of_convolutions(config)

    def reach(stages, position):
        seen = {position}
        for window, stride, before in reversed(stages):
            seen = {p * stride - before + k for p in seen for k in range(window)}
        return min(seen), max(seen) + 1

    stages = []
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        layer = getattr(config, name)
        stages.append((layer.kernel, layer.stride, layer.padding[0]))
        for position in (0, 3):
            assert fields[name].span(position) == reach(stages, position)
        if 'pool' in layer.after:
            stages.append((layer.pool_window, layer.pool_stride, 0))


def test_the_papers_receptive_fields():
    config = make(ModelConfig, alexnet.get_config().model.to_dict())
    fields = receptive_field.of_convolutions(config)
    sizes = [fields[f'conv{i}'].size for i in range(1, 6)]
    assert sizes == [11, 51, 99, 131, 163]


@pytest.mark.parametrize('kind', ['kernels', 'predictions', 'neighbours', 'activations'])
def test_the_command_draws(run, kind, tmp_path, capsys):
    workdir, net, dataset = run
    output = tmp_path / f'{kind}.svg'
    assert figures.main([kind, str(workdir), '--output', str(output), '--json']) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f'wrote {output}'
    found = json.loads(printed[-1])
    assert output.read_text().startswith('<?xml')
    if kind == 'predictions':
        split = dataset.eval
        images = np.stack([split[index]['image'] for index in range(len(split))])
        labels = np.array([split[index]['label'] for index in range(len(split))])
        wrong = net.probabilities(images).argmax(1) != labels
        assert found['among'] == len(split) == 360
        assert found['top1_error'] == pytest.approx(wrong.mean())


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['kernels', '{run}', '--layer=conv9'], 'conv9 is not a convolution of this network'),
        (['predictions', '{run}', '--data_dir={empty}'], 'or name images after the RUN'),
        (['activations', '{run}', '{empty}/no.png'], 'no.png'),
        (['kernels', '{empty}/nothing'], 'does not exist'),
    ],
)
def test_errors_are_one_line(run, arguments, words, tmp_path, capsys):
    places = {'run': run[0], 'empty': tmp_path}
    given = [argument.format(**places) for argument in arguments]
    assert figures.main([*given, '--output', str(tmp_path / 'x.png')]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'x.png').exists()
