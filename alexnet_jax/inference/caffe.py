"""Weights of Caffe: a `.caffemodel` of AlexNet or CaffeNet, and a `.binaryproto` of a mean image.

A `.caffemodel` is a protocol buffer, `NetParameter` of Caffe's `caffe.proto`, with the weights and
the settings of each layer; those that decide what the network computes are declared below. It
holds them in one of two forms: `layer`, or `layers` of files from before 2015, whose types are
numbers and whose shapes are always four numbers.

What Caffe does otherwise than the paper, and is kept: it reads 227 pixels without zeros around
them; it divides alpha of the response normalisation by n, and normalises across both towers; its
pooling squares may reach beyond the edge; CaffeNet pools before it normalises. What is turned:
Caffe's first kernels take blue, green and red, in this order; ours take red, green and blue.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import architectures, channels_first
from alexnet_jax.inference.statistics import constant_colours
from alexnet_jax.runtime.errors import UserError

SUFFIX = '.caffemodel'
MEAN = (104.0, 117.0, 123.0)  # of ImageNet, blue, green and red, as Caffe's own examples have it
_CROP = 227  # of Caffe's AlexNet and CaffeNet, where the file does not say
_LARGEST = 2**31 - 1  # bytes of a protocol buffer

# Message -> field -> (number, kind). Kinds end in `*` for repeated fields. A packed field of floats
# is declared as bytes, which look the same in a file and become an array without a loop.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    'BlobShape': {'dim': (1, 'int64*')},
    'BlobProto': {
        **{'num': (1, 'int64'), 'channels': (2, 'int64')},
        **{'height': (3, 'int64'), 'width': (4, 'int64')},
        **{'data': (5, 'bytes*'), 'shape': (7, 'BlobShape'), 'double_data': (8, 'bytes*')},
    },
    'Transformation': {
        **{'scale': (1, 'float'), 'crop_size': (3, 'int64')},
        **{'mean_file': (4, 'string'), 'mean_value': (5, 'float*')},
    },
    'Data': {'scale': (2, 'float'), 'mean_file': (3, 'string'), 'crop_size': (5, 'int64')},
    'Input': {'shape': (1, 'BlobShape*')},
    'Convolution': {
        **{'num_output': (1, 'int64'), 'bias_term': (2, 'bool'), 'group': (5, 'int64')},
        **{'pad': (3, 'int64*'), 'pad_h': (9, 'int64'), 'pad_w': (10, 'int64')},
        **{'kernel_size': (4, 'int64*'), 'kernel_h': (11, 'int64'), 'kernel_w': (12, 'int64')},
        **{'stride': (6, 'int64*'), 'stride_h': (13, 'int64'), 'stride_w': (14, 'int64')},
        'dilation': (18, 'int64*'),
    },
    'Pooling': {
        **{'pool': (1, 'int64'), 'global_pooling': (12, 'bool')},
        **{'kernel_size': (2, 'int64*'), 'kernel_h': (5, 'int64'), 'kernel_w': (6, 'int64')},
        **{'stride': (3, 'int64*'), 'stride_h': (7, 'int64'), 'stride_w': (8, 'int64')},
        **{'pad': (4, 'int64*'), 'pad_h': (9, 'int64'), 'pad_w': (10, 'int64')},
    },
    'LRN': {
        **{'local_size': (1, 'int64'), 'alpha': (2, 'float'), 'beta': (3, 'float')},
        **{'norm_region': (4, 'int64'), 'k': (5, 'float')},
    },
    'InnerProduct': {
        **{'num_output': (1, 'int64'), 'bias_term': (2, 'bool')},
        **{'axis': (5, 'int64'), 'transpose': (6, 'bool')},
    },
    'ReLU': {'negative_slope': (1, 'float')},
    'Dropout': {'dropout_ratio': (1, 'float')},
    'Layer': {
        **{'name': (1, 'string'), 'type': (2, 'string'), 'blobs': (7, 'BlobProto*')},
        **{'bottom': (3, 'string*'), 'top': (4, 'string*')},
        **{'transform_param': (100, 'Transformation'), 'data_param': (107, 'Data')},
        **{'convolution_param': (106, 'Convolution'), 'pooling_param': (121, 'Pooling')},
        **{'inner_product_param': (117, 'InnerProduct'), 'lrn_param': (118, 'LRN')},
        **{'relu_param': (123, 'ReLU'), 'dropout_param': (108, 'Dropout')},
        'input_param': (143, 'Input'),
    },
    'V1Layer': {
        **{'name': (4, 'string'), 'type': (5, 'int64'), 'blobs': (6, 'BlobProto*')},
        **{'bottom': (2, 'string*'), 'top': (3, 'string*')},
        **{'transform_param': (36, 'Transformation'), 'data_param': (11, 'Data')},
        **{'convolution_param': (10, 'Convolution'), 'pooling_param': (19, 'Pooling')},
        **{'inner_product_param': (17, 'InnerProduct'), 'lrn_param': (18, 'LRN')},
        **{'relu_param': (30, 'ReLU'), 'dropout_param': (12, 'Dropout')},
    },
    'Net': {
        **{'name': (1, 'string'), 'layers': (2, 'V1Layer*'), 'layer': (100, 'Layer*')},
        **{'input_dim': (4, 'int64*'), 'input_shape': (8, 'BlobShape*')},
    },
}
_TYPES = {  # of V1Layer, in the words of Layer
    **{4: 'Convolution', 14: 'InnerProduct', 15: 'LRN', 17: 'Pooling', 18: 'ReLU'},
    **{6: 'Dropout', 19: 'Sigmoid', 23: 'TanH', 22: 'Split', 5: 'Data', 12: 'ImageData'},
    **{29: 'MemoryData', 9: 'HDF5Data', 24: 'WindowData', 32: 'DummyData', 36: 'Silence'},
    **{1: 'Accuracy', 20: 'Softmax', 21: 'SoftmaxWithLoss'},
}
_NOT_OF_THE_NETWORK = {'Data', 'ImageData', 'MemoryData', 'HDF5Data', 'WindowData', 'DummyData'}
_NOT_OF_THE_NETWORK |= {'Input', 'Silence', 'Accuracy', 'Softmax', 'SoftmaxWithLoss'}
_ACTIVATIONS = {'ReLU': 'relu', 'TanH': 'tanh', 'Sigmoid': 'sigmoid'}
_CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
_DENSE = ('fc6', 'fc7', 'fc8')


def read(path: epath.Path, mean: np.ndarray | None = None) -> TrainedNetwork:
    """Return the network of a `.caffemodel`.

    `mean`: the mean image [H, W, C], red, green and blue, or [C] its mean colours; by default those
    in the file, or `MEAN`.

    Raises UserError, in one line, for a file that is not one or is damaged, and for a network that
    is not of AlexNet's kind.
    """
    net = _parse('Net', path)
    layers = _layers(path, net)
    if not layers:
        raise UserError(f'{path} has no layers, so it is not a .caffemodel; name another file')
    config, weights = _describe(path, layers)
    config['augment'] |= _transformation(net, layers)
    model, _ = architectures.sections(path, config)
    image = _mean_image(path, layers, config, mean)
    config['augment']['mean'] = 'at_crop' if mean is not None and mean.ndim == 3 else 'channels'
    config['data']['image_shape'] = image.shape
    crop_px = config['augment']['crop_px']
    if crop_px > min(image.shape[:2]):
        raise UserError(f'{path} reads {crop_px} pixels, but the mean image has {image.shape[:2]}')
    expected = channels_first.shapes_there(model, (crop_px, crop_px, 3))
    network = {name: _weights(path, layer, {**expected[name]}) for name, layer in weights.items()}
    names = {ours: layer.name for ours, layer in weights.items()}
    channels_first.check_shapes(
        path, network, expected, lambda layer, leaf: f'{leaf} of {names[layer]}'
    )
    network['conv1']['kernel'] = network['conv1']['kernel'][:, ::-1]  # blue, green, red
    ours = channels_first.from_channels_first(network, model)
    return TrainedNetwork(
        network={
            layer: {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in leaves.items()}
            for layer, leaves in ours.items()
        },
        config=config,
        class_names=tuple(map(str, range(model.num_classes))),
        statistics=constant_colours(image),
        preparation=None,
        about={},
    )


def read_mean(path: epath.Path) -> np.ndarray:
    """Return the mean image of a `.binaryproto`, [H, W, C] with red, green and blue."""
    blob = _parse('BlobProto', path)
    shape = _shape(blob)
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or shape[0] != 3:
        raise UserError(f'{path} should have the shape (3, height, width), and has {shape}')
    image = _array(path, 'the mean image', blob, shape)
    if not np.isfinite(image).all():
        raise UserError(f'{path} has numbers that are not finite; name another file')
    return image[::-1].transpose(1, 2, 0)


@functools.cache
def _message(name: str) -> Any:
    """Return the class of a message, declared at run time."""
    file = descriptor_pb2.FileDescriptorProto(
        name='alexnet_jax/caffe.proto', package='alexnet_jax.caffe', syntax='proto2'
    )
    field_type = descriptor_pb2.FieldDescriptorProto
    for message_name, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message_name)
        for field, (number, kind) in fields.items():
            label = field_type.LABEL_REPEATED if kind[-1] == '*' else field_type.LABEL_OPTIONAL
            added = declared.field.add(name=field, number=number, label=label)
            if (kind := kind.rstrip('*')) in _MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f'.{file.package}.{kind}'
            else:
                added.type = getattr(field_type, f'TYPE_{kind.upper()}')
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f'{file.package}.{name}')  # pyright: ignore
    )


def _parse(name: str, path: epath.Path) -> Any:
    if not os.path.isfile(path):  # `path.is_file` is true of a pipe
        raise UserError(f'{path} is not a file; name a file of Caffe')
    size = path.stat().length
    if not 0 < size <= _LARGEST:
        raise UserError(f'{path} has {size} bytes, so it is not a file of Caffe; copy it again')
    try:
        return _message(name).FromString(path.read_bytes())
    except message.DecodeError as error:
        raise UserError(f'{path} is not a whole file of Caffe; copy it again') from error


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer of either form."""

    name: str
    type: str
    message: Any

    def settings(self, name: str) -> Any:
        return getattr(self.message, f'{name}_param')


def _layers(path: epath.Path, net: Any) -> list[_Layer]:
    if net.layer and net.layers:
        raise UserError(f"{path} has layers of both of Caffe's forms, layer and layers")
    new = [_Layer(layer.name, layer.type, layer) for layer in net.layer]
    return new or [
        _Layer(layer.name, _TYPES.get(layer.type, f'number {layer.type}'), layer)
        for layer in net.layers
    ]


def _describe(
    path: epath.Path, layers: Sequence[_Layer]
) -> tuple[dict[str, Any], dict[str, _Layer]]:
    """Return the configuration, and the layer of each of our names.

    Raises UserError unless the layers are five convolutions and three fully connected layers, one
    after the other, with what AlexNet has between them.
    """
    chain = _chain(path, layers)
    kinds = [layer.type for layer in chain if layer.type in ('Convolution', 'InnerProduct')]
    if kinds != ['Convolution'] * 5 + ['InnerProduct'] * 3:
        raise UserError(
            f'{path} is no AlexNet: it has {kinds.count("Convolution")} convolutions and '
            f'{kinds.count("InnerProduct")} fully connected layers, not 5 and then 3'
        )
    config, weights = architectures.caffe(), {}
    model = config['model']
    follows: dict[str, list[_Layer]] = {name: [] for name in (*_CONVOLUTIONS, *_DENSE)}
    names = iter(follows)
    name = ''
    for layer in chain:
        if layer.type in ('Convolution', 'InnerProduct'):
            name = next(names)
            weights[name] = layer
        elif not name:
            raise UserError(f'{path}: {layer.name} comes before the first convolution')
        else:
            follows[name].append(layer)
    groups = {name: _groups(path, weights[name]) for name in _CONVOLUTIONS}
    model['towers'] = max(groups.values())
    if groups['conv1'] != 1 or model['towers'] > 2:
        raise UserError(f'{path} is no AlexNet: its convolutions have the groups {groups}')
    for name in _CONVOLUTIONS:
        model[name] |= _convolution(path, weights[name], follows[name])
        if name != 'conv1' and model['towers'] == 2:
            model[name]['sees_both_towers'] = groups[name] == 1
    for name in ('fc6', 'fc7'):
        model[name]['features'] = weights[name].settings('inner_product').num_output
    model['num_classes'] = weights['fc8'].settings('inner_product').num_output
    _check_dense(path, weights, follows)
    everything = [layer for after in follows.values() for layer in after]
    model['dropout'] = _only(path, 'dropout', [_dropout(follows[name]) for name in ('fc6', 'fc7')])
    used = [_ACTIVATIONS[layer.type] for layer in everything if layer.type in _ACTIVATIONS]
    model['activation'] = _only(path, 'activation functions', used)
    norms = [_response_norm(path, layer) for layer in everything if layer.type == 'LRN']
    if norms:
        model['lrn'] |= _only(path, 'constants of the response normalisation', norms)
    return config, weights


def _chain(path: epath.Path, layers: Sequence[_Layer]) -> list[_Layer]:
    """Return the layers from the image to the logits; raise UserError unless they are a chain."""
    known = {'Convolution', 'InnerProduct', 'LRN', 'Pooling', 'Dropout', *_ACTIVATIONS}
    copies: dict[str, str] = {}  # the outputs of Split
    chain, output = [], ''
    for layer in layers:
        inputs = [copies.get(name, name) for name in layer.message.bottom]
        if layer.type == 'Split':
            copies |= dict.fromkeys(layer.message.top, inputs[0] if inputs else '')
        elif layer.type in known:
            if len(inputs) != 1 or len(layer.message.top) != 1 or output not in ('', inputs[0]):
                raise UserError(
                    f'{path} is no AlexNet: {layer.name} does not follow the layer before it'
                )
            chain.append(layer)
            output = layer.message.top[0]
        elif layer.type not in _NOT_OF_THE_NETWORK:
            raise UserError(f'{path} is no AlexNet: {layer.name} is a layer of type {layer.type}')
    return chain


def _groups(path: epath.Path, layer: _Layer) -> int:
    settings = layer.settings('convolution')
    return settings.group if settings.HasField('group') else 1


def _convolution(path: epath.Path, layer: _Layer, after: Sequence[_Layer]) -> dict[str, Any]:
    """Return the fields of a convolution and of what follows it."""
    settings = layer.settings('convolution')
    if set(settings.dilation) - {1}:
        raise UserError(f'{path} is no AlexNet: {layer.name} has dilation {settings.dilation}')
    pad = _side(path, layer, settings, 'pad', 0)
    fields: dict[str, Any] = {
        'features': settings.num_output,
        'kernel': _side(path, layer, settings, 'kernel', None),
        'stride': _side(path, layer, settings, 'stride', 1),
        'padding': (pad, pad),
    }
    operations = {'LRN': 'lrn', 'Pooling': 'pool', **dict.fromkeys(_ACTIVATIONS, 'activation')}
    for operation in after:
        if operation.type not in operations:
            raise UserError(f'{path} is no AlexNet: {operation.name} follows {layer.name}')
        if operation.type == 'ReLU' and operation.settings('relu').negative_slope:
            raise UserError(f'{path}: {operation.name} has a negative_slope, which ReLU has not')
        if operation.type == 'Pooling':
            fields |= _pooling(path, operation)
    return fields | {'after': tuple(operations[operation.type] for operation in after)}


def _pooling(path: epath.Path, layer: _Layer) -> dict[str, Any]:
    settings = layer.settings('pooling')
    if settings.pool or settings.global_pooling or _side(path, layer, settings, 'pad', 0):
        raise UserError(f'{path}: {layer.name} should take maxima, without padding')
    return {
        'pool_window': _side(path, layer, settings, 'kernel', None),
        'pool_stride': _side(path, layer, settings, 'stride', 1),
        'pool_partial': True,
    }


def _side(path: epath.Path, layer: _Layer, settings: Any, name: str, default: int | None) -> int:
    """Return a size that must be the same for height and width, written in either of two ways."""
    given = list(getattr(settings, f'{name}_size' if name == 'kernel' else name))
    given += [
        getattr(settings, f'{name}_{axis}') for axis in 'hw' if settings.HasField(f'{name}_{axis}')
    ]
    if not given and default is not None:
        return default
    if len(set(given)) != 1:
        raise UserError(
            f'{path}: {layer.name} should have one {name} size for both axes, and has '
            f'{given or "none"}'
        )
    return given[0]


def _response_norm(path: epath.Path, layer: _Layer) -> dict[str, Any]:
    settings = layer.settings('lrn')
    if settings.norm_region:
        raise UserError(f'{path}: {layer.name} normalises within a map, not across maps')
    defaults = {'alpha': 1.0, 'beta': 0.75, 'k': 1.0}
    numbers = {
        name: _decimal(getattr(settings, name)) if settings.HasField(name) else default
        for name, default in defaults.items()
    }
    return {'n': settings.local_size if settings.HasField('local_size') else 5, **numbers}


def _check_dense(
    path: epath.Path, weights: Mapping[str, _Layer], follows: Mapping[str, Sequence[_Layer]]
) -> None:
    for name in _DENSE:
        layer, settings = weights[name], weights[name].settings('inner_product')
        if settings.transpose or (settings.HasField('axis') and settings.axis != 1):
            raise UserError(f'{path}: {layer.name} should have neither transpose nor another axis')
        kinds = [each.type for each in follows[name] if each.type != 'Dropout']
        wrong = kinds if name == 'fc8' else [] if len(kinds) == 1 else kinds or ['nothing']
        if wrong or (kinds and kinds[0] not in _ACTIVATIONS):
            raise UserError(f'{path} is no AlexNet: {layer.name} is followed by {kinds}')


def _dropout(after: Sequence[_Layer]) -> float:
    for layer in after:
        if layer.type == 'Dropout':
            settings = layer.settings('dropout')
            given = settings.HasField('dropout_ratio')
            return _decimal(settings.dropout_ratio) if given else 0.5
    return 0.0


def _only(path: epath.Path, what: str, values: Sequence[Any]) -> Any:
    """Return what all layers have in common."""
    if any(value != values[0] for value in values):
        raise UserError(f'{path} has different {what}, {values}; here all layers share them')
    return values[0]


def _transformation(net: Any, layers: Sequence[_Layer]) -> dict[str, Any]:
    """Return the crop and the divisor of the pixels, where the file has them."""
    sides = [layer.message.transform_param.crop_size for layer in layers]
    sides += [layer.message.data_param.crop_size for layer in layers]
    sides += [net.input_dim[3]] if len(net.input_dim) == 4 else []
    shapes = list(net.input_shape)
    shapes += [s for x in layers if x.type == 'Input' for s in x.settings('input').shape]
    sides += [shape.dim[3] for shape in shapes if len(shape.dim) == 4]
    scales = [layer.message.transform_param.scale for layer in layers]
    scales += [layer.message.data_param.scale for layer in layers]
    scale = _decimal(next(filter(None, scales), 1.0))
    return {'crop_px': next(filter(None, sides), _CROP), 'pixel_divisor': 1 / scale}


def _mean_image(
    path: epath.Path, layers: Sequence[_Layer], config: Mapping[str, Any], mean: np.ndarray | None
) -> np.ndarray:
    """Return the mean image [H, W, C], red, green and blue."""
    if mean is None:
        values = [list(layer.message.transform_param.mean_value) for layer in layers]
        colours = next(filter(None, values), list(MEAN))
        colours = colours * 3 if len(colours) == 1 else colours
        if len(colours) != 3 or not all(map(math.isfinite, colours)):
            raise UserError(f'{path} has the mean values {colours}; give three with --mean')
        mean = np.asarray(colours[::-1])
    return np.broadcast_to(mean, config['data']['image_shape']) if mean.ndim == 1 else mean


def _weights(
    path: epath.Path, layer: _Layer, expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the kernel and the bias of a layer; without a bias in the file it is zero."""
    kind = 'convolution' if layer.type == 'Convolution' else 'inner_product'
    settings, blobs = layer.settings(kind), list(layer.message.blobs)
    found = {}
    for leaf, blob in zip(('kernel', 'bias'), blobs, strict=False):
        found[leaf] = _array(path, f'{leaf} of {layer.name}', blob, expected[leaf])
    if len(blobs) == 1 and settings.HasField('bias_term') and not settings.bias_term:
        found['bias'] = np.zeros(expected['bias'], np.float32)
    return found


def _shape(blob: Any) -> tuple[int, ...]:
    if blob.HasField('shape'):
        return tuple(blob.shape.dim)
    return blob.num, blob.channels, blob.height, blob.width


def _array(path: epath.Path, what: str, blob: Any, expected: tuple[int, ...]) -> np.ndarray:
    """Return the numbers of a blob in a shape that may have ones before it in the file."""
    shape = _shape(blob)
    while len(shape) > len(expected) and shape[0] == 1:
        shape = shape[1:]
    if shape != expected:
        raise UserError(f'{path}: {what} should be {expected}, and is {_shape(blob)}')
    kind = '<f8' if blob.double_data else '<f4'
    content = b''.join(blob.double_data or blob.data)
    size = math.prod(expected) * np.dtype(kind).itemsize
    if len(content) != size:
        raise UserError(
            f'{path}: {what} should have {size} bytes of numbers, and has {len(content)}; copy '
            'the file again'
        )
    return np.frombuffer(content, kind).reshape(expected)


def _decimal(value: float) -> float:
    """Return the shortest decimal number that a float32 stands for: 1e-4, not 9.99999974e-05."""
    return float(str(np.float32(value)))
