"""Run #150: towers that do not communicate before fc8.

    python -m alexnet_jax.main --config=configs/separate_towers.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: 41.8280 % top-1 and 19.3300 % top-5 validation error with ten views.
"""

import ml_collections

from configs import krizhevsky_2012


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = krizhevsky_2012.get_config()
    config.model.conv2.features = 320
    config.model.conv3.sees_both_towers = False
    config.model.fc6.update(features=8192, sees_both_towers=False)
    config.model.fc7.sees_both_towers = False
    return config
