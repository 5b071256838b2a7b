"""The author's network for CIFAR-10 with response normalisation (layers-conv-local-11pct.cfg).

    python -m alexnet_jax.main --config=configs/cifar10_11pct.py --data_dir=DIR

Needs:    `cifar10`, see configs/cifar10.py.
Cost:     about 520 epochs. Not run.
Expected: 11 % top-1 error with ten views, against 13 % without the norm (Paper 3.3).
"""

import ml_collections

from configs import cifar10_13pct


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = cifar10_13pct.get_config()
    model = config.model
    model.conv1.after = ('activation', 'pool', 'lrn')
    model.conv2.after = ('activation', 'lrn', 'pool')
    model.conv3.features = 64
    model.lrn.update(k=1.0, n=9, alpha=0.001, divide_alpha=True)
    config.optim.milestone_epochs = (500.0, 510.0)
    config.training.total_epochs = 520.0
    return config
