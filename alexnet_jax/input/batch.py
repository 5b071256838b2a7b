"""What a training step takes besides its state: a batch of examples, and the data's statistics."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Examples, on the host or on the devices."""

    images: Any  # uint8 [batch, H, W, C]
    labels: Any  # int32 [batch]
    mask: Any  # bool [batch], False for the padding of the last batch of an evaluation


class Statistics(NamedTuple):
    """What the augmentation subtracts and adds, on the pixels' scale of 0 to 255 (Paper 4.1)."""

    mean_image: Any  # float [H, W, C]
    eigenvectors: Any  # float [C, C], columns, of the covariance of the channels
    std: Any  # float [C], square roots of its eigenvalues, ascending
