"""Prepare scikit-learn's handwritten digits, real images that come with a Python package."""

from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.preparation.records import write_dataset


def prepare_digits(data_dir: epath.PathLike) -> epath.Path:
    """Write scikit-learn's 1,797 handwritten digits, 8x8 pixels, as the data set `digits` 1.0.0.

    There are 1,437 for training and 360 for testing, with the same proportions of the classes.
    Pixel values v of 0 to 16 become round(v * 255 / 16). Returns the directory; raises the errors
    of `write_dataset`.
    """
    from sklearn import datasets, model_selection  # slow to import, and training never needs it

    digits: Any = datasets.load_digits()
    train, test = model_selection.train_test_split(
        range(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target
    )

    def read_example(item: int) -> tuple[np.ndarray, int]:
        pixels = np.round(digits.images[item] * (255 / 16)).astype(np.uint8)
        return pixels[..., None], int(digits.target[item])  # [8, 8, 1]

    return write_dataset(
        data_dir,
        name='digits',
        version='1.0.0',
        description=(
            "scikit-learn's handwritten digits (load_digits: 1,797 images of 8x8, the test part of "
            'UCI Optical Recognition of Handwritten Digits), pixel values v of 0..16 scaled to '
            'round(v * 255 / 16), split by train_test_split(test_size=0.2, random_state=0, '
            'stratify=labels) into 1,437 for training and 360 for testing.'
        ),
        image_shape=(8, 8, 1),
        class_names=[str(digit) for digit in range(10)],
        splits={'train': list(train), 'test': list(test)},
        shards={'train': 1, 'test': 1},
        read_example=read_example,
    )
