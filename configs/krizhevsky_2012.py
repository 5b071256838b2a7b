"""The run behind the paper's Table 2, #145, with the settings of the author's source (2012).

    python -m alexnet_jax.main --config=configs/krizhevsky_2012.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     as configs/alexnet.py, 91 epochs: 910,830 steps. Not run.
Expected: the author's log has 40.6640 % top-1 and 18.2100 % top-5 validation error with ten views.

Where the paper's text and its source differ, this file follows the source. The author's log gives
the learning rates of the weights. Here those of the biases are always twice as high; the author's
files show them, 0.02 and 0.002, at only two points in time.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of run #145."""
    config = alexnet.get_config()
    model = config.model
    # In conv1 the ReLU comes after pooling; conv2 has one more normalisation.
    model.conv1.after = ('lrn', 'pool', 'activation')
    model.conv2.after = ('activation', 'lrn', 'map_norm', 'pool')
    model.lrn.divide_alpha = True
    for name in ('conv3', 'conv4', 'conv5'):
        model[name].init_std = 0.03
    config.augment.update(images_per_crop=32, mean='centre', colour_divisor=1.1, colour_epochs=67.0)
    config.optim.update(
        schedule='constant',
        lr_multipliers=(('bias', 2.0),),
        weight_decay_multipliers=(('bias', 0.0),),
        events=(
            (25, 'all', 1e-3),
            (51, 'all', 1e-4),
            (67, 'conv1', 1e-5),
            (72, 'conv1', 0.0),
            (79, 'all', 1e-5),  # conv1 stays at 0
        ),
    )
    config.training.total_epochs = 91.0
    return config
