"""The paper's network on ImageNet with a recipe of today.

    python -m alexnet_jax.main --config=configs/modern.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     150 epochs, 750,684 steps of batch 256, 4.1356 GFLOP per image: 795 PFLOP. Not run.
Expected: not known. The recipe is that of MindSpore's ModelZoo for a network like
          `one_weird_trick`, which is reported to reach 39.51 % top-1 and 17.44 % top-5 error.

The layers, the two towers and response normalisation are the paper's. What differs is said below,
each value with its source.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = use_recipe(alexnet.get_config())
    config.training.update(batch_size=256, total_epochs=150.0)  # MindSpore
    return config


def use_recipe(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Put today's recipe in the place of the paper's."""
    model = config.model
    model.dropout = 0.35  # MindSpore; the paper has 0.5
    model.dropout_inverted = True  # as nearly all programs do; the same function in expectation
    # He (2015), which suits any width, with biases of 0.
    model.initializer = 'he'
    for name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7'):
        model[name].init_bias = 0.0
    config.augment.update(
        resized_crop_area=(0.08, 1.0),  # Szegedy (2015); MindSpore
        brightness=0.4,  # MindSpore
        contrast=0.4,
        saturation=0.4,
        colour_std=0.0,  # MindSpore has no PCA colour
        mean='channels',
        pixel_divisor=58.0,  # about the standard deviation of a pixel
    )
    config.optim.update(
        learning_rate=0.13,  # MindSpore, for a batch of 256
        reference_batch=256,
        warmup_epochs=5.0,  # MindSpore
        schedule='cosine',  # Loshchilov and Hutter (2017); MindSpore
        milestone_epochs=(),
        weight_decay=1e-4,  # MindSpore
        rate_inside_velocity=False,  # the form of today's libraries
    )
    config.training.label_smoothing = 0.1  # Szegedy (2016); MindSpore
    return config
