"""The paper's network with batch normalisation where it has response normalisation.

    python -m alexnet_jax.main --config=configs/batch_norm.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     900,821 steps of batch 128, 4.1356 GFLOP per image, without the normalisation. Not run.
Expected: not known. Popular articles call batch normalisation the successor of Paper 3.3.

Everything else is the paper's, the rates included. It follows the ReLU, as LRN does in the paper;
Ioffe and Szegedy (2015) put it before: --config.model.conv1.after="('bn','activation','pool')".
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    for name in ('conv1', 'conv2'):
        config.model[name].after = ('activation', 'bn', 'pool')
    return config
