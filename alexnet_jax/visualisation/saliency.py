"""Show which pixels decide: the gradient, occlusion and Grad-CAM."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from alexnet_jax.inference.network import Network
from alexnet_jax.network.layers import HiddenLayer, OutputLayer
from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig
from alexnet_jax.network.variants import output_name
from alexnet_jax.visualisation import crops as crops_lib
from alexnet_jax.visualisation import drawing
from alexnet_jax.visualisation.subjects import Subjects

_HEADS = ('what it sees', 'gradient', 'occlusion', 'Grad-CAM, {layer}')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Saliency:
    """What decides about the class of N crops of S x S pixels.

    Attributes:
      crops: uint8 [N, S, S, C].
      classes: int32 [N], for which class: the right one, or the most probable one if that is not
        known.
      known: whether `classes` are the right ones.
      names: of `classes`, [N].
      predicted: the name of the most probable class, [N].
      probabilities: of `classes`, float [N].
      gradient: float32 [N, S, S], see `gradients`.
      occlusion: float32 [N, G, G], see `occlusions`.
      grad_cam: float32 [N, S, S], see `grad_cams`.
      layer: the activation of Grad-CAM's maps.
      square, stride: of the occlusion, in pixels.
      rule: how the images were chosen, for a caption.
    """

    crops: np.ndarray
    classes: np.ndarray
    known: bool
    names: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: np.ndarray
    gradient: np.ndarray
    occlusion: np.ndarray
    grad_cam: np.ndarray
    layer: str
    square: int
    stride: int
    rule: str

    @property
    def caption(self) -> str:
        """What one sees, in a few sentences."""
        whose = 'the right class' if self.known else 'the most probable class'
        return (
            f'What decides about {whose} of each image. Gradient: the darker a pixel, the more the '
            f'logit changes with it. Occlusion: a square of {self.square} pixels in the mean '
            'colour hides a part of the image; where it is orange, the probability of the class '
            f'falls, and where it is purple, it rises. Grad-CAM: where the maps of {self.layer} '
            f'speak for the class. {self.rule}'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For `--json`: of each image the class, its probability and the largest fall of it."""
        return {
            'square_px': self.square,
            'stride_px': self.stride,
            'images': [
                {
                    'class': name,
                    'predicted': predicted,
                    'probability': float(probability),
                    'largest_fall': float(fall.max()),
                }
                for name, predicted, probability, fall in zip(
                    self.names, self.predicted, self.probabilities, self.occlusion, strict=True
                )
            ],
        }


def find(net: Network, subjects: Subjects) -> Saliency:
    """Compute the three maps of each image; the occluding square has a fifth of the crop's side.

    Raises Unreadable for an image that cannot be read.
    """
    crops = net.crops(subjects.images).astype(np.uint8)
    found = crops_lib.probabilities(net, crops)
    best = np.argmax(found, axis=-1).astype(np.int32)
    classes = best if subjects.labels is None else subjects.labels
    square, stride = max(crops.shape[1] // 5, 1), max(crops.shape[1] // 28, 1)
    return Saliency(
        crops=crops,
        classes=classes,
        known=subjects.labels is not None,
        names=tuple(net.readable_names[k] for k in classes),
        predicted=tuple(net.readable_names[k] for k in best),
        probabilities=np.take_along_axis(found, classes[:, None], axis=-1)[:, 0],
        gradient=gradients(net, crops, classes),
        occlusion=occlusions(net, crops, classes, square=square, stride=stride),
        grad_cam=grad_cams(net, crops, classes),
        layer=_last_maps(net.config.model)[0],
        square=square,
        stride=stride,
        rule=subjects.rule,
    )


def gradients(net: Network, crops: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the size of the gradient of a class's logit at each pixel (Simonyan, 2014).

    Args:
      net: the network.
      crops: uint8 [N, S, S, C].
      classes: int32 [N].

    Returns:
      float32 [N, S, S], the largest absolute value of the channels.
    """

    def logit(crops: jax.Array, classes: jax.Array) -> jax.Array:
        return _chosen(net.forward(crops)['fc8'], classes)

    found = crops_lib.in_batches(jax.jit(jax.grad(logit)), crops.astype(np.float32), classes)
    return np.abs(found).max(axis=-1)


def occlusions(
    net: Network, crops: np.ndarray, classes: np.ndarray, *, square: int, stride: int
) -> np.ndarray:
    """Return how much of a class's probability a grey square takes away (Zeiler and Fergus, 2014).

    The square has the mean colour of the training images. Its centre moves over the crop in steps
    of `stride`, and what reaches beyond the edge is cut off.

    Args:
      net: the network.
      crops: uint8 [N, S, S, C].
      classes: int32 [N].
      square: the side in pixels.
      stride: pixels between neighbouring centres.

    Returns:
      float32 [N, G, G] with G = ceil(S / stride): the probability of the whole crop, less that
      with a square whose centre is in the middle of this cell of `stride` x `stride` pixels.
    """
    colour = np.uint8(np.rint(net.trained.statistics.mean_image.mean(axis=(0, 1))))
    cells = -(-crops.shape[1] // stride)
    starts = stride * np.arange(cells) + stride // 2 - square // 2
    spans = [slice(max(start, 0), start + square) for start in starts]
    maps = []
    for crop, label in zip(crops, classes, strict=True):
        hidden = np.repeat(crop[None], cells**2, axis=0)
        for index, (rows, columns) in enumerate(itertools.product(spans, spans)):
            hidden[index, rows, columns] = colour
        found = crops_lib.probabilities(net, np.concatenate([crop[None], hidden]))[:, label]
        maps.append((found[0] - found[1:]).reshape(cells, cells))
    return np.asarray(maps, np.float32)


def grad_cams(net: Network, crops: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return Grad-CAM of the last convolution's maps (Selvaraju, 2017).

    It is ReLU(sum over k of a_k A_k). A_k are the maps of the last convolution, as they enter
    pooling (conv5 after the ReLU in the paper's network), and a_k is the mean over its positions of
    the derivative of the class's logit with respect to A_k.

    Args:
      net: the network.
      crops: uint8 [N, S, S, C].
      classes: int32 [N].

    Returns:
      float32 [N, S, S], enlarged bilinearly to the size of the crop.
    """
    maps_name, entering_name = _last_maps(net.config.model)

    def weighted(crops: jax.Array, classes: jax.Array) -> jax.Array:
        def logit(added: jax.Array) -> tuple[jax.Array, jax.Array]:
            seen = _with_added(net, crops, added)
            return _chosen(seen['fc8'], classes), seen[maps_name]

        entering = jax.eval_shape(net.forward, crops)[entering_name]
        none = jnp.zeros(entering.shape, entering.dtype)
        gradient, maps = jax.grad(logit, has_aux=True)(none)
        # Max-pooling passes each derivative on to one of its inputs, so that the sum over the
        # positions is the same before and after it.
        weights = jnp.sum(gradient, axis=(1, 2)) / np.float32(maps.shape[1] * maps.shape[2])
        return nn.relu(jnp.sum(maps * weights[:, None, None], axis=-1))

    found = crops_lib.in_batches(jax.jit(weighted), crops.astype(np.float32), classes)
    side = crops.shape[1]
    large = [Image.fromarray(x).resize((side, side), Image.Resampling.BILINEAR) for x in found]
    return np.stack([np.asarray(x) for x in large])


def draw(found: Saliency) -> Any:
    """Draw a row for each image: the crop, the gradient, occlusion and Grad-CAM."""
    count = len(found.crops)
    figure, grid = drawing.pyplot().subplots(
        count, 4, figsize=(7.2, 1.95 * count + 0.5), layout='constrained', squeeze=False
    )
    side = found.crops.shape[1]
    everywhere = (-0.5, side - 0.5, side - 0.5, -0.5)
    for axes, head in zip(grid[0], _HEADS, strict=True):
        axes.set_title(head.format(layer=found.layer), fontsize=9)
    for row, (photograph, gradient, occlusion, cam) in enumerate(grid):
        crop, grey = found.crops[row], found.crops[row].mean(axis=-1, keepdims=True)
        drawing.show(photograph, crop)
        photograph.set_xlabel(_in_words(found, row), fontsize=8)
        gradient.imshow(found.gradient[row], cmap='gray_r', vmin=0)
        drawing.bare(gradient)
        most = np.abs(found.occlusion[row]).max() or 1.0
        drawing.show(occlusion, grey)
        occlusion.imshow(
            found.occlusion[row], cmap='PuOr_r', vmin=-most, vmax=most, alpha=0.75,
            extent=everywhere,
        )  # fmt: skip
        occlusion.set_xlabel(
            f'falls by {100 * found.occlusion[row].max():.0f} points at most', fontsize=8
        )
        drawing.show(cam, grey)
        cam.imshow(found.grad_cam[row], cmap='magma', vmin=0, alpha=0.6)
    return figure


def _in_words(found: Saliency, row: int) -> str:
    probability = f'{100 * found.probabilities[row]:.0f} %'
    if found.names[row] == found.predicted[row]:
        return f'{found.names[row]}, {probability}'
    return f'{found.names[row]}, {probability}\nnetwork: {found.predicted[row]}'


def _chosen(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the sum of each row's logit of its class; rows do not depend on each other."""
    return jnp.sum(jnp.take_along_axis(logits, classes[:, None], axis=-1))


def _last_maps(config: ModelConfig) -> tuple[str, str]:
    """Return the names of the last maps before pooling, and of what the next layer gets of them."""
    layers = [name for name in CONVOLUTIONS if getattr(config, name).features]
    name, after = layers[-1], getattr(config, layers[-1]).after
    before_pooling = [operation for operation in after if operation != 'pool'][-1]
    return output_name(name, after, before_pooling), output_name(name, after, after[-1])


def _with_added(net: Network, crops: jax.Array, added: jax.Array) -> dict[str, jax.Array]:
    """Return `net.forward` with an array added to the maps that the fully connected layers get."""

    def add(layer: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        dense = isinstance(context.module, HiddenLayer | OutputLayer)
        if dense and isinstance(arguments[0], tuple):  # maps, so it is the first of these layers
            parts = jnp.split(added, len(arguments[0]), axis=-1)
            maps = tuple(x + part for x, part in zip(arguments[0], parts, strict=True))
            arguments = (maps, *arguments[1:])
        return layer(*arguments, **options)

    with nn.intercept_methods(add):
        return net.forward(crops)
