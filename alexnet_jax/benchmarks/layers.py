"""Where the time of a training step goes: each layer by itself, forward and backward."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from alexnet_jax.benchmarks import timing
from alexnet_jax.benchmarks.problem import Ours, paper_norm, require_paper_layers
from alexnet_jax.benchmarks.step import MatrixProduct
from alexnet_jax.config import CONVOLUTIONS
from alexnet_jax.network.layers import TowerConvolution, dropout, local_response_norm
from alexnet_jax.network.model import count_macs
from alexnet_jax.network.pooling import max_pool

_ROUNDS = 5


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return for each layer its time, its share of all, and its part of the fastest product's rate.

    Forward and backward together, one after the other and each compiled by itself on activations
    of the network, so that the sum is not quite the step's time: a step overlaps and fuses some.
    """
    product, ours = MatrixProduct(config), Ours(config, one_device=True)
    cases = _layers(ours)
    seconds = timing.interleaved(
        {
            'step': lambda: ours.train(1),
            'product': lambda: product.run(1),
            **{name: functools.partial(_finish, run) for name, run in cases.items()},
        },
        rounds=_ROUNDS,
        warmup=2,
    )
    peak = product.flops / min(seconds['product'])
    middle = {name: timing.spread('s', seconds[name])['s'] for name in ('step', *cases)}
    macs = count_macs(ours.experiment.model, ours.experiment.crop_shape)
    total = sum(middle[name] for name in cases)
    result = {
        'batch_size': config.training.batch_size,
        'peak_gflops': peak / 1e9,
        'step_ms': 1e3 * middle['step'],
        'sum_of_layers_ms': 1e3 * total,
    }
    for name in cases:
        result[f'{name}_ms'] = 1e3 * middle[name]
        result[f'{name}_share'] = middle[name] / total
        if name in macs:  # twice each for the forward pass and the two gradients
            passes = 2 if name == 'conv1' else 3
            flops = 2 * passes * macs[name] * config.training.batch_size
            result[f'{name}_of_peak'] = flops / middle[name] / peak
    return result


def _finish(run: Callable[[], Any]) -> None:
    jax.block_until_ready(run())


def _layers(ours: Ours) -> dict[str, Callable[[], Any]]:
    """Return the layers by name, in order, each a call that runs it forward and backward."""
    experiment = ours.experiment
    model, batch = experiment.model, ours.batch
    params = jax.tree.map(jnp.copy, ours.state.params)  # a step gives its buffers away
    rows = jnp.arange(len(batch.labels), dtype=jnp.int32)
    key = jax.random.key(0)
    augment, step = jax.jit(experiment.augment.training), jnp.int32(0)
    require_paper_layers(experiment.config)
    cases: dict[str, Callable[[], Any]] = {
        'augment': lambda: augment(batch.images, ours.statistics, key, rows, step)
    }
    images = augment(batch.images, ours.statistics, key, rows, step)
    _, seen = jax.jit(model.apply)({'params': params}, images, rows, key)
    x: Any = (images.astype(model.dtype),)  # one array where the towers see the same
    for name in CONVOLUTIONS:
        layer = dict(getattr(model, name))
        if not layer['features']:
            continue
        lrn, window, stride = (layer.pop(k) for k in ('lrn', 'pool_window', 'pool_stride'))
        for variant in ('local', 'order', 'map_norm', 'pool_partial'):
            layer.pop(variant)
        if layer.pop('sees_both_towers', False):
            x = (jnp.concatenate(x, axis=-1),)
        kernels = TowerConvolution(
            **layer,
            initializer=model.initializer,
            towers=model.towers,
            towers_here=model.towers,
            dtype=jnp.dtype(model.dtype),
            param_dtype=jnp.dtype(experiment.float_dtype),
            precision=model.precision,
            fast=model.fast,
        )
        of_input = name != 'conv1'  # nobody needs the gradient of the images

        def convolution(params, x, kernels=kernels):
            inputs = x * (model.towers // len(x))
            return jax.tree.map(nn.relu, kernels.apply({'params': params}, inputs))

        cases[name] = _both_ways(convolution, (params[name], x), of_input)
        x = _towers(model, seen[name])
        if lrn:
            norm = functools.partial(local_response_norm, **paper_norm(model.lrn), fast=model.fast)
            norm_name = name.replace('conv', 'lrn')
            cases[norm_name] = _both_ways(_each(norm), (x,))
            x = _towers(model, seen[norm_name])
        if window:
            pool = functools.partial(
                max_pool, window=window, stride=stride, partial=False, fast=model.fast
            )
            pool_name = name.replace('conv', 'pool')
            cases[pool_name] = _both_ways(_each(pool), (x,))
            x = _towers(model, seen[pool_name])
    x = jnp.concatenate(x, axis=-1).reshape(len(rows), -1)
    for name in ('fc6', 'fc7', 'fc8'):
        dense = functools.partial(_dense, ours, name == 'fc8', key, rows)
        cases[name] = _both_ways(dense, (params[name], x))
        x = seen[name]
    return {**cases, 'update': _update(ours)}


def _dense(
    ours: Ours, last: bool, key: jax.Array, rows: jax.Array, params: Any, x: jax.Array
) -> jax.Array:
    """A fully connected layer with what follows it: ReLU and dropout, or the losses."""
    model, float_dtype = ours.experiment.model, ours.experiment.float_dtype
    y = jnp.matmul(x, params['kernel'].astype(x.dtype), precision=model.precision)
    y = y + params['bias'].astype(x.dtype)[None]
    if last:
        return optax.softmax_cross_entropy_with_integer_labels(
            y.astype(float_dtype), ours.batch.labels
        )
    return dropout(
        nn.relu(y),
        rate=model.dropout,
        inverted=False,
        key=key,
        rows=rows,
        units=y.shape[-1],
        first=jnp.int32(0),
    )


def _towers(model: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(x, model.towers, axis=-1))


def _each(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    return lambda towers: tuple(map(function, towers))


def _both_ways(
    function: Callable[..., Any], arguments: tuple, of_input: bool = True
) -> Callable[[], Any]:
    """Return a call of a layer and its gradients of all arguments, or of the parameters only."""

    @jax.jit
    def run(arguments):
        count = len(arguments) if of_input else 1
        y, back = jax.vjp(lambda *a: function(*a, *arguments[count:]), *arguments[:count])
        return y, back(jax.tree.map(jnp.ones_like, y))

    return lambda: run(arguments)


def _update(ours: Ours) -> Callable[[], Any]:
    """Return a call of the update rule, which works in place."""
    optimizer = ours.experiment.optimizer

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, opt_state, gradients):
        updates, opt_state = optimizer.rule.update(
            gradients,
            opt_state,
            params,
            learning_rates=optimizer.learning_rates(jnp.int32(0), plateau, params),
            sum_over_mesh=lambda numbers: numbers,
        )
        return optax.apply_updates(params, updates), opt_state

    plateau = optimizer.init_plateau()
    gradients = jax.tree.map(jnp.zeros_like, ours.state.params)
    state = [jax.tree.map(jnp.copy, (ours.state.params, ours.state.opt_state))]

    def call() -> Any:
        state[0] = run(*state[0], gradients)
        return state[0]

    return call
