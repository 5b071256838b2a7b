"""Locally connected layers: a convolution whose kernels differ from place to place.

The author's networks for CIFAR-10 have two of them (2012 source, layers-conv-local-13pct.cfg).
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from alexnet_jax.network.layers import TowerConvolution, Towers, parameter


class LocalConvolution(TowerConvolution):
    """A `TowerConvolution` with kernels and biases of its own at each position of its output.

    The kernel is [H', W', C_in * kernel * kernel, features], of the inputs of one position the
    channel first, then row and column; the bias is [H', W', features].
    """

    @nn.compact
    def __call__(self, inputs: Towers) -> Towers:
        """Map one [batch, H, W, C_in] per tower to one [batch, H', W', features / towers]."""
        features = self.features // self.towers * self.towers_here
        channels = inputs[0].shape[-1]
        height, width = (
            (side + sum(self.padding) - self.kernel) // self.stride + 1
            for side in inputs[0].shape[1:3]
        )
        shape = (height, width, channels * self.kernel**2, features)
        kernel = parameter(self, 'kernel', shape, (None, None, None, 'tower'), positions=(0, 1))
        bias = parameter(self, 'bias', (height, width, features), (None, None, 'tower'))
        kernels = jnp.split(kernel.astype(self.dtype), self.towers_here, axis=-1)
        biases = jnp.split(bias.astype(self.dtype), self.towers_here, axis=-1)
        return tuple(
            lax.conv_general_dilated_local(
                x,
                k,
                window_strides=(self.stride, self.stride),
                padding=(self.padding, self.padding),
                filter_shape=(self.kernel, self.kernel),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                precision=lax.Precision(self.precision),
            )
            + b[None]
            for x, k, b in zip(inputs, kernels, biases, strict=True)
        )
