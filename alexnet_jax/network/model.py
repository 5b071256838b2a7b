"""AlexNet, in the order of the paper's Fig. 2.

Two towers see the same image. They exchange activations at conv3, fc6, fc7 and fc8, nowhere else
(Paper 3.2 and Fig. 2). How many devices a copy of the network lives on is the matter of the
`Collectives` handed in; the numbers are the same for all of them.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alexnet_jax.network.layers import (
    Dense,
    TowerConvolution,
    Towers,
    dropout,
    local_response_norm,
    within_map_norm,
)
from alexnet_jax.network.local import LocalConvolution
from alexnet_jax.network.pooling import max_pool
from alexnet_jax.parallel.collectives import Collectives

Activations = dict[str, jax.Array]
_ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh, 'sigmoid': nn.sigmoid}
_AFTER_CONVOLUTION = ('order', 'lrn', 'map_norm', 'pool_window', 'pool_stride', 'pool_partial')


class AlexNet(nn.Module):
    """The network of Paper 3.5; every field is a field of the configuration's `model` section.

    A convolution with 0 features is absent (conv6 is that of the paper's CNN*, Paper 6). The shapes
    beside the lines are those of the paper's network, both towers together.
    """

    num_classes: int
    towers: int
    conv1: Mapping[str, Any]
    conv2: Mapping[str, Any]
    conv3: Mapping[str, Any]
    conv4: Mapping[str, Any]
    conv5: Mapping[str, Any]
    conv6: Mapping[str, Any]
    fc6: Mapping[str, Any]
    fc7: Mapping[str, Any]
    fc8: Mapping[str, Any]
    lrn: Mapping[str, Any]
    map_norm: Mapping[str, Any]
    activation: str
    initializer: str
    dropout: float
    dropout_inverted: bool
    dropout_inputs: bool
    dtype: str
    precision: str
    forms: str
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
        seen: Activations = {}
        x = (images.astype(self.dtype),) * (self.towers // self.collectives.tower)
        x = self._convolution('conv1', x, seen)  # [batch, 27, 27, 96]
        x = self._convolution('conv2', x, seen)  # [batch, 13, 13, 256]
        x = self._convolution('conv3', x, seen)  # [batch, 13, 13, 384], sees both towers
        x = self._convolution('conv4', x, seen)  # [batch, 13, 13, 384]
        x = self._convolution('conv5', x, seen)  # [batch, 6, 6, 256]
        x = self._convolution('conv6', x, seen)  # [batch, 6, 6, 256], in CNN* only
        x = self._dense('fc6', x, rows, dropout_key, seen)  # [batch, 4096]
        x = self._dense('fc7', x, rows, dropout_key, seen)  # [batch, 4096]
        x = self._logits(x, seen)  # [batch, 1000]
        return x, seen

    def _convolution(self, name: str, towers: Towers, seen: Activations) -> Towers:
        """Convolution, ReLU (Paper 3.1), response normalisation (3.3), pooling (3.4)."""
        layer = dict(getattr(self, name))
        if layer['features'] == 0:
            return towers
        after = {field: layer.pop(field) for field in _AFTER_CONVOLUTION}
        number = name[len('conv') :]
        if layer.pop('sees_both_towers', False):  # conv1 has no such field: it sees the image
            towers = self._both_towers(name, towers)
        convolution = LocalConvolution if layer.pop('local') else TowerConvolution
        towers = convolution(
            **layer,
            **self._of_all_layers,
            towers=self.towers,
            towers_here=len(towers),
            fast=self.fast,
            name=name,
        )(towers)
        active_first = after['order'][0] == 'activation'
        if not active_first:
            seen[name] = jnp.concatenate(towers, axis=-1)
        for part in after['order']:
            if part == 'activation':
                label = name if active_first else f'relu{number}'
                towers = self._each(label, _ACTIVATIONS[self.activation], towers, seen)
            elif part == 'lrn':
                norms = {norm: after[norm] for norm in ('lrn', 'map_norm')}
                towers = self._normalise(number, towers, seen, **norms)
            elif after['pool_window']:
                pool = functools.partial(
                    max_pool,
                    window=after['pool_window'],
                    stride=after['pool_stride'],
                    partial=after['pool_partial'],
                    fast=self.fast,
                )
                towers = self._each(f'pool{number}', pool, towers, seen)
        return towers

    def _normalise(
        self, number: str, towers: Towers, seen: Activations, *, lrn: bool, map_norm: bool
    ) -> Towers:
        """Normalise across maps (Paper 3.3), then within each map (2012 source), where asked to."""
        if lrn:
            settings = {**self.lrn}
            if settings.pop('divide_alpha'):
                settings['alpha'] = settings['alpha'] / settings['n']
            across_towers = settings.pop('across_towers') and self.towers > 1
            norm = functools.partial(local_response_norm, **settings, fast=self.fast)
            if across_towers:
                whole = self._both_towers(f'lrn{number}', towers)[0]
                maps = len(towers) * towers[0].shape[-1]
                first = self.collectives.tower_index() * maps
                own = jax.lax.dynamic_slice_in_dim(norm(whole), first, maps, axis=-1)
                towers = tuple(jnp.split(own, len(towers), axis=-1))
                seen[f'lrn{number}'] = own
            else:
                towers = self._each(f'lrn{number}', norm, towers, seen)
        if map_norm:
            within = functools.partial(within_map_norm, **self.map_norm)
            towers = self._each(f'map_norm{number}', within, towers, seen)
        return towers

    def _both_towers(self, name: str, towers: Towers) -> Towers:
        """Hand every tower the channels of both: [batch, H, W, C / towers] -> [batch, H, W, C]."""
        with jax.named_scope(name):
            joined = self.collectives.join_towers(jnp.concatenate(towers, axis=-1))
        return (joined,) * len(towers)

    def _dense(
        self,
        name: str,
        x: Towers | jax.Array,
        rows: jax.Array,
        dropout_key: jax.Array | None,
        seen: Activations,
    ) -> Towers | jax.Array:
        """Fully connected layer, ReLU, dropout (Paper 4.2): this device's units of the layer."""
        layer = dict(getattr(self, name))
        units = layer.pop('features')
        if units == 0:
            return x
        here = units // self.collectives.model
        drop = functools.partial(
            dropout,
            rate=self.dropout,
            inverted=self.dropout_inverted,
            key=None if dropout_key is None else jax.random.fold_in(dropout_key, int(name[2:])),
            rows=rows,
        )
        both = layer.pop('sees_both_towers') or self.towers == 1
        with jax.named_scope(name):
            inputs = self._dense_inputs(x, both)
            if self.dropout_inputs:
                width = inputs[0].shape[-1]
                first = 0 if both else self.collectives.tower_index() * len(inputs)
                total = width if both else width * self.towers
                inputs = tuple(
                    drop(x, units=total, first=jnp.int32((first + i) * width))
                    for i, x in enumerate(inputs)
                )
        product, bias = Dense(
            **layer,
            **self._of_all_layers,
            features=here,
            out_dtype=jnp.dtype(self.dtype),
            name=name,
        )(inputs)
        with jax.named_scope(name):
            out = _ACTIVATIONS[self.activation](product + bias[None])
            if not self.dropout_inputs:
                out = drop(out, units=units, first=self.collectives.model_index() * here)
        seen[name] = out
        return out

    def _dense_inputs(self, x: Towers | jax.Array, both: bool) -> tuple[jax.Array, ...]:
        """Bring maps or units together: of both towers as one array, else one for each tower here.

        [rows of this copy, inputs], a position's channels beside each other.
        """
        if isinstance(x, tuple):
            if both:
                x = (self.collectives.join_towers(jnp.concatenate(x, axis=-1)),)
            whole = tuple(map(self.collectives.join_batch, x))
            return tuple(maps.reshape(maps.shape[0], -1) for maps in whole)
        if both:
            return (self.collectives.join_features(x),)
        own = self.collectives.join_features_of_tower(x)
        return tuple(jnp.split(own, self.towers // self.collectives.tower, axis=-1))

    def _logits(self, x: Towers | jax.Array, seen: Activations) -> jax.Array:
        """fc8 on this device's inputs, summed over the devices of one copy; then the bias."""
        if isinstance(x, tuple):  # neither fc6 nor fc7: the maps, one tower's after the other's
            x = jnp.concatenate(self._dense_inputs(x, both=False), axis=-1)
        partial, bias = Dense(
            **self.fc8,
            **self._of_all_layers,
            features=self.num_classes,
            out_dtype=self._param_dtype,  # rounded sums of parts would be added otherwise
            kernel_axes=(('tower', 'shard'), None),
            bias_axes=(None,),
            name='fc8',
        )((x,))
        with jax.named_scope('fc8'):
            logits = self.collectives.sum_over_model(partial) + bias[None]
        seen['fc8'] = logits
        return logits

    def _each(self, name: str, function: Any, towers: Towers, seen: Activations) -> Towers:
        with jax.named_scope(name):
            towers = tuple(map(function, towers))
        seen[name] = jnp.concatenate(towers, axis=-1)
        return towers

    @property
    def fast(self) -> bool:
        """Which forms of the layers run; the only place that decides it.

        'auto' is by measurement on the CPU, where the fast forms save a third of a step and more.
        GPUs and TPUs keep the plain forms, which their compilers know, until it was measured there.
        """
        return self.forms == 'fast' or (self.forms == 'auto' and jax.default_backend() == 'cpu')

    @property
    def _of_all_layers(self) -> dict[str, Any]:
        """What every layer with weights is told."""
        return {
            'initializer': self.initializer,
            'dtype': jnp.dtype(self.dtype),
            'param_dtype': self._param_dtype,
            'precision': self.precision,
        }

    @property
    def _param_dtype(self) -> jnp.dtype:
        """Weights are float32 whatever the compute dtype, but float64 for float64."""
        return np.promote_types(jnp.dtype(self.dtype), np.float32)


def abstract_variables(model: AlexNet, image_shape: tuple[int, ...]) -> Any:
    """Return shapes, dtypes and partitioning of the parameters, of the whole network."""
    init = functools.partial(_init, model, image_shape)
    return jax.eval_shape(init, jax.random.key(0))[1]['params']


def init_parameters(model: AlexNet, image_shape: tuple[int, ...], key: jax.Array) -> Any:
    """Draw the parameters of the whole network: `{layer: {kernel, bias}}`, the same on any mesh."""
    return nn.meta.unbox(_init(model, image_shape, key)[1]['params'])


def _init(model: AlexNet, image_shape: tuple[int, ...], key: jax.Array) -> Any:
    """Return the outputs for one image, and the variables, of the network on one device."""
    whole = model.clone(collectives=Collectives())
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return whole.init_with_output(key, images, jnp.zeros(1, jnp.int32))


def count_macs(model: AlexNet, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of one image's forward pass, by layer."""
    init = functools.partial(_init, model, image_shape)
    (_, seen), variables = jax.eval_shape(init, jax.random.key(0))
    params = nn.meta.unbox(variables['params'])

    def positions(name: str) -> int:
        """A kernel of H x W x I x O is used once at each position, a local one at its own."""
        local = getattr(model, name).get('local', False)
        return 1 if local else math.prod(seen[name].shape[1:-1])

    return {
        name: math.prod(layer['kernel'].shape) * positions(name) for name, layer in params.items()
    }


def training_flops(macs: Mapping[str, int]) -> int:
    """Return the floating point operations of one image's training step, 2 for each MAC.

    Forward, gradient of the weights, gradient of the input, which the first layer does not need.
    """
    first = next(iter(macs))
    return 2 * (3 * sum(macs.values()) - macs[first])
