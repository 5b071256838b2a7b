"""Files of Caffe: the logits are those of OpenCV's own reader of the same files."""

import cv2
import numpy as np
import pytest
from etils import epath

from alexnet_jax import convert
from alexnet_jax.checkpoint import weights
from alexnet_jax.runtime.config import differences
from alexnet_jax.training.config import Config
from configs import caffenet
from tests.inference import caffe_files, networks
from tests.reference import relative_error

SMALL = (16, 12, 20, 16, 12, 24, 20)
FULL = (96, 256, 384, 384, 256, 4096, 4096)


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def in_opencv(folder, layers, images, mean, crop=227):
    """Return the logits of the middle of images [n, 256, 256, 3], red, green and blue.

    `mean`: [3] or [256, 256, 3], in Caffe's order of blue, green and red.
    """
    text = folder / 'deploy.prototxt'
    text.write_text(caffe_files.prototxt(layers, crop))
    net = cv2.dnn.readNetFromCaffe(str(text), str(folder / 'in.caffemodel'))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    corner = (256 - crop) // 2
    logits = []
    for image in images:
        pixels = image[..., ::-1].astype(np.float32) - mean
        pixels = pixels[corner : corner + crop, corner : corner + crop]
        net.setInput(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32))
        logits.append(net.forward('fc8')[0])
    return np.stack(logits)


def images(n=3):
    return networks.photographs({'data': {'image_shape': (256, 256, 3)}}, n)


@pytest.mark.parametrize('form', ['layer', 'layers'])
@pytest.mark.parametrize('order', ['norm', 'pool'])
def test_the_logits_are_those_of_opencv(tmp_path, order, form, capsys):
    """bvlc_alexnet normalises and then pools, CaffeNet the other way round."""
    layers = caffe_files.fill(caffe_files.caffenet(order, SMALL, 7), seed=1)
    (tmp_path / 'in.caffemodel').write_bytes(caffe_files.caffemodel(layers, form))
    assert run(tmp_path / 'in.caffemodel', tmp_path / 'out.safetensors') == 0
    assert 'in.caffemodel: caffe, not a known file\n' in capsys.readouterr().out
    trained = weights.read(epath.Path(tmp_path / 'out.safetensors'))
    want = in_opencv(tmp_path, layers, images(), np.asarray([104, 117, 123]))
    got = networks.logits(trained, images())
    assert relative_error(got, want) < 1e-4
    assert trained.class_names == tuple('0123456')


@pytest.mark.slow
def test_full_size_with_a_mean_image(tmp_path):
    """1,000 classes, 4,096 units, two groups, and the mean image of a .binaryproto."""
    layers = caffe_files.fill(caffe_files.caffenet('norm', FULL, 1000), seed=2)
    (tmp_path / 'in.caffemodel').write_bytes(caffe_files.caffemodel(layers, 'layers'))
    mean = np.random.default_rng(3).uniform(80, 150, (1, 3, 256, 256)).astype(np.float32)
    (tmp_path / 'mean.binaryproto').write_bytes(caffe_files.blob(mean, old=True))
    out = tmp_path / 'out.safetensors'
    assert run(tmp_path / 'in.caffemodel', out, f'--mean={tmp_path}/mean.binaryproto') == 0
    trained = weights.read(epath.Path(out))
    want = in_opencv(tmp_path, layers, images(2), mean[0].transpose(1, 2, 0))
    got = networks.logits(trained, images(2))
    assert relative_error(got, want) < 1e-4
    assert len(trained.class_names) == 1000
    assert trained.class_names[0] == 'n01440764'
    assert trained.config['augment']['mean'] == 'at_crop'


@pytest.mark.parametrize(
    'change',
    [
        {'groups': 1},
        {'crop_size': 224},  # 54 positions of conv1: the last square of pool1 is beyond the edge
        {'constants': {'local_size': 3, 'alpha': 5e-4, 'beta': 0.5}},
    ],
    ids=['one tower', 'partial squares', 'other constants'],
)
def test_variants(tmp_path, change):
    constants = change.pop('constants', {})
    layers = caffe_files.caffenet('norm', SMALL, 7, **change)
    for layer in layers:
        if layer['type'] == 'LRN':
            layer['settings'] |= constants
    crop = change.get('crop_size', 227)
    caffe_files.fill(layers, 4, crop)
    (tmp_path / 'in.caffemodel').write_bytes(caffe_files.caffemodel(layers))
    assert run(tmp_path / 'in.caffemodel', tmp_path / 'o.safetensors', '--mean=90.5,100,110') == 0
    trained = weights.read(epath.Path(tmp_path / 'o.safetensors'))
    want = in_opencv(tmp_path, layers, images(), np.asarray([90.5, 100, 110]), crop)
    assert relative_error(networks.logits(trained, images()), want) < 1e-4


def test_k_of_the_response_normalisation(tmp_path):
    """OpenCV has k = 1: a / (2 + s)^beta is 2^-beta a / (1 + s / 2)^beta."""
    layers = caffe_files.caffenet('norm', SMALL, 7)
    norms = [layer['settings'] for layer in layers if layer['type'] == 'LRN']
    for norm in norms:
        norm |= {'alpha': 2e-3, 'k': 2.0}
    caffe_files.fill(layers, 9)
    (tmp_path / 'with_k.caffemodel').write_bytes(caffe_files.caffemodel(layers))
    assert run(tmp_path / 'with_k.caffemodel', tmp_path / 'out.safetensors') == 0
    trained = weights.read(epath.Path(tmp_path / 'out.safetensors'))
    assert trained.config['model']['lrn']['k'] == 2.0
    for norm in norms:
        norm['alpha'] = 1e-3
        del norm['k']
    for layer in layers:
        if layer['name'] in ('conv2', 'conv3'):
            layer['blobs'][0] = layer['blobs'][0] * np.float32(2**-0.75)
    (tmp_path / 'in.caffemodel').write_bytes(caffe_files.caffemodel(layers))
    want = in_opencv(tmp_path, layers, images(), np.asarray([104, 117, 123]))
    assert relative_error(networks.logits(trained, images()), want) < 1e-4


def test_what_the_file_says_of_its_pixels(tmp_path):
    """`transform_param` has the crop, the scale and the mean values; weights may be doubles."""
    layers = caffe_files.fill(caffe_files.caffenet('norm', SMALL, 7), seed=5)
    layers[0]['settings'] |= {'scale': 0.25, 'mean_value': [100.0, 110.0, 120.0]}
    file = tmp_path / 'in.caffemodel'
    file.write_bytes(caffe_files.caffemodel(layers, double=True))
    assert run(file, tmp_path / 'out.safetensors') == 0
    trained = weights.read(epath.Path(tmp_path / 'out.safetensors'))
    assert trained.config['augment']['pixel_divisor'] == 4.0
    assert trained.statistics.mean_image[0, 0].tolist() == [120.0, 110.0, 100.0]
    np.testing.assert_array_equal(trained.network['fc8']['bias'], layers[-1]['blobs'][1])


@pytest.mark.parametrize('order', ['norm', 'pool'])
def test_the_configuration_is_that_of_configs_caffenet(tmp_path, order):
    """But for what a file cannot say, or says: the mean, and the squares of the pooling."""
    layers = caffe_files.fill(caffe_files.caffenet(order, (*FULL[:5], 8, 8), 1000), seed=6)
    file = tmp_path / 'in.caffemodel'
    file.write_bytes(caffe_files.caffemodel(layers))
    assert run(file, tmp_path / 'out.safetensors') == 0
    trained = weights.read(epath.Path(tmp_path / 'out.safetensors'))
    assert trained.class_names[:2] == ('n01440764', 'n01443537')
    changed = differences(Config, caffenet.get_config().to_dict(), trained.config)
    differ = {name: after for name, (_, after) in changed.items()}
    expected = {f'model.conv{i}.pool_partial': True for i in (1, 2, 5)}
    expected |= {f'model.fc{i}.features': 8 for i in (6, 7)} | {'augment.mean': 'channels'}
    if order == 'norm':
        expected |= {f'model.conv{i}.after': ('activation', 'lrn', 'pool') for i in (1, 2)}
    assert differ == expected


def test_outputs_that_are_split(tmp_path):
    """Nets that were trained have layers that copy an output, and others for the loss."""
    layers = caffe_files.fill(caffe_files.caffenet('norm', SMALL, 7), seed=7)
    whole = tmp_path / 'whole.caffemodel'
    whole.write_bytes(caffe_files.caffemodel(layers))
    at = next(i for i, layer in enumerate(layers) if layer['name'] == 'conv4')
    split = {**layers[at - 1], 'name': 'split', 'type': 'Split', 'settings': {}}
    split |= {'bottom': [layers[at - 1]['top']], 'top': ['copy_0', 'copy_1'], 'blobs': []}
    layers[at]['bottom'] = ['copy_1']
    layers.insert(at, split)
    layers.append({**split, 'name': 'prob', 'type': 'Softmax', 'bottom': ['fc8'], 'top': 'prob'})
    file = tmp_path / 'in.caffemodel'
    for form in ('layer', 'layers'):
        file.write_bytes(caffe_files.caffemodel(layers, form))
        assert run(file, tmp_path / 'a.safetensors') == 0
        assert run(whole, tmp_path / 'b.safetensors') == 0
        first, second = (weights.read(epath.Path(tmp_path / f'{n}.safetensors')) for n in 'ab')
        for name in ('conv4', 'fc6'):
            np.testing.assert_array_equal(
                first.network[name]['kernel'], second.network[name]['kernel']
            )


def changed(name, **fields):
    def change(layers):
        for layer in layers:
            if layer['name'] == name:
                layer['settings'] |= fields

    return change


def other(name, **fields):
    def change(layers):
        next(layer for layer in layers if layer['name'] == name).update(fields)

    return change


@pytest.mark.parametrize('form', ['layer', 'layers'])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda layers: layers.pop(), '5 convolutions and 2 fully connected layers, not 5 and'),
        (changed('conv2', dilation=2), 'conv2 has dilation [2]'),
        (changed('conv2', group=3), "its convolutions have the groups {'conv1': 1, 'conv2': 3,"),
        (changed('conv3', kernel_h=5, kernel_w=3), 'should have one kernel size for both axes'),
        (changed('norm1', norm_region=1), 'norm1 normalises within a map'),
        (changed('norm1', k=2.0), 'different constants of the response normalisation'),
        (changed('norm1', local_size=4), 'has different constants'),
        (changed('pool1', pool=1), 'pool1 should take maxima, without padding'),
        (changed('relu1', negative_slope=0.1), 'relu1 has a negative_slope'),
        (changed('drop6', dropout_ratio=0.25), 'has different dropout, [0.25, 0.5]'),
        (changed('fc7', transpose=1), 'fc7 should have neither transpose nor another axis'),
        (changed('conv1', stride=0), 'config.model.conv1.stride = 0 must be'),
        (changed('conv1', num_output=2**40), 'no network has these sizes'),
        (changed('fc6', num_output=2**62), 'no network has these sizes'),
        (changed('data', crop_size=8), 'no network has these sizes'),
        (changed('data', crop_size=40), 'kernel of fc6 should be (24, 12), and is '),
        (changed('data', crop_size=300), 'reads 300 pixels, but the mean image has (256, 256)'),
        (changed('data', mean_value=[1.0, 2.0]), 'has the mean values [1.0, 2.0]'),
        (other('pool2', type='Eltwise'), 'pool2 is a layer of type '),
        (other('pool2', bottom=['conv1']), 'pool2 does not follow the layer before it'),
        (other('conv4', blobs=[]), 'has no bias of conv4, which should be (16,)'),
        (other('conv5', blobs=[np.zeros((12, 8, 3, 5))]), 'and is (12, 8, 3, 5)'),
        (other('fc8', blobs=[np.zeros((7, 20))]), 'has no bias of fc8, which should be (7,)'),
        (
            other('fc8', blobs=[np.full((7, 20), np.nan), np.zeros(7)]),
            'kernel of fc8 has numbers that are not finite',
        ),
    ],
)
def test_what_is_no_alexnet(tmp_path, capsys, form, change, words):
    layers = caffe_files.fill(caffe_files.caffenet('norm', SMALL, 7), seed=8)
    change(layers)
    for layer in layers:
        if layer['type'] == 'Eltwise':
            layer['settings'] = {}
    file = tmp_path / 'in.caffemodel'
    file.write_bytes(caffe_files.caffemodel(layers, form))
    assert run(file, tmp_path / 'out.safetensors') == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['in.caffemodel']
