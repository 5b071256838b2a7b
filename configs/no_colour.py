"""The paper's network without colour noise (Paper 4.1).

    python -m alexnet_jax.main --config=configs/no_colour.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: a top-1 error that is more than 1 percentage point higher.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.augment.colour_std = 0.0
    return config
