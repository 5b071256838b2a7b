"""The recipe of `modern`, with batch normalisation in place of response normalisation.

    python -m alexnet_jax.main --config=configs/modern_bn.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     150 epochs, 4.1356 GFLOP per image, without the normalisation. Not run.
Expected: not known.

Batch normalisation (Ioffe and Szegedy, 2015) follows every convolution and precedes its ReLU.
"""

import ml_collections

from configs import modern


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    return normalise_batches(modern.get_config())


def normalise_batches(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Let batch normalisation follow every convolution, without response normalisation."""
    for name in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'):
        layer = config.model[name]
        layer.after = ('bn', *(operation for operation in layer.after if operation != 'lrn'))
    # Goyal (2017) does not decay the parameters of batch normalisation.
    no_decay = [(f'bn{i}.{kind}', 0.0) for i in range(1, 6) for kind in ('scale', 'bias')]
    config.optim.weight_decay_multipliers = tuple(no_decay)
    return config
