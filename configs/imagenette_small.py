"""A network of a quarter of the paper's width on Imagenette at 128 pixels, for two CPU cores.

    python -m alexnet_jax.prepare folder --source imagenette2.tgz --name imagenette_128 --size=128
    python -m alexnet_jax.main --config=configs/imagenette_small.py

Needs:    the archive of `imagenette`.
Cost:     2,960 steps of batch 128; 13 minutes on two CPU cores.
Expected: 27.0 % top-1 error with one crop and 24.9 % with ten views (seed 0).

Each layer has a quarter of the paper's units, and the crops of 112 pixels leave 2 x 2 positions to
fc6. The initialisation is not the paper's, whose standard deviations suit its wider layers: it is
that of He (2015), with biases of 0 and pixels of unit variance.
"""

import ml_collections

from configs import imagenette


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration: the paper's recipe for 40 epochs, with drops at 26 and 34."""
    config = imagenette.get_config()
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7'):
        config.model[name].features //= 4
    config.model.initializer = 'he'
    for name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7'):
        config.model[name].init_bias = 0.0
    config.data.update(name='imagenette_128', image_shape=(128, 128, 3))
    config.augment.update(crop_px=112, pixel_divisor=58.0)
    config.optim.milestone_epochs = (26.0, 34.0)
    config.training.total_epochs = 40.0
    return config
