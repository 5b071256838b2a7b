"""Two towers on two CPU devices learn 1,797 handwritten digits: the whole program in a minute.

    python -m alexnet_jax.main --config=configs/digits.py

Needs:    nothing; the digits come with scikit-learn and are prepared automatically.
Cost:     about 40 s on 2 CPU cores, including compilation.
Expected: 1.94 % top-1 error on the 360 test images (seeds 0 to 3: 1.11 to 1.94 %).
"""

import ml_collections

from configs import alexnet
from configs.alexnet import convolution


def get_config() -> ml_collections.ConfigDict:
    """Return a small version of the paper's configuration."""
    config = alexnet.get_config()
    model = config.model
    model.num_classes = 10
    model.conv1 = convolution(
        features=32, init_std=0.1, after=('activation', 'lrn', 'pool'), pool_stride=1
    )
    model.conv2 = convolution(
        features=64,
        sees_both_towers=False,
        init_std=0.05,
        init_bias=1.0,
        after=('activation', 'lrn', 'pool'),
    )
    model.conv3.update(features=64, init_std=0.05)
    model.conv4.update(features=64, init_std=0.05)
    model.conv5.update(features=64, init_std=0.05, after=('activation',))
    model.fc6.update(features=256, init_std=0.05)
    model.fc7.update(features=256, init_std=0.05)
    model.fc8.update(init_std=0.05)
    config.parallel.update(data=1, model=2, cpu_devices=2)
    config.data.update(
        name='digits',
        eval_split='test',
        image_shape=(8, 8, 1),
        train_examples=1437,
        eval_examples=360,
    )
    config.augment.update(crop_px=8, mirror=False)  # the digits fill their 8 pixels
    config.optim.update(learning_rate=0.003, schedule='steps', milestone_epochs=(25.0, 35.0))
    config.training.update(
        batch_size=32, total_epochs=40.0, log_every_steps=50, eval_every_epochs=5.0
    )
    config.evaluation.update(batch_size=120, final_views=1)  # all crops are the same
    config.checkpoint.update(save_every_steps=200)
    return config
