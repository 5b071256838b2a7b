"""The same training step in the usual style: grouped nn.Conv, reduce_window and optax.sgd."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig, Norm
from alexnet_jax.training.config import Config


class PlainAlexNet(nn.Module):
    """AlexNet on one device with both towers in one array; parameters have the same names."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        """Return the logits of images [batch, H, W, C]."""
        config = self.config
        numerics: Any = {'dtype': config.dtype, 'precision': config.precision}
        for name in CONVOLUTIONS:
            layer = getattr(config, name)
            if layer.features == 0:
                continue
            x = nn.Conv(
                layer.features,
                (layer.kernel,) * 2,
                (layer.stride,) * 2,
                (layer.padding,) * 2,
                feature_group_count=1 if sees_all(name, config) else config.towers,
                name=name,
                **numerics,
            )(x)
            for operation in layer.after:
                if operation == 'activation':
                    x = nn.relu(x)
                elif operation == 'lrn':
                    x = _norm(x, config.towers, config.lrn)
                elif operation == 'pool':
                    x = nn.max_pool(x, (layer.pool_window,) * 2, (layer.pool_stride,) * 2)
        x = x.reshape(x.shape[0], -1)
        for name in ('fc6', 'fc7'):
            features = getattr(config, name).features
            x = nn.relu(nn.Dense(features, name=name, **numerics)(x))
            x = nn.Dropout(config.dropout, deterministic=not training)(x)
        return nn.Dense(config.num_classes, name='fc8', **numerics)(x)


def sees_all(name: str, config: ModelConfig) -> bool:
    """Say whether a convolution sees all of its input: the image for conv1, or both towers."""
    return name == 'conv1' or getattr(config, name).sees_both_towers


def _norm(x: jax.Array, towers: int, lrn: Norm) -> jax.Array:
    own = x.reshape(*x.shape[:-1], towers, -1)
    window, strides = (1,) * x.ndim + (lrn.n,), (1,) * own.ndim
    squares = jnp.square(own.astype(jnp.float32))
    sums = lax.reduce_window(squares, 0.0, lax.add, window, strides, 'SAME')
    return (own * (lrn.k + lrn.alpha * sums) ** -lrn.beta).astype(x.dtype).reshape(x.shape)


def make_step(config: Config) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (params -> optimizer state, jitted step).

    The step maps (params, optimizer state, images float, labels, key) to the new params, the new
    optimizer state and the loss. The learning rate is constant.
    """
    network = PlainAlexNet(config.model)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.optim.weight_decay),
        optax.sgd(config.optim.learning_rate, config.optim.momentum),
    )

    def step(params, opt_state, images, labels, key):
        def loss_fn(params):
            logits = network.apply({'params': params}, images, True, rngs={'dropout': key})
            return optax.softmax_cross_entropy_with_integer_labels(
                jnp.asarray(logits, jnp.float32), labels
            ).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return optimizer.init, jax.jit(step, donate_argnums=(0, 1))
