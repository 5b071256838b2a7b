"""The paper's network without dropout (Paper 4.2).

    python -m alexnet_jax.main --config=configs/no_dropout.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: "substantial overfitting", in about half as many epochs.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.model.dropout = 0.0
    return config
