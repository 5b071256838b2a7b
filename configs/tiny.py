"""A dozen steps on the digits for tests, with the smallest network with all parts of the paper's.

    python -m alexnet_jax.main --config=configs/tiny.py

Needs:    nothing.
Cost:     seconds, most of them compilation.
Expected: it runs; the errors mean nothing.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the digits' configuration with narrow layers and 12 steps."""
    config = digits.get_config()
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        config.model[name].features = 8
    config.model.fc6.features = 16
    config.model.fc7.features = 16
    config.training.update(batch_size=16, total_steps=12, log_every_steps=1, eval_every_epochs=0.05)
    config.augment.crop_px = 7
    config.optim.update(schedule='plateau', milestone_epochs=())
    config.evaluation.update(batch_size=40, final_views=10)
    config.checkpoint.update(save_every_steps=3)
    config.log.progress_bar = False
    return config
