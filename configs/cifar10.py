"""A small AlexNet with all of the paper's parts on CIFAR-10: two towers, LRN, crops, dropout.

    python -m alexnet_jax.main --config=configs/cifar10.py --data_dir=DIR

Needs:    tfds's `cifar10`, or the images as train/CLASS/* and test/CLASS/*, prepared with
          python -m alexnet_jax.prepare folder --source DIR --name cifar10 --size=0
Cost:     0.051 GFLOP per image; 12 epochs at about 900 images/s on 2 CPU cores, 11 minutes.
Expected: 26.9 % top-1 error, 25.2 % with ten views, on a copy of CIFAR-10 stored as JPEG
          (--config.data.name=cifar10_jpeg; results/cifar10_jpeg). Not run on the original.
"""

import ml_collections

from configs import alexnet
from configs.alexnet import convolution


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration, adapted to images of 32 x 32 pixels."""
    config = alexnet.get_config()
    model = config.model
    model.num_classes = 10
    model.conv1 = convolution(
        features=32, kernel=5, padding=(2, 2), after=('activation', 'lrn', 'pool')
    )
    model.conv2.update(features=64, init_std=0.05)
    model.conv3.update(features=64, init_std=0.05)
    model.conv4.update(features=64, init_std=0.05)
    model.conv5.update(features=64, init_std=0.05)
    model.fc6.update(features=256, init_std=0.05)
    model.fc7.update(features=256, init_std=0.05)
    model.fc8.update(init_std=0.05)
    config.data.update(
        name='cifar10',
        eval_split='test',
        image_shape=(32, 32, 3),
        train_examples=50_000,
        eval_examples=10_000,
    )
    config.augment.crop_px = 28
    config.optim.update(schedule='steps', milestone_epochs=(9.0, 11.0))
    config.training.update(total_epochs=12.0)
    config.checkpoint.save_every_steps = 500
    config.evaluation.batch_size = 250
    return config
