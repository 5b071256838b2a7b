"""Weights of PyTorch in safetensors files: torchvision's `alexnet`, and the module of our pages.

`docs/weights.md` has that module: one or two towers, in PyTorch's own layers. Its state dict has
`conv1.weight`, `conv1.bias` to `fc8.bias` and, as a buffer, the mean image `mean`, [C, H, W]. What
a state dict cannot hold is in the metadata of the file, under `alexnet_jax_pytorch`, as JSON:
`format`, `version`, `config`, `class_names`, `preparation`, `about`, and the colour statistics
`eigenvectors` and `std`. A file without it is taken for the network of a given configuration.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from alexnet_jax.checkpoint import earlier, weights
from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import architectures, channels_first
from alexnet_jax.inference.statistics import constant_colours
from alexnet_jax.input.batch import Statistics
from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import make
from alexnet_jax.runtime.errors import UserError, first_line

KEY = 'alexnet_jax_pytorch'  # in the metadata
FIRST = 'conv1.weight'  # of the module of our pages
FIRST_OF_TORCHVISION = 'features.0.weight'

# torchvision's preprocessing, on the scale of 0 to 1, for red, green and blue.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OF_TORCHVISION = {
    'conv1': 'features.0',
    'conv2': 'features.3',
    'conv3': 'features.6',
    'conv4': 'features.8',
    'conv5': 'features.10',
    'fc6': 'classifier.1',
    'fc7': 'classifier.4',
    'fc8': 'classifier.6',
}
_LEAVES = {'weight': 'kernel', 'bias': 'bias'}
_LEAVES_OF_BN = {'weight': 'scale', 'bias': 'bias', 'running_mean': 'mean', 'running_var': 'var'}

Tensors = Mapping[str, np.ndarray]


def plain_names(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return the tensors without the `module.` that `DataParallel` puts before their names."""
    return {name.removeprefix('module.'): tensor for name, tensor in tensors.items()}


def read_torchvision(path: epath.Path, tensors: Tensors) -> TrainedNetwork:
    """Return the network of a state dict of `torchvision.models.alexnet`.

    torchvision divides each channel by its own standard deviation. Ours have one divisor, so the
    ratios are in the kernel of conv1. That is exact: a zero pixel of the padding stays zero.
    """
    config = architectures.torchvision()
    last = tensors.get('classifier.6.bias')
    if last is not None and last.ndim == 1:
        config['model']['num_classes'] = len(last)
    model, _ = architectures.sections(path, config)
    layers = {there: layer for layer, there in _OF_TORCHVISION.items()}
    network = _by_layer(tensors, layers, lambda layer: _LEAVES)
    crop = (config['augment']['crop_px'],) * 2
    channels_first.check_shapes(
        path,
        network,
        channels_first.shapes_there(model, (*crop, 3)),
        lambda layer, leaf: f'{_OF_TORCHVISION.get(layer, layer)}.{_spell(leaf)}',
    )
    ours = channels_first.from_channels_first(network, model)
    ratios = config['augment']['pixel_divisor'] / (255 * np.asarray(_STD))
    ours['conv1']['kernel'] = ours['conv1']['kernel'] * ratios[:, None]
    mean = np.broadcast_to(255 * np.asarray(_MEAN), config['data']['image_shape'])
    return _trained(ours, config, constant_colours(mean))


def read_module(
    path: epath.Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> TrainedNetwork:
    """Return the network of a state dict of the module of our pages.

    Its configuration is that of its metadata; else `config`; else that of the paper, with the
    numbers of towers, kernels, units and classes that the weights have.
    """
    said = _described(path, metadata)
    if said:
        config = said['config']
    config = _with_widths(tensors) if config is None else copy.deepcopy(dict(config))
    last = tensors.get('fc8.bias')
    if config['model'].get('num_classes') == 0 and last is not None and last.ndim == 1:
        config['model']['num_classes'] = len(last)
    model, augment = architectures.sections(path, config)
    check_expressible(model)
    tensors = {n: t for n, t in tensors.items() if not n.endswith('.num_batches_tracked')}
    mean = _mean_image(path, tensors.pop('mean', None), config, augment.crop_px)
    layers = {name.rpartition('.')[0]: name.rpartition('.')[0] for name in tensors}
    network = _by_layer(tensors, layers, _leaves)
    image_shape = (augment.crop_px, augment.crop_px, mean.shape[-1])
    expected = channels_first.shapes_there(model, image_shape)
    channels_first.check_shapes(path, network, expected, _spell_in_module)
    statistics = _colours(path, mean, said) if said else constant_colours(mean)
    if not said:
        config['data']['image_shape'] = mean.shape
    elif len(said['class_names']) != model.num_classes:
        raise UserError(
            f'{path} has {model.num_classes} classes and {len(said["class_names"])} names of them; '
            'write the file again'
        )
    trained = _trained(channels_first.from_channels_first(network, model), config, statistics)
    if not said:
        return trained
    return dataclasses.replace(
        trained,
        class_names=tuple(said['class_names']),
        preparation=said['preparation'],
        about=said['about'],
    )


def write_module(path: epath.Path, trained: TrainedNetwork, dtype: str = 'float32') -> None:
    """Write the state dict of the module of our pages, atomically.

    Raises UserError for a network that the module does not express, naming the field, and for a
    weight that is not finite in that dtype.
    """
    model = make(ModelConfig, trained.config['model'])
    check_expressible(model)
    tensors = {'mean': np.transpose(trained.statistics.mean_image, (2, 0, 1)).astype(np.float32)}
    for layer, leaves in channels_first.to_channels_first(trained.network, model).items():
        for leaf, array in leaves.items():
            name = _spell_in_module(layer, leaf)
            tensors[name] = weights.finite(name, array, dtype)
    said = weights.described(trained) | {
        'eigenvectors': np.asarray(trained.statistics.eigenvectors).tolist(),
        'std': np.asarray(trained.statistics.std).tolist(),
    }
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    content = safetensors.numpy.save(whole, {KEY: json.dumps(said, sort_keys=True)})
    with storage.writing(path):
        storage.replace(path, content)


def check_expressible(model: ModelConfig, where: str = 'the PyTorch module') -> None:
    """Raise UserError, naming the field, for what PyTorch and ONNX have no layer for."""
    for name in CONVOLUTIONS:
        layer = getattr(model, name)
        if not layer.features:
            continue
        refused = {
            'local': layer.local,
            'after': 'map_norm' in layer.after,
            'pool_window': 'pool' in layer.after and layer.pool_window < layer.pool_stride,
        }
        for field, is_refused in refused.items():
            if is_refused:
                raise UserError(
                    f'{where} has no layer for config.model.{name}.{field} = '
                    f'{getattr(layer, field)!r}; write a weights file of alexnet_jax instead'
                )


def _trained(
    network: Mapping[str, Mapping[str, np.ndarray]], config: dict[str, Any], statistics: Statistics
) -> TrainedNetwork:
    """Return the network with names of its classes that are only their numbers."""
    wide = np.float64 if config['model']['dtype'] == 'float64' else np.float32
    return TrainedNetwork(
        network={
            layer: {name: np.ascontiguousarray(leaf, wide) for name, leaf in leaves.items()}
            for layer, leaves in network.items()
        },
        config=config,
        class_names=tuple(map(str, range(config['model']['num_classes']))),
        statistics=statistics,
        preparation=None,
        about={},
    )


def _described(path: epath.Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what the metadata say of the network, {} without any; raise UserError if damaged."""
    if KEY not in metadata:
        return {}
    try:
        said = json.loads(metadata[KEY])
        weights.require_format(path, said)
        names = ('config', 'class_names', 'preparation', 'about', 'eigenvectors', 'std')
        said = {name: said[name] for name in names}
        said['config'] = earlier.in_present_names(said['config'])
        if not all(isinstance(said['config'][s], Mapping) for s in ('model', 'augment', 'data')):
            raise ValueError('a section of the configuration is not a mapping')
        return said
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path}: its metadata {KEY} are damaged ({type(error).__name__}: {first_line(error)});'
            ' write the file again'
        ) from error


def _colours(path: epath.Path, mean: np.ndarray, said: Mapping[str, Any]) -> Statistics:
    """Return the statistics with the colours of the metadata."""
    eigenvectors, std = (_numbers(said[name]) for name in ('eigenvectors', 'std'))
    channels = mean.shape[-1]
    if eigenvectors.shape != (channels, channels) or std.shape != (channels,):
        raise UserError(f'{path}: its metadata {KEY} are damaged; write the file again')
    return Statistics(np.asarray(mean, np.float32), eigenvectors, std)


def _numbers(values: Any) -> np.ndarray:
    """Return nested lists as an array, empty if they are not numbers in the form of one."""
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        return np.empty(0, np.float32)


def _with_widths(tensors: Tensors) -> dict[str, Any]:
    """Return the paper's configuration with the numbers of towers, kernels, units and classes."""
    config = architectures.paper()
    model = config['model']
    bias = {
        name.removesuffix('.bias'): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith('.bias') and tensor.ndim == 1
    }
    for layer in (*CONVOLUTIONS, 'fc6', 'fc7'):
        model[layer]['features'] = bias.get(layer, 0)
    model['num_classes'] = bias.get('fc8', 0)
    second = tensors.get('conv2.weight')
    one = second is not None and second.ndim == 4 and second.shape[1] == bias.get('conv1')
    model['towers'] = 1 if one else 2
    return config


def _mean_image(
    path: epath.Path, mean: np.ndarray | None, config: Mapping[str, Any], crop_px: int
) -> np.ndarray:
    """Return the buffer `mean` as [H, W, C], or ImageNet's mean colour if there is none."""
    if mean is None:
        shape = tuple(config['data'].get('image_shape') or (crop_px, crop_px, 3))
        return np.broadcast_to(255 * np.asarray(_MEAN, np.float32), shape)
    if mean.ndim != 3 or min(mean.shape[1:]) < crop_px or not np.isfinite(mean).all():
        raise UserError(
            f'{path}: mean should be finite, (channels, height, width), and at least {crop_px} '
            f'pixels high and wide; its shape is {mean.shape}'
        )
    return mean.transpose(1, 2, 0)


def _by_layer(
    tensors: Tensors, layers: Mapping[str, str], leaves: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Sort tensors by layer and leaf; names that are not known keep theirs, to be refused."""
    network: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        there, _, leaf = name.rpartition('.')
        layer = layers.get(there, there)
        network.setdefault(layer, {})[leaves(layer).get(leaf, leaf)] = tensor
    return network


def _leaves(layer: str) -> Mapping[str, str]:
    return _LEAVES_OF_BN if layer.startswith('bn') else _LEAVES


def _spell(leaf: str) -> str:
    return 'weight' if leaf == 'kernel' else leaf


def _spell_in_module(layer: str, leaf: str) -> str:
    there = {ours: theirs for theirs, ours in _leaves(layer).items()}
    return f'{layer}.{there.get(leaf, leaf)}' if layer else leaf
