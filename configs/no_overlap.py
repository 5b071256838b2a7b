"""Run #147: pooling over squares of 2 x 2 that do not overlap (Paper 3.4).

    python -m alexnet_jax.main --config=configs/no_overlap.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: 41.0580 % top-1 and 18.5100 % top-5 validation error with ten views, which is 0.4 and 0.3
          percentage points higher.
"""

import ml_collections

from configs import krizhevsky_2012


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = krizhevsky_2012.get_config()
    for name in ('conv1', 'conv2', 'conv5'):
        config.model[name].update(pool_window=2, pool_partial=True)
    config.model.conv2.padding = (1, 1)  # with conv5's padding, fc6 still gets maps of 6 x 6
    config.model.conv5.padding = (0, 0)
    return config
