"""One weird trick for parallelizing convolutional neural networks (Krizhevsky, 2014).

    python -m alexnet_jax.main --config=configs/one_weird_trick.py --data_dir=DIR

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     90 epochs, one tower. Not run.
Expected: 42.3 to 42.9 % top-1 validation error with one crop in the author's family of networks.

The numbers of kernels are those of that paper's footnote: 64, 192, 384, 384 and 256. Its
parallelism is `parallel.model=4` or 8: the convolutions split the batch, and the fully connected
layers split their weights.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = alexnet.get_config()
    model = config.model
    model.towers = 1
    model.conv1.features = 64
    model.conv2.features = 192
    model.lrn.divide_alpha = True
    config.optim.update(reference_batch=128)  # the learning rate grows with the batch
    return config
