"""Slow NumPy reference implementations, each written from its formula, and a small network."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import linen as nn

from alexnet_jax.input.augment import Augment, AugmentConfig
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import abstract_variables
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.parallel.mesh import ParallelConfig
from alexnet_jax.runtime.config import make
from configs import alexnet

# For what runs a few times only: compiles in a quarter of the time, runs ten times slower.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}
SMALL_IMAGE = (96, 128, 3)  # not square: a transposed axis cannot hide; 2 x 3 maps reach fc6


def model_config(configuration: Any = alexnet, **fields: Any) -> ModelConfig:
    """Return the `model` section of a configuration file with other values of dotted `fields`."""
    section = configuration.get_config().model
    section.update_from_flattened_dict(fields)
    return make(ModelConfig, section.to_dict())


def small_model_config(*, conv6: int = 0, **fields: Any) -> ModelConfig:
    """Return that of the paper's network with few units, in float64, all else unchanged."""
    widths = {'conv1': 16, 'conv2': 12, 'conv3': 20, 'conv4': 16, 'conv5': 12, 'conv6': conv6}
    widths |= {'fc6': 24, 'fc7': 20}
    small = {f'{name}.features': features for name, features in widths.items()}
    return model_config(**{'num_classes': 7, 'dtype': 'float64', **small, **fields})


def parallel(**fields: int) -> ParallelConfig:
    """Return the `parallel` section of the paper's configuration with other values of `fields`."""
    section = alexnet.get_config().parallel
    section.update(fields)
    return make(ParallelConfig, section.to_dict())


def augment(**fields: Any) -> Augment:
    """Return the paper's augmentation with other values of `fields`; an epoch is ten steps."""
    section = alexnet.get_config().augment
    section.update(fields)
    config = make(AugmentConfig, section.to_dict())
    return Augment(config, colour_steps=round(10 * config.colour_epochs))


def draw_parameters(model: AlexNet, image_shape: tuple[int, ...], seed: int) -> dict:
    """Draw weights that keep activities near the scale of the pixels, and biases that vary.

    Weights have the variance 2 / fan-in, those of fc8 a hundredth of it, lest the softmax saturate.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for layer, leaves in nn.meta.unbox(abstract_variables(model, image_shape)).items():
        if 'scale' in leaves:  # batch normalisation
            width = leaves['scale'].shape
            params[layer] = {'scale': rng.uniform(0.5, 2, width), 'bias': rng.normal(size=width)}
            continue
        shape = leaves['kernel'].shape
        std = math.sqrt(2 / math.prod(shape[:-1])) * (0.1 if layer == 'fc8' else 1.0)
        params[layer] = {
            'kernel': std * rng.standard_normal(shape),
            'bias': 2 * rng.standard_normal(leaves['bias'].shape),
        }
    return params


def smooth_images(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return images like mean-subtracted photographs: blobs of 16 pixels and fine noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    blobs = rng.normal(0, 50, (n, -(-height // 16), -(-width // 16), channels))
    blobs = blobs.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return np.clip(blobs + rng.normal(0, 15, blobs.shape), -130, 130)


def local_response_norm(
    a: np.ndarray, *, k: float, n: int, alpha: float, beta: float
) -> np.ndarray:
    """b_i = a_i / (k + alpha * sum_{j = max(0, i - n/2)}^{min(N - 1, i + n/2)} a_j^2)^beta."""
    b = np.zeros(a.shape)
    maps = a.shape[-1]
    for position in np.ndindex(*a.shape[:-1]):
        for i in range(maps):
            energy = 0.0
            for j in range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1):
                energy += float(a[position][j]) ** 2
            b[position][i] = float(a[position][i]) / (k + alpha * energy) ** beta
    return b


def max_pool(x: np.ndarray, *, window: int, stride: int) -> np.ndarray:
    """y_{r,c} = max over the window x window square at (stride r, stride c), whole squares only."""
    batch, height, width, maps = x.shape
    rows = [r for r in range(0, height, stride) if r + window <= height]
    columns = [c for c in range(0, width, stride) if c + window <= width]
    y = np.zeros((batch, len(rows), len(columns), maps))
    for b, (i, r), (j, c), m in itertools.product(
        range(batch), enumerate(rows), enumerate(columns), range(maps)
    ):
        y[b, i, j, m] = max(x[b, r + p, c + q, m] for p in range(window) for q in range(window))
    return y


def convolve(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, *, stride: int, padding: tuple[int, int]
) -> np.ndarray:
    """y_{r,c,f} = bias_f + sum_{p,q,m} kernel_{p,q,m,f} x_{s r + p - before, s c + q - before, m}.

    s is the stride, `padding` = (before, after) the zeros that stand around each spatial axis.
    """
    before, after = padding
    batch, height, width, maps = x.shape
    size = kernel.shape[0]
    rows = range(-before, height + after - size + 1, stride)
    columns = range(-before, width + after - size + 1, stride)
    y = np.zeros((batch, len(rows), len(columns), kernel.shape[-1]))
    for b, (i, r), (j, c) in itertools.product(range(batch), enumerate(rows), enumerate(columns)):
        y[b, i, j] = bias
        for p, q in itertools.product(range(size), range(size)):
            if 0 <= r + p < height and 0 <= c + q < width:
                for m, f in np.ndindex(maps, kernel.shape[-1]):
                    y[b, i, j, f] += kernel[p, q, m, f] * x[b, r + p, c + q, m]
    return y


def central_differences(
    function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Return (f(x + step e_i) - f(x - step e_i)) / (2 step) for every element i."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def softmax(scores: np.ndarray) -> np.ndarray:
    """p_i = exp(s_i) / sum_j exp(s_j), along the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def errors(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray, first: int) -> int:
    """Count real examples whose label is not among the `first` best classes; ties by index."""
    count = 0
    for row, label, real in zip(scores, labels, mask, strict=True):
        ranking = sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))
        count += bool(real) and label not in ranking[:first]
    return count


def view(
    image: np.ndarray, mean_image: np.ndarray, corner: tuple[int, int], mirror: bool, crop_px: int
) -> np.ndarray:
    """Return the crop at `corner` (y, x) less the mean image there, reversed if `mirror`."""
    out = np.zeros((crop_px, crop_px, image.shape[-1]))
    for r, c in np.ndindex(crop_px, crop_px):
        source = (corner[0] + r, corner[1] + c)
        column = crop_px - 1 - c if mirror else c
        out[r, column] = image[source].astype(np.float64) - mean_image[source].astype(np.float64)
    return out


def ten_views(
    image: np.ndarray, mean_image: np.ndarray, crop_px: int
) -> Iterator[tuple[tuple[int, int], bool, np.ndarray]]:
    """Yield (corner, mirror, crop): centre and four corners, then the mirror image of each."""
    y, x = image.shape[0] - crop_px, image.shape[1] - crop_px
    for mirror in (False, True):
        for corner in ((y // 2, x // 2), (0, 0), (0, x), (y, 0), (y, x)):
            yield corner, mirror, view(image, mean_image, corner, mirror, crop_px)


def relative_error(got: Any, want: Any) -> float:
    """Return max|a - b| / max|b|."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f'{got.shape} is not {want.shape}'
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))
