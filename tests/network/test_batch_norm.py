"""Batch normalisation against PyTorch's and against its formula, in both towers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import init_statistics, join_network, split_network
from alexnet_jax.training.step import loss_and_gradients
from tests import reference

IMAGE, MOMENTUM, EPSILON = reference.SMALL_IMAGE, 0.8, 1e-3
BEFORE, AFTERWARDS = ('bn', 'activation', 'pool'), ('activation', 'bn', 'pool')
CONSTANTS = {'bn.momentum': MOMENTUM, 'bn.epsilon': EPSILON, 'dropout': 0.0}


def network(**fields):
    return AlexNet(reference.small_model_config(**CONSTANTS, **fields))


def averages(random, width):
    return {'mean': random.normal(size=width), 'var': random.uniform(0.5, 2, width)}


def torch_norm(x, parameters, running, training):
    """Normalise [n, C, H, W]; return the output and the new running averages.

    PyTorch's momentum is the share of the new value, and it divides the variance that it averages
    by n - 1, not by n as Ioffe and Szegedy's normalisation and flax do.
    """
    mean, var = (torch.from_numpy(running[name].copy()) for name in ('mean', 'var'))
    y = functional.batch_norm(
        *(x, mean, var, parameters['scale'], parameters['bias']),
        training=training,
        momentum=1 - MOMENTUM,
        eps=EPSILON,
    )
    n = x.numel() // x.shape[1]
    old = MOMENTUM * running['var']
    unbiased = mean.numpy(), old + (var.numpy() - old) * (n - 1) / n
    return y, dict(zip(('mean', 'var'), unbiased if training else running.values(), strict=True))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('after', [BEFORE, AFTERWARDS])
def test_conv1_and_its_gradients_are_pytorchs(x64, after, training):
    """The loss is a fixed sum of the maps after pooling; PyTorch differentiates the same."""
    model = network(**{'conv1.after': after})
    random = np.random.default_rng(0)
    params = reference.draw_parameters(model, IMAGE, seed=1)
    width = params['bn1']['scale'].shape[0]
    running = {'bn1': averages(random, width)}
    images = reference.smooth_images(3, IMAGE, seed=2)
    rows = np.arange(3, dtype=np.int32)
    key = jax.random.key(0) if training else None

    def loss(params):
        variables = {'params': params, 'batch_stats': running}
        (_, seen), new = model.apply(variables, images, rows, key, mutable=['batch_stats'])
        pool = seen['pool1']
        return jnp.sum(pool * jnp.sin(jnp.arange(pool.size).reshape(pool.shape))), (seen, new)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=reference.QUICK_COMPILE)
    (value, (seen, new)), gradients = jax.device_get(run(params))

    leaves = {
        layer: {k: torch.from_numpy(np.array(x)).requires_grad_() for k, x in params[layer].items()}
        for layer in ('conv1', 'bn1')
    }
    x = functional.pad(torch.from_numpy(images).permute(0, 3, 1, 2), (0, 3, 0, 3))
    weight = leaves['conv1']['kernel'].permute(3, 2, 0, 1)
    x = functional.conv2d(x, weight, leaves['conv1']['bias'], stride=4)
    for operation in after[:2]:
        if operation == 'activation':
            x = functional.relu(x)
        else:
            x, averaged = torch_norm(x, leaves['bn1'], running['bn1'], training)
            normed = x.detach().permute(0, 2, 3, 1).numpy()
    x = functional.max_pool2d(x, 3, 2).permute(0, 2, 3, 1)
    theirs = (x * torch.sin(torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape))).sum()
    theirs.backward()

    assert value == pytest.approx(theirs.item(), rel=1e-9)
    assert reference.relative_error(seen['bn1'], normed) < 1e-12
    for name, want in averaged.items():
        np.testing.assert_allclose(new['batch_stats']['bn1'][name], want, rtol=1e-12)
    for layer, name in (('conv1', 'kernel'), ('bn1', 'scale'), ('bn1', 'bias')):
        want = leaves[layer][name].grad.numpy()
        assert reference.relative_error(gradients[layer][name], want) < 1e-9, (layer, name)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_averages_are_float32_whatever_the_arithmetic(dtype):
    model = network(**{'conv1.after': BEFORE, 'conv2.after': AFTERWARDS, 'dtype': dtype})
    fresh = jax.jit(lambda: init_statistics(model, IMAGE))()
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {np.dtype('float32')}
    images = reference.smooth_images(2, IMAGE, seed=2).astype(np.float32)
    params = jax.tree.map(
        functools.partial(np.asarray, dtype=np.float32),
        reference.draw_parameters(model, IMAGE, seed=1),
    )
    run = jax.jit(
        functools.partial(loss_and_gradients, model=model),
        compiler_options=reference.QUICK_COMPILE,
    )
    labels = rows = np.arange(2, dtype=np.int32)
    (_, _, new), _ = run(params, images, labels, rows, jax.random.key(0), batch_stats=fresh)
    assert jax.tree.structure(new) == jax.tree.structure(fresh)
    for before, after in zip(jax.tree.leaves(fresh), jax.tree.leaves(new), strict=True):
        assert after.dtype == np.float32
        assert np.abs(np.asarray(after) - before).max() > 0


def test_a_network_is_its_parameters_and_averages(x64):
    model = network(**{'conv2.after': BEFORE})
    stats = jax.jit(lambda: init_statistics(model, IMAGE))()
    params = reference.draw_parameters(model, IMAGE, seed=1)
    joined = join_network(params, stats)
    assert set(joined['bn2']) == {'scale', 'bias', 'mean', 'var'}
    apart = split_network(joined)
    assert jax.tree.structure(apart) == jax.tree.structure({'params': params, 'batch_stats': stats})
    assert split_network(join_network(params, {}))['batch_stats'] == {}
