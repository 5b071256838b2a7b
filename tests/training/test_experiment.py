"""What is refused before anything is compiled: sizes that do not fit; a bug is no such size."""

import types
from typing import Any

import pytest

from alexnet_jax.network.model import AlexNet
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import experiment as experiment_lib
from configs import tiny


def _experiment(crop_px: int, **model: Any) -> Any:
    """As much of an experiment as its sizes are."""
    augment = types.SimpleNamespace(crop_px=crop_px)
    network = AlexNet(**(tiny.get_config().model.to_dict() | model))
    crop_shape, image_shape = (crop_px, crop_px, 1), (8, 8, 1)
    return types.SimpleNamespace(
        augment=augment, model=network, crop_shape=crop_shape, image_shape=image_shape
    )


@pytest.mark.parametrize('forms', ['plain', 'fast'])
@pytest.mark.parametrize('crop_px', [1, 2, 3])
def test_a_crop_that_leaves_nothing_for_a_layer_is_one_line(crop_px, forms):
    experiment_lib.check_sizes(_experiment(7, forms=forms))
    with pytest.raises(UserError, match=f'crop_px = {crop_px} leaves nothing for .* to see'):
        experiment_lib.check_sizes(_experiment(crop_px, forms=forms))


def test_a_bug_of_the_network_is_no_matter_of_the_crop():
    with pytest.raises(TypeError, match='float99'):
        experiment_lib.check_sizes(_experiment(7, dtype='float99'))
