"""Typed configurations, made from those of `configs/` as a command makes them."""

import ml_collections

from alexnet_jax.training.config import Config


def typed(config: ml_collections.ConfigDict) -> Config:
    """Return a configuration with its sections, checked."""
    return Config.from_dict(config.to_dict())
