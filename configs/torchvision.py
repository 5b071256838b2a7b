"""The network that `torchvision.models.alexnet` builds: one tower, no response normalisation.

    python -m alexnet_jax.main --config=configs/torchvision.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     90 epochs, 4.1444 GFLOP per image. Not run.
Expected: the published weights have 43.48 % top-1 and 20.93 % top-5 validation error with one crop.

This is not the paper's network: it has fewer kernels in conv1 to conv4, one tower, and dropout of
the inputs of fc6 and fc7. It was trained with crops of random size, which are off here:
--config.augment.resized_crop_area="(0.08,1.0)" turns them on.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    model = config.model
    model.update(towers=1, initializer='pytorch', dropout_inverted=True, dropout_inputs=True)
    model.conv1.update(features=64, padding=(2, 2), after=('activation', 'pool'))
    model.conv2.update(features=192, after=('activation', 'pool'))
    model.conv4.features = 256
    for name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7'):
        model[name].init_bias = 0.0  # PyTorch draws these, too
    config.augment.update(mean='channels', pixel_divisor=57.4, colour_std=0.0)
    config.optim.update(
        weight_decay=1e-4,
        rate_inside_velocity=False,
        schedule='steps',
        milestone_epochs=(30.0, 60.0),
    )
    config.training.batch_size = 256
    config.evaluation.final_views = 1
    return config
