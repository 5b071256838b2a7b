"""The network's shapes, counts, connections and initial weights against the paper's table."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from alexnet_jax.network import forms as forms_lib
from alexnet_jax.network import model as model_lib
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import (
    abstract_variables,
    count_macs,
    init_parameters,
    training_flops,
)
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.reports import paper
from alexnet_jax.training.step import loss_and_gradients
from configs import tiny
from tests import reference

CROP = (224, 224, 3)
# Paper 3.5 and Fig. 2, both towers: output, parameters, millions of multiply-accumulates.
TABLE = {
    'conv1': ((55, 55, 96), 34_944, 105.4),
    'conv2': ((27, 27, 256), 307_456, 223.9),
    'conv3': ((13, 13, 384), 885_120, 149.5),
    'conv4': ((13, 13, 384), 663_936, 112.1),
    'conv5': ((13, 13, 256), 442_624, 74.8),
    'fc6': ((4096,), 37_752_832, 37.7),
    'fc7': ((4096,), 16_781_312, 16.8),
    'fc8': ((1000,), 4_097_000, 4.1),
}
POOLED = {'pool1': (27, 27, 96), 'pool2': (13, 13, 256), 'pool5': (6, 6, 256)}
NORMALISED = {'lrn1': (55, 55, 96), 'lrn2': (27, 27, 256)}


def paper_network(**fields) -> AlexNet:
    """Return the network of configs/alexnet.py, with fields changed by their dotted names."""
    return AlexNet(reference.model_config(**fields))


def parameters(model: AlexNet) -> dict:
    return nn.meta.unbox(abstract_variables(model, CROP))


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def activations(model: AlexNet, batch: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((batch, *CROP), jnp.float32)
    rows = jax.ShapeDtypeStruct((batch,), jnp.int32)
    variables = {'params': parameters(model)}
    logits, seen = jax.eval_shape(model.apply, variables, images, rows)
    assert seen['fc8'].shape == logits.shape
    return seen


def test_every_activation_has_its_name_and_the_shape_of_the_paper():
    want = {**{name: row[0] for name, row in TABLE.items()}, **POOLED, **NORMALISED}
    assert {name: x.shape for name, x in activations(paper_network()).items()} == {
        name: (2, *shape) for name, shape in want.items()
    }


def test_what_the_page_says_of_each_layer_is_true():
    """The comments of `model.py`: shapes, what follows a convolution, which layers see both towers.

    conv6 is not in the paper's network; the other shapes are the same with it.
    """
    network = paper_network(**{'conv6.features': 256})
    seen = {name: x.shape[1:] for name, x in activations(network).items()}
    page = pathlib.Path(model_lib.__file__).read_text()
    lines = re.findall(r'^ +x = (.*)  # (\[batch, .*)$', page, re.MULTILINE)
    said = {}
    for code, comment in lines:
        name = re.search(r"'((conv|fc)\d)'", code)
        shapes = re.findall(r'\[batch, ([\d, ]+)\]', comment)
        said[name.group(1) if name else 'images'] = (
            [tuple(map(int, shape.split(','))) for shape in shapes],
            *(word in comment for word in ('LRN', 'pooling', 'sees both towers')),
        )
    true = {'images': ([CROP], False, False, False)}
    for name in (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8'):
        layer = getattr(network.config, name)
        own = {name} if name.startswith('fc') else {name, f'lrn{name[-1]}', f'pool{name[-1]}'}
        shapes = [shape for output, shape in seen.items() if output in own]
        after = getattr(layer, 'after', ())
        both = getattr(layer, 'sees_both_towers', False)  # of fc8 it goes without saying
        true[name] = (list(dict.fromkeys(shapes)), 'lrn' in after, 'pool' in after, both)
    assert said == true
    assert list(said) == list(true), 'in the order of Fig. 2'


def test_parameters_and_macs_of_every_layer_are_those_of_the_table():
    model = paper_network()
    assert {name: count(layer) for name, layer in parameters(model).items()} == {
        name: row[1] for name, row in TABLE.items()
    }
    macs = count_macs(model, CROP)
    assert {name: round(n / 1e6, 1) for name, n in macs.items()} == {
        name: row[2] for name, row in TABLE.items()
    }


def test_the_constants_of_the_package_are_those_of_the_network():
    model = paper_network()
    seen, params, macs = activations(model), parameters(model), count_macs(model, CROP)
    layers = {
        name: paper.Layer(seen[name].shape[1:], count(params[name]), macs[name]) for name in macs
    }
    assert layers == paper.LAYERS
    assert paper.POOLED == {name: seen[name].shape[1:] for name in paper.POOLED} == POOLED


def test_totals():
    assert count(parameters(paper_network())) == paper.TOTAL_PARAMETERS == 60_965_224
    assert sum(count_macs(paper_network(), CROP).values()) == paper.TOTAL_MACS == 724_406_816
    neurons = sum(math.prod(activations(paper_network())[name].shape[1:]) for name in TABLE)
    assert neurons == 659_272


def test_totals_of_one_tower():
    one = paper_network(towers=1)
    assert count(parameters(one)) == paper.TOTAL_PARAMETERS_ONE_TOWER == 62_378_344
    assert sum(count_macs(one, CROP).values()) == paper.TOTAL_MACS_ONE_TOWER == 1_135_256_096
    assert activations(one).keys() == activations(paper_network()).keys()


def test_conv6_of_the_larger_network():
    larger = paper_network(**{'conv6.features': 256})
    assert count(parameters(larger)) == paper.TOTAL_PARAMETERS_WITH_CONV6 == 61_555_304
    seen = activations(larger)
    assert seen.keys() == activations(paper_network()).keys() | {'conv6'}
    assert seen['conv6'].shape == (2, 6, 6, 256)
    kernel = parameters(larger)['conv6']['kernel']
    assert kernel.shape == (3, 3, 256, 256), 'conv6 sees both towers'
    assert 'conv6' not in parameters(paper_network())


def test_training_flops_are_three_passes_less_the_gradient_of_the_image():
    flops = training_flops(count_macs(paper_network(), CROP))
    assert flops == 2 * (3 * 724_406_816 - 105_415_200)
    assert round(flops / 1e9, 4) == 4.1356


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_weights_and_logits_are_float32_whatever_the_arithmetic(dtype):
    model = paper_network(dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(parameters(model))} == {'float32'}
    seen = activations(model)
    assert seen.pop('fc8').dtype == jnp.float32
    assert {x.dtype.name for x in seen.values()} == {dtype}


def test_logits_are_summed_in_float32():
    """Of bfloat16 inputs and weights; their rounded sums would be some 0.2 % off."""
    model = AlexNet(reference.model_config(tiny, dtype='bfloat16', dropout=0.0))
    params = init_parameters(model, (7, 7, 1), jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(0, 60, (8, 7, 7, 1)), jnp.float32)

    def loss(params):
        logits, seen = model.apply({'params': params}, images, jnp.arange(8, dtype=jnp.int32))
        return jnp.sum(logits**2), (logits, seen['fc7'])

    (_, (logits, inputs)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    kernel, bias = params['fc8']['kernel'], params['fc8']['bias']
    kernel = np.asarray(kernel.astype('bfloat16'), np.float64)
    want = np.asarray(inputs, np.float64) @ kernel + np.asarray(bias, np.float64)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {'float32'}


# Initial weights, Paper 5.


@pytest.fixture(scope='module')
def initial() -> dict:
    """Return the initial weights at full size; of fc6 the bias only, to save seconds."""

    @jax.jit
    def init(key):
        params = init_parameters(paper_network(), CROP, key)
        del params['fc6']['kernel']
        return params

    return jax.device_get(init(jax.random.key(0)))


def test_initial_biases(initial):
    ones = {'conv2', 'conv4', 'conv5', 'fc6', 'fc7'}
    assert initial.keys() == TABLE.keys()
    for layer, leaves in initial.items():
        np.testing.assert_array_equal(leaves['bias'], float(layer in ones), err_msg=layer)


@pytest.mark.parametrize('layer', [name for name in TABLE if name != 'fc6'])
def test_initial_weights_are_normal_with_standard_deviation_a_hundredth(initial, layer):
    z = initial[layer]['kernel'].astype(np.float64).ravel() / 0.01
    # Four standard errors of the moments of N(0, 1); a truncated or a uniform law fails the last.
    assert abs(np.mean(z)) < 4 / np.sqrt(z.size)
    assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(2 / z.size)
    assert abs(np.mean(z**4) - 3) < 4 * np.sqrt(96 / z.size)


@pytest.mark.parametrize('layer', ['conv1', 'conv2', 'conv3'])
def test_initial_weights_of_the_towers_are_independent(initial, layer):
    first, second = np.split(initial[layer]['kernel'].astype(np.float64) / 0.01, 2, axis=-1)
    assert abs(np.mean(first * second)) < 4 / np.sqrt(first.size)


@pytest.mark.parametrize(('data', 'devices'), [(1, 2), (2, 4)])
def test_initial_weights_do_not_depend_on_the_mesh(data, devices):
    mesh = mesh_lib.make_mesh(reference.parallel(data=data, model=devices), towers=2)
    config = reference.small_model_config(dtype='float32')
    model = AlexNet(config, collectives=mesh_lib.collectives(mesh, 'shard_map'))
    specs = nn.get_partition_spec(abstract_variables(model, reference.SMALL_IMAGE))
    assert specs['conv2']['kernel'] == P(None, None, None, 'tower')
    init = functools.partial(init_parameters, image_shape=reference.SMALL_IMAGE)
    compiled = functools.partial(jax.jit, compiler_options=reference.QUICK_COMPILE)
    shardings = mesh_lib.shardings(mesh, specs)
    split = compiled(lambda key: init(model, key=key), out_shardings=shardings)(jax.random.key(1))
    assert len(split['conv2']['kernel'].sharding.device_set) == mesh.size
    whole = compiled(lambda key: init(AlexNet(config), key=key))(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(split), jax.device_get(whole))


# Connections, Paper 3.2.


@pytest.fixture(scope='module')
def forward():
    """Return (jitted `params -> activations`, parameters) of a small network with conv6."""
    model = AlexNet(reference.small_model_config(conv6=8, dtype='float32'))
    params = reference.draw_parameters(model, reference.SMALL_IMAGE, seed=4)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    images = reference.smooth_images(1, reference.SMALL_IMAGE, seed=5).astype(np.float32)
    rows = np.zeros(1, np.int32)

    @functools.partial(jax.jit, compiler_options=reference.QUICK_COMPILE)
    def run(params, images):
        return model.apply({'params': params}, images, rows)[1]

    return lambda params: jax.device_get(run(params, images)), params


@pytest.mark.parametrize(
    ('changed', 'own_tower', 'both_towers'),
    [
        (
            'conv1',
            ['conv1', 'lrn1', 'pool1', 'conv2', 'lrn2', 'pool2'],
            ['conv3', 'conv4', 'conv5'],
        ),
        ('conv3', ['conv3', 'conv4', 'conv5', 'pool5'], ['conv6']),
        ('conv6', ['conv6'], []),
    ],
)
@pytest.mark.parametrize('tower', [0, 1])
def test_towers_meet_only_where_the_paper_says(forward, changed, own_tower, both_towers, tower):
    run, params = forward
    kernel = np.split(params[changed]['kernel'].copy(), 2, axis=-1)
    kernel[tower] *= np.float32(1.5)
    kernel = np.concatenate(kernel, axis=-1)
    before = run(params)
    after = run({**params, changed: {**params[changed], 'kernel': kernel}})
    for name in [*own_tower, *both_towers]:
        moved = [
            not np.array_equal(*pair)
            for pair in zip(
                np.split(before[name], 2, axis=-1), np.split(after[name], 2, axis=-1), strict=True
            )
        ]
        assert moved[tower], name
        assert moved[1 - tower] == (name in both_towers), name
    for name in ('fc6', 'fc7', 'fc8'):
        live = before[name] != 0  # behind the ReLU; units 0 .. half are those of the first tower
        assert np.mean((before[name] != after[name])[live]) > 0.9, name


def test_exchanges_of_the_package_are_those_of_the_paper():
    layers = {name: getattr(reference.model_config(), name) for name in CONVOLUTIONS}
    present = {name: layer for name, layer in layers.items() if layer.features}
    assert [name for name, layer in present.items() if layer.sees_both_towers] == ['conv3']
    assert paper.EXCHANGES == ('conv3', 'fc6', 'fc7', 'fc8')


# How it is computed.


@functools.cache
def lowered_gradients(forms: str, precision: str = 'highest') -> jax.stages.Lowered:
    """Return loss and gradients of a small network in float32, on shapes alone."""
    config = reference.small_model_config(dtype='float32', forms=forms, precision=precision)
    model = AlexNet(config)
    params = nn.meta.unbox(abstract_variables(model, reference.SMALL_IMAGE))
    images = jax.ShapeDtypeStruct((2, *reference.SMALL_IMAGE), jnp.float32)
    rows = jax.ShapeDtypeStruct((2,), jnp.int32)
    run = functools.partial(loss_and_gradients, model=model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(run).lower(params, images, rows, rows, key)


# Five layers; conv1 and conv3 see the same in both towers and take one convolution, the others two.
CONVOLUTIONS_FORWARD = 8


@pytest.mark.parametrize('forms', ['plain', 'fast'])
def test_the_gradient_of_the_image_is_not_computed(forms):
    """Forward, gradient of the input but for conv1, of the kernel."""
    compiled = lowered_gradients(forms).compile(reference.QUICK_COMPILE).as_text()
    assert compiled is not None
    convolutions = re.findall(r' convolution\(', compiled)
    assert len(convolutions) == 3 * CONVOLUTIONS_FORWARD - 1


@pytest.mark.parametrize('forms', ['plain', 'fast'])
def test_every_product_has_the_precision_of_the_configuration(forms):
    for precision, name in (('highest', 'HIGHEST'), ('default', 'DEFAULT')):
        text = lowered_gradients(forms, precision).as_text()
        products = re.findall(r'stablehlo\.(?:convolution|dot_general).*', text)
        assert len(products) == 3 * CONVOLUTIONS_FORWARD - 1 + 3 * 3  # and fc6 to fc8
        assert all(name in line for line in products), products


@pytest.mark.parametrize(
    ('forms', 'platform', 'fast'),
    [('auto', 'cpu', True), ('auto', 'gpu', False), ('plain', 'cpu', False), ('fast', 'gpu', True)],
)
def test_forms_are_fast_on_the_cpu_and_plain_elsewhere(monkeypatch, forms, platform, fast):
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    jaxpr = jax.make_jaxpr(
        lambda params, images, rows: paper_network(forms=forms).apply(
            {'params': params}, images, rows
        )
    )(
        parameters(paper_network()),
        jax.ShapeDtypeStruct((1, *CROP), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    assert ('name=_fast_norm' in str(jaxpr)) == fast
    assert ('reduce_window_max' in str(jaxpr)) == (not fast)


def test_each_layer_has_its_own_entry_in_the_table_of_forms(monkeypatch):
    table = {'convolution': {}, 'lrn': {'gpu': 'fast'}, 'pool': {'gpu': 'plain', 'tpu': 'fast'}}
    monkeypatch.setattr(forms_lib, '_FORMS', table)
    for platform, fast in (('cpu', set()), ('gpu', {'lrn'}), ('tpu', {'pool'})):
        monkeypatch.setattr(jax, 'default_backend', lambda platform=platform: platform)
        assert {layer for layer in table if forms_lib.is_fast(layer, 'auto')} == fast
        assert all(forms_lib.is_fast(layer, 'fast') for layer in table)
        assert not any(forms_lib.is_fast(layer, 'plain') for layer in table)
