r"""A narrow version of `cifar10.py` that trains in minutes on a CPU, to compare ways of training.

    python -m alexnet_jax.main --config=configs/cifar10_small.py --data_dir=DIR

or, initialised with the parameters of another run, for example on other classes:

    python -m alexnet_jax.main --config=configs/cifar10_small.py --data_dir=DIR --workdir=NEW \
        --config.training.init_from=OTHER

Needs:    as `cifar10.py`.
Cost:     0.02 GFLOP per image.
Expected: `results/cifar10_jpeg_half_*` are such runs, each on five of the classes.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of `cifar10.py` with narrow layers and 500 steps."""
    config = cifar10.get_config()
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        config.model[name].features = 24
    config.model.fc6.features = 128
    config.model.fc7.features = 128
    config.optim.schedule = 'constant'
    config.training.update(total_steps=500, log_every_steps=20)
    config.checkpoint.save_every_steps = 100
    config.evaluation.final_views = 1
    config.log.tensorboard = False
    return config
