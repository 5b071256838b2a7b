"""Measure the time of each layer separately, forward and backward."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from alexnet_jax.benchmarks import timing
from alexnet_jax.benchmarks.problem import Ours
from alexnet_jax.benchmarks.step import MatrixProduct
from alexnet_jax.network.layers import HiddenLayer, OutputLayer, TowerConvolution
from alexnet_jax.network.locally_connected import LocallyConnected
from alexnet_jax.network.parameters import count_macs
from alexnet_jax.network.specification import CONVOLUTIONS, FirstConvolution, ModelConfig
from alexnet_jax.network.variants import AFTER, Place, Towers, output_name
from alexnet_jax.parallel.collectives import Collectives
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config

_ROUNDS = 5


def measure(config: Config) -> dict[str, Any]:
    """Return each layer's time, its share of the sum, and its share of the best product's rate.

    The times are those of forward and backward pass together. Each layer is compiled separately and
    runs on activations of the network. So the sum is not exactly the time of a step, in which some
    layers overlap or are fused.
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
        if name in macs:  # 2 FLOP for the forward pass and for each of two gradients
            passes = 2 if name == 'conv1' else 3
            flops = 2 * passes * macs[name] * config.training.batch_size
            result[f'{name}_of_peak'] = flops / middle[name] / peak
    return result


def _finish(run: Callable[[], Any]) -> None:
    jax.block_until_ready(run())


def _layers(ours: Ours) -> dict[str, Callable[[], Any]]:
    """Return a function for each layer, in order, that runs the layer forward and backward."""
    experiment, batch = ours.experiment, ours.batch
    model = experiment.model.config
    params = jax.tree.map(jnp.copy, ours.state.params)  # a step donates its buffers
    rows = jnp.arange(len(batch.labels), dtype=jnp.int32)
    key = jax.random.key(0)
    augment, step = jax.jit(experiment.augment.training), jnp.int32(0)
    cases: dict[str, Callable[[], Any]] = {
        'augment': lambda: augment(batch.images, ours.statistics, key, rows, step)
    }
    images = augment(batch.images, ours.statistics, key, rows, step)
    _, seen = jax.jit(experiment.model.apply)({'params': params}, images, rows, key)
    x: Any = (images.astype(model.dtype),)  # one array, because both towers see the same
    for name in CONVOLUTIONS:
        layer = getattr(model, name)
        if layer.features == 0:
            continue
        of_input = name != 'conv1'  # the gradient of the images is not needed
        convolution = functools.partial(_convolution, layer, model)
        cases[name] = _both_ways(convolution, (params[name], x), of_input)
        x = _towers(seen[name], model.towers)
        for operation in layer.after:
            output = output_name(name, layer.after, operation)
            if operation == 'bn':
                raise UserError(
                    f'benchmark layers does not time batch normalisation, and config.model.{name}.'
                    "after has 'bn'; choose a configuration without it"
                )
            if output != name:
                cases[output] = _both_ways(functools.partial(_after, operation, layer, model), (x,))
                x = _towers(seen[output], model.towers)
    for name in ('fc6', 'fc7'):
        layer = getattr(model, name)
        if layer.features:
            hidden = functools.partial(
                _apply, HiddenLayer(layer, model), rows=rows, dropout_key=key
            )
            cases[name] = _both_ways(hidden, (params[name], x))
            x = seen[name]

    def losses(params: Any, x: Any) -> jax.Array:
        logits = _apply(OutputLayer(model.fc8, model), params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    return {**cases, 'fc8': _both_ways(losses, (params['fc8'], x)), 'update': _update(ours)}


def _convolution(layer: FirstConvolution, model: ModelConfig, params: Any, x: Towers) -> Towers:
    """Run a convolution, and the activation function if it directly follows."""
    kind = LocallyConnected if layer.local else TowerConvolution
    y = _apply(kind(layer, model), params, x * (model.towers // len(x)))
    return _after('activation', layer, model, y) if layer.after[0] == 'activation' else y


def _after(operation: str, layer: FirstConvolution, model: ModelConfig, x: Towers) -> Towers:
    return AFTER[operation](x, Place(operation, layer, model, Collectives(), training=True))


def _apply(module: nn.Module, params: Any, *inputs: Any, **named: Any) -> Any:
    return module.apply({'params': params}, *inputs, **named)


def _towers(x: jax.Array, towers: int) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(x, towers, axis=-1))


def _both_ways(
    function: Callable[..., Any], arguments: tuple, of_input: bool = True
) -> Callable[[], Any]:
    """Return a call of a layer and its gradients: of all arguments, or only of the parameters."""

    @jax.jit
    def run(arguments):
        count = len(arguments) if of_input else 1
        y, back = jax.vjp(lambda *a: function(*a, *arguments[count:]), *arguments[:count])
        return y, back(jax.tree.map(jnp.ones_like, y))

    return lambda: run(arguments)


def _update(ours: Ours) -> Callable[[], Any]:
    """Return a call of the update rule, which updates in place."""
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
