"""The paper's network on centre crops, mirrored and coloured but never shifted (Paper 4.1).

    python -m alexnet_jax.main --config=configs/centre_crop.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: the paper gives no number for it.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.augment.random_crop = False
    return config
