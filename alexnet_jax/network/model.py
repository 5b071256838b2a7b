"""AlexNet, in the order of the paper's Fig. 2.

Two towers see the same image. They exchange activations at conv3, fc6, fc7 and fc8, nowhere else
(Paper 3.2 and Fig. 2). `configs/alexnet.py` has the size of each layer and what follows it,
`layers.py` the layers, and `variants.py` what may follow a convolution.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from alexnet_jax.network.layers import Features, HiddenLayer, OutputLayer, TowerConvolution
from alexnet_jax.network.locally_connected import LocallyConnected
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.network.variants import AFTER, Towers, output_name
from alexnet_jax.parallel.collectives import Collectives

Activations = dict[str, jax.Array]


class AlexNet(nn.Module):
    """The network of Paper 3.5, written for one device of the mesh that `collectives` stand for.

    The shapes beside the lines are those of the paper's network, both towers together.
    """

    config: ModelConfig
    collectives: Collectives = Collectives()

    @nn.compact
    def __call__(
        self, images: jax.Array, rows: jax.Array, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, Activations]:
        """Return the logits and the named activations.

        Args:
          images: float [rows of this shard, H, W, C], mean subtracted, 0-255 scale.
          rows: int32 [rows of this copy], each example's index in the global batch.
          dropout_key: typed key, the same on every device; None at test time.

        Returns:
          logits, float32 at least [rows of this copy, num_classes]; and this device's part of the
          activations: `conv1` .. after the ReLU (before it where that stands later, then `relu1`),
          `lrn1` .., `pool1` .., `fc6` .. after the dropout, `fc8` the logits. Convolutions: [rows
          of this shard, H, W, channels / tower].
        """
        config, collectives = self.config, self.collectives
        seen: Activations = {}
        convolution = functools.partial(self._convolution, seen)
        hidden = functools.partial(self._hidden, seen, rows, dropout_key)

        x = images.astype(config.dtype)  # [batch, 224, 224, 3]
        x = (x,) * (config.towers // collectives.tower)  # for each tower on this device
        x = convolution('conv1', x)  # [batch, 55, 55, 96], LRN, pooling: [batch, 27, 27, 96]
        x = convolution('conv2', x)  # [batch, 27, 27, 256], LRN, pooling: [batch, 13, 13, 256]
        x = convolution('conv3', x)  # [batch, 13, 13, 384], sees both towers
        x = convolution('conv4', x)  # [batch, 13, 13, 384]
        x = convolution('conv5', x)  # [batch, 13, 13, 256], pooling: [batch, 6, 6, 256]
        x = convolution('conv6', x)  # [batch, 6, 6, 256], sees both towers; only in CNN*, Paper 6
        x = hidden('fc6', x)  # [batch, 4096], sees both towers
        x = hidden('fc7', x)  # [batch, 4096], sees both towers
        x = OutputLayer(config.fc8, config, collectives, name='fc8')(x)  # [batch, 1000]
        return x, {**seen, 'fc8': x}

    def _convolution(self, seen: Activations, name: str, x: Towers) -> Towers:
        """Convolve (Paper 3.5), then ReLU (3.1), LRN (3.3), pooling (3.4): what `after` lists."""
        layer = getattr(self.config, name)
        if layer.features == 0:  # there is no such layer
            return x
        kind = LocallyConnected if layer.local else TowerConvolution
        x = kind(layer, self.config, self.collectives, name=name)(x)
        if layer.after[0] != 'activation':
            seen[name] = jnp.concatenate(x, axis=-1)
        for operation in layer.after:
            output = output_name(name, layer.after, operation)
            with jax.named_scope(output):
                x = AFTER[operation](x, layer, self.config, self.collectives)
            seen[output] = jnp.concatenate(x, axis=-1)
        return x

    def _hidden(
        self, seen: Activations, rows: jax.Array, key: jax.Array | None, name: str, x: Features
    ) -> Features:
        """Multiply and add the bias (Paper 3.5), ReLU (3.1), dropout (4.2)."""
        layer = getattr(self.config, name)
        if layer.features == 0:  # there is no such layer
            return x
        own_key = None if key is None else jax.random.fold_in(key, int(name[2:]))
        x = HiddenLayer(layer, self.config, self.collectives, name=name)(x, rows, own_key)
        seen[name] = x
        return x
