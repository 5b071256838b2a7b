"""The configurations that the package has for files without one are those of `configs/`."""

import pytest

from alexnet_jax.inference import architectures
from alexnet_jax.runtime.config import differences
from alexnet_jax.training.config import Config
from configs import alexnet, caffenet, torchvision
from tests.typed_config import typed


@pytest.mark.parametrize(
    ('ours', 'configuration'),
    [
        (architectures.paper, alexnet),
        (architectures.torchvision, torchvision),
        (architectures.caffe, caffenet),
    ],
)
def test_each_field_is_that_of_the_configuration(ours, configuration):
    # Fields that were added later have their `off` values in both.
    here, there = Config.from_dict(ours()), typed(configuration.get_config())
    assert differences(Config, here.to_dict(), there.to_dict()) == {}
