"""Run #145-half: one tower with about half of the kernels, for one GPU (Paper 3.2).

    python -m alexnet_jax.main --config=configs/one_gpu.py --data_dir=DIR

Needs:    `imagenet2010` as `python -m alexnet_jax.prepare imagenet --year=2010` makes it.
Cost:     as configs/alexnet.py. Not run.
Expected: 39.1680 % top-1 and 18.2287 % top-5 test error with ten views, which is 1.7 and 1.2
          percentage points higher.
"""

import ml_collections

from configs import krizhevsky_2010


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = krizhevsky_2010.get_config()
    model = config.model
    model.towers = 1
    for name, features in (('conv1', 48), ('conv2', 128), ('conv3', 192), ('conv4', 192)):
        model[name].features = features
    return config
