"""Each layer against a slow NumPy loop and central differences, in float64."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alexnet_jax.network import convolution
from alexnet_jax.network.convolution import convolve
from alexnet_jax.network.dropout import dropout
from alexnet_jax.network.layers import TowerConvolution
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.normalisation import local_response_norm
from alexnet_jax.network.pooling import max_pool
from alexnet_jax.training.step import loss_and_gradients
from tests import reference

PAPER_LRN = {'k': 2.0, 'n': 5, 'alpha': 1e-4, 'beta': 0.75}
pytestmark = pytest.mark.usefixtures('x64')
each_form = pytest.mark.parametrize('fast', [False, True], ids=['plain', 'fast'])


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(sum(shape)).standard_normal(shape)


def lrn(a, fast=False, **constants):
    return local_response_norm(jnp.asarray(a), fast=fast, **constants)


def pool(x, fast=False, **window):
    return max_pool(jnp.asarray(x), fast=fast, partial=False, **window)


# Response normalisation, Paper 3.3. At the scale of 100 the sums weigh as much as k.


@pytest.mark.parametrize(
    'constants', [PAPER_LRN, {'k': 1.0, 'n': 3, 'alpha': 3e-4, 'beta': 0.5}], ids=str
)
@each_form
def test_lrn_is_the_formula(constants, fast):
    a = normal(2, 2, 3, 11, scale=100.0)
    want = reference.local_response_norm(a, **constants)
    np.testing.assert_allclose(lrn(a, fast, **constants), want, rtol=1e-12)


@each_form
def test_lrn_with_fewer_maps_than_the_window(fast):
    a = normal(2, 2, 3, scale=100.0)
    want = reference.local_response_norm(a, **PAPER_LRN)
    np.testing.assert_allclose(lrn(a, fast, **PAPER_LRN), want, rtol=1e-12)


@each_form
def test_lrn_takes_its_sums_in_float32(fast):
    a = jnp.asarray(normal(3, 3, 11, scale=100.0), jnp.bfloat16)
    got = lrn(a, fast, **PAPER_LRN)
    want = reference.local_response_norm(np.asarray(a, np.float64), **PAPER_LRN)
    assert got.dtype == jnp.bfloat16
    half_a_unit = 2.0**-8  # of a bfloat16's 8 bits; the rest is float32's
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=half_a_unit + 1e-6)


@pytest.mark.parametrize(
    'constants', [PAPER_LRN, {'k': 1.0, 'n': 3, 'alpha': 3e-4, 'beta': 0.5}], ids=str
)
@each_form
def test_lrn_gradient(constants, fast):
    a, weights = normal(1, 2, 8, scale=100.0), normal(2, 1, 8)
    weights = weights.reshape(a.shape)
    got = jax.grad(lambda a: jnp.sum(weights * lrn(a, fast, **constants)))(a)
    want = reference.central_differences(
        lambda a: np.sum(weights * reference.local_response_norm(a, **constants)), a, step=1e-3
    )
    assert reference.relative_error(got, want) < 1e-8


@pytest.mark.parametrize('constants', [PAPER_LRN, {**PAPER_LRN, 'n': 3, 'beta': 0.6}], ids=str)
def test_fast_lrn_gradient_is_that_of_the_plain_form(constants):
    a, weights = normal(2, 5, 4, 11, scale=100.0), normal(4, 5, 2, 11).reshape(2, 5, 4, 11)
    plain, fast = (
        jax.grad(lambda a, fast=fast: jnp.sum(weights * lrn(a, fast, **constants)))(a)
        for fast in (False, True)
    )
    assert reference.relative_error(fast, plain) < 1e-12


# Overlapping max-pooling, Paper 3.4.


@pytest.mark.parametrize(('window', 'stride'), [(3, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize('shape', [(2, 7, 9, 2), (1, 8, 6, 2)], ids=str)
@each_form
def test_max_pool_is_the_maximum_of_whole_squares(shape, window, stride, fast):
    x = normal(*shape) - 3.0  # mostly negative: a padded zero would win
    want = reference.max_pool(x, window=window, stride=stride)
    np.testing.assert_array_equal(pool(x, fast, window=window, stride=stride), want)


@each_form
def test_max_pool_gradient(fast):
    x = normal(1, 7, 6, 2)  # 3/2 squares overlap: some elements win twice, the last column never
    weights = normal(1, 3, 2, 2)
    got = jax.grad(lambda x: jnp.sum(weights * pool(x, fast, window=3, stride=2)))(x)
    want = reference.central_differences(
        lambda x: np.sum(weights * reference.max_pool(x, window=3, stride=2)), x
    )
    np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize(('window', 'stride'), [(3, 2), (3, 1), (2, 2), (2, 3), (5, 2)])
@pytest.mark.parametrize('shape', [(2, 7, 9, 3), (1, 8, 6, 2), (1, 5, 11, 1)], ids=str)
@each_form
def test_of_equal_maxima_the_first_takes_the_gradient(shape, window, stride, fast):
    """As in PyTorch. After a ReLU most squares of zeros are equal."""
    x = np.random.default_rng(5).integers(0, 3, shape).astype(np.float64)
    leaf = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    y = torch.nn.functional.max_pool2d(leaf, window, stride)
    weights = torch.from_numpy(np.random.default_rng(6).standard_normal(tuple(y.shape)))
    (want,) = torch.autograd.grad(y, leaf, weights)
    _, to_x = jax.vjp(lambda x: pool(x, fast, window=window, stride=stride), x)
    (got,) = to_x(weights.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), rtol=1e-12, atol=1e-15)


# Convolution, Paper 3.5.


def tower_convolution(*, fast=False, **fields) -> TowerConvolution:
    fields = {'features': 4, 'kernel': 3, 'stride': 1, 'padding': (1, 1)} | fields
    config = reference.model_config(
        dtype='float64',
        forms='fast' if fast else 'plain',
        **{f'conv2.{name}': value for name, value in fields.items()},
    )
    return TowerConvolution(config.conv2, config)


# As conv1, padded at one side only, as conv2 and as conv3.
GEOMETRIES = {
    'conv1': ({'kernel': 5, 'stride': 3, 'padding': (0, 3)}, (2, 8, 11, 3)),
    'conv2': ({'kernel': 5, 'padding': (2, 2)}, (1, 4, 6, 2)),
    'conv3': ({'kernel': 3, 'padding': (1, 1)}, (2, 4, 3, 2)),
    'padded before': ({'kernel': 3, 'stride': 2, 'padding': (2, 0)}, (1, 5, 4, 2)),
}


def inputs_and_parameters(shape, layer):
    inputs = tuple(normal(*shape) + tower for tower in range(layer.config.towers))
    size, features = layer.layer.kernel, layer.layer.features
    kernel = normal(size, size, shape[-1], features)
    return inputs, {'kernel': kernel, 'bias': normal(features)}


def apply(layer, params, inputs) -> tuple[jax.Array, ...]:
    return typing.cast(tuple, layer.apply({'params': params}, inputs))


def slow_towers(inputs, params, layer):
    """Tower t has kernels t * F .. (t + 1) * F and sees nothing but its own input."""
    own = layer.layer.features // layer.config.towers
    return [
        reference.convolve(
            x,
            params['kernel'][..., tower * own : (tower + 1) * own],
            params['bias'][tower * own : (tower + 1) * own],
            stride=layer.layer.stride,
            padding=layer.layer.padding,
        )
        for tower, x in enumerate(inputs)
    ]


@pytest.mark.parametrize('name', GEOMETRIES)
def test_tower_convolution_is_the_formula(name):
    fields, shape = GEOMETRIES[name]
    layer = tower_convolution(**fields)
    inputs, params = inputs_and_parameters(shape, layer)
    got = apply(layer, params, inputs)
    assert len(got) == 2
    for ours, slow in zip(got, slow_towers(inputs, params, layer), strict=True):
        np.testing.assert_allclose(ours, slow, rtol=1e-12, atol=1e-12)


def test_conv1_of_the_paper_gives_55_positions():
    layer = tower_convolution(features=2, kernel=11, stride=4, padding=(0, 3))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float64)
    outputs, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), (image, image))
    assert [x.shape for x in outputs] == [(1, 55, 55, 1)] * 2
    assert variables['params']['kernel'].value.shape == (11, 11, 3, 2)


@pytest.mark.parametrize(
    ('fields', 'shape'),
    [
        ({'kernel': 3, 'stride': 2, 'padding': (0, 1)}, (1, 4, 5, 2)),
        ({'kernel': 5, 'stride': 3, 'padding': (0, 3)}, (2, 8, 11, 3)),  # as conv1
        ({'kernel': 4, 'stride': 2, 'padding': (1, 2)}, (1, 5, 4, 1)),  # whole blocks, both sides
        ({'kernel': 2, 'stride': 3, 'padding': (0, 0)}, (1, 7, 6, 1)),  # pixels that none sees
    ],
    ids=str,
)
@each_form
def test_tower_convolution_gradients(monkeypatch, fields, shape, fast):
    monkeypatch.setattr(convolution, '_POSITIONS_OF_A_PART', 1)  # an image at a time
    layer = tower_convolution(features=2, fast=fast, **fields)
    inputs, params = inputs_and_parameters(shape, layer)
    shapes = [y.shape for y in jax.eval_shape(functools.partial(apply, layer, params), inputs)]
    weights = normal(2, *shapes[0])  # no zero among them: each output counts

    def loss(params, inputs):
        outputs = apply(layer, params, inputs)
        return sum(jnp.sum(w * x**2) for w, x in zip(weights, outputs, strict=True))

    def slow_loss(params, inputs):
        outputs = slow_towers(inputs, params, layer)
        return sum(np.sum(w * x**2) for w, x in zip(weights, outputs, strict=True))

    of_params, of_inputs = jax.grad(loss, argnums=(0, 1))(params, inputs)
    for name in params:
        want = reference.central_differences(
            lambda leaf, name=name: slow_loss({**params, name: leaf}, inputs), params[name]
        )
        assert reference.relative_error(of_params[name], want) < 1e-8, name
    for tower in (0, 1):
        want = reference.central_differences(
            lambda x, tower=tower: slow_loss(
                params, tuple(x if t == tower else inputs[t] for t in (0, 1))
            ),
            inputs[tower],
        )
        assert reference.relative_error(of_inputs[tower], want) < 1e-8, tower


@pytest.mark.parametrize(
    ('images', 'features', 'forward', 'backward'),  # parts of 6 images and of 30 pixels do not go
    [(8, 5, 4, 4), (6, 5, 1, 1), (4, 5, 1, 1), (8, 97, 1, 4)],
)
def test_a_convolution_of_few_features_is_divided(monkeypatch, images, features, forward, backward):
    monkeypatch.setattr(convolution, '_FEWEST_POSITIONS', 40)
    x, kernel = normal(images, 6, 5, 2), normal(3, 3, 2, features)

    def run(fast):
        settings = {'stride': 1, 'padding': (0, 1), 'precision': 'highest', 'fast': fast}
        function = functools.partial(convolve, kernel=kernel, **settings)
        y, to_x = jax.vjp(function, x)
        return (function, to_x), (y, to_x(normal(*y.shape)))

    (function, to_x), divided = run(fast=True)
    for got, want in zip(divided, run(fast=False)[1], strict=True):
        assert reference.relative_error(got, want) < 1e-12
    word = 'conv_general_dilated['
    assert str(jax.make_jaxpr(function)(x)).count(word) == forward
    of_kernel = 1  # in a loop
    assert str(jax.make_jaxpr(to_x)(divided[0])).count(word) == backward + of_kernel


@pytest.mark.parametrize('images', [1, 2, 4, 7])  # of 12 positions; 30 are two images and a half
def test_kernel_gradient_in_parts_is_that_of_the_whole_batch(monkeypatch, images):
    monkeypatch.setattr(convolution, '_POSITIONS_OF_A_PART', 30)
    x, weights = normal(images, 4, 3, 2), normal(images, 4, 3, 5)

    def gradient(fast):
        settings = {'stride': 1, 'padding': (1, 1), 'precision': 'highest', 'fast': fast}
        return jax.grad(lambda kernel: jnp.sum(weights * convolve(x, kernel, **settings)))(
            normal(3, 3, 2, 5)
        )

    assert reference.relative_error(gradient(fast=True), gradient(fast=False)) < 1e-12


def test_kernel_gradient_in_parts_is_added_up_in_float32(monkeypatch):
    monkeypatch.setattr(convolution, '_POSITIONS_OF_A_PART', 1)
    x, kernel = jnp.ones((300, 1, 1, 1), 'bfloat16'), jnp.ones((1, 1, 1, 1), 'bfloat16')
    settings = {'stride': 1, 'padding': (0, 0), 'precision': 'default', 'fast': True}
    got = jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, **settings)))(kernel)
    assert got.dtype == jnp.bfloat16
    assert got.item() == 300  # in bfloat16 256 + 1 = 256


@each_form
def test_towers_that_see_the_same_take_one_convolution(fast):
    layer = tower_convolution(fast=fast)
    (x, _), params = inputs_and_parameters((2, 4, 3, 2), layer)

    def run(x, other):
        return jax.vjp(lambda params, x: apply(layer, params, (x, other(x))), params, x)

    (same, to_same), (two, to_two) = run(x, lambda x: x), run(x, lambda x: x + 0)
    weights = tuple(normal(*y.shape) for y in two)
    for got, want in zip(
        jax.tree.leaves((same, to_same(weights))),
        jax.tree.leaves((two, to_two(weights))),
        strict=True,
    ):
        assert reference.relative_error(got, want) < 1e-12
    jaxpr = jax.make_jaxpr(lambda params, x: apply(layer, params, (x, x)))(params, x)
    assert str(jaxpr).count('conv_general_dilated[') == 1


def test_towers_do_not_see_each_other():
    layer = tower_convolution()
    inputs, params = inputs_and_parameters((1, 4, 4, 2), layer)
    jacobian = jax.jacobian(lambda inputs: apply(layer, params, inputs))(inputs)
    for tower, other in ((0, 1), (1, 0)):
        assert not np.any(jacobian[tower][other])
        assert np.all(np.any(jacobian[tower][tower], axis=(4, 5, 6, 7)))


# Dropout, Paper 4.2: masks of zeros and ones in training, times 1 - rate at test time.

UNITS = 24
ROWS = np.asarray([0, 1, 7, 300, 2], np.int32)


@functools.partial(jax.jit, static_argnames=('rate', 'units'))
def drop(x, key, rows=ROWS, rate=0.5, units=UNITS, first=0):
    rows, first = jnp.asarray(rows), jnp.asarray(first)
    return dropout(x, rate=rate, inverted=False, key=key, rows=rows, units=units, first=first)


def test_dropout_at_test_time_multiplies_by_the_probability_of_keeping():
    x = normal(5, UNITS)
    for rate in (0.5, 0.2, 0.0):
        np.testing.assert_allclose(drop(x, None, rate=rate), (1 - rate) * x, rtol=1e-15)


def test_dropout_in_training_sets_to_zero_and_scales_nothing():
    x = normal(5, UNITS)
    kept = np.asarray(drop(np.ones_like(x), jax.random.key(1)))
    assert set(np.unique(kept)) == {0.0, 1.0}
    np.testing.assert_array_equal(drop(x, jax.random.key(1)), kept * x)
    gradient = jax.grad(lambda x: jnp.sum(drop(x, jax.random.key(1))))(x)
    np.testing.assert_array_equal(gradient, kept)
    np.testing.assert_array_equal(drop(x, jax.random.key(1), rate=0.0), x)


def test_dropout_drops_the_proportion_of_its_rate():
    rows = np.arange(200, dtype=np.int32)
    for rate in (0.5, 0.2):
        mask = np.asarray(drop(np.ones((200, 1000)), jax.random.key(2), rows, rate, units=1000))
        deviation = np.sqrt(rate * (1 - rate))
        assert abs(np.mean(mask == 0) - rate) < 4 * deviation / np.sqrt(mask.size)
        # Neither a unit nor an example is privileged: the means spread as those of free draws do.
        for axis, n in ((0, 200), (1, 1000)):
            spread = np.std(np.mean(mask, axis=axis)) / (deviation / np.sqrt(n))
            assert 0.8 < spread < 1.2


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_dropout_masks_do_not_depend_on_the_split_of_the_units(devices):
    x, key = normal(5, UNITS), jax.random.key(3)
    here = UNITS // devices
    parts = [drop(x[:, f : f + here], key, first=f) for f in range(0, UNITS, here)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), drop(x, key))
    assert not np.array_equal(parts[0] == 0, parts[1] == 0)


def test_dropout_masks_follow_the_example_and_the_key():
    ones, key = np.ones((5, UNITS)), jax.random.key(4)
    masks = np.asarray(drop(ones, key))
    for place, row in enumerate(ROWS):
        alone = drop(ones[:1], key, np.asarray([row]))
        np.testing.assert_array_equal(alone[0], masks[place])
    assert len({mask.tobytes() for mask in masks}) == len(ROWS)
    assert not np.array_equal(drop(ones, jax.random.key(5)), masks)


# The whole network: its loss along random directions, dropout on.


def test_gradients_of_the_whole_network_are_central_differences():
    model = AlexNet(reference.small_model_config(conv6=8))
    params = reference.draw_parameters(model, reference.SMALL_IMAGE, seed=1)
    images = reference.smooth_images(2, reference.SMALL_IMAGE, seed=2)
    labels, rows = np.asarray([3, 5], np.int32), np.arange(2, dtype=np.int32)
    run = functools.partial(loss_and_gradients, model=model)
    arguments = (images, labels, rows, jax.random.key(6))
    gradients = jax.jit(run, compiler_options=reference.QUICK_COMPILE)(params, *arguments)[1]
    loss = jax.jit(lambda params, *arguments: run(params, *arguments)[0][0])

    rng = np.random.default_rng(7)
    step = 1e-5
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            direction = rng.standard_normal(leaf.shape)
            direction *= np.std(leaf) / np.linalg.norm(direction) * np.sqrt(leaf.size)
            moved = functools.partial(move, params, layer, name, direction)
            difference = (loss(moved(step), *arguments) - loss(moved(-step), *arguments)) / (
                2 * step
            )
            slope = np.sum(gradients[layer][name] * direction)
            assert abs(slope) > 1e-4, (layer, name)  # the comparison says something
            np.testing.assert_allclose(slope, difference, rtol=1e-6, err_msg=f'{layer} {name}')


def move(params, layer, name, direction, step):
    return {**params, layer: {**params[layer], name: params[layer][name] + step * direction}}
