"""`Network.crops` and `Network.forward`: the same activations, and their gradient."""

import jax
import numpy as np
import pytest

from alexnet_jax.inference.network import Network
from tests import reference
from tests.inference import networks


@pytest.mark.parametrize(
    'fields', [{}, {'augment.mean': 'channels'}, {'augment.pixel_divisor': 58.0}]
)
def test_forward_gives_the_activations(fields):
    trained = networks.draw(networks.small(**fields))
    net, images = Network(trained), networks.photographs(trained.config)
    crops = net.crops(images)
    margin = (networks.SIDE - 96) // 2
    np.testing.assert_array_equal(crops, images[:, margin:-margin, margin:-margin])
    forward = jax.jit(net.forward, compiler_options=reference.QUICK_COMPILE)
    seen = forward(crops)
    assert tuple(seen) == tuple(sorted(net.activation_names))
    for name in ('pool2', 'fc8'):
        want = net.activations(images, name)
        scale = np.abs(want).max()
        np.testing.assert_allclose(seen[name] / scale, want / scale, atol=1e-5)


def test_no_crops_of_no_images():
    trained = networks.draw(networks.small())
    assert Network(trained).crops([]).shape == (0, 96, 96, 3)
