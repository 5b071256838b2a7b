"""The statistics of networks that come without those of their data."""

import numpy as np

from alexnet_jax.input.batch import Statistics


def constant_colours(mean_image: np.ndarray) -> Statistics:
    """Return statistics without colour noise, for a network that was trained without it."""
    channels = mean_image.shape[-1]
    return Statistics(
        mean_image=np.asarray(mean_image, np.float32),
        eigenvectors=np.eye(channels, dtype=np.float32),
        std=np.zeros(channels, np.float32),
    )
