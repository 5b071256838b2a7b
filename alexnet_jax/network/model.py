"""AlexNet, in the order of the paper's Fig. 2.

Two towers see the same image and exchange activations only at conv3, fc6, fc7 and fc8 (Paper 3.2
and Fig. 2). `configs/alexnet.py` has the size of each layer and the operations that follow it,
`layers.py` the layers, and `variants.py` the operations that may follow a convolution.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from alexnet_jax.network.layers import Features, HiddenLayer, OutputLayer, TowerConvolution
from alexnet_jax.network.locally_connected import LocallyConnected
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.network.variants import AFTER, Place, Towers, output_name
from alexnet_jax.parallel.collectives import Collectives

Activations = dict[str, jax.Array]


class AlexNet(nn.Module):
    """The network of Paper 3.5, written for one device of the mesh of its `collectives`.

    The shapes in the comments are those of the paper's network, for both towers together.
    """

    config: ModelConfig
    collectives: Collectives = Collectives()

    @nn.compact
    def __call__(
        self, images: jax.Array, rows: jax.Array, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, Activations]:
        """Return the logits and the named activations.

        Args:
          images: float [rows of this shard, H, W, C], on the 0-255 scale with the mean subtracted.
          rows: int32 [rows of this copy], each example's index in the global batch.
          dropout_key: typed key, the same on every device; None at test time.

        Returns:
          The logits, float32 or float64 [rows of this copy, num_classes], and this device's part of
          the activations by name. `conv1` is the output after the ReLU; if another operation
          precedes the ReLU, `conv1` is the convolution's own output and `relu1` that of the ReLU.
          `lrn1` and `pool1` are as named, `fc6` and `fc7` are after dropout, and `fc8` is the
          logits. Those of convolutions are [rows of this shard, H, W, channels / tower].
        """
        config, collectives = self.config, self.collectives
        seen: Activations = {}
        convolution = functools.partial(self._convolution, seen, dropout_key is not None)
        hidden = functools.partial(self._hidden, seen, rows, dropout_key)

        x = images.astype(config.dtype)  # [batch, 224, 224, 3]
        x = (x,) * (config.towers // collectives.tower)  # one for each tower on this device
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

    def _convolution(self, seen: Activations, training: bool, name: str, x: Towers) -> Towers:
        """Convolve (Paper 3.5), then what `after` lists: ReLU (3.1), LRN (3.3), pooling (3.4)."""
        layer = getattr(self.config, name)
        if layer.features == 0:  # this network has no such layer
            return x
        kind = LocallyConnected if layer.local else TowerConvolution
        x = kind(layer, self.config, self.collectives, name=name)(x)
        if layer.after[0] != 'activation':
            seen[name] = jnp.concatenate(x, axis=-1)
        for operation in layer.after:
            output = output_name(name, layer.after, operation)
            place = Place(output, layer, self.config, self.collectives, training)
            with jax.named_scope(output):
                x = AFTER[operation](x, place)
            seen[output] = jnp.concatenate(x, axis=-1)
        return x

    def _hidden(
        self, seen: Activations, rows: jax.Array, key: jax.Array | None, name: str, x: Features
    ) -> Features:
        """Apply a fully connected layer (Paper 3.5) with ReLU (3.1) and dropout (4.2)."""
        layer = getattr(self.config, name)
        if layer.features == 0:  # this network has no such layer
            return x
        own_key = None if key is None else jax.random.fold_in(key, int(name[2:]))
        x = HiddenLayer(layer, self.config, self.collectives, name=name)(x, rows, own_key)
        seen[name] = x
        return x
