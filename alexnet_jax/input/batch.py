"""The inputs of a training step: a batch of examples and the statistics of the data set."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Examples, on the host or on the devices."""

    images: Any  # uint8 [batch, H, W, C]
    labels: Any  # int32 [batch]
    mask: Any  # bool [batch], False for the padding of the last batch of an evaluation


class Statistics(NamedTuple):
    """The statistics that augmentation needs, on the pixels' scale of 0 to 255 (Paper 4.1)."""

    mean_image: Any  # float [H, W, C]
    eigenvectors: Any  # float [C, C], in columns, of the covariance of the channels
    std: Any  # float [C], square roots of its eigenvalues, in ascending order
