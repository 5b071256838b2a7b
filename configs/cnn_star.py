"""CNN*, the paper's network with a sixth convolution (Paper 6), fine-tuned on ILSVRC-2012.

    python -m alexnet_jax.main --config=configs/cnn_star.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
          `--config.training.init_from=RUN`, a run on the larger data set, which is not public.
Cost:     as configs/alexnet.py. Not run.
Expected: 39.0 % top-1 and 16.6 % top-5 validation error with ten views (Table 2).
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    config.model.conv6.features = 256
    config.optim.events = ((0, 'conv1', 1e-4), (7, 'conv1', 0.0))  # 2012 source
    return config
