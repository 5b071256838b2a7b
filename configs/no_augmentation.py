"""The paper's network on centre crops as they are: no shift, mirror or colour (Paper 4.1).

    python -m alexnet_jax.main --config=configs/no_augmentation.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: "substantial overfitting".
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.augment.update(random_crop=False, mirror=False, colour_std=0.0)
    return config
