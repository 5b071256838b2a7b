"""What differs from the paper's network, field by field, against NumPy loops and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from alexnet_jax.network.dropout import dropout
from alexnet_jax.network.locally_connected import LocallyConnected, convolve_locally
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import init_parameters
from alexnet_jax.network.pooling import max_pool
from alexnet_jax.network.variants import within_map_norm
from configs import caffenet, torchvision
from tests import reference

IMAGE = reference.SMALL_IMAGE
FUNCTIONS = {
    'relu': lambda x: np.maximum(x, 0),
    'tanh': np.tanh,
    'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
}


def small(changes=(), **fields):
    """Return the `model` section of a small network; `changes` are of its parts."""
    return reference.small_model_config(**dict(changes), **fields)


def activations(model, dropout_key=None, n=2, **other):
    network = AlexNet(model)
    parameters = reference.draw_parameters(network, IMAGE, seed=3) | other
    images = reference.smooth_images(n, IMAGE, seed=4)
    rows = np.arange(n, dtype=np.int32)
    apply = jax.jit(network.apply, compiler_options=reference.QUICK_COMPILE)
    logits, seen = apply({'params': parameters}, images, rows, dropout_key)
    return np.asarray(logits), {name: np.asarray(x) for name, x in seen.items()}


def halves(x):
    return np.split(x, 2, axis=-1)


def norm_of_towers(a, across, **constants):
    towers = [a] if across else halves(a)
    parts = [reference.local_response_norm(tower, **constants) for tower in towers]
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize(
    ('lrn', 'k', 'alpha'),
    [
        ({}, 2.0, 1e-4),  # Paper 3.3
        ({'divide_alpha': True}, 2.0, 1e-4 / 5),  # 2012 source
        ({'divide_alpha': True, 'k': 1.0, 'across_towers': True}, 1.0, 1e-4 / 5),  # Caffe
    ],
)
def test_three_forms_of_response_normalisation(x64, lrn, k, alpha):
    changes = {f'lrn.{name}': value for name, value in lrn.items()}
    _, seen = activations(small(changes), n=1)
    across = lrn.get('across_towers', False)
    maps, normed = seen['conv1'], seen['lrn1']
    want = norm_of_towers(maps, across, k=k, n=5, alpha=alpha, beta=0.75)
    assert reference.relative_error(normed, want) < 1e-12
    other = norm_of_towers(maps, not across, k=k, n=5, alpha=alpha, beta=0.75)
    assert reference.relative_error(other, want) > 1e-4, 'the data can tell'
    if across:  # PyTorch's is Caffe's form
        theirs = functional.local_response_norm(
            torch.from_numpy(maps.copy()).permute(0, 3, 1, 2), size=5, alpha=1e-4, k=1.0
        )
        assert reference.relative_error(normed, theirs.permute(0, 2, 3, 1)) < 1e-12


def test_the_norm_within_a_map_is_its_formula(x64):
    a = 30 * np.random.default_rng(0).standard_normal((2, 6, 7, 3))
    got = within_map_norm(jnp.asarray(a), k=2.0, n=5, alpha=1e-3, beta=0.75)
    want = np.zeros(a.shape)
    for b, y, x, m in np.ndindex(*a.shape):
        energy = sum(
            a[b, y + i, x + j, m] ** 2
            for i in range(-2, 3)
            for j in range(-2, 3)
            if 0 <= y + i < 6 and 0 <= x + j < 7
        )
        want[b, y, x, m] = a[b, y, x, m] / (2 + 1e-3 / 25 * energy) ** 0.75
    assert reference.relative_error(got, want) < 1e-12
    assert (
        within_map_norm(jnp.ones((1, 2, 2, 1), 'bfloat16'), k=1.0, n=3, alpha=1.0, beta=1.0).dtype
        == 'bfloat16'
    )


def test_the_norm_within_a_map_stands_after_the_other_and_before_pooling(x64):
    changes = {'conv2.after': ('activation', 'lrn', 'map_norm', 'pool')}
    _, seen = activations(small(changes))
    want = within_map_norm(jnp.asarray(seen['lrn2']), k=1.0, n=5, alpha=1e-3, beta=0.75)
    np.testing.assert_allclose(seen['map_norm2'], want, rtol=1e-12)
    assert reference.relative_error(seen['map_norm2'], seen['lrn2']) > 0.1
    pooled = reference.max_pool(seen['map_norm2'], window=3, stride=2)
    np.testing.assert_array_equal(seen['pool2'], pooled)


@pytest.mark.parametrize('activation', ['relu', 'tanh', 'sigmoid'])
def test_conv1_of_2012_normalises_and_pools_before_its_activation(x64, activation):
    changes = {'conv1.after': ('lrn', 'pool', 'activation')}
    _, seen = activations(small(changes, activation=activation), n=1)
    assert seen['conv1'].min() < 0
    want = norm_of_towers(seen['conv1'], False, k=2.0, n=5, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(seen['lrn1'], want, rtol=1e-12)
    np.testing.assert_array_equal(
        seen['pool1'], reference.max_pool(seen['lrn1'], window=3, stride=2)
    )
    np.testing.assert_allclose(seen['relu1'], FUNCTIONS[activation](seen['pool1']), atol=1e-15)


def test_caffenet_pools_before_it_normalises(x64):
    changes = {'conv1.after': ('activation', 'pool', 'lrn')}
    _, seen = activations(small(changes), n=1)
    np.testing.assert_array_equal(
        seen['pool1'], reference.max_pool(seen['conv1'], window=3, stride=2)
    )
    want = norm_of_towers(seen['pool1'], False, k=2.0, n=5, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(seen['lrn1'], want, rtol=1e-12)


def test_every_hidden_layer_takes_the_activation(x64):
    for activation, (low, high) in {'tanh': (-1, 1), 'sigmoid': (0, 1)}.items():
        _, seen = activations(small(activation=activation, dropout=0.0))
        for name in ('conv1', 'conv3', 'conv5', 'fc6', 'fc7'):
            assert low <= seen[name].min() < seen[name].max() <= high, (activation, name)
        assert np.abs(seen['fc8']).max() > 0


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize(
    ('side', 'window', 'stride'), [(24, 3, 2), (12, 3, 2), (7, 2, 2), (9, 3, 2)]
)
def test_pooling_beyond_the_edge_is_pytorchs(x64, fast, side, window, stride):
    x = np.random.default_rng(1).standard_normal((2, side, side, 3)) - 5  # no zero may win
    y = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    theirs = functional.max_pool2d(y, window, stride, ceil_mode=True)
    weights = np.random.default_rng(2).standard_normal(theirs.shape)
    torch.sum(theirs * torch.from_numpy(weights)).backward()

    def pooled(x):
        return max_pool(x, window=window, stride=stride, partial=True, fast=fast)

    got = np.asarray(pooled(jnp.asarray(x)))
    assert got.shape[1] == math.ceil((side - window) / stride) + 1
    np.testing.assert_array_equal(got.transpose(0, 3, 1, 2), theirs.detach())
    gradient = jax.grad(lambda x: jnp.sum(pooled(x) * weights.transpose(0, 2, 3, 1)))(
        jnp.asarray(x)
    )
    assert y.grad is not None
    np.testing.assert_allclose(np.asarray(gradient).transpose(0, 3, 1, 2), y.grad, rtol=1e-12)


@pytest.mark.parametrize(('stride', 'padding'), [(1, (1, 1)), (2, (0, 1))])
def test_a_local_layer_has_a_kernel_at_each_place(x64, stride, padding):
    rng = np.random.default_rng(5)
    fields = {'features': 4, 'kernel': 3, 'stride': stride, 'padding': padding}
    config = small({f'conv2.{name}': value for name, value in fields.items()})
    layer = LocallyConnected(config.conv2, config)
    towers = tuple(rng.standard_normal((2, 5, 6, 3)) for _ in range(2))
    rows, columns = ((side + sum(padding) - 3) // stride + 1 for side in (5, 6))
    kernel = rng.standard_normal((rows, columns, 27, 4))
    bias = rng.standard_normal((rows, columns, 4))
    got = layer.apply({'params': {'kernel': kernel, 'bias': bias}}, towers)
    for tower, (x, y) in enumerate(zip(towers, got, strict=True)):
        padded = np.pad(x, ((0, 0), padding, padding, (0, 0)))
        for b, r, c, f in np.ndindex(2, rows, columns, 2):
            seen = padded[b, stride * r :, stride * c :][:3, :3].transpose(2, 0, 1).ravel()
            want = seen @ kernel[r, c, :, 2 * tower + f] + bias[r, c, 2 * tower + f]
            assert float(y[b, r, c, f]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(('stride', 'padding'), [(1, (1, 1)), (2, (0, 1))])
def test_a_local_layer_and_its_gradients_are_those_of_lax(x64, stride, padding):
    rng = np.random.default_rng(6)
    rows, columns = ((side + sum(padding) - 3) // stride + 1 for side in (5, 6))
    x = jnp.asarray(rng.standard_normal((2, 5, 6, 3)))
    kernel = jnp.asarray(rng.standard_normal((rows, columns, 27, 4)))
    weights = jnp.asarray(rng.standard_normal((2, rows, columns, 4)))

    def ours(x, kernel):
        return convolve_locally(
            x, kernel, size=3, stride=stride, padding=padding, precision='highest'
        )

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated_local(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=(padding, padding),
            filter_shape=(3, 3),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    (got, back), (want, their_back) = jax.vjp(ours, x, kernel), jax.vjp(theirs, x, kernel)
    pairs = zip((got, *back(weights)), (want, *their_back(weights)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize('local', [False, True])
@pytest.mark.parametrize(
    ('initializer', 'variance'),
    [
        ('normal', lambda inputs, outputs: 0.01**2),
        ('xavier', lambda inputs, outputs: 2 / (inputs + outputs)),
        ('he', lambda inputs, outputs: 2 / inputs),
        ('pytorch', lambda inputs, outputs: 1 / (3 * inputs)),
    ],
)
def test_initialisers_have_their_variances(initializer, variance, local):
    network = AlexNet(small({'conv4.local': local}, initializer=initializer, dtype='float32'))
    draw = jax.jit(
        lambda key: init_parameters(network, IMAGE, key), compiler_options=reference.QUICK_COMPILE
    )
    parameters = draw(jax.random.key(0))
    for name, inputs, outputs in [('conv4', 90, 9 * 16), ('fc6', 6 * 12, 24)]:
        outputs = 16 if local and name == 'conv4' else outputs
        kernel = np.asarray(parameters[name]['kernel'])
        assert np.mean(kernel**2) == pytest.approx(
            variance(inputs, outputs), rel=6 * math.sqrt(2 / kernel.size)
        ), name
        if initializer == 'pytorch':
            assert np.abs(kernel).max() <= inputs**-0.5
    assert np.all(np.asarray(parameters['conv4']['bias']) == 1)


def test_inverted_dropout_scales_in_training_and_not_in_tests():
    x = jnp.arange(1.0, 401.0).reshape(4, 100)
    common = {'rate': 0.25, 'rows': jnp.arange(4), 'units': 100, 'first': jnp.int32(0)}
    key = jax.random.key(1)
    classic, inverted = (dropout(x, **common, key=key, inverted=i) for i in (False, True))
    kept = np.asarray(classic) > 0
    assert 0.5 < kept.mean() < 0.95
    np.testing.assert_array_equal(classic, np.where(kept, x, 0))
    np.testing.assert_allclose(inverted, np.where(kept, x / 0.75, 0), rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, **common, key=None, inverted=True), x)
    np.testing.assert_array_equal(dropout(x, **common, key=None, inverted=False), 0.75 * x)


def test_dropout_of_inputs_leaves_the_outputs_whole(x64):
    key = jax.random.key(2)
    model = small(dropout_inputs=True, dropout_inverted=True)
    _, trained = activations(model, key, n=8)
    _, plain = activations(small(dropout=0.0), n=8)
    np.testing.assert_array_equal(trained['pool5'], plain['pool5'])
    assert np.mean(trained['fc6'] == 0) < 0.75 * np.mean(
        activations(small(), key, n=8)[1]['fc6'] == 0
    )
    assert np.abs(trained['fc6'] - plain['fc6']).max() > 1
    _, tested = activations(model, n=8)
    np.testing.assert_array_equal(tested['fc8'], plain['fc8'])


def test_separate_towers_meet_at_fc8_only(x64):
    changes = {f'{name}.sees_both_towers': False for name in ('conv3', 'fc6', 'fc7')}
    model = small(changes)
    network = AlexNet(model)
    parameters = reference.draw_parameters(network, IMAGE, seed=3)
    assert parameters['fc6']['kernel'].shape == (36, 24)
    assert parameters['fc7']['kernel'].shape == (12, 20)
    other = {'kernel': parameters['conv1']['kernel'].copy(), 'bias': parameters['conv1']['bias']}
    other['kernel'][..., 8:] *= -1  # the second tower's
    (before, seen), (after, changed) = activations(model), activations(model, conv1=other)
    for name in ('conv1', 'conv5', 'fc6', 'fc7'):
        (first, second), (new_first, new_second) = halves(seen[name]), halves(changed[name])
        np.testing.assert_array_equal(first, new_first)
        assert np.abs(second - new_second).max() > 1e-3, name
    assert np.abs(before - after).max() > 1e-3
    maps, kernel = seen['pool5'], parameters['fc6']['kernel']
    units = [
        np.maximum(part.reshape(2, -1) @ k + b, 0) / 2
        for part, k, b in zip(
            halves(maps), halves(kernel), halves(parameters['fc6']['bias']), strict=True
        )
    ]
    np.testing.assert_allclose(seen['fc6'], np.concatenate(units, axis=-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('absent', [('fc6',), ('fc7',), ('fc6', 'fc7')])
def test_fully_connected_layers_may_be_absent(x64, absent):
    changes = {f'{name}.features': 0 for name in absent}
    network = AlexNet(small(changes))
    parameters = reference.draw_parameters(network, IMAGE, seed=3)
    assert not set(absent) & set(parameters)
    logits, seen = activations(small(changes))
    last = next((seen[name] for name in ('fc7', 'fc6') if name in seen), None)
    if last is None:
        last = np.concatenate([half.reshape(2, -1) for half in halves(seen['pool5'])], axis=-1)
    want = last @ parameters['fc8']['kernel'] + parameters['fc8']['bias']
    np.testing.assert_allclose(logits, want, rtol=1e-9, atol=1e-9)


# Others' networks, against PyTorch modules that are written from their definitions.


class TorchvisionAlexNet(torch.nn.Sequential):
    """One tower after Krizhevsky (2014), as torchvision lists its layers."""

    def __init__(self, units, classes):
        nn = torch.nn
        super().__init__(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten()),
            *(nn.Dropout(), nn.Linear(256 * 36, units), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, classes)),
        )


class CaffeNet(torch.nn.Sequential):
    """The layers of bvlc_reference_caffenet in the order of its prototxt."""

    def __init__(self, units, classes):
        nn = torch.nn
        norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        super().__init__(
            *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), pool, norm),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), pool, norm),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), pool, nn.Flatten()),
            *(nn.Linear(256 * 36, units), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(units, units), nn.ReLU(), nn.Dropout(), nn.Linear(units, classes)),
        )


@pytest.mark.parametrize(
    ('configuration', 'theirs', 'side'),
    [(torchvision, TorchvisionAlexNet, 224), (caffenet, CaffeNet, 227)],
)
def test_forward_pass_is_pytorchs_on_the_same_weights(configuration, theirs, side):
    config = configuration.get_config()
    assert config.augment.crop_px == side
    units, classes = 96, 20  # of 4,096 and 1,000; the maps are whole
    widths = {'fc6.features': units, 'fc7.features': units}
    network = AlexNet(reference.model_config(configuration, num_classes=classes, **widths))
    parameters = reference.draw_parameters(network, (side, side, 3), seed=6)
    parameters = jax.tree.map(lambda x: x.astype(np.float32), parameters)
    other = theirs(units, classes).eval()
    layers = [layer for layer in other if hasattr(layer, 'weight')]
    for layer, (name, ours) in zip(layers, parameters.items(), strict=True):
        kernel = ours['kernel']
        if name == 'fc6':  # PyTorch flattens channels first
            kernel = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3).reshape(9216, -1)
        turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        layer.load_state_dict({'weight': torch.tensor(turned), 'bias': torch.tensor(ours['bias'])})
    images = reference.smooth_images(2, (side, side, 3), seed=7).astype(np.float32)
    with torch.no_grad():
        want = other(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    got, _ = network.apply({'params': parameters}, images, np.arange(2, dtype=np.int32))
    assert reference.relative_error(got, want) < 1e-5
    assert np.ptp(want) > 0.1
