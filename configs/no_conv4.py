"""The paper's network without conv4 (Paper 7).

    python -m alexnet_jax.main --config=configs/no_conv4.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: a top-1 error that is about 2 percentage points higher.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.model.conv4.features = 0
    return config
