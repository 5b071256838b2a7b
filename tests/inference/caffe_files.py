"""Files of Caffe, written byte by byte from Caffe's `caffe.proto`: nothing of the package's reader.

A network is a list of layers, each a dictionary of `name`, `type`, `bottom`, `top`, `settings` and
`blobs`. `prototxt` gives it as text, `caffemodel` as a protocol buffer with the weights, in the
form of today (`LayerParameter`) or of before 2015 (`V1LayerParameter`).
"""

import struct

import numpy as np

# Of each kind of settings: its field in the text, its number in either form, and its own fields.
SETTINGS = {
    'Convolution': ('convolution_param', 106, 10),
    'Pooling': ('pooling_param', 121, 19),
    'LRN': ('lrn_param', 118, 18),
    'InnerProduct': ('inner_product_param', 117, 17),
    'Dropout': ('dropout_param', 108, 12),
    'ReLU': ('relu_param', 123, 30),
    'Data': ('transform_param', 100, 36),
}
FIELDS = {
    'Convolution': {
        **{'num_output': 1, 'bias_term': 2, 'pad': 3, 'kernel_size': 4, 'group': 5, 'stride': 6},
        **{'kernel_h': 11, 'kernel_w': 12, 'dilation': 18},
    },
    'Pooling': {'pool': 1, 'kernel_size': 2, 'stride': 3, 'pad': 4},
    'LRN': {'local_size': 1, 'alpha': 2, 'beta': 3, 'norm_region': 4, 'k': 5},
    'InnerProduct': {'num_output': 1, 'bias_term': 2, 'axis': 5, 'transpose': 6},
    'Dropout': {'dropout_ratio': 1},
    'ReLU': {'negative_slope': 1},
    'Data': {'scale': 1, 'mirror': 2, 'crop_size': 3, 'mean_file': 4, 'mean_value': 5},
}
V1_TYPES = {
    **{'Convolution': 4, 'Pooling': 17, 'LRN': 15, 'InnerProduct': 14, 'Dropout': 6, 'ReLU': 18},
    **{'Data': 5, 'Softmax': 20, 'Split': 22, 'Eltwise': 25, 'TanH': 23},
}


def caffenet(order, widths, classes, groups=2, crop_size=227):
    """Return the layers of AlexNet, `order` 'norm', or of CaffeNet, 'pool'."""
    layers = [_layer('data', 'Data', None, mirror=1, crop_size=crop_size)]

    def add(name, kind, in_place=False, **settings):
        bottom = layers[-1]['top']
        layers.append(_layer(name, kind, bottom, **settings))
        if in_place:
            layers[-1]['top'] = bottom

    def norm_and_pool(number):
        norm = dict(kind='LRN', local_size=5, alpha=1e-4, beta=0.75)
        pool = dict(kind='Pooling', kernel_size=3, stride=2)
        pair = {f'norm{number}': norm, f'pool{number}': pool}
        for name in sorted(pair, reverse=order == 'pool'):
            add(name, **pair[name])

    sizes = [(11, 0, 1), (5, 2, groups), (3, 1, 1), (3, 1, groups), (3, 1, groups)]
    for number, (kernel, pad, group) in enumerate(sizes, 1):
        own = {'pad': pad} if pad else {'stride': 4}
        own |= {'group': group} if group > 1 else {}
        width = widths[number - 1]
        add(f'conv{number}', 'Convolution', num_output=width, kernel_size=kernel, **own)
        add(f'relu{number}', 'ReLU', in_place=True)
        if number < 3:
            norm_and_pool(number)
    add('pool5', 'Pooling', kernel_size=3, stride=2)
    for number in (6, 7):
        add(f'fc{number}', 'InnerProduct', num_output=widths[number - 1])
        add(f'relu{number}', 'ReLU', in_place=True)
        add(f'drop{number}', 'Dropout', in_place=True, dropout_ratio=0.5)
    add('fc8', 'InnerProduct', num_output=classes)
    return layers


def _layer(name, kind, bottom, **settings):
    bottoms = [] if bottom is None else [bottom]
    return dict(name=name, type=kind, bottom=bottoms, top=name, settings=settings, blobs=[])


def fill(layers, seed, crop_size=227):
    """Draw weights and biases that keep activities near the scale of the pixels."""
    rng = np.random.default_rng(seed)
    channels, side = 3, crop_size
    for layer in layers:
        own = layer['settings']
        if layer['type'] == 'Convolution':
            inputs = channels // own.get('group', 1)
            shape = (own['num_output'], inputs, own['kernel_size'], own['kernel_size'])
            side = (side + 2 * own.get('pad', 0) - shape[2]) // own.get('stride', 1) + 1
            channels = shape[0]
        elif layer['type'] == 'Pooling':
            side = -(-(side - own['kernel_size']) // own['stride']) + 1
            continue
        elif layer['type'] == 'InnerProduct':
            shape = (own['num_output'], channels * side * side)
            channels, side = shape[0], 1
        else:
            continue
        std = np.sqrt(2 / np.prod(shape[1:])) * (0.02 if layer['name'] == 'fc8' else 1)
        weight = np.float32(std) * rng.standard_normal(shape, np.float32)
        layer['blobs'] = [weight, rng.standard_normal(shape[0], np.float32)]
    return layers


def prototxt(layers, crop_size=227):
    """Return the network for prediction as text; `Data` becomes the input."""
    text = f'input: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: {crop_size}\n'
    text += f'input_dim: {crop_size}\n'
    for layer in layers[1:]:
        settings = ' '.join(f'{key}: {value}' for key, value in layer['settings'].items())
        own = f'{SETTINGS[layer["type"]][0]} {{ {settings} }}' if settings else ''
        text += f'layer {{ name: "{layer["name"]}" type: "{layer["type"]}" '
        text += f'bottom: "{layer["bottom"][0]}" top: "{layer["top"]}" {own} }}\n'
    return text


def caffemodel(layers, form='layer', double=False):
    """Return the content of a file with the weights, in the form `layer` or `layers`."""
    old = form == 'layers'
    content = _string(1, 'AlexNet')
    for layer in layers:
        tops = layer['top'] if isinstance(layer['top'], list) else [layer['top']]
        if old:
            body = b''.join(_string(2, bottom) for bottom in layer['bottom'])
            body += b''.join(_string(3, top) for top in tops)
            body += _string(4, layer['name']) + _varint(5, V1_TYPES[layer['type']])
        else:
            body = _string(1, layer['name']) + _string(2, layer['type'])
            body += b''.join(_string(3, bottom) for bottom in layer['bottom'])
            body += b''.join(_string(4, top) for top in tops)
            body += _varint(10, 0)  # phase
        for array in layer['blobs']:
            body += _bytes(6 if old else 7, blob(array, old, double))
        if layer['settings']:
            kind = layer['type']
            body += _bytes(SETTINGS[kind][2 if old else 1], _settings(kind, layer['settings']))
        content += _bytes(2 if old else 100, body)
    return content


def blob(array, old, double=False):
    """Return a BlobProto; the old form has four numbers for the shape."""
    numbers = np.ascontiguousarray(array, '<f8' if double else '<f4').tobytes()
    content = _bytes(8 if double else 5, numbers)
    if old:
        shape = (1,) * (4 - array.ndim) + array.shape
        return b''.join(_varint(i, size) for i, size in enumerate(shape, 1)) + content
    return content + _bytes(7, _bytes(1, b''.join(map(_number, array.shape))))


def _settings(kind, settings):
    content = b''
    for name, value in settings.items():
        field = FIELDS[kind][name]
        if name in ('alpha', 'beta', 'k', 'dropout_ratio', 'scale', 'negative_slope'):
            content += _number(field << 3 | 5) + struct.pack('<f', value)
        elif name == 'mean_value':
            for one in value:
                content += _number(field << 3 | 5) + struct.pack('<f', one)
        elif isinstance(value, str):
            content += _string(field, value)
        else:
            content += _varint(field, value)
    return content


def _number(value):
    content = b''
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


def _varint(field, value):
    return _number(field << 3) + _number(value)


def _bytes(field, content):
    return _number(field << 3 | 2) + _number(len(content)) + content


def _string(field, text):
    return _bytes(field, text.encode())
