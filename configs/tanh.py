"""The paper's network with tanh instead of ReLU (Paper 3.1).

    python -m alexnet_jax.main --config=configs/tanh.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py. Not run.
Expected: it learns more slowly; the paper measures this on CIFAR-10, see configs/relu_vs_tanh.py.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.model.activation = 'tanh'
    return config
