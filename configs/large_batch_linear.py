"""A batch of 4,096, with a learning rate in proportion to the batch and a warm-up (Goyal, 2017).

    python -m alexnet_jax.main --config=configs/large_batch_linear.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py, in 28,151 steps. Not run.
Expected: not known; compare with configs/large_batch_lars.py.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.training.batch_size = 4096
    config.optim.update(reference_batch=128, warmup_epochs=5.0)
    return config
