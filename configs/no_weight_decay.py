"""The paper's network without weight decay (Paper 5).

    python -m alexnet_jax.main --config=configs/no_weight_decay.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: a higher *training* error: decay "is not merely a regularizer".
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.optim.weight_decay = 0.0
    return config
