"""Trained networks for the tests, and their logits by the package's own evaluation."""

import functools

import jax
import numpy as np

from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.input.augment import Augment, AugmentConfig
from alexnet_jax.input.batch import Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import init_statistics, split_network
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.runtime.config import make
from configs import alexnet
from tests import reference

SIDE = 108  # of the images of small networks, whose crops have 96 pixels
WIDTHS = {'conv1': 16, 'conv2': 12, 'conv3': 20, 'conv4': 16, 'conv5': 12, 'fc6': 24, 'fc7': 20}


def small(configuration=alexnet, **fields):
    """Return a configuration with few units and small images, and other values of `fields`."""
    config = configuration.get_config()
    widths = {f'model.{name}.features': width for name, width in WIDTHS.items()}
    pixels = {'augment.crop_px': 96, 'data.image_shape': (SIDE, SIDE, 3)}
    everything = {'model.num_classes': 7, **pixels, **widths, **fields}
    config.update_from_flattened_dict(everything)
    return config.to_dict()


def draw(config, seed=0):
    """Return a network with weights drawn so that its logits are of the order of 1."""
    rng = np.random.default_rng(seed)
    model = AlexNet(make(ModelConfig, config['model']))
    crop_px, image_shape = config['augment']['crop_px'], config['data']['image_shape']
    network = reference.draw_parameters(model, (crop_px, crop_px, 3), seed)
    averages_of = functools.partial(init_statistics, model, (crop_px, crop_px, 3))
    for layer, averages in jax.eval_shape(averages_of).items():
        width = averages['mean'].shape
        network[layer] |= {'mean': rng.normal(size=width), 'var': rng.uniform(0.5, 2, width)}
    as_float32 = {
        layer: {name: np.float32(leaf) for name, leaf in leaves.items()}
        for layer, leaves in network.items()
    }
    statistics = Statistics(
        rng.uniform(90, 140, image_shape).astype(np.float32),
        rng.normal(size=(3, 3)).astype(np.float32),
        rng.uniform(1, 2, 3).astype(np.float32),
    )
    names = tuple(f'class {i}' for i in range(config['model']['num_classes']))
    return TrainedNetwork(as_float32, config, names, statistics, None, {'step': 3})


def photographs(config, n=3, seed=1):
    """Return smooth images, uint8 [n, H, W, C]."""
    shape = tuple(config['data']['image_shape'])
    return np.uint8(np.clip(reference.smooth_images(n, shape, seed) + 120, 0, 255))


def logits(trained, images):
    """Return the logits of the centre of each image."""
    model = AlexNet(make(ModelConfig, trained.config['model']))
    augment = Augment(make(AugmentConfig, trained.config['augment']), colour_steps=0)
    corners, mirrors = augment.view_corners(images.shape[1:], 1)

    def function(network, statistics, images):
        x = augment.view(images, statistics, corners[0], mirrors[0])
        rows = jax.numpy.arange(len(images), dtype='int32')
        return model.apply(split_network(network), x, rows)[0]

    run = jax.jit(function, compiler_options=reference.QUICK_COMPILE)
    return np.asarray(run(trained.network, trained.statistics, images))
