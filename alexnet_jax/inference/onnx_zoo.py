"""Weights of the ONNX model zoo's AlexNet, `bvlcalexnet-*.onnx`, which is Caffe's `bvlc_alexnet`.

The model takes 224 pixels without zeros around them, where Caffe takes 227; as the squares of its
first pooling reach beyond the edge, both have 27 positions after it. It takes blue, green and red,
in this order, and pixels of 0 to 255 minus a mean that is not in the file. ONNX divides alpha of
the response normalisation by n, as Caffe does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import architectures, channels_first
from alexnet_jax.inference.caffe import MEAN
from alexnet_jax.inference.statistics import constant_colours
from alexnet_jax.runtime.errors import UserError, first_line

SUFFIX = '.onnx'
_CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
_DENSE = ('fc6', 'fc7', 'fc8')
_OPERATIONS = {'Relu': 'activation', 'LRN': 'lrn', 'MaxPool': 'pool'}
_WITHOUT_EFFECT = ('Dropout', 'Reshape', 'Flatten', 'Softmax')
_Arrays = Mapping[str, np.ndarray]


def read(path: epath.Path, mean: np.ndarray | None = None) -> TrainedNetwork:
    """Return the network of a model of the zoo.

    `mean`: the mean image [H, W, C], red, green and blue, or [C] its mean colours; by default
    `caffe.MEAN`.

    Raises UserError, in one line, if `onnx` is not installed, for a file that is not a model or is
    damaged, and for a network that is not of this kind.
    """
    graph, arrays = _load(path)
    layers = _layers(path, graph, arrays)
    config = _describe(path, layers, arrays, _side(path, graph, arrays))
    model, augment = architectures.sections(path, config)
    mean = np.asarray(MEAN[::-1]) if mean is None else mean
    image = np.broadcast_to(mean, config['data']['image_shape']) if mean.ndim == 1 else mean
    if augment.crop_px > min(image.shape[:2]):
        raise UserError(
            f'{path} reads {augment.crop_px} pixels, but the mean image has {image.shape[:2]}'
        )
    config['augment']['mean'] = 'at_crop' if mean.ndim == 3 else 'channels'
    config['data']['image_shape'] = image.shape
    network: dict[str, dict[str, np.ndarray]] = {
        name: dict(zip(('kernel', 'bias'), _parameters(path, node, arrays), strict=True))
        for name, (node, _) in layers.items()
    }
    names = {name: node.name or node.output[0] for name, (node, _) in layers.items()}
    expected = channels_first.shapes_there(model, (augment.crop_px, augment.crop_px, 3))
    channels_first.check_shapes(
        path, network, expected, lambda layer, leaf: f'{leaf} of {names[layer]}'
    )
    network['conv1']['kernel'] = network['conv1']['kernel'][:, ::-1]  # blue, green, red
    return TrainedNetwork(
        network={
            layer: {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in leaves.items()}
            for layer, leaves in channels_first.from_channels_first(network, model).items()
        },
        config=config,
        class_names=tuple(map(str, range(model.num_classes))),
        statistics=constant_colours(image),
        preparation=None,
        about={},
    )


def _load(path: epath.Path) -> tuple[Any, _Arrays]:
    """Return the graph of a model, and its arrays by their names."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UserError('the format onnx needs the package onnx; pip install onnx') from error
    try:
        graph = onnx.load_from_string(path.read_bytes()).graph
    except (DecodeError, ValueError) as error:
        raise UserError(
            f'{path} is not an ONNX model ({first_line(error)}); copy it again'
        ) from error
    arrays = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(f'{path} has its weights in other files; name a model that holds them')
        try:
            arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'{path}: {tensor.name} is damaged ({first_line(error)}); copy the file again'
            ) from error
    return graph, arrays


def _layers(path: epath.Path, graph: Any, arrays: _Arrays) -> dict[str, tuple[Any, list[Any]]]:
    """Return, by our names, the node of each layer and the nodes that follow it.

    Raises UserError unless the nodes are a chain of five convolutions and three fully connected
    layers with what AlexNet has between them.
    """
    kinds = [node.op_type for node in graph.node if node.op_type in ('Conv', 'Gemm')]
    if kinds != ['Conv'] * 5 + ['Gemm'] * 3:
        raise UserError(
            f'{path} is no AlexNet: it has {kinds.count("Conv")} convolutions and '
            f'{kinds.count("Gemm")} fully connected layers, not 5 and then 3'
        )
    names, layers, output = iter((*_CONVOLUTIONS, *_DENSE)), {}, ''
    after: list[Any] = []
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else '')
        if not node.input or not node.output or output not in ('', node.input[0]):
            raise UserError(f'{path} is no AlexNet: {name} does not follow the node before it')
        output = node.output[0]
        if node.op_type in ('Conv', 'Gemm'):
            after = []
            layers[next(names)] = node, after
        elif node.op_type in (*_OPERATIONS, *_WITHOUT_EFFECT) and layers:
            after.append(node)
        else:
            raise UserError(f'{path} is no AlexNet: {name} is an operation {node.op_type}')
    if not any(node.op_type == 'LRN' for _, after in layers.values() for node in after):
        raise UserError(
            f'{path} has no response normalisation, so it is not bvlcalexnet of the ONNX model zoo'
        )
    for name in _DENSE:
        kinds = [node.op_type for node in layers[name][1] if node.op_type not in _WITHOUT_EFFECT]
        if kinds != ([] if name == 'fc8' else ['Relu']):
            raise UserError(f'{path} is no AlexNet: {name} is followed by {kinds}')
    return layers


def _side(path: epath.Path, graph: Any, arrays: _Arrays) -> int:
    """Return the height and width of the images, in pixels."""
    shapes = [
        [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in arrays  # older models list their weights, too
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3 or shapes[0][2] != shapes[0][3]:
        raise UserError(f'{path} should take images [N, 3, side, side], and takes {shapes}')
    return shapes[0][2]


def _describe(
    path: epath.Path, layers: Mapping[str, tuple[Any, list[Any]]], arrays: _Arrays, side: int
) -> dict[str, Any]:
    """Return the configuration."""
    config = architectures.caffe()
    config['augment']['crop_px'] = side
    model, norms = config['model'], []
    for name in _CONVOLUTIONS:
        node, after = layers[name]
        kernel, _ = _parameters(path, node, arrays)
        if kernel.ndim != 4 or len(set(kernel.shape[2:])) != 1:
            raise UserError(f'{path}: the kernels of {name} should be squares, not {kernel.shape}')
        given = _attributes(node)
        groups, pads = given.get('group', 1), list(given.get('pads', [0] * 4))
        strides, dilations = given.get('strides', [1, 1]), given.get('dilations', [1, 1])
        if groups not in (1, 2) or len(set(pads)) != 1 or len(set(strides)) != 1:
            raise UserError(f'{path} is no AlexNet: {name} has the attributes {given}')
        if set(dilations) != {1} or given.get('auto_pad', b'NOTSET') != b'NOTSET':
            raise UserError(f'{path} is no AlexNet: {name} has the attributes {given}')
        model[name] |= {
            'features': kernel.shape[0],
            'kernel': kernel.shape[2],
            'stride': strides[0],
            'padding': (pads[0], pads[0]),
            'after': tuple(_OPERATIONS[x.op_type] for x in after if x.op_type in _OPERATIONS),
        }
        if name != 'conv1':
            model[name]['sees_both_towers'] = groups == 1
        elif groups != 1:
            raise UserError(f'{path} is no AlexNet: conv1 has {groups} groups')
        side = (side + 2 * pads[0] - kernel.shape[2]) // strides[0] + 1
        for operation in after:
            if operation.op_type == 'LRN':
                norms.append(_response_norm(operation))
            elif operation.op_type == 'MaxPool':
                fields, side = _pooling(path, name, operation, side)
                model[name] |= fields
    if any(norm != norms[0] for norm in norms):
        raise UserError(f'{path} has different response normalisations, {norms}')
    model['lrn'] |= norms[0]
    for name in ('fc6', 'fc7'):
        model[name]['features'] = len(_parameters(path, layers[name][0], arrays)[1])
    model['num_classes'] = len(_parameters(path, layers['fc8'][0], arrays)[1])
    return config


def _pooling(path: epath.Path, name: str, node: Any, side: int) -> tuple[dict[str, Any], int]:
    """Return the fields of a pooling, and the number of its positions on each axis."""
    given = _attributes(node)
    windows, strides = given.get('kernel_shape', [0]), given.get('strides', [1, 1])
    top, left, bottom, right = given.get('pads', [0] * 4)
    if len({*windows}) != 1 or len({*strides}) != 1 or top or left or bottom != right:
        raise UserError(f'{path} is no AlexNet: the pooling after {name} has {given}')
    window, stride = windows[0], strides[0]
    whole = (side - window) // stride + 1
    partial = -(-(side - window) // stride) + 1
    beyond = side + bottom - window
    positions = (-(-beyond // stride) if given.get('ceil_mode') else beyond // stride) + 1
    if positions not in (whole, partial):
        raise UserError(f'{path} is no AlexNet: the pooling after {name} has {given}')
    fields = {'pool_window': window, 'pool_stride': stride, 'pool_partial': positions != whole}
    return fields, positions


def _response_norm(node: Any) -> dict[str, Any]:
    given = {'alpha': 1e-4, 'beta': 0.75, 'bias': 1.0, **_attributes(node)}
    alpha, beta, k = (float(str(np.float32(given[name]))) for name in ('alpha', 'beta', 'bias'))
    return {'n': given.get('size', 5), 'alpha': alpha, 'beta': beta, 'k': k}


def _parameters(path: epath.Path, node: Any, arrays: _Arrays) -> Sequence[np.ndarray]:
    """Return kernel and bias of a layer."""
    missing = [name for name in node.input[1:3] if name not in arrays]
    if len(node.input) != 3 or missing:
        raise UserError(f'{path}: {node.name or node.output[0]} has no kernel or no bias')
    if node.op_type == 'Gemm':
        given = {'alpha': 1.0, 'beta': 1.0, 'transA': 0, 'transB': 0, **_attributes(node)}
        if (given['alpha'], given['beta'], given['transA'], given['transB']) != (1, 1, 0, 1):
            raise UserError(f'{path}: {node.name or node.output[0]} has the attributes {given}')
    kernel, bias = (arrays[name] for name in node.input[1:3])
    return kernel, bias


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
