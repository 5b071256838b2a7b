"""CaffeNet, the BVLC's reference network: it pools before normalising, with Caffe's norm.

    python -m alexnet_jax.main --config=configs/caffenet.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     90 epochs, 4.1356 GFLOP per image. Not run.
Expected: 42.6 % top-1 and 19.6 % top-5 validation error, one crop.

Caffe reads 227 pixels without padding, while the paper's network reads 224 pixels and three zeros.
It normalises across both towers' maps. Like this project, its data layer subtracts the mean image
at the position of the crop and then mirrors.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    model = config.model
    model.conv1.update(padding=(0, 0), after=('activation', 'pool', 'lrn'))
    model.conv2.after = ('activation', 'pool', 'lrn')
    model.lrn.update(k=1.0, divide_alpha=True, across_towers=True)
    model.fc6.init_std = 0.005
    model.fc7.init_std = 0.005
    model.dropout_inverted = True
    config.augment.update(crop_px=227, colour_std=0.0)
    config.optim.update(
        lr_multipliers=(('bias', 2.0),),
        weight_decay_multipliers=(('bias', 0.0),),
        schedule='steps',
        milestone_epochs=(20.0, 40.0, 60.0, 80.0),
    )
    config.training.update(batch_size=256)
    config.evaluation.final_views = 1
    return config
