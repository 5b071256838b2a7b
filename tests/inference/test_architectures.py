"""The configurations that the package has for files without one are those of `configs/`."""

import pytest

from alexnet_jax.inference import architectures
from alexnet_jax.runtime.config import flatten
from alexnet_jax.training.config import Config
from configs import alexnet, caffenet, torchvision


@pytest.mark.parametrize(
    ('ours', 'configuration'),
    [
        (architectures.paper, alexnet),
        (architectures.torchvision, torchvision),
        (architectures.caffe, caffenet),
    ],
)
def test_each_field_is_that_of_the_configuration(ours, configuration):
    want = flatten(configuration.get_config().to_dict())
    got = flatten(ours())
    assert got.keys() == want.keys()
    assert {name: (got[name], want[name]) for name in want if got[name] != want[name]} == {}
    Config.from_dict(ours())
