"""The paper's layers as one tower, in which every kernel sees all maps of the previous layer.

    python -m alexnet_jax.main --config=configs/one_tower.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     1.57 times the multiplications of configs/alexnet.py. Not run.
Expected: the paper gives no number; the best of other single-tower networks has 38.07 % top-1 error
          with one crop (AlexNet of osmr's Gluon models).
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.model.towers = 1
    return config
