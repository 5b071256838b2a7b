"""Run #148: no response normalisation (Paper 3.3).

    python -m alexnet_jax.main --config=configs/no_lrn.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: 42.0340 % top-1 and 19.3620 % top-5 validation error with ten views, which is 1.37 and
          1.15 percentage points higher.
"""

import ml_collections

from configs import krizhevsky_2012


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = krizhevsky_2012.get_config()
    config.model.conv1.after = ('pool', 'activation')
    config.model.conv2.after = ('activation', 'pool')
    return config
