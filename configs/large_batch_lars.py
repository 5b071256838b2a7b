"""A batch of 8,192 with LARS (You, 2017), which scales each layer's update to its weights.

    python -m alexnet_jax.main --config=configs/large_batch_lars.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py, in 14,076 steps. Not run.
Expected: about 42 % top-1 validation error with one crop, after tuning of learning rate and trust.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.training.batch_size = 8192
    config.optim.update(
        learning_rate=10.0,
        lars_trust_coefficient=0.001,
        warmup_epochs=5.0,
        weight_decay_multipliers=(('bias', 0.0),),
    )
    return config
