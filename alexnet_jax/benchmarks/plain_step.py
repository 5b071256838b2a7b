"""The same training step as one would write it first: grouped nn.Conv, reduce_window, optax.sgd."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from jax import lax

from alexnet_jax.config import CONVOLUTIONS


class PlainAlexNet(nn.Module):
    """AlexNet on one device, both towers in one array; its parameters are named as AlexNet's."""

    config: Any  # the `model` section

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        """Return the logits of images [batch, H, W, C]."""
        towers, dtype = self.config['towers'], self.config['dtype']
        for name in CONVOLUTIONS:
            layer = self.config[name]
            if not layer['features']:
                continue
            groups = 1 if layer.get('sees_both_towers', True) else towers
            x = nn.Conv(
                layer['features'],
                (layer['kernel'],) * 2,
                (layer['stride'],) * 2,
                (tuple(layer['padding']),) * 2,
                feature_group_count=groups,
                dtype=dtype,
                name=name,
            )(x)
            x = nn.relu(x)
            if layer['lrn']:
                x = _norm(x, towers, **self.config['lrn'])
            if window := layer['pool_window']:
                x = nn.max_pool(x, (window, window), (layer['pool_stride'],) * 2)
        x = x.reshape(x.shape[0], -1)
        for name in ('fc6', 'fc7'):
            x = nn.relu(nn.Dense(self.config[name]['features'], dtype=dtype, name=name)(x))
            x = nn.Dropout(self.config['dropout'], deterministic=not training)(x)
        return nn.Dense(self.config['num_classes'], dtype=dtype, name='fc8')(x)


def _norm(x: jax.Array, towers: int, k: float, n: int, alpha: float, beta: float) -> jax.Array:
    own = x.reshape(*x.shape[:-1], towers, -1)
    squares = jnp.square(own.astype(jnp.float32))
    sums = lax.reduce_window(squares, 0.0, lax.add, (1,) * x.ndim + (n,), (1,) * own.ndim, 'SAME')
    return (own * (k + alpha * sums) ** -beta).astype(x.dtype).reshape(x.shape)


def make_step(config: ml_collections.ConfigDict) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (params -> optimizer state, jitted step).

    The step maps (params, optimizer state, images float, labels, key) to the same two and the loss.
    The learning rate is constant.
    """
    network = PlainAlexNet(config.model.to_dict())
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
