"""A trained network for people and programs: `load(RUN).predict(images)`."""

from alexnet_jax.inference.network import Network, Prediction, load
from alexnet_jax.preparation.images import Unreadable

__all__ = ['Network', 'Prediction', 'Unreadable', 'load']
