"""The ONNX model zoo's AlexNet: its files are read, and computed as onnxruntime computes them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexnet_jax import convert
from alexnet_jax.inference import load

SIDE, WIDTHS, CLASSES = 96, (16, 12, 20, 16, 12, 24, 20), 7
GROUPS = {'conv2': 2, 'conv4': 2, 'conv5': 2}
MEAN = np.array([104.0, 117.0, 123.0], np.float32)  # blue, green and red


def zoo_file(rng, operation='Relu', **other):
    """Return a small network in the form, and with the names, of bvlcalexnet-9.onnx."""
    nodes, arrays = [], []

    def add(kind, output, *inputs, **attributes):
        nodes.append(helper.make_node(kind, [nodes[-1].output[0], *inputs], [output], **attributes))

    def parameters(name, shape):
        scale = np.sqrt(2 / np.prod(shape[1:]))
        for leaf, value in (('w', rng.normal(0, scale, shape)), ('b', rng.normal(size=shape[0]))):
            tensor = numpy_helper.from_array(np.float32(value), f'{name}_{leaf}_0')
            arrays.append(tensor)
        return f'{name}_w_0', f'{name}_b_0'

    nodes.append(helper.make_node('Identity', ['nothing'], ['data_0']))  # replaced below
    channels = 3
    for index, width in enumerate(WIDTHS[:5]):
        name, groups = f'conv{index + 1}', GROUPS.get(f'conv{index + 1}', 1)
        kernel, stride, pad = ((11, 4, 0), (5, 1, 2), (3, 1, 1))[min(index, 2)]
        leaves = parameters(name, (width, channels // groups, kernel, kernel))
        settings = {'group': groups, 'kernel_shape': [kernel] * 2, 'strides': [stride] * 2}
        add('Conv', f'{name}_1', *leaves, pads=[pad] * 4, **settings)
        add(operation, f'{name}_2')
        if index < 2:
            add('LRN', f'norm{index + 1}_1', size=5, alpha=1e-4, beta=0.75, bias=1.0)
        if index in (0, 1, 4):
            pads = [0, 0, 1, 1] if index == 0 else [0] * 4
            pool = {'kernel_shape': [3, 3], 'strides': [2, 2], 'pads': pads}
            add('MaxPool', f'pool{index + 1}_1', **{**pool, **other})
        channels = width
    arrays.append(numpy_helper.from_array(np.array([-1, 2 * 2 * channels]), 'shape'))
    add('Reshape', 'maps', 'shape')
    inputs = 2 * 2 * channels
    for name, width in (('fc6', WIDTHS[5]), ('fc7', WIDTHS[6]), ('fc8', CLASSES)):
        add('Gemm', f'{name}_1', *parameters(name, (width, inputs)), transB=1)
        if name != 'fc8':
            add('Relu', f'{name}_2')
            add('Dropout', f'{name}_3', ratio=0.5)
        inputs = width
    add('Softmax', 'softmaxout_1', axis=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes[1:],
        'alexnet',
        [value('data_0', TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [value(name, TensorProto.FLOAT, [1, CLASSES]) for name in ('softmaxout_1', 'fc8_1')],
        arrays,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 9)], ir_version=4)


@pytest.fixture(scope='module')
def model():
    return zoo_file(np.random.default_rng(0))


def test_the_logits_are_those_of_onnxruntime(model, tmp_path, capsys):
    source, out = tmp_path / 'bvlcalexnet.onnx', tmp_path / 'out.safetensors'
    source.write_bytes(model.SerializeToString())
    assert convert.main([str(source), str(out)]) == 0
    net = load(out)
    lrn = net.config.model.lrn
    assert (lrn.k, lrn.n, lrn.alpha, lrn.beta, lrn.divide_alpha) == (1.0, 5, 1e-4, 0.75, True)
    assert [getattr(net.config.model, f'conv{i}').pool_partial for i in (1, 2, 5)] == [
        True,
        False,
        False,
    ]
    images = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), np.uint8)
    session = onnxruntime.InferenceSession(str(source), providers=['CPUExecutionProvider'])
    edge = (256 - SIDE) // 2
    crops = np.float32(images[:, edge : edge + SIDE, edge : edge + SIDE, ::-1]) - MEAN
    outputs = [session.run(None, {'data_0': crop.transpose(2, 0, 1)[None]}) for crop in crops]
    probabilities, logits = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    assert np.ptp(logits, axis=0).min() > 0.1  # the images have different outputs
    np.testing.assert_allclose(net.activations(images, 'fc8'), logits, atol=1e-4)
    np.testing.assert_allclose(net.probabilities(images), probabilities, atol=1e-5)


def _without_norm(model):
    kept = []
    for node in model.graph.node:
        if node.op_type == 'LRN':
            kept[-1].output[0] = node.output[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _branch(model):
    model.graph.node[3].input[0] = 'conv1_1'


def _external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='/etc/passwd')


def _huge(model):
    model.graph.initializer[0].dims[0] = 2**50


def _narrow(model):
    tensor = model.graph.initializer[-2]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((CLASSES, 3), np.float32), tensor.name))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (_without_norm, 'no response normalisation'),
        (_branch, 'does not follow the node before it'),
        (_external, 'its weights in other files'),
        (_huge, 'conv1_w_0 is damaged'),
        (_narrow, 'kernel of fc8_1'),
        (lambda model: model.graph.node.pop(), ''),
        (lambda model: model.graph.ClearField('input'), 'should take images'),
        (lambda model: model.graph.node[0].attribute.pop(), 'in.onnx'),
    ],
)
def test_what_is_not_such_a_model_is_one_line(model, tmp_path, capsys, change, words):
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    change(changed)
    source = tmp_path / 'in.onnx'
    source.write_bytes(changed.SerializeToString())
    code = convert.main([str(source), str(tmp_path / 'out.safetensors')])
    error = capsys.readouterr().err
    assert (code, error.count('\n')) == ((2, 1) if words else (0, 0))
    assert words in error


@pytest.mark.parametrize('operation', ['Tanh', 'QLinearConv'])
def test_another_operation_is_named(operation, tmp_path, capsys):
    source = tmp_path / 'in.onnx'
    source.write_bytes(zoo_file(np.random.default_rng(0), operation).SerializeToString())
    assert convert.main([str(source), str(tmp_path / 'out.safetensors')]) == 2
    assert f'is an operation {operation}' in capsys.readouterr().err


@pytest.mark.parametrize('content', [b'', b'no model', b'\x80\x04N.'])
def test_a_file_that_is_no_model_is_one_line(content, tmp_path, capsys):
    source = tmp_path / 'in.onnx'
    source.write_bytes(content)
    assert convert.main([str(source), str(tmp_path / 'out.safetensors')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1


def test_the_mean_is_told(model, tmp_path):
    source, out = tmp_path / 'in.onnx', tmp_path / 'out.safetensors'
    source.write_bytes(model.SerializeToString())
    assert convert.main([str(source), str(out), '--mean=1,2,3']) == 0
    mean = load(out).trained.statistics.mean_image
    np.testing.assert_array_equal(mean[0, 0], [3, 2, 1])
    assert load(out).config.augment.mean == 'channels'
