"""The four-layer network of Fig. 1, with ReLU or tanh (`model.activation`).

    python -m alexnet_jax.main --config=configs/relu_vs_tanh.py --data_dir=DIR

Needs:    tfds's `cifar10`, or as configs/cifar10.py makes it.
Cost:     minutes on a GPU, to 25 % training error. Not run.
Expected: 25 % training error with ReLU in a sixth of tanh's epochs (Paper 3.1).

As in Fig. 1 nothing regularises it: no decay, no dropout, no augmentation. The rate is to be tuned
for each of the two.
"""

import ml_collections

from configs import cifar10_13pct


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = cifar10_13pct.get_config()
    config.augment.update(crop_px=32, random_crop=False, mirror=False)
    config.optim.update(weight_decay=0.0, decay_factors=(), schedule='constant')
    config.training.total_epochs = 40.0
    config.evaluation.final_views = 1
    return config
