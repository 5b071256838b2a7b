"""What decides: gradient and Grad-CAM by PyTorch's autograd, occlusion by a loop."""

import json

import numpy as np
import pytest
import torch
from etils import epath
from PIL import Image

from alexnet_jax import figures
from alexnet_jax.checkpoint import weights
from alexnet_jax.inference import load, pytorch
from alexnet_jax.visualisation import saliency
from tests.inference import networks
from tests.inference.test_pytorch import page_module

CLASSES = np.array([4, 0, 6], np.int32)


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """Return a network, the same in PyTorch, its images and the file."""
    root = epath.Path(tmp_path_factory.mktemp('weights'))
    trained = networks.draw(networks.small())
    weights.write(root / 'ours.safetensors', trained)
    pytorch.write_module(root / 'theirs.safetensors', trained)
    theirs = page_module()['load'](root / 'theirs.safetensors')
    ours = load(root / 'ours.safetensors')
    return ours, theirs, networks.photographs(trained.config), root / 'ours.safetensors'


def _in_pytorch(theirs, images, monkeypatch):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().requires_grad_()
    kept = []
    pool = torch.nn.functional.max_pool2d

    def keep(maps, *arguments, **options):
        maps.retain_grad()
        kept.append(maps)
        return pool(maps, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, 'max_pool2d', keep)
    theirs(pixels)[torch.arange(len(images)), torch.from_numpy(CLASSES).long()].sum().backward()
    margin = (networks.SIDE - 96) // 2
    gradient = pixels.grad.abs().amax(1)[:, margin:-margin, margin:-margin].numpy()
    return gradient, kept[-1].detach().numpy(), kept[-1].grad.numpy()


def test_gradient_and_grad_cam_are_those_of_pytorch(both, monkeypatch):
    ours, theirs, images, _ = both
    crops = np.uint8(ours.crops(images))
    gradient, maps, derivatives = _in_pytorch(theirs, images, monkeypatch)
    found = saliency.gradients(ours, crops, CLASSES)
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(found, gradient, atol=1e-4 * gradient.max())
    weighted = (derivatives.mean((2, 3), keepdims=True) * maps).sum(1)
    want = [
        np.asarray(Image.fromarray(x).resize((96, 96), Image.Resampling.BILINEAR))
        for x in np.maximum(weighted, 0)
    ]
    assert np.max(want) > 0
    np.testing.assert_allclose(
        saliency.grad_cams(ours, crops, CLASSES), want, atol=1e-4 * np.max(want)
    )


def test_occlusion_is_that_of_a_loop(both):
    ours, theirs, images, _ = both
    crops = np.uint8(ours.crops(images))[:1]
    found = saliency.occlusions(ours, crops, CLASSES[:1], square=40, stride=32)[0]
    colour = np.uint8(np.rint(theirs.mean.mean((1, 2)).numpy()))
    margin = (networks.SIDE - 96) // 2

    def probability(crop):
        whole = images[:1].copy()
        whole[0, margin:-margin, margin:-margin] = crop
        with torch.no_grad():
            logits = theirs(torch.from_numpy(whole).permute(0, 3, 1, 2).float())
        return torch.softmax(logits, 1)[0, CLASSES[0]].item()

    assert found.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            hidden = crops[0].copy()
            for y in range(96):
                for x in range(96):
                    inside = -20 <= y - (32 * row + 16) < 20 and -20 <= x - (32 * column + 16) < 20
                    hidden[y, x] = colour if inside else hidden[y, x]
            want = probability(crops[0]) - probability(hidden)
            assert found[row, column] == pytest.approx(want, abs=1e-5)


def test_the_command_draws_images_that_are_named(both, tmp_path, capsys):
    _, theirs, images, file = both
    for index in range(2):
        Image.fromarray(images[index]).save(tmp_path / f'{index}.png')
    output = tmp_path / 'saliency.png'
    names = [str(tmp_path / f'{index}.png') for index in range(2)]
    assert figures.main(['saliency', str(file), *names, '--output', str(output), '--json']) == 0
    with Image.open(output) as drawn:
        assert drawn.width > 500
    found = json.loads(capsys.readouterr().out.splitlines()[-1])['images']
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images[:2]).permute(0, 3, 1, 2).float())
    best = torch.softmax(logits, 1).max(1)
    assert [row['class'] for row in found] == [f'class {k}' for k in best.indices.tolist()]
    np.testing.assert_allclose([row['probability'] for row in found], best.values, atol=1e-5)
