"""Run #167: no response normalisation after conv2.

    python -m alexnet_jax.main --config=configs/no_lrn2.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: 40.4880 % top-1 and 18.1180 % top-5 validation error with ten views.
"""

import ml_collections

from configs import krizhevsky_2012


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = krizhevsky_2012.get_config()
    config.model.conv2.after = ('activation', 'pool')
    return config
