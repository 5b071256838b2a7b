"""The author's network for CIFAR-10 with locally connected layers (layers-conv-local-13pct.cfg).

    python -m alexnet_jax.main --config=configs/cifar10_13pct.py --data_dir=DIR

Needs:    `cifar10`, see configs/cifar10.py.
Cost:     120 epochs. Not run.
Expected: 13 % top-1 error. This is probably the "four-layer CNN" of Paper 3.3.

The kernels, learning rates and weight decays are those of the author's file, which does not say how
long to train.
"""

import ml_collections

from configs import alexnet
from configs.alexnet import convolution


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    model = config.model
    model.update(num_classes=10, towers=1, dropout=0.0)
    model.conv1 = convolution(
        features=64,
        kernel=5,
        padding=(2, 2),
        init_std=1e-4,
        after=('activation', 'pool'),
        pool_partial=True,
    )
    model.conv2 = convolution(**{**model.conv1, 'init_std': 0.01}, sees_both_towers=False)
    model.conv3.update(features=32, local=True, init_std=0.04, sees_both_towers=False)
    model.conv4.update(features=32, local=True, init_std=0.04, init_bias=0.0)
    model.conv5.features = 0
    model.fc6.features = 0
    model.fc7.features = 0
    config.data.update(
        name='cifar10',
        eval_split='test',
        image_shape=(32, 32, 3),
        train_examples=50_000,
        eval_examples=10_000,
    )
    config.augment.update(crop_px=24, colour_std=0.0)
    config.optim.update(
        learning_rate=0.001,
        lr_multipliers=(('bias', 2.0),),
        weight_decay=0.004,
        weight_decay_multipliers=(('bias', 0.0), ('conv1', 0.0), ('conv2', 0.0)),
        schedule='steps',
        milestone_epochs=(100.0, 110.0),
    )
    config.training.total_epochs = 120.0
    config.evaluation.batch_size = 250
    return config
